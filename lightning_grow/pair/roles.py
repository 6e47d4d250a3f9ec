"""Where each dimension of a parameter is used: written (its units leave the layer) or read (its units are summed)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from lightning_grow.trace.axes import Axis, atoms
from lightning_grow.trace.meanings import Contract, Lookup, Rearrange
from lightning_grow.trace.tape import Node, Trace, Value

Dimension = tuple[str, int]  # a parameter's name and one of its dimensions


@dataclass
class Roles:
    """The dimensions of parameters that are read and written.

    Args:
        read: Summed over with an activation: fan-in.
        written: Seen in the output: fan-out, a bias, a gain, an embedding's features.
        origins: For every view of a parameter, the parameter's dimensions behind each of its own (several where a view
            has merged them).
        offsets: Parameters that are only used as number + parameter (a gain of the form 1 + w), with the number.
    """

    read: set[Dimension] = field(default_factory=set)
    written: set[Dimension] = field(default_factory=set)
    origins: dict[Value, list[tuple[Dimension, ...]]] = field(default_factory=dict)
    offsets: dict[str, float] = field(default_factory=dict)

    def gain(self, value: Value) -> str | None:
        """The name of the one-dimensional parameter that a value is."""
        origins = self.of(value)
        return origins[0][0][0] if len(origins) == 1 and origins[0] else None

    def of(self, value: Value) -> list[tuple[Dimension, ...]]:
        """The parameter's dimensions behind each dimension of a value."""
        return self.origins.get(value, [()] * len(value.axes))

    def write(self, value: Value, skip: int = 0) -> None:
        """Record that a value's dimensions, from `skip` on, are seen in an output."""
        self.written.update(item for items in self.of(value)[skip:] for item in items)


def find_roles(trace: Trace) -> Roles:
    """Read the roles off a tape.

    >>> import torch
    >>> from lightning_grow.trace.tracer import trace
    >>> tape = trace(torch.nn.Sequential(torch.nn.Linear(3, 4)), (torch.ones(2, 3),))
    >>> sorted(find_roles(tape).read), sorted(find_roles(tape).written)
    ([('0.weight', 1)], [('0.bias', 0), ('0.weight', 0)])
    """
    roles = Roles()
    for value in trace.tensors.values():
        if value.name is not None:
            roles.origins[value] = [((value.name, dim),) for dim in range(len(value.axes))]
    for node in trace.nodes:
        for output, meaning in zip(node.outputs, node.meaning, strict=True):
            if isinstance(meaning, Rearrange):
                _follow(roles, meaning, output)
            elif node.name == "_to_copy":
                roles.origins[output] = roles.of(node.tensors()[0])
            elif isinstance(meaning, Contract):
                _contracted(roles, meaning)
            elif isinstance(meaning, Lookup) and meaning.gives_matrices:
                roles.origins[output] = [*[()] * len(meaning.index.axes), *roles.of(meaning.table)[1:]]
            elif isinstance(meaning, Lookup):
                roles.write(meaning.table, skip=1)
            else:
                for value in node.tensors():
                    roles.write(value)
    roles.offsets = _find_offsets(trace, roles)
    return roles


def _find_offsets(trace: Trace, roles: Roles) -> dict[str, float]:
    uses: dict[str, list[float | None]] = {}
    for node in trace.nodes:
        for value in node.tensors() if node.name != "_to_copy" else ():
            name = roles.gain(value)
            if name is not None:
                uses.setdefault(name, []).append(added_number(node))
    return {name: given[0] for name, given in uses.items() if given[0] is not None and set(given) == {given[0]}}


def added_number(node: Node) -> float | None:
    """The number that an addition of one tensor and a number adds."""
    numbers = [item for name in ("self", "other") if isinstance(item := node.arguments.get(name), (int, float))]
    plain = node.name == "add" and node.arguments.get("alpha", 1) == 1
    return float(numbers[0]) if plain and numbers else None


def _follow(roles: Roles, meaning: Rearrange, output: Value) -> None:
    """A moved dimension is the one that shares its atoms; dimensions of equal atoms keep their order."""
    if len(meaning.inputs) != 1 or meaning.inputs[0] not in roles.origins:
        for value in meaning.inputs:
            roles.write(value)
        return
    source = meaning.inputs[0]
    known = roles.of(source)
    if meaning.order is not None:
        roles.origins[output] = [known[dim] for dim in meaning.order]
        return
    free = list(range(len(source.axes)))
    origins: list[tuple[Dimension, ...]] = []
    for axis in output.axes:
        matches = _dims_behind(axis, source, free)
        origins.append(tuple(item for dim in matches for item in known[dim]))
        if matches and math.prod(source.axes[dim].size for dim in matches) == axis.size:
            free = [dim for dim in free if dim not in matches]
    roles.origins[output] = origins


def _dims_behind(axis: Axis, source: Value, free: list[int]) -> list[int]:
    """The dimensions of a value that an axis of its view is made of: the first that share its atoms and suffice."""
    if axis.size == 1:
        return []
    wanted, dims, size = set(atoms(axis)), list[int](), 1
    for dim in free:
        if size < axis.size and wanted & set(atoms(source.axes[dim])):
            dims.append(dim)
            size *= source.axes[dim].size
    return dims


def _contracted(roles: Roles, meaning: Contract) -> None:
    for value, letters in ((meaning.left, meaning.labels[0]), (meaning.right, meaning.labels[1])):
        for origin, letter in zip(roles.of(value), split_labels(letters), strict=True):
            if letter != ".":
                (roles.written if set(letter) & set(meaning.labels[2]) - set("()") else roles.read).update(origin)
    if meaning.bias is not None:
        roles.write(meaning.bias)


def split_labels(letters: str) -> list[str]:
    """One label per dimension; a product of axes is written in brackets.

    >>> split_labels("n(gk).")
    ['n', 'gk', '.']
    """
    labels: list[str] = []
    inside = False
    for letter in letters:
        if letter in "()":
            inside = letter == "("
            if inside:
                labels.append("")
        elif inside:
            labels[-1] += letter
        else:
            labels.append(letter)
    return labels
