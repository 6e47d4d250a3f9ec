"""When a monitored value has stopped getting better."""

import math
from collections.abc import Mapping
from typing import Any

from lightning_grow.errors import RefusedGrowth


class Plateau:
    """Tell when a monitored value has stopped getting better.

    Args:
        monitor: Its name among the logged values.
        patience: Epochs without a better one.
        mode: "min" or "max".
        min_delta: By how much a value must be better to count.

    Raises:
        ValueError: The mode is neither.

    >>> plateau, over = Plateau("loss", patience=2), []
    >>> for value in (3.0, 2.0, 2.5, 2.0):
    ...     _ = plateau.take({"loss": value})
    ...     over.append(plateau.is_over())
    >>> over
    [False, False, False, True]
    """

    def __init__(self, monitor: str, patience: int = 5, mode: str = "min", min_delta: float = 0.0) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"Expected mode to be 'min' or 'max', but got {mode!r}.")
        self.monitor, self.patience, self.mode, self.min_delta = monitor, patience, mode, min_delta
        self.forget()

    def forget(self) -> None:
        """Start anew, as after a growth."""
        self.best, self.waited = math.inf, 0
        self.new: float | None = None  # the last value of this epoch

    def take(self, metrics: Mapping[str, Any]) -> bool:
        """Remember a newly logged value; say whether it is among these."""
        if self.monitor in metrics:
            self.new = float(metrics[self.monitor])
        return self.monitor in metrics

    def is_over(self) -> bool:
        """Count the epoch by its value, or pass over one that has none; say whether patience is at an end."""
        if self.new is None:
            return False
        value = self.new * (1 if self.mode == "min" else -1)
        better = value < self.best - self.min_delta
        self.best, self.waited, self.new = *((value, 0) if better else (self.best, self.waited + 1)), None
        return self.waited >= self.patience

    def refuse_unlogged(self, metrics: Mapping[str, Any]) -> None:
        """Say what could be monitored.

        Raises:
            RefusedGrowth: The monitored value is not among them.
        """
        if self.monitor not in metrics:
            raise RefusedGrowth(
                f"on_plateau monitors {self.monitor!r}, which is not logged. Log it, or monitor one of: "
                f"{', '.join(sorted(metrics)) or 'nothing is logged'}."
            )

    def state_dict(self) -> dict[str, Any]:
        """The best value, the wait, and a value that is not counted yet; empty before the first."""
        state = {"best": self.best, "waited": self.waited, "new": self.new}
        return {} if math.isinf(self.best) and not self.waited and self.new is None else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` wrote."""
        self.best, self.waited, self.new = state.get("best", math.inf), state.get("waited", 0), state.get("new")
