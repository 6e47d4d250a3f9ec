"""Which entries of which value stand where: what is taken apart and put together again is the value that it was."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_grow.trace.nested import mapped
from lightning_grow.trace.tape import TRANSPARENT, VIEWS, Node, Value

_MOVES = {*VIEWS, *TRANSPARENT, "permute", "transpose", "t", "movedim", "select", "slice", "narrow", "split"}
_MOVES |= {"split_with_sizes", "unbind", "expand", "repeat", "cat", "stack", "roll", "flip"}


def only_moves(node: Node) -> bool:
    """Whether every entry of what an operator gives is one of those that it takes."""
    return node.name in _MOVES and node.through is None and not any(v.constant is not None for v in node.tensors())


def moved(node: Node, entries: Sequence[Tensor]) -> list[Tensor]:
    """What an operator that only moves makes of numbers in place of entries."""
    if node.name in VIEWS:
        return [entries[0].reshape(node.outputs[0].shape)]
    given = iter(entries)
    arguments = mapped(lambda leaf: next(given) if isinstance(leaf, Value) else leaf, node.arguments)
    result = node.op(**arguments)
    return [result] if isinstance(result, Tensor) else list(result)


def key(numbers: Tensor) -> tuple[torch.Size, bytes]:
    """The same for two values of one shape with the same entries in the same places."""
    return numbers.shape, numbers.numpy().tobytes()
