"""Apply a plan: one tensor at a time into a new state dict; nothing given is changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise, product

import torch
from torch import Tensor

from lightning_grow.errors import BrokenInvariant, RefusedGrowth
from lightning_grow.pair.maps import AxisMap
from lightning_grow.plan.cells import Kind
from lightning_grow.plan.growth_plan import GrowthPlan
from lightning_grow.plan.tensor_plan import Slices, TensorPlan
from lightning_grow.strategies.base import Block, Strategy
from lightning_grow.trace.names import strip_compiled
from lightning_grow.waiting import each

MOST_RUNS = 1024  # consecutive pieces of a block up to which copying them beats gathering


Allocate = Callable[[Tensor], Tensor]
"""Makes an empty tensor like another one: in memory, or in a file."""


def in_memory(tensor: Tensor) -> Tensor:
    """An empty tensor like another one, on its device; on the CPU where that is meta."""
    return torch.empty_like(tensor, device="cpu" if tensor.is_meta else tensor.device)


def grow_state(
    plan: GrowthPlan,
    source_state: Mapping[str, Tensor],
    target_state: Mapping[str, Tensor],
    seed: int = 0,
    allocate: Allocate = in_memory,
) -> dict[str, Tensor]:
    """Build the grown state.

    Args:
        plan: The plan.
        source_state: The source's state dict, or any other copy of its weights (an average).
        target_state: The target's state dict, for its names, types, and the initial values of new entries.
        seed: Seed of random entries; the same seed gives the same fill.
        allocate: Makes the new tensors.

    Returns:
        A new state dict with `target_state`'s names; no argument is changed.
    """
    grown = empty_state(target_state, allocate)
    write_state(plan, source_state, target_state, grown, seed)
    return grown


def write_state(
    plan: GrowthPlan,
    source_state: Mapping[str, Tensor],
    target_state: Mapping[str, Tensor],
    out: Mapping[str, Tensor],
    seed: int,
) -> None:
    """Write the grown state into `out`, whose tensors may be `target_state`'s own; see `grow_state`."""
    tensors = plan.tensors
    generator = torch.Generator().manual_seed(seed)
    source_names = {strip_compiled(name): name for name in source_state}
    work: dict[int, tuple[TensorPlan, Tensor | None, Tensor, Tensor]] = {}  # a tied tensor is written once
    written = {strip_compiled(name): grown for name, grown in out.items()}
    copies_last = sorted(out.items(), key=lambda entry: _original(tensors, entry[0]) is not None)
    for name, grown in copies_last:
        item = tensors.get(strip_compiled(name))
        if item is None or not isinstance(grown, Tensor) or id(grown) in work:
            continue
        source = None if item.source_name is None else source_state[source_names[item.source_name]].detach()
        _check(item, source, grown)
        work[id(grown)] = item, source, target_state[name].detach(), grown.detach()
    steps = each(work.values(), "growing the weights", [grown.numel() for *_, grown in work.values()])
    for item, source, initial, grown in steps:  # only our own code runs from here on
        if item.like is not None:
            grown.copy_(written[item.like])  # its new entries; those with a source follow
        write_tensor(item, source, initial, grown, plan.strategy, generator)


def _check(item: TensorPlan, source: Tensor | None, grown: Tensor) -> None:
    """Refuse tensors that the plan was not made for, before any is written."""
    there = None if source is None else tuple(source.shape)
    mapped = None if source is None else tuple(axis.old for axis in item.maps)
    if source is None and any(cell.kind in (Kind.KEPT, Kind.MEAN) for _, cell in item.blocks()):
        raise BrokenInvariant(f"writing '{item.name}'", "the plan takes entries of a source that it does not have")
    if there == item.source_shape == mapped and tuple(grown.shape) == item.target_shape:
        return
    raise RefusedGrowth(
        f"the plan grows '{item.name}' from {item.source_shape} to {item.target_shape}, but got {there} and "
        f"{tuple(grown.shape)}. Nothing was written; plan with the very modules that are to grow."
    )


def _original(tensors: Mapping[str, TensorPlan], name: str) -> str | None:
    item = tensors.get(strip_compiled(name))
    return None if item is None else item.like


def empty_state(target_state: Mapping[str, Tensor], allocate: Allocate = in_memory) -> dict[str, Tensor]:
    """New tensors like the target's, tied where the target's are; anything else in the state is shared."""
    made: dict[tuple[int, torch.Size], Tensor] = {}
    state: dict[str, Tensor] = {}
    for name, tensor in target_state.items():
        if not isinstance(tensor, Tensor):
            state[name] = tensor
            continue
        key = (tensor.data_ptr() if not tensor.is_meta and tensor.numel() else id(tensor), tensor.shape)
        if key not in made:
            made[key] = allocate(tensor.detach())
        state[name] = made[key]
    return state


def write_tensor(
    item: TensorPlan,
    source: Tensor | None,
    initial: Tensor,
    out: Tensor,
    strategy: Strategy,
    generator: torch.Generator,
) -> None:
    """Write one grown tensor into `out`, block by block.

    Args:
        item: Its plan.
        source: The source's tensor; None for a new one.
        initial: The target's own values, for new entries; may be `out` itself.
        out: Written.
        strategy: What new entries are.
        generator: Of random ones.
    """
    if source is not None and item.is_plain:
        out.copy_(source)
        return
    fresh = out if initial.data_ptr() != out.data_ptr() else None  # None: the initial values are already there
    for index, cell in item.blocks():
        at = item.at(index)
        if cell.kind is Kind.KEPT and source is not None:
            _write_kept(item, source, index, cell.factor, out, at)
            if cell.offset and cell.factor != 1.0:
                _put(out, at, take(out, at) + (cell.factor - 1.0) * cell.offset)
        elif cell.kind is Kind.ZERO:
            _put(out, at, torch.zeros((), dtype=out.dtype, device=out.device))
        elif cell.kind is Kind.MEAN and source is not None:
            _put(out, at, _mean(item, source, index, cell.factor, cell.mean_dim))
        elif cell.kind is Kind.IDENTITY:
            _put(out, at, _identity(item, index))
        elif item.like is None:
            block = Block(item.name, take(initial, at), source, item.role(index), len(item.maps) == 1, generator)
            entries = _fill(strategy, block)
            if entries is not block.initial or fresh is not None:
                _put(out, at, entries)


def _fill(strategy: Strategy, block: Block) -> Tensor:
    if block.source is not None or block.role == "state":
        return strategy.fill(block)
    own = strategy.new_layer(block)
    return block.initial if own is None else own


def open_index(at: Slices) -> Slices:
    """Index arrays of several dimensions, each along its own."""
    if sum(isinstance(part, Tensor) for part in at) <= 1:
        return at
    lists = [torch.arange(part.start, part.stop) if isinstance(part, slice) else part for part in at]
    return tuple(_column(part, dim, len(at)) for dim, part in enumerate(lists))


def take(tensor: Tensor, at: Slices) -> Tensor:
    """The entries of a block."""
    return tensor[open_index(at)] if at else tensor


def _put(tensor: Tensor, at: Slices, entries: Tensor) -> None:
    if at:
        tensor[open_index(at)] = entries.to(tensor)
    else:
        tensor.copy_(entries)


def _column(values: Tensor, dim: int, rank: int) -> Tensor:
    return values.view([-1 if other == dim else 1 for other in range(rank)])


def _write_kept(
    item: TensorPlan, source: Tensor, index: tuple[int, ...], factor: float, out: Tensor, at: Slices
) -> None:
    """Copy the source's entries of a block, in consecutive pieces where there are few, and rescale them in place."""
    runs = [_runs(axis, slot) for axis, slot in zip(item.maps, index, strict=True)]
    if any(axis.interpolates for axis in item.maps) or math.prod(map(len, runs)) > MOST_RUNS:
        _put(out, at, _gather(item, source, index, factor))
        return
    for pieces in product(*runs):
        view = out[tuple(new for new, _ in pieces)] if pieces else out
        view.copy_(source[tuple(old for _, old in pieces)] if pieces else source)
        for dim, (axis, (new, _)) in enumerate(zip(item.maps, pieces, strict=True)):
            if axis.share is not None:
                view.mul_(_column(_cast(axis.share[new], view), dim, view.dim()))
        if factor != 1.0:
            view.mul_(torch.tensor([factor], dtype=_compute_dtype(view), device=view.device))


def _compute_dtype(tensor: Tensor) -> torch.dtype:
    """Factors are rounded once: in float32 for narrower types, whose products round to the type itself."""
    if tensor.is_complex():
        return torch.complex128 if tensor.dtype is torch.complex128 else torch.complex64
    return torch.float64 if tensor.dtype is torch.float64 else torch.float32


def _cast(factors: Tensor, like: Tensor) -> Tensor:
    return factors.to(like.device, _compute_dtype(like))


def _runs(axis: AxisMap, slot: int) -> list[tuple[slice, slice]]:
    """The pieces of a block that are consecutive in target and source: (target positions, source positions)."""
    new = torch.nonzero(axis.slot == slot).flatten()
    old = axis.low[new]
    breaks = torch.nonzero((new[1:] != new[:-1] + 1) | (old[1:] != old[:-1] + 1)).flatten() + 1
    bounds = [0, *breaks.tolist(), len(new)]
    return [
        (slice(int(new[start]), int(new[start]) + stop - start), slice(int(old[start]), int(old[start]) + stop - start))
        for start, stop in pairwise(bounds)
        if stop > start
    ]


def _gather(item: TensorPlan, source: Tensor, index: tuple[int, ...], factor: float) -> Tensor:
    """The source's entries of a block, interpolated and shared along each dimension; of integers the nearest."""
    between = source.is_floating_point() or source.is_complex()
    entries = source.to(_compute_dtype(source)) if between else source
    for dim, (axis, slot) in enumerate(zip(item.maps, index, strict=True)):
        positions = torch.nonzero(axis.slot == slot).flatten()
        low, high, weight = axis.low[positions], axis.high[positions], axis.weight[positions]
        nearest = low if between else torch.where(weight > 0.5, high, low)
        picked = entries.index_select(dim, nearest.to(entries.device))
        if between and weight.any():
            neighbour = entries.index_select(dim, high.to(entries.device))
            picked = torch.lerp(picked, neighbour, _column(_cast(weight, picked), dim, picked.dim()))
        if axis.share is not None:
            picked = picked * _column(_cast(axis.share[positions], picked), dim, picked.dim())
        entries = picked
    return entries if factor == 1.0 else entries * factor


def _mean(item: TensorPlan, source: Tensor, index: tuple[int, ...], factor: float, dim: int) -> Tensor:
    """The mean over the source's units of one dimension, the same for every new unit."""
    beside = tuple(0 if number == dim else slot for number, slot in enumerate(index))
    shape = [
        1 if number == dim else int((axis.slot == slot).sum())
        for number, (axis, slot) in enumerate(zip(item.maps, beside, strict=True))
    ]
    reduced = replace(item, maps=tuple(_one(axis) if number == dim else axis for number, axis in enumerate(item.maps)))
    return _gather(reduced, source.mean(dim, keepdim=True, dtype=_compute_dtype(source)), beside, factor).reshape(shape)


def _one(axis: AxisMap) -> AxisMap:
    """The map of a dimension that was reduced to one position."""
    zero = torch.zeros(1, dtype=torch.long)
    return replace(axis, low=zero, high=zero, weight=torch.zeros(1, dtype=torch.float64), slot=zero, share=None, old=1)


def _identity(item: TensorPlan, index: tuple[int, ...]) -> Tensor:
    """Each unit reads its own source unit: in equal shares where the input has copies of it; a gain is 1."""
    if len(item.maps) < 2:
        return torch.ones(()).double()
    rows, columns = (axis.low[axis.slot == slot] for axis, slot in zip(item.maps, index, strict=True))
    same = (rows[:, None] == columns[None, :]).double()
    return same / same.sum(1, keepdim=True).clamp(min=1)


def move_state(plan: GrowthPlan, name: str, tensor: Tensor, power: float) -> Tensor | None:
    """Move an optimizer's state tensor of the source's shape.

    Args:
        plan: The plan that grew the parameter.
        name: The target parameter.
        tensor: The state, in the source parameter's shape.
        power: 1 for what follows the gradient (momentum), 2 for its square, 0 for what has no unit. The gradient of a
            weight that was scaled by a is 1/a of the source's.

    Returns:
        A tensor of the target's shape, 0 at new entries; None where the state has another shape than the source's
        parameter. Exact where ``plan.tensors[name].is_one_to_one``; where units are copied or averaged, the entries
        that go on keep their values, and these are approximate.
    """
    item = plan.tensors[name]
    if tuple(tensor.shape) != item.source_shape:
        return None
    whole = tuple(replace(axis, weight=torch.zeros_like(axis.weight), share=None) for axis in item.maps)
    bare = replace(item, maps=whole)  # a share divides what reads a copy, not the gradient there
    moved = torch.zeros(item.target_shape, dtype=tensor.dtype, device=tensor.device)
    for index, cell in item.blocks():
        if cell.kind is Kind.KEPT:
            _write_kept(bare, tensor, index, cell.factor**-power, moved, item.at(index))
    return moved if item.is_one_to_one else moved.masked_fill_(item.new_entries().to(moved.device), 0)


def move_copy(plan: GrowthPlan, name: str, tensor: Tensor, grown: Tensor) -> Tensor | None:
    """Move another copy of a weight, an average of it, say.

    Args:
        plan: The plan that grew the parameter.
        name: The target parameter.
        tensor: The copy, in the source parameter's shape.
        grown: The parameter itself, grown by the plan: the copy's new entries are its own.

    Returns:
        A tensor of the target's shape; None where the copy has another shape than the source's parameter.
    """
    item = plan.tensors[name]
    if tuple(tensor.shape) != item.source_shape:
        return None
    moved = torch.empty_like(grown, dtype=tensor.dtype, device=tensor.device)
    write_tensor(item, tensor, grown.to(moved), moved, plan.strategy, torch.Generator())
    return torch.where(item.new_entries().to(moved.device), grown.to(moved), moved)
