"""Two trees of one axis side by side: which atom of the target's is which of the source's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations

from lightning_grow.trace.axes import Axis, AxisError, atoms, cut, factor, resolve

_LONGEST = 12  # parts up to which every choice of them is tried; the parts of a longer list are taken from the front

_ONE = Axis(1)  # what the source has of a factor that it does not know

AtomPair = tuple[Axis | None, Axis]  # None: the source has no such units


class OtherLayout(Exception):
    """The two models use the positions of an axis differently."""


def pair_axes(source: Axis, target: Axis, stated: Callable[[Axis, Axis], int]) -> Iterator[AtomPair]:
    """State that a source axis became a target axis; refine both, and yield the pairs of their atoms.

    Args:
        source: An axis of the source's tape.
        target: An axis of the target's tape.
        stated: 1 where two atoms are a pair already, -1 where the target's is one of another size, else 0: this decides
            between parts of a list.

    Raises:
        OtherLayout: They have no common layout.

    >>> one, two = Axis(3), Axis(4)
    >>> list(pair_axes(Axis(7, "sum", (one, two)), Axis(9, "sum", (Axis(3), Axis(6))), lambda *_: 0))
    [(3, 3), (4, 6)]
    """
    source, target = resolve(source), resolve(target)
    if source.size == target.size and (source.kind or target.kind):
        _share_layout(source, target)
        source, target = resolve(source), resolve(target)
    if source.kind is None and target.kind is None:
        yield source, target
        return
    kind = target.kind or source.kind
    ours = source.parts if source.kind == kind else (source,)
    theirs = target.parts if target.kind == kind else (target,)
    matches = _match_parts(ours, theirs, stated)
    if matches is None:
        raise OtherLayout
    for index, part in enumerate(theirs):
        if index in matches:
            yield from pair_axes(ours[matches[index]], part, stated)
            continue
        new = list(atoms(part))
        if kind == "product":  # the source has one of these units, the first
            yield Axis(1), new.pop(0)
        yield from ((None, atom) for atom in new)


def _share_layout(source: Axis, target: Axis) -> None:
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
    except AxisError as error:
        raise OtherLayout from error


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


def _match_parts(
    source: tuple[Axis, ...], target: tuple[Axis, ...], stated: Callable[[Axis, Axis], int]
) -> dict[int, int] | None:
    """Target part -> source part in order: what is stated first, then equal sizes, then the earliest."""
    if len(source) == len(target):
        return {index: index for index in range(len(source))}
    best: tuple[tuple[int, ...], dict[int, int]] | None = None
    for chosen in _choices(len(source), len(target)):
        pairs = list(zip(chosen, range(len(source)), strict=True))
        growth = [target[i].size - source[j].size for i, j in pairs]
        if min(growth) < 0:
            continue
        known = sum(stated(source[j], target[i]) for i, j in pairs)
        known += sum(stated(_ONE, part) for i, part in enumerate(target) if i not in chosen)
        rank = (-known, sum(growth), *chosen)
        if best is None or rank < best[0]:
            best = (rank, dict(pairs))
    return best[1] if best else None


def is_ambiguous(source: Axis, target: Axis) -> bool:
    """Whether a source axis could be more than one choice of the parts of a target axis."""
    source, target = resolve(source), resolve(target)
    ours = source.parts if source.kind == target.kind else (source,)
    if target.kind is None or len(ours) == len(target.parts):
        return False
    fitting = (
        all(target.parts[i].size >= part.size for i, part in zip(chosen, ours, strict=True))
        for chosen in _choices(len(ours), len(target.parts))
    )
    return sum(fitting) > 1


def _choices(count: int, places: int) -> Iterator[tuple[int, ...]]:
    if places > _LONGEST:
        yield tuple(range(count))
    elif count <= places:
        yield from combinations(range(places), count)


def say_other_layout(source: Axis, target: Axis) -> str:
    """Why two axes are not one axis at two sizes, for a refusal."""
    return (
        f"the source uses its {source.size} positions as {source}, the target its {target.size} "
        f"as {target}. Expected the same layout with more units; keep the structure (heads, groups, streams) and grow "
        "one size."
    )


def say_traded(source: Axis, target: Axis) -> str:
    """Why an axis does not grow though a part of it does, for a refusal."""
    return (
        f"the source uses its {source.size} positions as {source}, the target its {target.size} as {target}: one size "
        "grows at the cost of another (more heads, each smaller, say). Keep the one and grow the other: as many "
        "heads of a larger size, or more heads of the size they have."
    )
