"""A pointwise function with its measured algebra, each question asked once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_grow.plan import probe
from lightning_grow.trace.tape import Node, Value

_PLACEMENT = ("dtype", "layout", "device", "pin_memory", "memory_format", "generator", "out")


class Probed:
    """Answers about a function of `count` inputs and the numbers in `near`; one `key` means the same answers."""

    _answers: ClassVar[dict[Any, dict[Any, Any]]] = {}

    def __init__(self, function: probe.Function, count: int, key: Any, near: tuple[float, ...] = ()) -> None:
        self.function, self.count, self.key, self.near = function, count, key, near
        self.answers = self._answers.setdefault(key, {})

    def _ask(self, question: Any, answer: Callable[[], Any]) -> Any:
        if question not in self.answers:
            try:
                self.answers[question] = answer()
            except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
                self.answers[question] = None  # the operator takes no such inputs: no law holds
        return self.answers[question]

    def vanishes(self, zeros: frozenset[int]) -> bool:
        """Whether the output is 0 where these inputs are."""
        return bool(self._ask(("vanishes", zeros), lambda: probe.vanishes(self.function, self.count, zeros, self.near)))

    def diverges(self, zeros: frozenset[int]) -> bool:
        """Whether the output has no finite value where these inputs are 0."""
        return bool(self._ask(("diverges", zeros), lambda: probe.diverges(self.function, self.count, zeros)))

    def passes(self, zeros: frozenset[int], kept: int) -> bool:
        """Whether the output is input `kept` where the inputs at `zeros` are 0."""
        law = lambda: probe.passes(self.function, self.count, zeros, kept, self.near)  # noqa: E731
        return bool(self._ask(("passes", zeros, kept), law))

    def degree(self, scaled: frozenset[int], zeros: frozenset[int]) -> float | None:
        """The power with which a common factor on these inputs comes out."""
        power: float | None = self._ask(
            ("degree", scaled, zeros), lambda: probe.degree(self.function, self.count, scaled, zeros, self.near)
        )
        return power

    def averages(self, mean: frozenset[int]) -> bool:
        """Whether averaging these inputs averages the output."""
        return bool(self._ask(("averages", mean), lambda: probe.averages(self.function, self.count, mean, self.near)))

    def cancels(self) -> bool:
        """Whether two equal inputs give 0 (a subtraction)."""
        return bool(self._ask("cancels", lambda: probe.cancels(self.function, self.near)))

    def keeps(self, other: Probed) -> bool:
        """Whether it changes nothing that another function of one input gives."""
        law = lambda: probe.keeps(self.function, other.function, (*self.near, *other.near))  # noqa: E731
        return bool(self._ask(("keeps", other.key), law))

    def chooses(self) -> bool:
        """Whether it gives one of its inputs, entry by entry."""
        return bool(self._ask("chooses", lambda: probe.chooses(self.function, self.count, self.near)))


ADD = Probed(lambda inputs: inputs[0] + inputs[1], 2, "add")
MULTIPLY = Probed(lambda inputs: inputs[0] * inputs[1], 2, "multiply")


def probed_operator(node: Node, changed: Sequence[str]) -> Probed:
    """A node's operator as a function of its tensors, and of the numbers named in `changed`.

    Inputs are 1-D float64 samples; boolean and integer tensors are a fixed pattern, tensors in lists are not probed.
    """
    arguments = node.arguments
    tensors = [name for name, value in arguments.items() if isinstance(value, Value)]
    inputs = [*tensors, *changed]
    floating = tuple(arguments[name].dtype.is_floating_point or arguments[name].dtype.is_complex for name in tensors)

    near = tuple(float(value) for value in arguments.values() if isinstance(value, (int, float)))

    def function(samples: Sequence[Tensor]) -> Tensor:
        values = dict(arguments)
        for number, (name, sample) in enumerate(zip(inputs, samples, strict=True)):
            if name in changed:
                usual = probe.sample(len(inputs), near)[number].abs().median()
                values[name] = arguments[name] * float(sample.abs().median() / usual)  # itself, scaled as it is asked
            elif floating[number]:
                values[name] = sample.clone()
            else:
                values[name] = _pattern(arguments[name].dtype, len(sample))
        result = _call(node.op, values)
        first: Tensor = result[0] if isinstance(result, (tuple, list)) else result
        return first

    fixed = {name: value for name, value in arguments.items() if name not in inputs}
    described = sorted((name, repr(value)) for name, value in fixed.items())
    return Probed(function, len(inputs), (node.op, tuple(inputs), floating, tuple(described)), near)


def _pattern(dtype: torch.dtype, size: int) -> Tensor:
    mask = torch.arange(size) % 2 == 0
    return mask if dtype is torch.bool else mask.to(dtype)


def _call(op: Any, values: dict[str, Any]) -> Any:
    named = [item for item in op._schema.arguments if item.name not in _PLACEMENT or _rounds(values[item.name])]
    args = [values[argument.name] for argument in named if not argument.kwarg_only]
    return op(*args, **{argument.name: values[argument.name] for argument in named if argument.kwarg_only})


def _rounds(value: Any) -> bool:
    """Whether an argument is a type that holds no fractions."""
    return isinstance(value, torch.dtype) and not (value.is_floating_point or value.is_complex)
