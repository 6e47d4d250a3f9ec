"""Pointwise operators on cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from lightning_grow.plan.cells import ZERO, Cell, Entry, Kind, Slot, is_wanted, kept, origins, union
from lightning_grow.plan.content import known_content
from lightning_grow.plan.laws import Laws, operator_laws
from lightning_grow.plan.run import Run
from lightning_grow.plan.scale import ONE, Scale, shifted, variable
from lightning_grow.plan.step import Decision, NotKept
from lightning_grow.trace.axes import resolve
from lightning_grow.trace.meanings import Cells, Pointwise, Reduce
from lightning_grow.trace.tape import Node, Value

Inputs = Sequence[tuple[Value, Cells]]
_GAIN = Cell(Kind.NEW, origin="a new gain")


def pointwise(run: Run, node: Node, output: Value, meaning: Pointwise) -> Cells:
    """One entry of each input makes one of the output."""
    changed = _changed_numbers(run, node)
    for name in [name for number, name in run.choice.free_numbers if number == run.at]:
        changed[name] = changed.get(name, ONE) + run.free_number(name)
    if meaning.function is not None:
        laws = Laws(meaning.function, len(meaning.inputs), (node.op, "rule"))
    else:
        laws = operator_laws(node, tuple(changed))
    inputs = [(value, known_content(run, node, value)) for value in meaning.inputs]
    whole = frozenset(i for i, (value, _) in enumerate(inputs) if value.shape == output.shape)
    result, same = combine(run, node, output, laws, inputs, whole, [kept(scale) for scale in changed.values()])
    run.match.pass_on(same, output)
    gain = run.roles.gain(meaning.inputs[0]) if node.name == "add" and len(meaning.inputs) == 1 else None
    if gain is None or gain not in run.roles.offsets or run.step.source is None:
        return result

    def scaled(index: tuple[int, ...], _: list[Slot]) -> Cell:  # 1 + w is what can be scaled, not w
        cell: Cell = result[index]
        return kept(variable(gain, index)) if cell.kind is Kind.KEPT else cell

    return run.layout.each_cell(output.axes, scaled)


def combine(
    run: Run,
    node: Node,
    output: Value,
    laws: Laws,
    inputs: Inputs,
    whole: frozenset[int],
    numbers: Sequence[Cell] = (),
) -> tuple[Cells, Value | None]:
    """The cells of a pointwise function of cells.

    Args:
        run: The run.
        node: The operator.
        output: What it computes.
        laws: Its algebra.
        inputs: Every input with its cells.
        whole: Those that are not repeated to be as large as the output.
        numbers: The factors of number arguments that differ.

    Returns:
        The cells, and the input that an operator which the source does not have leaves as it is: x + 0 and 1 * x
        are x, a ReLU of a ReLU's output is that output.
    """
    passed: set[int] = set()
    fixed = frozenset(i for i, (value, _) in enumerate(inputs) if value.constant is not None)
    shape = run.layout.shape(output.axes)
    spread = [np.broadcast_to(cells, shape) for _, cells in inputs]

    def make(index: tuple[int, ...], slots: list[Slot]) -> Cell:
        cells = [*(array[index] for array in spread), *numbers]
        return _combine(run, node, laws, cells, is_wanted(slots), passed, fixed, whole)

    result = run.layout.each_cell(output.axes, make)
    return result, inputs[passed.pop()][0] if len(passed) == 1 else None


def _combine(
    run: Run,
    node: Node,
    laws: Laws,
    inputs: list[Cell],
    wanted: bool,
    passed: set[int],
    fixed: frozenset[int],
    whole: frozenset[int],
) -> Cell:
    zeros = frozenset(i for i, cell in enumerate(inputs) if cell.kind is Kind.ZERO)
    ones = frozenset(i for i, cell in enumerate(inputs) if cell.kind is Kind.IDENTITY)
    new = frozenset(i for i, cell in enumerate(inputs) if cell.kind is Kind.NEW)
    rest = [i for i in range(len(inputs)) if i not in zeros | ones | new]
    if zeros and laws.vanishes(zeros):
        return ZERO

    def passes() -> bool:
        return len(rest) == 1 and whole.issuperset(rest) and laws.passes(zeros, rest[0], ones)

    if ones and (new or not passes()):  # a gain of 1 says nothing of anything else
        new, inputs = new | ones, [_GAIN if i in ones else cell for i, cell in enumerate(inputs)]
    if new:
        if run.step.source is None:  # a new layer's own mask is nothing that has to be kept
            rest = [i for i in rest if i not in fixed]
            wanted = wanted and whole.issuperset(rest)  # a row that is added to every position is no residual stream
        return _combine_new(run, laws, inputs, zeros, new, rest, wanted)
    if run.step.source is None:
        if not passes() and not (len(inputs) == 1 and _is_repeated(run, node, laws)):
            return run.new_here()
        if wanted:
            passed.add(rest[0])
        return replace(inputs[rest[0]], direct=False)
    if zeros and not wanted:  # what is 0 for new units is not 0 for the source's: the result is not alike along them
        return Cell(Kind.NEW, origin=node.place)
    return _combine_kept(run, node, laws, inputs, zeros, rest)


def _combine_kept(run: Run, node: Node, laws: Laws, inputs: list[Cell], zeros: frozenset[int], rest: list[int]) -> Cell:
    """The source's own entries, or means of them."""
    scale = _scale(run, node, laws, inputs, zeros)
    means = frozenset(i for i in rest if inputs[i].kind is Kind.MEAN)
    if not means:
        return kept(scale)
    if len(inputs) == 2 and laws.cancels() and _is_centred(run, node, min(means)):
        return ZERO
    if len({inputs[i].atom for i in means}) == 1 and laws.averages(means):
        return Cell(Kind.MEAN, scale, atom=inputs[min(means)].atom)
    return Cell(Kind.NEW, origin=node.place)


def _combine_new(
    run: Run,
    laws: Laws,
    inputs: list[Cell],
    zeros: frozenset[int],
    new: frozenset[int],
    rest: list[int],
    wanted: bool,
) -> Cell:
    """A new cell among the inputs: where the source's entries are wanted, it has to go."""
    everyone = [inputs[i] for i in sorted(new)]
    together = union(cell.zeroed_by for cell in everyone)
    if wanted and len(rest) == 1 and laws.passes(zeros | new, rest[0]):
        if together is not None:
            raise Decision(zeros=together)
        if run.step.source is not None:  # else it may be silenced as a whole: x - mean(x), by the gain of its norm
            raise run.parting(origins(everyone))
    learns = laws.learns if run.step.source is None else lambda _: True  # a new layer behind a ReLU's 0 stays at 0
    alone = [inputs[i].zeroed_by for i in sorted(new) if laws.vanishes(zeros | {i}) and learns(frozenset([i]))]
    alone = [entries for entries in alone if entries]
    if not together or not laws.vanishes(zeros | new) or not learns(new):
        together = None
    means = frozenset(i for i in rest if inputs[i].kind is Kind.MEAN)
    averaged_by = union(cell.averaged_by for cell in everyone)
    only_bias = bool(zeros) and together is not None and all(cell.direct for cell in everyone)
    return Cell(
        Kind.NEW,
        zeroed_by=min(alone, key=partial(_zeroed_size, run)) if alone else together,
        averaged_by=averaged_by if averaged_by and not zeros and laws.averages(new | means) else None,
        is_only_bias=only_bias or any(cell.is_only_bias for cell in everyone),
        origin=origins(everyone),
    )


def _zeroed_size(run: Run, entries: frozenset[Entry]) -> int:
    """How much is set to 0: a gain before a matrix, which may be what a norm is taken of."""
    return sum(math.prod(run.match.target.tensors[name].shape) for name in {name for name, _ in entries})


def _is_centred(run: Run, node: Node, which: int) -> bool:
    """Whether input `which` meets its own mean over the units that a MEAN is taken of (x - mean(x))."""
    value, mean = node.tensors()[which], node.tensors()[1 - which]
    maker = run.match.maker(mean)
    if maker is None or value not in run.match.values:
        return False
    meaning = maker.meaning[maker.outputs.index(run.match.values[mean])]
    source = run.match.values[value]
    if not isinstance(meaning, Reduce) or meaning.kind != "mean" or meaning.input is not source:
        return False
    return len(meaning.dims) == 1 and resolve(source.axes[meaning.dims[0]]).kind is None


def _is_repeated(run: Run, node: Node, laws: Laws) -> bool:
    """Whether the operator changes nothing that the one before it gives."""
    maker = run.match.maker(node.tensors()[0])
    if maker is None or not isinstance(maker.meaning[0], Pointwise) or len(maker.tensors()) != 1:
        return False
    return laws.keeps(operator_laws(maker))


# ---- scales
def _scale(run: Run, node: Node, laws: Laws, inputs: list[Cell], zeros: frozenset[int]) -> Scale:
    """The factor of the output; equations where the operator allows only some."""
    free = [i for i, cell in enumerate(inputs) if i not in zeros and not cell.scale.is_one]
    if not free:
        return ONE
    degrees = {i: laws.degree(frozenset([i]), zeros) for i in free}
    if all(power is not None for power in degrees.values()):
        total = ONE
        for i, power in degrees.items():
            total = total + inputs[i].scale * (power or 0.0)
        return total
    together = [i for i in range(len(inputs)) if i not in zeros]
    power = laws.degree(frozenset(together), zeros)
    for i in free if power is None else together[1:]:
        run.equal(inputs[i].scale, ONE if power is None else inputs[together[0]].scale, node)
    return ONE if power is None else inputs[together[0]].scale * power


def _changed_numbers(run: Run, node: Node) -> dict[str, Scale]:
    """Number arguments whose value differs from the source's, with the factor."""
    names = [name for name, value in node.arguments.items() if isinstance(value, (int, float))]
    scales = {name: changed_number(run, node, name) for name in names if not isinstance(node.arguments[name], bool)}
    return {name: scale for name, scale in scales.items() if not scale.is_one}


def changed_number(run: Run, node: Node, name: str) -> Scale:
    """The factor between the target's and the source's value of a number argument."""
    value, old = node.arguments.get(name), run.step.source.arguments.get(name) if run.step.source is not None else None
    if run.step.source is None or value == old:
        return ONE
    if not isinstance(old, (int, float)) or not isinstance(value, (int, float)) or old * value <= 0:
        raise NotKept(
            f"{node.place} uses the constant {value} where the source uses {old}; make it the same in both models."
        )
    return shifted(value / old)
