"""A pointwise operator's own algebra: what it does to zeros, to scaled inputs and to averages.

The laws are measured in float64 on random numbers of every magnitude, so no operator needs a table of properties; and
around the numbers that the operator works with (the bounds of a clamp) too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_grow.pair.arguments import PLACEMENT
from lightning_grow.private import schema
from lightning_grow.trace.tape import Node, Value

Function = Callable[[Sequence[Tensor]], Tensor]
Law = Callable[[list[Tensor]], tuple[Tensor, Tensor]]  # two sides of an equation
_DEGREES = (0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 3.0, -3.0, 4.0, 1.0 / 3.0, 1.5)
_FACTOR = 1.7  # no power of 2: a rounding-free factor would hide nothing, an odd one shows every nonlinearity
_SAMPLES = 64
_LARGEST = 1e30  # a number beyond it is no bound but the end of a type's range


class Laws:
    """What holds for a function of 1-D float64 samples; one `key` means the same answers.

    Args:
        function: The function.
        count: Its inputs.
        key: What tells it from other functions.
        near: The numbers that it works with.
    """

    _answers: ClassVar[dict[Any, dict[Any, Any]]] = {}

    def __init__(self, function: Function, count: int, key: Any, near: tuple[float, ...] = ()) -> None:
        self.function, self.count, self.key, self.near = function, count, key, near
        self.answers = self._answers.setdefault(key, {})

    def vanishes(self, zeros: frozenset[int]) -> bool:
        """Whether the output is 0 whenever the inputs at `zeros` are.

        >>> Laws(lambda inputs: inputs[0] * inputs[1], 2, "product").vanishes(frozenset({1}))
        True
        """

        def law(inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
            result = self.function(_zeroed(inputs, zeros))
            return result, torch.zeros(result.shape)

        return self._holds(("vanishes", zeros), law)

    def passes(self, zeros: frozenset[int], kept: int, ones: frozenset[int] = frozenset()) -> bool:
        """Whether the output is input `kept` where the inputs at `zeros` are 0 and those at `ones` 1 (x + 0, 1 * x)."""

        def law(inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
            fixed = [torch.ones_like(item) if index in ones else item for index, item in enumerate(inputs)]
            return self.function(_zeroed(fixed, zeros)), inputs[kept]

        return self._holds(("passes", zeros, kept, ones), law)

    def degree(self, scaled: frozenset[int], zeros: frozenset[int]) -> float | None:
        """The k with f(.., c x, ..) = c^k f(.., x, ..) for inputs at `scaled` taken together, or None.

        >>> Laws(lambda inputs: inputs[0].rsqrt(), 1, "rsqrt").degree(frozenset({0}), frozenset())
        -0.5
        >>> Laws(lambda inputs: inputs[0].tanh(), 1, "tanh").degree(frozenset({0}), frozenset()) is None
        True
        """
        for power in _DEGREES:

            def law(inputs: list[Tensor], power: float = power) -> tuple[Tensor, Tensor]:
                plain = _zeroed(inputs, zeros)
                larger = [item * _FACTOR if index in scaled else item for index, item in enumerate(plain)]
                return self.function(larger), _precise(self.function(plain)) * _FACTOR**power

            if self._holds(("degree", scaled, zeros, power), law):
                return power
        return None

    def averages(self, mean: frozenset[int]) -> bool:
        """Whether the function of averages is the average of the function, over inputs at `mean`, the others fixed."""

        def law(inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
            others = _sample(self.count, self.near, offset=self.count + 1, positive=bool((inputs[0] > 0).all()))
            second = [
                other if index in mean else item for index, (item, other) in enumerate(zip(inputs, others, strict=True))
            ]
            middle = [(one + two) / 2 for one, two in zip(inputs, second, strict=True)]
            return self.function(middle), (_precise(self.function(inputs)) + _precise(self.function(second))) / 2

        return self._holds(("averages", mean), law)

    def cancels(self) -> bool:
        """Whether two equal inputs give 0 (a subtraction)."""
        return self._holds(
            "cancels", lambda inputs: (self.function([inputs[0], inputs[0]]), torch.zeros_like(inputs[0]))
        )

    def keeps(self, other: Laws) -> bool:
        """Whether it changes nothing that another function of one input gives (a ReLU behind a ReLU)."""
        near = (*self.near, *other.near)
        return self._holds(
            ("keeps", other.key), lambda inputs: (given := other.function(inputs), self.function([given])), near
        )

    def chooses(self) -> bool:
        """Whether every entry of the output is an entry of an input (where, maximum)."""

        def law(inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
            result = self.function(inputs)
            return torch.stack([result == item for item in inputs]).any(0), torch.ones_like(result)

        return self._holds("chooses", law)

    def learns(self, zeros: frozenset[int]) -> bool:
        """Whether a gradient reaches the inputs at `zeros` where they are 0: a ReLU's does not.

        >>> Laws(lambda inputs: inputs[0].relu(), 1, "relu").learns(frozenset({0}))
        False
        """

        def reaches() -> bool:
            inputs = [item.requires_grad_() for item in _zeroed(_sample(self.count, self.near), zeros)]
            with torch.enable_grad():
                result = self.function(inputs)
            if not result.requires_grad:
                return True  # an operator without a gradient of its own: nothing is known of it
            gradients = torch.autograd.grad(result.sum(), inputs, allow_unused=True)
            return any(gradients[index] is not None and bool(gradients[index].any()) for index in zeros)

        return bool(self._ask(("learns", zeros), reaches))

    def _ask(self, question: Any, answer: Callable[[], Any]) -> Any:
        if question not in self.answers:
            try:
                self.answers[question] = answer()
            except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
                self.answers[question] = False  # the operator takes no such inputs: no law holds
        return self.answers[question]

    def _holds(self, question: Any, law: Law, near: tuple[float, ...] | None = None) -> bool:
        return bool(self._ask(question, lambda: _holds(law, self.count, self.near if near is None else near)))


def _holds(law: Law, count: int, near: tuple[float, ...]) -> bool:
    """Whether a law holds on mixed signs; where the function is undefined there (sqrt, log), on positive numbers."""
    for positive in (False, True):
        left, right = map(_precise, law(_sample(count, near, positive=positive)))
        if not (left.isnan().any() or right.isnan().any()):
            return bool(torch.allclose(left, right, rtol=1e-9, atol=0.0))
    return False


def _precise(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float64))


def _zeroed(inputs: Sequence[Tensor], zeros: frozenset[int]) -> list[Tensor]:
    return [torch.zeros_like(item) if index in zeros else item for index, item in enumerate(inputs)]


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


def _sample(count: int, near: tuple[float, ...], offset: int = 0, positive: bool = False) -> list[Tensor]:
    draws = [_draws(near)[(index + offset) % 12] for index in range(count)]
    return [draw.abs() if positive else draw for draw in draws]


ADD = Laws(lambda inputs: inputs[0] + inputs[1], 2, "add")


def operator_laws(node: Node, changed: Sequence[str] = ()) -> Laws:
    """The laws of a node's operator as a function of its tensors, and of the numbers named in `changed`.

    Boolean and integer tensors are a fixed pattern, tensors in lists are not probed.
    """
    arguments = node.arguments
    tensors = [name for name, value in arguments.items() if isinstance(value, Value)]
    inputs = [*tensors, *changed]
    near = tuple(float(value) for value in arguments.values() if isinstance(value, (int, float)))
    floating = tuple(arguments[name].dtype.is_floating_point or arguments[name].dtype.is_complex for name in tensors)

    def function(samples: Sequence[Tensor]) -> Tensor:
        values = dict(arguments)
        for number, (name, sample) in enumerate(zip(inputs, samples, strict=True)):
            if name in changed:
                usual = _sample(len(inputs), near)[number].abs().median()
                scale = float(sample.detach().abs().median() / usual)  # itself, scaled as it is asked
                values[name] = arguments[name] * scale
            elif floating[number]:
                values[name] = sample.clone()
            else:
                values[name] = _pattern(arguments[name].dtype, len(sample))
        result = _call(node.op, values)
        first: Tensor = result[0] if isinstance(result, (tuple, list)) else result
        return first

    fixed = {name: value for name, value in arguments.items() if name not in inputs}
    described = sorted((name, repr(value)) for name, value in fixed.items())
    return Laws(function, len(inputs), (node.op, tuple(inputs), floating, tuple(described)), near)


def _pattern(dtype: torch.dtype, size: int) -> Tensor:
    mask = torch.arange(size) % 2 == 0
    return mask if dtype is torch.bool else mask.to(dtype)


def _call(op: Any, values: dict[str, Any]) -> Any:
    named = [item for item in schema(op).arguments if item.name not in PLACEMENT or _rounds(values[item.name])]
    args = [values[argument.name] for argument in named if not argument.kwarg_only]
    return op(*args, **{argument.name: values[argument.name] for argument in named if argument.kwarg_only})


def _rounds(value: Any) -> bool:
    """Whether an argument is a type that holds no fractions."""
    return isinstance(value, torch.dtype) and not (value.is_floating_point or value.is_complex)
