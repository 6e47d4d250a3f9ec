"""Operators that move entries, look them up, mix positions, or that nothing is known of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from lightning_grow.plan.cells import Cell, Kind, filled, kept
from lightning_grow.plan.interpret.pointwise import combine, constant_cell
from lightning_grow.plan.interpret.probed import Probed
from lightning_grow.plan.interpret.state import State, is_random
from lightning_grow.trace.axes import Axis, atoms
from lightning_grow.trace.meanings import Along, Cells, Create, Lookup, Opaque, Rearrange, Scatter
from lightning_grow.trace.tape import Node, Value


def rearrange(state: State, node: Node, output: Value, meaning: Rearrange) -> Cells:
    """Entries move and are not changed."""
    if state.found is None and node.name == "expand":
        _expand_more(state, node, output, meaning.inputs[0])
    cells: Cells = meaning.move(state.layout.count, *[state.of(value) for value in meaning.inputs])
    return cells


def _expand_more(state: State, node: Node, output: Value, value: Value) -> None:
    """Where the source has one copy and needs no expansion, it is the value before it."""
    twin = state.twins.twin.get(value)
    if twin is None or len(value.axes) != len(output.axes):
        return
    for dim, (old, new) in enumerate(zip(twin.axes, output.axes, strict=True)):
        state.pairing.pair(old, new, f"the output of {node.place} axis {dim}")
    state.twins.twin[output] = twin


def create(state: State, node: Node, output: Value, meaning: Create) -> Cells:
    """A tensor made of what is not known, or random: the source's own where both models draw alike."""
    if state.found is not None and is_random(node) and state.draws_alike:
        return state.filled(output, lambda _: kept())
    return state.filled(output, lambda _: Cell(Kind.NEW, origin=f"{node.place}"))


def opaque(state: State, node: Node, output: Value, meaning: Opaque) -> Cells:
    """An operator without a rule is kept where nothing that it meets grows."""
    growing = [a for value in node.tensors() for axis in value.axes for a in atoms(axis) if state.pairing.grows(a)]
    if growing or state.found is None:
        raise state.fail(
            f"{meaning.reason}, in {node.where}, and meets {state.describe(growing)}. Declare what it does with "
            "@axis_rule, or keep this size as it is.",
            growing,
        )
    for value in node.tensors():
        for cell in state.of(value).flat:
            state.unscaled(cell, node)
    return state.filled(output, lambda _: kept())


def lookup(state: State, node: Node, output: Value, meaning: Lookup) -> Cells:
    """Rows of a table: the example's indices are the source's, so are the rows."""
    table, index = state.of(meaning.table), state.of(meaning.index)
    if any(cell.kind is not Kind.KEPT for cell in index.flat):
        raise state.fail(f"{node.place} is indexed by new entries; keep what it indexes by as it is.")
    slots = state.layout.slots(meaning.table.axes[meaning.dim])
    row = next((number for number, slot in enumerate(slots) if not slot.is_new), 0)
    rows = table[(*[slice(None)] * meaning.dim, row, ...)]  # an array, even of a table without columns
    return _unmatched_is_new(state, node, np.broadcast_to(rows, [*index.shape, *rows.shape]))


def along(state: State, node: Node, output: Value, meaning: Along) -> Cells:
    """Positions of some dimensions are mixed, all others treated alike; the mixed ones may not grow."""
    keep_positions(state, node, [meaning.inputs[0].axes[dim] for dim in meaning.dims])
    cells, shape = state.of(meaning.inputs[0]), state.shape(output)
    for dim in meaning.dims:
        cells = cells.take([0], axis=dim)
    if cells.ndim != len(shape):  # indexing by tensors changes the rank
        kept_dims = [size for dim, size in enumerate(cells.shape) if dim not in meaning.dims]
        lead = [1] * (len(shape) - len(kept_dims))
        at = meaning.dims[0] if meaning.dims == tuple(range(meaning.dims[0], meaning.dims[-1] + 1)) else 0
        cells = cells.reshape([*kept_dims[:at], *lead, *kept_dims[at:]])
    cells = _unmatched_is_new(state, node, np.broadcast_to(cells, shape))
    return filled(shape, lambda index: replace(cells[index], direct=False))


def scatter(state: State, node: Node, output: Value, meaning: Scatter) -> Cells:
    """Positions of one tensor are written or added to those of another; all other dimensions are treated alike."""
    keep_positions(state, node, [meaning.base.axes[dim] for dim in meaning.dims])
    keep_positions(state, node, [meaning.value.axes[dim] for dim in meaning.inner])
    for item in meaning.indices:
        fixed = item.constant is not None and constant_cell(state, node, item) is None
        if not fixed and any(cell.kind is not Kind.KEPT for cell in state.of(item).flat):
            raise state.fail(f"{node.place} is indexed by new entries; keep what it indexes by as it is.")
    base, value = state.of(meaning.base), state.of(meaning.value)
    for dim in meaning.inner:
        value = value.take([0], axis=dim)
    if meaning.inner != meaning.dims:  # an index tensor of its own rank: both are in one run, from the same dimension
        rest, at = value.shape[: meaning.dims[0]], meaning.dims[0] + len(meaning.inner)
        value = value.reshape([*rest, *[1] * len(meaning.dims), *value.shape[at:]])
    for dim in meaning.dims:
        base = base.take([0], axis=dim)
    shape, grid, combined = state.shape(output), state.layout.grid(output.axes), meaning.function
    arrays, function = [base, value], Probed(lambda inputs: combined(*inputs), 2, combined)
    if meaning.base.constant is not None and not meaning.base.constant.any():
        onto_zeros = lambda inputs: combined(inputs[0] * 0, inputs[0])  # noqa: E731
        arrays, function = [value], Probed(onto_zeros, 1, (combined, "onto zeros"))
    arrays = [np.broadcast_to(cells, shape) for cells in arrays]

    def make(index: tuple[int, ...]) -> Cell:
        slots = [along[number] for along, number in zip(grid, index, strict=True)]
        return combine(state, node, function, [cells[index] for cells in arrays], slots, set())

    return filled(shape, make)


def keep_positions(state: State, node: Node, axes: Iterable[Axis]) -> None:
    """Refuse to grow axes along which an operator goes by position."""
    growing = [atom for axis in axes for atom in _grown(state, axis)]
    if growing:
        raise state.fail(
            f"{node.place} goes by position along {state.describe(growing)}: new units would move the "
            "others. Keep this size as it is.",
            growing,
        )


def _grown(state: State, axis: Axis) -> list[Axis]:
    return [atom for atom in atoms(axis) if state.pairing.old_size(atom) and state.pairing.grows(atom)]


def _unmatched_is_new(state: State, node: Node, cells: Cells) -> Cells:
    """Without the source's node a kept cell is no longer known to be the source's."""
    if state.found is not None or all(cell.kind is not Kind.KEPT for cell in cells.flat):
        return cells
    new = Cell(Kind.NEW, origin=state.why_unmatched(node))
    return filled(cells.shape, lambda index: new if cells[index].kind is Kind.KEPT else cells[index])
