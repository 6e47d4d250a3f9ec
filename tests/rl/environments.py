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

    def __init__(self, continuous: bool = False, actions: int = 0):
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.continuous = continuous
        self.action_space = (
            spaces.Box(-1, 1, (actions or 1,), np.float32) if continuous else spaces.Discrete(actions or 2)
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


gymnasium.register("tests/Clock-v0", Clock)
gymnasium.register("tests/Walk-v0", Walk, max_episode_steps=20)
gymnasium.register("tests/FiveStepClock-v0", Clock, max_episode_steps=5)
