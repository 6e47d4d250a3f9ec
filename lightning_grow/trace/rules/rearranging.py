"""Rules of operators that make tensors, or give the same entries in another order or shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lightning_grow.trace.axes import Axis, AxisError, atoms, cut, factor, product_of, reshape, sum_of, unify, unify_all
from lightning_grow.trace.meanings import Create, Pointwise, Rearrange
from lightning_grow.trace.table import RULES, Call, Output, axis_rule, broadcast, create, fresh, pointwise
from lightning_grow.trace.tape import VIEWS

for _name in ("bernoulli", "new_empty", "new_empty_strided", "empty_strided", "normal", "uniform", "exponential"):
    RULES[_name] = create


@axis_rule(
    "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "randint_like", "zero", "fill"
)
@axis_rule("new_zeros", "new_ones", "new_full")
def create_like(call: Call) -> list[Output]:
    """Make a tensor in the shape of another."""
    axes = list(call.input.axes)
    shaped = [axis.size for axis in axes] == list(call.shapes[0])
    return [(axes if shaped else fresh(call.shapes[0]), Create())]


@axis_rule("copy")
def copy(call: Call) -> list[Output]:
    """What is written stands there, whatever stood there before."""
    base, value = call.node.tensors()
    if value.dtype != base.dtype:
        return pointwise(call)
    meaning = Pointwise((value,), lambda inputs: inputs[0])
    return [(broadcast([base, value], call.shapes[0]), meaning)]


UNTAGGED = "masked_fill", "dropout", "native_dropout", "_to_copy", "clone", "where", "lerp", "tril", "triu"
for _name in (*UNTAGGED, "leaky_relu"):  # torch 2.10 does not tag the last one
    RULES[_name] = pointwise


@axis_rule("t", "transpose", "permute", "numpy_T")
def permute(call: Call) -> list[Output]:
    """Reorder dimensions."""
    rank = len(call.input.axes)
    order = list(range(rank))
    if call.node.name == "permute":
        order = [dim % rank for dim in call["dims"]]
    elif rank > 1:
        first, second = call.get("dim0", 0) % rank, call.get("dim1", 1) % rank
        order[first], order[second] = order[second], order[first]
    axes = [call.input.axes[dim] for dim in order]
    return [(axes, Rearrange((call.input,), lambda count, cells: cells.transpose(order), tuple(order)))]


@axis_rule(*VIEWS)
def view(call: Call) -> list[Output]:
    """Factor and merge axes in row-major order."""
    try:
        axes = _keep_equal(call.input.axes, call.shapes[0]) or reshape(call.input.axes, call.shapes[0])
    except AxisError:
        return _mixing_view(call)
    return call.rearrange(axes, lambda count, cells: cells.reshape([count(axis) for axis in axes]))


def _mixing_view(call: Call) -> list[Output]:
    """A view across units (a relative shift): the leading and the closing dimensions that stay are as they were."""
    sizes, shape = list(call.input.shape), call.shapes[0]
    lead = next(count for count in range(len(shape) + 1) if sizes[: count + 1] != list(shape[: count + 1]))
    tail = next(count for count in range(len(shape) + 1) if _end(sizes, count + 1) != _end(shape, count + 1))
    tail = min(tail, len(shape) - lead, len(sizes) - lead)
    kept = [*range(lead), *[None] * (len(shape) - lead - tail), *range(len(sizes) - tail, len(sizes))]
    return call.mix(tuple(range(lead, len(sizes) - tail)), kept)


def _end(sizes: Sequence[int], count: int) -> list[int]:
    return list(sizes)[-count:] if count <= len(sizes) else [-1]


def _keep_equal(axes: list[Axis], shape: Sequence[int]) -> list[Axis] | None:
    """A view that only adds or drops sizes of 1 keeps every other axis as it is."""
    large = [axis for axis in axes if axis.size != 1]
    if [axis.size for axis in large] != [size for size in shape if size != 1] or 0 in shape:
        return None
    rest = iter(large)
    return [Axis(1) if size == 1 else next(rest) for size in shape]


@axis_rule("expand")
def expand(call: Call) -> list[Output]:
    """Repeat along axes of size 1 without copying."""
    shape, axes = call.shapes[0], call.input.axes
    lead = len(shape) - len(axes)
    out = [
        axes[dim - lead] if dim >= lead and axes[dim - lead].size == size else Axis(size)
        for dim, size in enumerate(shape)
    ]
    return call.rearrange(out, lambda count, cells: np.broadcast_to(cells, [count(axis) for axis in out]))


@axis_rule("repeat")
def repeat(call: Call) -> list[Output]:
    """Tile: the copies run slowest."""
    times, shape = call["repeats"], call.shapes[0]
    lead = len(shape) - len(call.input.axes)
    inner = [Axis(1)] * lead + call.input.axes
    outer = [Axis(number) for number in times]
    axes = [product_of([copies, axis]) for copies, axis in zip(outer, inner, strict=True)]

    def move(count: Callable[[Axis], int], cells: Any) -> Any:
        return np.tile(cells, [count(axis) // max(1, count(part)) for axis, part in zip(axes, inner, strict=True)])

    return call.rearrange(axes, move)


def narrow(call: Call, dim: int, sizes: Sequence[int], index: int) -> Output:
    """Piece `index` of the cut of dimension `dim` into `sizes`."""
    pieces = cut(call.input.axes[dim], sizes)
    axes = [*call.input.axes[:dim], pieces[index], *call.input.axes[dim + 1 :]]

    def move(count: Callable[[Axis], int], cells: Any) -> Any:
        start = sum(count(piece) for piece in pieces[:index])
        return cells[(slice(None),) * dim + (slice(start, start + count(pieces[index])),)]

    return axes, Rearrange((call.input,), move)


@axis_rule(
    "split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "tensor_split", "unsafe_split_with_sizes"
)
def split(call: Call) -> list[Output]:
    """Cut one dimension into consecutive pieces."""
    dim = call.get("dim", 0) % len(call.input.axes)
    sizes = [shape[dim] for shape in call.shapes]
    return [narrow(call, dim, sizes, index) for index in range(len(sizes))]


@axis_rule("slice")
def slice_(call: Call) -> list[Output]:
    """Take a range of positions; a step takes one column of the folded axis."""
    dim = call["dim"] % len(call.input.axes)
    size, kept = call.input.axes[dim].size, call.shapes[0][dim]
    start = call.get("start", 0)
    start = max(0, start + size) if start < 0 else min(start, size)
    if call.get("step", 1) == 1:
        return [narrow(call, dim, [start, kept, size - start - kept], 1)]
    return _strided(call, dim, start, call["step"])


def _strided(call: Call, dim: int, start: int, step: int) -> list[Output]:
    axis = call.input.axes[dim]
    try:
        if axis.size % step or start >= step:
            raise AxisError(f"a step of {step} from {start} over {axis}")
        outer, inner = factor(axis, [axis.size // step, step])
    except AxisError:  # across units: some positions, which must stay as they are
        return call.mix((dim,), [None if number == dim else number for number in range(len(call.input.axes))])
    pieces = cut(inner, [start, 1, step - start - 1])

    def move(count: Callable[[Axis], int], cells: Any) -> Any:
        folded = cells.reshape([*cells.shape[:dim], count(outer), count(inner), *cells.shape[dim + 1 :]])
        return folded.take(count(pieces[0]), axis=dim + 1)

    return call.rearrange([*call.input.axes[:dim], outer, *call.input.axes[dim + 1 :]], move)


def _pick(call: Call, dim: int, index: int) -> Output:
    size = call.input.axes[dim].size
    axes, meaning = narrow(call, dim, [index, 1, size - index - 1], 1)
    narrowed = meaning.move
    first = (*[slice(None)] * dim, 0, ...)  # the dots keep an array where no dimension is left
    return axes[:dim] + axes[dim + 1 :], Rearrange((call.input,), lambda count, cells: narrowed(count, cells)[first])


@axis_rule("select")
def select(call: Call) -> list[Output]:
    """Take one position and drop its dimension."""
    dim = call["dim"] % len(call.input.axes)
    return [_pick(call, dim, call["index"] % call.input.axes[dim].size)]


@axis_rule("unbind")
def unbind(call: Call) -> list[Output]:
    """Take every position on its own."""
    dim = call["dim"] % len(call.input.axes)
    axis = call.input.axes[dim]
    cut(axis, [1] * axis.size)
    return [_pick(call, dim, index) for index in range(axis.size)]


@axis_rule("cat")
def cat(call: Call) -> list[Output]:
    """Put tensors one after the other."""
    values = [value for value in call["tensors"] if 0 not in [axis.size for axis in value.axes] or len(value.axes) > 1]
    dim = call.get("dim", 0) % len(call.shapes[0])
    along = list(zip(*(value.axes for value in values), strict=True))
    axes = [unify_all(its) if index != dim and its[0].size > 1 else its[0] for index, its in enumerate(along)]
    axes[dim] = sum_of(_told_apart(along[dim]))
    return call.rearrange(axes, lambda count, *cells: np.concatenate(cells, axis=dim), *values)


def _told_apart(parts: Sequence[Axis]) -> list[Axis]:
    """Parts of the same units, each with a mark of its own: one of them may be new though its units are not."""
    counts = Counter(atom for part in parts for atom in set(atoms(part)) if part.size > 1)
    shared = {atom for atom, count in counts.items() if count > 1}
    return [
        part if part.size < 2 or shared.isdisjoint(atoms(part)) else product_of([Axis(1, marks=True), part])
        for part in parts
    ]


@axis_rule("stack")
def stack(call: Call) -> list[Output]:
    """Put tensors one after the other along a new dimension."""
    values = call["tensors"]
    dim = call.get("dim", 0) % len(call.shapes[0])
    for value in values[1:]:
        for first, other in zip(values[0].axes, value.axes, strict=True):
            unify(first, other)
    axes = [*values[0].axes[:dim], sum_of([Axis(1) for _ in values]), *values[0].axes[dim:]]
    return call.rearrange(axes, lambda count, *cells: np.stack(cells, axis=dim), *values)
