"""Draft a plan: trace both models, pair their axes, decide what every tensor becomes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_grow.options import Options
from lightning_grow.pair.alignment import Alignment, align
from lightning_grow.pair.copies import find_copies
from lightning_grow.pair.maps import UnitMap, axis_map, prefix_map, unit_index
from lightning_grow.pair.mismatch import find_mismatches, name_inputs, saved_names
from lightning_grow.pair.notes import name_choices, name_copies, name_idle_buffers, name_shared_counts
from lightning_grow.pair.twins import same_constant
from lightning_grow.plan.cells import Kind, Layout
from lightning_grow.plan.growth_plan import GrowthPlan, UnitGroup
from lightning_grow.plan.interpret.interpret import Choice, State, find_initial_states, interpret, number_variable
from lightning_grow.plan.scale import Scale, Variable, solve, variable
from lightning_grow.plan.tensor_plan import CellPlan, TensorPlan
from lightning_grow.trace.axes import Axis, atoms, resolve
from lightning_grow.trace.tape import Node, Value


def make_plan(
    source: nn.Module,
    target: nn.Module,
    source_inputs: Any,
    target_inputs: Any,
    options: Options,
) -> GrowthPlan:
    """Trace both modules, pair their axes and decide what every tensor becomes.

    Raises:
        RefusedGrowth: A module cannot be traced.
    """
    strategy = options.strategy
    both = align(source, target, source_inputs, target_inputs, options.forward, options.rename)
    dropped = name_inputs(source, target, both, options)
    copies = find_copies(target, both)
    draft = _Draft(both, target, options, copies)
    impossible = find_mismatches(source, target, both, options, copies)
    refused, lost = list(impossible), list[str]()
    if not impossible and strategy.transfers:
        parted, lost = draft.decide()
        impossible += parted
        refused += dict.fromkeys(parted + lost) if strategy.function_preserving else parted
        lost += _name_dropped(dropped)
    return GrowthPlan(
        strategy=strategy,
        groups=draft.groups(),
        tensors={} if impossible else draft.tensors(saved_names(target)),
        refused=tuple(refused),
        impossible=tuple(impossible),
        lost=tuple(lost),
        notes=(
            *name_copies(copies),
            *draft.name_sums(),
            *name_idle_buffers(both, copies),
            *name_shared_counts(both),
            *name_choices(both),
        ),
        attributes=draft.attributes(),
        input_positions=tuple(tuple(map(both.pairing.old_positions, value.axes)) for value in both.target.inputs),
        source_positions=tuple(tuple(map(both.pairing.source_positions, value.axes)) for value in both.target.inputs),
    )


class _Draft:
    """A plan in the making."""

    def __init__(
        self,
        both: Alignment,
        target: nn.Module,
        options: Options,
        copies: Mapping[str, str],
    ) -> None:
        self.copies, strategy = copies, options.strategy
        self.both, self.pairing, self.new, self.renamed = both, both.pairing, both.target, both.renamed
        self.target, self.strategy, self.options = target, strategy, options
        self.generator = torch.Generator().manual_seed(options.seed)
        self.identities = self._identities() if strategy.transfers else frozenset[str]()
        self.initial_states = find_initial_states(self.new, self.pairing.grows)
        self.never_copied = self._never_copied()
        self.unit_sources = {atom: self._unit_source(atom) for atom in self._growing()} if strategy.transfers else {}
        self.copied = frozenset(atom for atom, units in self.unit_sources.items() if units is not None)
        self.state: State | None = None
        self.factors: dict[Variable, float] = {}

    def _growing(self) -> list[Axis]:
        found: dict[Axis, None] = {}
        for value in self.new.tensors.values():
            for axis in value.axes:
                found.update(
                    {atom: None for atom in atoms(axis) if self.pairing.grows(atom) and self.pairing.old_size(atom)}
                )
        return list(found)

    def name_sums(self) -> list[str]:
        """Say which constants are taken for the start of a sum, which might be the first state of a recurrence."""
        shapes = sorted(self.initial_states.sums)
        return [
            f"A 0 of the shape {'x'.join(map(str, shape))} is taken for the start of a sum. If it is the first state "
            "of a recurrence, give example inputs of two steps."
            for shape in shapes
        ]

    def _never_copied(self) -> frozenset[Axis]:
        """Atoms whose new units the model is given: those of inputs, of states that begin at 0, and of constants."""
        given = frozenset(atom for value in self.new.inputs for axis in value.axes for atom in atoms(axis))
        if not self.strategy.function_preserving:
            return given
        fixed = {atom for atom in self._growing() if not self._repeats(atom, self._in_turn(atom))}
        return given | fixed | self.initial_states.atoms

    def _in_turn(self, atom: Axis) -> Tensor:
        """Copies of the source's units in their order."""
        old = self.pairing.old_size(atom)
        return (torch.arange(old, atom.size) % old).double()

    def _repeats(self, atom: Axis, units: Tensor) -> bool:
        """Whether every constant has equal entries at a unit and at its copies."""
        old = self.pairing.old_size(atom)
        copies = UnitMap(torch.cat([torch.arange(old).double(), units]), old)
        for constant, dim in self._constants.get(atom, ()):
            maps = lambda item: copies if item is atom else prefix_map(item.size, item.size)  # noqa: E731
            unit = axis_map(constant.axes[dim], maps, lambda _: 1).low
            positions = torch.arange(len(unit))
            first = torch.full_like(unit, len(unit)).scatter_reduce_(0, unit, positions, "amin")[unit]
            content = constant.constant
            if content is not None and not same_constant(content.index_select(dim, first), content):
                return False
        return True

    @cached_property
    def _constants(self) -> dict[Axis, list[tuple[Value, int]]]:
        """Atom -> the constants that have it and meet what is none, with its dimension."""
        nodes = [node for node in self.new.nodes if any(value.constant is None for value in node.outputs)]
        found: dict[Axis, list[tuple[Value, int]]] = defaultdict(list)
        for value in dict.fromkeys(value for node in nodes for value in node.tensors() if value.constant is not None):
            for dim, axis in enumerate(value.axes):
                for atom in dict.fromkeys(atoms(axis)):
                    found[atom].append((value, dim))
        return found

    def _unit_source(self, atom: Axis) -> Tensor | None:
        """The strategy's answer; new inputs and outputs are no copies of others, unless a norm over outputs asks."""
        if atom in self.never_copied or any(atom in atoms(axis) for value in self.new.outputs for axis in value.axes):
            return None
        units = self.strategy.units(self.pairing.old_size(atom), atom.size, self.generator)
        exact = units is None or not self.strategy.function_preserving or self._repeats(atom, units)
        return units if exact else None

    def _identities(self) -> frozenset[str]:
        """New square layers between two ends of one source axis: they can start as the identity."""
        found = set()
        for name, value in self.new.tensors.items():
            if name in self.renamed or len(value.axes) != 2:
                continue
            first, second = (self.pairing.source.get(resolve(axis), []) for axis in value.axes)
            if {resolve(atom) for atom in first} & {resolve(atom) for atom in second}:
                found.add(name)
        return frozenset(found)

    # ---- what keeps the function
    def decide(self) -> tuple[list[str], list[str]]:
        """Find the decisions under which the function is kept.

        Returns:
            Where the two models compute different things whatever their sizes, and why else the function is not kept.
        """
        promises = self.strategy.function_preserving
        choice = Choice(self.copied if promises else frozenset(), self.identities)
        state, lost = self._interpret(choice)
        parted = [item.reason for item in state.failures if item.parted and not self._has_new_layers()]
        if parted or not promises:
            return parted, lost
        first, tried = lost, {choice}
        while lost and (choice := self._next_choice(state, tried)) not in tried:
            tried.add(choice)
            state, lost = self._interpret(choice)
        if lost:
            return [], first
        self.copied, self.state = state.choice.copied, state
        return [], []

    def _interpret(self, choice: Choice) -> tuple[State, list[str]]:
        """One run, and why it does not keep the function."""
        state = interpret(self.both, choice)
        self.factors, broken = solve(state.equations, self._rank)
        reasons = [item.reason for item in state.failures] + [_broken(item.reason) for item in broken]
        return state, list(dict.fromkeys(reasons))

    def _next_choice(self, state: State, tried: set[Choice]) -> Choice:
        """Copy the units that could not be fresh, leave fresh those that could not be copied; at last, free eps."""
        at_fault = {atom for item in state.failures for atom in item.atoms} or state.admitted
        grown = {atom for atom in at_fault if self.pairing.old_size(atom) and self.pairing.grows(atom)}
        choice = replace(state.choice, copied=state.choice.copied ^ (grown - self.never_copied))
        if choice in tried and self.options.allow_attribute_changes:
            return replace(state.choice, copied=self.copied, free_numbers=self._free_numbers())
        return choice

    def _free_numbers(self) -> frozenset[tuple[int, str]]:
        """The eps of norms, and numbers that are added, where a module attribute of that value gives them."""
        return frozenset(
            (number, name)
            for number, node in enumerate(self.new.nodes)
            for name, value in node.arguments.items()
            if (name == "eps" or node.name == "add") and isinstance(value, float) and self._attribute(node, value)
        )

    def _attribute(self, node: Node, value: float) -> str:
        """The dotted name of the module attribute that has this value where `node` runs."""
        own = vars(self.target.get_submodule(node.path)).items()
        name = next((key for key, item in own if isinstance(item, float) and item == value), "")
        return f"{node.path}.{name}".lstrip(".") if name else ""

    def _has_new_layers(self) -> bool:
        return any(name not in self.renamed for name in self.new.tensors)

    def attributes(self) -> dict[str, float]:
        """The module attributes that have to change, by dotted name."""
        changed: dict[str, float] = {}
        for number, name in self.state.decisions.numbers if self.state is not None else ():
            value, factor = self.new.nodes[number].arguments[name], self._factor(number_variable(number, name))
            if abs(factor - 1.0) > 1e-12:
                changed[self._attribute(self.new.nodes[number], value)] = value * factor
        return changed

    def _rank(self, item: Variable) -> float:
        """Norm gains take up a factor first, then matrices, then biases, then tables."""
        name, _ = item
        if name not in self.new.tensors:
            return 3.0  # a module attribute, last of all
        rank = len(self.new.tensors[name].axes)
        return 0.0 if name in self.gains else {1: 2.0, 2: 1.0}.get(rank, 1.0)

    @cached_property
    def gains(self) -> frozenset[str]:
        """The parameters with one entry per unit that another tensor is multiplied with."""
        products = (node for node in self.new.nodes if node.name == "mul" and len(node.tensors()) == 2)
        names = (self.both.roles.gain(value) for node in products for value in node.tensors())
        return frozenset(name for name in names if name is not None)

    # ---- the finished plan
    def tensors(self, names: list[str]) -> dict[str, TensorPlan]:
        """What becomes of every tensor."""
        layout = Layout(self.pairing.old_size, self.copied)
        own = {name: self._tensor(name, layout) for name in names if name not in self.copies}
        return {name: own[name] if name in own else self._copy(name, own[self.copies[name]]) for name in names}

    def _copy(self, name: str, original: TensorPlan) -> TensorPlan:
        return replace(original, name=name, source_name=self.renamed.get(name), like=original.name)

    def groups(self) -> tuple[UnitGroup, ...]:
        """The unit groups that grow."""
        groups = []
        for atom in self._growing():
            members = tuple(
                (name, dim)
                for name, value in self.new.tensors.items()
                for dim, axis in enumerate(value.axes)
                if name not in self.copies and atom in set(atoms(axis))
            )
            if not members:
                continue
            mode = "copied" if atom in self.copied else "fresh"
            place = self.pairing.places[atom]
            units = tuple(unit_index(self.new.tensors[name].axes[dim], atom) for name, dim in members)
            sizes = self.pairing.old_size(atom), atom.size
            groups.append(UnitGroup(place, *sizes, mode, members, self._output(atom), units))
        return tuple(groups)

    def _output(self, atom: Axis) -> int:
        """The output whose last axis the atom is; -1 if there is none."""
        ends = [value.axes[-1] if value.axes else None for value in self.new.outputs]
        return next((number for number, axis in enumerate(ends) if axis is not None and resolve(axis) is atom), -1)

    def _unit_map(self, atom: Axis, shared: bool) -> UnitMap:
        old = self.pairing.old_size(atom)
        plain = self.pairing.units(atom)
        if atom not in self.copied:
            return plain
        units = self.unit_sources.get(atom)
        if units is None:  # copies that a norm forced on a strategy that makes none
            units = self._in_turn(atom)
        source = torch.cat([plain.source[:old], units])
        whole = bool((source == source.round()).all())
        share = self._shares(source) if shared and whole else None
        return UnitMap(source, old, share)

    def _shares(self, source: Tensor) -> Tensor | None:
        return self.strategy.shares(source.long(), self.generator)

    def _tensor(self, name: str, layout: Layout) -> TensorPlan:
        value = self.new.tensors[name]
        source_name = self.renamed.get(name)
        shape = tuple(axis.size for axis in value.axes)
        owner = value.name or name
        maps = tuple(
            axis_map(axis, lambda atom, dim=dim: self._unit_map(atom, self._is_shared(owner, dim, atom)), layout.count)  # type: ignore[misc]
            for dim, axis in enumerate(value.axes)
        )
        old_shape = (
            None if source_name is None else tuple(axis.size for axis in self.both.source.tensors[source_name].axes)
        )
        reads = tuple((owner, dim) in self.both.roles.read for dim in range(len(shape)))
        cells = self._cells(name, layout)
        return TensorPlan(name, source_name, old_shape, shape, maps, cells, reads, not value.trained)

    def _is_shared(self, name: str, dim: int, atom: Axis) -> bool:
        """Whether a dimension reads copies in shares."""
        if self.state is not None:
            return ((name, dim), atom) in self.state.decisions.shares
        return (name, dim) in self.both.roles.read and (name, dim) not in self.both.roles.written

    def _cells(self, name: str, layout: Layout) -> Any:
        value = self.new.tensors[name]
        grid = layout.grid(value.axes)
        cells = np.empty([len(slots) for slots in grid], dtype=object)
        for index in np.ndindex(cells.shape):
            is_new = any(slots[number].is_new for slots, number in zip(grid, index, strict=True))
            cells[index] = self._cell(name, index, is_new)
        return cells

    def _cell(self, name: str, index: tuple[int, ...], is_new: bool) -> CellPlan:
        if not self.strategy.transfers:
            return CellPlan(Kind.NEW)
        if self.state is None:
            return self._plain_cell(name, is_new)
        value = self.new.tensors[name]
        cell = self.state.of(value)[index] if value.constant is None else None
        if cell is None:
            return CellPlan(Kind.NEW if is_new or name not in self.renamed else Kind.KEPT)
        if cell.kind is Kind.MEAN:
            dim = next(dim for dim, axis in enumerate(value.axes) if resolve(axis) is cell.atom)
            return CellPlan(Kind.MEAN, self._factor(cell.scale), dim)
        if cell.kind is Kind.KEPT and value.name in self.both.roles.offsets:
            factor = self._factor(variable(value.name, index))
            return CellPlan(Kind.KEPT, factor, offset=self.both.roles.offsets[value.name])
        return CellPlan(cell.kind, self._factor(cell.scale) if cell.kind is Kind.KEPT else 1.0)

    def _plain_cell(self, name: str, is_new: bool) -> CellPlan:
        """A lossy strategy: source entries are kept, a new layer is the identity where it can be."""
        if name in self.renamed:
            return CellPlan(Kind.NEW if is_new else Kind.KEPT)
        beside = {item.rpartition(".")[0] for item in self.identities}
        if name in self.identities:
            return CellPlan(Kind.NEW if is_new else Kind.IDENTITY)
        if name.rpartition(".")[0] in beside and len(self.new.tensors[name].axes) == 1:
            return CellPlan(Kind.ZERO)
        return CellPlan(Kind.NEW)

    def _factor(self, scale: Scale) -> float:
        """The number behind an expression, now that the system is solved."""
        total = sum(coefficient * self.factors.get(item, 0.0) for item, coefficient in scale.terms.items())
        return math.exp(total + scale.constant)


def _name_dropped(names: list[str]) -> list[str]:
    """What is lost with inputs that the target does not have."""
    if not names:
        return []
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return [f"{len(names)} inputs are dropped as drop_inputs asks ({shown}): the outputs change."]


def _broken(reason: str) -> str:
    return (
        f"{reason} gets its input at another scale than in the source, and no parameter before it can take up the "
        "factor. Use a multiple of the source's size, so that units can be copied; or, if it is a norm, "
        "allow_attribute_changes=True."
    )
