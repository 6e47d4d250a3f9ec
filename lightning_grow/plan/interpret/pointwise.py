"""Pointwise operators on cells."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lightning_grow.plan.cells import LOST, ZERO, Cell, Entry, Kind, Slot, filled, kept
from lightning_grow.plan.interpret.decisions import Commit
from lightning_grow.plan.interpret.probed import Probed, probed_operator
from lightning_grow.plan.interpret.state import State, origins, union
from lightning_grow.plan.scale import ONE, Scale, shifted, variable
from lightning_grow.trace.axes import atoms, resolve
from lightning_grow.trace.meanings import Cells, Pointwise, Reduce
from lightning_grow.trace.tape import Node, Value


def pointwise(state: State, node: Node, output: Value, meaning: Pointwise) -> Cells:
    """One entry of each input makes one of the output."""
    changed = _changed_numbers(state, node)
    for name in [name for number, name in state.choice.free_numbers if number == state.at]:
        changed[name] = changed.get(name, ONE) + state.free_number(node, name)
    numbers = [kept(scale) for scale in changed.values()]
    if meaning.function is not None:
        function = Probed(meaning.function, len(meaning.inputs), (node.op, "rule"))
    else:
        function = probed_operator(node, tuple(changed))
    grid = state.layout.grid(output.axes)
    arrays = _inputs(state, node, meaning, [len(along) for along in grid])
    result = filled([len(along) for along in grid], lambda _: LOST)
    passed: set[int] = set()
    for index in np.ndindex(result.shape):
        slots = [along[number] for along, number in zip(grid, index, strict=True)]
        result[index] = combine(state, node, function, [*(cells[index] for cells in arrays), *numbers], slots, passed)
    gain = state.roles.gain(meaning.inputs[0]) if node.name == "add" and len(meaning.inputs) == 1 else None
    if gain in state.roles.offsets and state.found is not None:  # 1 + w is what can be scaled, not w
        scaled = lambda at: kept(variable(gain, at)) if result[at].kind is Kind.KEPT else result[at]  # noqa: E731
        return filled(result.shape, scaled)
    if state.found is None and len(passed) == 1:  # x + 0 is x; a ReLU of a ReLU's output is that output
        state.twins.twin[output] = state.twins.twin.get(meaning.inputs[passed.pop()])
    return result


def _inputs(state: State, node: Node, meaning: Pointwise, shape: list[int]) -> list[Cells]:
    """The inputs' cells, broadcast; a constant's are the source's times one factor."""
    arrays = []
    for value in meaning.inputs:
        constant = constant_cell(state, node, value)
        cells = state.of(value)
        if constant is not None:
            cells = filled(cells.shape, lambda _, cell=constant: cell)  # type: ignore[misc]
        arrays.append(np.broadcast_to(cells, shape))
    return arrays


def _changed_numbers(state: State, node: Node) -> dict[str, Scale]:
    """Number arguments whose value differs from the source's, with the factor."""
    names = [name for name, value in node.arguments.items() if isinstance(value, (int, float))]
    scales = {name: changed_number(state, node, name) for name in names if not isinstance(node.arguments[name], bool)}
    return {name: scale for name, scale in scales.items() if not scale.is_one}


def changed_number(state: State, node: Node, name: str) -> Scale:
    """The factor between the target's and the source's value of a number argument."""
    value, old = node.arguments.get(name), state.found.arguments.get(name) if state.found is not None else None
    if state.found is None or value == old:
        return ONE
    if not isinstance(old, (int, float)) or not isinstance(value, (int, float)) or old * value <= 0:
        raise state.fail(
            f"{node.place} uses the constant {value} where the source uses {old}; make it the same in both models."
        )
    return shifted(value / old)


def constant_cell(state: State, node: Node, new: Value) -> Cell | None:
    """A constant tensor's cell where it is not the source's own; None where it is, or is no constant."""
    if new.constant is None or state.found is None:
        return None
    old = state.found.tensors()[node.tensors().index(new)]
    growing = [atom for axis in new.axes for atom in atoms(axis) if state.pairing.grows(atom)]
    if old.constant is None:
        return None
    at_old = new.constant
    for dim, axis in enumerate(new.axes):
        at_old = at_old.index_select(dim, state.pairing.old_positions(axis)) if growing else at_old
    ratio = constant_ratio(old.constant, at_old)
    if ratio is None or (growing and ratio != 1.0):
        name = f"buffer '{new.name}'" if new.name else "a constant"
        raise state.fail(
            f"{name} used by {node.place} has other values at the source's positions once "
            f"{state.describe(growing)} grows. Grow another size (the number of heads instead of the head size).",
            growing,
        )
    return None if ratio == 1.0 else kept(shifted(ratio))


def constant_ratio(old: Tensor, new: Tensor) -> float | None:
    """The one factor between two constants, 1.0 where they are equal, None where there is no single positive one.

    >>> constant_ratio(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.0]))
    2.0
    """
    if old.shape != new.shape:
        return None
    if torch.equal(torch.nan_to_num(old.double()), torch.nan_to_num(new.double())):
        return 1.0
    nonzero = old.double() != 0
    if not old.is_floating_point() or not nonzero.any() or not torch.equal(nonzero, new.double() != 0):
        return None
    ratios = new.double()[nonzero] / old.double()[nonzero]
    first = float(ratios[0])
    return first if first > 0 and torch.allclose(ratios, ratios[0].expand_as(ratios), rtol=1e-6) else None


def combine(
    state: State, node: Node, function: Probed, inputs: list[Cell], slots: list[Slot], passed: set[int]
) -> Cell:
    """One cell of a pointwise operator.

    Args:
        state: The run.
        node: The operator.
        function: Its algebra.
        inputs: One cell of each input.
        slots: Where the output cell lies.
        passed: Filled with the inputs that come out as they are.
    """
    if any(cell.kind is Kind.LOST for cell in inputs):
        return LOST
    zeros = frozenset(i for i, cell in enumerate(inputs) if cell.kind is Kind.ZERO)
    new = frozenset(i for i, cell in enumerate(inputs) if cell.kind is Kind.NEW)
    rest = [i for i in range(len(inputs)) if i not in zeros | new]
    wanted = not any(slot.is_new for slot in slots)
    if zeros and function.vanishes(zeros):
        return ZERO
    if new:
        return _combine_new(state, function, inputs, zeros, new, rest, wanted)
    if state.found is None:
        return _combine_unmatched(state, node, function, inputs, zeros, rest, wanted, passed)
    if zeros and not wanted:  # what is 0 for new units is not 0 for the source's: the result is not alike along them
        return Cell(Kind.NEW, origin=f"{node.place}")
    scale = _scale(state, node, function, inputs, zeros)
    means = frozenset(i for i in rest if inputs[i].kind is Kind.MEAN)
    if not means:
        return kept(scale)
    if len(inputs) == 2 and function.cancels() and _is_centred(state, node, min(means)):
        return ZERO
    one_axis = len({inputs[i].atom for i in means}) == 1
    if one_axis and function.averages(means):
        return Cell(Kind.MEAN, scale, atom=inputs[min(means)].atom)
    return Cell(Kind.NEW, origin=f"{node.place}")


def _is_centred(state: State, node: Node, which: int) -> bool:
    """Whether input `which` meets its own mean over the units that a MEAN is taken of (x - mean(x))."""
    value, mean = (state.twins.twin.get(node.tensors()[index]) for index in (which, 1 - which))
    maker = next((item for item in state.source.nodes if mean in item.outputs), None) if mean is not None else None
    if value is None or mean is None or maker is None:
        return False
    meaning = maker.meaning[maker.outputs.index(mean)]
    if not isinstance(meaning, Reduce) or meaning.kind != "mean" or meaning.input is not value:
        return False
    return len(meaning.dims) == 1 and resolve(value.axes[meaning.dims[0]]).kind is None


def _combine_new(
    state: State,
    function: Probed,
    inputs: list[Cell],
    zeros: frozenset[int],
    new: frozenset[int],
    rest: list[int],
    wanted: bool,
) -> Cell:
    """A new cell among the inputs: where the source's entries are wanted, it has to go."""
    everyone = [inputs[i] for i in sorted(new)]
    sources = union(cell.sources for cell in everyone)
    if wanted and len(rest) == 1 and function.passes(zeros | new, rest[0]):
        if sources is not None:
            raise Commit(zeros=sources)
        if state.found is not None:  # else it may be silenced as a whole: x - mean(x), by the gain of its norm
            raise state.part(origins(everyone))
    poles = _poles(function, inputs, zeros, new)
    alone = [inputs[i].sources for i in sorted(new) if inputs[i].sources and function.vanishes(zeros | {i})]
    alone = [entries for entries in alone if entries and not entries & poles]
    together = sources if sources and not sources & poles and function.vanishes(zeros | new) else None
    means = frozenset(i for i in rest if inputs[i].kind is Kind.MEAN)
    mean_sources = union(cell.mean_sources for cell in everyone)
    only_bias = bool(zeros) and together is not None and all(cell.direct for cell in everyone)
    return Cell(
        Kind.NEW,
        sources=alone[0] if alone else together,
        mean_sources=mean_sources if mean_sources and not zeros and function.averages(new | means) else None,
        born_zero=only_bias or any(cell.born_zero for cell in everyone),
        poles=poles,
        origin=origins(everyone),
    )


def _poles(function: Probed, inputs: list[Cell], zeros: frozenset[int], new: frozenset[int]) -> frozenset[Entry]:
    """The parameter cells that may not be 0: those behind a divisor, here or before."""
    divisors = [inputs[i].sources for i in new if inputs[i].sources and function.diverges(zeros | {i})]
    return frozenset().union(*(inputs[i].poles for i in new), *(entries for entries in divisors if entries))


def _combine_unmatched(
    state: State,
    node: Node,
    function: Probed,
    inputs: list[Cell],
    zeros: frozenset[int],
    rest: list[int],
    wanted: bool,
    passed: set[int],
) -> Cell:
    """The source has no such operator: the cell is new, unless the operator leaves an input as it is."""
    unchanged = len(rest) == 1 and (
        function.passes(zeros, rest[0]) if zeros else len(inputs) == 1 and _is_repeated(state, node, function)
    )
    if not unchanged:
        return Cell(Kind.NEW, origin=state.why_unmatched(node))
    if wanted:
        passed.add(rest[0])
    return replace(inputs[rest[0]], direct=False)


def _is_repeated(state: State, node: Node, function: Probed) -> bool:
    """Whether the operator changes nothing that the one before it gives."""
    twin = state.twins.twin.get(node.tensors()[0])
    maker = next((item for item in state.source.nodes if twin in item.outputs), None) if twin is not None else None
    if maker is None or not isinstance(maker.meaning[0], Pointwise) or len(maker.tensors()) != 1:
        return False
    return function.keeps(probed_operator(maker, ()))


def _scale(state: State, node: Node, function: Probed, inputs: list[Cell], zeros: frozenset[int]) -> Scale:
    """The factor of the output; equations where the operator allows only some."""
    free = [i for i, cell in enumerate(inputs) if i not in zeros and not cell.scale.is_one]
    if not free:
        return ONE
    degrees = {i: function.degree(frozenset([i]), zeros) for i in free}
    if all(power is not None for power in degrees.values()):
        total = ONE
        for i, power in degrees.items():
            total = total + inputs[i].scale * (power or 0.0)
        return total
    together = [i for i in range(len(inputs)) if i not in zeros]
    power = function.degree(frozenset(together), zeros)
    for i in free if power is None else together[1:]:
        state.equal(inputs[i].scale, ONE if power is None else inputs[together[0]].scale, node)
    return ONE if power is None else inputs[together[0]].scale * power
