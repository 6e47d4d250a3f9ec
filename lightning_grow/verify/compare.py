"""Compare the outputs of source and target, each by what rounding alone does to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_grow.verify.rounding import Moved, eps, is_rounded, wide

ROUNDINGS = 10  # times the measured effect of rounding: up to there a difference is taken for rounding
LARGEST_LIMIT = 0.5  # of an output's scale: more is another output, even where rounding flips a NaN or a shape
RESIDUE_ROUNDINGS = 1e3  # roundings of the largest output: an output below that is 0
_DOMINATES = 1e4  # times the largest entry that differs: above that a constant would hide the difference
_DRAWS = 16  # a code next to its threshold flips in half of the draws


def output_error(source: Sequence[Tensor], target: Sequence[Tensor]) -> float:
    """Return max|f_target - f_source| / max|f_source|, each output tensor on its own, the largest of them.

    A target output may have more positions than the source's; those are left out.

    >>> output_error([torch.tensor([2.0, 4.0])], [torch.tensor([2.0, 4.4, 9.0])])
    0.1...
    """
    pairs = zip(source, target, strict=True)
    return max((_error(old, new, torch.ones_like(old, dtype=torch.bool)) for old, new in pairs), default=0.0)


def _error(old: Tensor, new: Tensor, counted: Tensor) -> float:
    """The error of one output over its counted entries; 1 where an integer or a bool is another one."""
    new = _shared(old, new)
    if old.shape != new.shape:
        return float("inf")
    if not is_rounded(old):
        return float(bool((old != new)[counted].any()))
    old, new, finite = wide(old), wide(new), torch.isfinite(old)
    if not torch.equal(finite, torch.isfinite(new)) or not _same_not_finite(old[~finite], new[~finite]):
        return float("inf")
    difference, size = (item[finite & counted].abs() for item in (new - old, old))
    return float(difference.max()) / max(float(size.max()), torch.finfo(torch.float32).tiny) if len(size) else 0.0


def _same_not_finite(old: Tensor, new: Tensor) -> bool:
    if old.is_complex():  # inf in one part, a number in the other
        old, new = torch.view_as_real(old), torch.view_as_real(new)
    return torch.allclose(old, new, equal_nan=True)


def _shared(old: Tensor, new: Tensor) -> Tensor:
    """The positions of a target's output that the source's has."""
    return new[tuple(slice(0, size) for size in old.shape)]


def compare(
    expected: Sequence[Tensor], got: Sequence[Tensor], moved: Moved, tolerance: float | None = None
) -> list[tuple[float, float]]:
    """Return the error of every output, and the limit for it.

    Args:
        expected: The source's outputs.
        got: The target's.
        moved: The source with other parameters.
        tolerance: The limit; None for ten times what one rounding of every parameter does to the output. Integers and
            bools have to be equal, but for those that ten roundings flip.
    """
    counted = [
        (_weighed if is_rounded(old) else _codes)(number, old, _shared(old, new), moved)
        for number, (old, new) in enumerate(zip(expected, got, strict=True))
    ]
    errors = list(map(_error, expected, got, counted))
    if tolerance is not None:
        return [(error, tolerance) for error in errors]
    draws = [moved.outputs(lambda step: step, seed) for seed in range(2)]
    limits = [
        min(
            LARGEST_LIMIT,
            ROUNDINGS * max(eps(old, got[number]), *(_error(old, draw[number], counted[number]) for draw in draws)),
        )
        if is_rounded(old)
        else 0.0
        for number, old in enumerate(expected)
    ]
    scale = max((_size(old) for old in expected if is_rounded(old)), default=0.0)
    return [
        (0.0 if limit == LARGEST_LIMIT and _is_residue(old, new, scale) else error, limit)
        for error, limit, old, new in zip(errors, limits, expected, got, strict=True)
    ]


def _size(item: Tensor) -> float:
    finite = wide(item.detach())[torch.isfinite(item)].abs()
    return float(finite.max()) if len(finite) else 0.0


def _is_residue(old: Tensor, new: Tensor, scale: float) -> bool:
    """Whether an output is 0 but for rounding, beside the other outputs of the model."""
    return max(_size(old), _size(_shared(old, new))) <= RESIDUE_ROUNDINGS * eps(old, new) * scale


def worst(compared: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the largest error, and the lowest limit that is exceeded, or else the highest limit.

    >>> worst([(1e-3, 1e-2), (1e-6, 1e-7)])
    (0.001, 1e-07)
    """
    exceeded = [limit for error, limit in compared if not error <= limit]
    return max((error for error, _ in compared), default=0.0), min(exceeded or [max(limit for _, limit in compared)])


def _codes(number: int, old: Tensor, new: Tensor, moved: Moved) -> Tensor:
    """The entries of an integer output that rounding does not flip (an argmax between two equals), bool.

    A flip is taken for rounding only as far as rounding flips it.
    """
    if old.shape != new.shape:
        return torch.ones_like(old, dtype=torch.bool)
    off, flips = (new.double() - old.double()).abs(), torch.zeros(old.shape, dtype=torch.float64, device=old.device)
    for seed in range(_DRAWS if bool(off.any()) else 0):
        drawn = moved.outputs(lambda step: ROUNDINGS * step, seed)[number]
        if drawn.shape == old.shape:
            flips = torch.maximum(flips, (drawn.double() - old.double()).abs())
    return (off == 0) | (off > 2 * flips)  # the largest of some draws is not the largest of all


def _weighed(number: int, old: Tensor, new: Tensor, moved: Moved) -> Tensor:
    """The entries of an output that set its scale: all but constants far above the rest, bool.

    What masks an action (-1e9, finfo.min) comes from no weight and would hide every error beside it. A constant is the
    same in both models and stays when all weights move by an eighth. An ordinary large entry, beside others that are
    residues of rounding, does not stay: it sets the scale.
    """
    everything = torch.ones_like(old, dtype=torch.bool)
    if old.shape != new.shape:
        return everything
    same, size = _agree(old, new), wide(old).abs()
    rest = size[~same & torch.isfinite(size)]
    far = same & torch.isfinite(size) & (size > _DOMINATES * rest.max()) if len(rest) else ~everything
    if not bool(far.any()):
        return everything
    drawn = moved.outputs(lambda _: 1 / 8, 0)[number]
    return ~(far & _agree(old, drawn) if drawn.shape == old.shape else far)


def _agree(old: Tensor, new: Tensor) -> Tensor:
    """Where two outputs are the same up to rounding, each entry by its own size."""
    return (wide(old) - wide(new)).abs() <= ROUNDINGS * eps(old, new) * wide(old).abs()
