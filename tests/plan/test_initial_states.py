"""A state that begins at 0 in an example of one step: exact on many steps, or refused."""

import pytest
import torch
from torch import nn

from lightning_grow import RefusedGrowth, grow

EXACT = 1e-12  # float64, a few steps of a few dozen operations


class Loop(nn.Module):
    """A recurrent layer written out: `step(self, x_t, state) -> (output, state)`."""

    def __init__(self, width, step):
        super().__init__()
        self.into, self.state, self.out = nn.Linear(6, width), nn.Linear(width, width, bias=False), nn.Linear(width, 3)
        self.norm, self.width, self.step = nn.LayerNorm(width, elementwise_affine=False), width, step

    def forward(self, x):
        state, outputs = torch.zeros(len(x), self.width).to(x), []
        for x_t in x.unbind(1):
            output, state = self.step(self, x_t, state)
            outputs.append(output)
        return self.out(torch.stack(outputs, 1))


def elman(net, x, h):
    h = torch.tanh(net.into(x) + net.state(h))
    return h, h


def normed(net, x, h):
    h = torch.tanh(net.into(x) + net.state(net.norm(h)))
    return h, h


def normed_sum(net, x, h):
    return net.norm(net.into(x) + h), torch.tanh(net.state(net.into(x)))


def gated(net, x, h):
    h = torch.tanh(net.into(x)) * (1 + (h * h).sum(-1, keepdim=True)) + net.state(h)
    return h, h


def gated_by_mean(net, x, h):
    h = torch.tanh(net.into(x) + net.state(h)) * (1 + h.mean(-1, keepdim=True))
    return h, h


def read_first(net, x, h):
    read = (net.into(x) * h).sum(-1, keepdim=True)
    return torch.tanh(net.state(net.into(x))) + read, 0.9 * h + torch.tanh(net.into(x))


def normed_after(net, x, h):
    h = torch.tanh(net.into(x) + net.state(h))
    return net.norm(h), h


def normed_state(net, x, h):
    h = net.norm(net.into(x) + net.state(h))
    return h, h


def rescaled(net, x, h):
    h = (net.into(x) + net.state(h)).relu()
    return h / net.width**0.5, h


def masked(net, x, h):
    h = torch.tanh(net.into(x) + net.state(h)).where(x[:, :1] > 0, h)
    return net.norm(torch.where(x[:, 1:2] > 0, h, torch.zeros_like(h))), h


STEPS = [elman, normed, normed_sum, gated, gated_by_mean, read_first, normed_after, normed_state, rescaled, masked]


def grown(step, width, strategy, steps, **options):
    """Grow 4 units to `width` on an example of `steps` steps without the check; the error on 5 steps."""
    torch.manual_seed(0)
    source, target = Loop(4, step).double(), Loop(width, step).double()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    example, fresh = (torch.randn(3, count, 6, dtype=torch.float64) for count in (steps, 5))
    grow(source, target, strategy=strategy, example_inputs=(example,), verify=False)
    with torch.no_grad():
        return float((source(fresh) - target(fresh)).abs().max() / source(fresh).abs().max())


@pytest.mark.parametrize("width", [6, 8])
@pytest.mark.parametrize("strategy", ["preserve", "net2wider"])
@pytest.mark.parametrize("step", STEPS)
def test_one_step_promises_no_more_than_many_steps_keep(step, strategy, width):
    for steps in (1, 2):
        try:
            error = grown(step, width, strategy, steps)
        except RefusedGrowth:
            continue
        assert error <= EXACT, steps


@pytest.mark.parametrize("strategy", ["preserve", "net2wider"])
@pytest.mark.parametrize("step", [elman, read_first])
def test_a_state_that_readers_can_leave_out_grows_from_one_step(step, strategy):
    assert grown(step, 6, strategy, 1) <= EXACT


@pytest.mark.parametrize("step", [normed, normed_after])
def test_a_norm_over_a_state_grows_from_two_steps(step):
    assert grown(step, 8, "preserve", 2) <= EXACT
    if step is normed:
        with pytest.raises(RefusedGrowth, match=r"state that begins at 0 .an example of two steps"):
            grown(step, 8, "preserve", 1)


class Step(nn.Module):
    """One step of a recurrent network; the caller holds the state."""

    def __init__(self, width):
        super().__init__()
        self.cell, self.out, self.norm = nn.LSTMCell(6, width), nn.Linear(width, 2), nn.LayerNorm(width)

    def forward(self, x, h, c):
        h, c = self.cell(x, (self.norm(h), c))
        return self.out(h), h, c


@pytest.mark.filterwarnings("ignore:New inputs are taken to stand after the old ones")
@pytest.mark.parametrize("strategy", ["preserve", "net2wider"])
@pytest.mark.parametrize("state", [torch.zeros, torch.ones])
def test_units_of_an_input_are_never_taken_for_copies(state, strategy):
    source, target = Step(4), Step(8)
    for module, width in ((source, 4), (target, 8)):
        module.example_input_array = (torch.randn(3, 6), state(3, width), state(3, width))
    with pytest.raises(RefusedGrowth, match=r"new entries of input 1 would change it. Keep this size"):
        grow(source, target, strategy=strategy, allow_input_growth=True, allow_output_growth=True)


class Experts(nn.Module):
    """A sum that begins with a 0, as most mixtures of experts are written."""

    def __init__(self, width):
        super().__init__()
        self.into, self.norm, self.out = nn.Linear(6, width), nn.LayerNorm(width), nn.Linear(width, 2)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(2))

    def forward(self, x):
        h = self.into(x)
        y = torch.zeros_like(h)
        for expert in self.experts:
            y = y + expert(h)
        return self.out(self.norm(y))


@pytest.mark.parametrize("strategy", ["preserve", "net2wider"])
def test_the_start_of_a_sum_is_no_state_and_is_said(strategy):
    torch.manual_seed(0)
    source, target = Experts(4).double(), Experts(8).double()
    report = grow(source, target, strategy=strategy, example_inputs=(torch.randn(3, 6, dtype=torch.float64),))
    x = torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(target(x), source(x), rtol=1e-12, atol=1e-13)  # float64, some sums of 8
    assert any("is taken for the start of a sum" in note for note in report.notes)


class Joined(nn.Module):
    """Two sequences written into one of zeros, part by part, as diffusion transformers pad text and image."""

    def __init__(self, width, left):
        super().__init__()
        self.text, self.image = nn.Linear(3, width), nn.Linear(4, width)
        self.norm, self.out, self.left = nn.LayerNorm(width), nn.Linear(width, 2), left

    def forward(self, x, y):
        joined = x.new_zeros(len(x), x.shape[1] + y.shape[1] + self.left, self.out.in_features)
        for i in range(len(x)):
            joined[i, : x.shape[1]] = self.text(x[i])
            joined[i, x.shape[1] : x.shape[1] + y.shape[1]] = self.image(y[i])
        return self.out(self.norm(joined))


@pytest.mark.parametrize("left", [0, 1])
def test_zeros_that_are_written_over_are_no_state(left):
    x, y = (torch.randn(2, 3, size, dtype=torch.float64) for size in (3, 4))
    source, target = (Joined(width, left).double() for width in (8, 16))
    if left:  # what is left of them may be the places of steps to come
        with pytest.raises(RefusedGrowth, match="a state that begins at 0"):
            grow(source, target, example_inputs=(x, y))
    else:
        assert grow(source, target, example_inputs=(x, y)).max_output_error <= EXACT
