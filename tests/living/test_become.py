import copy
import dataclasses
import functools
import math
import operator

import pytest
import torch
import torchmetrics
from torch import nn

from lightning_grow.living.become import Contested, become


class Recurrent(nn.Module):
    def __init__(self, width, layers=1):
        super().__init__()
        self.lstm = nn.LSTM(3, width, num_layers=layers, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 2)

    def forward(self, x):
        return self.out(self.norm(self.lstm(x)[0]))


class Attending(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.layer = nn.TransformerEncoderLayer(width, heads, 2 * width, batch_first=True, dropout=0.0)
        self.head = nn.Linear(width, 11, bias=False)
        self.head.weight = self.embed.weight
        self.scale = width**-0.5
        self.register_buffer("positions", torch.linspace(-1, 1, 7 * width).reshape(7, width), persistent=False)

    def forward(self, x):
        return self.head(self.layer(self.embed(x) + self.positions) * self.scale)


class Convolving(nn.Module):
    def __init__(self, width, blocks=1):
        super().__init__()
        self.stem = nn.Conv1d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.BatchNorm1d(width), nn.Conv1d(width, width, 1)) for _ in range(blocks)
        )

    def forward(self, x):
        x = self.stem(x.transpose(1, 2))
        for block in self.blocks:
            x = x + block(x)
        return x


TOKENS, SERIES = torch.arange(14).reshape(2, 7) % 11, torch.randn(4, 7, 3)


@dataclasses.dataclass
class Config:
    width: int


class Attributed(nn.Module):
    """Two layers, and the width once more in an attribute of another kind."""

    def __init__(self, width):
        super().__init__()
        self.first, self.second = nn.Linear(3, width), nn.Linear(width, 2)
        self.build(width)

    def forward(self, x):
        return self.second(self.scale(torch.relu(self.first(x))))


class Closure(Attributed):
    def build(self, width):
        self.scale = lambda x: x / math.sqrt(width)


class ClosureOverSelf(Attributed):
    def build(self, width):
        self.scale = lambda x: x / math.sqrt(width) + self.first.weight.mean()


class Partial(Attributed):
    def build(self, width):
        self.scale = functools.partial(torch.mul, width**-0.5)


class Method(Attributed):
    def build(self, width):
        self.config, self.scale = Config(width), self.by_config

    def by_config(self, x):
        return x / self.config.width


class TensorAttribute(Attributed):
    def build(self, width):
        self.factor = torch.tensor(width**-0.5)

    def scale(self, x):
        return x * self.factor


class HiddenBuffer(Attributed):
    def build(self, width):
        self.register_buffer("factor", torch.tensor(width**-0.5), persistent=False)

    def scale(self, x):
        return x * self.factor


class InSubmodule(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer, self.closure = nn.Linear(3, 2), nn.Sequential(Closure(width))

    def forward(self, x):
        return self.layer(x) + self.closure(x)


class ListOfBlocks(nn.Module):
    def __init__(self, width, blocks=1):
        super().__init__()
        self.stem, self.net = nn.Linear(3, width), nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.order = {"net": list(self.net)}

    def forward(self, x):
        return functools.reduce(lambda value, block: value + block(value), self.order["net"], self.stem(x))


CASES = {
    **{
        cls.__name__: (functools.partial(cls, 4), functools.partial(cls, 6), torch.ones(5, 3))
        for cls in (Closure, ClosureOverSelf, Partial, Method, TensorAttribute, HiddenBuffer, InSubmodule, ListOfBlocks)
    },
    "a list of blocks, deeper": (lambda: ListOfBlocks(4), lambda: ListOfBlocks(4, 3), torch.ones(5, 3)),
    "LSTM, wider": (lambda: Recurrent(4), lambda: Recurrent(6), SERIES),
    "LSTM, more layers": (lambda: Recurrent(4), lambda: Recurrent(6, 2), SERIES),
    "attention, tied": (lambda: Attending(4, 2), lambda: Attending(8, 4), TOKENS),
    "convolutions": (lambda: Convolving(4), lambda: Convolving(6, 3), SERIES),
    "a single layer": (lambda: nn.Linear(3, 4), lambda: nn.Linear(3, 6), SERIES),
}


@pytest.mark.parametrize(("small", "large", "inputs"), CASES.values(), ids=CASES)
def test_it_computes_what_the_grown_module_computes(small, large, inputs):
    module, fresh, grown = small(), small(), large()
    expected = grown.eval()(inputs)
    twin = copy.deepcopy(grown)
    become(module.eval(), grown, fresh)
    module.load_state_dict(twin.state_dict())
    torch.testing.assert_close(module(inputs), expected, rtol=0, atol=0)
    assert repr(module) == repr(twin)
    assert [name for name, _ in module.named_parameters()] == [name for name, _ in twin.named_parameters()]


class Run(nn.Module):
    """What a run has put into a module beside its architecture."""

    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2))
        self.frozen = nn.Linear(3, 2)
        self.episodes = 0
        self.width = width
        self.returns = torchmetrics.MeanMetric()
        self.environment = None


def test_what_a_run_has_put_into_it_stays():
    module, seen = Run(4), []
    module.episodes, module.environment = 7, object()
    module.returns.update(3.0)
    module.net[0].register_forward_hook(lambda *_: seen.append(1))
    module.net[2].weight.requires_grad_(False)
    module.frozen.eval()
    module.net[2].eval()
    own, first, frozen, environment = module.net, module.net[0], module.frozen.weight, module.environment
    become(module, Run(6), Run(4))
    assert (module.net, module.net[0], module.frozen.weight, module.environment) == (own, first, frozen, environment)
    assert (module.episodes, module.width, float(module.returns.compute())) == (7, 6, 3.0)
    module.net(torch.ones(1, 3))
    assert seen == [1]
    assert not module.net[2].weight.requires_grad
    assert module.net[0].weight.requires_grad
    assert [part.training for part in (module.frozen, module.net, *module.net)] == [False, True, True, True, False]


def test_new_layers_are_in_the_mode_of_what_holds_them():
    module = Convolving(4).eval()
    become(module, Convolving(4, 2), Convolving(4))
    assert not any(part.training for part in module.modules())


class Kept(nn.Module):
    """What an optimizer or a run may hold of a module."""

    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2))
        self.config, self.seen, self.state = Config(width), [], torch.zeros(width)
        self.groups = [{"params": list(self.net.parameters())}]
        self.register_buffer("hidden", torch.zeros(width), persistent=False)
        self.register_buffer("mean", torch.zeros(()), persistent=False)


def test_what_points_at_its_parameters_points_at_the_new_ones():
    module = Kept(4)
    torch.optim.SGD(module.groups, lr=0.1)  # puts its settings into the groups it is given
    become(module, Kept(6), Kept(4))
    assert all(map(operator.is_, module.groups[0]["params"], module.net.parameters()))
    assert module.groups[0]["lr"] == 0.1


def test_what_the_run_has_changed_stays_and_what_it_cannot_keep_is_named():
    module = Kept(4)
    module.config.width, module.mean, module.state, module.hidden = 7, torch.ones(()), torch.ones(4), torch.ones(4)
    module.seen.append(3)
    assert become(module, Kept(6), Kept(4)) == Contested(lost=["hidden", "state"], kept=["config"])
    assert (module.config.width, float(module.mean), module.seen) == (7, 1.0, [3])
    assert (module.hidden.shape, module.state.shape) == ((6,), (6,))


class Helper:
    def __init__(self, net, width):
        self.net, self.width, self.parent, self.friends = net, width, None, []


class Crowd(nn.Module):
    """Objects that know one another, a long chain of them, and one that knows layers."""

    def __init__(self, width):
        super().__init__()
        self.net = nn.Linear(width, 2)
        self.helper = Helper(self.net, width)
        self.crowd = [Helper(None, 0) for _ in range(40)]
        for one in self.crowd:
            one.friends = self.crowd
        self.chain = Helper(None, 0)
        for _ in range(2000):
            self.chain = Helper(self.chain, 0)


def test_objects_that_know_one_another_are_looked_through_once():
    module = Crowd(4)
    crowd, chain = module.crowd, module.chain
    become(module, Crowd(6), Crowd(4))
    assert (module.helper.net is module.net, module.helper.width) == (True, 6)
    assert (module.crowd is crowd, module.chain is chain) == (True, True)


def test_a_compiled_part_becomes_the_new_one():
    def wrap(width):
        return nn.ModuleDict(
            {"net": torch.compile(nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2)), backend="eager")}
        )

    module, twin = wrap(4), wrap(6)
    own = module["net"]._orig_mod
    become(module, wrap(6), wrap(4))
    module.load_state_dict(twin.state_dict())
    assert module["net"]._orig_mod is own
    inputs = torch.ones(2, 3)
    torch.testing.assert_close(own(inputs), twin["net"]._orig_mod(inputs), rtol=0, atol=0)
    torch.testing.assert_close(module["net"](inputs), own(inputs), rtol=0, atol=0)
