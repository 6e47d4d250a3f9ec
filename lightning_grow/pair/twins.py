"""Which value of the target's tape is which value of the source's: the same operator on the same inputs.

Matching by data and not by position in the program lets the target have layers that the source does not have.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_grow.trace.tape import VIEWS, Node, Trace, Value

Key = tuple[Any, ...]


class Twins:
    """The source values of target values, found node by node in the order of the target's tape."""

    def __init__(self, source: Trace, target: Trace, renamed: dict[str, str]) -> None:
        self.source, self.target = source, target
        self.twin: dict[Value, Value | None] = {}
        self.keys: dict[int, Key] = {}
        self.index: dict[Key, list[Node]] = defaultdict(list)
        self.renamed = renamed
        for node in source.nodes:
            self.index[self._key(node, lambda value: value)].append(node)
        for name, old_name in renamed.items():
            self.twin.setdefault(target.tensors[name], source.tensors[old_name])
        for old, new in zip(source.inputs, target.inputs, strict=False):
            self.twin[new] = old

    def _key(self, node: Node, twin: Callable[[Value], Value | None]) -> Key:
        def describe(value: Value) -> int | str:
            if value.constant is not None:
                return "constant"
            return id(twin(value))

        name = "view" if node.name in VIEWS else node.name
        return (name, len(node.outputs), *map(describe, node.tensors()))

    def knows(self, node: Node) -> bool:
        """Whether every input has a twin or is a constant."""
        return all(value.constant is not None or self.twin.get(value) is not None for value in node.tensors())

    def find(self, number: int, node: Node, fits: Callable[[Node], bool]) -> Node | None:
        """The source's node for node `number` of the target, or None.

        Args:
            number: The node's index on the target's tape.
            node: The node.
            fits: Whether a candidate's constants and axes agree.
        """
        self.keys.pop(number, None)
        if not self.knows(node):
            return None
        key = self._key(node, self.twin.get)
        candidates = self.index.get(key, [])
        rank = sum(other == key for earlier, other in self.keys.items() if earlier < number)
        self.keys[number] = key
        numbers = _numbers(node)

        def unlikeness(item: tuple[int, Node]) -> tuple[bool, bool, int]:
            position, candidate = item
            return candidate.path != self._path(node.path), _numbers(candidate) != numbers, abs(position - rank)

        for _, candidate in sorted(enumerate(candidates), key=unlikeness):
            if fits(candidate):
                return candidate
        return None

    def alternatives(self, node: Node) -> list[Node]:
        """What the source does with the same inputs, for messages."""
        wanted = {id(self.twin.get(value)) for value in node.tensors() if self.twin.get(value) is not None}
        return [item for item in self.source.nodes if wanted & {id(value) for value in item.tensors()}]

    def _path(self, path: str) -> str:
        """The source's name of a target module."""
        for new, old in self.renamed.items():
            if new.startswith(path + "."):
                extra = new[len(path) :]
                if old.endswith(extra):
                    return old[: -len(extra)]
        return path


def _numbers(node: Node) -> list[Any]:
    return [leaf for leaf in tree_leaves(list(node.arguments.values())) if not isinstance(leaf, (Value, Tensor))]


def same_constant(first: Tensor | None, second: Tensor | None) -> bool:
    """Whether two contents are equal, NaN included."""
    if first is None or second is None or first.shape != second.shape:
        return first is second
    return bool(torch.equal(torch.nan_to_num(first), torch.nan_to_num(second)))
