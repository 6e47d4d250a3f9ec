"""Layers of lists of different length are matched in order, and new ones begin as they learn best."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_grow import RefusedGrowth, grow
from lightning_grow.pair.names import match_names


def linear(*widths, name="net", inputs=4, outputs=2):
    """Weights and biases of a Sequential with an activation after each hidden layer."""
    sizes = [inputs, *widths, outputs]
    shapes = {}
    for number, (columns, rows) in enumerate(pairwise(sizes)):
        shapes |= {f"{name}.{2 * number}.weight": (rows, columns), f"{name}.{2 * number}.bias": (rows,)}
    return shapes


def blocks(count, width=8):
    return {f"blocks.{number}.{part}.weight": (width, width) for number in range(count) for part in ("q", "o")}


CASES = {
    "same": ((128, 64), (128, 64), {0: 0, 2: 2, 4: 4}),
    "wider": ((128, 64), (256, 128), {0: 0, 2: 2, 4: 4}),
    "keeps 128 and 64": ((128, 64), (128, 128, 64), {0: 0, 4: 2, 6: 4}),
    "earliest": ((64,), (64, 64), {0: 0, 4: 2}),
    "earliest of equals": ((32, 32), (32, 32, 32), {0: 0, 2: 2, 6: 4}),
    "deeper and wider": ((8, 4), (16, 16, 8), {0: 0, 4: 2, 6: 4}),
}


@pytest.mark.parametrize(("source", "target", "wanted"), CASES.values(), ids=CASES)
def test_hidden_layers_are_matched_in_order(source, target, wanted):
    matched = match_names(linear(*source), linear(*target))
    assert matched == {
        f"net.{new}.{part}": f"net.{old}.{part}" for new, old in wanted.items() for part in ("weight", "bias")
    }


def test_blocks_are_matched_earliest_first():
    assert match_names(blocks(2), blocks(4)) == {name: name for name in blocks(2)}


def test_a_rename_wins():
    matched = match_names(blocks(2), blocks(3), {"blocks.2": "blocks.1"})
    assert matched["blocks.2.q.weight"] == "blocks.1.q.weight"
    assert matched["blocks.0.q.weight"] == "blocks.0.q.weight"
    assert "blocks.1.q.weight" not in matched


def test_other_kinds_of_layers_are_not_matched():
    source = {"0.weight": (8, 4), "1.weight": (8,), "1.bias": (8,)}
    target = {"0.weight": (8, 4), "1.weight": (8, 8), "2.weight": (8,), "2.bias": (8,)}
    assert match_names(source, target) == {"0.weight": "0.weight", "2.weight": "1.weight", "2.bias": "1.bias"}


class Causal(nn.Module):
    """A residual branch of square layers around an attention with a mask."""

    def __init__(self):
        super().__init__()
        self.norm, self.out = nn.LayerNorm(8), nn.Linear(8, 8)
        self.queries, self.keys, self.values = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        seen = self.norm(x)
        layers = (self.queries, self.keys, self.values)
        return x + self.out(F.scaled_dot_product_attention(*(layer(seen) for layer in layers), is_causal=True))


def test_a_new_branch_begins_as_it_is_initialised_but_for_its_last_layer():
    small, large = (nn.Sequential(nn.Linear(6, 8), *(Causal() for _ in range(count))) for count in (1, 2))
    initial = {name: value.clone() for name, value in large[2].state_dict().items()}
    grow(small, large, example_inputs=(torch.randn(3, 5, 6),))
    changed = {name for name, value in large[2].state_dict().items() if not torch.equal(value, initial[name])}
    assert changed == {"out.weight", "out.bias"}
    assert not large[2].out.weight.any()


def stack(*widths):
    sizes = list(pairwise([6, *widths]))
    layers = [part for pair in sizes for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 2)).double()


class Weighted(nn.Module):
    """A residual block whose stream is multiplied by a number (DeepNorm's alpha)."""

    def __init__(self, alpha):
        super().__init__()
        self.layers, self.alpha = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)), alpha

    def forward(self, x):
        return x * self.alpha + self.layers(x)


def test_a_stream_that_is_multiplied_by_1_is_the_stream():
    stacks = {alpha: [nn.Sequential(*(Weighted(alpha) for _ in range(count))) for count in (1, 2)] for alpha in (1, 2)}
    x = torch.randn(3, 8)
    expected = stacks[1][0](x)
    grow(*stacks[1], example_inputs=(x,))
    assert torch.equal(stacks[1][1](x), expected)
    with pytest.raises(RefusedGrowth, match="new layers '1' change"):
        grow(*stacks[2], example_inputs=(x,))


class Remembers(nn.Module):
    """Returns what every layer was given, in one tensor."""

    def __init__(self, count):
        super().__init__()
        self.layers = nn.ModuleList(Causal() for _ in range(count))

    def forward(self, x):
        given = []
        for layer in self.layers:
            given.append(x)
            x = layer(x)
        return x, torch.stack(given)


def test_an_output_with_an_entry_for_every_layer_is_the_cause():
    with pytest.raises(RefusedGrowth, match="3 positions along axis 0 of output 1, where the source has 2"):
        grow(Remembers(2), Remembers(3), example_inputs=(torch.randn(3, 5, 8),))


class Shifted(nn.Module):
    """A branch whose normed input is shifted by a row that all blocks share (adaptive norms of diffusion models)."""

    def __init__(self):
        super().__init__()
        self.norm, self.into, self.out = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, pair):
        x, row = pair
        seen = (self.norm(x) + row).flatten(0, 1)
        return x + self.out(self.into(seen).tanh()).view(x.shape), row


class Conditioned(nn.Module):
    def __init__(self, count):
        super().__init__()
        self.condition, self.blocks = nn.Linear(8, 8), nn.Sequential(*(Shifted() for _ in range(count)))

    def forward(self, x):
        return self.blocks((x, self.condition(x[:, :1])))[0]


def test_a_row_that_is_added_to_every_position_is_no_residual_stream():
    small, large = Conditioned(1), Conditioned(2)
    x = torch.randn(3, 5, 8)
    expected = small(x)
    grow(small, large, example_inputs=(x,))
    assert torch.equal(large(x), expected)
    assert large.blocks[1].norm.weight.all()
    assert not large.blocks[1].out.weight.any()


class Scaled(nn.Module):
    """A residual block whose stream has a gain of its own, a vector or one number."""

    def __init__(self, shape):
        super().__init__()
        self.gain, self.layers = nn.Parameter(torch.full(shape, 0.5)), nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.out = nn.Linear(8, 8)

    def forward(self, x):
        return self.gain * x + self.out(self.layers(x))


@pytest.mark.parametrize("strategy", ["preserve", "net2wider", "copy_and_extend"])
@pytest.mark.parametrize("shape", [(8,), (1,), ()], ids=str)
def test_a_gain_of_the_stream_begins_at_1(shape, strategy):
    small, large = (nn.Sequential(nn.Linear(6, 8), *(Scaled(shape) for _ in range(count))) for count in (1, 2))
    x = torch.randn(3, 6)
    expected = small(x)
    grow(small, large, example_inputs=(x,), strategy=strategy, verify=False)
    assert torch.equal(large[2].gain, torch.ones(shape))
    if strategy != "copy_and_extend":
        assert torch.equal(large(x), expected)
        large(x).sum().backward()
        assert large[2].gain.grad.any()


@pytest.mark.parametrize("widths", [(14, 11, 11), (9, 7, 7), (14, 14, 7)], ids=str)
def test_a_layer_of_another_width_than_those_before_it_begins_as_the_identity(widths):
    small, large = (stack(*item) for item in ((9, 7), widths))
    x = torch.randn(4, 6, dtype=torch.float64)
    assert grow(small, large, example_inputs=(x,)).max_output_error <= 1e-14
