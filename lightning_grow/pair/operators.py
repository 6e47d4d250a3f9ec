"""The source's operators by what they take, and which values are computed twice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from lightning_grow.trace.tape import VIEWS, Node, Trace, Value, is_empty, is_random, numbers


class Operators:
    """What a source's tape offers to an operator of the target's.

    Args:
        source: The source's tape.

    Attributes:
        concatenations: Its concatenations.
        again: Its values that are computed again -> the first one computed in the same way of the same values.
    """

    def __init__(self, source: Trace) -> None:
        self.again = computed_again(source)
        self.concatenations = [node for node in source.nodes if node.name == "cat"]
        self._by_key: dict[Any, list[Node]] = defaultdict(list)
        for node in source.nodes:
            if not any(value in self.again for value in node.outputs):
                self._by_key[key(node, self.first)].append(node)

    def first(self, value: Value) -> Value:
        """The value that stands for all that are computed in the same way of the same."""
        return self.again.get(value, value)

    def like(self, wanted: Any) -> list[Node]:
        """The operators of one `key`, in order."""
        return self._by_key.get(wanted, [])


def key(node: Node, match: Callable[[Value], Value | None]) -> Any:
    """The operator's name, and the source's values that it takes."""
    name = "view" if node.name in VIEWS else node.name
    tensors = ("constant" if value.constant is not None else id(match(value)) for value in node.tensors())
    return (name, len(node.outputs), *tensors)


def computed_again(tape: Trace) -> dict[Value, Value]:
    """Values that are computed again -> the first one computed in the same way of the same values."""
    first: dict[Value, Value] = {}
    known: dict[Any, Node] = {}
    for node in tape.nodes:
        if is_random(node) or is_empty(node.op) or not node.tensors():
            continue
        way = node.op, node.through, repr(numbers(node)), *(id(first.get(value, value)) for value in node.tensors())
        earlier = known.setdefault(way, node)
        if earlier is not node:
            first.update(zip(node.outputs, earlier.outputs, strict=True))
    return first
