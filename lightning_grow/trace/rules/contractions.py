"""Rules of sums of products: matrices and convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lightning_grow.trace.axes import Axis, factor, product_of, unify
from lightning_grow.trace.meanings import Contract
from lightning_grow.trace.table import Call, Output, axis_rule, fresh, opaque
from lightning_grow.trace.tape import Value


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


@axis_rule("_grouped_mm", "transformers::grouped_mm_fallback")
def grouped_matmul(call: Call) -> list[Output]:
    """Rows by the matrix of their expert; the offsets say whose rows they are."""
    rows, experts, offsets, *_ = call.node.tensors()
    if (len(rows.axes), len(experts.axes)) != (2, 3):
        return opaque(call, f"operator {call.node.op} of these ranks has no rule")
    axes, meaning = contract(rows, experts, ("sk", ".kn", "sn"), call.shapes[0], call.get("bias"))[0]
    return [(axes, replace(meaning, routes=(offsets,)))]


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
