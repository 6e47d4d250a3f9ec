"""Play whole episodes with an agent, to see how good it is."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from lightning_grow.rl.ppo import PPO
from lightning_grow.rl.vector_env import VectorEnv


@torch.no_grad()
def evaluate(agent: PPO, env: Mapping[str, Any], episodes: int, seed: int, greedy: bool = False) -> list[float]:
    """Return the undiscounted return of each episode, one played in each of `episodes` environments side by side.

    Args:
        agent: Gives the actions; left as it is.
        env: `{"id": <gymnasium id>, **kwargs of gymnasium.make}`.
        episodes: How many to play.
        seed: Of the action noise and, plus its index, of each environment.
        greedy: Whether to take the most probable action instead of a sampled one.

    >>> agent = PPO(state_dim=4, action_dim=2)
    >>> len(evaluate(agent, {"id": "CartPole-v1"}, episodes=3, seed=0))
    3
    """
    envs, generator = VectorEnv(env, episodes), torch.Generator().manual_seed(seed)
    envs.reset(seed)
    returns: dict[int, float] = {}
    while len(returns) < episodes:
        observations = torch.from_numpy(envs.observations).to(next(agent.parameters()))
        distribution = agent.agent.distribution(agent.agent.policy(agent.normalizer(observations)))
        noise = agent.agent.noise((episodes,), generator).to(observations)
        actions = distribution.mode if greedy else distribution.sample(noise)
        _, terminated, truncated, ends = envs.step(actions.cpu().numpy())
        ended = np.flatnonzero(terminated | truncated).tolist()
        # Environments that end early play on until all have ended once; only their first episode counts.
        returns = {index: end.episode_return for index, end in zip(ended, ends, strict=True)} | returns
    envs.close()
    return [returns[index] for index in range(episodes)]
