"""The terms of a sum of products: which cell of one factor meets which of the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lightning_grow.pair.roles import split_labels
from lightning_grow.plan.cells import Cell, Entry, Kind, Slot, is_wanted
from lightning_grow.plan.mixing import mixed
from lightning_grow.plan.run import Run
from lightning_grow.trace.meanings import Cells, Contract
from lightning_grow.trace.tape import Node, Value


@dataclass(frozen=True)
class _Factor:
    """The cells of one factor, one dimension per label."""

    cells: Cells
    slots: dict[str, list[Slot]]

    def at(self, place: dict[str, int]) -> Cell:
        cell: Cell = self.cells[tuple(place[label] for label in self.slots)]
        return cell


@dataclass(frozen=True)
class Term:
    """One product, over one choice of slots of the summed axes; `weights` are its cells that parameters alone make."""

    left: Cell
    right: Cell
    slots: list[Slot]
    weights: tuple[Cell, ...]

    @property
    def is_kept(self) -> bool:
        """Whether it is the source's own product, or a mean of such products."""
        known = (Kind.KEPT, Kind.MEAN, Kind.IDENTITY)
        kinds = (self.left.kind, self.right.kind)
        is_known = all(kind in known for kind in kinds) and kinds != (Kind.MEAN, Kind.MEAN)  # that is no mean
        return is_known and not any(slot.is_new for slot in self.slots)

    @property
    def is_identity(self) -> bool:
        """Whether one side is an identity layer."""
        return Kind.IDENTITY in (self.left.kind, self.right.kind)

    @property
    def activation(self) -> Cell:
        """What an identity layer passes on."""
        return self.left if self.right.kind is Kind.IDENTITY else self.right

    def zeroed_by(self) -> frozenset[Entry] | None:
        """The parameter cells whose zero makes this product 0: a bias that alone keeps it up, a reader, a writer."""
        for cell, other in ((self.left, self.right), (self.right, self.left)):
            if cell.is_only_bias and cell.zeroed_by and other.direct:
                return cell.zeroed_by
        for cell in self.weights:
            if cell.kind is Kind.NEW and cell.zeroed_by:
                return cell.zeroed_by
        return self.left.zeroed_by if self.left.zeroed_by is not None else self.right.zeroed_by

    def averaged_by(self) -> frozenset[Entry] | None:
        """The parameter cells whose mean over units makes this product one; none where it is one."""
        if self.is_kept:
            return frozenset()
        for cell in self.weights:
            if cell.kind is Kind.NEW and cell.averaged_by:
                return cell.averaged_by
        return next((cell.averaged_by for cell in (self.left, self.right) if cell.kind is Kind.NEW), None)


def each_term(run: Run, node: Node, meaning: Contract) -> Iterator[tuple[list[Term], bool]]:
    """For every cell of the product, in order: the terms that are summed, and whether it must be the source's."""
    left, right = _factor(run, node, meaning, meaning.left, 0), _factor(run, node, meaning, meaning.right, 1)
    slots = {**left.slots, **right.slots}
    out = {label: len(slots[label]) for label in meaning.labels[2] if label not in "()."}
    summed = {label: len(along) for label, along in slots.items() if label not in out}
    made = [factor for factor, value in ((right, meaning.right), (left, meaning.left)) if value in run.weights]
    for place in _places(out):
        terms = [
            Term(
                left.at(place | inner),
                right.at(place | inner),
                [slots[label][n] for label, n in inner.items()],
                tuple(factor.at(place | inner) for factor in made),
            )
            for inner in _places(summed)
        ]
        yield terms, is_wanted(slots[label][n] for label, n in place.items())


def _places(sizes: dict[str, int]) -> Iterator[dict[str, int]]:
    for index in np.ndindex(*sizes.values()):
        yield dict(zip(sizes, index, strict=True))


def _factor(run: Run, node: Node, meaning: Contract, value: Value, side: int) -> _Factor:
    """Fold products of axes into a dimension per label; a window's axes do not grow, so one cell stands for each."""
    factors, cells = dict(meaning.factors), run.of(value)
    labels = split_labels(meaning.labels[side])
    for dim in reversed([dim for dim, label in enumerate(labels) if label == "."]):
        cells = mixed(run, node, cells, dim).squeeze(axis=dim)
    slots: dict[str, list[Slot]] = {}
    for dim, label in enumerate(labels):
        if label != ".":
            for letter in label:
                slots[letter] = run.layout.slots(value.axes[dim] if len(label) == 1 else factors[letter])
    return _Factor(cells.reshape([len(along) for along in slots.values()]), slots)
