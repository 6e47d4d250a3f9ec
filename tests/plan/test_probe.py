"""Operators tell their own algebra."""

import pytest
import torch
import torch.nn.functional as F

from lightning_grow.plan import probe

ONE = frozenset([0])
TWO = frozenset([0, 1])

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
    assert probe.degree(function, 1, ONE, frozenset()) == wanted


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
    assert probe.degree(function, 1, ONE, frozenset(), near) is None
    assert not probe.averages(function, 1, ONE, near)


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
    assert probe.vanishes(function, 2, zeros) == wanted


def test_what_passes_and_cancels():
    add, subtract = (lambda i: i[0] + i[1]), (lambda i: i[0] - i[1])
    assert probe.passes(add, 2, ONE, 1)
    assert probe.passes(subtract, 2, frozenset([1]), 0)
    assert not probe.passes(subtract, 2, ONE, 1)
    assert probe.cancels(subtract)
    assert not probe.cancels(add)


def test_what_changes_nothing_behind_another():
    relu, tanh, leaky = (lambda i: i[0].relu()), (lambda i: i[0].tanh()), (lambda i: F.leaky_relu(i[0]))
    assert probe.keeps(relu, relu)
    assert probe.keeps(relu, lambda i: i[0].clamp(0, 6))
    assert probe.keeps(lambda i: i[0].clamp(-1, 1), tanh)
    assert not probe.keeps(lambda i: i[0].clamp(0, 6), relu)
    assert not probe.keeps(leaky, leaky)
    assert not probe.keeps(tanh, tanh)


def test_what_averages_average():
    assert probe.averages(lambda i: i[0] + i[1], 2, TWO)
    assert probe.averages(lambda i: i[0] * i[1], 2, ONE)
    assert not probe.averages(lambda i: i[0] * i[1], 2, TWO)
    assert not probe.averages(lambda i: i[0].relu(), 1, ONE)
    assert probe.averages(lambda i: 3 * i[0] + 1, 1, ONE)
