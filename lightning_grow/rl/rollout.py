"""Collection: play the policy for some steps in every environment and keep what PPO trains on."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lightning_grow.rl.actor_critic import ActorCritic
from lightning_grow.rl.memory import State
from lightning_grow.rl.player import Player
from lightning_grow.rl.processes import count, gather, share_of
from lightning_grow.rl.vector_env import EpisodeEnd, VectorEnv


@dataclass(frozen=True)
class Rollout:
    """What happened in `num_steps` steps of `num_envs` environments.

    Attributes:
        observations: s_t as the environment gave it, and what it shows after the last step,
            `(num_steps + 1, num_envs, state_dim)`; images are `(..., height, width, channels)`, bytes where they are.
        outputs: The policy's output on s_t, `(num_steps, num_envs, action_dim)`.
        actions: `(num_steps, num_envs)` int64, with a last dimension for parts; or `(num_steps, num_envs, action_dim)`
            where continuous (not clipped).
        rewards: `(num_steps, num_envs)`.
        terminated: Whether the step reached a terminal state, bool `(num_steps, num_envs)`.
        truncated: Whether the episode was cut off after the step, bool `(num_steps, num_envs)`.
        final_observations: What each ended episode showed last, `(num_ends, state_dim)`, ordered by step, then by
            environment, as the True of `terminated | truncated` are.
        memory: What the agent remembered before the first step, each `(num_envs, hidden_size)`; () of no memory.
        final_memory: What it remembered when each episode ended, before the final observation.
        episode_returns: Undiscounted returns of the episodes that ended.
        episode_lengths: Their lengths in steps.
    """

    observations: Tensor
    outputs: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    final_observations: Tensor
    memory: State
    final_memory: State
    episode_returns: list[float]
    episode_lengths: list[int]

    @property
    def begins(self) -> Tensor:
        """Whether an episode begins with an observation, bool `(num_steps + 1, num_envs)`; not at the first step.

        What is remembered before that one is known.
        """
        ended = self.terminated | self.truncated
        return torch.cat([torch.zeros_like(ended[:1]), ended])

    def all_episodes(self) -> tuple[list[float], list[int]]:
        """Returns and lengths of the episodes that ended in any process."""
        parts = gather((self.episode_returns, self.episode_lengths))
        return [item for part, _ in parts for item in part], [item for _, part in parts for item in part]


def collect(
    envs: VectorEnv,
    agent: ActorCritic,
    normalizer: nn.Module,
    num_steps: int,
    generator: torch.Generator,
    memory: State = (),
) -> Rollout:
    """Play `num_steps` steps in every environment, sampling actions.

    Only the actor runs here; values and log-probabilities are cheaper in one batch afterwards. All noise is drawn
    at once.

    Args:
        envs: Environments in mid-episode; they are left where the rollout ends.
        agent: The policy, whose device the rollout is put on.
        normalizer: Maps observations `(num_envs, state_dim)` to what the policy is given.
        num_steps: Steps in each environment.
        generator: Source of the action noise, on the CPU.
        memory: What the agent remembers of the running episodes, changed in place.
    """
    num_envs, *state_dim = envs.observations.shape
    device, shape = next(agent.parameters()).device, (num_steps, num_envs)
    noise = share_of(agent.noise((num_steps, num_envs * count()), generator), 1).to(device).unbind(0)
    dtype = torch.uint8 if envs.observations.dtype == np.uint8 else None  # None: float64 under 64-true
    observations = torch.empty(num_steps + 1, num_envs, *state_dim, dtype=dtype)
    outputs = torch.empty(*shape, agent.action_dim, device=device)
    actions = torch.empty(*shape, *agent.action_shape, dtype=None if agent.continuous else torch.int64)
    rewards = torch.empty(shape)
    terminated, truncated = torch.empty(2, *shape, dtype=torch.bool)
    seen, taken = observations.numpy(), actions.numpy()  # the same memory
    step_rewards, step_terminated, step_truncated = rewards.numpy(), terminated.numpy(), truncated.numpy()
    ends: list[EpisodeEnd] = []
    first_memory, final_memory = tuple(part.clone() for part in memory), [tuple(part[:0] for part in memory)]
    with torch.inference_mode():
        player = Player(agent, normalizer, memory)
        for step, (shown, output, action) in enumerate(zip(observations[:-1], outputs, actions, strict=True)):
            seen[step] = envs.observations
            output.copy_(player(shown.to(device)))
            action.copy_(agent.distribution(output).sample(noise[step]))
            step_rewards[step], step_terminated[step], step_truncated[step], step_ends = envs.step(taken[step])
            if step_ends:
                ends += step_ends
                final_memory.append(player.forget(step_terminated[step] | step_truncated[step]))
    seen[num_steps] = envs.observations
    final_observations = np.stack([end.observation for end in ends]) if ends else seen[:0, 0]
    return Rollout(
        observations.to(device),
        outputs,
        actions.to(device),
        rewards.to(device),
        terminated.to(device),
        truncated.to(device),
        torch.from_numpy(final_observations).to(observations),
        first_memory,
        tuple(map(torch.cat, zip(*final_memory, strict=True))),
        [end.episode_return for end in ends],
        [end.length for end in ends],
    )
