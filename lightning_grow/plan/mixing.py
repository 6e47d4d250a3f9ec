"""Positions that an operator mixes, and positions that it goes by."""

from __future__ import annotations

import numpy as np

from lightning_grow.plan.cells import Cell, Kind, filled, members, origins, union
from lightning_grow.plan.content import known_factor
from lightning_grow.plan.run import Run
from lightning_grow.plan.step import NotKept
from lightning_grow.trace.meanings import Cells
from lightning_grow.trace.tape import Node, Value


def mixed(run: Run, node: Node, cells: Cells, dim: int) -> Cells:
    """One cell for all along a dimension, which stays with a length of 1."""
    if cells.shape[dim] == 1:
        return cells
    lines = np.moveaxis(cells, dim, -1)
    every = filled(lines.shape[:-1], lambda index: _mix(run, node, members(lines[index])))
    return np.expand_dims(every, dim)


def _mix(run: Run, node: Node, cells: list[Cell]) -> Cell:
    """What comes of cells that an operator mixes, a part of which may be 0."""
    live = [cell for cell in cells if cell.kind is not Kind.ZERO]
    if all(cell == live[0] for cell in live):
        return live[0] if live else cells[0]
    if any(cell.kind is Kind.NEW for cell in live) or len({(cell.kind, cell.atom) for cell in live}) > 1:
        return Cell(Kind.NEW, zeroed_by=union(cell.zeroed_by for cell in live), origin=origins(live))
    for cell in live[1:]:
        run.equal(cell.scale, live[0].scale, node)
    return live[0]


def keep_index(run: Run, node: Node, index: Value) -> None:
    """Refuse to go by other positions than the source; a new layer may go by any.

    Raises:
        NotKept: An index is not the source's.
    """
    if run.step.source is None or (index.constant is not None and known_factor(run, node, index) == 1.0):
        return
    if any(cell.kind is not Kind.KEPT for cell in members(run.of(index))):
        raise NotKept(f"{node.place} is indexed by new entries; keep what it indexes by as it is.")
