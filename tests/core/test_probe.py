"""Operators tell their own algebra."""

import pytest
import torch

from lightning_grow import probe

ONE = frozenset([0])
TWO = frozenset([0, 1])

DEGREES = {
    "relu": (lambda i: i[0].relu(), 1.0),
    "leaky_relu": (lambda i: torch.nn.functional.leaky_relu(i[0]), 1.0),
    "abs": (lambda i: i[0].abs(), 1.0),
    "square": (lambda i: i[0] ** 2, 2.0),
    "sqrt": (lambda i: i[0].sqrt(), 0.5),
    "rsqrt": (lambda i: i[0].rsqrt(), -0.5),
    "reciprocal": (lambda i: i[0].reciprocal(), -1.0),
    "sign": (lambda i: i[0].sign(), 0.0),
    "tanh": (lambda i: i[0].tanh(), None),
    "gelu": (lambda i: torch.nn.functional.gelu(i[0]), None),
    "exp": (lambda i: i[0].exp(), None),
    "plus one": (lambda i: i[0] + 1, None),
    "clamp": (lambda i: i[0].clamp(-1, 1), None),
    "masked": (lambda i: i[0].masked_fill(torch.arange(64) % 2 == 0, float("-inf")), 1.0),
}


@pytest.mark.parametrize(("function", "wanted"), DEGREES.values(), ids=DEGREES)
def test_the_power_of_a_factor(function, wanted):
    assert probe.degree(function, 1, ONE, frozenset()) == wanted


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


def test_what_passes_and_cancels_and_repeats():
    add, subtract = (lambda i: i[0] + i[1]), (lambda i: i[0] - i[1])
    assert probe.passes(add, 2, ONE, 1)
    assert probe.passes(subtract, 2, frozenset([1]), 0)
    assert not probe.passes(subtract, 2, ONE, 1)
    assert probe.cancels(subtract)
    assert not probe.cancels(add)
    assert probe.repeats(lambda i: i[0].relu())
    assert probe.repeats(lambda i: i[0].clamp(-1, 1))
    assert not probe.repeats(lambda i: torch.nn.functional.leaky_relu(i[0]))
    assert not probe.repeats(lambda i: i[0].tanh())


def test_what_averages_average():
    assert probe.averages(lambda i: i[0] + i[1], 2, TWO)
    assert probe.averages(lambda i: i[0] * i[1], 2, ONE)
    assert not probe.averages(lambda i: i[0] * i[1], 2, TWO)
    assert not probe.averages(lambda i: i[0].relu(), 1, ONE)
    assert probe.averages(lambda i: 3 * i[0] + 1, 1, ONE)
