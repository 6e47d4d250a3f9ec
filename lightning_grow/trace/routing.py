"""Routing: a forward that picks rows by a mask of its own making, and asks whether there are any.

Which rows an expert gets is data; what it does with them is not. So on a tape every row goes to every expert, and a
forward that asks whether there is anything to do is told yes. Told no, it must do the same but for what is written into
its results by position: then one tape shows all there is, whatever the weights are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_grow.trace.tape import Node, Trace, Value, numbers

MASKED = ("index", "index_put", "_unsafe_index_put")


def has_mask(indices: Sequence[Any]) -> bool:
    """Whether a tensor is indexed by a mask."""
    return any(isinstance(item, Tensor) and item.dtype in (torch.bool, torch.uint8) for item in indices)


def filled_by_mask(name: str, args: Sequence[Any]) -> Tensor | None:
    """The mask, in the shape of the last dimensions, where an operator writes one entry to all its positions."""
    if name != "index_put" or args[2].dim() or args[3:] not in ((), [], (False,), [False]):
        return None
    before = next((dim for dim, item in enumerate(args[1]) if item is not None), 0)
    if len(args[1]) != before + 1 or args[1][before].dtype is not torch.bool:
        return None
    mask: Tensor = args[1][before]
    return mask.reshape([*mask.shape, *[1] * (args[0].dim() - before - mask.dim())])


def routed_positions(mask: Value) -> Tensor | None:
    """The positions of a mask: of a constant its own; all of one that weights decide; None where only data can tell."""
    if mask.constant is not None:
        return mask.constant.nonzero()
    return torch.ones(mask.shape).nonzero() if mask.learned else None


def shows_all(shown: Trace, other: Trace) -> bool:
    """Whether a tape holds all that another does, and beyond that only writes by position into the same results.

    Args:
        shown: The tape with more operators.
        other: The one that was told that there is nothing to do.
    """
    becomes: dict[Value, Value] = dict(zip(other.inputs, shown.inputs, strict=True))
    becomes.update({value: shown.tensors[name] for name, value in other.tensors.items()})
    below: dict[Value, Value] = {}  # what is written into -> what it was before

    def lowest(value: Value) -> Value:
        while value in below:
            value = below[value]
        return value

    def is_same(ours: Node, theirs: Node) -> bool:
        if (ours.op, ours.path, ours.shapes) != (theirs.op, theirs.path, theirs.shapes):
            return False
        if numbers(ours) != numbers(theirs):
            return False
        pairs = zip(ours.tensors(), theirs.tensors(), strict=True)
        return all(
            _equal(mine, its) if mine.constant is not None else lowest(mine) is lowest(becomes.get(its, its))
            for mine, its in pairs
        )

    waiting = iter(other.nodes)
    wanted = next(waiting, None)
    for node in shown.nodes:
        if wanted is not None and is_same(node, wanted):
            becomes.update(zip(wanted.outputs, node.outputs, strict=True))
            wanted = next(waiting, None)
        elif _adds(node):
            below[node.outputs[0]] = node.tensors()[0]
    ends = zip(shown.outputs.values(), other.outputs.values(), strict=False)
    return wanted is None and all(
        lowest(mine) is lowest(becomes.get(its, its)) or _equal(mine, its) for mine, its in ends
    )


def _adds(node: Node) -> bool:
    """Whether an operator gives its first tensor with something written or added to it."""
    return node.name in ("index_put", "index_add", "index_copy", "scatter_add", "add") and (
        node.tensors()[0].shape == node.outputs[0].shape
    )


def _equal(first: Value, second: Value) -> bool:
    if first.constant is None or second.constant is None:
        return first is second
    return first.constant.shape == second.constant.shape and bool(torch.equal(first.constant, second.constant))
