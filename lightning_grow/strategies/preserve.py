"""New units start at the target's own initial values and are read with zeros."""

from __future__ import annotations

from typing import ClassVar

from lightning_grow.strategies.base import Strategy, register_strategy


@register_strategy("preserve")
class Preserve(Strategy):
    """Keep the function: fresh units, zero fan-out; under a norm the recipe for that norm.

    New units get a gradient from the second step on: their fan-out from the first, their fan-in once that has moved.

    References:
        Chen et al., "Net2Net" (2016), section 2; Wang et al., "LEMON" (2024), section 4 for norms.
    """

    function_preserving: ClassVar[bool] = True
