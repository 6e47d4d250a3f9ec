"""Run the target's tape on cells: find what must be 0, a mean, or scaled for the outputs to be the source's.

Everything new starts free. Where an operator lets a free cell reach a kept one (a sum over units, a residual addition,
a statistic), the parameter cells behind it are set to 0, or to the mean that a LayerNorm wants, and the run goes back
to the first operator that uses them. A run is a list of steps; going back drops its tail. What no parameter can mend is
a failure, and what is computed of it is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import Tensor

from lightning_grow.pair.match import Match
from lightning_grow.pair.names import new_modules
from lightning_grow.pair.roles import Dimension, Roles
from lightning_grow.plan.cells import (
    CONSTANT_ZERO,
    UNSEEN,
    ZERO,
    Cell,
    Entry,
    Kind,
    Layout,
    Slot,
    filled,
    is_wanted,
    kept,
)
from lightning_grow.plan.initial_states import InitialStates
from lightning_grow.plan.new_layers import say_new_layers
from lightning_grow.plan.scale import ONE, Equation, Scale, variable
from lightning_grow.plan.step import Choice, Decision, NotKept, Step
from lightning_grow.plan.tapes import draws, first_uses, weights
from lightning_grow.trace.axes import Axis, resolve
from lightning_grow.trace.meanings import Cells, Contract
from lightning_grow.trace.tape import Node, Value, atoms_of, is_random


class Run:
    """One run over the target's tape.

    Args:
        match: Source and target side by side; the steps add to it.
        roles: Which dimensions of parameters are read and written.
        states: The states that begin at 0.
        choice: What is fixed.
    """

    def __init__(self, match: Match, roles: Roles, states: InitialStates, choice: Choice) -> None:
        self.match, self.roles, self.states, self.choice = match, roles, states, choice
        self.layout = Layout(match.old_size, choice.copied)
        self.steps: list[Step] = []
        self.cells: dict[Value, Cells] = {}
        self.given: dict[Value, tuple[list[int], Cells]] = {}
        self.readers: dict[tuple[Contract, Axis], Dimension | None] = {}
        self.lost: set[Value] = set()
        self.refined: dict[Value, int] = {}
        self.zeros: set[Entry] = set()
        self.means: dict[Entry, Axis] = {}
        self.asked: dict[Entry, int] = {}
        self.alike: dict[Axis, Tensor] = {}
        self.placed_for = -1  # the last step that asked for a place
        match.placed = {}
        self.first_use = first_uses(match.target)
        self.weights = weights(match.target)
        self.draws_alike = draws(match.source) == draws(match.target)

    # ---- steps
    @property
    def step(self) -> Step:
        """The one under way."""
        return self.steps[-1]

    @property
    def at(self) -> int:
        """Its index on the tape."""
        return len(self.steps) - 1

    @property
    def is_complete(self) -> bool:
        """Whether every operator, and then the outputs, had their step."""
        return len(self.steps) > len(self.match.target.nodes)

    def begin(self) -> Step:
        """Begin the step of the next operator, or at the end that of the outputs."""
        nodes, number = self.match.target.nodes, len(self.steps)
        self.steps.append(Step(nodes[number] if number < len(nodes) else None, self.match.length))
        return self.step

    def lose(self, node: Node) -> None:
        """What an operator computes is not known: a failure was recorded."""
        self.lost.update(node.outputs)

    def go_back(self, decision: Decision) -> None:
        """Take up a decision: drop every step from the first operator that it concerns."""
        self.asked = dict.fromkeys([*decision.zeros, *decision.means], self.at) | self.asked  # the first that asks
        self.zeros |= decision.zeros
        self.means.update(decision.means)
        names = {name for name, _ in decision.zeros | set(decision.means)}
        first = 0 if decision.placed else min([self.at, *(self.first_use.get(name, 0) for name in names)])
        self.match.placed.update(decision.placed)
        if decision.refined is not None:
            self.refined[decision.refined] = self.at
            first = self._step_of(decision.refined)
        self._drop(first)

    def _drop(self, first: int) -> None:
        """Forget every step from this one on."""
        self.match.rewind(self.steps[first].length)
        for value in [output for step in self.steps[first:] for output in step.outputs]:
            self.cells.pop(value, None)
            self.lost.discard(value)
        del self.steps[first:]

    def _step_of(self, value: Value) -> int:
        """The step that computes a value."""
        return next(at for at, step in enumerate(self.steps) if value in step.outputs)

    def under(self, choice: Choice) -> Run:
        """A run under another choice, which takes over every step that comes before all that changes."""
        placed, length = self.match.placed, self.steps[0].length
        run = Run(self.match, self.roles, self.states, choice)
        first = self._first_of(self.choice.copied ^ choice.copied)
        if replace(choice, copied=self.choice.copied) != self.choice or self.placed_for >= first:
            self.match.rewind(length)
            return run
        self.match.placed, run.alike, run.placed_for = placed, self.alike, self.placed_for
        run.steps, run.cells, run.lost = [*self.steps], {**self.cells}, {*self.lost}
        run._drop(first)
        run.refined = {value: at for value, at in self.refined.items() if at < first}
        run.asked = {entry: at for entry, at in self.asked.items() if at < first}
        run.zeros = {entry for entry in self.zeros if entry in run.asked}
        run.means = {entry: atom for entry, atom in self.means.items() if entry in run.asked}
        return run

    def _first_of(self, turned: frozenset[Axis]) -> int:
        """The first step that meets these atoms, or that a decision taken at it or after it goes back to."""
        nodes = (step.node for step in self.steps)
        meets = (node is None or not turned.isdisjoint(atoms_of([*node.tensors(), *node.outputs])) for node in nodes)
        first, before = next(number for number, met in enumerate(meets) if met), -1
        while first != before:
            uses = [self.first_use.get(name, 0) for (name, _), at in self.asked.items() if at >= first]
            uses += [self._step_of(value) for value, at in self.refined.items() if at >= first]
            before, first = first, min([first, *uses])
        return first

    # ---- results
    @property
    def equations(self) -> list[Equation]:
        """What the scales have to meet."""
        return [equation for step in self.steps for equation in step.equations]

    @property
    def failures(self) -> list[NotKept]:
        """Why the function is not kept."""
        return [step.failure for step in self.steps if step.failure is not None]

    @property
    def first_failure(self) -> int:
        """The index of the first step that failed; their number where none did."""
        return next((number for number, step in enumerate(self.steps) if step.failure is not None), len(self.steps))

    @property
    def admitted(self) -> set[Axis]:
        """Growing atoms under a statistic that zeros or means keep."""
        return {atom for step in self.steps for atom in step.admitted}

    @property
    def shares(self) -> set[tuple[Dimension, Axis]]:
        """Dimensions whose reads of a copied atom are divided among the copies."""
        return {share for step in self.steps for share in step.shares}

    @property
    def numbers(self) -> set[tuple[int, str]]:
        """Module attributes that may take up a factor."""
        return {number for step in self.steps for number in step.numbers}

    def because(self, entry: Entry) -> str:
        """The operator that asks for a cell to be 0 or a mean, if one does."""
        node = self.steps[self.asked[entry]].node if entry in self.asked else None
        return node.place if node is not None else ""

    # ---- refusals
    def parting(self, origin: str) -> NotKept:
        """Say that the two models part: the target computes `origin`, which the source does not."""
        layers = new_modules(self.match.target.tensors, self.match.names)
        if not layers:
            origin = next((step.difference for step in self.steps if step.difference), origin)
            drawn = next((step.node for step in self.steps if step.node and is_random(step.node)), None)
            way = "Keep the architecture and change sizes only."
            if drawn is not None and drawn.place in origin:
                way = "It draws random numbers in eval mode too, of another shape and so others. Draw in training only."
            return NotKept(f"the two models differ: the target computes {origin}. {way}", parts=True)
        return NotKept(say_new_layers(self.match.target, layers, origin), parts=True)

    def new_here(self) -> Cell:
        """A cell that the source does not compute; says what it computes instead."""
        node, step = self.step.node, self.step
        if node is None:
            raise LookupError("no operator is under way")
        others = [item for item in self.match.alternatives(node) if item.name != node.name]
        instead = f", where the source computes {others[0].op} in {others[0].where}" if others else ""
        origin = step.difference or f"{node.place}{instead}"
        if any(value in self.match.values for value in node.tensors() if value.name is None):
            step.parted = origin
        return Cell(Kind.NEW, origin=origin)

    def describe(self, growing: Sequence[Axis]) -> str:
        """Say which axes grow, by the place where each was first met."""
        parts = []
        for atom in dict.fromkeys(growing):
            place = self.match.places.get(atom, "a new layer's axis")
            parts.append(f"{place} ({self.match.old_size(atom)} -> {atom.size})")
        return ", ".join(parts) or "a value that the source does not have"

    def keep_positions(self, node: Node, axes: Iterable[Axis]) -> None:
        """Refuse to grow axes along which an operator goes by position.

        Raises:
            NotKept: One of them grows.
        """
        growing = self.match.growing(axes)
        if growing:
            raise NotKept(
                f"{node.place} goes by position along {self.describe(growing)}: new units would move the others. Keep "
                "this size as it is.",
                growing,
            )

    # ---- scales
    def equal(self, first: Scale, second: Scale, node: Node) -> None:
        """Require two factors to be equal."""
        self.step.equations.append(Equation(first - second, f"{node.place}{self._changed(node)}"))

    def _changed(self, node: Node) -> str:
        """The numbers that differ from the source's, for messages."""
        before = self.step.source.arguments if self.step.source is not None else {}
        numbers = ((name, value) for name, value in node.arguments.items() if isinstance(value, (int, float)))
        differing = [
            f"{name} is {before[name]} in the source and {value} in the target"
            for name, value in numbers
            if name in before and before[name] != value
        ]
        return f" ({'; '.join(differing)})" if differing else ""

    def unscaled(self, cells: Iterable[Cell], node: Node) -> None:
        """Require cells to have the source's own scale."""
        for cell in cells:
            if cell.kind in (Kind.KEPT, Kind.MEAN):
                self.equal(cell.scale, ONE, node)

    def free_number(self, name: str) -> Scale:
        """The factor that a number argument takes up: none, unless it may change."""
        if (self.at, name) not in self.choice.free_numbers:
            return ONE
        self.step.numbers.add((self.at, name))
        return number_variable(self.at, name)

    # ---- cells
    def of(self, value: Value) -> Cells:
        """The cells of a value; those of parameters, inputs and constants are made where they are asked for."""
        cells = self.cells.get(value)
        if cells is not None and list(cells.shape) != self.layout.shape(value.axes) and value not in self.refined:
            raise Decision(refined=value)
        if cells is None:
            cells = self._given_cells(value)
        if value in self.states.started.get(self.at, ()):
            return filled(cells.shape, lambda _: ZERO)
        if value not in self.states.read.get(self.at, ()):
            return cells
        return filled(cells.shape, lambda index: UNSEEN if cells[index] == CONSTANT_ZERO else cells[index])

    def _given_cells(self, value: Value) -> Cells:
        """Those of inputs and constants stay; a parameter's change with what is decided."""
        if value.name is None and value in self.given and self.given[value][0] == self.layout.shape(value.axes):
            return self.given[value][1]
        cells = self.layout.each_cell(value.axes, lambda index, slots: self._given(value, index, slots))
        if value.name is None:
            self.given[value] = list(cells.shape), cells
        return cells

    def _given(self, value: Value, index: tuple[int, ...], slots: list[Slot]) -> Cell:
        if value.name is not None and value.constant is None:
            return self._parameter_cell(value, value.name, index, slots)
        if is_wanted(slots):
            return kept()
        if value.constant is not None and not value.constant.any():
            return CONSTANT_ZERO
        return Cell(Kind.NEW, origin=self._origin(value))

    def _origin(self, value: Value) -> str:
        """Where entries come from that no parameter makes, for messages."""
        if value.input_index is not None:
            return f"new entries of input {value.input_index}"
        if value.name is not None:
            return f"new entries of the buffer '{value.name}'"
        made = next((node for node in self.match.target.nodes if value in node.outputs), None)
        return "new entries of a constant" + (f" that {made.place} makes" if made is not None else "")

    def _parameter_cell(self, value: Value, name: str, index: tuple[int, ...], slots: list[Slot]) -> Cell:
        entry, wanted, known = (name, index), is_wanted(slots), name in self.match.names
        if entry in self.zeros:
            return ZERO
        if entry in self.means:
            return self._mean_cell(value, name, index, self.means[entry])
        if known and wanted:
            scalable = value.trained and name not in self.roles.offsets
            return kept(variable(name, index) if scalable else ONE)
        if name in self.match.beside and value.trained:
            means = [atom for slot in slots for atom in slot.new_atoms() if atom in self.means.values()]
            return self._mean_cell(value, name, index, means[0]) if means else ZERO
        if name in self.choice.identities and wanted:
            return Cell(Kind.IDENTITY)
        own = frozenset([entry]) if value.trained else None
        origin = f"new units of '{name}'" if known else f"the new layer's '{name}'"
        return Cell(Kind.NEW, zeroed_by=own, averaged_by=own, direct=value.trained, origin=origin)

    def _mean_cell(self, value: Value, name: str, index: tuple[int, ...], atom: Axis) -> Cell:
        """The mean, over the source's units of `atom`, of the cell beside it."""
        base = tuple(
            _beside(self.layout.slots(axis), number, atom) for axis, number in zip(value.axes, index, strict=True)
        )
        slots = [self.layout.slots(axis)[number] for axis, number in zip(value.axes, base, strict=True)]
        beside = self._parameter_cell(value, name, base, slots)
        if beside.kind is Kind.KEPT:  # a tensor's mean is taken along a whole axis of it
            whole = any(resolve(axis) is atom for axis in value.axes)
            return Cell(Kind.MEAN, beside.scale, atom=atom) if whole else Cell(Kind.NEW, origin=f"'{name}'")
        return replace(beside, zeroed_by=None, averaged_by=None, direct=False)


def _beside(slots: list[Slot], number: int, atom: Axis) -> int:
    """The slot with the source's units of `atom` where slot `number` has the new ones."""
    if atom not in slots[number].new_atoms():
        return number
    wanted = tuple((item, "kept" if item is atom else part) for item, part in slots[number].coordinates)
    return next(other for other, slot in enumerate(slots) if slot.coordinates == wanted)


def number_variable(node: int, name: str) -> Scale:
    """The free factor of a number argument."""
    return variable(f"{name} of operator {node}", ())
