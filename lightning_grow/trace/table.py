"""The table of rules: what an operator does with axes, by its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from lightning_grow.private import Operator, schema
from lightning_grow.trace.axes import Axis, AxisError, unify
from lightning_grow.trace.meanings import (
    Along,
    Create,
    Opaque,
    Pointwise,
    Rearrange,
)
from lightning_grow.trace.tape import TRANSPARENT, Node, Value, operator_name

Output = tuple[list[Axis], Any]


class Call:
    """One operator call as a rule sees it: `call["dim"]` is an argument by its schema name."""

    def __init__(self, node: Node) -> None:
        self.node, self.shapes = node, node.shapes
        self.arguments = node.arguments

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        """An argument, or `default` where the schema does not have it or it is None."""
        value = self.arguments.get(name)
        return default if value is None else value

    @property
    def input(self) -> Value:
        """The first tensor."""
        return self.node.tensors()[0]

    def dims(self, names: Sequence[str] = ("dim",)) -> tuple[int, ...]:
        """The dimensions an argument names, counted from the front; all of them where it names none."""
        rank = len(self.input.axes)
        given = next((self.arguments[name] for name in names if self.arguments.get(name) is not None), None)
        given = list(range(rank)) if given is None or given == [] else [given] if isinstance(given, int) else given
        return tuple(dim % rank for dim in given) if rank else ()

    def rearrange(self, axes: list[Axis], move: Callable[..., Any], *inputs: Value) -> list[Output]:
        """One output that only moves the entries of the inputs."""
        return [(axes, Rearrange(inputs or (self.input,), move))]

    def mix(self, dims: tuple[int, ...], kept: Sequence[int | None], scales: bool = True) -> list[Output]:
        """Every output mixes the positions of some dimensions, and has others of the input where `kept` says so."""
        meaning = Along((self.input,), dims, scales, tuple(kept))
        axes = [
            [Axis(size) if dim is None else self.input.axes[dim] for dim, size in zip(kept, shape, strict=True)]
            for shape in self.shapes
        ]
        return [(its_axes, meaning) for its_axes in axes]


Rule = Callable[[Call], list[Output]]


RULES: dict[str, Rule] = {}


def axis_rule(*names: str) -> Callable[[Rule], Rule]:
    """Declare what an operator does with axes, for operators that the library has no rule for.

    The function gets a `Call` (`call["name"]` is an argument by its schema name, `call.input` the first tensor,
    `call.shapes` the output shapes) and returns one (axes, meaning) per output. The rules in lightning_grow/trace are
    the examples to follow; most operators are one of these forms, whose names are in `lightning_grow.rules`:

    * `pointwise(call)`: one entry of each input makes one of the output;
    * `call.rearrange(axes, move)`: entries move;
    * `contract(left, right, labels, shape)`: a sum of products, labelled as in einsum;
    * `(axes, Along((call.input,), dims))`: positions of some dimensions are mixed, all others treated alike.

    Args:
        *names: Operators: "relu" for aten.relu, "mylib::scan" for another library's. A name that has a rule gets the
            new one.

    Returns:
        The decorator.

    >>> @torch.library.custom_op("doctest::double", mutates_args=())
    ... def double(x: torch.Tensor) -> torch.Tensor:
    ...     return 2 * x
    >>> _ = double.register_fake(torch.empty_like)
    >>> @axis_rule("doctest::double")
    ... def double_rule(call):
    ...     return pointwise(call)
    """

    def enter(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return enter


def has_rule(op: Operator) -> bool:
    """Whether the table, torch's own tag, or having no tensor says what an operator does."""
    name = operator_name(op)
    return name in RULES or name in TRANSPARENT or torch.Tag.pointwise in op.tags or not _takes_tensors(op)


@cache
def _takes_tensors(op: Operator) -> bool:
    return any("Tensor" in str(argument.type) for argument in schema(op).arguments)


def apply_rule(node: Node) -> tuple[list[list[Axis]], list[Any]]:
    """Return the axes and the meaning of every output of `node`."""
    call = Call(node)
    try:
        if node.through is not None:
            outputs = write_through(call)
        elif node.name in RULES:
            outputs = RULES[node.name](call)
        elif torch.Tag.pointwise in node.op.tags:
            outputs = pointwise(call)
        elif not node.tensors():
            outputs = create(call)
        else:
            outputs = opaque(call, f"operator {node.op} has no rule")
    except AxisError as error:
        outputs = opaque(call, f"operator {node.op} mixes units: {error}")
    return [axes for axes, _ in outputs], [meaning for _, meaning in outputs]


def fresh(shape: Sequence[int]) -> list[Axis]:
    """Axes that nothing else has."""
    return [Axis(size) for size in shape]


def opaque(call: Call, reason: str) -> list[Output]:
    """Outputs of which nothing is known."""
    return [(fresh(shape), Opaque(reason)) for shape in call.shapes]


def create(call: Call) -> list[Output]:
    """Make tensors from nothing."""
    return [(fresh(shape), Create()) for shape in call.shapes]


def broadcast(values: Sequence[Value], shape: Sequence[int]) -> list[Axis]:
    """Unify the axes of `values` as broadcasting aligns them."""
    axes: list[Axis | None] = [None] * len(shape)
    for value in values:
        for dim, axis in enumerate(value.axes, len(shape) - len(value.axes)):
            if axis.size != shape[dim]:
                continue
            current = axes[dim]
            if current is None:
                axes[dim] = axis
            else:
                unify(current, axis)
    return [axis or Axis(size) for axis, size in zip(axes, shape, strict=True)]


def write_through(call: Call) -> list[Output]:
    """What is written through a view stands in its places of the tensor below; all others stay."""
    node, number = call.node.through or (call.node, 0)
    view, (below, written, _) = node.meaning[number], call.node.tensors()
    if not isinstance(view, Rearrange):
        return opaque(call, f"operator {call.node.op} writes in place through {node.op}, which has no rule for that")

    def move(count: Callable[[Axis], int], cells: Any, new: Any) -> Any:
        places = view.move(count, np.arange(cells.size).reshape(cells.shape))
        result = cells.copy()
        result.flat[places.ravel()] = np.broadcast_to(new, places.shape).ravel()
        return result

    return [(list(below.axes), Rearrange((below, written), move))]


def pointwise(call: Call) -> list[Output]:
    """Broadcast the tensors; numbers take part as they are."""
    meaning = Pointwise(tuple(call.node.tensors()))
    return [(broadcast(call.node.tensors(), shape), meaning) for shape in call.shapes]
