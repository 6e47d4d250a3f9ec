"""Small environments whose every step is known, registered under `tests/`."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Clock(gymnasium.Env):
    """Show (episode, step); end after `length` steps, by termination or by truncation; reward 1 a step."""

    def __init__(self, length: int = 3, ends_by: str = "termination", start: int = 0):
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Discrete(2, start=start)
        self.length, self.ends_by, self.episode, self.actions = length, ends_by, -1, []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.episode, self.time = self.episode + 1, 0
        return np.array([self.episode, self.time], np.float32), {}

    def step(self, action):
        self.time += 1
        self.actions.append(int(action))
        is_over = self.time == self.length
        observation = np.array([self.episode, self.time], np.float32)
        return observation, 1.0, is_over and self.ends_by == "termination", is_over and self.ends_by == "truncation", {}


class Walk(gymnasium.Env):
    """Keep a noisy walker near 0; over the edge the episode ends. It can be put back into the middle of an episode."""

    def __init__(self, continuous: bool = False, actions: int = 0, bound: float = 1.0):
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.continuous = continuous
        self.action_space = (
            spaces.Box(-bound, bound, (actions or 1,), np.float32) if continuous else spaces.Discrete(actions or 2)
        )
        self.position = self.speed = 0.0

    def observe(self):
        return np.array([self.position, self.speed], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.position, self.speed = self.np_random.normal(), 0.0
        return self.observe(), {}

    def step(self, action):
        push = float(action[0]) if self.continuous else (-1.0, 1.0, 0.0)[action]
        self.speed = 0.9 * self.speed + 0.3 * push + 0.1 * self.np_random.normal()
        self.position += self.speed
        return self.observe(), 1.0 - abs(self.position), abs(self.position) > 4, False, {}

    def get_state(self):
        return {"position": float(self.position), "speed": float(self.speed)}

    def set_state(self, state):
        self.position, self.speed = state["position"], state["speed"]


class Catch(gymnasium.Env):
    """Catch what falls: bytes, 8 x 8 x 1, or the channel first. A reward of 1 or -1 when it is down."""

    def __init__(self, channel_first: bool = False, size: int = 8):
        self.channel_first, self.size = channel_first, size
        shape = (1, size, size) if channel_first else (size, size, 1)
        self.observation_space = spaces.Box(0, 255, shape, np.uint8)
        self.action_space = spaces.Discrete(3)

    def observe(self):
        image = np.zeros((self.size, self.size), np.uint8)
        image[self.row, self.column], image[-1, self.paddle] = 255, 200
        return image[None] if self.channel_first else image[..., None]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.row, self.column, self.paddle = 0, int(self.np_random.integers(self.size)), self.size // 2
        return self.observe(), {}

    def step(self, action):
        self.row, self.paddle = self.row + 1, min(max(self.paddle + int(action) - 1, 0), self.size - 1)
        is_down = self.row == self.size - 1
        reward = (1.0 if self.paddle == self.column else -1.0) if is_down else 0.0
        return self.observe(), reward, is_down, False, {}


class Look(Walk):
    """A walker who sees what it is told to, under names of its own, in parts, or in frames."""

    def __init__(self, names: str = "xy", parts: bool = False, frames: int = 0, actions: int = 0):
        super().__init__(actions=actions)
        self.names, self.parts, self.frames = names, parts, frames
        one = spaces.Box(-np.inf, np.inf, (len(names),), np.float32)
        self.observation_space = spaces.Dict({name: spaces.Box(-np.inf, np.inf, (2,)) for name in names})
        if not parts:
            self.observation_names = [f"look_{name}" for name in names]
            self.observation_space = spaces.Box(-np.inf, np.inf, (frames, len(names))) if frames else one

    def observe(self):
        seen = [self.position * (ord(name) - 100) + self.speed for name in self.names]
        if self.parts:
            return {name: np.array([value, -value], np.float32) for name, value in zip(self.names, seen, strict=True)}
        row = np.array(seen, np.float32)
        return np.stack([row / age for age in range(self.frames, 0, -1)]) if self.frames else row


OBSERVATIONS = {
    "number": spaces.Box(-1, 1, ()),
    "vector": spaces.Box(-1, 1, (3,)),
    "matrix": spaces.Box(-1, 1, (2, 3)),
    "image": spaces.Box(0, 255, (4, 4, 3), np.uint8),
    "choice": spaces.Discrete(3, start=1),
    "choices": spaces.MultiDiscrete([3, 2]),
    "switches": spaces.MultiBinary(3),
    "dict": spaces.Dict({"speed": spaces.Box(-1, 1, (2,)), "door": spaces.Discrete(2)}),
    "tuple": spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.Discrete(2)]),
    "sequence": spaces.Sequence(spaces.Discrete(3)),
    "graph": spaces.Graph(spaces.Box(-1, 1, (2,)), None),
}
ACTIONS = {
    "choice": spaces.Discrete(3, start=1),
    "choices": spaces.MultiDiscrete([3, 2]),
    "more choices": spaces.MultiDiscrete([4, 2]),
    "choices from": spaces.MultiDiscrete([3, 2], start=[1, 5]),
    "table of choices": spaces.MultiDiscrete([[3, 2], [2, 4]]),
    "switches": spaces.MultiBinary(3),
    "switchboard": spaces.MultiBinary([2, 2]),
    "vector": spaces.Box(-1, 1, (2,)),
    "matrix": spaces.Box(-1, 1, (2, 2)),
    "text": spaces.Text(3),
}


class Kinds(gymnasium.Env):
    """Observations and actions of any kind, both held against their spaces; a reward for the first of the choices."""

    def __init__(self, sees: str = "vector", takes: str = "choice"):
        self.observation_space, self.action_space = OBSERVATIONS[sees], ACTIONS[takes]

    def observe(self):
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        return self.observe(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        return self.observe(), float(np.asarray(action).flat[0] == 1), self.np_random.random() < 0.2, False, {}


class Broken(Walk):
    """From its `at`-th step on, something that it gives is `value`."""

    def __init__(self, what: str, value: float, at: int = 10):
        super().__init__()
        self.what, self.value, self.at, self.steps = what, value, at, 0
        self.observation_names = ["position", "speed"]

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        self.steps += 1
        if self.steps >= self.at:
            reward = self.value if self.what == "reward" else reward
            observation[1] = self.value if self.what != "reward" else observation[1]
            terminated = terminated or self.what == "final observation"
        return observation, reward, terminated, truncated, info


gymnasium.register("tests/Kinds-v0", Kinds)
gymnasium.register("tests/Broken-v0", Broken)
gymnasium.register("tests/Look-v0", Look, max_episode_steps=20)
gymnasium.register("tests/Clock-v0", Clock)
gymnasium.register("tests/Walk-v0", Walk, max_episode_steps=20)
gymnasium.register("tests/FiveStepClock-v0", Clock, max_episode_steps=5)
gymnasium.register("tests/Catch-v0", Catch)
