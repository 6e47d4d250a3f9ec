"""A plan in words for one tensor: what grows, where the units stand, what each block is and for whose sake."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from lightning_grow.plan.cells import Kind
from lightning_grow.plan.tensor_plan import CellPlan, TensorPlan
from lightning_grow.plan.unit_group import UnitGroup
from lightning_grow.report import format_shape

_SHOWN = 6


def explain(
    name: str,
    item: TensorPlan | None,
    groups: Sequence[UnitGroup],
    way: tuple[str, ...] | None,
    refused: Sequence[str],
) -> Iterator[str]:
    """The lines of `GrowthPlan.explain`."""
    if item is not None:
        before = "a new layer" if item.source_shape is None else format_shape(item.source_shape)
        yield f"{name}: {before} -> {format_shape(item.target_shape)}"
        yield from (f"  axis {dim}: {line}" for dim, line in _axes(name, item, groups))
        yield from (f"  {line}" for line in dict.fromkeys(_blocks(item)))
        if item.used_by:
            yield f"  used by {_list(item.used_by)}"
    if way is not None:
        yield f"  reaches {way[-1]}" + (f" by way of {_list(way[:-1])}" if len(way) > 1 else "")
    yield from (f"  refused: {reason}" for reason in refused)


def _axes(name: str, item: TensorPlan, groups: Sequence[UnitGroup]) -> Iterator[tuple[int, str]]:
    for group in groups:
        for dim in [dim for member, dim in group.members if member == name]:
            others = [f"'{member}' axis {at}" for member, at in group.members if (member, at) != (name, dim)]
            shared = f"; they are also {_list(others)}" if others else ""
            yield dim, f"{group.old} units become {group.new}, the new ones {group.mode}{_places(item, dim)}{shared}"


def _places(item: TensorPlan, dim: int) -> str:
    """Where the source's positions stand, if not in front."""
    low = item.maps[dim].low
    kept = torch.nonzero(low >= 0).flatten()
    if torch.equal(kept, torch.arange(len(kept))):
        return ""
    return f", the source's positions at {_list([str(place) for place in kept.tolist()])}"


def _blocks(item: TensorPlan) -> Iterator[str]:
    for index, cell in item.blocks():
        where = [str(dim) for dim in range(len(index)) if item.source_name is not None and item.is_new(dim, index[dim])]
        what = f"new entries of axis {' and '.join(where)}" if where else "all other entries"
        reason = f", for {cell.because}" if cell.because else ""
        yield f"{what}: {_says(cell)}{reason}"


def _says(cell: CellPlan) -> str:
    if cell.kind is Kind.KEPT:
        return "the source's" + (f" times {cell.factor:.6g}" if cell.factor != 1.0 else "")
    if cell.kind is Kind.MEAN:
        return f"the mean of the source's along axis {cell.mean_dim}"
    return {Kind.ZERO: "0", Kind.IDENTITY: "the identity"}.get(cell.kind, "what the strategy fills in")


def _list(items: tuple[str, ...] | list[str]) -> str:
    shown = list(items) if len(items) <= _SHOWN + 1 else [*items[: _SHOWN - 1], "...", items[-1]]
    return ", ".join(shown)
