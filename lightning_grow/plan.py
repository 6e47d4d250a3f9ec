"""The plan: every decision of a growth, made before anything changes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

from lightning_grow.axes import Axis, atoms, resolve
from lightning_grow.cells import Kind, Layout
from lightning_grow.depth import match_names
from lightning_grow.errors import RefusedGrowth
from lightning_grow.interpret import Choice, State, interpret, number_variable
from lightning_grow.meanings import Normalize
from lightning_grow.maps import AxisMap, UnitMap, axis_map, unit_index
from lightning_grow.pairing import Pairing, pair_traces
from lightning_grow.report import as_text
from lightning_grow.roles import Roles, find_roles
from lightning_grow.scale import Scale, Variable, solve
from lightning_grow.strategies.base import Strategy
from lightning_grow.trace import Forward, Node, Trace, named_tensors, trace

Slices = tuple[Any, ...]


@dataclass(frozen=True)
class UnitGroup:
    """The (parameter, axis) pairs that widen together.

    Args:
        name: Where the group was first met.
        old: Units of the source.
        new: Units of the target.
        mode: "fresh" or "copied".
        members: (parameter, dimension) pairs.
        units: For every member, the unit that each position belongs to (-1: none), int64 (size of the dimension,).
    """

    name: str
    old: int
    new: int
    mode: str
    members: tuple[tuple[str, int], ...]
    units: tuple[Tensor, ...] = field(default=(), repr=False, compare=False)


@dataclass(frozen=True)
class CellPlan:
    """One block of a tensor: what its entries are and the factor on the source's."""

    kind: Kind
    factor: float = 1.0
    mean_dim: int = -1


@dataclass(frozen=True, eq=False)
class TensorPlan:
    """One tensor of the target.

    Args:
        name: The target's name.
        source_name: The source's name, None for a tensor of a new layer.
        source_shape: None for a tensor of a new layer.
        target_shape: The target's shape.
        maps: One map per dimension.
        cells: An array of `CellPlan`, one per combination of blocks.
        reads: Whether each dimension is read (fan-in).
        is_state: Whether it is a buffer.
    """

    name: str
    source_name: str | None
    source_shape: tuple[int, ...] | None
    target_shape: tuple[int, ...]
    maps: tuple[AxisMap, ...]
    cells: np.ndarray[Any, Any]
    reads: tuple[bool, ...]
    is_state: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the source's tensor is taken as it is."""
        return (
            self.source_name is not None
            and all(item.is_identity for item in self.maps)
            and all(cell.kind is Kind.KEPT and cell.factor == 1.0 for cell in self.cells.flat)
        )

    @property
    def is_one_to_one(self) -> bool:
        """Whether each source entry has exactly one target entry: the condition for moving an optimizer's state."""
        return (
            self.source_name is not None
            and not any(item.interpolates or item.share is not None for item in self.maps)
            and all(int((item.low >= 0).sum()) == item.old for item in self.maps)
            and all(cell.kind is not Kind.MEAN for cell in self.cells.flat)
        )

    def blocks(self) -> Iterator[tuple[tuple[int, ...], CellPlan]]:
        """Every block, with its index among the dimensions' slots."""
        for index in np.ndindex(self.cells.shape):
            yield index, self.cells[index]

    def role(self, index: tuple[int, ...]) -> str:
        """How the new entries of a block are used: "read" if they belong to new units of a dimension that reads."""
        if self.is_state:
            return "state"
        new = [dim for dim, item in enumerate(self.maps) if self._is_new(dim, index[dim])]
        return "read" if any(self.reads[dim] for dim in new) else "written"

    def _is_new(self, dim: int, slot: int) -> bool:
        item = self.maps[dim]
        return bool((item.low[item.slot == slot] < 0).any())

    def at(self, index: tuple[int, ...]) -> Slices:
        """The target positions of a block, as slices where they are consecutive."""
        return tuple(_run(torch.nonzero(item.slot == number).flatten()) for item, number in zip(self.maps, index, strict=True))


def _run(positions: Tensor) -> slice | Tensor:
    """Consecutive positions as a slice, which copies without gathering."""
    if len(positions) and int(positions[-1] - positions[0]) == len(positions) - 1:
        return slice(int(positions[0]), int(positions[-1]) + 1)
    return positions


@dataclass(frozen=True, eq=False)
class GrowthPlan:
    """What a growth will do; printing it shows the table, `apply` does it.

    Args:
        strategy: The strategy.
        groups: The unit groups that grow.
        tensors: Target name -> plan, in the target's order.
        refused: Why the growth cannot keep the function (or has no meaning); empty where it can.
        impossible: Those of the refusals that no strategy can mend.
        lost: Why the function is not kept, where the strategy does not promise it.
        notes: What else a user should know.
        attributes: Module attributes that have to change too, by dotted name (a norm's eps).
        lowest_dtype: The lowest float type seen in either pass.
        input_positions: For every dimension of every input tensor, the positions that the source has too.
    """

    strategy: Strategy
    groups: tuple[UnitGroup, ...]
    tensors: Mapping[str, TensorPlan]
    refused: tuple[str, ...] = ()
    impossible: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    attributes: Mapping[str, float] = field(default_factory=dict)
    lowest_dtype: torch.dtype = torch.float32
    input_positions: tuple[tuple[Tensor, ...], ...] = field(default=(), repr=False)

    @property
    def is_trivial(self) -> bool:
        """Whether every tensor is taken as it is."""
        return not self.refused and all(item.is_plain for item in self.tensors.values())

    def apply(self, source_state: Mapping[str, Tensor], target_state: Mapping[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
        """Build the grown state.

        Args:
            source_state: The source's state dict, or any other copy of its weights (an average).
            target_state: The target's state dict, for its names, types, and the initial values of new entries.
            seed: Seed of random entries; the same seed gives the same fill.

        Returns:
            A new state dict with `target_state`'s names; neither argument is changed.
        """
        from lightning_grow.apply import empty_state, write_state  # apply is written in terms of the plan

        grown = empty_state(target_state)
        write_state(self, source_state, target_state, grown, seed)
        return grown

    def new_entries(self, name: str) -> Tensor:
        """Return which entries of a tensor no source entry gives: a bool mask of the target's shape."""
        item = self.tensors[name]
        mask = torch.ones(item.target_shape, dtype=torch.bool)
        if item.source_name is not None:
            given = [axis.low >= 0 for axis in item.maps]
            for dim, known in enumerate(given):
                mask &= known.view([-1 if other == dim else 1 for other in range(len(given))])
            mask = ~mask
        return mask

    def move(self, name: str, tensor: Tensor, power: float) -> Tensor | None:
        """Move an optimizer's state tensor of the source's shape.

        Args:
            name: The target parameter.
            tensor: The state, in the source parameter's shape.
            power: 1 for what follows the gradient (momentum), 2 for its square, 0 for what has no unit. The gradient
                of a weight that was scaled by a is 1/a of the source's.

        Returns:
            A tensor of the target's shape, 0 at new entries; None where the map is not one-to-one (copied or averaged
            units, a new layer), so that no exact relation exists.
        """
        from lightning_grow.apply import move_state

        return move_state(self.tensors[name], tensor, power)

    def __rich__(self) -> Table:
        """Return the plan as a table: the unit groups, then the refusals."""
        table = Table(title=f"Growth by {self.strategy.name}", caption=self._caption(), caption_justify="left")
        for title in ("unit group", "source", "target", "new units", "tensors"):
            table.add_column(title, overflow="fold")
        for group in self.groups:
            members = ", ".join(f"{name}[{dim}]" for name, dim in group.members)
            table.add_row(group.name, str(group.old), str(group.new), group.mode, members)
        return table

    def _caption(self) -> str:
        changed = sum(not item.is_plain for item in self.tensors.values())
        lines = [f"{changed} of {len(self.tensors)} tensors change."]
        lines += [f"refused: {reason}" for reason in self.refused]
        return "\n".join([*lines, *self.notes])

    def __str__(self) -> str:
        """Return the table as text."""
        return as_text(self.__rich__())


@dataclass(frozen=True)
class Permissions:
    """What a user has allowed beyond widening hidden units."""

    inputs: bool = False
    outputs: bool = False
    attributes: bool = False


def make_plan(
    source: nn.Module,
    target: nn.Module,
    strategy: Strategy,
    source_inputs: Any,
    target_inputs: Any,
    forward: Forward | None = None,
    rename: Mapping[str, str] | None = None,
    allowed: Permissions = Permissions(),  # noqa: B008  # frozen
    seed: int = 0,
) -> GrowthPlan:
    """Trace both modules, pair their axes and decide what every tensor becomes.

    Raises:
        RefusedGrowth: A module cannot be traced.
    """
    old, new = trace(source, source_inputs, forward), trace(target, target_inputs, forward)
    shapes = {name: tuple(item.shape) for name, item in named_tensors(source).items()}
    wide = {name: tuple(item.shape) for name, item in named_tensors(target).items()}
    renamed = match_names(shapes, wide, rename)
    pairing = pair_traces(old, new, renamed)
    notes = _name_inputs(source, target, new, pairing)
    roles = find_roles(new)
    draft = _Draft(old, new, pairing, roles, renamed, strategy, allowed, target, seed)
    saved_old, saved_new = _saved(source), _saved(target)
    impossible = [
        *pairing.refused,
        *_missing(saved_old, saved_new, renamed),
        *_untied(old, new, renamed),
        *_unused(new, pairing, renamed),
        *_ends(old, new, pairing, allowed),
    ]
    refused = list(impossible)
    lost: list[str] = []
    if not impossible and strategy.transfers:
        parted, lost = draft.decide()
        impossible += parted
        refused += parted if not strategy.function_preserving else parted + lost
    plan = draft.finish(saved_new, tuple(refused), tuple(impossible), tuple(lost), notes)
    return replace(plan, attributes=draft.attributes())


def _name_inputs(source: nn.Module, target: nn.Module, new: Trace, pairing: Pairing) -> tuple[str, ...]:
    """Pair the first input's features by name where both modules name them; else say what is assumed."""
    names = getattr(source, "input_names", None), getattr(target, "input_names", None)
    if not new.inputs or not new.inputs[0].axes:
        return ()
    axis = new.inputs[0].axes[-1]
    if names[0] is not None and names[1] is not None and len(names[1]) == axis.size:
        pairing.name_inputs(axis, names[0], names[1])
        return ()
    if not any(pairing.grows(atom) for atom in atoms(axis)):
        return ()
    return ("New inputs are taken to stand after the old ones: the modules have no input_names to tell them apart by.",)


def _saved(module: nn.Module) -> list[str]:
    return [name.replace("_orig_mod.", "") for name, item in module.state_dict().items() if isinstance(item, Tensor)]


def _missing(saved: list[str], there: list[str], renamed: Mapping[str, str]) -> list[str]:
    """Source tensors without a place in the target, one reason per module that the target lacks."""
    used = set(renamed.values())
    missing: dict[str, int] = {}
    for name in saved:
        if name not in used:
            parts = name.split(".")
            prefixes = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
            known = [item for item in prefixes if any(other == item or other.startswith(item + ".") for other in there)]
            lacking = prefixes[min(len(known), len(prefixes) - 1)]
            missing[lacking] = missing.get(lacking, 0) + 1
    return [
        f"the target has no place for the source's '{name}' ({count} tensor{'s' * (count > 1)}). Keep that layer in the "
        "target, or pass rename={target prefix: source prefix} if it has another name there."
        for name, count in missing.items()
    ]


def _untied(old: Trace, new: Trace, renamed: Mapping[str, str]) -> list[str]:
    """A tensor that the target uses under two names must be one tensor in the source too."""
    owner: dict[Any, str] = {}
    refused = []
    for name, old_name in renamed.items():
        first = owner.setdefault(new.tensors[name], name)
        if old.tensors[renamed[first]] is not old.tensors[old_name]:
            refused.append(
                f"'{name}' and '{first}' are one tensor in the target and two in the source; tie or untie both models alike."
            )
    return refused


def _unused(new: Trace, pairing: Pairing, renamed: Mapping[str, str]) -> list[str]:
    used = {value for node in new.nodes for value in node.tensors()} | set(new.outputs)
    return [
        f"'{name}' grows but no traced operator uses it, so what its axes mean is unknown. Pass forward= a callable "
        "that uses it, or keep its shape."
        for name in renamed
        if new.tensors[name] not in used
        and any(pairing.grows(atom) for axis in new.tensors[name].axes for atom in atoms(axis))
    ]


def _ends(old: Trace, new: Trace, pairing: Pairing, allowed: Permissions) -> list[str]:
    """Inputs and outputs keep their sizes unless the user said otherwise."""
    refused = []
    for kind, values, may, sources in (
        ("input", new.inputs, allowed.inputs, old.inputs),
        ("output", new.outputs, allowed.outputs, old.outputs),
    ):
        for number, value in enumerate(values):
            for dim, axis in enumerate(value.axes):
                grown = [atom for atom in atoms(axis) if pairing.old_size(atom) and pairing.grows(atom)]
                if not grown or may:
                    continue
                before = sources[number].axes[dim].size if number < len(sources) else pairing.old_size(grown[0])
                refused.append(
                    f"{kind} {number} grows along axis {dim}: the source has {before} positions, the target "
                    f"{axis.size}. Pass allow_{kind}_growth=True if the new ones are to be added, or keep the size."
                )
    return refused


class _Draft:
    """A plan in the making."""

    def __init__(
        self,
        old: Trace,
        new: Trace,
        pairing: Pairing,
        roles: Roles,
        renamed: dict[str, str],
        strategy: Strategy,
        allowed: Permissions,
        target: nn.Module,
        seed: int,
    ) -> None:
        self.old, self.new, self.pairing, self.roles = old, new, pairing, roles
        self.renamed, self.strategy, self.allowed, self.target = renamed, strategy, allowed, target
        self.generator = torch.Generator().manual_seed(seed)
        self.identities = self._identities() if strategy.transfers else frozenset[str]()
        self.unit_sources = {atom: self._unit_source(atom) for atom in self._growing()} if strategy.transfers else {}
        self.copied = frozenset(atom for atom, units in self.unit_sources.items() if units is not None)
        self.state: State | None = None
        self.factors: dict[Variable, float] = {}

    def _growing(self) -> list[Axis]:
        found: dict[Axis, None] = {}
        for value in self.new.tensors.values():
            for axis in value.axes:
                found.update({atom: None for atom in atoms(axis) if self.pairing.grows(atom) and self.pairing.old_size(atom)})
        return list(found)

    def _unit_source(self, atom: Axis) -> Tensor | None:
        """The strategy's answer; new inputs and outputs are no copies of others."""
        if any(atom in set(atoms(axis)) for value in (*self.new.inputs, *self.new.outputs) for axis in value.axes):
            return None
        return self.strategy.units(self.pairing.old_size(atom), atom.size, self.generator)

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
        state = interpret(self.old, self.new, self.pairing, self.roles, self.renamed, choice)
        self.factors, broken = solve(state.equations, self._rank)
        reasons = [item.reason for item in state.failures] + [_broken(item.reason) for item in broken]
        return state, list(dict.fromkeys(reasons))

    def _next_choice(self, state: State, tried: set[Choice]) -> Choice:
        """Copy the units that could not be fresh, leave fresh those that could not be copied; at last, free eps."""
        at_fault = {atom for item in state.failures for atom in item.atoms} or state.admitted
        grown = {atom for atom in at_fault if self.pairing.old_size(atom) and self.pairing.grows(atom)}
        choice = replace(state.choice, copied=state.choice.copied ^ frozenset(grown))
        if choice in tried and self.allowed.attributes:
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
        """The parameters that scale a norm's output."""
        return frozenset(
            meaning.scale.name
            for node in self.new.nodes
            for meaning in node.meaning
            if isinstance(meaning, Normalize) and meaning.scale is not None and meaning.scale.name is not None
        )

    # ---- the finished plan
    def finish(
        self,
        saved: list[str],
        refused: tuple[str, ...],
        impossible: tuple[str, ...],
        lost: tuple[str, ...],
        notes: tuple[str, ...],
    ) -> GrowthPlan:
        """Freeze everything into a plan."""
        layout = Layout(self.pairing.old_size, self.copied)
        dtypes = [self.old.lowest_dtype, self.new.lowest_dtype]
        return GrowthPlan(
            strategy=self.strategy,
            groups=self._groups(),
            tensors={} if impossible else {name: self._tensor(name, layout) for name in saved},
            refused=refused,
            impossible=impossible,
            lost=lost,
            notes=notes,
            lowest_dtype=min(dtypes, key=lambda dtype: torch.finfo(dtype).bits),
            input_positions=tuple(
                tuple(map(self.pairing.old_positions, value.axes)) for value in self.new.inputs
            ),
        )

    def _groups(self) -> tuple[UnitGroup, ...]:
        groups = []
        for atom in self._growing():
            members = tuple(
                (name, dim)
                for name, value in self.new.tensors.items()
                for dim, axis in enumerate(value.axes)
                if atom in set(atoms(axis))
            )
            mode = "copied" if atom in self.copied else "fresh"
            place = self.pairing.places[atom]
            units = tuple(unit_index(self.new.tensors[name].axes[dim], atom) for name, dim in members)
            groups.append(UnitGroup(place, self.pairing.old_size(atom), atom.size, mode, members, units))
        return tuple(groups)

    def _unit_map(self, atom: Axis, shared: bool) -> UnitMap:
        old = self.pairing.old_size(atom)
        plain = self.pairing.units(atom)
        if atom not in self.copied:
            return plain
        units = self.unit_sources.get(atom)
        if units is None:  # copies that a norm forced on a strategy that makes none
            units = (torch.arange(old, atom.size) % old).double()
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
        old_shape = None if source_name is None else tuple(axis.size for axis in self.old.tensors[source_name].axes)
        reads = tuple((owner, dim) in self.roles.read for dim in range(len(shape)))
        cells = self._cells(name, layout)
        return TensorPlan(name, source_name, old_shape, shape, maps, cells, reads, not value.trained)

    def _is_shared(self, name: str, dim: int, atom: Axis) -> bool:
        """Whether a dimension reads copies in shares."""
        if self.state is not None:
            return ((name, dim), atom) in self.state.decisions.shares
        return (name, dim) in self.roles.read and (name, dim) not in self.roles.written

    def _cells(self, name: str, layout: Layout) -> np.ndarray[Any, Any]:
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
            return CellPlan(Kind.NEW if is_new else Kind.KEPT)
        if cell.kind is Kind.MEAN:
            dim = next(dim for dim, axis in enumerate(value.axes) if resolve(axis) is cell.atom)
            return CellPlan(Kind.MEAN, self._factor(cell.scale), dim)
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


def _broken(reason: str) -> str:
    return (
        f"{reason} gets its input at another scale than in the source, and no parameter before it can take up the factor. "
        "Use a multiple of the source's size, so that units can be copied; or, if it is a norm, allow_attribute_changes."
    )


def refuse(plan: GrowthPlan) -> None:
    """Raise what the plan refuses, all of it at once.

    Raises:
        RefusedGrowth: The plan has refusals.
    """
    if plan.refused:
        raise RefusedGrowth(plan.refused)

