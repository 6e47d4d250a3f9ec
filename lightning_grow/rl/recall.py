"""A task that only an agent with a memory can do: say at the end what was shown at the beginning."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from lightning_grow.errors import WrongSetting


class RecallEnv(gymnasium.Env[NDArray[np.float32], np.int64]):
    """A cue is shown, then nothing for `delay` steps; then the agent is asked, and is right if its action is the cue.

    - Observation: float32 `(cues + 1,)`: the cue as one of `cues` in the first step, and whether the agent is asked.
    - Action: one of `cues`; what it does before it is asked has no effect.
    - Reward: 1 for the right answer, -1 for a wrong one, 0 before. Without a memory, 2 / cues - 1 at best on average.
    - End: terminated after the answer, `delay + 2` steps.

    Args:
        cues: How many there are, 2 or more.
        delay: Steps between the cue and the question, 0 or more.

    >>> env = RecallEnv(cues=2, delay=0)
    >>> cue = int(env.reset(seed=0)[0].argmax())
    >>> env.step(0)[1], env.step(cue)[1]
    (0.0, 1.0)
    """

    def __init__(self, cues: int = 4, delay: int = 10) -> None:
        if cues < 2 or delay < 0:
            raise WrongSetting(f"Expected cues of 2 or more and a delay of 0 or more, but got {cues} and {delay}.")
        self.cues, self.delay, self.cue, self.steps = cues, delay, 0, 0
        self.observation_space = spaces.Box(0.0, 1.0, (cues + 1,))
        self.action_space = spaces.Discrete(cues)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Draw a cue and show it."""
        super().reset(seed=seed)
        self.cue, self.steps = int(self.np_random.integers(self.cues)), 0
        return self._observation(self.cue), {}

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Wait, or take the answer."""
        self.steps += 1
        if self.steps <= self.delay + 1:
            is_asked = self.steps == self.delay + 1
            return self._observation(-1 if is_asked else None), 0.0, False, False, {}
        return self._observation(None), 1.0 if action == self.cue else -1.0, True, False, {}

    def _observation(self, shown: int | None) -> NDArray[np.float32]:
        observation = np.zeros(self.cues + 1, np.float32)
        if shown is not None:
            observation[shown] = 1
        return observation

    def get_state(self) -> dict[str, Any]:
        """What the episode depends on."""
        return {"cue": self.cue, "steps": self.steps}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from `get_state`'s answer."""
        self.cue, self.steps = state["cue"], state["steps"]


gymnasium.register(id="lightning_grow/Recall-v0", entry_point="lightning_grow.rl.recall:RecallEnv")
