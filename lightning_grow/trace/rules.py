"""The table of rules: one small function per operator family gives the output axes and the meaning.

Pointwise operators need no entry: torch tags them. An operator without a rule is `Opaque`, which the plan refuses by
name wherever a growing axis meets it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lightning_grow.trace.axes import Axis, AxisError, cut, factor, product_of, reshape, sum_of, unify
from lightning_grow.trace.meanings import (
    Along,
    Contract,
    Create,
    Lookup,
    Rearrange,
    Reduce,
    Scatter,
)
from lightning_grow.trace.table import RULES, Call, Output, axis_rule, create, fresh, opaque, pointwise
from lightning_grow.trace.tape import VIEWS, Value

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


UNTAGGED = "masked_fill", "copy", "dropout", "native_dropout", "_to_copy", "clone", "where", "lerp", "tril", "triu"
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
    axes = _keep_equal(call.input.axes, call.shapes[0]) or reshape(call.input.axes, call.shapes[0])
    return call.rearrange(axes, lambda count, cells: cells.reshape([count(axis) for axis in axes]))


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
    if axis.size % step or start >= step:
        raise AxisError(f"a step of {step} from {start} over {axis}")
    outer, inner = factor(axis, [axis.size // step, step])
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
    for value in values[1:]:
        for index, (first, other) in enumerate(zip(values[0].axes, value.axes, strict=True)):
            if index != dim:
                unify(first, other)
    axes = list(values[0].axes)
    axes[dim] = sum_of([value.axes[dim] for value in values])
    return call.rearrange(axes, lambda count, *cells: np.concatenate(cells, axis=dim), *values)


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


@axis_rule("mm", "bmm", "addmm", "baddbmm", "mv", "dot")
def matmul(call: Call) -> list[Output]:
    """Sum of products over the shared axis."""
    bias = call.get("self") if call.node.name in ("addmm", "baddbmm") else None
    left, right = [value for value in call.node.tensors() if value is not bias or call.node.tensors().count(value) > 1][
        -2:
    ]
    labels = {
        "mm": ("ik", "kj", "ij"),
        "bmm": ("bik", "bkj", "bij"),
        "mv": ("ik", "k", "i"),
        "dot": ("k", "k", ""),
    }[call.node.name.removeprefix("add").removeprefix("badd")]
    return contract(left, right, labels, call.shapes[0], bias)


def contract(
    left: Value, right: Value, labels: tuple[str, str, str], shape: Sequence[int], bias: Value | None = None
) -> list[Output]:
    """Unify axes of one label; the output has those of the last string ("." is a fresh one)."""
    known: dict[str, Axis] = {}
    for value, letters in ((left, labels[0]), (right, labels[1])):
        for letter, axis in zip(letters, value.axes, strict=True):
            if letter != "." and letter in known:
                unify(known[letter], axis)
            known.setdefault(letter, axis)
    axes = [Axis(size) if letter == "." else known[letter] for letter, size in zip(labels[2], shape, strict=True)]
    if bias is not None:
        lead = len(axes) - len(bias.axes)
        for dim, axis in enumerate(bias.axes):
            if axis.size == axes[dim + lead].size:
                unify(axis, axes[dim + lead])
    return [(axes, Contract(left, right, labels, bias))]


@axis_rule("convolution")
def convolution(call: Call) -> list[Output]:
    """Contract channels; the window slides over the other axes."""
    image, weight, bias, groups = call["input"], call["weight"], call.get("bias"), call["groups"]
    window = _window(call, weight)
    out, into = ("k", "o") if call["transposed"] else ("o", "k")
    if groups == 1:
        labels = ("nk" + window, out + into + "." * len(window), "no" + window)
        axes, meaning = contract(image, weight, labels, call.shapes[0])[0]
    else:
        axes, meaning = _grouped(call, image, weight, groups, window)
    if bias is not None:
        unify(bias.axes[0], axes[1])
        meaning = replace(meaning, bias=bias)
    return [(axes, meaning)]


def _window(call: Call, weight: Value) -> str:
    """A label for every axis that the window slides over; one of size 1 takes each position as it is."""
    sizes = [axis.size for axis in weight.axes[2:]]
    still = [
        (size, *rest) == (1, 1, 0, 0)
        for size, *rest in zip(sizes, *(_spread(call[name], len(sizes)) for name in _MOVES), strict=True)
    ]
    return "".join(letter if is_still else "." for letter, is_still in zip("xyz", still, strict=False))


_MOVES = ("stride", "padding", "output_padding")


def _spread(numbers: Sequence[int], count: int) -> list[int]:
    return list(numbers) * count if len(numbers) == 1 else list(numbers)


def _grouped(call: Call, image: Value, weight: Value, groups: int, window: str) -> Output:
    """Channels are groups by channels of a group, on both sides."""
    channels, wide = image.axes[1], weight.axes[0]
    group, inner = factor(channels, [groups, channels.size // groups])
    if call["transposed"]:
        unify(channels, wide)
        axes = [image.axes[0], product_of([group, weight.axes[1]]), *fresh(call.shapes[0][2:])]
        labels = ("n(gk)" + "." * len(window), "(gk)o" + "." * len(window), "n(go)" + "." * len(window))
        return axes, Contract(image, weight, labels, None, (("g", group), ("k", inner), ("o", weight.axes[1])))
    unify(inner, weight.axes[1])
    group_out, inner_out = factor(wide, [groups, wide.size // groups])
    unify(group, group_out)
    labels = ("n(gk)" + "." * len(window), "(go)k" + "." * len(window), "n(go)" + "." * len(window))
    factors = (("g", group), ("k", inner), ("o", inner_out))
    return [image.axes[0], wide, *fresh(call.shapes[0][2:])], Contract(image, weight, labels, None, factors)


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
        return [([*value.axes[:dim], Axis(call.shapes[0][dim]), *value.axes[dim + 1 :]], Along((value,), (dim,)))]
    if call.node.name == "index":
        return _index_by_tensors(call, value)
    dim = call["dim"] % len(value.axes)
    axes = [
        axis if number != dim and axis.size == size else Axis(size)
        for number, (axis, size) in enumerate(zip(value.axes, call.shapes[0], strict=True))
    ]
    return [(axes, Along((value,), (dim,)))]


def _index_by_tensors(call: Call, value: Value) -> list[Output]:
    indices = list(call["indices"])
    indexed = [dim for dim, item in enumerate(indices) if item is not None]
    if len(indexed) == 1 and indexed[0] == 0 and indices[0].dtype is not torch.bool:
        return [([*_index_axes(indices[0]), *value.axes[1:]], Lookup(value, indices[0], 0))]
    rest = [axis for dim, axis in enumerate(value.axes) if dim not in indexed]
    together = indexed == list(range(indexed[0], indexed[-1] + 1))
    at = indexed[0] if together else 0
    picked = fresh(call.shapes[0][at : at + len(call.shapes[0]) - len(rest)])
    return [([*rest[:at], *picked, *rest[at:]], Along((value,), tuple(indexed)))]


def _index_axes(index: Value) -> list[Axis]:
    return list(index.axes)


def _add(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return left + right


def _average(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return (left + right) / 2


def _replace(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.arange(len(left)) % 2 == 0, left, right)


_SCATTERED: dict[str | None, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "amax": torch.maximum,
    "amin": torch.minimum,
    "sum": _add,
    "mean": _average,
    None: _replace,
}


@axis_rule("index_add", "index_copy", "scatter", "scatter_add", "scatter_reduce")
def scatter(call: Call) -> list[Output]:
    """Write or add positions of one tensor into another, along one dimension."""
    base, value = call.input, call.get("src", call.get("source", call.get("value")))
    how = "sum" if call.node.name in ("index_add", "scatter_add") else call.get("reduce")
    if not isinstance(value, Value) or how not in _SCATTERED:
        return opaque(call, f"operator {call.node.op} with this reduction has no rule")
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
    return [(list(base.axes), Scatter(base, value, (call["index"],), tuple(dims), tuple(dims), _SCATTERED[how]))]


@axis_rule("index_put", "_unsafe_index_put")
def index_put(call: Call) -> list[Output]:
    """Write or add rows picked by index tensors."""
    base, value, indices = call.input, call["values"], call["indices"]
    dims = [dim for dim, item in enumerate(indices) if item is not None]
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


_STATISTICS = {
    "sum": "sum",
    "mean": "mean",
    "var": "var",
    "std": "std",
    "var_mean": "var",
    "amax": "max",
    "amin": "max",
    "max": "max",
    "min": "max",
    "argmax": "any",
    "argmin": "any",
    "any": "max",
    "all": "max",
    "prod": "any",
    "logsumexp": "any",
    "linalg_vector_norm": "norm",
    "norm": "norm",
}


@axis_rule(*_STATISTICS)
def reduce(call: Call) -> list[Output]:
    """A statistic over dimensions."""
    if call.node.name in ("max", "min") and "other" in call.arguments:
        return pointwise(call)
    value, dims = call.input, call.dims()
    keepdim = bool(call.get("keepdim", False))
    axes = [Axis(1) if dim in dims else axis for dim, axis in enumerate(value.axes) if keepdim or dim not in dims]
    kinds = ["var", "mean"] if call.node.name == "var_mean" else [_STATISTICS[call.node.name]] * len(call.shapes)
    numbered = [_numbered(call, kind) for kind in kinds]
    return [(list(axes), Reduce(value, dims, kind, keepdim, number)) for kind, number in numbered]


def _numbered(call: Call, kind: str) -> tuple[str, float]:
    """The kind of a statistic with its number; an infinite norm is a maximum, one without power no sum."""
    if kind in ("var", "std"):
        return kind, float(call.get("correction", 1))
    number = float(call.get("ord", call.get("p", 2))) if kind == "norm" else 0.0
    return "max" if number == float("inf") else "any" if kind == "norm" and number <= 0 else kind, number


@axis_rule(
    "max_pool1d", "max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_avg_pool1d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact2d",
    "upsample_bilinear2d", "upsample_bicubic2d", "upsample_linear1d", "_upsample_bilinear2d_aa", "upsample_trilinear3d",
    "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d", "grid_sampler_2d",
)  # fmt: skip
def spatial(call: Call) -> list[Output]:
    """Mix positions of an image; batch and channels stay apart."""
    value = call.input
    rank = len(value.axes)
    window = tuple(dim for dim in range(rank) if dim >= 2 or value.axes[dim].size != call.shapes[0][dim])
    axes = [Axis(call.shapes[0][dim]) if dim in window else axis for dim, axis in enumerate(value.axes)]
    return [(list(axes), Along((value,), window)) for _ in call.shapes]


@axis_rule("constant_pad_nd")
def pad(call: Call) -> list[Output]:
    """Add positions at the ends of the last dimensions."""
    value, shape = call.input, call.shapes[0]
    window = tuple(dim for dim, axis in enumerate(value.axes) if axis.size != shape[dim])
    axes = [Axis(shape[dim]) if dim in window else axis for dim, axis in enumerate(value.axes)]
    return [(axes, Along((value,), window))]


@axis_rule(
    "cumsum",
    "cumprod",
    "flip",
    "roll",
    "sort",
    "argsort",
    "logcumsumexp",
    "cummax",
    "fft_fft",
    "_fft_r2c",
    "_fft_c2r",
    "_fft_c2c",
)
def along(call: Call) -> list[Output]:
    """Mix the positions of some dimensions."""
    value = call.input
    dims = call.dims(("dim", "dims"))
    return [
        ([Axis(size) if dim in dims else value.axes[dim] for dim, size in enumerate(shape)], Along((value,), dims))
        for shape in call.shapes
    ]


@axis_rule("topk")
def topk(call: Call) -> list[Output]:
    """Pick the largest positions of one dimension."""
    value, dim = call.input, call["dim"] % len(call.input.axes)
    axes = [Axis(size) if number == dim else value.axes[number] for number, size in enumerate(call.shapes[0])]
    return [(list(axes), Along((value,), (dim,))) for _ in call.shapes]
