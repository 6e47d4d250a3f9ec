"""Which tensors of a pass share memory: a write to one of them changes what the others hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_grow.private import Operator, schema
from lightning_grow.trace.nested import leaves
from lightning_grow.trace.tape import Node


@dataclass(frozen=True, eq=False)
class View:
    """How a tensor was made from the one below it.

    Args:
        below: The tensor whose memory it shows.
        node: The operator; None where it is the same tensor again.
        number: Which of the operator's outputs it is.
        args: The operator's arguments.
        kwargs: Its keyword arguments.
    """

    below: Tensor
    node: Node | None = None
    number: int = 0
    args: Any = ()
    kwargs: Any = None


class Aliases:
    """The views of a pass, and which of them show memory that was written to since they were looked at."""

    def __init__(self) -> None:
        self._views: dict[int, View] = {}
        self._writes: dict[int, int] = {}  # by the lowest tensor
        self._looked: dict[int, int] = {}  # how many writes it had when a view was looked at

    def enter(self, tensor: Tensor, view: View) -> None:
        """State that a tensor is a view."""
        if tensor is not view.below:
            self._views[id(tensor)] = view
            self.look(tensor)

    def view(self, tensor: Tensor) -> View | None:
        """How a tensor was made, if it is a view."""
        return self._views.get(id(tensor))

    def write(self, tensor: Tensor) -> Iterator[View]:
        """State a write; yields the views from the tensor down to the lowest one, whose memory it is."""
        lowest = self._lowest(tensor)
        self._writes[id(lowest)] = self._writes.get(id(lowest), 0) + 1
        self.look(tensor)
        while (view := self.view(tensor)) is not None:
            yield view
            tensor = view.below
            self.look(tensor)

    def stale(self, tensor: Tensor) -> View | None:
        """How a tensor was made, if it is a view of memory that was written to since it was looked at."""
        view = self.view(tensor)
        return view if view is not None and self._looked[id(tensor)] != self._count(tensor) else None

    def look(self, tensor: Tensor) -> None:
        """State that what a tensor holds is up to date."""
        self._looked[id(tensor)] = self._count(tensor)

    def _count(self, tensor: Tensor) -> int:
        return self._writes.get(id(self._lowest(tensor)), 0)

    def _lowest(self, tensor: Tensor) -> Tensor:
        while (view := self.view(tensor)) is not None:
            tensor = view.below
        return tensor


def shares_memory(op: Operator) -> bool:
    """Whether an operator gives views of its first tensor."""
    return not schema(op).is_mutable and any(item.alias_info for item in schema(op).returns)


def written(op: Operator, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors that an operator writes into."""
    found = []
    for number, argument in enumerate(schema(op).arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[number] if number < len(args) else kwargs.get(argument.name)
            found += [leaf for leaf in leaves(given) if isinstance(leaf, Tensor)]
    return found
