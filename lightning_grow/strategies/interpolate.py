"""New units lie between neighbouring source units."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_grow.strategies.base import Strategy, register_strategy


@register_strategy("interpolate")
class Interpolate(Strategy):
    """Interpolate between neighbouring units; changes the function (the order of units has no meaning).

    New units stand at strictly interior positions, evenly spread over the gaps between source units, no two alike; they
    are read with interpolated weights.

    >>> Interpolate().units(3, 6, torch.Generator()).tolist()
    [0.3333333333333333, 0.6666666666666666, 1.5]
    """

    def units(self, old: int, new: int, generator: torch.Generator) -> Tensor | None:
        """Spread the new units over the gaps between the old ones."""
        del generator  # Unused: the positions are fixed.
        if old < 2:
            return None
        count = new - old
        gap = torch.arange(count) * (old - 1) // count
        inside = torch.bincount(gap, minlength=old - 1)
        rank = torch.arange(count) - (inside.cumsum(0) - inside)[gap]
        return gap + (rank + 1).double() / (inside[gap] + 1)

    def shares(self, source: Tensor, generator: torch.Generator) -> None:
        """Read every unit in full."""
        del source, generator  # Unused: nothing is split.
