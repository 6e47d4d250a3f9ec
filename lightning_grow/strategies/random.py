"""Transfer nothing: the control."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from lightning_grow.strategies.base import Block, Strategy, register_strategy


@register_strategy("random")
class Random(Strategy):
    """Leave the target at its own initial values, to compare the others with."""

    transfers: ClassVar[bool] = False

    def new_layer(self, block: Block) -> Tensor:
        """Keep the target's own initial values."""
        return block.initial
