"""The system of scales, held against numpy's linear algebra."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_grow.plan.scale import ONE, Equation, Scale, shifted, solve, variable


def equation(coefficients, constant):
    terms = {(str(number), ()): float(value) for number, value in enumerate(coefficients) if value}
    return Equation(Scale(terms, constant), "somewhere")


@given(st.data())
def test_the_solution_meets_every_equation_that_can_be_met(data):
    count = data.draw(st.integers(1, 5))
    row = st.lists(st.integers(-2, 2), min_size=count, max_size=count)
    matrix = np.array(data.draw(st.lists(row, min_size=1, max_size=6)), dtype=float)
    wanted = np.array(data.draw(st.lists(st.integers(-3, 3), min_size=count, max_size=count)), dtype=float)
    constants = -matrix @ wanted  # solvable by construction
    factors, broken = solve([equation(*item) for item in zip(matrix, constants, strict=True)], lambda item: 0)
    assert broken == []
    found = np.array([factors.get((str(number), ()), 0.0) for number in range(count)])
    np.testing.assert_allclose(matrix @ found, matrix @ wanted, atol=1e-9)


@given(st.data())
def test_a_contradiction_is_reported(data):
    row = data.draw(st.lists(st.integers(-2, 2), min_size=2, max_size=4).filter(any))
    equations = [equation(row, 1.0), equation(row, 2.0)]
    factors, broken = solve(equations, lambda item: 0)
    assert broken == equations[1:]
    assert np.isclose(sum(value * factors.get((str(n), ()), 0.0) for n, value in enumerate(row)), -1.0)


def test_the_most_willing_tensor_takes_up_the_factor():
    reader, gain = ("reader", ()), ("gain", ())
    asked = Equation(Scale({reader: 1.0, gain: 1.0}, 0.7), "the output")
    assert solve([asked], lambda item: item == reader)[0] == {gain: pytest.approx(-0.7)}
    assert solve([asked], lambda item: item == gain)[0] == {reader: pytest.approx(-0.7)}


def test_nothing_changes_where_nothing_has_to():
    assert solve([equation([1, -1], 0.0), equation([2, 1], 0.0)], lambda item: 0) == ({}, [])


def test_scales_add_and_multiply_as_logarithms():
    scale = variable("w", (0,)) + shifted(4.0) * 0.5 - variable("w", (0,))
    assert scale.constant == pytest.approx(np.log(2.0))
    assert not scale.terms
    assert ONE.is_one
    assert not scale.is_one
