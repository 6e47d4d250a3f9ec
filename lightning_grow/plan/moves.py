"""Operators that move entries, look them up, mix positions, or that nothing is known of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lightning_grow.pair.entries import only_moves
from lightning_grow.plan.cells import Cell, Kind, filled, kept, members
from lightning_grow.plan.laws import Laws
from lightning_grow.plan.mixing import keep_index, mixed
from lightning_grow.plan.pointwise import combine
from lightning_grow.plan.run import Run
from lightning_grow.plan.step import NotKept
from lightning_grow.trace.axes import atoms
from lightning_grow.trace.meanings import Along, Cells, Create, Lookup, Opaque, Rearrange, Scatter
from lightning_grow.trace.tape import Node, Value, is_empty, is_random


def rearrange(run: Run, node: Node, output: Value, meaning: Rearrange) -> Cells:
    """Entries move and are not changed."""
    if run.step.source is None and node.name in ("expand", "cat") and output not in run.match.values:
        _show_more(run, node, output, meaning)
    return meaning.move(run.layout.count, *[run.of(value) for value in meaning.inputs])


def _show_more(run: Run, node: Node, output: Value, meaning: Rearrange) -> None:
    """Where the source has one copy or one part, and so no expansion or concatenation, it is the value before it."""
    known = [value for value in meaning.inputs if run.match.entries(value) is not None]
    if len(known) != 1 or any(value.constant is not None for value in meaning.inputs):
        return
    value, source = known[0], run.match.values.get(known[0])
    if source is None or len(value.axes) != len(output.axes):
        return
    for dim, (old, new) in enumerate(zip(source.axes, output.axes, strict=True)):
        run.match.pair(old, new, f"the output of {node.place} axis {dim}")
    run.match.pass_on(value, output)


def create(run: Run, node: Node, output: Value, meaning: Create) -> Cells:
    """Random numbers are the source's own where both draw alike; what is left empty is written before it is read."""
    known = run.step.source is not None and (is_empty(node.op) or (is_random(node) and run.draws_alike))
    cell = kept() if known else Cell(Kind.NEW, origin=node.place)
    return run.layout.each_cell(output.axes, lambda *_: cell)


def opaque(run: Run, node: Node, output: Value, meaning: Opaque) -> Cells:
    """An operator without a rule is kept where nothing that it meets grows."""
    growing = [a for value in node.tensors() for axis in value.axes for a in atoms(axis) if run.match.grows(a)]
    if growing or run.step.source is None:
        raise NotKept(
            f"{meaning.reason}, in {node.where}, and meets {run.describe(growing)}. Declare what it does with "
            "@axis_rule, or keep this size as it is.",
            growing,
        )
    for value in node.tensors():
        run.unscaled(members(run.of(value)), node)
    return run.layout.each_cell(output.axes, lambda *_: kept())


def lookup(run: Run, node: Node, output: Value, meaning: Lookup) -> Cells:
    """Rows of a table: the example's indices are the source's, so are the rows."""
    table, index = run.of(meaning.table), run.of(meaning.index)
    keep_index(run, node, meaning.index)
    slots = run.layout.slots(meaning.table.axes[meaning.dim])
    row = next((number for number, slot in enumerate(slots) if not slot.is_new), 0)
    rows = table.take([row], axis=meaning.dim).squeeze(axis=meaning.dim)
    return _new_without_source(run, np.broadcast_to(rows, [*index.shape, *rows.shape]))


def along(run: Run, node: Node, output: Value, meaning: Along) -> Cells:
    """Positions of some dimensions are mixed, all others treated alike; the mixed ones may not grow."""
    value, *by = meaning.inputs
    run.keep_positions(node, [value.axes[dim] for dim in meaning.dims])
    for index in by:
        if index.constant is None and node.name != "gather":
            keep_index(run, node, index)
        if index.dtype.is_floating_point:
            run.unscaled(members(run.of(index)), node)
    cells, shape = run.of(value), run.layout.shape(output.axes)
    if not meaning.scales:
        run.unscaled(members(cells), node)
    for dim in meaning.dims:
        cells = mixed(run, node, cells, dim)
    if meaning.kept is not None:
        cells = cells.reshape([1 if dim is None else cells.shape[dim] for dim in meaning.kept])
    elif cells.ndim != len(shape):  # indexing by tensors changes the rank
        kept_dims = [size for dim, size in enumerate(cells.shape) if dim not in meaning.dims]
        lead = [1] * (len(shape) - len(kept_dims))
        at = meaning.dims[0] if meaning.dims == tuple(range(meaning.dims[0], meaning.dims[-1] + 1)) else 0
        cells = cells.reshape([*kept_dims[:at], *lead, *kept_dims[at:]])
    cells = np.broadcast_to(cells, shape)
    cells = cells if only_moves(node) else _new_without_source(run, cells)
    if node.name == "gather" and by[0].constant is None:  # each entry has an index of its own
        indices = np.broadcast_to(run.of(by[0]), shape)
        unknown = Cell(Kind.NEW, origin=f"new entries that {node.place} goes by")
        cells = filled(shape, lambda index: cells[index] if indices[index].kind is Kind.KEPT else unknown)
    return filled(shape, lambda index: _moved(node, cells[index], bool(by)))


def _moved(node: Node, cell: Cell, by_index: bool) -> Cell:
    """What comes of a cell; where every unit goes by an index of its own, their mean is no unit's."""
    return Cell(Kind.NEW, origin=node.place) if by_index and cell.kind is Kind.MEAN else replace(cell, direct=False)


def scatter(run: Run, node: Node, output: Value, meaning: Scatter) -> Cells:
    """Positions of one tensor are written or added to those of another; all other dimensions are treated alike."""
    run.keep_positions(node, [meaning.base.axes[dim] for dim in meaning.dims])
    run.keep_positions(node, [meaning.value.axes[dim] for dim in meaning.inner])
    for item in meaning.indices:
        keep_index(run, node, item)
    base, value = run.of(meaning.base), run.of(meaning.value)
    for dim in meaning.inner:
        value = mixed(run, node, value, dim)
    if meaning.inner != meaning.dims:  # an index tensor of its own rank: both are in one run, from the same dimension
        rest, at = value.shape[: meaning.dims[0]], meaning.dims[0] + len(meaning.inner)
        value = value.reshape([*rest, *[1] * len(meaning.dims), *value.shape[at:]])
    for dim in meaning.dims:
        base = mixed(run, node, base, dim)
    inputs, onto = [(meaning.base, base), (meaning.value, value)], meaning.function
    laws = Laws(lambda inputs: onto(*inputs), 2, onto)
    if _says_nothing(run, meaning.base):
        inputs, laws = inputs[1:], Laws(lambda inputs: onto(inputs[0] * 0, inputs[0]), 1, (onto, "onto zeros"))
    return combine(run, node, output, laws, inputs, frozenset(range(len(inputs))))[0]


def _says_nothing(run: Run, base: Value) -> bool:
    """Whether a base is 0, or empty: what is written to it decides."""
    if base.constant is not None:
        return not base.constant.any()
    maker = run.match.target.makers.get(base)
    return maker is not None and is_empty(maker.op)


def _new_without_source(run: Run, cells: Cells) -> Cells:
    """What an operator that the source does not have makes of kept cells is not known to be the source's."""
    if run.step.source is not None or all(cell.kind is not Kind.KEPT for cell in members(cells)):
        return cells
    new = run.new_here()
    return filled(cells.shape, lambda index: new if cells[index].kind is Kind.KEPT else cells[index])
