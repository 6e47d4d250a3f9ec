"""The way from every tensor to the operator that a growth cannot pass."""

from __future__ import annotations

from lightning_grow.plan.run import Run
from lightning_grow.trace.tape import Node, Trace, Value


def find_ways(tape: Trace, stuck: Run) -> dict[str, tuple[str, ...]]:
    """The operators from each tensor to the first one that fails, both ends included; no entry where there is no way.

    Args:
        tape: The target's tape.
        stuck: A run with failures.
    """
    waiting = tape.nodes[stuck.first_failure :][:1] or _last(tape)
    towards: dict[Node, Node | None] = dict.fromkeys(waiting)
    first: dict[str, Node] = {}
    for node in waiting:
        for value in node.tensors():
            if value.name is not None:
                first.setdefault(value.name, node)
            maker = tape.makers.get(value)
            if maker is not None and maker not in towards:
                towards[maker] = node
                waiting.append(maker)
    return {name: _follow(node, towards) for name, node in first.items()}


def _last(tape: Trace) -> list[Node]:
    """The operators that make the outputs."""
    ends: list[Value] = list(tape.outputs.values())
    return list(dict.fromkeys(tape.makers[value] for value in ends if value in tape.makers))


def _follow(node: Node | None, towards: dict[Node, Node | None]) -> tuple[str, ...]:
    places = []
    while node is not None:
        places.append(node.place)
        node = towards[node]
    return tuple(dict.fromkeys(places))
