"""Several environments stepped together, whose state goes into a checkpoint."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from lightning_grow.errors import NotFinite, WrongSetting
from lightning_grow.rl.spaces import Environment, make_env, observation_names, space_sizes, time_limit

Array = npt.NDArray[Any]
_STOPPED = "The run ends before it is learnt from; mend the environment, or its data."


@runtime_checkable
class Resumable(Protocol):
    """An environment that can be put back into the middle of an episode (its `np_random` is saved for it)."""

    def get_state(self) -> dict[str, Any]:
        """Return all that the episode depends on, as plain types or tensors."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""


@dataclass(frozen=True)
class EpisodeEnd:
    """How an episode ended: its last observation `(state_dim,)`, undiscounted return, and length in steps."""

    observation: Array
    episode_return: float
    length: int


class VectorEnv:
    """Step `num_envs` copies of an environment in turn and reset each in the step that ends its episode.

    Because the reset is in the same step (gymnasium's `AutoresetMode.SAME_STEP`), every transition is a real one: its
    next state is in an `EpisodeEnd` where the episode ended, else in the next `observations`.

    `state_dict` has what a run needs to go on: for environments with `get_state` and `set_state` the episode itself,
    for all others the random stream only, so that their episode starts anew after a resume.

    Args:
        env: `{"id": <gymnasium id>, **kwargs of gymnasium.make}`.
        num_envs: Number of copies.

    Attributes:
        observations: The current ones, float32 `(num_envs, state_dim)`.
        episode_returns: Undiscounted reward of each running episode so far, `(num_envs,)`.
        episode_lengths: Steps of each running episode so far, `(num_envs,)`.
        sizes: (state_dim, action_dim, continuous).
    """

    def __init__(self, env: Mapping[str, Any], num_envs: int) -> None:
        self.env = dict(env)
        self.envs: list[Environment] = [make_env(env) for _ in range(num_envs)]
        self.time_limit = time_limit(env)
        self.sizes = space_sizes(self.envs[0])
        self.observations = np.zeros((num_envs, self.sizes[0]), np.float32)
        self.episode_returns = np.zeros(num_envs)
        self.episode_lengths = np.zeros(num_envs, np.int64)

    def reset(self, seed: int) -> None:
        """Start an episode in every environment, the i-th with seed + i."""
        for index, env in enumerate(self.envs):
            self.observations[index], _ = env.reset(seed=seed + index)
        self.episode_returns[:] = 0
        self.episode_lengths[:] = 0
        self._check_observations()

    def _check_observations(self) -> None:
        """Refuse what no network can learn from."""
        if not np.isfinite(self.observations).all():
            for index, observation in enumerate(self.observations):
                self._check_observation(index, observation)

    def _check_observation(self, index: int, observation: Array) -> None:
        faulty = np.flatnonzero(~np.isfinite(observation))
        if faulty.size:
            entry, names = faulty[0], observation_names(self.envs[index])
            named = f"entry {entry} ('{names[entry]}')" if names else f"entry {entry}"
            raise NotFinite(f"{self._where(index)}: {named} of the observation is {observation[entry]}. {_STOPPED}")

    def _where(self, index: int) -> str:
        return f"{self.env['id']}, environment {index}, step {self.episode_lengths[index]} of its episode"

    def step(self, actions: Array) -> tuple[Array, Array, Array, list[EpisodeEnd]]:
        """Step every environment, and reset those whose episode ended.

        Args:
            actions: `(num_envs,)` int for discrete actions, `(num_envs, parts)` where several are chosen at once, else
                `(num_envs, action_dim)`, clipped to the bounds here.

        Returns:
            rewards, terminated, truncated: `(num_envs,)`. truncated is False where terminated is True.
            ends: One for each True in terminated or truncated, in their order.

        Raises:
            NotFinite: A reward or an observation is NaN or infinite.
        """
        rewards = np.zeros(len(self.envs), np.float32)
        terminated, truncated = np.zeros((2, len(self.envs)), np.bool_)
        ends = []
        for index, (env, action) in enumerate(zip(self.envs, self.to_env_actions(actions), strict=True)):
            observation, reward, terminated[index], is_truncated, _ = env.step(action)
            rewards[index] = reward
            self.episode_returns[index] += float(reward)
            self.episode_lengths[index] += 1
            if not math.isfinite(reward):
                raise NotFinite(f"{self._where(index)}: the reward is {reward}. {_STOPPED}")
            is_truncated = is_truncated or self.episode_lengths[index] == self.time_limit
            truncated[index] = is_truncated and not terminated[index]
            if terminated[index] or is_truncated:
                ends.append(self.end_episode(index, observation))
                observation, _ = env.reset()
            self.observations[index] = observation
        self._check_observations()
        return rewards, terminated, truncated, ends

    def end_episode(self, index: int, observation: Array) -> EpisodeEnd:
        """Close the accounts of one episode."""
        last = np.array(observation, np.float32)
        self._check_observation(index, last)
        end = EpisodeEnd(last, float(self.episode_returns[index]), int(self.episode_lengths[index]))
        self.episode_returns[index] = self.episode_lengths[index] = 0
        return end

    def to_env_actions(self, actions: Array) -> Array:
        """Return what the environments take: choices from their first one on, or vectors clipped to the bounds."""
        space = self.envs[0].action_space
        if isinstance(space, spaces.Box):
            return np.clip(actions.reshape(-1, *space.shape), space.low, space.high)
        if isinstance(space, spaces.Discrete):
            return actions + space.start if space.start else actions
        chosen = actions.reshape(-1, *(space.shape or ()))
        return chosen + space.start if isinstance(space, spaces.MultiDiscrete) else chosen.astype(space.dtype)

    def state_dict(self) -> dict[str, Any]:
        """Return, in plain types, what `load_state_dict` needs to go on from here."""
        return {
            "env": self.env,
            "envs": [state_of(env) for env in self.envs],
            "observations": self.observations.tolist(),
            "episode_returns": self.episode_returns.tolist(),
            "episode_lengths": self.episode_lengths.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Go on from `state_dict`'s state, or return False if it is of other environments."""
        if state["env"] != self.env or len(state["envs"]) != len(self.envs):
            return False
        for index, (env, saved) in enumerate(zip(self.envs, state["envs"], strict=True)):
            # Before the state: a reset draws from the random stream, and gymnasium's wrappers ask for one.
            self.observations[index], _ = env.reset()
            env.unwrapped.np_random.bit_generator.state = saved["np_random"]
            if isinstance(env.unwrapped, Resumable):
                env.unwrapped.set_state(saved["state"])
                self.observations[index] = state["observations"][index]
                self.episode_returns[index] = state["episode_returns"][index]
                self.episode_lengths[index] = state["episode_lengths"][index]
            else:
                self.observations[index], _ = env.reset()
                self.episode_returns[index] = self.episode_lengths[index] = 0
        return True

    def close(self) -> None:
        """Close every environment."""
        for env in self.envs:
            env.close()


def state_of(env: Environment) -> dict[str, Any]:
    """Return an environment's random stream and, if it can tell, its episode."""
    unwrapped = env.unwrapped
    state = unwrapped.get_state() if isinstance(unwrapped, Resumable) else None
    return {"np_random": unwrapped.np_random.bit_generator.state, "state": state}


def make_fitting(settings: Mapping[str, Any]) -> VectorEnv:
    """Make the environments of a PPO's hyperparameters, which have to be those that its network was built for.

    Raises:
        WrongSetting: If their sizes are not the network's.
    """
    envs = VectorEnv(settings["env"], settings["num_envs"])
    names = ("state_dim", "action_dim", "continuous")
    ours = tuple(settings[name] for name in names)
    if ours != envs.sizes:
        theirs = dict(zip(names, envs.sizes, strict=True))
        envs.close()
        raise WrongSetting(
            f"{settings['env']['id']} has {theirs}; the agent was built with"
            f" {dict(zip(names, ours, strict=True))}. Build it with what env_spaces(env) returns."
        )
    return envs
