import math

import pytest
import torch

from lightning_grow.rl import losses


def t(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        pytest.param(1.1, 2.0, -2.2, id="inside the clip"),
        pytest.param(1.5, 2.0, -2.4, id="no reward for going further"),
        pytest.param(0.5, 2.0, -1.0, id="but the whole gradient on the way back"),
        pytest.param(1.5, -2.0, 3.0, id="the same for bad actions"),
        pytest.param(0.5, -2.0, 1.6, id="no reward for avoiding them further"),
    ],
)
def test_policy_loss_by_hand(ratio, advantage, expected):
    assert losses.policy_loss(t(ratio).log(), t(advantage), 0.2).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "old_value", "target", "clip_coef", "expected"),
    [
        pytest.param(3.0, 0.0, 1.0, None, 0.5 * 4, id="squared error"),
        pytest.param(3.0, 2.9, 1.0, 0.2, 0.5 * 4, id="inside the clip"),
        pytest.param(1.0, 0.0, 1.0, 0.2, 0.5 * 0.8**2, id="the clipped value is the worse one"),
        pytest.param(-1.0, 0.0, 1.0, 0.2, 0.5 * 4, id="the value is the worse one"),
    ],
)
def test_value_loss_by_hand(value, old_value, target, clip_coef, expected):
    assert losses.value_loss(t(value), t(old_value), t(target), clip_coef).item() == pytest.approx(expected)


def test_losses_are_means():
    once, twice = (t(0.1, -0.4), t(1.0, 2.0)), (t(0.1, -0.4, 0.1, -0.4), t(1.0, 2.0, 1.0, 2.0))
    assert losses.policy_loss(*once, 0.2) == losses.policy_loss(*twice, 0.2)
    assert losses.value_loss(*once, t(0.0, 0.0), 0.2) == losses.value_loss(*twice, t(0.0, 0.0, 0.0, 0.0), 0.2)


def test_approximate_kl_is_unbiased():
    old, new = t(0.2, 0.3, 0.5), t(0.25, 0.35, 0.4)
    exact = (old * (old / new).log()).sum().item()
    # The expectation under the old policy, sample by sample.
    estimate = sum(p * losses.approximate_kl((q / p).log().reshape(1)).item() for p, q in zip(old, new, strict=True))
    assert estimate.item() == pytest.approx(exact)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_approximate_kl_by_hand(ratio):
    assert losses.approximate_kl(t(ratio).log()).item() == pytest.approx(ratio - 1 - math.log(ratio))


def test_clip_fraction_counts_both_sides():
    assert losses.clip_fraction(t(0.7, 0.9, 1.1, 1.3).log(), 0.2).item() == 0.5


@pytest.mark.parametrize(
    ("values", "returns", "expected"),
    [
        pytest.param((1.0, 2.0, 3.0), (1.0, 2.0, 3.0), 1.0, id="perfect"),
        pytest.param((2.0, 2.0, 2.0), (1.0, 2.0, 3.0), 0.0, id="a constant"),
        pytest.param((3.0, 2.0, 1.0), (1.0, 2.0, 3.0), -3.0, id="the wrong way round"),
        pytest.param((1.0, 2.0, 3.0), (1.0, 1.0, 1.0), math.nan, id="nothing to explain"),
    ],
)
def test_explained_variance_by_hand(values, returns, expected):
    assert losses.explained_variance(t(*values), t(*returns)).item() == pytest.approx(expected, nan_ok=True)
