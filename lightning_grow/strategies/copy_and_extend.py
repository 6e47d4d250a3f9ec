"""Copy the source's entries; draw the rest with a fraction of their spread."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_grow.strategies.base import Block, Strategy, register_strategy


@register_strategy("copy_and_extend")
class CopyAndExtend(Strategy):
    """Extend every tensor with small random entries; changes the function a little.

    Args:
        init_scale: Standard deviation of new entries, as a fraction of that of the source's tensor; 0 or more.

    Raises:
        ValueError: `init_scale` is negative.
    """

    def __init__(self, init_scale: float = 0.1) -> None:
        if init_scale < 0:
            raise ValueError(f"expected init_scale >= 0, got {init_scale}")
        self.init_scale = init_scale

    def fill(self, block: Block) -> Tensor:
        """Draw weights; new biases are 0, buffers and norms' gains stay at their initial values."""
        if block.role == "state" or block.source is None:
            return block.initial
        if block.is_bias:
            return block.initial if bool((block.initial == 1).all()) else torch.zeros_like(block.initial)
        return block.normal(self.init_scale * float(block.source.double().std(correction=0)))
