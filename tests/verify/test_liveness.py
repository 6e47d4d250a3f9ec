"""New units learn, and none stays the twin of another."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from models import PAIRS, Pair, stack
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from lightning_grow import grow
from lightning_grow.grow import transfer
from lightning_grow.verify.liveness import Liveness, count_dead_and_twins, measure_liveness

LARGE = {"features": (256, 6), "sequence": (32, 7, 6), "image": (16, 3, 9, 9)}
LEARNING = (
    "relu",
    "tanh",
    "two heads",
    "streams",
    "LayerNorm x1.5",
    "hand-written RMSNorm",
    "residual stream",
    "convolution",
)


@pytest.mark.parametrize("strategy", ["preserve", "net2wider"])
@pytest.mark.parametrize("pair", LEARNING)
def test_every_new_unit_gets_a_gradient_within_two_steps(pair, strategy):
    source, target, inputs = PAIRS[pair].make()
    done = transfer(source, target, strategy=strategy, example_inputs=inputs)
    target.load_state_dict(done.state_dict)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    batch = torch.randn(
        LARGE[PAIRS[pair].inputs.__name__], generator=torch.Generator().manual_seed(5), dtype=torch.float64
    )
    alive = measure_liveness(done.plan, target, (batch,))
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())  # only measured
    for name, counts in alive.items():
        assert counts.twins == 0, name
        assert counts.idle == 0, name


class Read(nn.Module):
    """A ReLU layer that is read with a weight computed of `out.weight` and of what is beside it."""

    def __init__(self, width, weight, **beside):
        super().__init__()
        self.into, self.out, self.weight = nn.Linear(6, width), nn.Linear(width, 2), weight
        for name, make in beside.items():
            setattr(self, name, make(width))

    def forward(self, x):
        return F.linear(self.into(x).relu(), self.weight(self), self.out.bias)


def ones(width):
    return nn.Parameter(torch.ones(width))


COMPUTED = {
    "times a number": (lambda net: net.out.weight * 2.0, {}),
    "masked": (lambda net: net.out.weight * net.mask, {"mask": lambda width: nn.Buffer(torch.ones(2, width))}),
    "scaled": (lambda net: net.out.weight * net.scale, {"scale": ones}),
    "an adapter beside": (
        lambda net: net.out.weight + net.up @ net.down,
        {
            "up": lambda _: nn.Parameter(torch.randn(2, 3)),
            "down": lambda width: nn.Parameter(torch.randn(3, width)),
        },
    ),
    "unit columns": (lambda net: net.out.weight / net.out.weight.norm(dim=0) * net.scale, {"scale": ones}),
    "bounded": (lambda net: net.out.weight.tanh(), {}),
}


@pytest.mark.parametrize(("weight", "beside"), COMPUTED.values(), ids=COMPUTED)
def test_units_read_with_a_computed_weight_learn(weight, beside):
    torch.manual_seed(0)
    source, target = (Read(width, weight, **beside).double() for width in (4, 6))
    x = torch.randn(200, 6, dtype=torch.float64)
    done = transfer(source, target, example_inputs=(x,))
    assert done.report.max_output_error < 1e-13  # float64, a few dozen operations
    target.load_state_dict(done.state_dict)
    assert bool((target.into.weight[4:] != 0).any(1).all())
    (counts,) = measure_liveness(done.plan, target, (x,), steps=3).values()
    assert counts.idle == 0


def vocoder(width):
    layers = nn.Conv1d(6, width, 3, padding=1), nn.ConvTranspose1d(width, width // 2, 4, 2, 1)
    first, second, last = map(weight_norm, (*layers, nn.Conv1d(width // 2, 1, 3, padding=1)))
    return nn.Sequential(first, nn.LeakyReLU(0.1), second, nn.LeakyReLU(0.1), last)


@pytest.mark.parametrize("width", [6, 8])
def test_no_norm_of_a_weight_becomes_0(width):
    source, target, x = vocoder(4).double(), vocoder(width).double(), torch.randn(2, 6, 9, dtype=torch.float64)
    done = transfer(source, target, example_inputs=(x,))
    assert done.report.max_output_error < 1e-13  # float64, a few hundred operations
    target.load_state_dict(done.state_dict)
    assert all(counts.idle == 0 for counts in measure_liveness(done.plan, target, (x,), steps=3).values())


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU])
def test_units_padded_with_zeros_never_learn(activation):
    source, target, inputs = Pair(stack, (8,), (12,), options={"activation": activation}).make()
    done = transfer(source, target, strategy="zero_pad", example_inputs=inputs)
    target.load_state_dict(done.state_dict)
    assert count_dead_and_twins(done.plan, done.state_dict)[0] == {"'0.weight' axis 0": 4}
    alive = measure_liveness(done.plan, target, inputs, steps=5)
    assert alive["'0.weight' axis 0"].idle == 4


def test_equal_copies_stay_twins_and_are_counted():
    source, target, inputs = Pair(stack, (4,), (8,)).make()
    done = transfer(source, target, strategy="net2wider", example_inputs=inputs)
    state = {name: tensor.clone() for name, tensor in done.state_dict.items()}
    assert sum(done.report.twin_units.values()) == 0
    state["2.weight"] = torch.cat([source[2].weight, source[2].weight], 1) / 2  # an equal split
    assert sum(count_dead_and_twins(done.plan, state)[1].values()) == 4
    target.load_state_dict(state)
    assert measure_liveness(done.plan, target, inputs)["'0.weight' axis 0"].twins == 4


def test_the_new_units_of_a_trained_model_come_to_use():
    source, target, inputs = PAIRS["tanh"].make()
    grow(source, target, example_inputs=inputs)
    goal = torch.randn(5, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    optimizer = torch.optim.Adam(target.parameters(), lr=1e-2)
    for _ in range(50):
        optimizer.zero_grad()
        (target(*inputs) - goal).square().mean().backward()
        optimizer.step()
    assert target[2].weight[:8, 8:].abs().min() > 0


@dataclass
class Result:
    """Tensors beside other things."""

    y: torch.Tensor
    rest: dict[str, torch.Tensor]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: Result(y, {"norm": y.norm(dim=-1)}),
        lambda y: SimpleNamespace(y=[y]),
        lambda y: torch.fft.rfft(y, dim=0),
        lambda y: (y, y > 0, y.argmax(-1)),
    ],
    ids=["dataclass", "namespace", "complex", "codes beside"],
)
def test_every_kind_of_output_sends_a_gradient(wrap):
    forward = lambda part, x: wrap(part(x))  # noqa: E731
    source, target, inputs = Pair(stack, (8,), (12,), options={"activation": nn.Tanh}).make()
    done = transfer(source, target, example_inputs=inputs, forward=forward)
    target.load_state_dict(done.state_dict)
    alive = measure_liveness(done.plan, target, inputs, forward)
    assert alive["'0.weight' axis 0"] == Liveness(new=4, idle=0, twins=0)
