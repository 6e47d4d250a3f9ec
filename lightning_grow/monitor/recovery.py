"""How a monitored value went over a growth, and when that can be said in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, pstdev
from typing import Any, ClassVar


@dataclass
class Recovery:
    """One growth's before and after.

    A value is worse, or better, if it leaves the mean of those before by more than twice their standard deviation.

    Args:
        name: Of the monitored value.
        step: Optimizer steps at the growth.
        before: The last values before it.
        larger_is_better: Whether it is a return; a loss otherwise.
        after: The latest (optimizer steps since the growth, value).
        worst: Of the values after it, until it was back.
        recovered_after: Optimizer steps until it was back, 0 without a drop; None while that is open.
        said: What has been said of it.

    >>> recovery = Recovery("return", step=100, before=[10.0, 11.0, 9.0], larger_is_better=True)
    >>> [recovery.take(step, value) for step, value in ((105, 5.0), (110, 8.0), (115, 10.5))]
    [None, None, 'return dropped from 10 to 5 after the growth at step 100 and recovered after 15 steps.']
    >>> recovery.summary()
    {'drop': 5.0, 'recovered_after': 15, 'gain': 0.5}
    """

    name: str
    step: int
    before: Sequence[float]
    larger_is_better: bool
    after: list[tuple[int, float]] = field(default_factory=list)
    worst: float | None = None
    recovered_after: int | None = None
    said: list[str] = field(default_factory=list)

    CLEAR: ClassVar[int] = 3  # values without a drop: there was none

    def take(self, step: int, value: float) -> str | None:
        """Take in a value; return a sentence where something has become clear."""
        self.after = [*self.after, (step - self.step, value)][-self.CLEAR :]
        if self.recovered_after is None:
            self.worst = value if self.worst is None else min(self.worst, value, key=self._margin)
        if self.is_told:
            return None
        sentence = self._verdict() if not self.said else self._improvement()
        if sentence is not None:
            self.said.append(sentence)
        return sentence

    def summary(self) -> dict[str, float]:
        """The drop below the mean before, the steps until it was over where it is, and by how much it is better now."""
        if self.worst is None:
            return {}
        sign, mean = 1 if self.larger_is_better else -1, fmean(self.before)
        back = {} if self.recovered_after is None else {"recovered_after": self.recovered_after}
        drop = max(0.0, sign * (mean - self.worst)) if self._margin(self.worst) < -1 else 0.0
        return {"drop": drop, **back, "gain": sign * (self.after[-1][1] - mean)}

    @property
    def is_told(self) -> bool:
        """Whether there is nothing more to be said."""
        return len(self.said) > 1

    def at_last(self) -> str | None:
        """What is to be said at the end of a run of a growth of which nothing has become clear."""
        if self.said or self.worst is None or self._margin(self.worst) >= -1:
            return None
        steps, now = self.after[-1]
        since = f"{steps} steps after the growth at step {self.step}"
        return f"{self.name} has not recovered {since}: {self._before}, {now:.4g} now."

    @property
    def _before(self) -> str:
        return f"{fmean(self.before):.4g} before"

    def _margin(self, value: float) -> float:
        """How much better than before, in the two standard deviations that count; below -1 is a drop."""
        better = (value - fmean(self.before)) * (1 if self.larger_is_better else -1)
        noise = 2 * pstdev(self.before)
        return better / noise if noise else better * float("inf") if better else 0.0

    def _verdict(self) -> str | None:
        if self.worst is None or self._margin(self.worst) >= -1:
            if len(self.after) < self.CLEAR:
                return None
            self.recovered_after, mean = 0, fmean(value for _, value in self.after)
            return f"no drop of {self.name} after the growth at step {self.step}: {self._before}, {mean:.4g} after."
        steps, value = self.after[-1]
        if self._margin(value) < -0.5:  # on the way up it may waver
            return None
        self.recovered_after = steps
        drop = f"{self.name} dropped from {fmean(self.before):.4g} to {self.worst:.4g}"
        return f"{drop} after the growth at step {self.step} and recovered after {steps} steps."

    def _improvement(self) -> str | None:
        if len(self.after) < self.CLEAR or min(self._margin(value) for _, value in self.after) <= 1:
            return None
        now = f"{self._before}, {self.after[-1][1]:.4g} now"
        return f"{self.name} is better than before the growth at step {self.step}: {now}."

    def to_dict(self) -> dict[str, Any]:
        """Plain types: the arguments of another one that goes on."""
        return {**asdict(self), "before": list(self.before), "after": [list(pair) for pair in self.after]}
