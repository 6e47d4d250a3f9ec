"""New units copy source units, and the copies share what reads them."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lightning_grow.strategies.base import Strategy, register_strategy


@register_strategy("net2wider")
class Net2Wider(Strategy):
    """Keep the function: each new unit is a copy, the fan-out is split unequally among the copies.

    Source units are copied in turn (0, 1, 2, ...), so that every one has as many copies as any other, give or take
    one: norms keep their statistics where the new size is a multiple of the old.

    References:
        Chen et al., "Net2Net" (2016), section 3.1 (Net2WiderNet), with an unequal split to break the symmetry.
    """

    function_preserving: ClassVar[bool] = True

    def units(self, old: int, new: int, generator: torch.Generator) -> Tensor:
        """Copy the source's units in turn."""
        del generator  # Unused: the order is fixed.
        return (torch.arange(old, new) % old).double()
