import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_grow.rl.gae import generalized_advantages


def reference(rewards, values, next_values, terminated, truncated, gamma, gae_lambda):
    """The definition, sum_k (gamma lambda)^k delta_{t+k} up to the episode's end, in plain Python."""
    advantages = []
    for start in range(len(rewards)):
        total, factor = 0.0, 1.0
        for t in range(start, len(rewards)):
            future = 0.0 if terminated[t] else gamma * next_values[t]
            total += factor * (rewards[t] + future - values[t])
            factor *= gamma * gae_lambda
            if terminated[t] or truncated[t]:
                break
        advantages.append(total)
    return advantages


def column(numbers, dtype=torch.float64):
    return torch.tensor(numbers, dtype=dtype).unsqueeze(-1)


@pytest.mark.parametrize(
    ("terminated", "truncated", "expected"),
    [
        pytest.param([0, 0], [0, 0], [1 + 5 + 0.5 * 6, 1 + 5], id="both steps go on"),
        pytest.param([0, 1], [0, 0], [1 + 5 + 0.5 * 1, 1], id="a terminal state has no value"),
        pytest.param(
            [0, 0], [0, 1], [1 + 5 + 0.5 * 6, 1 + 5], id="a truncated episode keeps the value it was cut from"
        ),
        pytest.param([0, 0], [1, 0], [1 + 5, 1 + 5], id="but nothing flows over the cut"),
        pytest.param([1, 0], [0, 0], [1, 1 + 5], id="nor over a terminal state"),
    ],
)
def test_advantages_by_hand(terminated, truncated, expected):
    ones, zeros, tens = column([1.0, 1.0]), column([0.0, 0.0]), column([10.0, 10.0])
    ends = column(terminated, torch.bool), column(truncated, torch.bool)
    advantages = generalized_advantages(ones, zeros, tens, *ends, gamma=0.5, gae_lambda=1.0)
    assert advantages.flatten().tolist() == expected


numbers = st.lists(
    st.tuples(*[st.floats(-10, 10)] * 3, st.sampled_from([(False, False), (True, False), (False, True)])),
    min_size=1,
    max_size=12,
)


@given(numbers, st.floats(0, 1), st.floats(0, 1))
def test_advantages_are_the_definition(steps, gamma, gae_lambda):
    rewards, values, next_values, ends = map(list, zip(*steps, strict=True))
    terminated, truncated = map(list, zip(*ends, strict=True))
    expected = reference(rewards, values, next_values, terminated, truncated, gamma, gae_lambda)
    floats = [column(numbers) for numbers in (rewards, values, next_values)]
    bools = [column(numbers, torch.bool) for numbers in (terminated, truncated)]
    advantages = generalized_advantages(*floats, *bools, gamma=gamma, gae_lambda=gae_lambda)
    # Both sum at most 12 terms of size 30 in float64.
    assert advantages.flatten().tolist() == pytest.approx(expected, abs=1e-11)


def test_environments_do_not_mix():
    generator = torch.Generator().manual_seed(0)
    floats = [torch.randn(6, 3, generator=generator) for _ in range(3)]
    ends = torch.rand(2, 6, 3, generator=generator) < 0.2
    together = generalized_advantages(*floats, *ends, gamma=0.9, gae_lambda=0.8)
    for index in range(3):
        alone = generalized_advantages(
            *(tensor[:, index : index + 1] for tensor in [*floats, *ends]), gamma=0.9, gae_lambda=0.8
        )
        assert torch.equal(together[:, index : index + 1], alone)
