"""One step of a run: what was found at one operator, and the two ways in which it can end early."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from lightning_grow.pair.roles import Dimension
from lightning_grow.plan.cells import Entry
from lightning_grow.plan.scale import Equation
from lightning_grow.trace.axes import Axis
from lightning_grow.trace.tape import Node, Value


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


class NotKept(Exception):
    """An operator whose outputs cannot be kept.

    Args:
        reason: The sentence for the user.
        growing: The growing atoms at fault; copying their units may mend it.
        parts: Whether the two models compute different things there, whatever their sizes.
    """

    def __init__(self, reason: str, growing: Iterable[Axis] = (), parts: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.growing, self.parts = reason, tuple(dict.fromkeys(growing)), parts


class Decision(Exception):
    """What a run has to go back for.

    Args:
        zeros: Parameter cells that must be 0: go back to the first use of them.
        means: Parameter cells that must be the mean over an axis.
        refined: A value along whose axes more blocks are told apart than where it was computed: go back there.
        placed: Atoms whose units have places of their own: begin again.
    """

    def __init__(
        self,
        zeros: Iterable[Entry] = (),
        means: dict[Entry, Axis] | None = None,
        refined: Value | None = None,
        placed: dict[Axis, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.zeros, self.means, self.refined, self.placed = set(zeros), means or {}, refined, placed or {}


@dataclass(eq=False)
class Step:
    """What the run found at one operator.

    Args:
        node: The operator.
        length: How much was stated of the match before it.
        source: The source's operator, if there is one.
        difference: Why there is none, where only its arguments say so.
        equations: What the scales have to meet.
        failure: Why the outputs cannot be kept.
        shares: Dimensions whose reads of a copied atom are divided among the copies.
        numbers: Module attributes that may take up a factor: (node index, argument name).
        admitted: Growing atoms under a statistic that zeros or means keep.
        parted: What the target computes of the source's values, and the source does not.
    """

    node: Node | None
    length: int
    source: Node | None = None
    difference: str = ""
    equations: list[Equation] = field(default_factory=list)
    failure: NotKept | None = None
    shares: set[tuple[Dimension, Axis]] = field(default_factory=set)
    numbers: set[tuple[int, str]] = field(default_factory=set)
    admitted: set[Axis] = field(default_factory=set)
    parted: str = ""

    @property
    def outputs(self) -> list[Value]:
        """What the operator computes."""
        return self.node.outputs if self.node is not None else []
