"""Operators that run a statistic over units: reductions, norms, softmax."""

from __future__ import annotations

import math

import numpy as np

from lightning_grow.plan.cells import LOST, ZERO, Cell, Kind, Slot, filled, kept
from lightning_grow.plan.interpret.contract import multiplicity
from lightning_grow.plan.interpret.decisions import Commit
from lightning_grow.plan.interpret.state import State, origins, union
from lightning_grow.plan.scale import ONE, Scale, shifted
from lightning_grow.trace.axes import Axis, resolve
from lightning_grow.trace.meanings import Cells, Reduce
from lightning_grow.trace.tape import Node, Value

Member = tuple[Cell, list[Slot]]  # a cell under a statistic, and where it lies along the reduced dimensions
_SUMMED = ("sum", "mean", "norm")  # statistics to which zeros add nothing
_CENTRED = ("mean", "var", "std")  # statistics to which the mean of the others adds nothing


def reduce(state: State, node: Node, output: Value, meaning: Reduce) -> Cells:
    """A statistic over some dimensions."""
    cells, grid, dims = state.of(meaning.input), state.layout.grid(meaning.input.axes), meaning.dims
    outer = [dim for dim in range(cells.ndim) if dim not in dims]
    by_outer = cells.transpose([*outer, *dims])
    result = filled([cells.shape[dim] for dim in outer], lambda _: LOST)
    for index in np.ndindex(result.shape):
        slots = [grid[dim][number] for dim, number in zip(outer, index, strict=True)]
        members: list[Member] = [
            (by_outer[index + place], [grid[dim][number] for dim, number in zip(dims, place, strict=True)])
            for place in np.ndindex(*[cells.shape[dim] for dim in dims])
        ]
        result[index] = _statistic(state, node, meaning, members, slots)
    return result.reshape(state.shape(output))


def _statistic(state: State, node: Node, meaning: Reduce, members: list[Member], slots: list[Slot]) -> Cell:
    cells = [cell for cell, _ in members]
    if any(cell.kind is Kind.LOST for cell in cells):
        return LOST
    if all(cell.kind is Kind.ZERO for cell in cells):
        return ZERO
    if state.found is None or any(slot.is_new for slot in slots):
        known = [cell for cell in cells if cell.kind is not Kind.ZERO]
        origin = state.why_unmatched(node) if state.found is None else origins(known)
        return Cell(Kind.NEW, sources=union(cell.sources for cell in known), origin=origin)
    old, added = _split(members)
    if any(cell.kind is Kind.NEW for cell in old):
        raise state.part(origins(old))
    admit(state, node, meaning.kind, added, _only_atom(meaning.input, meaning.dims))
    live = [cell for cell in old if cell.kind is not Kind.ZERO]
    for cell in live[1:]:
        state.equal(cell.scale, live[0].scale, node)
    copied = list(dict.fromkeys(atom for _, at in members for slot in at for atom in slot.copied_atoms()))
    if meaning.kind == "any":
        return _not_scaled(state, node, live[0], copied)
    power = 2.0 if meaning.kind == "var" else 1.0
    return kept(live[0].scale * power + _shift(state, node, meaning, added, copied))


def _not_scaled(state: State, node: Node, cell: Cell, copied: list[Axis]) -> Cell:
    """A product, a logsumexp, the place of a maximum: neither a factor nor copies come out as a factor."""
    if copied:
        raise state.fail(
            f"{node.place} runs over {state.describe(copied)}, whose copies would change it. Keep this size.",
            copied,
        )
    state.unscaled(cell, node)
    return kept()


def _split(members: list[Member]) -> tuple[list[Cell], list[Member]]:
    """The source's cells, and those of new units."""
    old = [cell for cell, at in members if not any(slot.is_new for slot in at)]
    return old, [(cell, at) for cell, at in members if any(slot.is_new for slot in at)]


def _only_atom(value: Value, dims: tuple[int, ...]) -> Axis | None:
    """The atom that a statistic runs over, if it runs over nothing else: its units' mean is then the statistic's."""
    axes = [resolve(value.axes[dim]) for dim in dims if value.axes[dim].size != 1]
    return axes[0] if len(axes) == 1 and axes[0].kind is None else None


def admit(state: State, node: Node, kind: str, added: list[Member], only: Axis | None) -> None:
    """New units under a statistic must be 0, or the mean of the others where it runs over nothing else."""
    for cell, at in added:
        growing = [atom for slot in at for atom in slot.new_atoms()]
        state.admitted.update(growing)
        if cell.kind is Kind.ZERO and kind in _SUMMED:
            continue
        if cell.kind is Kind.MEAN and kind in _CENTRED and cell.atom is only:
            continue
        if cell.kind is Kind.NEW and kind in _CENTRED and cell.mean_sources and only is not None:
            raise Commit(means=dict.fromkeys(cell.mean_sources, only))
        if cell.kind is Kind.NEW and kind in _SUMMED and cell.sources:
            raise Commit(zeros=cell.sources)
        old = state.pairing.old_size(growing[0])
        copies = f"Use a multiple of {old}, so that they can be copies, or keep" if growing[0].size % old else "Keep"
        raise state.fail(
            f"{node.place} takes a {kind} over {state.describe(growing)}: {origins([cell])} would change "
            f"it. {copies} this size.",
            growing,
        )


def growth_over(state: State, value: Value, dims: tuple[int, ...]) -> float:
    """How many times more entries than the source's a statistic runs over."""
    growth = 1.0
    for dim in dims:
        growth *= value.axes[dim].size / max(1, len(state.pairing.old_positions(value.axes[dim])))
    return growth


def _shift(state: State, node: Node, meaning: Reduce, added: list[Member], copied: list[Axis]) -> Scale:
    """By what factor the statistic changes: what is summed grows with the copies, the count with every entry."""
    if meaning.kind == "max" or not (added or copied):
        return ONE
    copies = math.prod(multiplicity(state, node, atom) for atom in copied)
    if meaning.kind in ("sum", "norm"):
        return shifted(copies) * (1.0 / meaning.number if meaning.kind == "norm" else 1.0)
    if meaning.kind == "mean" and any(cell.kind is Kind.MEAN for cell, _ in added):
        return ONE
    new = math.prod(meaning.input.axes[dim].size for dim in meaning.dims)
    old = round(new / growth_over(state, meaning.input, meaning.dims))
    if old <= meaning.number:
        return ONE  # no number in either model
    return shifted(copies * (old - meaning.number) / (new - meaning.number)) * (0.5 if meaning.kind == "std" else 1.0)
