"""Statistics over units: sums, means, variances, norms, maxima."""

from __future__ import annotations

import math

import numpy as np

from lightning_grow.pair.entries import only_moves
from lightning_grow.plan.cells import ZERO, Cell, Kind, Slot, is_wanted, kept, origins, union
from lightning_grow.plan.contraction import multiplicity
from lightning_grow.plan.run import Run
from lightning_grow.plan.scale import ONE, Scale, shifted
from lightning_grow.plan.step import Decision, NotKept
from lightning_grow.trace.axes import Axis, resolve
from lightning_grow.trace.meanings import Cells, Lookup, Reduce
from lightning_grow.trace.tape import Node, Trace, Value

Member = tuple[Cell, list[Slot]]  # a cell under a statistic, and where it lies along the reduced dimensions
_SUMMED = ("sum", "mean", "norm")  # statistics to which zeros add nothing
_CENTRED = ("mean", "var", "std")  # statistics to which the mean of the others adds nothing


def reduce(run: Run, node: Node, output: Value, meaning: Reduce) -> Cells:
    """A statistic over some dimensions."""
    cells, dims = run.of(meaning.input), meaning.dims
    grid = run.layout.grid(meaning.input.axes)
    outer = [dim for dim in range(cells.ndim) if dim not in dims]
    by_outer = cells.transpose([*outer, *dims])

    def make(index: tuple[int, ...], slots: list[Slot]) -> Cell:
        members: list[Member] = [
            (by_outer[index + place], [grid[dim][number] for dim, number in zip(dims, place, strict=True)])
            for place in np.ndindex(*[cells.shape[dim] for dim in dims])
        ]
        return _statistic(run, node, output, meaning, members, is_wanted(slots))

    made = run.layout.each_cell([meaning.input.axes[dim] for dim in outer], make)
    return made.reshape(run.layout.shape(output.axes))


def _statistic(run: Run, node: Node, output: Value, meaning: Reduce, members: list[Member], wanted: bool) -> Cell:
    known = [cell for cell, _ in members if cell.kind is not Kind.ZERO]
    if not known:
        return ZERO
    if run.step.source is None or not wanted:
        new = [cell for cell in known if cell.kind is Kind.NEW]
        origin = origins(new) if new else run.new_here().origin
        return Cell(Kind.NEW, zeroed_by=union(cell.zeroed_by for cell in known), origin=origin)
    old, added = _split(members)
    if any(cell.kind is Kind.NEW for cell in old):
        raise run.parting(origins(old))
    _admit(run, node, meaning.kind, added, _only_atom(meaning.input, meaning.dims))
    live = [cell for cell in old if cell.kind is not Kind.ZERO]
    for cell in live[1:]:
        run.equal(cell.scale, live[0].scale, node)
    copied = list(dict.fromkeys(atom for _, at in members for slot in at for atom in slot.copied_atoms()))
    if meaning.kind in ("any", "place"):
        return _not_scaled(run, node, live[0], [] if _picks_alike(run, output, meaning) else copied)
    power = 2.0 if meaning.kind == "var" else 1.0
    return kept(live[0].scale * power + _shift(run, node, meaning, members, copied))


def _not_scaled(run: Run, node: Node, cell: Cell, copied: list[Axis]) -> Cell:
    """A product, a logsumexp, the place of a maximum: neither a factor nor copies come out as a factor."""
    if copied:
        raise NotKept(
            f"{node.place} runs over {run.describe(copied)}, whose copies would change it. Keep this size.", copied
        )
    run.unscaled([cell], node)
    return kept()


def _picks_alike(run: Run, output: Value, meaning: Reduce) -> bool:
    """Whether it is the place of a maximum that only says which row of a table is meant: copies of a row are equal."""
    return meaning.kind == "place" and _only_picks(run.match.target, output)


def _only_picks(trace: Trace, index: Value) -> bool:
    return index not in trace.outputs.values() and all(
        all(isinstance(meaning, Lookup) and meaning.index is index for meaning in node.meaning)
        or (only_moves(node) and all(_only_picks(trace, value) for value in node.outputs))
        for node in trace.readers.get(index, [])
    )


def _split(members: list[Member]) -> tuple[list[Cell], list[Member]]:
    """The source's cells, and those of new units."""
    old = [cell for cell, at in members if not any(slot.is_new for slot in at)]
    return old, [(cell, at) for cell, at in members if any(slot.is_new for slot in at)]


def _only_atom(value: Value, dims: tuple[int, ...]) -> Axis | None:
    """The atom that a statistic runs over, if it runs over nothing else: its units' mean is then the statistic's."""
    axes = [resolve(value.axes[dim]) for dim in dims if value.axes[dim].size != 1]
    return axes[0] if len(axes) == 1 and axes[0].kind is None else None


def _admit(run: Run, node: Node, kind: str, added: list[Member], only: Axis | None) -> None:
    """New units under a statistic must be 0, or the mean of the others where it runs over nothing else."""
    for cell, at in added:
        growing = [atom for slot in at for atom in slot.new_atoms()]
        run.step.admitted.update(growing)
        if cell.kind is Kind.ZERO and kind in _SUMMED:
            continue
        if cell.kind is Kind.MEAN and kind in _CENTRED and cell.atom is only:
            continue
        if cell.kind is Kind.NEW and kind in _CENTRED and cell.averaged_by and only is not None:
            raise Decision(means=dict.fromkeys(cell.averaged_by, only))
        if cell.kind is Kind.NEW and kind in _SUMMED and cell.zeroed_by:
            raise Decision(zeros=cell.zeroed_by)
        old = run.match.old_size(growing[0])
        copied = growing[0].size % old and kind not in ("any", "place")
        copies = f"Use a multiple of {old}, so that they can be copies, or keep" if copied else "Keep"
        raise NotKept(
            f"{node.place} {_taken(node, kind)} {run.describe(growing)}: {origins([cell])} would change it. "
            f"{copies} this size.",
            growing,
        )


def _taken(node: Node, kind: str) -> str:
    if kind in ("any", "place"):
        return "runs over"
    return f"takes a {kind} over" if node.whole is None or kind not in _CENTRED else "takes its statistics over"


def growth_over(run: Run, value: Value, dims: tuple[int, ...]) -> float:
    """How many times more entries than the source's a statistic runs over."""
    growth = 1.0
    for dim in dims:
        growth *= value.axes[dim].size / max(1, len(run.match.old_positions(value.axes[dim])))
    return growth


def _copies(run: Run, node: Node, members: list[Member]) -> float:
    """How many copies each of the source's entries has.

    Raises:
        NotKept: Not all have as many.
    """
    old = [at for cell, at in members if cell.kind is not Kind.ZERO and not any(slot.is_new for slot in at)]
    copied = [[atom for slot in at for atom in slot.copied_atoms()] for at in old]
    counts = {math.prod(multiplicity(run, node, atom) for atom in found) for found in copied}
    if len(counts) > 1:
        every = [atom for found in copied for atom in found]
        raise NotKept(
            f"{node.place} runs over {run.describe(every)} and over units that have other numbers of copies. Grow all "
            "of them by one factor."
        )
    return counts.pop() if counts else 1.0


def _shift(run: Run, node: Node, meaning: Reduce, members: list[Member], copied: list[Axis]) -> Scale:
    """By what factor the statistic changes: what is summed grows with the copies, the count with every entry."""
    _, added = _split(members)
    if meaning.kind == "max" or not (added or copied):
        return ONE
    copies = _copies(run, node, members)
    if meaning.kind in ("sum", "norm"):
        return shifted(copies) * (1.0 / meaning.number if meaning.kind == "norm" else 1.0)
    if meaning.kind == "mean" and any(cell.kind is Kind.MEAN for cell, _ in added):
        return ONE
    new = math.prod(meaning.input.axes[dim].size for dim in meaning.dims)
    old = round(new / growth_over(run, meaning.input, meaning.dims))
    if old <= meaning.number:
        raise NotKept(
            f"{node.place} takes a {meaning.kind} over {old} entries with a correction of {meaning.number:g}, which is "
            "no number in the source. Keep this size.",
            copied,
        )
    return shifted(copies * (old - meaning.number) / (new - meaning.number)) * (0.5 if meaning.kind == "std" else 1.0)
