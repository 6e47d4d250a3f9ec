"""Tensors that no forward uses (a normaliser's counts, a mask token) have the axes of used ones of the same sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lightning_grow.trace.axes import Axis, resolve, unify
from lightning_grow.trace.tape import Trace, Value


@dataclass(frozen=True)
class Idle:
    """Two tapes, and what their tensors are called.

    Args:
        source: The source's tape.
        target: The target's tape.
        names: Target name -> source name.
    """

    source: Trace
    target: Trace
    names: Mapping[str, str]

    def pair(self, name: str) -> tuple[Value, Value]:
        """A tensor of both."""
        return self.source.tensors[self.names[name]], self.target.tensors[name]

    def sizes(self, name: str) -> tuple[tuple[int, ...], ...]:
        """Its shape in both."""
        return tuple(value.shape for value in self.pair(name))


def join_idle(source: Trace, target: Trace, names: Mapping[str, str]) -> dict[str, str]:
    """Unify the axes of idle tensors with those of used ones: a buffer's as a whole, a parameter's one by one.

    Args:
        source: The source's tape.
        target: The target's tape.
        names: Target name -> source name.

    Returns:
        The idle tensor's name -> the other's.
    """
    both, used = Idle(source, target, names), target.used()
    idle = [name for name in names if target.tensors[name] not in used and target.tensors[name].axes]
    return {**_join_buffers(both, idle), **_join_parameters(both, idle)}


def _join_buffers(both: Idle, idle: list[str]) -> dict[str, str]:
    def key(name: str) -> tuple[object, ...]:
        return name.rpartition(".")[0], both.sizes(name)

    buffers = [name for name in both.names if not both.target.tensors[name].trained]
    known = {key(name): name for name in buffers if name not in idle}
    beside = {name: known[key(name)] for name in buffers if name in idle and key(name) in known}
    for name, other in beside.items():
        for value, its in zip(both.pair(name), both.pair(other), strict=True):
            for one, two in zip(value.axes, its.axes, strict=True):
                unify(one, two)
    return beside


def _join_parameters(both: Idle, idle: list[str]) -> dict[str, str]:
    """One axis grows, and all used ones that grow by as much put their units first: then it can be any of them."""
    beside = {}
    for name in [name for name in idle if both.target.tensors[name].trained and _is_alone(both, name, idle)]:
        old, new = both.pair(name)
        grown = [dim for dim, (one, two) in enumerate(zip(old.shape, new.shape, strict=False)) if one != two]
        if len(grown) == 1 and old.shape[grown[0]] > 1:
            found = _find_axis(both, name, old.shape[grown[0]], new.shape[grown[0]], idle)
            if found is not None:
                unify(old.axes[grown[0]], found[1])
                unify(new.axes[grown[0]], found[2])
                beside[name] = found[0]
    return beside


def _is_alone(both: Idle, name: str, idle: list[str]) -> bool:
    """Whether no other matrix is in the idle module around it: several are a network, whose function is not seen."""
    parts = name.split(".")
    around = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    numbers = {item for item in both.names if not both.target.tensors[item].axes}  # a count of steps, say
    members = next(
        found
        for place in around
        if set(found := [item for item in both.names if f"{item}.".startswith(f"{place}.")]) <= {*idle, *numbers}
    )
    return sum(sum(size > 1 for size in both.target.tensors[item].shape) > 1 for item in members) < 2


def _find_axis(both: Idle, name: str, old: int, new: int, idle: list[str]) -> tuple[str, Axis, Axis] | None:
    """The axis of these sizes that most tensors have, those of the nearest module first; None where they differ."""
    found = list(_axes_of(both, old, new, idle))
    if not found or not all(_puts_units_first(one, two) for _, one, two in found):
        return None
    counts = Counter(id(resolve(two)) for _, _, two in found)

    def rank(item: tuple[str, Axis, Axis]) -> tuple[bool, int, int]:
        return resolve(item[2]).kind is None, _shared(name, item[0]), counts[id(resolve(item[2]))]

    return max(found, key=rank)


def _axes_of(both: Idle, old: int, new: int, idle: list[str]) -> Iterator[tuple[str, Axis, Axis]]:
    for name in [name for name in both.names if name not in idle]:  # in order: every process finds the same axis
        source, target = both.pair(name)
        if target.trained and len(source.axes) == len(target.axes):
            yield from (
                (name, one, two)
                for one, two in zip(source.axes, target.axes, strict=True)
                if (one.size, two.size) == (old, new)
            )


def _puts_units_first(source: Axis, target: Axis) -> bool:
    """Whether the source's positions are the target's first: units of one kind, or of a product's slowest factor."""
    one, two = resolve(source), resolve(target)
    if one.kind is None and two.kind is None:
        return True
    if "sum" in (one.kind, two.kind):
        return False
    inner = [[part.size for part in axis.parts[1:]] for axis in (one, two)]
    return inner[0] == inner[1]


def _shared(first: str, second: str) -> int:
    """How many leading parts two names share."""
    pairs = zip(first.split("."), second.split("."), strict=False)
    return next((count for count, (one, two) in enumerate(pairs) if one != two), 0)
