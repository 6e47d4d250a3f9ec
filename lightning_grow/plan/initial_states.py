"""States that begin at 0, where the example shows one step only.

A constant 0 that is multiplied, summed or normalised is the first value of a state. With an example of two steps the
tape has the same operator again on what became of it, and that decides what its units may be; with one step the 0 says
nothing about the steps to come, so its new units count as unknown, and what is computed of it as no constant.

A 0 to which one thing is added after the other (the outputs of experts, of sublayers) is taken for the start of a sum.
A tape cannot tell it from a state, so a note says so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_grow.plan.laws import operator_laws
from lightning_grow.trace.axes import Axis, atoms
from lightning_grow.trace.meanings import Along, Create, Pointwise, Rearrange, Scatter
from lightning_grow.trace.tape import Node, Trace, Value, atoms_of

_DEPTH = 4  # how far back two rounds of a loop are compared


@dataclass(frozen=True)
class InitialStates:
    """What a tape does with states that begin at 0 and that it does not show again.

    Args:
        read: Node index -> the tensors among its arguments that are such a state, or made of one.
        atoms: The atoms of those states.
        next: What is computed of them in their own shape: any of it may be the state of the next step.
        sums: The shapes of those that are taken for the start of a sum.
        started: Node index -> the tensors among its arguments that are such a start: a 0 whatever its scale.
    """

    read: dict[int, frozenset[Value]]
    atoms: frozenset[Axis]
    next: frozenset[Value]
    sums: frozenset[tuple[int, ...]] = frozenset()
    started: dict[int, frozenset[Value]] = field(default_factory=dict)


def find_initial_states(trace: Trace, grows: Callable[[Axis], bool]) -> InitialStates:
    """Find the states of which the tape shows one step only.

    Args:
        trace: The target's tape.
        grows: Whether an atom has new units; only those of a state need care.

    >>> import torch
    >>> from lightning_grow.trace.tracer import trace
    >>> rnn = torch.nn.RNN(3, 4)
    >>> tapes = [trace(rnn, (torch.ones(steps, 1, 3),)) for steps in (1, 2)]
    >>> [len(find_initial_states(tape, lambda atom: atom.size == 4).read) for tape in tapes]
    [1, 0]
    """
    alike: dict[Any, list[Node]] = defaultdict(list)
    for node in reversed(trace.nodes):
        alike[node.op, node.path].append(node)  # those after a node, the next one last
    makers = {value: (node, number) for node in trace.nodes for number, value in enumerate(node.outputs)}
    roots: dict[Value, frozenset[Value]] = {}
    left: dict[Value, NDArray[np.bool_]] = {}  # where a value is still the 0, if not everywhere
    read: dict[int, frozenset[Value]] = {}
    started, parts = _find_started(trace)
    computed, sums = set[Value](), set[tuple[int, ...]]()
    seen = set[Value]()  # the states, and what the tape shows of what becomes of them
    for at, node in enumerate(trace.nodes):
        roots.update(
            {
                value: frozenset([value])
                for value in node.tensors()
                if value not in roots and _is_zero(value) and value not in parts and any(map(grows, atoms_of([value])))
            }
        )
        seen.update(roots.keys() & node.tensors())
        alike[node.op, node.path].pop()
        if isinstance(node.meaning[0], Create):  # takes a shape, not a content
            continue
        states = frozenset(value for value in node.tensors() if value in roots)
        if not _moves(node) and not seen.isdisjoint(node.tensors()):
            if _chooses(node):
                continue
            if any(_is_next(node, other, seen, makers) for other in reversed(alike[node.op, node.path])):
                seen.update(node.outputs)
                continue
        if not states:
            continue
        if at in started:
            sums.update(map(_shape, states if _begins_sum(node, trace, states) else ()))
            continue
        if not _moves(node) or states & computed:
            read[at] = states
            computed.update(node.outputs)
        if _moves(node) or all(value.constant is not None for value in node.outputs):
            held = [
                value
                for value, meaning in zip(node.outputs, node.meaning, strict=True)
                if _holds(meaning, value, left, roots)
            ]
            roots.update(dict.fromkeys(held, frozenset().union(*(roots[value] for value in states))))
            seen.update(held)
    first = {root for states in read.values() for value in states for root in roots[value]}
    return InitialStates(read, frozenset(atoms_of(first)), _next_states(trace, first), frozenset(sums), started)


def _next_states(trace: Trace, first: set[Value]) -> frozenset[Value]:
    """The values that depend on a state and have its shape, sizes of 1 aside."""
    shapes, computed = {_shape(value) for value in first}, set(first)
    for node in trace.nodes:
        if computed.intersection(node.tensors()):
            computed.update(node.outputs)
    return frozenset(value for value in computed - first if _shape(value) in shapes)


def _shape(value: Value) -> tuple[int, ...]:
    return tuple(axis.size for axis in value.axes if axis.size != 1)


def _is_zero(value: Value) -> bool:
    """Whether a value is a constant 0."""
    return value.constant is not None and value.dtype.is_floating_point and not value.constant.any()


def _find_started(trace: Trace) -> tuple[dict[int, frozenset[Value]], set[Value]]:
    """Where a 0 is the start of a sum, or positions of one are; and these positions."""
    started, parts = dict[int, frozenset[Value]](), set[Value]()
    for at, node in enumerate(trace.nodes):
        zeros = frozenset(value for value in node.tensors() if _is_zero(value))
        if _is_written_back(node, trace, zeros):
            parts.update(node.outputs)
        if zeros & parts or _begins_sum(node, trace, zeros):
            started[at] = zeros
    return started, parts


def _moves(node: Node) -> bool:
    """Whether a state only moves: what holds it is a state too."""
    return all(
        isinstance(item, Rearrange) or (isinstance(item, Along) and len(item.inputs) == 1) for item in node.meaning
    )


def _holds(meaning: Any, output: Value, left: dict[Value, NDArray[np.bool_]], roots: Collection[Value]) -> bool:
    """Whether anything of the 0 is left in what a move makes: a buffer that is filled part by part is no state."""
    if isinstance(meaning, Rearrange):
        entries = [left.get(value, np.full(value.shape, value in roots)) for value in meaning.inputs]
        left[output] = meaning.move(lambda axis: axis.size, *entries).astype(np.bool_)
    return output not in left or bool(left[output].any())


def _begins_sum(node: Node, trace: Trace, states: frozenset[Value]) -> bool:
    """Whether something is added to the 0, and something else to the result, at once."""
    at = [number for number, value in enumerate(node.tensors()) if value in states]
    if node.name != "add" or len(at) != 1 or len(node.tensors()) != 2:
        return False
    return any(
        (other.op, other.path) == (node.op, node.path)
        and len(other.tensors()) == 2
        and other.tensors()[at[0]] is node.outputs[0]
        for other in trace.nodes
    )


def _is_written_back(node: Node, trace: Trace, states: frozenset[Value]) -> bool:
    """Whether positions of the 0 are read where something is then written to it: they are added to."""
    if not states:
        return False
    read = [value for value in node.tensors() if value not in states]
    writes = [
        other for other in trace.nodes if isinstance(other.meaning[0], Scatter) and other.meaning[0].base in states
    ]
    return bool(read) and any(set(read).issubset(other.meaning[0].indices) for other in writes)


def _chooses(node: Node) -> bool:
    """Whether the 0 is a value to choose (a masked entry, a base that is written over), and no state."""
    if isinstance(node.meaning[0], Scatter):
        return True
    return isinstance(node.meaning[0], Pointwise) and operator_laws(node).chooses()


def _is_next(node: Node, other: Node, states: set[Value], makers: dict[Value, tuple[Node, int]]) -> bool:
    """Whether `other` does with a computed state what `node` does with the initial one."""
    ours, theirs = node.tensors(), other.tensors()
    if [ours.index(value) for value in ours] != [theirs.index(value) for value in theirs]:
        return False
    return all(
        later not in states and later.constant is None and _units(first) == _units(later)
        if first in states
        else _history(first, makers, _DEPTH) == _history(later, makers, _DEPTH)
        for first, later in zip(ours, theirs, strict=True)
    )


def _units(value: Value) -> list[list[Axis]]:
    return [[atom for atom in atoms(axis) if atom.size != 1] for axis in value.axes]


def _history(value: Value, makers: dict[Value, tuple[Node, int]], depth: int) -> Any:
    """How a value came about: the same in every round of a loop."""
    if value.name is not None or value not in makers or not depth:
        return value.name or value.input_index
    node, number = makers[value]
    return node.op, node.path, number, *(_history(item, makers, depth - 1) for item in node.tensors())
