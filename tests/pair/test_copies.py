"""Target networks, frozen teachers and averages that no forward runs grow as what they copy."""

import copy
import sys

import pytest
import torch
from models import stack
from torch import nn

from lightning_grow import RefusedGrowth, grow, plan_growth
from lightning_grow.trace.tracer import named_tensors

INPUT = torch.randn(16, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Delayed(nn.Module):
    """A network and its target network, as DQN has them; only the first one runs in forward."""

    def __init__(self, *widths, norm=False):
        super().__init__()
        self.target_net = stack(*widths, norm=norm)
        self.net = stack(*widths, norm=norm)

    def forward(self, x):
        return self.net(x)


class TwinCritics(nn.Module):
    """Two critics, and a frozen copy of each inside a container."""

    def __init__(self, width):
        super().__init__()
        self.q1, self.q2 = stack(width), stack(width)
        self.frozen = nn.ModuleDict({"q1": copy.deepcopy(self.q1), "q2": copy.deepcopy(self.q2)})

    def forward(self, x):
        return self.q1(x), self.q2(x)


class Shadow(nn.Module):
    """An exponential moving average kept in buffers."""

    def __init__(self, width):
        super().__init__()
        self.net = stack(width)
        for name, parameter in list(self.net.named_parameters()):
            self.register_buffer("ema_net_" + name.replace(".", "_"), parameter.detach().clone())

    def forward(self, x):
        return self.net(x)


class Other(Delayed):
    """The second network is no copy of the first."""

    def __init__(self, width):
        super().__init__(width)
        self.target_net = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3))


def pair(make, small, large):
    torch.manual_seed(0)
    source = make(*small).double()
    with torch.no_grad():
        for tensor in filter(torch.is_floating_point, named_tensors(source).values()):
            tensor += 0.1 * torch.randn_like(tensor)
    torch.manual_seed(1)
    return source, make(*large).double()


def assert_same(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)  # rounding of a few sums in float64


@pytest.mark.parametrize("strategy", ["preserve", "net2wider"])
@pytest.mark.parametrize(
    ("small", "large", "norm"),
    [((8,), (12,), False), ((8, 8), (12, 10), True), ((8,), (8, 8), False), ((8, 8), (12, 12, 10), False)],
)
def test_a_target_network_computes_what_it_did(strategy, small, large, norm):
    source, target = pair(lambda *widths: Delayed(*widths, norm=norm), small, large)
    report = grow(source, target, strategy=strategy, example_inputs=(INPUT,))
    assert_same(target.net(INPUT), source.net(INPUT))
    assert_same(target.target_net(INPUT), source.target_net(INPUT))
    assert "No forward runs 'target_net.0': it grows as 'net.0', which it copies." in report.notes
    assert not sum(report.dead_units.values())


def test_new_entries_of_a_copy_are_those_of_what_it_copies():
    source, target = pair(Delayed, (8,), (12,))
    plan = plan_growth(source, target, example_inputs=(INPUT,))
    grow(source, target, example_inputs=(INPUT,))
    new = plan.new_entries("net.0.weight")
    assert new.any()
    assert torch.equal(target.net[0].weight[new], target.target_net[0].weight[new])
    assert plan.new_entries("target_net.0.weight").equal(new)


def test_each_of_two_critics_has_its_own_copy():
    source, target = pair(TwinCritics, (8,), (12,))
    plan = plan_growth(source, target, example_inputs=(INPUT,))
    assert {name: item.like for name, item in plan.tensors.items() if item.like} == {
        f"frozen.{name}": name for name in plan.tensors if name.startswith("q")
    }
    grow(source, target, example_inputs=(INPUT,))
    for name in ("q1", "q2"):
        assert_same(target.frozen[name](INPUT), source.frozen[name](INPUT))


def test_an_average_in_buffers_grows_too():
    source, target = pair(Shadow, (8,), (12,))
    grow(source, target, example_inputs=(INPUT,))

    def averaged(module):
        names = {name: "ema_net_" + name.replace(".", "_") for name, _ in module.net.named_parameters()}
        state = {name: module.get_buffer(buffer) for name, buffer in names.items()}
        return torch.func.functional_call(module.net, state, (INPUT,))

    assert_same(averaged(target), averaged(source))


def test_an_average_inside_a_wrapper_grows_too():
    class Wrapped(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.net = stack(width, norm=True)
            self.ema = torch.optim.swa_utils.AveragedModel(self.net)

        def forward(self, x):
            return self.net(x)

    source, target = pair(Wrapped, (8,), (12,))
    grow(source, target, example_inputs=(INPUT,))
    assert_same(target.ema(INPUT), source.ema(INPUT))
    assert target.ema.n_averaged == source.ema.n_averaged


def test_a_copy_of_another_structure_is_refused():
    source, target = pair(Other, (8,), (12,))
    with pytest.raises(RefusedGrowth, match=r"'target_net\.0\.weight' grows but no traced operator uses it"):
        grow(source, target, example_inputs=(INPUT,))


def test_the_check_runs_the_copies_as_well(monkeypatch):
    source, target = pair(Delayed, (8,), (12,))
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    write = sys.modules["lightning_grow.grow"].write_state

    def spoil(plan, source_state, target_state, out, seed):
        write(plan, source_state, target_state, out, seed)
        out["target_net.2.weight"][0, 0] += 1

    monkeypatch.setattr(sys.modules["lightning_grow.grow"], "write_state", spoil)
    with pytest.raises(RefusedGrowth, match="differs from the source"):
        grow(source, target, example_inputs=(INPUT,))
    assert all(torch.equal(target.state_dict()[name], tensor) for name, tensor in before.items())


class WithoutDots(nn.Module):
    """Averages as latent-diffusion's LitEma keeps them: buffers named for the parameters, without their dots."""

    def __init__(self, *widths, shift=0):
        super().__init__()
        self.model = stack(*widths, norm=True)
        self.model_ema = nn.Module()
        self.model_ema.register_buffer("num_updates", torch.tensor(0))
        parameters = list(self.model.named_parameters())
        for (name, _), (_, item) in zip(parameters, parameters[shift:] + parameters[:shift], strict=True):
            self.model_ema.register_buffer(name.replace(".", ""), torch.randn_like(item))

    def forward(self, x):
        return self.model(x)

    def averaged(self, x):
        state = {name: getattr(self.model_ema, name.replace(".", "")) for name, _ in self.model.named_parameters()}
        return torch.func.functional_call(self.model, state, (x,))


def test_averages_under_names_without_dots_grow():
    source, target = pair(WithoutDots, (4,), (6,))
    expected = source(INPUT), source.averaged(INPUT)
    grow(source, target, example_inputs=(INPUT,))
    assert_same(target(INPUT), expected[0])
    assert_same(target.averaged(INPUT), expected[1])


def test_buffers_of_other_shapes_than_their_names_say_are_no_averages():
    source, target = (WithoutDots(width, shift=1).double() for width in (4, 6))
    with pytest.raises(RefusedGrowth, match=r"model_ema\.\w+' grows but no traced operator uses it"):
        grow(source, target, example_inputs=(INPUT,))
