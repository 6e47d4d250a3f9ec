"""Go over the target's tape, operator by operator, until no decision is open; then compare the outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning_grow.pair.entries import only_moves
from lightning_grow.pair.find import find, pair_outputs
from lightning_grow.pair.names import new_modules
from lightning_grow.plan.cells import Cell, Kind, filled, is_wanted, members
from lightning_grow.plan.content import keep_contents, known_factor
from lightning_grow.plan.contraction import contract
from lightning_grow.plan.moves import along, create, lookup, opaque, rearrange, scatter
from lightning_grow.plan.pointwise import pointwise
from lightning_grow.plan.run import Run
from lightning_grow.plan.scale import Equation
from lightning_grow.plan.statistics import reduce
from lightning_grow.plan.step import Decision, NotKept, Step
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
from lightning_grow.trace.tape import Node, Value, atoms_of, is_random
from lightning_grow.waiting import waiting

_HANDLERS: dict[type, Callable[[Run, Node, Value, Any], Cells]] = {
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


def interpret(run: Run) -> Run:
    """Run the target's tape on cells, from where a run stands to its end.

    Args:
        run: Changed: it holds its decisions then, the equations that scales have to meet, and its failures.
    """
    with waiting("planning the growth", len(run.match.target.nodes)) as show:
        while not run.is_complete:
            show(run.at)
            try:
                _take(run, run.begin())
            except Decision as decision:
                run.go_back(decision)
    return run


def _take(run: Run, step: Step) -> None:
    """Take one step; what cannot be kept is its failure, and its outputs are lost."""
    node = step.node
    try:
        if node is None:
            _compare_outputs(run)
        elif not _is_constant(run, node):
            _interpret(run, node, step)
    except NotKept as failure:
        step.failure = failure
    except (ValueError, IndexError, StopIteration) as error:  # an axis that nothing explains
        place = node.place if node is not None else "the outputs"
        step.failure = NotKept(
            f"{place} cannot be followed ({type(error).__name__}: {error}). Keep its arguments and sizes as they are; "
            "report this model if they are.",
            parts=True,
        )
    if node is not None and step.failure is not None:
        run.lose(node)


def _is_constant(run: Run, node: Node) -> bool:
    """Whether nothing but constants is computed: what they are is known; where rows are routed to is the weights'."""
    if node.name == "nonzero" and node.tensors()[0].constant is None:
        return False
    return run.at not in run.states.read and all(value.constant is not None for value in node.outputs)


def _interpret(run: Run, node: Node, step: Step) -> None:
    """Find the source's operator for this one, pair their axes, and work out the cells of the outputs."""
    step.source, step.difference = find(run.match, node)
    if step.source is not None:
        _pair_outputs(run, node, step.source)
    elif step.difference:
        run.new_here()
    if not run.lost.isdisjoint(node.tensors()):  # what else stands in the way is worth saying all the same
        run.lose(node)
        for value in node.tensors():
            known_factor(run, node, value)
        if isinstance(node.meaning[0], Along) and step.source is not None:
            run.keep_positions(node, [node.meaning[0].inputs[0].axes[dim] for dim in node.meaning[0].dims])
        return
    if step.source is None and only_moves(node):
        for output in node.outputs:
            run.match.show(output)
    for output, meaning in zip(node.outputs, node.meaning, strict=True):
        handler = create if is_random(node) and not run.draws_alike else _HANDLERS[type(meaning)]
        cells = handler(run, node, output, meaning)
        run.cells[output] = _not_the_sources(cells, step.difference) if step.difference else cells
        if output in run.states.next:
            run.unscaled(members(run.cells[output]), node)
    if step.source is not None and not isinstance(node.meaning[0], (Rearrange, Create, Opaque)):
        _keep_what_is_made(run, node, step.source)


def _not_the_sources(cells: Cells, difference: str) -> Cells:
    """What an operator with other arguments makes of kept cells is not the source's."""
    other = Cell(Kind.NEW, origin=difference)
    return filled(cells.shape, lambda index: other if cells[index].kind is Kind.KEPT else cells[index])


def _pair_outputs(run: Run, node: Node, source: Node) -> None:
    """Pair the outputs and their axes, and compare the constants.

    Raises:
        NotKept: They cannot be paired, or a constant is another one.
    """
    pairs = pair_outputs(run.match, source, node)
    for old, new in pairs:
        run.match.pair_values(old, new)
    refusals = [
        refusal
        for old, new in pairs
        for dim, (one, other) in enumerate(zip(old.axes, new.axes, strict=True))
        for refusal in run.match.pair(one, other, f"the output of {node.place} axis {dim}")
    ]
    refusals += [
        refusal
        for old, new in zip(source.tensors(), node.tensors(), strict=False)  # a concatenation may have more parts here
        for one, other in zip(old.axes, new.axes, strict=False)
        if new.constant is not None and one.size == other.size and not any(map(run.match.old_size, _longer(other)))
        for refusal in run.match.pair(one, other, f"a constant of {node.place}")
    ]
    for refusal in refusals:
        raise NotKept(str(refusal), parts=True)
    if not isinstance(node.meaning[0], Pointwise):
        keep_contents(run, node)


def _keep_what_is_made(run: Run, node: Node, source: Node) -> None:
    """Refuse to grow what an operator makes without an input that has it.

    Raises:
        NotKept: An output axis that no input has is longer than the source's.
    """
    given = atoms_of(node.tensors())
    for old, new in pair_outputs(run.match, source, node):
        made = [(dim, axis) for dim, axis in enumerate(new.axes) if given.isdisjoint(atoms(axis))]
        run.keep_positions(node, [axis for _, axis in made if axis.size != 1])
        for dim, axis in made:
            if axis.size != old.axes[dim].size:
                raise NotKept(
                    f"{node.place} makes {axis.size} positions along axis {dim}, the source {old.axes[dim].size}, and "
                    "nothing says which of them are the source's. Keep this size as it is.",
                    parts=True,
                )


def _longer(axis: Axis) -> list[Axis]:
    """The atoms of an axis that have more than one position: one alone says nothing of the source."""
    return [atom for atom in atoms(axis) if atom.size > 1]


# ---- outputs
def _compare_outputs(run: Run) -> None:
    old, new = (list(tape.outputs.values()) for tape in (run.match.source, run.match.target))
    if len(old) != len(new):
        raise NotKept(
            f"the source returns {len(old)} tensors, the target {len(new)}; pass forward= a callable that returns the "
            "same from both.",
            parts=True,
        )
    for number, (before, after) in enumerate(zip(old, new, strict=True)):
        if after.constant is None and after not in run.lost:
            _compare_output(run, number, before, after)


def _compare_output(run: Run, number: int, old: Value, new: Value) -> None:
    """Every kept cell must be the source's own, unscaled."""
    kept, unkept = list[Cell](), list[Cell]()

    def look(index: tuple[int, ...], slots: list[Any]) -> Cell:
        cell: Cell = run.of(new)[index]
        if is_wanted(slots):
            (kept if cell.kind is Kind.KEPT else unkept).append(cell)
        return cell

    run.layout.each_cell(new.axes, look)
    length = _other_length(run, number, old, new)

    def cause(origin: str) -> str:  # new layers show in a length before they change what is in it
        return length if length and new_modules(run.match.target.tensors, run.match.names) else origin

    if other := next((cell for cell in unkept if cell.kind is Kind.NEW), None):
        raise run.parting(cause(other.origin or "new entries"))
    run.step.equations.extend(Equation(cell.scale, f"output {number}") for cell in kept)
    if run.failures:
        return
    if run.match.values.get(new) is not run.match.first(old):
        parted = next((step.parted for step in run.steps if step.parted), f"output {number} differently")
        raise run.parting(cause(parted))
    if length:
        raise run.parting(length)


def _other_length(run: Run, number: int, old: Value, new: Value) -> str:
    """What is another length along an output where no unit says why (a stack of all layers'), "" where none is."""
    for dim, (one, other) in enumerate(zip(old.axes, new.axes, strict=False)):
        named = any(atom in run.match.named for atom in atoms(other))
        nameless = one.size != other.size and _ends(run).isdisjoint(atoms(other))
        if nameless or (run.match.old_length(other) != one.size and not named):
            return f"{other.size} positions along axis {dim} of output {number}, where the source has {one.size}"
    return ""


def _ends(run: Run) -> set[Axis]:
    """The atoms that parameters, buffers and inputs name: only these can grow in an output."""
    return atoms_of([*run.match.target.tensors.values(), *run.match.target.inputs])
