"""What of the target is what of the source: tensors by name, units by their axes, values by what computes them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_grow.pair.entries import key, moved, only_moves
from lightning_grow.pair.layouts import OtherLayout, pair_axes, say_other_layout, say_traded
from lightning_grow.pair.maps import UnitMap, axis_map, prefix_map
from lightning_grow.pair.operators import Operators, computed_again
from lightning_grow.trace.axes import Axis, atoms, resolve
from lightning_grow.trace.tape import Node, Trace, Value


@dataclass(frozen=True)
class Refusal:
    """Why something cannot be matched.

    Args:
        reason: A sentence or two; with a place, what is to be said of every place alike.
        atom: The target's units, where there are too few.
        place: Where.
    """

    reason: str
    atom: Axis | None = None
    place: str = ""

    def __str__(self) -> str:
        """Return the reason with its place."""
        return _at_once(self.reason, [self.place] if self.place else [])


class LeftOut(NamedTuple):
    """The outputs that are not compared: what a forward takes back, of another size now, and what is new."""

    state: frozenset[str] = frozenset()
    added: frozenset[str] = frozenset()


class Match:
    """Two tapes side by side. What is stated is only added to, and `rewind` drops what was stated last.

    Args:
        source: The source's tape.
        target: The target's tape.
        names: Target name -> source name, for every tensor that both have.
        beside: Tensors that no traced operator uses -> the one whose axes they have.
        settings: The source's buffers that are its own: not among `names`.

    Attributes:
        atoms: Target atom -> the source atoms it grew from, all of one size; () where the source has nothing of it.
        places: Target atom -> where it was first met, for messages.
        named: Target atom -> the source unit of each target unit (-1: none), where units have names.
        placed: The same, where constants tell the units apart; of the run under way.
        values: Target value -> source value.
        refused: What cannot be matched.
        left_out: The outputs that are not compared.
        operators: The source's operators.
    """

    def __init__(
        self,
        source: Trace,
        target: Trace,
        names: dict[str, str],
        beside: dict[str, str],
        settings: Collection[str] = (),
    ) -> None:
        self.source, self.target, self.names, self.beside, self.settings = source, target, names, beside, settings
        self.atoms: dict[Axis, tuple[Axis, ...]] = {}
        self.places: dict[Axis, str] = {}
        self.named: dict[Axis, Tensor] = {}
        self.placed: dict[Axis, Tensor] = {}
        self.values: dict[Value, Value] = {}
        self.refused: list[Refusal] = []
        self.left_out = LeftOut()
        self._seen: dict[Any, int] = {}
        self._log: list[tuple[dict[Any, Any], Any, Any]] = []
        self._same: dict[Value, Value] = {}
        self._numbered: dict[Value, Tensor] = {}
        self._by_entries: dict[Any, Value] = {}
        self._count = 0
        self.operators = Operators(source)
        self._twins = computed_again(target)

    # ---- stating
    def _state(self, table: dict[Any, Any], key: Any, value: Any) -> None:
        self._log.append((table, key, table.get(key)))
        table[key] = value

    @property
    def length(self) -> int:
        """How much has been stated, to `rewind` to."""
        return len(self._log)

    def rewind(self, length: int) -> None:
        """Drop all that was stated since."""
        while len(self._log) > length:
            table, key, before = self._log.pop()
            if before is None:
                del table[key]
            else:
                table[key] = before

    def first(self, source: Value) -> Value:
        """The value of the source that stands for all that are computed in the same way of the same."""
        return self.operators.first(source)

    def pair_values(self, source: Value, target: Value) -> None:
        """State that a value of the target is one of the source."""
        self._state(self.values, target, self.first(source))

    def pass_on(self, value: Value | None, output: Value) -> None:
        """State that a value of the target is another one of it, and so the source's too, if that one is."""
        if value in self.values:
            self.pair_values(self.values[value], output)
        elif value is not None:
            self._state(self._same, output, self._same.get(value, value))

    def show(self, output: Value) -> None:
        """State what a new operator's output is, where it holds all entries of one of the source's in their places."""
        numbers = self.entries(output)
        if numbers is not None:
            self.pass_on(self._by_entries.get(key(numbers)), output)

    def entries(self, value: Value) -> Tensor | None:
        """A number for each entry, the same wherever it is moved to; None where some are not the source's."""
        value = self._same.get(value, value)
        if value in self._numbered:
            return self._numbered[value]
        numbers = self._find_numbers(value)
        if numbers is not None:
            self._state(self._numbered, value, numbers)
            if value in self.values:
                self._state(self._by_entries, key(numbers), value)
        return numbers

    def _find_numbers(self, value: Value) -> Tensor | None:
        node = self.target.makers.get(value)
        if node is not None and only_moves(node):
            given = [item for item in map(self.entries, node.tensors()) if item is not None]
            if len(given) == len(node.tensors()):
                return moved(node, given)[node.outputs.index(value)]
        if value not in self.values:
            return None
        count = math.prod(value.shape)
        self._count += count
        return torch.arange(self._count - count, self._count).view(value.shape)

    def pair(self, source: Axis, target: Axis, place: str) -> list[Refusal]:
        """State that a source axis became a target axis.

        Args:
            source: An axis of the source's tape.
            target: An axis of the target's tape.
            place: Where they were met, e.g. "'actor.0.weight' axis 0".

        Returns:
            Why that cannot be, if it cannot.
        """
        try:
            pairs = list(pair_axes(source, target, self._stated))
        except OtherLayout:
            return [Refusal(say_other_layout(source, target), place=place)]
        found = [refusal for old, new in pairs if (refusal := self._pair_atoms(old, new, place)) is not None]
        if any(old is not None and old.size < new.size for old, new in pairs):
            return [replace(item, reason=say_traded(source, target)) if item.atom else item for item in found]
        return found

    def _pair_atoms(self, source: Axis | None, target: Axis, place: str) -> Refusal | None:
        known = self.atoms.get(target)
        if source is None:
            if known is None:
                self._state(self.atoms, target, ())
            return None
        if known and known[0].size != source.size:
            return Refusal(
                f"cannot grow {place}: its {target.size} target units have {source.size} source units here, but "
                f"{known[0].size} at {self.places[target]}. Sizes that are joined in the target (by an addition, a "
                "shared layer) must be equal in the source."
            )
        if not any(resolve(atom) is source for atom in known or ()):
            self._state(self.atoms, target, (*(known or ()), source))
        if target not in self.places:
            self._state(self.places, target, place)
        if source.size <= target.size or target in self.named:
            return None
        return Refusal(
            f"source has {source.size} units, target has {target.size}. Growth only widens; raise the target's size to "
            f"at least {source.size}, or start without the checkpoint.",
            target,
            place,
        )

    def _stated(self, source: Axis, target: Axis) -> int:
        source, known = resolve(source), self.atoms.get(resolve(target), ())
        if any(resolve(atom) is source for atom in known):
            return 1
        return -1 if known and known[0].size != source.size else 0

    # ---- units
    def refusals(self) -> list[str]:
        """Everything that cannot be matched, each once, and what narrows in the same way as one."""
        places: dict[str, list[str]] = {}
        for item in self.refused:
            places.setdefault(item.reason, []).extend([item.place] if item.place else [])
        return [_at_once(reason, list(dict.fromkeys(there))) for reason, there in places.items()]

    def units(self, atom: Axis) -> UnitMap:
        """Which source unit each target unit is: by name or constant where they have one, else the first in order."""
        for table in (self.named, self.placed):
            if atom in table:
                return UnitMap(table[atom], self.atoms[atom][0].size)
        return prefix_map(self.old_size(atom), atom.size)

    def old_size(self, atom: Axis) -> int:
        """How many units of a target atom the source has; 0 for an atom of a new layer (1 for a size of 1)."""
        if atom in self.named:
            return int((self.named[atom] >= 0).sum())
        known = self.atoms.get(atom)
        if known is None:
            return 1 if atom.size == 1 else 0
        return known[0].size if known else 0

    def old_length(self, axis: Axis) -> int:
        """How many positions of a target axis the source has."""
        axis = resolve(axis)
        if axis.kind is None:
            return self.old_size(axis)
        lengths = map(self.old_length, axis.parts)
        return sum(lengths) if axis.kind == "sum" else math.prod(lengths)

    def grows(self, atom: Axis) -> bool:
        """Whether the target has more units of this kind than the source."""
        return self.old_size(atom) < atom.size

    def growing(self, axes: Iterable[Axis]) -> list[Axis]:
        """The atoms of these axes of which the source has some units, and the target more."""
        found = dict.fromkeys(atom for axis in axes for atom in atoms(axis))
        return [atom for atom in found if 0 < self.old_size(atom) < atom.size]

    def old_positions(self, axis: Axis) -> Tensor:
        """The target positions that the source has, in the source's order, int64."""
        source = axis_map(axis, self.units, lambda _: 1).low
        kept = torch.nonzero(source >= 0).flatten()
        return kept[torch.argsort(source[kept])]

    def source_positions(self, axis: Axis) -> Tensor:
        """The source's positions that the target has, in order, int64: all but those of dropped inputs."""
        source = axis_map(axis, self.units, lambda _: 1).low
        return source[source >= 0].sort().values

    # ---- values
    def maker_of_twin(self, node: Node) -> Node | None:
        """The source's operator for an earlier operator of the target's that does the same with the same values."""
        twin = self._twins.get(node.outputs[0]) if node.outputs else None
        return self.source.makers.get(self.values[twin]) if twin in self.values else None

    def count(self, wanted: Any) -> int:
        """How many operators like this there were before; this one is counted."""
        rank = self._seen.get(wanted, 0)
        self._state(self._seen, wanted, rank + 1)
        return rank

    def alternatives(self, node: Node) -> list[Node]:
        """What the source does with the same values, for messages."""
        wanted = {self.values[value] for value in node.tensors() if value in self.values}
        return [item for item in self.source.nodes if not wanted.isdisjoint(map(self.first, item.tensors()))]

    def maker(self, value: Value) -> Node | None:
        """The source's operator that computes what a value of the target is."""
        return self.source.makers.get(self.values[value]) if value in self.values else None


def _at_once(reason: str, places: list[str]) -> str:
    if not places:
        return reason
    first, *others = sorted(places, key=lambda place: not place.startswith("example input"))  # what a user gives
    more = f" (and {len(others)} more place{'s' * (len(others) > 1)})" if others else ""
    return f"cannot grow {first}{more}: {reason}"
