"""The algebra of axes: what the positions along one dimension of a tensor stand for.

An axis is an *atom* (n units of one kind), a *sum* (one axis after the other: a concatenation) or a row-major
*product* of axes (a view of several as one). Tracing a model refines atoms: `cut` splits one into a sum, `factor`
splits one into a product, `unify` states that two axes are the same one.

An atom of size 1 may be a *mark*: in front of a part of a concatenation it tells apart parts of the same units, one of
which may be new. It is no unit of its own: with and without it an axis is the same.

Invariants, which the property tests hold:
    * sums and products never change; only an atom can be bound, once, to an axis of its own size;
    * `resolve` is flat (no sum directly in a sum, no product directly in a product, no factor of size 1 but marks, no
      summand of size 0), so an atom can't be part of another axis of its own size and no tree contains itself;
    * every binding either joins two atoms or splits one into smaller ones, so `unify` ends on every input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence


class AxisError(Exception):
    """Two axes have no common layout."""


class Axis:
    """One axis: an atom while `kind` is None, else a "sum" or a "product" of `parts`."""

    __slots__ = ("_flat", "_flat_at", "bound", "cut_from", "kind", "marks", "parts", "size")
    last_binding: object = None  # of all axes: as long as there is no other, what was flat is flat

    def __init__(self, size: int, kind: str | None = None, parts: tuple[Axis, ...] = (), marks: bool = False) -> None:
        self.size, self.kind, self.parts, self.marks = size, kind, parts, marks
        self.bound: Axis | None = None
        self.cut_from: Axis | None = None
        self._flat: Axis = self
        self._flat_at: object = self

    def bind(self, axis: Axis) -> None:
        """State what an atom is."""
        self.bound = axis
        Axis.last_binding = object()

    def flat(self) -> Axis:
        """A sum or a product without parts of its own kind; worked out again after a binding."""
        if self._flat_at is not Axis.last_binding:
            self._flat, self._flat_at = _flatten(self), Axis.last_binding
        return self._flat

    def __repr__(self) -> str:
        axis = resolve(self)
        if axis.kind is None:
            return str(axis.size)
        return "(" + ("+" if axis.kind == "sum" else "*").join(map(repr, axis.parts)) + ")"


def sum_of(parts: Sequence[Axis]) -> Axis:
    """The concatenation of `parts`."""
    return resolve(Axis(sum(part.size for part in parts), "sum", tuple(parts)))


def product_of(parts: Sequence[Axis]) -> Axis:
    """The row-major product of `parts`, the last one running fastest."""
    return resolve(Axis(math.prod(part.size for part in parts), "product", tuple(parts)))


def resolve(axis: Axis) -> Axis:
    """Follow all bindings and return the flat tree.

    >>> resolve(product_of([Axis(1), Axis(3), product_of([Axis(2), Axis(5)])]))
    (3*2*5)
    """
    while axis.bound is not None:
        axis = axis.bound
    return axis if axis.kind is None else axis.flat()


def _flatten(axis: Axis) -> Axis:
    unit = 0 if axis.kind == "sum" else 1
    parts: list[Axis] = []
    for part in map(resolve, axis.parts):
        if part.kind == axis.kind:
            parts.extend(part.parts)
        elif part.size != unit or part.marks:
            parts.append(part)
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return Axis(unit)
    if len(parts) == len(axis.parts) and all(new is old for new, old in zip(parts, axis.parts, strict=True)):
        return axis
    return Axis(axis.size, axis.kind, tuple(parts))


def atoms(axis: Axis) -> Iterator[Axis]:
    """The atoms of the resolved tree, left to right.

    >>> [atom.size for atom in atoms(sum_of([Axis(2), product_of([Axis(3), Axis(4)])]))]
    [2, 3, 4]
    """
    axis = resolve(axis)
    if axis.kind is None:
        yield axis
    for part in axis.parts:
        yield from atoms(part)


def cut(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """Return the consecutive pieces of `axis`; an atom becomes the sum of them.

    Raises:
        AxisError: The sizes do not add up to the axis.

    >>> gates = Axis(12); cut(gates, [4, 4, 4]), gates
    ([4, 4, 4], (4+4+4))
    """
    axis = resolve(axis)
    if sum(sizes) != axis.size:
        raise AxisError(f"cannot cut {axis} into {list(sizes)}")
    nonempty = [size for size in sizes if size]
    if len(nonempty) <= 1:
        return [axis if size else Axis(0) for size in sizes]
    pieces = iter(_cut(axis, nonempty))
    return [next(pieces) if size else Axis(0) for size in sizes]


def _cut(axis: Axis, sizes: list[int]) -> list[Axis]:
    if axis.kind is None:
        fresh = [Axis(size) for size in sizes]
        for piece in fresh:
            piece.cut_from = axis
        axis.bind(Axis(axis.size, "sum", tuple(fresh)))
        return fresh
    if axis.kind == "product" and axis.parts[0].marks:
        pieces = _cut(product_of(axis.parts[1:]), sizes)
        return [product_of([axis.parts[0], piece]) if piece.size > 1 else piece for piece in pieces]
    if axis.kind == "product":
        inner = product_of(axis.parts[1:])
        if not any(size % inner.size for size in sizes):
            outer = cut(axis.parts[0], [size // inner.size for size in sizes])
            return [product_of([piece, inner]) for piece in outer]
        cut(axis.parts[0], [1] * axis.parts[0].size)  # pieces end inside a unit: every unit stands alone
        axis = Axis(axis.size, "sum", (inner,) * axis.parts[0].size)
    rest, pieces = list(axis.parts), []
    for size in sizes:
        taken: list[Axis] = []
        while size:
            part = rest.pop(0)
            if part.size > size:
                part, remainder = cut(part, [size, part.size - size])
                rest.insert(0, remainder)
            taken.append(part)
            size -= part.size
        pieces.append(sum_of(taken))
    return pieces


def factor(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """Return the row-major factors of `axis`; an atom becomes the product of them.

    Raises:
        AxisError: The sizes do not follow the structure of `axis`.

    >>> stream = Axis(12); factor(stream, [3, 4]), stream
    ([3, 4], (3*4))
    """
    axis = resolve(axis)
    if math.prod(sizes) != axis.size:
        raise AxisError(f"cannot factor {axis} as {list(sizes)}")
    large = [size for size in sizes if size != 1]
    if len(large) <= 1:
        return [axis if size != 1 else Axis(1) for size in sizes] if large else [Axis(1) for _ in sizes]
    factors = iter(_factor(axis, large))
    return [next(factors) if size != 1 else Axis(1) for size in sizes]


def _factor(axis: Axis, sizes: list[int]) -> list[Axis]:
    if axis.kind is None:
        fresh = [Axis(size) for size in sizes]
        axis.bind(Axis(axis.size, "product", tuple(fresh)))
        return fresh
    if axis.kind == "sum":
        inner = math.prod(sizes[1:])
        parts: Sequence[Axis] = axis.parts
        if any(part.size % inner for part in parts):  # groups across a concatenation: each one stands alone
            parts = cut(axis, [inner] * sizes[0])
        rows = [factor(part, [part.size // inner, *sizes[1:]]) for part in parts]
        for row in rows[1:]:
            for first, other in zip(rows[0][1:], row[1:], strict=True):
                unify(first, other)
        return [sum_of([row[0] for row in rows]), *rows[0][1:]]
    rest, factors = list(axis.parts), []
    for size in sizes:
        taken: list[Axis] = []
        while size > 1:
            part = rest.pop(0)
            if size % part.size:
                if part.size % size:
                    raise AxisError(f"cannot factor {axis} as {sizes}")
                part, remainder = factor(part, [size, part.size // size])
                rest.insert(0, remainder)
            taken.append(part)
            size //= part.size
        factors.append(product_of(taken))
    return factors


def unify(first: Axis, second: Axis) -> None:
    """State that two axes are the same one; refine both until they are.

    Raises:
        AxisError: Their sizes differ, or no refinement makes them equal.

    >>> a, b = Axis(6), product_of([Axis(2), Axis(3)]); unify(a, b); a
    (2*3)
    """
    first, second = resolve(first), resolve(second)
    if first is second or (first.size == second.size != 1 and _unmarked(first) is _unmarked(second)):
        return
    if first.size != second.size:
        raise AxisError(f"{first} and {second} differ in size")
    if first.kind is None and not (first.marks and second.kind is None):
        first.bind(second)
    elif second.kind is None:
        second.bind(first)
    elif "sum" in (first.kind, second.kind):
        whole, other = (first, second) if first.kind == "sum" else (second, first)
        for part, piece in zip(whole.parts, cut(other, [part.size for part in whole.parts]), strict=True):
            unify(part, piece)
    else:
        _unify_products(first, second)


def unify_all(axes: Sequence[Axis]) -> Axis:
    """State that axes are the same one and return it; pieces of one axis stay told apart there, each by a mark.

    >>> heads = Axis(6); one = unify_all(cut(heads, [2, 2, 2])); one, heads
    (2, ((1*2)+(1*2)+(1*2)))
    """
    pieces = list(map(resolve, axes))
    whole = pieces[0].cut_from
    if whole is not None and all(piece.kind is None and piece.cut_from is whole for piece in pieces):
        units = Axis(pieces[0].size)
        for piece in dict.fromkeys(pieces):
            piece.bind(product_of([Axis(1, marks=True), units]))
        return units
    for piece in pieces[1:]:
        unify(_unmarked(resolve(pieces[0])), _unmarked(resolve(piece)))
    alike = all(resolve(piece) is resolve(pieces[0]) for piece in pieces[1:])
    return resolve(pieces[0]) if alike else _unmarked(resolve(pieces[0]))


def _unmarked(axis: Axis) -> Axis:
    """An axis without the mark of the part of a concatenation that it is."""
    marked = axis.kind == "product" and axis.parts[0].marks
    return resolve(product_of(axis.parts[1:])) if marked and len(axis.parts) == 2 else axis


def _unify_products(first: Axis, second: Axis) -> None:
    """Match the factors from the left; where their sizes differ, the larger one is factored by the smaller."""
    left, right = list(first.parts), list(second.parts)
    while left and right:
        one, two = resolve(left.pop(0)), resolve(right.pop(0))
        if one.size > two.size:
            (one, two), (left, right) = (two, one), (right, left)
        if two.size % one.size:
            raise AxisError(f"{first} and {second} have no common factors")
        if two.size > one.size:
            two, remainder = factor(two, [one.size, two.size // one.size])
            right.insert(0, remainder)
        unify(one, two)


def reshape(axes: Sequence[Axis], shape: Sequence[int]) -> list[Axis]:
    """Return the axes of a row-major view of `axes` as `shape`.

    Raises:
        AxisError: The view cuts across the structure of an axis.

    >>> reshape([Axis(2), Axis(12)], [2, 3, 4])
    [2, 3, 4]
    """
    if 0 in shape:
        return [Axis(size) for size in shape]
    rest = [axis for axis in axes if axis.size != 1]
    views: list[Axis] = []
    index = 0
    while index < len(shape):
        if shape[index] == 1:
            views.append(Axis(1))
            index += 1
            continue
        group, sizes = [rest.pop(0)], [shape[index]]
        index += 1
        while (have := math.prod(axis.size for axis in group)) != (want := math.prod(sizes)):
            if have < want:
                group.append(rest.pop(0))
            else:
                sizes.append(shape[index])
                index += 1
        views += factor(product_of(group), sizes)
    return views
