"""What a run over the tape decides, and how it fails."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from lightning_grow.pair.roles import Dimension
from lightning_grow.plan.cells import Entry
from lightning_grow.trace.axes import Axis


@dataclass
class Decisions:
    """What was found: the parameter cells that are not free, and how copied units are read.

    Args:
        zeros: Cells that must be 0.
        means: Cells that must be the mean of the source's entries along an axis.
        shares: Dimensions whose reads of a copied atom are divided among the copies.
        numbers: Module attributes that may take up a factor: (node index, argument name).
    """

    zeros: set[Entry] = field(default_factory=set)
    means: dict[Entry, Axis] = field(default_factory=dict)
    shares: set[tuple[Dimension, Axis]] = field(default_factory=set)
    numbers: set[tuple[int, str]] = field(default_factory=set)


@dataclass(frozen=True)
class Failure:
    """A place where the function cannot be kept.

    Args:
        node: Its index on the tape.
        reason: The sentence for the user.
        atoms: The growing atoms at fault; copying their units may mend it.
        parted: Whether the two models compute different things there, whatever their sizes.
    """

    node: int
    reason: str
    atoms: tuple[Axis, ...] = ()
    parted: bool = False


class Commit(Exception):
    """A decision was made: run again from the first use of its entries."""

    def __init__(self, zeros: Iterable[Entry] = (), means: dict[Entry, Axis] | None = None) -> None:
        super().__init__()
        self.zeros, self.means = set(zeros), means or {}


class Lost(Exception):
    """The operator cannot be kept; the refusal is recorded."""


@dataclass(frozen=True)
class Choice:
    """What is fixed for one run.

    Args:
        copied: Atoms whose new units are copies.
        identities: New layers that start as the identity.
        free_numbers: Number arguments that a module attribute gives and that may change: (node index, argument name).
    """

    copied: frozenset[Axis] = frozenset()
    identities: frozenset[str] = frozenset()
    free_numbers: frozenset[tuple[int, str]] = frozenset()
