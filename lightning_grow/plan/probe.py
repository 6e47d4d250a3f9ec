"""Ask a pointwise operator for its own algebra: what it does to zeros, to scaled inputs and to averages.

The answers are measured in float64 on random numbers of every magnitude, so no operator needs a table of properties.
Every question takes the numbers that the operator works with (the bounds of a clamp): it is asked around them too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

_DEGREES = (0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 3.0, -3.0, 4.0, 1.0 / 3.0, 1.5)
_FACTOR = 1.7  # no power of 2: a rounding-free factor would hide nothing, an odd one shows every nonlinearity
_SAMPLES = 64
_LARGEST = 1e30  # a number beyond it is no bound but the end of a type's range

Function = Callable[[Sequence[Tensor]], Tensor]


@lru_cache
def _draws(near: tuple[float, ...]) -> list[Tensor]:
    """Numbers from 1e-6 to 1e6, and on both sides of those in `near`, of both signs."""
    generator = torch.Generator().manual_seed(0)
    magnitudes = 10 ** torch.linspace(-6, 6, _SAMPLES, dtype=torch.float64)
    around = [torch.linspace(-2, 2, 32, dtype=torch.float64) * size for size in near if 0 < abs(size) < _LARGEST]

    def draw() -> Tensor:
        every = torch.cat([torch.randn(_SAMPLES, generator=generator, dtype=torch.float64) * magnitudes, *around])
        return every[torch.randperm(len(every), generator=generator)]

    return [draw() for _ in range(12)]


def sample(count: int, near: Sequence[float], offset: int = 0, positive: bool = False) -> list[Tensor]:
    """The numbers that a function of `count` inputs is asked about."""
    draws = [_draws(tuple(near))[(index + offset) % 12] for index in range(count)]
    return [draw.abs() if positive else draw for draw in draws]


def _same(first: Tensor, second: Tensor) -> bool:
    return bool(torch.allclose(first, second, rtol=1e-9, atol=0.0, equal_nan=True))


def _holds(law: Callable[[list[Tensor]], tuple[Tensor, Tensor]], count: int, near: Sequence[float]) -> bool:
    """Whether a law holds on mixed signs; where the function is undefined there (sqrt, log), on positive numbers."""
    for positive in (False, True):
        left, right = law(sample(count, near, positive=positive))
        if left.isnan().any() or right.isnan().any():
            continue
        return _same(left, right)
    return False


def vanishes(function: Function, count: int, zeros: frozenset[int], near: Sequence[float] = ()) -> bool:
    """Whether the output is 0 whenever the inputs at `zeros` are.

    >>> vanishes(lambda inputs: inputs[0] * inputs[1], 2, frozenset({1}))
    True
    """

    def law(inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        result = function([torch.zeros_like(item) if index in zeros else item for index, item in enumerate(inputs)])
        return result.double(), torch.zeros(result.shape, dtype=torch.float64)

    return _holds(law, count, near)


def diverges(function: Function, count: int, zeros: frozenset[int]) -> bool:
    """Whether the output has no finite value where the inputs at `zeros` are 0, and the others are positive.

    >>> diverges(lambda inputs: inputs[0] / inputs[1], 2, frozenset({1}))
    True
    """
    inputs = [item * (index not in zeros) for index, item in enumerate(sample(count, (), positive=True))]
    return not bool(function(inputs).double().isfinite().any())


def passes(function: Function, count: int, zeros: frozenset[int], kept: int, near: Sequence[float] = ()) -> bool:
    """Whether the output is input `kept` when the inputs at `zeros` are 0 (x + 0)."""

    def law(inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        result = function([torch.zeros_like(item) if index in zeros else item for index, item in enumerate(inputs)])
        return result.double(), inputs[kept]

    return _holds(law, count, near)


def degree(
    function: Function, count: int, scaled: frozenset[int], zeros: frozenset[int], near: Sequence[float] = ()
) -> float | None:
    """The k with f(.., c x, ..) = c^k f(.., x, ..) for inputs at `scaled` taken together, or None.

    >>> degree(lambda inputs: inputs[0].rsqrt(), 1, frozenset({0}), frozenset())
    -0.5
    >>> degree(lambda inputs: inputs[0].tanh(), 1, frozenset({0}), frozenset()) is None
    True
    """
    for power in _DEGREES:

        def law(inputs: list[Tensor], power: float = power) -> tuple[Tensor, Tensor]:
            plain = [torch.zeros_like(item) if index in zeros else item for index, item in enumerate(inputs)]
            larger = [item * _FACTOR if index in scaled else item for index, item in enumerate(plain)]
            return function(larger).double(), function(plain).double() * _FACTOR**power

        if _holds(law, count, near):
            return power
    return None


def averages(function: Function, count: int, mean: frozenset[int], near: Sequence[float] = ()) -> bool:
    """Whether the function of averages is the average of the function, over inputs at `mean`, the others fixed."""

    def law(inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        others = sample(count, near, offset=count + 1, positive=bool((inputs[0] > 0).all()) if inputs else False)
        second = [
            other if index in mean else item for index, (item, other) in enumerate(zip(inputs, others, strict=True))
        ]
        middle = [(one + two) / 2 for one, two in zip(inputs, second, strict=True)]
        return function(middle).double(), (function(inputs).double() + function(second).double()) / 2

    return _holds(law, count, near)


def cancels(function: Function, near: Sequence[float] = ()) -> bool:
    """Whether a function of two inputs is 0 where they are equal.

    >>> cancels(lambda inputs: inputs[0] - inputs[1])
    True
    """

    def law(inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        return function([inputs[0], inputs[0]]).double(), torch.zeros_like(inputs[0])

    return _holds(law, 2, near)


def keeps(function: Function, other: Function, near: Sequence[float] = ()) -> bool:
    """Whether a function of one input changes nothing that `other` gives (a ReLU behind a ReLU).

    >>> keeps(torch_relu := lambda inputs: inputs[0].relu(), torch_relu)
    True
    >>> keeps(lambda inputs: inputs[0].clamp(0, 6), torch_relu)
    False
    """

    def law(inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        given = other(inputs)
        return given.double(), function([given]).double()

    return _holds(law, 1, near)


def chooses(function: Function, count: int, near: Sequence[float] = ()) -> bool:
    """Whether every entry of the output is an entry of an input (where, maximum).

    >>> chooses(lambda inputs: inputs[0].maximum(inputs[1]), 2), chooses(lambda inputs: inputs[0] + inputs[1], 2)
    (True, False)
    """

    def law(inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        result = function(inputs).double()
        return torch.stack([result == item for item in inputs]).any(0).double(), torch.ones_like(result)

    return _holds(law, count, near)
