"""The algebra of axes, held against index arrays of numpy."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_grow.trace.axes import (
    Axis,
    AxisError,
    atoms,
    cut,
    factor,
    product_of,
    reshape,
    resolve,
    sum_of,
    unify,
    unify_all,
)
from lightning_grow.trace.meanings import Along, Opaque
from lightning_grow.trace.tracer import trace


@st.composite
def trees(draw, largest=24, depth=3):
    """A random axis; atoms may be shared between its parts."""
    pool = [Axis(draw(st.integers(1, 4))) for _ in range(3)]

    def grow(level):
        kind = draw(st.sampled_from(["atom", "sum", "product"])) if level else "atom"
        if kind == "atom":
            return draw(st.sampled_from(pool))
        parts = [grow(level - 1) for _ in range(draw(st.integers(1, 3)))]
        axis = sum_of(parts) if kind == "sum" else product_of(parts)
        return axis if axis.size <= largest else parts[0]

    return grow(depth)


def units(axis):
    """Which units of which atoms every position is: an independent reading of the tree."""
    axis = resolve(axis)
    if axis.kind is None:
        return [(((id(axis), unit)),) for unit in range(axis.size)]
    parts = [units(part) for part in axis.parts]
    if axis.kind == "sum":
        return [position for part in parts for position in part]
    return [sum(combination, ()) for combination in product(*parts)]


def without_singles(positions):
    """Leave out atoms of one unit, which a product has or has not without a difference."""
    sizes = {}
    for atom, unit in (item for position in positions for item in position):
        sizes[atom] = max(sizes.get(atom, 0), unit + 1)
    return [tuple(item for item in position if sizes[item[0]] > 1) for position in positions]


def same_units(first, second):
    return without_singles(units(first)) == without_singles(units(second))


def divisors(size):
    return [number for number in range(1, size + 1) if size % number == 0]


@given(trees(), st.data())
def test_cut_pieces_have_their_sizes_and_join_to_the_axis(axis, data):
    first = data.draw(st.integers(0, axis.size))
    try:
        pieces = cut(axis, [first, axis.size - first])
    except AxisError:
        return
    assert [piece.size for piece in pieces] == [first, axis.size - first]
    assert same_units(sum_of(pieces), axis)


@given(trees(), st.data())
def test_factors_multiply_to_the_axis(axis, data):
    outer = data.draw(st.sampled_from(divisors(axis.size)))
    try:
        factors = factor(axis, [outer, axis.size // outer])
    except AxisError:
        return
    assert [item.size for item in factors] == [outer, axis.size // outer]
    assert same_units(product_of(factors), axis)


@given(trees(), trees())
def test_unify_ends_and_makes_both_the_same_axis(first, second):
    try:
        unify(first, second)
    except AxisError:
        return
    assert same_units(first, second)


@given(trees())
def test_resolve_is_flat_and_keeps_the_size(axis):
    def check(node):
        assert node.bound is None
        for part in node.parts:
            assert part.kind != node.kind
            assert part.size != (1 if node.kind == "product" else 0)
            check(part)
        if node.kind == "sum":
            assert node.size == sum(part.size for part in node.parts)
        if node.kind == "product":
            assert node.size == math.prod(part.size for part in node.parts)

    size = axis.size
    check(resolve(axis))
    assert resolve(axis).size == size


@pytest.mark.parametrize(
    ("left", "right"),
    [((2, 8), (8, 2)), ((4, 6), (6, 4)), ((2, 3, 4), (6, 4)), ((2, 2, 2), (8,)), ((3, 4), (12,))],
    ids=str,
)
def test_products_of_other_factors_unify_or_refuse_and_end(left, right):
    x, y = product_of([Axis(size) for size in left]), product_of([Axis(size) for size in right])
    if left == (4, 6):
        with pytest.raises(AxisError):
            unify(x, y)
        return
    unify(x, y)
    assert units(x) == units(y)


def test_a_product_unified_with_its_own_swap_ends():
    small, large = Axis(2), Axis(8)
    unify(product_of([small, large]), product_of([large, small]))
    assert {atom.size for atom in atoms(large)} == {2}


def test_an_atom_never_becomes_a_part_of_itself():
    atom = Axis(6)
    unify(atom, product_of([atom, Axis(1)]))
    assert resolve(atom) is atom


def test_sizes_of_one_can_be_factored_anywhere():
    axis = product_of([Axis(1), Axis(4), Axis(1), Axis(3)])
    assert [item.size for item in factor(axis, [1, 4, 1, 3, 1])] == [1, 4, 1, 3, 1]
    assert [item.size for item in factor(sum_of([Axis(1), product_of([Axis(4), Axis(4)])]), [1, 17])] == [1, 17]


def marked(axis):
    return product_of([Axis(1, marks=True), axis])


def test_a_mark_is_no_unit_of_its_own():
    units = Axis(4)
    first, second = marked(units), marked(units)
    both = sum_of([first, second])
    unify(first, units)
    unify(units, second)
    fresh_axis = Axis(8)
    unify(fresh_axis, both)
    assert str(fresh_axis) == "((1*4)+(1*4))"
    pieces = cut(first, [1, 3])  # one unit is that unit, with or without a mark
    assert str(pieces) == "[1, (1*3)]"
    assert pieces[0] is next(atoms(units))
    assert str(factor(second, [1, 4])) == "[1, (1*(1+3))]"


def test_pieces_of_one_axis_that_become_one_stay_told_apart_where_they_were_cut():
    heads = Axis(6)
    first, second = cut(heads, [3, 3])
    units = unify_all([first, second])
    assert str(heads) == "((1*3)+(1*3))"
    assert resolve(units) is unify_all([units, units])  # as the pieces of three layers, one after the other
    assert len({id(atom) for atom in atoms(heads) if atom.marks}) == 2
    assert {atom for atom in atoms(heads) if not atom.marks} == {units}


def test_pieces_of_different_axes_are_one_without_marks():
    first, second = cut(Axis(6), [3, 3])[0], cut(whole := Axis(6), [3, 3])[0]
    assert resolve(unify_all([first, second])) is resolve(second)
    assert str(whole) == "(3+3)"


def test_marked_parts_unify_with_any_axis_of_their_size_and_end():
    for shape in ([6], [2, 3], [3, 2]):
        part, other = marked(Axis(6)), product_of([Axis(size) for size in shape])
        unify(part, other)
        unify(other, part)
        assert part.size == other.size == 6


def test_sizes_that_do_not_add_up_are_an_error():
    with pytest.raises(AxisError, match="cannot cut"):
        cut(product_of([Axis(3), Axis(4)]), [5, 8])


def test_a_cut_inside_a_unit_cuts_every_unit():
    heads = product_of([Axis(3), size := Axis(4)])
    assert [piece.size for piece in cut(heads, [6, 6])] == [6, 6]
    assert [part.size for part in resolve(size).parts] == [2, 2]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_reshape_agrees_with_numpy(shape, data):
    axes = [Axis(size) for size in shape]
    total = math.prod(shape)
    outer = data.draw(st.sampled_from(divisors(total)))
    try:
        views = reshape(axes, [outer, total // outer])
    except AxisError:
        return
    labels = np.arange(total).reshape(shape)
    order = {unit: number for number, unit in enumerate(without_singles(units(product_of(axes))))}
    seen = np.array([order[unit] for unit in without_singles(units(product_of(views)))]).reshape(outer, -1)
    assert (seen == labels.reshape(outer, -1)).all()


def test_factors_of_a_sum_share_their_inner_units():
    halves = sum_of([Axis(4), Axis(6)])
    outer, inner = factor(halves, [5, 2])
    assert str(halves) == "((2*2)+(3*2))"
    assert str(outer) == "(2+3)"
    assert {id(list(atoms(part))[1]) for part in resolve(halves).parts} == {id(resolve(inner))}


def test_an_axis_is_flat_again_after_a_part_of_it_is_cut():
    axis = sum_of([part := Axis(6), Axis(2)])
    assert str(axis) == "(6+2)"
    cut(part, [2, 4])
    assert str(axis) == "(2+4+2)"


def test_groups_across_the_parts_of_a_sum_cut_both_parts():
    first, second = Axis(16), Axis(8)
    groups, inner = factor(joined := sum_of([first, second]), [4, 6])
    assert (groups.size, inner.size) == (4, 6)
    assert without_singles(units(product_of([groups, inner]))) == without_singles(units(joined))
    within = list(atoms(inner))
    assert [atom.size for atom in within] == [4, 2]
    assert list(atoms(first)) == [*within, *within, within[0]]
    assert list(atoms(second)) == [within[1], *within]


@given(trees(largest=64, depth=4), trees(largest=64, depth=4), trees(largest=64, depth=4))
def test_a_third_axis_joins_both(first, second, third):
    """Unifying is an equivalence: what was joined stays joined when more is learned."""
    try:
        unify(first, second)
        unify(second, third)
    except AxisError:
        return
    assert same_units(first, second)
    assert same_units(first, third)


@given(trees(), trees())
def test_a_contradiction_keeps_every_size(first, second):
    sizes = first.size, second.size
    try:
        unify(first, second)
    except AxisError:
        assert (len(units(first)), len(units(second))) == sizes
        return
    assert sizes[0] == sizes[1] == len(units(first)) == len(units(second))


class Program(torch.nn.Module):
    """One tensor, moved by a list of operators."""

    def __init__(self, shape, steps):
        super().__init__()
        self.weight, self.steps = torch.nn.Parameter(torch.zeros(shape)), steps

    def forward(self):
        return self.run(self.weight)

    def run(self, tensor):
        for step in self.steps:
            tensor = step(tensor)
        return tensor


@st.composite
def programs(draw):
    """Views, permutations, slices, picks, and concatenations of pieces or with itself, each with the shape it needs."""
    shape = draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=3))
    steps, tensor = [], torch.zeros(shape)
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["view", "permute", "slice", "select", "swap", "stack", "double"]))
        dim = draw(st.integers(0, max(tensor.dim() - 1, 0)))
        size = tensor.shape[dim] if tensor.dim() else 1
        if kind == "view":
            outer = draw(st.sampled_from(divisors(tensor.numel())))
            step = lambda item, outer=outer: item.reshape(outer, -1)  # noqa: E731
        elif kind == "permute":
            order = draw(st.permutations(range(tensor.dim())))
            step = lambda item, order=order: item.permute(order)  # noqa: E731
        elif kind == "slice" and size > 1:
            start = draw(st.integers(0, size - 1))
            stop = draw(st.integers(start + 1, size))
            step = lambda item, dim=dim, start=start, stop=stop: item.narrow(dim, start, stop - start)  # noqa: E731
        elif kind == "select" and tensor.dim() > 1:
            index = draw(st.integers(-size, size - 1))
            step = lambda item, dim=dim, index=index: item.select(dim, index)  # noqa: E731
        elif kind == "swap" and size > 1:
            at = draw(st.integers(1, size - 1))
            step = lambda item, dim=dim, at=at: torch.cat(item.tensor_split([at], dim)[::-1], dim)  # noqa: E731
        elif kind == "stack" and tensor.numel() <= 48:
            step = lambda item, dim=dim: torch.stack([item, item], dim)  # noqa: E731
        elif kind == "double" and tensor.dim() and tensor.numel() <= 48:
            step = lambda item, dim=dim: torch.cat([item, item], dim)  # noqa: E731
        else:
            continue
        steps.append(step)
        tensor = step(tensor)
    return shape, steps


@given(programs())
def test_axes_of_a_program_say_where_every_entry_came_from(program):
    shape, steps = program
    module = Program(shape, steps)
    tape = trace(module, ())
    if any(isinstance(meaning, (Opaque, Along)) for node in tape.nodes for meaning in node.meaning):
        return  # the structure was cut across; nothing is claimed
    came_from = module.run(torch.arange(math.prod(shape)).reshape(shape)).flatten()
    before = [sorted(unit) for unit in without_singles(units(product_of(tape.tensors["weight"].axes)))]
    after = [sorted(unit) for unit in without_singles(units(product_of(next(iter(tape.outputs.values())).axes)))]
    copies = {atom for unit in after for atom, _ in unit} - {atom for unit in before for atom, _ in unit}
    after = [[item for item in unit if item[0] not in copies] for unit in after]  # which copy of a stack it is
    assert after == [before[index] for index in came_from.tolist()]
