"""Units that widen together."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class UnitGroup:
    """The (parameter, axis) pairs that widen together.

    Args:
        name: Where the group was first met.
        old: Units of the source.
        new: Units of the target.
        mode: "fresh" or "copied".
        members: (parameter, dimension) pairs.
        output: Which of the target's outputs they are the last axis of; -1 for inner units.
        units: For every member, the unit that each position belongs to (-1: none), int64 (size of the dimension,).
    """

    name: str
    old: int
    new: int
    mode: str
    members: tuple[tuple[str, int], ...]
    output: int = -1
    units: tuple[Tensor, ...] = field(default=(), repr=False, compare=False)
