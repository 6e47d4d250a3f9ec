"""New actions begin with a chosen probability, new deviations with a chosen size; the old ones are not touched."""

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Normal, kl_divergence

from lightning_grow import RefusedGrowth, grow

INPUT = torch.randn(64, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Policy(nn.Module):
    """Logits and a value from a shared trunk; a Gaussian policy has a log_std too."""

    def __init__(self, actions, width=8, continuous=False, bias=True):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, width), nn.Tanh())
        self.actor, self.critic = nn.Linear(width, actions, bias=bias), nn.Linear(width, 1)
        self.log_std = nn.Parameter(torch.full((actions,), 0.3)) if continuous else None

    def forward(self, x):
        hidden = self.trunk(x)
        outputs = self.actor(hidden), self.critic(hidden)
        return outputs if self.log_std is None else (*outputs, self.log_std)


def pair(small, large):
    torch.manual_seed(0)
    source = Policy(*small).double()
    with torch.no_grad():
        source.actor.weight *= 5
    torch.manual_seed(1)
    return source, Policy(*large).double()


def grown(small, large, **options):
    source, target = pair(small, large)
    return source, target, grow(source, target, example_inputs=(INPUT,), allow_output_growth=True, **options)


@pytest.mark.parametrize("strategy", ["preserve", "net2wider"])
@pytest.mark.parametrize("wanted", [0.001, 0.05, 0.6])
@pytest.mark.parametrize("width", [8, 12])
def test_new_actions_begin_with_the_probability_that_is_asked_for(strategy, wanted, width):
    source, target, report = grown((3,), (5, width), new_action_prob=wanted, strategy=strategy)
    old, new = (Categorical(logits=module(INPUT)[0].detach()) for module in (source, target))
    assert float(new.probs[:, 3:].sum(-1).mean()) == pytest.approx(wanted, rel=1e-6)
    torch.testing.assert_close(target(INPUT)[0][:, :3], source(INPUT)[0], rtol=1e-12, atol=1e-12)
    padded = Categorical(probs=torch.cat([old.probs, torch.zeros(64, 2, dtype=torch.float64)], -1))
    divergence = float(kl_divergence(padded, new).mean())
    (note,) = report.notes
    assert note.startswith(f"2 new actions begin with the total probability {wanted:.3g} on the example inputs")
    assert float(note.rpartition("= ")[2][:-1]) == pytest.approx(divergence, rel=1e-2)
    assert report.function_preserving
    assert not sum(report.twin_units.values())


def test_new_actions_part_at_the_first_step():
    _, target, _ = grown((3,), (5,), new_action_prob=0.1)
    Categorical(logits=target(INPUT)[0]).log_prob(torch.arange(64) % 5).mean().backward()
    first, second = target.actor.weight.grad[3:]
    assert first.abs().min() > 0
    assert not torch.allclose(first, second)


def test_without_a_probability_new_actions_begin_as_the_target_made_them():
    _, target = pair((3,), (5,))
    own = target.actor.weight[3:].clone()
    _, target, _ = grown((3,), (5,))
    assert torch.equal(target.actor.weight[3:], own)


@pytest.mark.parametrize("chosen", [None, -1.5])
def test_new_deviations_begin_as_chosen_and_old_marginals_are_exact(chosen):
    source, target, report = grown((2, 8, True), (3, 12, True), new_log_std=chosen)
    (mean, value, log_std), (wider, same, longer) = source(INPUT), target(INPUT)
    torch.testing.assert_close(same, value, rtol=1e-12, atol=1e-12)
    divergence = kl_divergence(Normal(mean, log_std.exp()), Normal(wider[:, :2], longer[:2].exp()))
    assert divergence.abs().max() < 1e-12
    assert longer[2].item() == (pytest.approx(0.3) if chosen is None else chosen)
    assert report.function_preserving


REFUSED = {
    "a Gaussian policy": ((2, 8, True), (3, 8, True), {"new_action_prob": 0.1}, "2 outputs grow.*new_log_std"),
    "a discrete policy": ((2,), (3,), {"new_log_std": 0.0}, "an output that is a parameter itself"),
    "no bias": ((2, 8, False, False), (3, 8, False, False), {"new_action_prob": 0.1}, "needs a bias"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_set_is_refused_and_nothing_changes(case):
    small, large, options, words = REFUSED[case]
    source, target = pair(small, large)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(RefusedGrowth, match=words):
        grow(source, target, example_inputs=(INPUT,), allow_output_growth=True, **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def test_an_output_that_its_bias_does_not_shift_is_no_logit():
    def squashed(module, x):
        return module(x)[0].tanh()

    with pytest.raises(RefusedGrowth, match=r"is not the logits of a softmax"):
        grown((3,), (5,), new_action_prob=0.01, forward=squashed)


def test_where_no_output_grows_there_is_nothing_to_do():
    assert grown((3,), (3, 12), new_action_prob=0.1, new_log_std=1.0)[2].notes == ()


@pytest.mark.parametrize("wanted", [0.0, 1.0, -0.1])
def test_a_probability_out_of_range_is_said_at_once(wanted):
    with pytest.raises(ValueError, match="new_action_prob"):
        grown((3,), (5,), new_action_prob=wanted)
