"""Apply a plan: one tensor at a time into a new state dict; nothing given is changed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_grow.cells import Kind
from lightning_grow.maps import AxisMap
from lightning_grow.plan import GrowthPlan, Slices, TensorPlan, new_block
from lightning_grow.report import TensorReport
from lightning_grow.strategies.base import Strategy


def apply_plan(
    plan: GrowthPlan, source_state: Mapping[str, Tensor], target_state: Mapping[str, Tensor], seed: int
) -> dict[str, Tensor]:
    """Build the grown state dict; see `GrowthPlan.apply`."""
    generator = torch.Generator().manual_seed(seed)
    grown: dict[str, Tensor] = {}
    done: dict[int, Tensor] = {}  # a tied tensor is built once
    for name, initial in target_state.items():
        clean = name.replace("_orig_mod.", "")
        if not isinstance(initial, Tensor) or clean not in plan.tensors:
            grown[name] = initial
            continue
        item = plan.tensors[clean]
        key = id(initial) if initial.is_meta else initial.data_ptr() or id(initial)
        if key not in done or done[key].shape != initial.shape:
            source = None if item.source_name is None else _source(source_state, item.source_name)
            done[key] = grow_tensor(item, source, initial.detach(), plan.strategy, generator)
        grown[name] = done[key]
    return grown


def _source(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name in state:
        return state[name].detach()
    compiled = {key.replace("_orig_mod.", ""): key for key in state}
    return state[compiled[name]].detach()


def grow_tensor(
    item: TensorPlan, source: Tensor | None, initial: Tensor, strategy: Strategy, generator: torch.Generator
) -> Tensor:
    """Build one tensor in the target's type, on the source's device (the target's for a new layer)."""
    if source is not None and item.is_plain:
        return source.to(initial.dtype, copy=True)
    device = initial.device if source is None else source.device
    grown = initial.to(device, copy=True) if not initial.is_meta else torch.empty_like(initial, device=device)
    for index, cell in _cells(item):
        at = item.at(index)
        if cell.kind is Kind.KEPT:
            _put(grown, at, _gather(item, source, index, cell.factor))
        elif cell.kind is Kind.ZERO:
            _put(grown, at, torch.zeros((), dtype=grown.dtype, device=device))
        elif cell.kind is Kind.MEAN:
            _put(grown, at, _mean(item, source, index, cell.factor, cell.mean_dim))
        elif cell.kind is Kind.IDENTITY:
            _put(grown, at, _identity(item, index).to(grown.dtype))
        else:
            fill = strategy.fill if item.source_name is not None else _layer_fill(strategy)
            _put(grown, at, fill(new_block(item, index, _take(grown, at), source, generator)))
    return grown


def _layer_fill(strategy: Strategy):  # type: ignore[no-untyped-def]  # a local choice between two methods of one type
    def fill(block):  # type: ignore[no-untyped-def]
        own = strategy.new_layer(block)
        return block.initial if own is None else own

    return fill


def _cells(item: TensorPlan):  # type: ignore[no-untyped-def]
    import numpy as np

    return [(index, item.cells[index]) for index in np.ndindex(item.cells.shape)]


def _open(at: Slices) -> Slices:
    """Index arrays of several dimensions, each along its own."""
    if all(isinstance(part, slice) for part in at) or sum(isinstance(part, Tensor) for part in at) == 1:
        return at
    lists = [torch.arange(part.start, part.stop) if isinstance(part, slice) else part for part in at]
    return tuple(part.view([-1 if dim == other else 1 for other in range(len(at))]) for dim, part in enumerate(lists))


def _take(tensor: Tensor, at: Slices) -> Tensor:
    return tensor[_open(at)] if at else tensor


def _put(tensor: Tensor, at: Slices, entries: Tensor) -> None:
    if at:
        tensor[_open(at)] = entries.to(tensor.dtype)
    else:
        tensor.copy_(entries)


def _positions(axis: AxisMap, slot: int) -> Tensor:
    return torch.nonzero(axis.slot == slot).flatten()


def _gather(item: TensorPlan, source: Tensor | None, index: tuple[int, ...], factor: float) -> Tensor:
    """The source's entries of a block, interpolated and shared along each dimension."""
    assert source is not None  # a kept cell has a source
    entries = source
    for dim, (axis, slot) in enumerate(zip(item.maps, index, strict=True)):
        positions = _positions(axis, slot)
        low = axis.low[positions]
        picked = _along(entries, dim, low)
        weight = axis.weight[positions]
        if weight.any():
            neighbour = _along(entries, dim, axis.high[positions])
            picked = torch.lerp(picked.double(), neighbour.double(), _column(weight, dim, picked.dim()))
        if axis.share is not None:
            picked = picked.double() * _column(axis.share[positions], dim, picked.dim())
        entries = picked
    return entries if factor == 1.0 else entries * factor


def _along(tensor: Tensor, dim: int, positions: Tensor) -> Tensor:
    if len(positions) and bool((positions == torch.arange(int(positions[0]), int(positions[0]) + len(positions))).all()):
        return tensor.narrow(dim, int(positions[0]), len(positions))
    return tensor.index_select(dim, positions.to(tensor.device))


def _column(values: Tensor, dim: int, rank: int) -> Tensor:
    return values.view([-1 if other == dim else 1 for other in range(rank)])


def _mean(item: TensorPlan, source: Tensor | None, index: tuple[int, ...], factor: float, dim: int) -> Tensor:
    """The mean over the source's units of one dimension, the same for every new unit."""
    assert source is not None  # a mean has a source
    beside = tuple(0 if number == dim else slot for number, slot in enumerate(index))
    return _gather(item, source, beside, factor).double().mean(dim, keepdim=True)


def _identity(item: TensorPlan, index: tuple[int, ...]) -> Tensor:
    """Each unit reads its own source unit: in equal shares where the input has copies of it."""
    rows, columns = (axis.low[_positions(axis, slot)] for axis, slot in zip(item.maps, index, strict=True))
    same = (rows[:, None] == columns[None, :]).double()
    return same / same.sum(1, keepdim=True).clamp(min=1)


def move_state(item: TensorPlan, tensor: Tensor, power: float) -> Tensor | None:
    """Move an optimizer's state tensor; see `GrowthPlan.move`."""
    if not item.is_one_to_one or tuple(tensor.shape) != item.source_shape:
        return None
    moved = torch.zeros(item.target_shape, dtype=tensor.dtype, device=tensor.device)
    for index, cell in _cells(item):
        if cell.kind is Kind.KEPT:
            _put(moved, item.at(index), _gather(item, tensor, index, cell.factor**-power))
    return moved


def report_tensor(item: TensorPlan, grown: Tensor) -> TensorReport:
    """Count what became of one tensor."""
    copied = new = zeroed = 0
    factor = 1.0
    for index, cell in _cells(item):
        count = grown[_open(item.at(index))].numel() if item.maps else 1
        if cell.kind in (Kind.KEPT, Kind.MEAN):
            copied += count
            factor = cell.factor if cell.factor != 1.0 else factor
            continue
        new += count
        zeroed += count - int(torch.count_nonzero(_take(grown, item.at(index))))
    return TensorReport(item.name, item.source_name, item.source_shape, item.target_shape, _axes(item), copied, new, zeroed, factor)


def _axes(item: TensorPlan) -> tuple[str, ...]:
    if item.source_shape is None:
        return ("new layer",)
    parts = []
    for dim, (old, new) in enumerate(zip(item.source_shape, item.target_shape, strict=True)):
        if old != new:
            role = "fan-in" if item.reads[dim] else "fan-out"
            parts.append(f"{role} {old} -> {new}")
    return tuple(parts)
