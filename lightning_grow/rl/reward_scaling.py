"""Rewards of a sensible size: divided by the spread of the discounted return."""

from dataclasses import replace

import torch
from torch import Tensor

from lightning_grow.rl.normalizer import RunningMoments
from lightning_grow.rl.rollout import Rollout


class RewardScaler(RunningMoments):
    """Divide rewards by the standard deviation of the running discounted return, and clip; their sign stays.

    The statistics take in each rollout, of all processes, before it is scaled. They and the returns under way are in a
    PPO's checkpoint.

    Args:
        gamma: Discount, in [0, 1].
        clip: Largest absolute scaled reward.
        epsilon: Added to the variance.

    References: Engstrom et al., "Implementation matters in deep policy gradients" (2020), section 3, reward scaling;
    Huang et al., "The 37 implementation details of PPO" (2022), continuous-action details 7 and 8.

    >>> scaler, never = RewardScaler(gamma=0.0), torch.zeros(2, 1, dtype=torch.bool)
    >>> scaler(torch.tensor([[2.0], [-2.0]]), never).flatten()
    tensor([ 1., -1.])
    """

    def __init__(self, gamma: float, clip: float = 10.0, epsilon: float = 1e-8) -> None:
        super().__init__(1)
        self.gamma, self.clip, self.epsilon = gamma, clip, epsilon
        self.under_way: Tensor | None = None

    @torch.no_grad()
    def forward(self, rewards: Tensor, ended: Tensor) -> Tensor:
        """Take in a rollout's rewards and return them scaled.

        Args:
            rewards: `(num_steps, num_envs)`.
            ended: Whether an episode ended with the step, bool, same shape.
        """
        returns, running = torch.empty_like(rewards), self.under_way
        if running is None or len(running) != rewards.shape[1]:
            running = torch.zeros_like(rewards[0])
        for step, (reward, is_over) in enumerate(zip(rewards, ended, strict=True)):
            returns[step] = running * self.gamma + reward
            running = returns[step] * ~is_over
        self.under_way = running
        self.update(returns.unsqueeze(-1))
        return (rewards * (self.var + self.epsilon).rsqrt()).clamp(-self.clip, self.clip)

    def scale(self, rollout: Rollout) -> Rollout:
        """Return a rollout with its rewards scaled; the returns of its episodes stay as they are."""
        return replace(rollout, rewards=self(rollout.rewards, rollout.terminated | rollout.truncated))
