"""Scales: target = scale x source, as a linear expression in logarithms, and the system that has to hold for them.

Every trained tensor may be scaled by a factor of its own; every operator relates the factors of its inputs and its
output (an addition wants equal ones, a product adds them, a tanh wants none). Where a size enters a formula
(1/sqrt(head_dim), a mean over more entries) a constant appears, and the system says which tensors take it up.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

Variable = tuple[str, tuple[int, ...]]
_ZERO = 1e-12  # below this a coefficient is rounding


@dataclass(frozen=True)
class Scale:
    """log(scale) = sum of coefficient x variable + constant."""

    terms: Mapping[Variable, float] = field(default_factory=dict)
    constant: float = 0.0

    def __add__(self, other: Scale) -> Scale:
        terms = dict(self.terms)
        for variable, coefficient in other.terms.items():
            terms[variable] = terms.get(variable, 0.0) + coefficient
        kept = {variable: coefficient for variable, coefficient in terms.items() if abs(coefficient) > _ZERO}
        return Scale(kept, self.constant + other.constant)

    def __mul__(self, power: float) -> Scale:
        if power == 1.0:
            return self
        return Scale({variable: power * value for variable, value in self.terms.items()}, power * self.constant)

    def __sub__(self, other: Scale) -> Scale:
        return self + other * -1.0

    @property
    def is_one(self) -> bool:
        """Whether the factor is 1 whatever the variables are."""
        return not self.terms and abs(self.constant) < _ZERO


ONE = Scale()


def variable(name: str, cell: tuple[int, ...]) -> Scale:
    """The free factor of one block of a trained tensor."""
    return Scale({(name, cell): 1.0})


def shifted(factor: float) -> Scale:
    """A known factor."""
    return Scale({}, math.log(factor))


@dataclass(frozen=True)
class Equation:
    """`scale` must be 1; `reason` says which operator wants it, for the refusal."""

    scale: Scale
    reason: str


def solve(
    equations: Iterable[Equation], rank: Callable[[Variable], float]
) -> tuple[dict[Variable, float], list[Equation]]:
    """Find factors for which every equation holds, changing as few tensors as the elimination allows.

    Gauss-Jordan elimination over the variables in order of `rank` (smallest first = most willing to change); the
    others stay at factor 1.

    Args:
        equations: What has to hold.
        rank: How unwilling a variable is to take up a factor.

    Returns:
        log(factor) of every variable that changes, and the equations that cannot hold.

    >>> gain, reader = ("norm", (0,)), ("linear", (0,))
    >>> equation = Equation(Scale({gain: 1.0, reader: 1.0}, 0.5), "the output of linear")
    >>> solve([equation], lambda variable: variable == reader)
    ({('norm', (0,)): -0.5}, [])
    """
    rows: dict[Variable, Scale] = {}  # pivot -> expression of which the pivot has coefficient 1
    users: dict[Variable, set[Variable]] = defaultdict(set)  # variable -> the pivots of all rows that may have it
    broken: list[Equation] = []
    pending = [equation for equation in equations if not equation.scale.is_one]
    if all(abs(equation.scale.constant) < _ZERO for equation in pending):
        return {}, []
    for equation in pending:
        scale = _reduced(equation.scale, rows)
        if not scale.terms:
            if abs(scale.constant) > 1e-9:  # logarithms of factors accumulate rounding
                broken.append(equation)
            continue
        pivot = min(scale.terms, key=lambda item: (rank(item), item))
        row = scale * (1.0 / scale.terms[pivot])
        changed = users.pop(pivot, set())
        for other in changed:
            rows[other] = rows[other] - row * rows[other].terms.get(pivot, 0.0)
        rows[pivot] = row
        for item in row.terms:
            users[item] |= changed | {pivot}
    return {pivot: -row.constant for pivot, row in rows.items() if abs(row.constant) > _ZERO}, broken


def _reduced(scale: Scale, rows: Mapping[Variable, Scale]) -> Scale:
    for pivot in [item for item in scale.terms if item in rows]:
        scale = scale - rows[pivot] * scale.terms[pivot]
    return scale
