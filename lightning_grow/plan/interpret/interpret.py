"""Run the target's tape on cells: find what must be 0, a mean, or scaled for the outputs to be the source's.

Everything new starts free. Where an operator lets a free cell reach a kept one (a sum over units, a residual
addition, a norm's statistic), the parameter cells behind it are set to 0, or to the mean that a LayerNorm wants, and
the tape is run again from the first operator that uses them. What no parameter can mend is recorded as a failure.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np

from lightning_grow.pair.alignment import Alignment
from lightning_grow.pair.arguments import find_difference
from lightning_grow.pair.twins import same_constant
from lightning_grow.plan.cells import LOST, Cell, Kind, filled
from lightning_grow.plan.interpret.contract import contract
from lightning_grow.plan.interpret.decisions import Choice, Commit, Decisions, Failure, Lost
from lightning_grow.plan.interpret.initial_states import find_initial_states
from lightning_grow.plan.interpret.move import along, create, keep_positions, lookup, opaque, rearrange, scatter
from lightning_grow.plan.interpret.pointwise import constant_cell, pointwise
from lightning_grow.plan.interpret.state import State, is_random, number_variable
from lightning_grow.plan.interpret.statistics import reduce
from lightning_grow.plan.scale import Equation
from lightning_grow.trace.axes import Axis, atoms
from lightning_grow.trace.meanings import (
    Along,
    Cells,
    Contract,
    Create,
    Lookup,
    Opaque,
    Pointwise,
    Rearrange,
    Reduce,
    Scatter,
)
from lightning_grow.trace.tape import Node, Value

__all__ = ["Choice", "Decisions", "Failure", "State", "find_initial_states", "interpret", "number_variable"]

_HANDLERS: dict[type, Callable[[State, Node, Value, Any], Cells]] = {
    Along: along,
    Contract: contract,
    Create: create,
    Lookup: lookup,
    Opaque: opaque,
    Pointwise: pointwise,
    Rearrange: rearrange,
    Reduce: reduce,
    Scatter: scatter,
}


def interpret(both: Alignment, choice: Choice) -> State:
    """Interpret the target's tape until no decision is open, then compare the outputs.

    Args:
        both: Source and target, traced and paired.
        choice: What is fixed for this run.

    Returns:
        The decisions, the equations that scales have to meet, and the failures.
    """
    state = State(both, choice)
    while True:
        try:
            while state.at < len(state.target.nodes):
                _step(state, state.target.nodes[state.at])
                state.at += 1
            _compare_outputs(state)
            return state
        except Commit as commit:
            state.commit(commit)


def _step(state: State, node: Node) -> None:
    """Find the source's node for this one, pair their axes, and work out the cells of the outputs."""
    if state.at not in state.initial_states.read and all(value.constant is not None for value in node.outputs):
        return
    state.difference = ""
    state.found = state.twins.find(state.at, node, lambda candidate: _fits(state, candidate, node))
    try:
        _match_axes(state, node)
        matched = True
    except Lost:
        matched = False
    for number, (output, meaning) in enumerate(zip(node.outputs, node.meaning, strict=True)):
        state.twins.twin[output] = state.found.outputs[number] if state.found else None
        try:
            if not matched:
                raise Lost
            handler = create if is_random(node) and not state.draws_alike else _HANDLERS[type(meaning)]
            cells = handler(state, node, output, meaning)
            _keep_what_is_made(state, node)
            if state.found is None and state.difference:
                cells = _not_the_sources(cells, state.difference)
            lost = any(cell.kind is Kind.LOST for cell in cells.flat)
        except Lost:
            lost = True
        except (ValueError, IndexError, StopIteration) as error:  # an axis that nothing explains
            lost = True
            with contextlib.suppress(Lost):
                raise state.fail(
                    f"{node.place} cannot be followed ({type(error).__name__}: {error}). Keep its arguments and sizes "
                    "as they are; report this model if they are.",
                    parted=True,
                ) from error
        state.cells[output] = state.filled(output, lambda _: LOST) if lost else cells
        for cell in state.cells[output].flat if output in state.initial_states.next else ():
            state.unscaled(cell, node)


def _begins_alike(state: State, node: Node, value: Value) -> bool:
    """Whether a constant along an axis that nothing names begins with the source's content."""
    if state.found is None or value.constant is None:
        return True
    old = state.found.tensors()[node.tensors().index(value)].constant
    nameless = any(not state.pairing.old_size(atom) for axis in value.axes for atom in atoms(axis))
    if old is None or not nameless or old.dim() != value.constant.dim():
        return False
    return same_constant(old, value.constant[tuple(slice(0, size) for size in old.shape)])


def _not_the_sources(cells: Cells, difference: str) -> Cells:
    other = Cell(Kind.NEW, origin=difference)
    return filled(cells.shape, lambda index: other if cells[index].kind is Kind.KEPT else cells[index])


def _match_axes(state: State, node: Node) -> None:
    """Pair the axes of the outputs, and compare the constants."""
    if state.found is None:
        if state.difference:
            state.why_unmatched(node)
        return
    before = len(state.pairing.refusals(repeated=True))
    for old, new in zip(state.found.outputs, node.outputs, strict=True):
        for dim, (one, other) in enumerate(zip(old.axes, new.axes, strict=True)):
            state.pairing.pair(one, other, f"the output of {node.place} axis {dim}")
    _pair_constants(state, node, state.found)
    for reason in state.pairing.refusals(repeated=True)[before:]:
        raise state.fail(reason, parted=True)
    for value in node.tensors() if not isinstance(node.meaning[0], Pointwise) else ():
        if not _begins_alike(state, node, value) and constant_cell(state, node, value) is not None:
            raise state.fail(f"a constant used by {node.place} has other values than in the source.", parted=True)


def _keep_what_is_made(state: State, node: Node) -> None:
    """What an operator makes without an input that has it may not grow."""
    if state.found is None:
        return
    made = () if isinstance(node.meaning[0], (Rearrange, Create, Opaque)) else node.outputs
    given = {atom for value in node.tensors() for axis in value.axes for atom in atoms(axis)}
    for old, new in zip(state.found.outputs, made, strict=False):
        keep_positions(state, node, [axis for axis in new.axes if axis.size != 1 and given.isdisjoint(atoms(axis))])
        _same_sizes(state, node, old, new, given)


def _same_sizes(state: State, node: Node, old: Value, new: Value, given: set[Axis]) -> None:
    """An axis that no input has is as long as the source's, whether anything names it or not."""
    for dim, (one, other) in enumerate(zip(old.axes, new.axes, strict=True)):
        if one.size != other.size and given.isdisjoint(atoms(other)):
            raise state.fail(
                f"{node.place} makes {other.size} positions along axis {dim}, the source {one.size}, and nothing says "
                "which of them are the source's. Keep this size as it is.",
                parted=True,
            )


def _pair_constants(state: State, node: Node, found: Node) -> None:
    """The axes of a constant that nothing else has paired, where both models have the same size."""
    for old, new in zip(found.tensors(), node.tensors(), strict=True):
        for one, other in zip(old.axes, new.axes, strict=False) if new.constant is not None else ():
            if one.size == other.size and not any(state.pairing.old_size(atom) for atom in atoms(other)):
                state.pairing.pair(one, other, f"a constant of {node.place}")


def _fits(state: State, candidate: Node, node: Node) -> bool:
    """Whether the candidate has the node's arguments, and its outputs the rank; larger only along inputs with names."""

    def fit(old: Axis, new: Axis) -> bool:
        return old.size <= new.size or any(atom in state.pairing.named for atom in atoms(new))

    difference = find_difference(candidate, node, state.pairing.old_length)
    state.difference = state.difference or difference
    return not difference and all(
        len(old.axes) == len(new.axes) and all(map(fit, old.axes, new.axes)) and _is_of_kind(old, new)
        for old, new in zip(candidate.outputs, node.outputs, strict=True)
    )


def _is_of_kind(old: Value, new: Value) -> bool:
    """Whether both are of one type, the width of floats aside."""
    return old.dtype == new.dtype or (old.dtype.is_floating_point and new.dtype.is_floating_point)


def _compare_outputs(state: State) -> None:
    old, new = state.source.outputs, state.target.outputs
    if len(old) != len(new):
        state.fail(
            f"the source returns {len(old)} tensors, the target {len(new)}; pass forward= a callable that returns the "
            "same from both.",
            parted=True,
        )
        return
    for number, (before, after) in enumerate(zip(old, new, strict=True)):
        _compare_output(state, number, before, after)


def _compare_output(state: State, number: int, old: Value, new: Value) -> None:
    """Every kept cell must be the source's own, unscaled."""
    if new.constant is not None or any(cell.kind is Kind.LOST for cell in state.of(new).flat):
        return
    grid = state.layout.grid(new.axes)
    for index in np.ndindex(state.of(new).shape):
        cell: Cell = state.of(new)[index]
        if any(slots[position].is_new for slots, position in zip(grid, index, strict=True)):
            continue
        if cell.kind is Kind.NEW:
            state.part(cell.origin or "new entries")
            return
        if cell.kind is Kind.KEPT:
            state.equations.append(Equation(cell.scale, f"output {number}", state.at))
    if state.twins.twin.get(new) is not old and not state.failures:
        state.part(state.parted[min(state.parted)] if state.parted else f"output {number} differently")
    elif not state.failures:
        for dim, (one, other) in enumerate(zip(old.axes, new.axes, strict=True)):
            named = any(atom in state.pairing.named for atom in atoms(other))
            nameless = one.size != other.size and _ends(state).isdisjoint(atoms(other))
            if nameless or (state.pairing.old_length(other) != one.size and not named):
                origin = f"{other.size} positions along axis {dim} of output {number}, where the source has {one.size}"
                state.part(origin)


def _ends(state: State) -> set[Axis]:
    """The atoms that parameters, buffers and inputs name: only these can grow in an output."""
    values = [*state.target.tensors.values(), *state.target.inputs]
    return {atom for value in values for axis in value.axes for atom in atoms(axis)}
