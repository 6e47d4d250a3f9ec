"""The tape of a forward pass: every operator call, its tensors, and their axes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from lightning_grow.private import Operator, schema
from lightning_grow.trace.axes import Axis, atoms
from lightning_grow.trace.nested import leaves

VIEWS = ("view", "_unsafe_view", "reshape", "_reshape_alias", "squeeze", "unsqueeze", "flatten", "unflatten")
"""Operators that only give the same entries, in the same order, another shape."""

TRANSPARENT = ("clone", "detach", "alias", "lift_fresh", "lift_fresh_copy", "contiguous")
"""Operators that give the same tensor again."""


@dataclass(eq=False)
class Value:
    """One tensor of the tape.

    Args:
        axes: One axis per dimension.
        dtype: The tensor's type.
        name: The parameter's or buffer's name, if it is one.
        trained: Whether it is a parameter.
        input_index: Which example input it is, if it is one.
        constant: The real content, where neither a parameter nor an input has a part in it.
        learned: Whether a parameter or a saved buffer has a part in it.
    """

    axes: list[Axis]
    dtype: torch.dtype
    name: str | None = None
    trained: bool = False
    input_index: int | None = None
    constant: Tensor | None = None
    learned: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of every dimension."""
        return tuple(axis.size for axis in self.axes)


@dataclass(eq=False)
class Node:
    """One operator call.

    Args:
        op: The operator.
        arguments: By their schema names, with a `Value` in the place of each tensor.
        path: The module that called it.
        whole: The composite operator (a norm, a softmax) that this one is a part of.
        outputs: One value per tensor that it returns.
        meaning: What each output is made of; see meanings.py.
        through: The view, and which of its outputs, through which it writes to the tensor below; its arguments are that
            tensor, what is written, and what was there.
    """

    op: Operator
    arguments: dict[str, Any]
    path: str
    whole: Node | None = None
    outputs: list[Value] = field(default_factory=list)
    meaning: list[Any] = field(default_factory=list)
    through: tuple[Node, int] | None = None

    @cached_property
    def name(self) -> str:
        """The operator's name without overload and without the underscore of an in-place form."""
        return operator_name(self.op)

    @property
    def place(self) -> str:
        """The operator that the model calls, and the module that calls it, for messages."""
        return f"{(self.whole or self).op} in {self.where}"

    @property
    def where(self) -> str:
        """The module that called it, for messages."""
        return f"'{self.path}'" if self.path else "the model's forward"

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of every output."""
        return [value.shape for value in self.outputs]

    def tensors(self) -> list[Value]:
        """The tensor arguments in schema order, lists flattened."""
        return self._tensors

    @cached_property
    def _tensors(self) -> list[Value]:
        return [leaf for leaf in leaves(list(self.arguments.values())) if isinstance(leaf, Value)]


@dataclass
class Trace:
    """The tape of one forward pass.

    Args:
        nodes: The operator calls in order.
        tensors: Parameters and buffers by name.
        inputs: The example's tensors.
        outputs: The tensors that are returned, by their place in what is returned.
        carried: The outputs that the forward takes back in its next call (a cache).
        branches: The modules whose forward reads the content of an input, and may go by it.
        guards: The modules that ask whether there is anything to do, where weights decide it.
    """

    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, Value] = field(default_factory=dict)
    inputs: list[Value] = field(default_factory=list)
    outputs: dict[str, Value] = field(default_factory=dict)
    carried: set[str] = field(default_factory=set)
    branches: list[str] = field(default_factory=list)
    guards: list[str] = field(default_factory=list)

    @cached_property
    def makers(self) -> dict[Value, Node]:
        """The operator that computes each value."""
        return {value: node for node in self.nodes for value in node.outputs}

    @cached_property
    def readers(self) -> dict[Value, list[Node]]:
        """The operators that take each value, in order."""
        found: dict[Value, list[Node]] = defaultdict(list)
        for node in self.nodes:
            for value in dict.fromkeys(node.tensors()):
                found[value].append(node)
        return dict(found)

    def used(self) -> set[Value]:
        """The values that some operator takes, or that are returned."""
        return {value for node in self.nodes for value in node.tensors()} | set(self.outputs.values())


def numbers(node: Node) -> list[Any]:
    """The arguments of an operator that are no tensors."""
    return [leaf for leaf in leaves(list(node.arguments.values())) if not isinstance(leaf, Value)]


def atoms_of(values: Iterable[Value]) -> set[Axis]:
    """The atoms of all axes of some values."""
    return {atom for value in values for axis in value.axes for atom in atoms(axis)}


def is_random(node: Node) -> bool:
    """Whether an operator draws random numbers."""
    return torch.Tag.nondeterministic_seeded in node.op.tags


def is_empty(op: Operator) -> bool:
    """Whether an operator makes a tensor whose content is to be written."""
    return operator_name(op) in ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


@cache
def operator_name(op: Operator) -> str:
    """Return e.g. "add" for aten.add_.Tensor, "mylib::scan" for another library's.

    >>> operator_name(torch.ops.aten.add_.Tensor)
    'add'
    """
    namespace, name = schema(op).name.split("::")
    name = name.rstrip("_") if schema(op).is_mutable else name
    return name if namespace == "aten" else f"{namespace}::{name}"


def bind_arguments(op: Operator, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Name every argument by the operator's schema, defaults included."""
    bound: dict[str, Any] = {}
    for index, argument in enumerate(schema(op).arguments):
        if index < len(args):
            bound[argument.name] = args[index]
        else:
            bound[argument.name] = kwargs.get(argument.name, argument.default_value)
    return bound
