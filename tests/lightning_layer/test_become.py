import copy

import pytest
import torch
import torchmetrics
from torch import nn

from lightning_grow.become import become


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
        self.register_buffer("positions", torch.randn(7, width), persistent=False)

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
CASES = {
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
    assert torch.equal(module(inputs), expected)
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
