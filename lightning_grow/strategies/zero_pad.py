"""Copy the source's entries; the rest is zero."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_grow.strategies.base import Block, Strategy, register_strategy


@register_strategy("zero_pad")
class ZeroPad(Strategy):
    """Pad every tensor with zeros; keeps the function where no statistic runs over new units.

    New units never learn: with zero fan-in and zero fan-out no gradient reaches them (ReLU, tanh, GELU), or all of
    them the same one (sigmoid). The report counts them.
    """

    def fill(self, block: Block) -> Tensor:
        """Zeros; a buffer's new entries (a variance) stay at their initial values."""
        return block.initial if block.role == "state" else torch.zeros_like(block.initial)
