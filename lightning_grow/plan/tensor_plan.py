"""The plan of one tensor: what every block of it becomes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_grow.pair.maps import AxisMap
from lightning_grow.pictures import Panel, runs
from lightning_grow.plan.cells import Kind
from lightning_grow.report import format_shape

Slices = tuple[Any, ...]


@dataclass(frozen=True)
class CellPlan:
    """One block of a tensor: what its entries are.

    Args:
        kind: Kept, zero, mean, new or identity.
        factor: On the source's entries.
        mean_dim: The dimension that a mean runs over.
        offset: What the model adds before it uses the tensor: a gain of the form 1 + w is scaled as a whole.
        because: The operator for whose sake it is so, where one asks for it.
    """

    kind: Kind
    factor: float = 1.0
    mean_dim: int = -1
    offset: float = 0.0
    because: str = ""


@dataclass(frozen=True, eq=False)
class TensorPlan:
    """One tensor of the target.

    Args:
        name: The target's name.
        source_name: The source's name, None for a tensor of a new layer.
        source_shape: None for a tensor of a new layer.
        target_shape: The target's shape.
        maps: One map per dimension.
        cells: An array of `CellPlan`, one per combination of blocks.
        reads: Whether each dimension is read (fan-in).
        is_state: Whether it is a buffer.
        like: The tensor whose new entries it shares: it is a copy of that one.
        used_by: The operators that take it.
    """

    name: str
    source_name: str | None
    source_shape: tuple[int, ...] | None
    target_shape: tuple[int, ...]
    maps: tuple[AxisMap, ...]
    cells: Any
    reads: tuple[bool, ...]
    is_state: bool = False
    like: str | None = None
    used_by: tuple[str, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether the source's tensor is taken as it is."""
        return (
            self.source_name is not None
            and all(item.is_identity for item in self.maps)
            and all(cell.kind is Kind.KEPT and cell.factor == 1.0 for cell in self.cells.flat)
        )

    @property
    def is_one_to_one(self) -> bool:
        """Whether no source entry has two target entries: the condition for moving an optimizer's state exactly."""
        return (
            self.source_name is not None
            and not any(item.interpolates or item.share is not None for item in self.maps)
            and all(torch.equal(item.continues, item.low >= 0) for item in self.maps)
            and all(cell.kind is not Kind.MEAN for cell in self.cells.flat)
        )

    @property
    def factors(self) -> tuple[float, ...]:
        """The factors other than 1 on the source's entries."""
        kept = {cell.factor for cell in self.cells.flat if cell.kind is Kind.KEPT}
        return tuple(sorted(kept - {1.0})) if self.source_name is not None else ()

    @property
    def continues(self) -> tuple[Tensor, ...]:
        """For every dimension, bool, which positions go on where one of the source's was; none in a new tensor."""
        if self.source_name is None:
            return tuple(torch.zeros(size, dtype=torch.bool) for size in self.target_shape)
        return tuple(item.continues for item in self.maps)

    def new_entries(self) -> Tensor:
        """See `GrowthPlan.new_entries`."""
        mask = torch.full(self.target_shape, self.source_name is None)
        for dim, item in enumerate(self.maps if self.source_name is not None else ()):
            mask |= ~item.continues.view([-1 if other == dim else 1 for other in range(len(self.maps))])
        return mask

    def blocks(self) -> Iterator[tuple[tuple[int, ...], CellPlan]]:
        """Every block, with its index among the dimensions' slots."""
        for index in np.ndindex(self.cells.shape):
            cell: CellPlan = self.cells[index]
            yield index, cell

    def panel(self) -> Panel:
        """The first two dimensions as a picture has them; of a third and so on the first positions."""
        slots = [*(axis.slot for axis in self.maps), _ONE][:2]
        first = [*(axis.continues for axis in self.maps), _ONE == 0][:2]
        rows, columns = (runs(*labels) for labels in zip(slots, first, strict=True))

        def origin(row: int, column: int) -> str:
            at = (int(slots[0][row]), int(slots[1][column]), *[0] * len(self.maps))[: len(self.maps)]
            return _origin(self.cells[at].kind, bool(first[0][row] & first[1][column]))

        origins = [[origin(row, column) for column in columns[:-1]] for row in rows[:-1]]
        old = "new layer" if self.source_shape is None else format_shape(self.source_shape)
        return Panel(f"{self.name}\n{old} -> {format_shape(self.target_shape)}", origins, rows, columns)

    def role(self, index: tuple[int, ...]) -> str:
        """How the new entries of a block are used: "read" if they belong to new units of a dimension that reads."""
        if self.is_state:
            return "state"
        new = [dim for dim, item in enumerate(self.maps) if self.is_new(dim, index[dim])]
        return "read" if any(self.reads[dim] for dim in new) else "written"

    def is_new(self, dim: int, slot: int) -> bool:
        """Whether the source has no such positions along a dimension."""
        item = self.maps[dim]
        return bool((item.low[item.slot == slot] < 0).any())

    def at(self, index: tuple[int, ...]) -> Slices:
        """The target positions of a block, as slices where they are consecutive."""
        return tuple(
            _run(torch.nonzero(item.slot == number).flatten()) for item, number in zip(self.maps, index, strict=True)
        )


_ONE = torch.zeros(1, dtype=torch.long)  # the only position of a dimension that a vector does not have


def _origin(kind: Kind, goes_on: bool) -> str:
    if kind is Kind.KEPT:
        return "from the source" if goes_on else "a copy"
    return {Kind.ZERO: "new, 0", Kind.MEAN: "a mean"}.get(kind, "new")


def _run(positions: Tensor) -> slice | Tensor:
    """Consecutive positions as a slice, which copies without gathering."""
    if len(positions) and int(positions[-1] - positions[0]) == len(positions) - 1:
        return slice(int(positions[0]), int(positions[-1]) + 1)
    return positions
