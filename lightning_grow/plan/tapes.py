"""What a run asks of a tape as a whole."""

from __future__ import annotations

from lightning_grow.trace.meanings import Lookup
from lightning_grow.trace.tape import Trace, Value, is_random


def first_uses(trace: Trace) -> dict[str, int]:
    """The first operator that each parameter or buffer goes into."""
    uses: dict[str, int] = {}
    for number, node in enumerate(trace.nodes):
        for value in node.tensors():
            if value.name is not None:
                uses.setdefault(value.name, number)
    return uses


def draws(trace: Trace) -> list[object]:
    """What is drawn, in order: under one seed the same draws give the same numbers."""
    random = [node for node in trace.nodes if is_random(node)]
    return [(node.op, [[axis.size for axis in value.axes] for value in node.outputs]) for node in random]


def weights(trace: Trace) -> set[Value]:
    """The values that are parameters, or made of parameters, buffers and constants."""
    found = {value for value in trace.tensors.values() if value.trained}
    for node in trace.nodes:
        meaning = node.meaning[0]
        by_index = isinstance(meaning, Lookup) and meaning.gives_matrices
        values = [meaning.table] if by_index else node.tensors()
        given = [value for value in values if value.constant is None and (value.trained or value.name is None)]
        if given and found.issuperset(given):
            found.update(node.outputs)
    return found
