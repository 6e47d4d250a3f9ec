"""Which units of the target are which units of the source: two traces zipped by parameter name and dimension."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import chain

import torch
from torch import Tensor

from lightning_grow.pair.maps import UnitMap, axis_map, prefix_map
from lightning_grow.trace.axes import Axis, AxisError, atoms, cut, factor, resolve
from lightning_grow.trace.tape import Trace, Value


@dataclass
class Pairing:
    """The source atoms of every target atom, and what has no meaning.

    Args:
        source: Target atom -> the source atoms it grew from, all of one size.
        places: Target atom -> where it was first met, for messages.
        refused: What cannot be paired: axes that shrink, or that the two models use differently.
        named: Target atom -> the source unit of each target unit (-1: none), where units have names.
        shrunk: Target atom -> why it cannot have fewer units than its source; names may say which ones are dropped.
        new: Target atoms that the source has nothing of; only a size of 1 needs the word.
    """

    source: dict[Axis, list[Axis]] = field(default_factory=dict)
    places: dict[Axis, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    named: dict[Axis, Tensor] = field(default_factory=dict)
    shrunk: dict[Axis, list[str]] = field(default_factory=dict)
    new: set[Axis] = field(default_factory=set)

    def refusals(self, repeated: bool = False) -> list[str]:
        """Everything that cannot be paired, each once, or as often as it was met."""
        every = [*chain.from_iterable(reasons for atom, reasons in self.shrunk.items() if atom not in self.named)]
        every += self.refused
        return every if repeated else list(dict.fromkeys(every))

    def units(self, atom: Axis) -> UnitMap:
        """Which source unit each target unit is: by name where units have names, else the first ones in order."""
        if atom in self.named:
            return UnitMap(self.named[atom], self.source[atom][0].size)
        return prefix_map(self.old_size(atom), atom.size)

    def old_positions(self, axis: Axis) -> Tensor:
        """The target positions that the source has, in the source's order, int64."""
        source = axis_map(axis, self.units, lambda _: 1).low
        kept = torch.nonzero(source >= 0).flatten()
        return kept[torch.argsort(source[kept])]

    def source_positions(self, axis: Axis) -> Tensor:
        """The source's positions that the target has, in order, int64: all but those of dropped inputs."""
        source = axis_map(axis, self.units, lambda _: 1).low
        return source[source >= 0].sort().values

    def name_inputs(
        self, axis: Axis, source: Sequence[str], target: Sequence[str], dropped: Sequence[str] = ()
    ) -> list[str]:
        """Pair the units of an input axis by their names.

        Args:
            axis: The target's axis, as long as `target`.
            source: The source's names, each once.
            target: The target's names, each once.
            dropped: Names that the target may lack, or patterns of them ("rsi*"; only * and ? are wildcards).

        Returns:
            The names that are dropped.
        """
        if list(source) == list(target) and not dropped:
            return []
        for role, names in (("source", source), ("target", target)):
            if twice := [name for name, count in Counter(names).items() if count > 1]:
                self.refused.append(
                    f"input_names of the {role} are not unique ({_shorten(twice)}), so its inputs cannot be told apart "
                    "by them. Give every input a name of its own."
                )
                return []
        atom = resolve(axis)
        self.shrunk.pop(atom, None)  # the names tell more
        missing = [name for name in source if name not in set(target)]
        gone = [name for name in missing if not any(_matches(name, pattern) for pattern in dropped)]
        idle = [pattern for pattern in dropped if not any(_matches(name, pattern) for name in missing)]
        if gone:
            self.refused.append(
                f"inputs are gone: {len(gone)} of the source's {len(source)} input names are not in the target "
                f"({_shorten(gone)}). Growth only adds inputs: keep these, or name them in drop_inputs (patterns like "
                f"{gone[0][:3]}* will do), which changes the outputs."
            )
        if idle:
            self.refused.append(
                f"drop_inputs names {_shorten(idle)}, but the source has no such input, or the target still has it. "
                f"The source's inputs: {_shorten(source)}."
            )
        if gone or idle or list(source) == list(target):
            return []
        if atom.kind is not None:
            self.refused.append(
                f"inputs change by name ({len(source)} -> {len(target)}), but the model splits its input axis as {atom}"
                "; give each part an input of its own."
            )
            return []
        place = {name: number for number, name in enumerate(source)}
        self.named[atom] = torch.tensor([place.get(name, -1) for name in target], dtype=torch.float64)
        return missing

    def old_size(self, atom: Axis) -> int:
        """How many units of a target atom the source has; 0 for an atom of a new layer (1 for a size of 1)."""
        if atom in self.named:
            return int((self.named[atom] >= 0).sum())
        if atom in self.source:
            return self.source[atom][0].size
        return 1 if atom.size == 1 and atom not in self.new else 0

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

    def pair(self, source: Axis, target: Axis, place: str) -> None:
        """State that a source axis became a target axis; refine and pair their atoms.

        Args:
            source: An axis of the source's trace.
            target: An axis of the target's trace.
            place: Where they were met, e.g. "'actor.0.weight' axis 0".
        """
        source, target = resolve(source), resolve(target)
        if source.kind is None and target.kind is None:
            self._pair_atoms(source, target, place)
            return
        if source.size == target.size and self._same_layout(source, target):
            source, target = resolve(source), resolve(target)
        if source.kind is None and target.kind is None:
            self._pair_atoms(source, target, place)
            return
        kind = target.kind or source.kind
        ours = source.parts if source.kind == kind else (source,)
        theirs = target.parts if target.kind == kind else (target,)
        matches = self._match(ours, theirs)
        if matches is None:
            self.refused.append(_other_layout(place, source, target))
            return
        for index, part in enumerate(theirs):
            if index in matches:
                self.pair(ours[matches[index]], part, place)
            elif kind == "product":  # the source has one of these units, the first
                first, *others = atoms(part)
                self._pair_atoms(Axis(1), first, place)
                self.new.update(others)
            else:
                self.new.update(atoms(part))

    def _same_layout(self, source: Axis, target: Axis) -> bool:
        """Give an axis that one model never looked into the layout that the other found; the sizes are equal."""
        try:
            if source.kind is None:
                _copy_layout(target, source)
            elif target.kind is None:
                _copy_layout(source, target)
            elif source.kind == target.kind == "sum":
                sizes = _common_cuts(source, target)
                cut(source, sizes)
                cut(target, sizes)
        except AxisError:
            return False
        return True

    def _match(self, source: tuple[Axis, ...], target: tuple[Axis, ...]) -> dict[int, int] | None:
        """Target part -> source part in order: known partners first, then equal sizes, then the earliest."""
        if len(source) == len(target):
            return {index: index for index in range(len(source))}
        if len(source) > len(target):
            return None
        best: tuple[tuple[int, ...], dict[int, int]] | None = None
        for chosen in _choices(len(source), len(target)):
            pairs = list(zip(chosen, range(len(source)), strict=True))
            if any(target[i].size < source[j].size for i, j in pairs):
                continue
            known = -sum(self._known(source[j], target[i]) for i, j in pairs)
            growth = sum(target[i].size - source[j].size for i, j in pairs)
            rank = (known, growth, *chosen)
            if best is None or rank < best[0]:
                best = (rank, dict(pairs))
        return best[1] if best else None

    def _known(self, source: Axis, target: Axis) -> bool:
        source, target = resolve(source), resolve(target)
        return any(resolve(atom) is source for atom in self.source.get(target, []))

    def _pair_atoms(self, source: Axis, target: Axis, place: str) -> None:
        if source.size > target.size:
            self.shrunk.setdefault(target, []).append(
                f"cannot grow {place}: source has {source.size} units, target has {target.size}. Growth only widens; "
                f"raise the target's size to at least {source.size}, or start without the checkpoint."
            )
        known = self.source.setdefault(target, [])
        self.places.setdefault(target, place)
        if known and known[0].size != source.size:
            self.refused.append(
                f"cannot grow {place}: its {target.size} target units have {source.size} source units here, but "
                f"{known[0].size} at {self.places[target]}. Sizes that are joined in the target (by an addition, a "
                "shared layer) must be equal in the source."
            )
            return
        if not any(resolve(atom) is source for atom in known):
            known.append(source)


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern.replace("[", "[[]"))  # brackets are part of names: rsi@4h[-1]


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _choices(count: int, places: int) -> Iterator[tuple[int, ...]]:
    """Ordered choices of `count` out of `places`, the earliest first; a long list is taken from the front only."""
    from itertools import combinations

    if places > 12:
        yield tuple(range(count))
        return
    yield from combinations(range(places), count)


def _copy_layout(pattern: Axis, atom: Axis) -> None:
    pattern = resolve(pattern)
    if pattern.kind is None:
        return
    sizes = [part.size for part in pattern.parts]
    parts = cut(atom, sizes) if pattern.kind == "sum" else factor(atom, sizes)
    for part, copy in zip(pattern.parts, parts, strict=True):
        _copy_layout(part, copy)


def _common_cuts(first: Axis, second: Axis) -> list[int]:
    ends: set[int] = set()
    for axis in (first, second):
        end = 0
        for part in axis.parts:
            end += part.size
            ends.add(end)
    ordered = sorted(ends)
    return [end - start for start, end in zip([0, *ordered], ordered, strict=False)]


def pair_traces(source: Trace, target: Trace, renamed: dict[str, str]) -> Pairing:
    """Zip two traces by parameter name and dimension, and by input.

    Args:
        source: The source's tape.
        target: The target's tape.
        renamed: Target name -> source name for every tensor that both have.

    Returns:
        The pairing. Axes are refined on a first round, so that the second meets every atom in its final layout.
    """
    pairing = Pairing()
    for _ in range(2):
        pairing = Pairing()
        for name, old_name in renamed.items():
            _pair_values(pairing, source.tensors[old_name], target.tensors[name], f"'{name}'")
        for index, (old, new) in enumerate(zip(source.inputs, target.inputs, strict=False)):
            _pair_values(pairing, old, new, f"example input {index}")
    return _checked(pairing, source, target, renamed)


def _checked(pairing: Pairing, source: Trace, target: Trace, renamed: dict[str, str]) -> Pairing:
    """Refuse what was paired part by part and does not add up to the source's tensors."""
    for name, old_name in renamed.items() if not pairing.refusals() else ():
        for dim, (old, new) in enumerate(zip(source.tensors[old_name].axes, target.tensors[name].axes, strict=True)):
            if pairing.old_length(new) != old.size:
                pairing.refused.append(_other_layout(f"'{name}' axis {dim}", old, new))
    return pairing


def _other_layout(place: str, source: Axis, target: Axis) -> str:
    return (
        f"cannot grow {place}: the source uses its {source.size} positions as {source}, the target its {target.size} "
        f"as {target}. Expected the same layout with more units; keep the structure (heads, groups, streams) and grow "
        "one size."
    )


def _pair_values(pairing: Pairing, source: Value, target: Value, place: str) -> None:
    if len(source.axes) != len(target.axes):
        pairing.refused.append(
            f"cannot grow {place}: it has {len(source.axes)} dimensions in the source, {len(target.axes)} in the "
            "target. Keep the layer's kind."
        )
        return
    for dim, (old, new) in enumerate(zip(source.axes, target.axes, strict=True)):
        pairing.pair(old, new, f"{place} axis {dim}")
