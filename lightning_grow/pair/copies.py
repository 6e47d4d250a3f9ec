"""Copies of a part that no forward runs (target networks, averages): they grow as what they copy does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
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
    modules = {strip_compiled(name): module for name, module in target.named_modules()}

    def grows(name: str) -> bool:
        grown = any(match.grows(atom) for axis in values[name].axes for atom in atoms(axis))
        return grown or name not in match.names

    def sizes(value: Value) -> tuple[int, ...]:
        return tuple(axis.size for axis in value.axes)

    def shapes(name: str) -> tuple[object, ...]:
        old = match.names.get(name)
        return sizes(values[name]), old and sizes(match.source.tensors[old])

    def partners(copy: str, original: str) -> dict[str, str]:
        """The tensors of one module beside those of the other; empty where it is no copy."""
        pairs = {name: original + name[len(copy) :] for name in values if name.startswith(f"{copy}.")}
        alike = all(name in idle and other in values and shapes(name) == shapes(other) for name, other in pairs.items())
        return pairs if alike and not idle.issuperset(pairs.values()) else {}

    def without_dots(copy: str) -> dict[str, str]:
        """The buffers of a module without children beside the tensors that they are named for."""
        mine = [name for name in values if name.startswith(f"{copy}.")]
        if list(modules[copy].children()) or any(values[name].trained for name in mine):
            return {}
        for original in sorted(modules, key=lambda other: -SequenceMatcher(None, copy, other).ratio()):
            prefix = original and f"{original}."
            below = {_letters(name[len(original) :]): name for name in values if name.startswith(prefix)}
            beside = {name: below.get(_letters(name[len(copy) :]), name) for name in mine}
            pairs = {name: other for name, other in beside.items() if shapes(name) == shapes(other)}
            pairs = {name: other for name, other in pairs.items() if other not in idle}
            if pairs.keys() >= set(filter(grows, mine)):
                return pairs
        return {}

    def find(name: str) -> dict[str, str]:
        for copy in _owners(name, modules):
            alike = [other for other in modules if other != copy and repr(modules[other]) == repr(modules[copy])]
            if not list(modules[copy].children()):
                alike = [other for other in alike if _letters(other) in _letters(copy)]
            for original in sorted(alike, key=lambda other: -SequenceMatcher(None, copy, other).ratio()):
                if pairs := partners(copy, original):
                    return pairs
            if pairs := without_dots(copy):
                return pairs
        used_alike = [other for other in values if other not in idle and shapes(other) == shapes(name)]
        contained = [other for other in used_alike if _letters(other) in _letters(name)]
        return {name: max(contained, key=len)} if contained and not values[name].trained else {}

    copies: dict[str, str] = {}
    for name in sorted(idle):
        if name not in copies and grows(name):
            copies.update(find(name))
    return copies


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
