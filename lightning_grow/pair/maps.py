"""From trees of axes to positions: which source position every target position takes its entries from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_grow.trace.axes import Axis, resolve


@dataclass(frozen=True)
class UnitMap:
    """Where the units of one atom come from.

    Args:
        source: Fractional source unit of every target unit, float64 (target units,); -1 where there is none. A
            whole number is that unit, a fraction a point between two neighbouring ones.
        old: Units of the source.
        share: With what share each target unit is read, float64 (target units,); None where each is read in full.
    """

    source: Tensor
    old: int
    share: Tensor | None = None


@dataclass(frozen=True)
class AxisMap:
    """One dimension of one tensor.

    Args:
        low: Source position of every target position, -1 where there is none, int64 (target size,).
        high: The neighbour to interpolate with; `low` itself where nothing is interpolated.
        weight: The part of `high`, float64 (target size,).
        slot: Which block (cell) each target position belongs to, int64 (target size,).
        share: With what share each position is read, float64 (target size,), or None.
        old: Positions of the source.
    """

    low: Tensor
    high: Tensor
    weight: Tensor
    slot: Tensor
    share: Tensor | None
    old: int

    @property
    def is_identity(self) -> bool:
        """Whether every position is the source's own."""
        return len(self.low) == self.old and bool((self.low == torch.arange(self.old)).all()) and self.share is None

    @property
    def interpolates(self) -> bool:
        """Whether some position lies between two of the source's."""
        return bool(self.weight.any())

    @property
    def continues(self) -> Tensor:
        """Which positions go on as one of the source's: of several copies the first; bool (target size,)."""
        exact = (self.low >= 0) & (self.weight == 0)
        positions = torch.arange(len(self.low))
        first = torch.full((self.old,), len(self.low))
        first.scatter_reduce_(0, self.low[exact], positions[exact], "amin")
        continues = exact.clone()
        continues[exact] = first[self.low[exact]] == positions[exact]
        return continues


def axis_map(axis: Axis, units: Callable[[Axis], UnitMap], slots: Callable[[Axis], int]) -> AxisMap:
    """Turn unit maps into the map of a whole axis.

    Args:
        axis: The target's axis.
        units: The map of every atom.
        slots: The number of blocks along an axis.

    >>> gates = Axis(4, "sum", (unit := Axis(2), unit))
    >>> units = lambda atom: UnitMap(torch.tensor([0.0, -1.0], dtype=torch.float64), 1)
    >>> axis_map(gates, units, lambda axis: 2).low
    tensor([ 0, -1,  1, -1])
    """
    axis = resolve(axis)
    if axis.kind is None:
        return _atom_map(units(axis), slots(axis))
    parts = [axis_map(part, units, slots) for part in axis.parts]
    if axis.kind == "sum":
        return _concatenate(parts, [slots(part) for part in axis.parts])
    result = parts[0]
    count = slots(axis.parts[0])
    for part, tree in zip(parts[1:], axis.parts[1:], strict=True):
        result = _multiply(result, part, slots(tree))
        count *= slots(tree)
    return result


def _atom_map(units: UnitMap, count: int) -> AxisMap:
    low = units.source.floor().long()
    weight = torch.where(units.source >= 0, units.source - low, 0.0).double()
    high = torch.where(weight > 0, low + 1, low)
    slot = (low < 0).long() if count > 1 else torch.zeros_like(low)
    return AxisMap(low, high, weight, slot, units.share, units.old)


def _concatenate(parts: list[AxisMap], counts: list[int]) -> AxisMap:
    low, high, slot = [], [], []
    offset = blocks = 0
    for part, count in zip(parts, counts, strict=True):
        low.append(torch.where(part.low >= 0, part.low + offset, -1))
        high.append(torch.where(part.low >= 0, part.high + offset, -1))
        slot.append(part.slot + blocks)
        offset, blocks = offset + part.old, blocks + count
    return AxisMap(
        torch.cat(low),
        torch.cat(high),
        torch.cat([part.weight for part in parts]),
        torch.cat(slot),
        _join_shares(parts, torch.cat),
        offset,
    )


def _join_shares(parts: list[AxisMap], join: Callable[[list[Tensor]], Tensor]) -> Tensor | None:
    if all(part.share is None for part in parts):
        return None
    return join([_share(part) for part in parts])


def _share(part: AxisMap) -> Tensor:
    return torch.ones(len(part.low), dtype=torch.float64) if part.share is None else part.share


def _multiply(outer: AxisMap, inner: AxisMap, inner_slots: int) -> AxisMap:
    """Row-major product; at most one of the two interpolates (a position has one neighbour)."""
    rows, columns = len(outer.low), len(inner.low)

    def position(left: Tensor, right: Tensor) -> Tensor:
        whole = left[:, None] * inner.old + right
        return torch.where((left[:, None] >= 0) & (right >= 0), whole, -1).flatten()

    return AxisMap(
        position(outer.low, inner.low),
        position(outer.high, inner.high),
        torch.maximum(outer.weight[:, None].expand(rows, columns), inner.weight.expand(rows, columns)).flatten(),
        (outer.slot[:, None] * inner_slots + inner.slot).flatten(),
        _join_shares([outer, inner], lambda shares: (shares[0][:, None] * shares[1]).flatten()),
        outer.old * inner.old,
    )


def prefix_map(old: int, new: int) -> UnitMap:
    """Source unit j is target unit j; the others have none.

    >>> prefix_map(2, 3).source.tolist()
    [0.0, 1.0, -1.0]
    """
    source = torch.arange(new, dtype=torch.float64)
    source[old:] = -1.0
    return UnitMap(source, old)


def unit_index(axis: Axis, atom: Axis) -> Tensor:
    """Which unit of `atom` every position belongs to, int64 (axis size,); -1 where it belongs to none.

    >>> head = Axis(3)
    >>> unit_index(Axis(8, "sum", (Axis(6, "product", (Axis(2), head)), Axis(2))), head).tolist()
    [0, 1, 2, 0, 1, 2, -1, -1]
    """
    axis = resolve(axis)
    if axis.kind is None:
        return torch.arange(axis.size) if axis is resolve(atom) else torch.full((axis.size,), -1)
    parts = [unit_index(part, atom) for part in axis.parts]
    if axis.kind == "sum":
        return torch.cat(parts)
    result = parts[0]
    for part in parts[1:]:
        result = torch.maximum(result[:, None].expand(-1, len(part)), part).flatten()
    return result
