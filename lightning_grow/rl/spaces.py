"""From a gymnasium environment's spaces to the sizes of a network."""

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from lightning_grow.errors import GrowError, WrongSetting

Environment = gymnasium.Env[Any, Any]


FRAMES = "frame_stack"
"""The key of an environment that is ours: how many observations, the newest last, the agent is shown as one."""


def make_env(env: Mapping[str, Any], images: bool = False) -> Environment:
    """Make the environment that `{"id": ..., **kwargs of gymnasium.make}` describes, its observation one flat vector.

    The environment has no time limit and no frames of its own: `VectorEnv` keeps both, because those of a wrapper would
    be missing from checkpoints.

    Args:
        env: As `VectorEnv` takes it.
        images: Whether its observations are to stay images, `(height, width, channels)`.

    Raises:
        WrongSetting: If there is no `id`, or the environment does not take its arguments.
    """
    if "id" not in env:
        raise WrongSetting(f'env must be {{"id": <gymnasium id>, **kwargs of gymnasium.make}}; came {dict(env)!r}.')
    register_namespace(env["id"])
    try:
        arguments = {name: value for name, value in env.items() if name != FRAMES}
        made: Environment = gymnasium.make(**{"disable_env_checker": True, **arguments, "max_episode_steps": -1})
    except (GrowError, gymnasium.error.Error):
        raise
    except Exception as error:  # an environment may raise anything at an argument that it does not expect
        kwargs = {name: value for name, value in env.items() if name != "id"}
        raise WrongSetting(
            f"{env['id']} cannot be made with {kwargs}: {type(error).__name__}: {error}. Give it the arguments that "
            "its documentation names."
        ) from error
    space = made.observation_space
    if not space.is_np_flattenable:
        made.close()
        raise WrongSetting(
            f"PPO needs observations of a fixed length; {env['id']} has {space}. Wrap the environment so that it shows "
            "a Box, Discrete, MultiDiscrete or MultiBinary space, or a Dict or Tuple of these."
        )
    if images:
        return channels_last(made)
    is_vector = isinstance(space, spaces.Box) and len(space.shape) == 1
    return made if is_vector else gymnasium.wrappers.FlattenObservation(made)


def register_namespace(env_id: str) -> None:
    """Register the environments of an installed package that says it has some of this namespace, `MinAtar/...`.

    gymnasium 1 leaves that to whoever makes one.
    """
    namespace, _, name = env_id.rpartition("/")
    if name and env_id not in gymnasium.registry:
        for point in entry_points(group="gymnasium.envs", name=namespace):
            point.load()()


def channels_last(env: Environment) -> Environment:
    """Return an environment of images `(height, width, channels)`: the shortest axis, where it is the first, goes last.

    Raises:
        WrongSetting: Its observations are no images.
    """
    space = env.observation_space
    if not isinstance(space, spaces.Box) or len(space.shape) != 3:
        env.close()
        raise WrongSetting(
            f"An encoder takes images, a Box of three axes; {env.spec.id if env.spec else env} has {space}. Leave the "
            "encoder out."
        )
    if int(np.argmin(space.shape)) != 0:
        return env
    low, high = np.moveaxis(space.low, 0, -1), np.moveaxis(space.high, 0, -1)
    turned = spaces.Box(low, high, dtype=space.dtype)
    return gymnasium.wrappers.TransformObservation(env, lambda image: np.moveaxis(image, 0, -1), turned)


def check_bounds(env: Environment) -> None:
    """Refuse to squash actions that have no bounds.

    Raises:
        WrongSetting: They have none; the environment is closed.
    """
    space = env.action_space
    if not isinstance(space, spaces.Box) or not space.is_bounded():
        env.close()
        raise WrongSetting(
            f"squash_actions takes actions to the bounds of the environment; {env.spec.id if env.spec else env} has "
            f"{space}. Leave it out."
        )


def time_limit(env: Mapping[str, Any]) -> int | None:
    """Return after how many steps an episode of an environment that was made is truncated: `env`'s own, or the id's."""
    name = env["id"].rpartition(":")[2]  # "module:Id-v0": making one has imported the module, which registers it
    limit: int | None = env.get("max_episode_steps", gymnasium.spec(name).max_episode_steps)
    return limit


Sizes = tuple[int | list[int], int | list[int], bool]
"""(state_dim, action_dim, continuous), the arguments of a PPO that an environment decides."""


def space_sizes(env: Environment, frames: int = 1) -> Sizes:
    """Return (state_dim, action_dim, continuous) of an environment that `make_env` made, `frames` shown as one.

    Raises:
        WrongSetting: If actions are neither choices nor a `Box`.
    """
    shape, action_space = [*(env.observation_space.shape or ())], env.action_space
    shape[-1] *= frames
    state_dim = shape if len(shape) > 1 else shape[0]
    if isinstance(action_space, spaces.Discrete):
        return state_dim, int(action_space.n), False
    if isinstance(action_space, spaces.Box):
        return state_dim, spaces.flatdim(action_space), True
    if isinstance(action_space, spaces.MultiDiscrete):
        return state_dim, action_space.nvec.flatten().tolist(), False
    if isinstance(action_space, spaces.MultiBinary):
        return state_dim, [2] * spaces.flatdim(action_space), False
    raise WrongSetting(
        f"PPO needs Discrete, MultiDiscrete, MultiBinary or Box actions; {env.spec.id if env.spec else env} has "
        f"{action_space}. Wrap the environment so that it takes one of these."
    )


def observation_names(env: Environment, frames: int = 1) -> list[str] | None:
    """Return a name for every entry along the last axis of what an agent is shown of an environment, if there are any.

    Names are the environment's own `observation_names` (as `lightning_grow/Market-v0` has them); else those of the
    parts of a `Dict` or `Tuple` space with a position in each, `speed[0]`. Frames, a space of two axes with the oldest
    frame first, count back from the newest, so that a longer history keeps its names: `price[-2]`, or `[-2,0]`.
    """
    if frames > 1 or len(env.observation_space.shape or ()) == 3:
        last = (env.observation_space.shape or ())[-1]
        names = (observation_names(env) if len(env.observation_space.shape or ()) == 1 else None) or range(last)
        return [f"{name}[{frame}]" for frame in range(-frames, 0) for name in names]
    names = list(map(str, getattr(env.unwrapped, "observation_names", ())))
    if len(names) == spaces.flatdim(env.observation_space):
        return names
    space = (env.env if isinstance(env, gymnasium.wrappers.FlattenObservation) else env).observation_space
    if isinstance(space, spaces.Box) and len(space.shape) == 2 and len(names) == space.shape[1]:
        return [f"{name}[{frame}]" for frame in range(-space.shape[0], 0) for name in names]
    has_parts = isinstance(space, (spaces.Dict, spaces.Tuple)) or len(space.shape or ()) == 2
    return space_names(space) if has_parts else None


def shown_names(env: Mapping[str, Any], images: bool = False) -> list[str] | None:
    """Make the environment once, read the names of what an agent is shown, and close it."""
    made = make_env(env, images)
    try:
        return observation_names(made, env.get(FRAMES, 1))
    finally:
        made.close()


def space_names(space: spaces.Space[Any]) -> list[str]:
    """Name every entry of a space as gymnasium flattens it.

    >>> space_names(spaces.Dict({"speed": spaces.Box(-1, 1, (2,)), "door": spaces.Discrete(2)}))
    ['door[0]', 'door[1]', 'speed[0]', 'speed[1]']
    >>> space_names(spaces.Box(0, 1, (2, 1)))
    ['[-2,0]', '[-1,0]']
    """
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        named = [(str(key), name) for key, part in parts for name in space_names(part)]
        return [key + name if name[:1] in ("[", "") else f"{key}/{name}" for key, name in named]
    shape = space.shape if isinstance(space, spaces.Box) else (spaces.flatdim(space),)
    newest = shape[0] if len(shape) == 2 else 0
    places = [(index[0] - newest, *index[1:]) for index in np.ndindex(shape) if index]
    return [f"[{','.join(map(str, place))}]" for place in places] or [""]


def env_spaces(env: Mapping[str, Any], images: bool = False) -> Sizes:
    """Make the environment once, read (state_dim, action_dim, continuous), and close it.

    `action_dim` is a list where several actions are chosen at once: the number of each part. `state_dim` is
    [height, width, channels] where `images` are to stay images.

    >>> env_spaces({"id": "CartPole-v1"})
    (4, 2, False)
    """
    made = make_env(env, images)
    try:
        return space_sizes(made, env.get(FRAMES, 1))
    finally:
        made.close()
