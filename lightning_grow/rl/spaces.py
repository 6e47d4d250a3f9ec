"""From a gymnasium environment's spaces to the sizes of a network."""

from collections.abc import Mapping
from typing import Any

import gymnasium
from gymnasium import spaces

Environment = gymnasium.Env[Any, Any]


def make_env(env: Mapping[str, Any]) -> Environment:
    """Make the environment that `{"id": ..., **kwargs of gymnasium.make}` describes, its observation one flat vector.

    The environment has no time limit of its own: `time_limit` says what it is and `VectorEnv` keeps it, because a
    wrapper's step count would be missing from checkpoints.

    Raises:
        ValueError: If there is no `id`.
    """
    if "id" not in env:
        raise ValueError(f'env must be {{"id": <gymnasium id>, **kwargs of gymnasium.make}}; came {dict(env)!r}.')
    made: Environment = gymnasium.make(**{"disable_env_checker": True, **env, "max_episode_steps": -1})
    space = made.observation_space
    is_vector = isinstance(space, spaces.Box) and len(space.shape) == 1
    return made if is_vector else gymnasium.wrappers.FlattenObservation(made)


def time_limit(env: Mapping[str, Any]) -> int | None:
    """Return the number of steps after which an episode is truncated: `max_episode_steps` in `env`, or the id's own."""
    limit: int | None = env.get("max_episode_steps", gymnasium.spec(env["id"]).max_episode_steps)
    return limit


def space_sizes(env: Environment) -> tuple[int, int, bool]:
    """Return (state_dim, action_dim, continuous) of an environment that `make_env` made.

    Raises:
        ValueError: If actions are neither `Discrete` nor a `Box`.
    """
    state_dim, action_space = spaces.flatdim(env.observation_space), env.action_space
    if isinstance(action_space, spaces.Discrete):
        return state_dim, int(action_space.n), False
    if isinstance(action_space, spaces.Box):
        return state_dim, spaces.flatdim(action_space), True
    raise ValueError(f"PPO needs Discrete or Box actions; {env.spec.id if env.spec else env} has {action_space}.")


def env_spaces(env: Mapping[str, Any]) -> tuple[int, int, bool]:
    """Make the environment once, read (state_dim, action_dim, continuous), and close it.

    >>> env_spaces({"id": "CartPole-v1"})
    (4, 2, False)
    """
    made = make_env(env)
    try:
        return space_sizes(made)
    finally:
        made.close()
