"""How copies of an environment take a step: one after the other, or all at once where they are known as arrays."""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.envs.classic_control import CartPoleEnv, PendulumEnv

from lightning_grow.rl.market import MarketEnv
from lightning_grow.rl.spaces import Environment

Array = npt.NDArray[Any]
Stepped = tuple[Array, Array, Array]
"""Rewards, terminated and truncated, each `(num_envs,)`."""


@runtime_checkable
class Resumable(Protocol):
    """An environment that can be put back into the middle of an episode (its `np_random` is saved for it)."""

    def get_state(self) -> dict[str, Any]:
        """Return all that the episode depends on, as plain types or tensors."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""


class OneByOne:
    """Any environments, stepped in turn.

    Args:
        envs: Copies of one environment, as `make_env` makes them.
    """

    def __init__(self, envs: Sequence[Environment]) -> None:
        self.envs = envs

    def enter(self, index: int) -> None:
        """Go on with the episode that an environment has begun, or was put into."""

    def leave(self, index: int) -> None:
        """Put an environment where its episode is."""

    def step(self, actions: Array, observations: Array) -> Stepped:
        """Take a step in every environment, and write what they show to `observations` `(num_envs, ...)`."""
        rewards, (terminated, truncated) = np.zeros(len(self.envs)), np.zeros((2, len(self.envs)), np.bool_)
        for index, (env, action) in enumerate(zip(self.envs, actions, strict=True)):
            observations[index], rewards[index], terminated[index], truncated[index], _ = env.step(action)
        return rewards, terminated, truncated

    def get_state(self, index: int) -> dict[str, Any] | None:
        """Return what the running episode depends on; None where the environment cannot tell."""
        self.leave(index)
        env = self.envs[index].unwrapped
        return env.get_state() if isinstance(env, Resumable) else None

    def set_state(self, index: int, state: dict[str, Any]) -> None:
        """Go on from `get_state`'s answer."""
        cast(Resumable, self.envs[index].unwrapped).set_state(state)
        self.enter(index)


class Arrays(OneByOne):
    """Environments of one kind as arrays: the fields of all in one array each, the same arithmetic on all at once.

    The environments themselves begin each episode, so that seeds mean what they mean one by one.
    """

    fields: ClassVar[tuple[str, ...]]
    """Attributes of the environment that are its episode; all but `observe` and `step` follow from them."""

    def __init__(self, envs: Sequence[Environment]) -> None:
        super().__init__(envs)
        self.kind: Any = envs[0].unwrapped
        for name in self.fields:
            first = np.asarray(getattr(self.kind, name))
            setattr(self, name, np.zeros((*first.shape, len(envs)), first.dtype))

    def enter(self, index: int) -> None:
        """Go on with the episode that an environment has begun, or was put into."""
        for name in self.fields:
            getattr(self, name)[..., index] = getattr(self.envs[index].unwrapped, name)

    def leave(self, index: int) -> None:
        """Put an environment where its episode is."""
        for name in self.fields:
            value = getattr(self, name)[..., index]
            setattr(self.envs[index].unwrapped, name, value.copy() if value.ndim else value.item())

    def get_state(self, index: int) -> dict[str, Any] | None:
        """Return what the running episode depends on."""
        own = super().get_state(index)
        return own or {name: getattr(self, name)[..., index].tolist() for name in self.fields}

    def set_state(self, index: int, state: dict[str, Any]) -> None:
        """Go on from `get_state`'s answer."""
        env = self.envs[index].unwrapped
        if isinstance(env, Resumable):
            return super().set_state(index, state)
        for name in self.fields:
            setattr(env, name, np.array(state[name]))
        self.enter(index)


class CartPoles(Arrays):
    """gymnasium's CartPole; its arithmetic in its order, so that every bit is the same."""

    fields = ("state",)
    state: Array

    def __init__(self, envs: Sequence[Environment]) -> None:
        envs[0].reset()  # an attribute of it is made by the first reset only
        super().__init__(envs)
        is_sutton_barto = envs[0].spec is not None and envs[0].spec.kwargs.get("sutton_barto_reward", False)
        self.rewards = (0.0, -1.0) if is_sutton_barto else (1.0, 1.0)

    def step(self, actions: Array, observations: Array) -> Stepped:
        """Take a step in every environment."""
        env, (x, x_dot, theta, theta_dot) = self.kind, self.state
        force = np.where(actions == 1, env.force_mag, -env.force_mag)
        cosine, sine = np.cos(theta), np.sin(theta)
        temp = (force + env.polemass_length * np.square(theta_dot) * sine) / env.total_mass
        theta_acc = (env.gravity * sine - cosine * temp) / (
            env.length * (4.0 / 3.0 - env.masspole * np.square(cosine) / env.total_mass)
        )
        x_acc = temp - env.polemass_length * theta_acc * cosine / env.total_mass
        self.state = np.stack(
            (x + env.tau * x_dot, x_dot + env.tau * x_acc, theta + env.tau * theta_dot, theta_dot + env.tau * theta_acc)
        )
        observations[...] = self.state.T
        fell = (abs(self.state[0]) > env.x_threshold) | (abs(self.state[2]) > env.theta_threshold_radians)
        return np.where(fell, self.rewards[1], self.rewards[0]), fell, np.zeros_like(fell)


class Pendulums(Arrays):
    """gymnasium's Pendulum; its arithmetic in its order, so that every bit of an observation is the same."""

    fields = ("state",)
    state: Array

    def __init__(self, envs: Sequence[Environment]) -> None:
        envs[0].reset()
        super().__init__(envs)

    def step(self, actions: Array, observations: Array) -> Stepped:
        """Take a step in every environment."""
        env, (theta, speed) = self.kind, self.state
        torque = np.clip(actions, -env.max_torque, env.max_torque)[:, 0]
        angle = ((theta + np.pi) % (2 * np.pi)) - np.pi
        costs = angle**2 + 0.1 * speed**2 + 0.001 * (torque**2)
        speed = speed + (3 * env.g / (2 * env.l) * np.sin(theta) + 3.0 / (env.m * env.l**2) * torque) * env.dt
        speed = np.clip(speed, -env.max_speed, env.max_speed)
        theta = theta + speed * env.dt
        self.state = np.stack((theta, speed))
        observations[:, 0], observations[:, 1], observations[:, 2] = np.cos(theta), np.sin(theta), speed
        never = np.zeros(len(self.envs), np.bool_)
        return -costs, never, never.copy()


class Markets(Arrays):
    """`MarketEnv`, whose environments share their tables."""

    fields = ("decision", "episode_end", "position", "log_equity")
    decision: Array
    episode_end: Array
    position: Array
    log_equity: Array

    def __init__(self, envs: Sequence[Environment]) -> None:
        super().__init__(envs)
        market: MarketEnv = self.kind
        self.windows = []  # of each timeframe: every run of lookback_bars bars, flat, without a copy
        for table in market.features:
            shown = market.lookback_bars * table.shape[1]
            flat = np.lib.stride_tricks.sliding_window_view(table.ravel(), shown)
            self.windows.append(flat[:: table.shape[1]])

    def step(self, actions: Array, observations: Array) -> Stepped:
        """Take a step in every environment."""
        market: MarketEnv = self.kind
        position, log_prices = actions - 1, market.table.log_prices
        log_return = position * (log_prices[self.decision + 1] - log_prices[self.decision])
        log_return -= market.cost * abs(position - self.position)
        self.decision += 1
        self.position = position
        self.log_equity += log_return
        begin = 0
        for windows, newest in zip(self.windows, market.table.newest_bars[:, self.decision], strict=True):
            end = begin + windows.shape[1]
            observations[:, begin:end] = windows[newest + 1 - market.lookback_bars]
            begin = end
        ended = self.decision >= self.episode_end
        return market.reward_scale * log_return, np.zeros_like(ended), ended


_KNOWN: dict[type, type[Arrays]] = {CartPoleEnv: CartPoles, PendulumEnv: Pendulums, MarketEnv: Markets}
_WITHOUT_EFFECT = (gymnasium.wrappers.OrderEnforcing, gymnasium.wrappers.PassiveEnvChecker)


def make_stepper(envs: Sequence[Environment]) -> OneByOne:
    """As arrays where that is the same: a known kind, nothing around it that changes a step, nothing to be shown."""
    env, known = envs[0], _KNOWN.get(type(envs[0].unwrapped))
    while isinstance(env, _WITHOUT_EFFECT):
        env = env.env
    return known(envs) if known is not None and env is envs[0].unwrapped and env.render_mode is None else OneByOne(envs)
