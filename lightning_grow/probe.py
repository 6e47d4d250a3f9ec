"""Ask a pointwise operator for its own algebra: what it does to zeros, to scaled inputs and to averages.

The answers are measured on a few random numbers in float64, so no operator needs a table of properties.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

_DEGREES = (0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 3.0, -3.0, 4.0, 1.0 / 3.0, 1.5)
_FACTOR = 1.7  # no power of 2: a rounding-free factor would hide nothing, an odd one shows every nonlinearity
_SAMPLES = 64

Function = Callable[[Sequence[Tensor]], Tensor]


@lru_cache(maxsize=1)
def _draws() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(_SAMPLES, generator=generator, dtype=torch.float64) for _ in range(12)]


def _sample(count: int, offset: int = 0, positive: bool = False) -> list[Tensor]:
    draws = [_draws()[(index + offset) % 12] for index in range(count)]
    return [draw.abs() + 0.1 if positive else draw for draw in draws]


def _same(first: Tensor, second: Tensor) -> bool:
    return bool(torch.allclose(first, second, rtol=1e-9, atol=1e-12, equal_nan=True))


def _holds(law: Callable[[list[Tensor]], tuple[Tensor, Tensor]], count: int) -> bool:
    """Whether a law holds on mixed signs; where the function is undefined there (sqrt, log), on positive numbers."""
    for positive in (False, True):
        left, right = law(_sample(count, positive=positive))
        if left.isnan().any() or right.isnan().any():
            continue
        return _same(left, right)
    return False


def vanishes(function: Function, count: int, zeros: frozenset[int]) -> bool:
    """Whether the output is 0 whenever the inputs at `zeros` are.

    >>> vanishes(lambda inputs: inputs[0] * inputs[1], 2, frozenset({1}))
    True
    """

    def law(inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        result = function([torch.zeros_like(item) if index in zeros else item for index, item in enumerate(inputs)])
        return result.double(), torch.zeros(_SAMPLES, dtype=torch.float64)

    return _holds(law, count)


def passes(function: Function, count: int, zeros: frozenset[int], kept: int) -> bool:
    """Whether the output is input `kept` when the inputs at `zeros` are 0 (x + 0)."""

    def law(inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        result = function([torch.zeros_like(item) if index in zeros else item for index, item in enumerate(inputs)])
        return result.double(), inputs[kept]

    return _holds(law, count)


def degree(function: Function, count: int, scaled: frozenset[int], zeros: frozenset[int]) -> float | None:
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

        if _holds(law, count):
            return power
    return None


def averages(function: Function, count: int, mean: frozenset[int]) -> bool:
    """Whether the function of averages is the average of the function, over inputs at `mean`, the others fixed."""

    def law(inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        others = _sample(count, offset=count + 1, positive=bool((inputs[0] > 0).all()) if inputs else False)
        second = [
            other if index in mean else item for index, (item, other) in enumerate(zip(inputs, others, strict=True))
        ]
        middle = [(one + two) / 2 for one, two in zip(inputs, second, strict=True)]
        return function(middle).double(), (function(inputs).double() + function(second).double()) / 2

    return _holds(law, count)


def cancels(function: Function) -> bool:
    """Whether a function of two inputs is 0 where they are equal.

    >>> cancels(lambda inputs: inputs[0] - inputs[1])
    True
    """

    def law(inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        return function([inputs[0], inputs[0]]).double(), torch.zeros(_SAMPLES, dtype=torch.float64)

    return _holds(law, 2)


def repeats(function: Function) -> bool:
    """Whether applying a function of one input twice is applying it once (a ReLU).

    >>> repeats(lambda inputs: inputs[0].relu()), repeats(lambda inputs: inputs[0].tanh())
    (True, False)
    """

    def law(inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        once = function(inputs)
        return once.double(), function([once]).double()

    return _holds(law, 1)


def pointwise_function(op: Any, arguments: dict[str, Any], is_tensor: Callable[[Any], bool]) -> Function:
    """The operator as a function of its tensor (and number) arguments, the rest fixed.

    Args:
        op: The operator.
        arguments: Its bound arguments; those for which `is_tensor` holds become inputs in order.
        is_tensor: Which arguments are inputs.
    """
    schema = {argument.name: argument for argument in op._schema.arguments}

    def function(inputs: Sequence[Tensor]) -> Tensor:
        rest = iter(inputs)
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for name, value in arguments.items():
            item = next(rest).clone() if is_tensor(value) else value
            if name in ("dtype", "layout", "device", "pin_memory", "memory_format", "out", "generator"):
                continue
            if schema[name].kwarg_only:
                kwargs[name] = item
            else:
                args.append(item)
        result = op(*args, **kwargs)
        first: Tensor = result[0] if isinstance(result, (tuple, list)) else result
        return first

    return function
