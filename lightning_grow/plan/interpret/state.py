"""What a run over the tape knows: the cells of every value, the decisions made, and where the function is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch

from lightning_grow.pair.alignment import Alignment
from lightning_grow.pair.twins import Twins
from lightning_grow.plan.cells import CONSTANT_ZERO, UNSEEN, ZERO, Cell, Entry, Kind, Layout, Slot, filled, kept
from lightning_grow.plan.interpret.decisions import Choice, Commit, Decisions, Failure, Lost
from lightning_grow.plan.interpret.initial_states import find_initial_states
from lightning_grow.plan.scale import ONE, Equation, Scale, variable
from lightning_grow.trace.axes import Axis
from lightning_grow.trace.meanings import Cells
from lightning_grow.trace.tape import Node, Trace, Value


class State:
    """The state of one run over the target's tape."""

    def __init__(self, both: Alignment, choice: Choice) -> None:
        self.source, self.target, self.renamed = both.source, both.target, both.renamed
        self.pairing, self.roles, self.choice = both.pairing, both.roles, choice
        self.layout = Layout(self.pairing.old_size, choice.copied)
        self.twins = Twins(self.source, self.target, self.renamed)
        self.cells: dict[Value, Cells] = {}
        self.decisions = Decisions()
        self.equations: list[Equation] = []
        self.failures: list[Failure] = []
        self.parted: dict[int, str] = {}  # operators on the source's values that the source does not have
        self.admitted: set[Axis] = set()  # growing atoms under a statistic that zeros or means keep
        self.at = 0
        self.found: Node | None = None  # the source's node for the one being interpreted
        self.difference = ""  # why there is none, where only its arguments say so
        self.first_use = _first_uses(self.target)
        self.weights = _weights(self.target)
        self.draws_alike = _draws(self.source) == _draws(self.target)
        self.initial_states = find_initial_states(self.target, self.pairing.grows)

    # ---- decisions
    def commit(self, commit: Commit) -> None:
        """Take up a decision and go back to the first operator it concerns."""
        self.decisions.zeros |= commit.zeros
        self.decisions.means.update(commit.means)
        names = {name for name, _ in commit.zeros | set(commit.means)}
        for value in [value for value in self.cells if value.name in names]:
            del self.cells[value]
        self.at = min([self.at, *(self.first_use.get(name, 0) for name in names)])
        self.equations = [item for item in self.equations if item.node < self.at]
        self.failures = [item for item in self.failures if item.node < self.at]
        self.parted = {number: reason for number, reason in self.parted.items() if number < self.at}

    # ---- refusals
    def fail(self, reason: str, at_fault: Iterable[Axis] = (), parted: bool = False) -> Lost:
        """Record a refusal; raise what is returned."""
        if not any(item.reason == reason for item in self.failures):
            self.failures.append(Failure(self.at, reason, tuple(dict.fromkeys(at_fault)), parted))
        return Lost()

    def part(self, origin: str) -> Lost:
        """Record that the two models part: the target computes `origin`, which the source does not."""
        layers = dict.fromkeys(name.rpartition(".")[0] for name in self.target.tensors if name not in self.renamed)
        if not layers:
            reason = (
                f"the two models differ: the target computes {origin}. Keep the architecture and change sizes only."
            )
            return self.fail(reason, parted=True)
        names = ", ".join(f"'{name}'" for name in layers)
        reason = (
            f"new layers {names} change the function: the target computes {origin}. A new layer keeps the function as "
            "a residual branch, or as an identity between two ReLUs (an activation that changes nothing when applied "
            "again). Use activation relu, widen instead of deepening, or choose a strategy that is not "
            "function-preserving."
        )
        return self.fail(reason, parted=True)

    def why_unmatched(self, node: Node) -> str:
        """Say what the target computes that the source does not, and what the source does instead."""
        others = [item for item in self.twins.alternatives(node) if item.name != node.name]
        instead = f", where the source computes {others[0].op} in {others[0].where}" if others else ""
        reason = self.difference or f"{node.place}{instead}"
        if any(self.twins.twin.get(value) is not None for value in node.tensors() if value.name is None):
            self.parted.setdefault(self.at, reason)
        return reason

    def describe(self, growing: Sequence[Axis]) -> str:
        """Say which axes grow, by the place where each was first met."""
        parts = []
        for atom in dict.fromkeys(growing):
            place = self.pairing.places.get(atom, "a new layer's axis")
            parts.append(f"{place} ({self.pairing.old_size(atom)} -> {atom.size})")
        return ", ".join(parts) or "a value that the source does not have"

    # ---- scales
    def equal(self, first: Scale, second: Scale, node: Node) -> None:
        """Require two factors to be equal."""
        self.equations.append(Equation(first - second, f"{node.place}{self._changed(node)}", self.at))

    def _changed(self, node: Node) -> str:
        """The numbers that differ from the source's, for messages."""
        before = self.found.arguments if self.found is not None else {}
        numbers = ((name, value) for name, value in node.arguments.items() if isinstance(value, (int, float)))
        differing = [
            f"{name} is {before[name]} in the source and {value} in the target"
            for name, value in numbers
            if name in before and before[name] != value
        ]
        return f" ({'; '.join(differing)})" if differing else ""

    def unscaled(self, cell: Cell, node: Node) -> None:
        """Require a cell to have the source's own scale."""
        if cell.kind in (Kind.KEPT, Kind.MEAN):
            self.equal(cell.scale, ONE, node)

    def free_number(self, node: Node, name: str) -> Scale:
        """The factor that a number argument takes up: none, unless it may change."""
        if (self.at, name) not in self.choice.free_numbers:
            return ONE
        self.decisions.numbers.add((self.at, name))
        return number_variable(self.at, name)

    # ---- cells
    def of(self, value: Value) -> Cells:
        """The cells of a value; those of parameters, inputs and constants are made on first use."""
        if value not in self.cells:
            self.cells[value] = self._given(value)
        cells = self.cells[value]
        if value not in self.initial_states.read.get(self.at, ()):
            return cells
        return filled(cells.shape, lambda index: UNSEEN if cells[index] == CONSTANT_ZERO else cells[index])

    def shape(self, value: Value) -> list[int]:
        """The number of cells along every dimension."""
        return [self.layout.count(axis) for axis in value.axes]

    def filled(self, value: Value, make: Callable[[tuple[int, ...]], Cell]) -> Cells:
        """New cells for a value."""
        return filled(self.shape(value), make)

    def _given(self, value: Value) -> Cells:
        grid = self.layout.grid(value.axes)

        def make(index: tuple[int, ...]) -> Cell:
            slots = [along[number] for along, number in zip(grid, index, strict=True)]
            if value.name is not None and value.constant is None:
                return self._parameter_cell(value, value.name, index, slots)
            if any(slot.is_new for slot in slots):
                if value.constant is not None and not value.constant.any():
                    return CONSTANT_ZERO
                return Cell(Kind.NEW, origin="new entries of an input or a constant")
            return kept()

        return self.filled(value, make)

    def _parameter_cell(self, value: Value, name: str, index: tuple[int, ...], slots: list[Slot]) -> Cell:
        entry, is_new = (name, index), any(slot.is_new for slot in slots)
        if entry in self.decisions.zeros:
            return ZERO
        if entry in self.decisions.means:
            return self._mean_cell(value, name, index, self.decisions.means[entry])
        if name in self.renamed and not is_new:
            scalable = value.trained and name not in self.roles.offsets
            return kept(variable(name, index) if scalable else ONE)
        if name in self.choice.identities and not is_new:
            return Cell(Kind.IDENTITY)
        sources = frozenset([entry]) if value.trained else None
        origin = f"new units of '{name}'" if name in self.renamed else f"the new layer's '{name}'"
        return Cell(Kind.NEW, sources=sources, mean_sources=sources, direct=value.trained, origin=origin)

    def _mean_cell(self, value: Value, name: str, index: tuple[int, ...], atom: Axis) -> Cell:
        """The mean, over the source's units of `atom`, of the cell beside it."""
        base = tuple(
            self._beside(self.layout.slots(axis), number, atom) for axis, number in zip(value.axes, index, strict=True)
        )
        slots = [self.layout.slots(axis)[number] for axis, number in zip(value.axes, base, strict=True)]
        beside = self._parameter_cell(value, name, base, slots)
        if beside.kind is Kind.KEPT:
            return Cell(Kind.MEAN, beside.scale, atom=atom)
        return beside if beside.kind is Kind.ZERO else replace(beside, sources=None, mean_sources=None, direct=False)

    def _beside(self, slots: list[Slot], number: int, atom: Axis) -> int:
        """The slot with the source's units of `atom` where slot `number` has the new ones."""
        if atom not in slots[number].new_atoms():
            return number
        wanted = tuple((item, "kept" if item is atom else part) for item, part in slots[number].coordinates)
        return next(other for other, slot in enumerate(slots) if slot.coordinates == wanted)


def number_variable(node: int, name: str) -> Scale:
    """The free factor of a number argument."""
    return variable(f"{name} of operator {node}", ())


def _first_uses(trace: Trace) -> dict[str, int]:
    uses: dict[str, int] = {}
    for number, node in enumerate(trace.nodes):
        for value in node.tensors():
            if value.name is not None:
                uses.setdefault(value.name, number)
    return uses


def is_random(node: Node) -> bool:
    """Whether an operator draws random numbers."""
    return torch.Tag.nondeterministic_seeded in node.op.tags


def _draws(trace: Trace) -> list[object]:
    """What is drawn, in order: under one seed the same draws give the same numbers."""
    random = [node for node in trace.nodes if is_random(node)]
    return [(node.op, [[axis.size for axis in value.axes] for value in node.outputs]) for node in random]


def _weights(trace: Trace) -> set[Value]:
    """The values that are parameters, or made of parameters, buffers and constants."""
    weights = {value for value in trace.tensors.values() if value.trained}
    for node in trace.nodes:
        values = node.tensors()
        given = [value for value in values if value.constant is None and (value.trained or value.name is None)]
        if given and weights.issuperset(given):
            weights.update(node.outputs)
    return weights


def union(sources: Iterable[frozenset[Entry] | None]) -> frozenset[Entry] | None:
    """All of them together; None if one is missing or there are none."""
    every = list(sources)
    if not every or None in every:
        return None
    return frozenset().union(*[item for item in every if item is not None])


def origins(cells: Iterable[Cell]) -> str:
    """Where the new cells among these came about."""
    return ", ".join(dict.fromkeys(cell.origin for cell in cells if cell.origin)) or "new entries"
