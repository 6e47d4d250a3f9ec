"""Which units may be copies of others: what the strategy wants, and what inputs, states and constants allow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_grow.pair.find import same_constant
from lightning_grow.pair.maps import UnitMap, axis_map, prefix_map
from lightning_grow.pair.match import Match
from lightning_grow.strategies.base import Strategy
from lightning_grow.trace.axes import Axis, atoms
from lightning_grow.trace.tape import Trace, Value, atoms_of

Constants = Mapping[Axis, list[tuple[Value, int]]]


@dataclass(frozen=True)
class CopiedUnits:
    """The new units that a strategy makes as copies.

    Args:
        sources: Growing atom -> the source unit of each new unit, float64 (new units,).
        never: Atoms whose new units the model is given: those of inputs, of states that begin at 0, and of constants.
    """

    sources: Mapping[Axis, Tensor]
    never: frozenset[Axis]

    def of(self, match: Match, atom: Axis) -> Tensor:
        """The source unit of each new unit: the strategy's, or in turn where a norm forces copies on one without."""
        return self.sources[atom] if atom in self.sources else _in_turn(match, atom)


def find_copied_units(
    match: Match, strategy: Strategy, states: frozenset[Axis], generator: torch.Generator
) -> CopiedUnits:
    """Ask the strategy for every growing atom; new inputs and outputs are no copies of others.

    Args:
        match: Source and target side by side.
        strategy: The strategy.
        states: The atoms of states that begin at 0.
        generator: For strategies that draw.
    """
    growing = match.growing(axis for value in match.target.tensors.values() for axis in value.axes)
    constants = _find_constants(match.target)
    never = frozenset(atoms_of(match.target.inputs))
    if strategy.function_preserving:
        never |= {atom for atom in growing if not _repeats(match, constants, atom, _in_turn(match, atom))} | states
    ends = atoms_of(match.target.outputs.values())
    sources: dict[Axis, Tensor] = {}
    for atom in growing if strategy.transfers else ():
        if atom in never or atom in ends:
            continue
        units = strategy.units(match.old_size(atom), atom.size, generator)
        if units is not None and (not strategy.function_preserving or _repeats(match, constants, atom, units)):
            sources[atom] = units
    return CopiedUnits(sources, never)


def _in_turn(match: Match, atom: Axis) -> Tensor:
    """Copies of the source's units in their order."""
    old = match.old_size(atom)
    return (torch.arange(old, atom.size) % old).double()


def _repeats(match: Match, constants: Constants, atom: Axis, units: Tensor) -> bool:
    """Whether every constant has equal entries at a unit and at its copies."""
    old = match.old_size(atom)
    copies = UnitMap(torch.cat([torch.arange(old).double(), units]), old)
    for constant, dim in constants.get(atom, ()):
        maps = lambda item: copies if item is atom else prefix_map(item.size, item.size)  # noqa: E731
        unit = axis_map(constant.axes[dim], maps, lambda _: 1).low
        positions = torch.arange(len(unit))
        first = torch.full_like(unit, len(unit)).scatter_reduce_(0, unit, positions, "amin")[unit]
        content = constant.constant
        if content is not None and not same_constant(content.index_select(dim, first), content):
            return False
    return True


def _find_constants(trace: Trace) -> Constants:
    """Atom -> the constants that have it and meet what is none, with its dimension."""
    nodes = [node for node in trace.nodes if any(value.constant is None for value in node.outputs)]
    found: dict[Axis, list[tuple[Value, int]]] = defaultdict(list)
    for value in dict.fromkeys(value for node in nodes for value in node.tensors() if value.constant is not None):
        for dim, axis in enumerate(value.axes):
            for atom in dict.fromkeys(atoms(axis)):
                found[atom].append((value, dim))
    return found
