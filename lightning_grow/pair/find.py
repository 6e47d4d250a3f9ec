"""Find the source's operator for one of the target's: by the values it takes, not by its place in the program."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_grow.pair.arguments import find_difference
from lightning_grow.pair.match import Match
from lightning_grow.pair.operators import key
from lightning_grow.trace.axes import Axis, atoms
from lightning_grow.trace.meanings import Contract, Pointwise, Rearrange
from lightning_grow.trace.tape import Node, Value, numbers


def find(match: Match, node: Node) -> tuple[Node | None, str]:
    """Find the source's operator for one of the target's: on the same values, with the same arguments.

    Matching by data and not by position in the program lets the target have layers that the source does not have.

    Returns:
        The source's operator, or None; and why it is none, where only its arguments say so.
    """
    if not all(value.constant is not None or value in match.values for value in node.tensors()):
        return _find_shorter(match, node), ""
    earlier = match.maker_of_twin(node)
    if earlier is not None and earlier.op == node.op:
        return earlier, ""
    wanted = key(node, match.values.get)
    rank, candidates = match.count(wanted), match.operators.like(wanted)
    difference = ""

    def has_other_numbers(candidate: Node) -> bool:
        return isinstance(node.meaning[0], Pointwise) and numbers(candidate) != numbers(node)

    def unlikeness(item: tuple[int, Node]) -> tuple[bool, bool, int]:
        position, candidate = item
        begins_otherwise = not _same_constants(candidate, node, begins_alike)
        return begins_otherwise, has_other_numbers(candidate), abs(position - rank)

    if rank < len(candidates) and _is_equal(candidates[rank], node) and _fits(match, candidates[rank], node):
        return candidates[rank], ""
    ordered = sorted(enumerate(candidates), key=unlikeness) if len(candidates) > 1 else enumerate(candidates)
    for _, candidate in ordered:
        if rank >= len(candidates) and has_other_numbers(candidate):
            continue  # the source has as many of these as the target had before: it is one more
        found = find_difference(candidate, node, match.old_length)
        if not found and _fits(match, candidate, node):
            return candidate, ""
        difference = difference or found
    return _find_shorter(match, node), difference


def pair_outputs(match: Match, source: Node, node: Node) -> list[tuple[Value, Value]]:
    """The outputs of two operators side by side, without the pieces of a split that the source has not."""
    new = node.outputs if len(source.outputs) == len(node.outputs) else _known_pieces(match, node)
    return list(zip(source.outputs, new, strict=True))


def _known_pieces(match: Match, node: Node) -> list[Value]:
    return [value for value in node.outputs if all(map(match.old_length, value.axes))]


def _find_fewer(match: Match, node: Node) -> Node | None:
    """The source's split of the same value into some of the pieces."""
    known = _known_pieces(match, node)
    lengths = [list(map(match.old_length, value.axes)) for value in known]

    def cuts_alike(other: Node) -> bool:
        dims = other.arguments.get("dim", 0) == node.arguments.get("dim", 0)
        return other.op == node.op and dims and [list(value.shape) for value in other.outputs] == lengths

    return next((other for other in match.alternatives(node) if cuts_alike(other)), None)


def _find_shorter(match: Match, node: Node) -> Node | None:
    """The source's concatenation of most of the parts of a longer one, in their order."""
    if len(node.outputs) > 1 and isinstance(node.meaning[0], Rearrange):
        return _find_fewer(match, node)
    if node.name != "cat" or any(value.constant is not None for value in node.tensors()):
        return None
    parts = [match.values.get(value) for value in node.tensors()]
    alike = [item for item in match.operators.concatenations if numbers(item) == numbers(node)]
    within = [item for item in alike if _is_within(list(map(match.first, item.tensors())), parts)]
    return max(within, key=lambda item: len(item.tensors()), default=None)


def _is_within(parts: list[Value], longer: list[Value | None]) -> bool:
    """Whether a list is a longer one with some left out."""
    rest = iter(longer)
    return len(parts) < len(longer) and all(any(part is item for item in rest) for part in parts)


def _fits(match: Match, candidate: Node, node: Node) -> bool:
    """Whether the candidate's outputs have the rank of the node's and are larger only along inputs with names."""

    def fit(old: Axis, new: Axis) -> bool:
        return old.size <= new.size or any(atom in match.named for atom in atoms(new))

    return all(
        len(old.axes) == len(new.axes) and all(map(fit, old.axes, new.axes)) and _is_of_kind(old, new)
        for old, new in zip(candidate.outputs, node.outputs, strict=True)
    )


def _is_of_kind(old: Value, new: Value) -> bool:
    """Whether both are of one type, the width of floats aside."""
    return old.dtype == new.dtype or (old.dtype.is_floating_point and new.dtype.is_floating_point)


def _is_equal(first: Node, second: Node) -> bool:
    """Whether two calls on the same values have the same numbers and contents."""
    if isinstance(first.meaning[0], Contract) or first.whole is not None or second.whole is not None:
        return False  # there is more to compare
    same = (first.op, first.path, numbers(first)) == (second.op, second.path, numbers(second))
    return same and _same_constants(first, second, same_constant)


def _same_constants(first: Node, second: Node, same: Callable[[Tensor | None, Tensor | None], bool]) -> bool:
    pairs = zip(first.tensors(), second.tensors(), strict=True)
    return all(same(one.constant, two.constant) for one, two in pairs)


def begins_alike(first: Tensor | None, second: Tensor | None) -> bool:
    """Whether the source's content is the beginning of the target's."""
    if first is None or second is None or first.dim() != second.dim():
        return first is second
    return same_constant(first, second[tuple(slice(0, size) for size in first.shape)])


def same_constant(first: Tensor | None, second: Tensor | None) -> bool:
    """Whether two contents are equal, NaN included."""
    if first is None or second is None or first.shape != second.shape:
        return first is second
    return bool(torch.equal(torch.nan_to_num(first), torch.nan_to_num(second)))
