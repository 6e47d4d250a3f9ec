"""A layer that only the target has keeps its own buffers, and a deeper network with BatchNorm stays exact."""

import pytest
import torch
from torch import nn

from lightning_grow import grow

EXACT = 1e-12  # float64, a few dozen operations on outputs near 1


class Counted(nn.Module):
    """A layer that counts something of any shape."""

    def __init__(self, shape):
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.register_buffer("count", torch.full(shape, 7))

    def forward(self, x):
        return self.layer(x)


class Deep(nn.Module):
    """A residual stream of any depth."""

    def __init__(self, depth, build):
        super().__init__()
        self.into, self.out = nn.Linear(3, 4), nn.Linear(4, 2)
        self.blocks = nn.ModuleList(build() for _ in range(depth))

    def forward(self, x):
        x = self.into(x)
        for block in self.blocks:
            x = (x + block(x)).relu()
        return self.out(x)


BRANCHES = {
    "batch norm": lambda: nn.Sequential(
        nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.BatchNorm1d(4)
    ),
    "layer norm": lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)),
    "one count": lambda: Counted(()),
    "three counts": lambda: Counted((3,)),
}


@pytest.mark.parametrize("strategy", ["preserve", "net2wider"])
@pytest.mark.parametrize("build", BRANCHES.values(), ids=BRANCHES)
def test_a_new_branch_keeps_its_own_buffers_and_the_function(build, strategy):
    torch.manual_seed(0)
    source, target = Deep(1, build).double().eval(), Deep(2, build).double().eval()
    own = {name: item.clone() for name, item in target.state_dict().items() if name.startswith("blocks.1")}
    x = torch.randn(5, 3, dtype=torch.float64)
    grow(source, target, strategy=strategy, example_inputs=(x,))
    assert torch.allclose(source(x), target(x), rtol=0, atol=EXACT)
    buffers = {name for name, _ in target.named_buffers() if name.startswith("blocks.1")}
    assert all(torch.equal(target.state_dict()[name], own[name]) for name in buffers)
