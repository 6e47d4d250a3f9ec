"""What an operator does with the entries of its inputs: the few kinds that every rule is made of.

A rule (rules.py) gives an operator's output axes and one of these; the plan interprets them on *cells*: an array with
one entry per block of units, in place of the tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_grow.trace.axes import Axis
from lightning_grow.trace.tape import Value

Cells = NDArray[np.object_]  # of Cell, one per combination of slots


@dataclass(frozen=True)
class Rearrange:
    """Entries move and are not changed: views, slices, concatenations, repeats.

    Args:
        inputs: The tensors whose entries move.
        move: `(count, *cells) -> cells`, where `count(axis)` is the number of cells along an axis.
        order: The input dimension behind each output dimension, where they are only reordered.
    """

    inputs: tuple[Value, ...]
    move: Callable[..., Cells]
    order: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Pointwise:
    """One entry of each (broadcast) input makes one entry of the output.

    Args:
        inputs: The tensors.
        function: What is computed, where it is not the operator itself.
    """

    inputs: tuple[Value, ...]
    function: Callable[..., Any] | None = None


@dataclass(frozen=True)
class Contract:
    """A sum of products over shared axes, labelled as in einsum.

    "." labels an axis that is summed or slid over in place (a convolution's window) and may not grow, brackets a
    product of axes (groups by channels of a group).

    Args:
        left: The first factor.
        right: The second.
        labels: Of the factors, and of the product.
        bias: What is added.
        factors: The factors of the axes in brackets.
        routes: What says which position of a "." axis each row meets (experts).
    """

    left: Value
    right: Value
    labels: tuple[str, str, str]
    bias: Value | None = None
    factors: tuple[tuple[str, Axis], ...] = ()
    routes: tuple[Value, ...] = ()


@dataclass(frozen=True)
class Lookup:
    """Rows of a table picked by an index of the example (an embedding)."""

    table: Value
    index: Value
    dim: int

    @property
    def gives_matrices(self) -> bool:
        """Whether each row is a matrix, as that of an expert, and is used as one."""
        return len(self.table.axes) > 2


@dataclass(frozen=True)
class Reduce:
    """A statistic over `dims`: "sum", "mean", "var", "std", "norm", "max", "place" (of the first maximum), "any".

    `number` is what a variance or deviation subtracts from the count, or the p of a norm.
    """

    input: Value
    dims: tuple[int, ...]
    kind: str
    keepdim: bool
    number: float = 0.0


@dataclass(frozen=True)
class Along:
    """Mixes the positions along `dims` (pooling, sorting, cumulating) and treats all other axes alike.

    Args:
        inputs: What is mixed, then the indices that say how.
        dims: The dimensions.
        scales: Whether inputs that are c times larger give outputs that are.
        kept: The input dimension that each output dimension is, None for a mixed one; by their order where not given.
    """

    inputs: tuple[Value, ...]
    dims: tuple[int, ...]
    scales: bool = True
    kept: tuple[int | None, ...] | None = None


@dataclass(frozen=True)
class Scatter:
    """Positions of `value` along `inner` are written or added to positions of `base` along `dims`.

    Args:
        base: What is written to.
        value: What is written.
        indices: Where.
        dims: The dimensions of `base` that the index picks positions of.
        inner: The dimensions of `value` that it spreads.
        function: What becomes of an entry of each.
    """

    base: Value
    value: Value
    indices: tuple[Value, ...]
    dims: tuple[int, ...]
    inner: tuple[int, ...]
    function: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Create:
    """A tensor made from nothing: its content is a constant, or random."""


@dataclass(frozen=True)
class Opaque:
    """No rule: nothing is known of the output."""

    reason: str
