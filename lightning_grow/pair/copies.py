"""Copies of a part that no forward runs (target networks, averages): they grow as what they copy does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher

from torch import Tensor, nn

from lightning_grow.pair.match import Match
from lightning_grow.trace.axes import atoms
from lightning_grow.trace.names import strip_compiled
from lightning_grow.trace.tape import Value


def find_copies(target: nn.Module, match: Match) -> dict[str, str]:
    """Find what the growing tensors that no traced operator uses are copies of.

    A module is a copy of another if both print alike and hold tensors of the same names and shapes, before and after; a
    single layer or buffer only if its name contains the other's too. So is a module of buffers alone whose names are
    those below another without their dots (LitEma). A part of a bigger module that is no copy is none either: how it is
    used there is unknown. Where several would do, the most similar name is taken.

    Args:
        target: The bigger module.
        match: It and its source, side by side.

    Returns:
        The copy's name -> the original's.
    """
    used = match.target.used()
    names = [strip_compiled(name) for name in target.state_dict()]
    values = {name: match.target.tensors[name] for name in names if name in match.target.tensors}
    idle = {name for name, value in values.items() if value not in used}
    parts = _Parts(match, {strip_compiled(name): part for name, part in target.named_modules()}, values, idle)
    copies: dict[str, str] = {}
    for name in sorted(idle):
        if name not in copies and parts.grows(name):
            copies.update(parts.find(name))
    return copies


@dataclass(frozen=True)
class _Parts:
    """The parts of the target, and what of them no operator uses.

    Args:
        match: It and its source, side by side.
        modules: By name.
        values: What is in its state dict.
        idle: The names of those that no operator uses.
    """

    match: Match
    modules: Mapping[str, nn.Module]
    values: Mapping[str, Value]
    idle: Collection[str]

    def grows(self, name: str) -> bool:
        """Whether a tensor is new, or has an axis that grows."""
        grown = any(self.match.grows(atom) for axis in self.values[name].axes for atom in atoms(axis))
        return grown or name not in self.match.names

    def find(self, name: str) -> dict[str, str]:
        """What a tensor is a copy of, and what is copied with it."""
        for copy in _owners(name, self.modules):
            if pairs := self._copied_module(copy) or self._without_dots(copy):
                return pairs
        used = [other for other in self.values if other not in self.idle and self._shapes(other) == self._shapes(name)]
        contained = [other for other in used if _letters(other) in _letters(name)]
        return {name: max(contained, key=len)} if contained and not self.values[name].trained else {}

    def _copied_module(self, copy: str) -> dict[str, str]:
        """The tensors of a module beside those of one that prints alike; empty where it is no copy."""
        mine, shown = self._below(copy), repr(self.modules[copy])
        alike = [other for other, part in self.modules.items() if other != copy and repr(part) == shown]
        if not list(self.modules[copy].children()):
            alike = [other for other in alike if _letters(other) in _letters(copy)]
        for original in _most_similar(copy, alike):
            pairs = {name: original + name[len(copy) :] for name in mine}
            alike_in_all = all(name in self.idle and self._are_alike(name, other) for name, other in pairs.items())
            if alike_in_all and any(other not in self.idle for other in pairs.values()):
                return pairs
        return {}

    def _without_dots(self, copy: str) -> dict[str, str]:
        """The buffers of a module without children beside the tensors that they are named for."""
        mine = self._below(copy)
        if list(self.modules[copy].children()) or any(self.values[name].trained for name in mine):
            return {}
        for original in _most_similar(copy, self.modules):
            named = {_letters(name[len(original) :]): name for name in self._below(original)}
            beside = {name: named.get(_letters(name[len(copy) :]), name) for name in mine}
            pairs = {name: other for name, other in beside.items() if self._are_alike(name, other)}
            pairs = {name: other for name, other in pairs.items() if other not in self.idle}
            if pairs.keys() >= set(filter(self.grows, mine)):
                return pairs
        return {}

    def _below(self, module: str) -> list[str]:
        return [name for name in self.values if name.startswith(module and f"{module}.")]

    def _are_alike(self, name: str, other: str) -> bool:
        return other in self.values and self._shapes(name) == self._shapes(other)

    def _shapes(self, name: str) -> tuple[object, ...]:
        """Its sizes in the target and in the source."""
        old = self.match.names.get(name)
        pair = (self.values[name], None if old is None else self.match.source.tensors[old])
        return tuple(value and tuple(axis.size for axis in value.axes) for value in pair)


def _most_similar(name: str, others: Iterable[str]) -> list[str]:
    return sorted(others, key=lambda other: -SequenceMatcher(None, name, other).ratio())


def substitutions(copies: Mapping[str, str]) -> list[dict[str, str]]:
    """Sets of copies that can run in place of what they copy, all of a set at once: original -> copy.

    >>> substitutions({"first.weight": "net.weight", "second.weight": "net.weight"})
    [{'net.weight': 'first.weight'}, {'net.weight': 'second.weight'}]
    """
    of: dict[str, list[str]] = defaultdict(list)
    for copy, original in copies.items():
        of[original].append(copy)
    rounds = range(max(map(len, of.values()), default=0))
    return [{original: found[number] for original, found in of.items() if number < len(found)} for number in rounds]


def substitute(state: Mapping[str, Tensor], stand_in: Mapping[str, str]) -> dict[str, Tensor]:
    """A state with copies in place of their originals; names may have torch.compile's prefixes."""
    plain = {strip_compiled(name): item for name, item in state.items()}
    return {name: plain[stand_in.get(own := strip_compiled(name), own)] for name in state}


def _owners(name: str, modules: Mapping[str, nn.Module]) -> Iterator[str]:
    """The modules that a tensor may be copied with: a child of the root, of a dictionary there, or of a wrapper."""
    parts = name.split(".")
    for count in range(1, len(parts)):
        owner = ".".join(parts[:count])
        yield owner
        if not isinstance(modules[owner], nn.ModuleDict) and len(list(modules[owner].children())) != 1:
            return


def _letters(name: str) -> str:
    return "".join(letter for letter in name if letter.isalnum())
