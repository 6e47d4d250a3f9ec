"""Cells: one symbolic entry per block of units, in place of a tensor.

Along an axis, the source's units of an atom are one block and the new ones another, so a linear layer that widens both
ways is 2 x 2 cells, whatever its width. Each cell says what its entries are in terms of the source's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np

from lightning_grow.plan.scale import ONE, Scale
from lightning_grow.trace.axes import Axis, resolve
from lightning_grow.trace.meanings import Cells

Entry = tuple[str, tuple[int, ...]]  # a parameter's name and the index of one of its cells


class Kind(Enum):
    """What the entries of a cell are."""

    KEPT = "scale x the source's entries"
    ZERO = "0"
    MEAN = "scale x the mean of the source's entries along one axis"
    NEW = "anything"
    IDENTITY = "1 on the diagonal, 0 elsewhere"


@dataclass(frozen=True)
class Cell:
    """One block of entries.

    Args:
        kind: What they are.
        scale: The factor of KEPT and MEAN.
        zeroed_by: Parameter cells that make a NEW cell 0 when all of them are 0; None where none do.
        averaged_by: Parameter cells that make a NEW cell the mean of the source's entries along the units when all of
            them are; None where none do.
        direct: Whether the cell is a parameter's own, only moved.
        is_only_bias: Whether the cell is 0 but for a bias, so that zeroing the bias is better than zeroing its readers.
        atom: The axis over which a MEAN is taken.
        origin: Where a NEW cell came about, for messages.
    """

    kind: Kind
    scale: Scale = ONE
    zeroed_by: frozenset[Entry] | None = None
    averaged_by: frozenset[Entry] | None = None
    direct: bool = False
    is_only_bias: bool = False
    atom: Axis | None = None
    origin: str = ""


ZERO = Cell(Kind.ZERO)
CONSTANT_ZERO = Cell(Kind.ZERO, origin="a constant 0")
UNSEEN = Cell(Kind.NEW, origin="new units of a state that begins at 0 (an example of two steps shows what they become)")


def kept(scale: Scale = ONE) -> Cell:
    """A cell of the source's entries."""
    return Cell(Kind.KEPT, scale)


@dataclass(frozen=True)
class Slot:
    """A block of positions along one axis: the atoms it runs through, each with "kept", "new" or "copied" units."""

    coordinates: tuple[tuple[Axis, str], ...]

    @cached_property
    def is_new(self) -> bool:
        """Whether the source has no such positions."""
        return any(part == "new" for _, part in self.coordinates)

    def new_atoms(self) -> list[Axis]:
        """The atoms whose new units these are."""
        return [atom for atom, part in self.coordinates if part == "new"]

    def copied_atoms(self) -> list[Axis]:
        """The atoms whose units are copies of source units."""
        return [atom for atom, part in self.coordinates if part == "copied"]


def is_wanted(slots: Iterable[Slot]) -> bool:
    """Whether entries must be the source's: it has such positions."""
    return not any(slot.is_new for slot in slots)


class Layout:
    """The slots of every axis, given how many units of an atom are the source's and which atoms are copied."""

    def __init__(self, old_size: Callable[[Axis], int], copied: frozenset[Axis]) -> None:
        self.old_size, self.copied = old_size, copied
        self._known: dict[tuple[Axis, int], list[Slot]] = {}

    def of_atom(self, atom: Axis) -> list[Slot]:
        """One slot where nothing grows, two (the source's units, the new ones) where it does."""
        old = self.old_size(atom)
        if (atom, old) not in self._known:
            parts = [part for part, count in (("kept", old), ("new", atom.size - old)) if count > 0]
            parts = ["copied"] if atom in self.copied and len(parts) == 2 else parts
            self._known[atom, old] = [Slot(((atom, part),)) for part in parts]
        return self._known[atom, old]

    def slots(self, axis: Axis) -> list[Slot]:
        """The blocks along an axis, in the order of the tree."""
        axis = resolve(axis)
        if axis.kind is None:
            return self.of_atom(axis)
        parts = [self.slots(part) for part in axis.parts]
        if axis.kind == "sum":
            return [slot for part in parts for slot in part]
        return [Slot(tuple(c for slot in combination for c in slot.coordinates)) for combination in product(*parts)]

    def count(self, axis: Axis) -> int:
        """The number of slots."""
        return len(self.slots(axis))

    def shape(self, axes: Iterable[Axis]) -> list[int]:
        """The number of slots of every dimension."""
        return [self.count(axis) for axis in axes]

    def grid(self, axes: Iterable[Axis]) -> list[list[Slot]]:
        """The slots of every dimension."""
        return [self.slots(axis) for axis in axes]

    def each_cell(self, axes: Iterable[Axis], make: Callable[[tuple[int, ...], list[Slot]], Any]) -> Cells:
        """An array with `make(index, slots)` for every combination of slots."""
        grid = self.grid(axes)

        def make_at(index: tuple[int, ...]) -> Any:
            return make(index, [along[number] for along, number in zip(grid, index, strict=True)])

        return filled(map(len, grid), make_at)


def members(cells: Cells) -> list[Cell]:
    """The cells of an array, one after the other."""
    return list(cells.ravel().tolist())


def filled(shape: Iterable[int], make: Callable[[tuple[int, ...]], Any]) -> Cells:
    """An array of cells."""
    cells = np.empty(tuple(shape), dtype=object)
    for index in np.ndindex(cells.shape):
        cells[index] = make(index)
    return cells


def union(entries: Iterable[frozenset[Entry] | None]) -> frozenset[Entry] | None:
    """All of them together; None if one is missing or there are none."""
    every = list(entries)
    if not every or None in every:
        return None
    return frozenset().union(*[item for item in every if item is not None])


def origins(cells: Iterable[Cell]) -> str:
    """Where the new cells among these came about, the first three."""
    found = dict.fromkeys(origin for cell in cells for origin in cell.origin.split(", ") if origin)
    return ", ".join([*found][:3]) or "new entries"
