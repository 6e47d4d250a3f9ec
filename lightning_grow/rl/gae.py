"""Generalized advantage estimation."""

import torch
from torch import Tensor


def generalized_advantages(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    r"""Estimate advantages by GAE, A_t = sum_k (gamma lambda)^k delta_{t+k}.

    delta_t = r_t + gamma V(s'_t) - V(s_t), where s'_t is the state that step t led to, before any reset. A terminated
    episode has no value after its end; a truncated one was only cut off, so V(s'_t) still counts. The sum stops at
    both.

    Args:
        rewards: `(num_steps, num_envs)`.
        values: V(s_t), same shape.
        next_values: V(s'_t), same shape; at the end of an episode this is the value of its final observation.
        terminated: Whether step t ended the episode by reaching a terminal state, bool, same shape.
        truncated: Whether step t ended it for another reason (a time limit), bool, same shape.
        gamma: Discount, in [0, 1].
        gae_lambda: Trade of bias (0) against variance (1).

    Returns:
        Advantages, `(num_steps, num_envs)`.

    References: Schulman et al., "High-dimensional continuous control using generalized advantage estimation" (2016),
    equation 16; Pardo et al., "Time limits in reinforcement learning" (2018), for truncation.

    >>> one, false = torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.bool)
    >>> generalized_advantages(one, 0 * one, 0 * one, false, false, gamma=1.0, gae_lambda=0.5).flatten()
    tensor([1.5000, 1.0000])
    """
    deltas = rewards + gamma * next_values * ~terminated - values
    decays = gamma * gae_lambda * (~(terminated | truncated)).to(deltas.dtype)
    advantages = torch.empty_like(deltas)
    following = torch.zeros_like(deltas[0])
    for step in reversed(range(len(deltas))):
        following = torch.addcmul(deltas[step], decays[step], following, out=advantages[step])
    return advantages
