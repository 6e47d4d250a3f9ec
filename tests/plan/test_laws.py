"""Operators tell their own algebra."""

import pytest
import torch
import torch.nn.functional as F

from lightning_grow.plan.laws import Laws

ONE = frozenset([0])
TWO = frozenset([0, 1])


def laws(function, count, near=()):
    return Laws(function, count, (function, near), near)


DEGREES = {
    "relu": (lambda i: i[0].relu(), 1.0),
    "leaky_relu": (lambda i: F.leaky_relu(i[0]), 1.0),
    "abs": (lambda i: i[0].abs(), 1.0),
    "square": (lambda i: i[0] ** 2, 2.0),
    "sqrt": (lambda i: i[0].sqrt(), 0.5),
    "rsqrt": (lambda i: i[0].rsqrt(), -0.5),
    "reciprocal": (lambda i: i[0].reciprocal(), -1.0),
    "sign": (lambda i: i[0].sign(), 0.0),
    "tanh": (lambda i: i[0].tanh(), None),
    "gelu": (lambda i: F.gelu(i[0]), None),
    "exp": (lambda i: i[0].exp(), None),
    "plus one": (lambda i: i[0] + 1, None),
    "clamp": (lambda i: i[0].clamp(-1, 1), None),
    "masked": (lambda i: i[0].masked_fill(torch.arange(64) % 2 == 0, float("-inf")), 1.0),
}


@pytest.mark.parametrize(("function", "wanted"), DEGREES.values(), ids=DEGREES)
def test_the_power_of_a_factor(function, wanted):
    assert laws(function, 1).degree(ONE, frozenset()) == wanted


BOUNDS = {
    "a bound above": (lambda i: i[0].clamp(-8, 8), ()),
    "a bound far below": (lambda i: i[0].clamp(min=-50), ()),
    "a remainder": (lambda i: i[0].fmod(10), ()),
    "a bound near 0": (lambda i: i[0].clamp_min(1e-12), (1e-12,)),
    "a bound beyond a million": (lambda i: i[0].clamp_max(1e9), (1e9,)),
    "a threshold": (lambda i: (i[0] > -1e9).double(), (-1e9,)),
}


@pytest.mark.parametrize(("function", "near"), BOUNDS.values(), ids=BOUNDS)
def test_what_saturates_has_no_power_and_no_average(function, near):
    assert laws(function, 1, near).degree(ONE, frozenset()) is None
    assert not laws(function, 1, near).averages(ONE)


ZEROS = {
    "product, either": (lambda i: i[0] * i[1], ONE, True),
    "sum, one": (lambda i: i[0] + i[1], ONE, False),
    "sum, both": (lambda i: i[0] + i[1], TWO, True),
    "quotient, above": (lambda i: i[0] / i[1], ONE, True),
    "quotient, below": (lambda i: i[1] / i[0], ONE, False),
    "sigmoid": (lambda i: i[0].sigmoid() + 0 * i[1], ONE, False),
    "tanh": (lambda i: i[0].tanh() + 0 * i[1], ONE, True),
    "addcmul": (lambda i: torch.addcmul(i[0], i[0], i[1]), ONE, True),
}


@pytest.mark.parametrize(("function", "zeros", "wanted"), ZEROS.values(), ids=ZEROS)
def test_what_zeros_do(function, zeros, wanted):
    assert laws(function, 2).vanishes(zeros) == wanted


def test_what_passes_and_cancels():
    add, subtract = (lambda i: i[0] + i[1]), (lambda i: i[0] - i[1])
    assert laws(add, 2).passes(ONE, 1)
    assert laws(subtract, 2).passes(frozenset([1]), 0)
    assert not laws(subtract, 2).passes(ONE, 1)
    assert laws(subtract, 2).cancels()
    assert not laws(add, 2).cancels()


def test_what_changes_nothing_behind_another():
    relu, tanh, leaky = (lambda i: i[0].relu()), (lambda i: i[0].tanh()), (lambda i: F.leaky_relu(i[0]))
    assert laws(relu, 1).keeps(laws(relu, 1))
    assert laws(relu, 1).keeps(laws(lambda i: i[0].clamp(0, 6), 1))
    assert laws(lambda i: i[0].clamp(-1, 1), 1).keeps(laws(tanh, 1))
    assert not laws(lambda i: i[0].clamp(0, 6), 1).keeps(laws(relu, 1))
    assert not laws(leaky, 1).keeps(laws(leaky, 1))
    assert not laws(tanh, 1).keeps(laws(tanh, 1))


def test_what_averages_average():
    assert laws(lambda i: i[0] + i[1], 2).averages(TWO)
    assert laws(lambda i: i[0] * i[1], 2).averages(ONE)
    assert not laws(lambda i: i[0] * i[1], 2).averages(TWO)
    assert not laws(lambda i: i[0].relu(), 1).averages(ONE)
    assert laws(lambda i: 3 * i[0] + 1, 1).averages(ONE)
