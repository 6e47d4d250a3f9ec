"""Several environments stepped together, whose state goes into a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation
from lightning.pytorch.utilities import rank_zero_info

from lightning_grow.errors import NotFinite, WrongSetting
from lightning_grow.rl import processes
from lightning_grow.rl.spaces import (
    FRAMES,
    Environment,
    check_bounds,
    make_env,
    observation_names,
    space_sizes,
    time_limit,
)
from lightning_grow.rl.stepping import Array, make_stepper

_STOPPED = "The run ends before it is learnt from; mend the environment, or its data."


@dataclass(frozen=True)
class EpisodeEnd:
    """How an episode ended: its last observation `(state_dim,)`, undiscounted return, and length in steps."""

    observation: Array
    episode_return: float
    length: int


class VectorEnv:
    """Step `num_envs` copies of an environment and reset each in the step that ends its episode.

    Because the reset is in the same step (gymnasium's `AutoresetMode.SAME_STEP`), every transition is a real one: its
    next state is in an `EpisodeEnd` where the episode ended, else in the next `observations`.

    `state_dict` has what a run needs to go on: for environments with `get_state` and `set_state`, and for those that
    are stepped as arrays, the episode itself; for all others the random stream only, so that their episode starts anew
    after a resume.

    Args:
        env: `{"id": <gymnasium id>, **kwargs of gymnasium.make}`; "frame_stack" is how many observations are shown as
            one, along the last axis, the newest last. An episode begins with as many of its first.
        num_envs: Number of copies.
        images: Whether observations stay images, `(height, width, channels)`, bytes where they are.
        squash: Whether continuous actions go through tanh to the bounds; else they are clipped to them.

    Raises:
        WrongSetting: Actions are to be squashed and have no bounds.

    Attributes:
        observations: The current ones, float32 `(num_envs, state_dim)`, or images `(num_envs, *state_dim)`.
        episode_returns: Undiscounted reward of each running episode so far, `(num_envs,)`.
        episode_lengths: Steps of each running episode so far, `(num_envs,)`.
        sizes: (state_dim, action_dim, continuous).
    """

    def __init__(self, env: Mapping[str, Any], num_envs: int, images: bool = False, squash: bool = False) -> None:
        self.env, self.frames, self.squash = dict(env), env.get(FRAMES, 1), squash
        self.envs: list[Environment] = [make_env(env, images) for _ in range(num_envs)]
        if squash:
            check_bounds(self.envs[0])
        self.stepper = make_stepper(self.envs)
        self.time_limit = time_limit(env)
        self.sizes = space_sizes(self.envs[0], self.frames)
        space = self.envs[0].observation_space
        is_bytes = images and space.dtype == np.uint8
        self.newest = np.zeros((num_envs, *(space.shape or ())), np.uint8 if is_bytes else np.float32)
        self.observations = np.concatenate([self.newest] * self.frames, -1) if self.frames > 1 else self.newest
        self.episode_returns = np.zeros(num_envs)
        self.episode_lengths = np.zeros(num_envs, np.int64)

    @property
    def names(self) -> list[str] | None:
        """Of the entries along the last axis of an observation: see `observation_names`."""
        return observation_names(self.envs[0], self.frames)

    def reset(self, seed: int) -> None:
        """Start an episode in every environment, the i-th with seed + i."""
        for index in range(len(self.envs)):
            self._start(index, seed + index)
        self.episode_returns[:] = 0
        self.episode_lengths[:] = 0
        self._check_observations()

    def _start(self, index: int, seed: int | None = None) -> None:
        self.newest[index], _ = self.envs[index].reset(seed=seed)
        if self.frames > 1:
            self.observations[index] = np.concatenate([self.newest[index]] * self.frames, -1)
        self.stepper.enter(index)

    def _check_observations(self) -> None:
        """Refuse what no network can learn from."""
        if not np.isfinite(self.observations).all():
            for index, observation in enumerate(self.observations):
                self._check_observation(index, observation)

    def _check_observation(self, index: int, observation: Array) -> None:
        faulty = np.flatnonzero(~np.isfinite(observation))
        if faulty.size:
            entry, names = int(faulty[0]), self.names
            named = f"entry {entry} ('{names[entry % len(names)]}')" if names else f"entry {entry}"
            value = observation.ravel()[entry]
            raise NotFinite(f"{self._where(index)}: {named} of the observation is {value}. {_STOPPED}")

    def _where(self, index: int) -> str:
        return f"{self.env['id']}, environment {index}, step {self.episode_lengths[index]} of its episode"

    def step(self, actions: Array) -> tuple[Array, Array, Array, list[EpisodeEnd]]:
        """Step every environment, and reset those whose episode ended.

        Args:
            actions: `(num_envs,)` int for discrete actions, `(num_envs, parts)` where several are chosen at once, else
                `(num_envs, action_dim)`, brought into the bounds here.

        Returns:
            rewards, terminated, truncated: `(num_envs,)`. truncated is False where terminated is True.
            ends: One for each True in terminated or truncated, in their order.

        Raises:
            NotFinite: A reward or an observation is NaN or infinite.
        """
        rewards, terminated, truncated = self.stepper.step(self.to_env_actions(actions), self.newest)
        if self.frames > 1:
            kept = self.observations[..., self.newest.shape[-1] :]
            self.observations[...] = np.concatenate([kept, self.newest], -1)
        self.episode_returns += rewards
        self.episode_lengths += 1
        if not np.isfinite(rewards).all():
            faulty = int(np.isfinite(rewards).argmin())
            raise NotFinite(f"{self._where(faulty)}: the reward is {rewards[faulty]}. {_STOPPED}")
        if self.time_limit is not None:
            truncated |= self.episode_lengths == self.time_limit
        truncated &= ~terminated
        ends = []
        for index in np.flatnonzero(terminated | truncated).tolist():
            ends.append(self.end_episode(index, self.observations[index]))
            self._start(index)
        self._check_observations()
        return rewards.astype(np.float32), terminated, truncated, ends

    def end_episode(self, index: int, observation: Array) -> EpisodeEnd:
        """Close the accounts of one episode."""
        last = observation.copy()
        self._check_observation(index, last)
        end = EpisodeEnd(last, float(self.episode_returns[index]), int(self.episode_lengths[index]))
        self.episode_returns[index] = self.episode_lengths[index] = 0
        return end

    def to_env_actions(self, actions: Array) -> Array:
        """Return what the environments take: choices from their first one on, or vectors within the bounds."""
        space = self.envs[0].action_space
        if isinstance(space, spaces.Box):
            shaped = actions.reshape(-1, *space.shape)
            if self.squash:
                bounded: Array = space.low + (np.tanh(shaped) + 1) / 2 * (space.high - space.low)
                return bounded
            return np.clip(shaped, space.low, space.high)
        if isinstance(space, spaces.Discrete):
            return actions + space.start if space.start else actions
        chosen = actions.reshape(-1, *(space.shape or ()))
        return chosen + space.start if isinstance(space, spaces.MultiDiscrete) else chosen.astype(space.dtype)

    def state_dict(self) -> dict[str, Any]:
        """Return, in plain types and tensors, what `load_state_dict` needs to go on from here."""
        return {
            "env": self.env,
            "envs": [
                {"np_random": env.unwrapped.np_random.bit_generator.state, "state": self.stepper.get_state(index)}
                for index, env in enumerate(self.envs)
            ],
            "observations": to_plain(self.observations),
            "episode_returns": self.episode_returns.tolist(),
            "episode_lengths": self.episode_lengths.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Go on from this process's part of a state, or return False if it is of other environments."""
        if state["env"] != self.env or len(state["envs"]) != len(self.envs) * processes.count():
            return False
        first = len(self.envs) * processes.rank()
        for index, env in enumerate(self.envs):
            saved = state["envs"][first + index]
            # Before the state: a reset draws from the random stream, and gymnasium's wrappers ask for one.
            self._start(index)
            env.unwrapped.np_random.bit_generator.state = saved["np_random"]
            if saved["state"] is not None:
                self.stepper.set_state(index, saved["state"])
                self.observations[index] = state["observations"][first + index]
                self.episode_returns[index] = state["episode_returns"][first + index]
                self.episode_lengths[index] = state["episode_lengths"][first + index]
            else:
                self._start(index)
                self.episode_returns[index] = self.episode_lengths[index] = 0
        return True

    def close(self) -> None:
        """Close every environment."""
        for env in self.envs:
            env.close()


def to_plain(observations: Array) -> list[list[float]] | torch.Tensor:
    """Observations as `load_state_dict` takes them: lists, but for images, of which those would fill a file."""
    return observations.tolist() if observations.ndim == 2 else torch.from_numpy(observations.copy())


def join_states(states: list[dict[str, Any]]) -> dict[str, Any]:
    """Make one state of those of several processes, as one process with all their environments has it."""

    def join(name: str) -> Any:
        parts = [state[name] for state in states]
        return torch.cat(parts) if isinstance(parts[0], torch.Tensor) else [item for part in parts for item in part]

    names = ("envs", "observations", "episode_returns", "episode_lengths")
    return {"env": states[0]["env"]} | {name: join(name) for name in names}


def make_fitting(settings: Mapping[str, Any]) -> VectorEnv:
    """Make the environments of a PPO's hyperparameters, which have to be those that its network was built for.

    Raises:
        WrongSetting: If their sizes are not the network's.
    """
    number = settings["num_envs"] // processes.count()
    envs = VectorEnv(
        settings["env"], number, settings.get("encoder") is not None, settings.get("squash_actions", False)
    )
    names = ("state_dim", "action_dim", "continuous")
    ours = tuple(settings[name] for name in names)
    if ours != envs.sizes:
        theirs = dict(zip(names, envs.sizes, strict=True))
        envs.close()
        raise WrongSetting(
            f"{settings['env']['id']} has {theirs}; the agent was built with"
            f" {dict(zip(names, ours, strict=True))}. Build it with what env_spaces(env) returns; with an encoder, with"
            " what env_spaces(env, images=True) does."
        )
    if isinstance(outer := envs.envs[0], FlattenObservation) and len(outer.env.observation_space.shape or ()) == 3:
        rank_zero_info(
            f"{settings['env']['id']} shows images, {outer.env.observation_space.shape}; without an encoder they are "
            f"flattened to {ours[0]} numbers."
        )
    return envs
