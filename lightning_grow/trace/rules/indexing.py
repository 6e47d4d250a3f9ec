"""Rules of operators that pick positions or write to them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch

from lightning_grow.trace.axes import Axis, unify
from lightning_grow.trace.meanings import Along, Lookup, Scatter
from lightning_grow.trace.rules.rearranging import narrow
from lightning_grow.trace.table import Call, Output, axis_rule, fresh, opaque
from lightning_grow.trace.tape import Value


@axis_rule("embedding")
def embedding(call: Call) -> list[Output]:
    """Pick rows by index."""
    table, index = call["weight"], call["indices"]
    return [([*index.axes, *table.axes[1:]], Lookup(table, index, 0))]


@axis_rule("index_select", "gather", "index", "take_along_dim")
def index(call: Call) -> list[Output]:
    """Pick positions by an index tensor."""
    value = call.input
    if call.node.name == "index_select":
        dim = call["dim"] % len(value.axes)
        axes = [*value.axes[:dim], Axis(call.shapes[0][dim]), *value.axes[dim + 1 :]]
        return [(axes, Along((value, call["index"]), (dim,)))]
    if call.node.name == "index":
        return _index_by_tensors(call, value)
    dim = call["dim"] % len(value.axes)
    axes = [
        axis if number != dim and axis.size == size else Axis(size)
        for number, (axis, size) in enumerate(zip(value.axes, call.shapes[0], strict=True))
    ]
    return [(axes, Along((value, call.node.tensors()[1]), (dim,)))]


def _index_by_tensors(call: Call, value: Value) -> list[Output]:
    indices = list(call["indices"])
    indexed = [dim for dim, item in enumerate(indices) if item is not None]
    if len(indexed) == 1 and indexed[0] and (start := _run_of(indices[indexed[0]], value.axes[indexed[0]].size)) >= 0:
        length = indices[indexed[0]].shape[0]
        return [narrow(call, indexed[0], [start, length, value.axes[indexed[0]].size - start - length], 1)]
    if len(indexed) == 1 and indexed[0] == 0 and indices[0].dtype is not torch.bool:
        return [([*indices[0].axes, *value.axes[1:]], Lookup(value, indices[0], 0))]
    rest = [axis for dim, axis in enumerate(value.axes) if dim not in indexed]
    together = indexed == list(range(indexed[0], indexed[-1] + 1))
    at = indexed[0] if together else 0
    picked = fresh(call.shapes[0][at : at + len(call.shapes[0]) - len(rest)])
    by = tuple(item for item in indices if item is not None)
    return [([*rest[:at], *picked, *rest[at:]], Along((value, *by), tuple(indexed)))]


@axis_rule("nonzero")
def nonzero(call: Call) -> list[Output]:
    """The positions of what is not 0."""
    return [(fresh(call.shapes[0]), Along((call.input,), tuple(range(len(call.input.axes))), scales=False))]


def _run_of(index: Value, size: int) -> int:
    """Where a constant index takes one position after the other from; -1 where it does not."""
    if index.constant is None or index.constant.dim() != 1 or not len(index.constant):
        return -1
    first, *rest = (item % size for item in index.constant.tolist())
    return int(first) if rest == [first + number + 1 for number in range(len(rest))] else -1


def _add(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return left + right


def _average(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return (left + right) / 2


def _replace(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.arange(len(left)) % 2 == 0, left, right)


@lru_cache
def _put(number: float) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    return lambda left, _: _replace(left, torch.full_like(left, number))


_SCATTERED: dict[str | None, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "amax": torch.maximum,
    "amin": torch.minimum,
    "sum": _add,
    "mean": _average,
    None: _replace,
}


@axis_rule("index_add", "index_copy", "index_reduce", "scatter", "scatter_add", "scatter_reduce")
def scatter(call: Call) -> list[Output]:
    """Write or add positions of one tensor into another, along one dimension."""
    base, value = call.input, call.get("src", call.get("source", call.get("value")))
    how = "sum" if call.node.name in ("index_add", "scatter_add") else call.get("reduce")
    if how not in _SCATTERED:
        return opaque(call, f"operator {call.node.op} with this reduction has no rule")
    function = _SCATTERED[how]
    if not isinstance(value, Value):  # a number stands there: what the base holds besides it
        value, function = base, _put(float(call["value"]))
    dim, beside = call["dim"] % len(base.axes), [value]
    if call.node.name.startswith("scatter"):
        beside.append(call["index"])
    dims = [
        at
        for at, axis in enumerate(base.axes)
        if at == dim or any(item.axes[at].size != axis.size for item in beside)  # only a part is written there
    ]
    for item in beside:
        for at in set(range(len(base.axes))).difference(dims):
            unify(base.axes[at], item.axes[at])
    return [(list(base.axes), Scatter(base, value, (call["index"],), tuple(dims), tuple(dims), function))]


@axis_rule("index_put", "_unsafe_index_put")
def index_put(call: Call) -> list[Output]:
    """Write or add rows picked by index tensors."""
    base, value, indices = call.input, call["values"], call["indices"]
    dims = [dim for dim, item in enumerate(indices) if item is not None]
    if value.constant is not None and not value.axes and not call.get("accumulate"):
        where = tuple(indices[dim] for dim in dims)
        return [(list(base.axes), Scatter(base, base, where, tuple(dims), tuple(dims), _put(value.constant.item())))]
    masks = any(indices[dim].dtype is torch.bool and len(indices[dim].axes) != 1 for dim in dims)
    rest = [axis for dim, axis in enumerate(base.axes) if dim not in dims]
    inner = range(dims[0], dims[0] + len(value.axes) - len(rest))
    others = [axis for dim, axis in enumerate(value.axes) if dim not in inner]
    apart = dims == list(range(dims[0], dims[-1] + 1)) and [axis.size for axis in rest] == [
        axis.size for axis in others
    ]
    if masks or not apart:
        return opaque(call, f"operator {call.node.op} with these indices has no rule")
    for axis, other in zip(rest, others, strict=True):
        unify(axis, other)
    function = _add if call.get("accumulate") else _replace
    where = tuple(indices[dim] for dim in dims)
    return [(list(base.axes), Scatter(base, value, where, tuple(dims), tuple(inner), function))]
