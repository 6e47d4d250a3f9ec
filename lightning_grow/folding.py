"""Equal blocks said once: names that differ in the number of a layer, and reasons that many tensors share."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence

_NUMBER = re.compile(r"(?<![^.\s'])\d+(?=[.'\[]|$)")  # of a layer in a list: a part of a dotted name
_MOST = 4  # names that are said


def pattern(name: str) -> str:
    """A name without the number of the outermost layer.

    >>> pattern("blocks.3.heads.0.weight"), pattern("conv1.weight")
    ('blocks.#.heads.0.weight', 'conv1.weight')
    """
    return _NUMBER.sub("#", name, count=1)


def fold(names: Iterable[str]) -> list[str]:
    """Names with those that differ in the outermost number as one, where the first of them stands.

    >>> fold(["blocks.0.q", "blocks.0.k", "blocks.1.q", "blocks.1.k", "blocks.2.q", "head"])
    ['blocks.{0-2}.q', 'blocks.{0-1}.k', 'head']
    """
    return [folded(group) for group in grouped([(pattern(name), name) for name in names])]


def grouped(items: Sequence[tuple[Hashable, str]]) -> list[list[str]]:
    """The names of equal keys together, in the order of the first of each.

    >>> grouped([(1, "a"), (2, "b"), (1, "c")])
    [['a', 'c'], ['b']]
    """
    groups: dict[Hashable, list[str]] = {}
    for key, name in items:
        groups.setdefault(key, []).append(name)
    return list(groups.values())


def folded(names: Sequence[str]) -> str:
    """One name for names that differ in the outermost number only.

    >>> folded(["h.0.weight", "h.1.weight", "h.2.weight", "h.5.weight"])
    'h.{0-2,5}.weight'
    """
    if len(names) == 1:
        return names[0]
    numbers = sorted({int(match.group()) for name in names if (match := _NUMBER.search(name))})
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    spans = ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return pattern(names[0]).replace("#", f"{{{spans}}}", 1)


def by_reason(items: Iterable[str]) -> str:
    """Say "name: reason" for many names, each reason once.

    >>> by_reason([f"blocks.{n}.{part}: it is new" for n in range(3) for part in "abcdef"] + ["head: it is old"])
    'blocks.{0-2}.a, blocks.{0-2}.b, blocks.{0-2}.c, blocks.{0-2}.d and 2 more: it is new; head: it is old'
    """
    reasons: dict[str, list[str]] = {}
    for item in items:
        name, _, reason = item.partition(": ")
        reasons.setdefault(reason, []).append(name)
    return "; ".join(f"{some(fold(names))}{': ' if reason else ''}{reason}" for reason, names in reasons.items())


def some(names: Sequence[str]) -> str:
    """The first of some names, and how many there are besides.

    >>> some(["a", "b"]), some(["a", "b", "c", "d", "e", "f"])
    ('a, b', 'a, b, c, d and 2 more')
    """
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more
