"""What of a tape counts, and the axes of all that does.

An operator whose result reaches no output decides nothing, and must not cut an axis either. Only where a parameter has
no other use it says what that parameter's axes are.
"""

from __future__ import annotations

from collections.abc import Iterable

from lightning_grow.trace.table import apply_rule
from lightning_grow.trace.tape import Node, Trace, Value


def give_axes(trace: Trace) -> None:
    """Drop what does not count, and let each operator say what it does with its axes.

    >>> import torch
    >>> from lightning_grow.trace.tracer import trace
    >>> class Model(torch.nn.Linear):
    ...     def forward(self, x):
    ...         x.exp()
    ...         return super().forward(x)
    >>> [node.name for node in trace(Model(2, 3), torch.ones(1, 2)).nodes]
    ['t', 'addmm']
    """
    trace.nodes = _live(trace)
    for node in trace.nodes:
        axes, node.meaning = apply_rule(node)
        for value, its_axes in zip(node.outputs, axes, strict=True):
            value.axes = its_axes


def _live(trace: Trace) -> list[Node]:
    kept = _behind(trace.nodes, trace.outputs.values())
    used = {value for node in kept for value in node.tensors()}
    only = {value for value in trace.tensors.values() if value.trained and value not in used}
    made = set(only)
    for node in trace.nodes if only else ():
        if not made.isdisjoint(node.tensors()):
            made.update(node.outputs)
    kept = _behind(trace.nodes, [*trace.outputs.values(), *made]) if made != only else kept
    return [node for node in trace.nodes if node in kept]


def _behind(nodes: list[Node], wanted: Iterable[Value]) -> set[Node]:
    """The operators that values are made by."""
    needed, kept = set(wanted), set[Node]()
    for node in reversed(nodes):
        if not needed.isdisjoint(node.outputs):
            kept.add(node)
            needed.update(node.tensors())
    return kept
