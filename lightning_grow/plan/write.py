"""Write a plan down: what becomes of every tensor, and the unit groups that grow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lightning_grow.pair.maps import UnitMap, axis_map, unit_index
from lightning_grow.pair.match import Match
from lightning_grow.pair.roles import Dimension, Roles
from lightning_grow.plan.cells import Kind, Layout, Slot, is_wanted
from lightning_grow.plan.choose import Chosen
from lightning_grow.plan.copied_units import CopiedUnits
from lightning_grow.plan.scale import variable
from lightning_grow.plan.tensor_plan import CellPlan, TensorPlan
from lightning_grow.plan.unit_group import UnitGroup
from lightning_grow.strategies.base import Strategy
from lightning_grow.trace.axes import Axis, atoms, resolve
from lightning_grow.trace.meanings import Cells
from lightning_grow.trace.tape import Node, Value


@dataclass(frozen=True)
class Draft:
    """All that a plan is written from.

    Args:
        match: Source and target side by side.
        roles: Which dimensions of parameters are read and written.
        strategy: The strategy.
        units: Which units may be copies.
        chosen: What keeps the function.
        copies: Copies of networks -> what they copy.
        generator: For strategies that draw shares.
    """

    match: Match
    roles: Roles
    strategy: Strategy
    units: CopiedUnits
    chosen: Chosen
    copies: Mapping[str, str]
    generator: torch.Generator

    @property
    def copied(self) -> frozenset[Axis]:
        """The atoms whose new units are copies."""
        return self.chosen.choice.copied

    @cached_property
    def layout(self) -> Layout:
        """The blocks of every axis."""
        return Layout(self.match.old_size, self.copied)

    @cached_property
    def uses(self) -> dict[Value, list[Node]]:
        """The operators that take each tensor."""
        found: dict[Value, list[Node]] = defaultdict(list)
        for node in self.match.target.nodes:
            for value in node.tensors():
                if value.name is not None:
                    found[value].append(node)
        return found

    @cached_property
    def shares(self) -> set[tuple[Dimension, Axis]]:
        """The dimensions that read copies in shares."""
        return self.chosen.run.shares if self.chosen.run is not None else set()


# ---- tensors
def write_tensors(draft: Draft, names: Iterable[str]) -> dict[str, TensorPlan]:
    """What becomes of every tensor."""
    listed = list(names)
    own = {name: _write_tensor(draft, name) for name in listed if name not in draft.copies}

    def copy(name: str) -> TensorPlan:
        original = own[draft.copies[name]]
        return replace(original, name=name, source_name=draft.match.names.get(name), like=original.name)

    return {name: own[name] if name in own else copy(name) for name in listed}


def _write_tensor(draft: Draft, name: str) -> TensorPlan:
    value, old = draft.match.target.tensors[name], draft.match.names.get(name)
    owner, run = value.name or name, draft.chosen.run
    found = run.of(value) if run is not None and value.constant is None else None
    maps = tuple(
        axis_map(axis, lambda atom, dim=dim: _unit_map(draft, (owner, dim), atom), draft.layout.count)  # type: ignore[misc]
        for dim, axis in enumerate(value.axes)
    )
    return TensorPlan(
        name=name,
        source_name=old,
        source_shape=None if old is None else draft.match.source.tensors[old].shape,
        target_shape=value.shape,
        maps=maps,
        cells=draft.layout.each_cell(value.axes, lambda index, slots: _write_cell(draft, name, found, index, slots)),
        reads=tuple((owner, dim) in draft.roles.read for dim in range(len(value.axes))),
        is_state=not value.trained,
        used_by=tuple(dict.fromkeys(node.place for node in draft.uses.get(value, ()))),
    )


def _unit_map(draft: Draft, dimension: Dimension, atom: Axis) -> UnitMap:
    plain = draft.match.units(atom)
    if atom not in draft.copied:
        return plain
    old = draft.match.old_size(atom)
    source = torch.cat([plain.source[:old], draft.units.of(draft.match, atom)])
    is_whole = bool((source == source.round()).all())
    return UnitMap(source, old, _share(draft, source) if is_whole and _is_shared(draft, dimension, atom) else None)


def _share(draft: Draft, source: Tensor) -> Tensor | None:
    return draft.strategy.shares(source.long(), draft.generator)


def _is_shared(draft: Draft, dimension: Dimension, atom: Axis) -> bool:
    """Whether a dimension reads copies in shares."""
    if draft.chosen.run is not None:
        return (dimension, atom) in draft.shares
    return dimension in draft.roles.read and dimension not in draft.roles.written


def _write_cell(draft: Draft, name: str, found: Cells | None, index: tuple[int, ...], slots: list[Slot]) -> CellPlan:
    """What a block of a tensor becomes under the run that keeps the function."""
    value, run, factor = draft.match.target.tensors[name], draft.chosen.run, draft.chosen.factor
    if not draft.strategy.transfers:
        return CellPlan(Kind.NEW)
    if run is None:
        return _plain_cell(draft, name, is_wanted(slots))
    if found is None:  # a constant
        return CellPlan(Kind.KEPT if is_wanted(slots) and name in draft.match.names else Kind.NEW)
    cell, because = found[index], run.because((value.name or name, index))
    if cell.kind is Kind.MEAN:
        dim = next(dim for dim, axis in enumerate(value.axes) if resolve(axis) is cell.atom)
        return CellPlan(Kind.MEAN, factor(cell.scale), dim, because=because)
    if cell.kind is Kind.KEPT and value.name in draft.roles.offsets:
        return CellPlan(Kind.KEPT, factor(variable(value.name, index)), offset=draft.roles.offsets[value.name])
    return CellPlan(cell.kind, factor(cell.scale) if cell.kind is Kind.KEPT else 1.0, because=because)


def _plain_cell(draft: Draft, name: str, wanted: bool) -> CellPlan:
    """A lossy strategy: source entries are kept, a new layer is the identity where it can be."""
    if name in draft.match.names:
        return CellPlan(Kind.KEPT if wanted else Kind.NEW)
    identities = draft.chosen.choice.identities
    if name in identities:
        return CellPlan(Kind.IDENTITY if wanted else Kind.NEW)
    tensors = draft.match.target.tensors
    beside = {item.rpartition(".")[0] for item in identities if len(tensors[item].axes) == 2}
    is_bias = name.rpartition(".")[0] in beside and len(tensors[name].axes) == 1
    return CellPlan(Kind.ZERO if is_bias else Kind.NEW)


# ---- unit groups
def write_groups(draft: Draft) -> tuple[UnitGroup, ...]:
    """The unit groups that grow."""
    tensors = draft.match.target.tensors
    growing = draft.match.growing(axis for value in tensors.values() for axis in value.axes)
    groups = (_write_group(draft, atom) for atom in growing)
    return tuple(group for group in groups if group.members)


def _write_group(draft: Draft, atom: Axis) -> UnitGroup:
    tensors = draft.match.target.tensors
    members = tuple(
        (name, dim)
        for name, value in tensors.items()
        for dim, axis in enumerate(value.axes)
        if name not in draft.copies and atom in set(atoms(axis))
    )
    return UnitGroup(
        name=draft.match.places[atom],
        old=draft.match.old_size(atom),
        new=atom.size,
        mode="copied" if atom in draft.copied else "fresh",
        members=members,
        output=_output(draft.match, atom),
        units=tuple(unit_index(tensors[name].axes[dim], atom) for name, dim in members),
    )


def _output(match: Match, atom: Axis) -> int:
    """The output whose last axis the atom is; -1 if there is none."""
    ends = [value.axes[-1] if value.axes else None for value in match.target.outputs.values()]
    return next((number for number, axis in enumerate(ends) if axis is not None and resolve(axis) is atom), -1)
