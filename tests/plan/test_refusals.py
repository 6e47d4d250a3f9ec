"""What cannot be kept is refused: with the place, the reason and a way out."""

import re

import pytest
import torch
import torch.nn.functional as F
from models import Attention, Encoder, Pair, TwoHeads, features, sequence, stack
from torch import nn

from lightning_grow import RefusedGrowth, axis_rule, grow, plan_growth
from lightning_grow.trace.table import RULES, pointwise


class Middle(nn.Module):
    """Two linear layers with any function between them."""

    def __init__(self, width, function):
        super().__init__()
        self.into, self.out, self.function = nn.Linear(6, width), nn.Linear(width, 3), function

    def forward(self, x):
        return self.out(self.function(self.into(x)))


class Heads(nn.Module):
    """Self-attention whose heads are only seen in a view."""

    def __init__(self, heads, size):
        super().__init__()
        self.heads, self.size = heads, size
        self.qkv, self.out = nn.Linear(6, 3 * heads * size), nn.Linear(heads * size, 3)

    def forward(self, x):
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Rotary(Attention):
    """Attention with rotated queries and keys."""

    def forward(self, x):
        x = self.into(x)
        batch, steps, _ = x.shape
        frequencies = 100.0 ** (-torch.arange(0, self.size, 2) / self.size)
        angles = (torch.arange(steps)[:, None] * frequencies).repeat(1, 2)
        half = self.size // 2

        def rotate(item):
            turned = torch.cat([-item[..., half:], item[..., :half]], -1)
            return item * angles.cos() + turned * angles.sin()

        q = self.q(self.norm(x)).view(batch, steps, self.groups * self.heads, self.size).transpose(1, 2)
        k, v = self.kv(self.norm(x)).view(batch, steps, 2, self.groups, self.size).permute(2, 0, 3, 1, 4)
        k, v = (item.repeat_interleave(self.heads, 1) for item in (k, v))
        mixed = F.scaled_dot_product_attention(rotate(q), rotate(k), v)
        return self.out(x + self.o(mixed.transpose(1, 2).flatten(2)))


class Sloped(Heads):
    """ALiBi: a slope per head, which depends on the number of heads."""

    def forward(self, x):
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        slopes = 2.0 ** (-8.0 * torch.arange(1, self.heads + 1) / self.heads)
        steps = torch.arange(x.shape[1])
        bias = slopes[:, None, None] * -(steps[:, None] - steps).abs()
        mixed = (q @ k.transpose(-1, -2) + bias).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


class Untied(nn.Module):
    def __init__(self, width, tied):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, width), nn.Linear(6, width), nn.Linear(width, 3)
        if tied:
            self.b.weight = self.a.weight

    def forward(self, x):
        return self.out(self.a(x).relu() + self.b(x).tanh())


class Idle(nn.Module):
    """A parameter that no operator uses."""

    def __init__(self, width):
        super().__init__()
        self.net, self.idle = stack(8), nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return self.net(x)


def by_sign(x):
    return x.relu() if x.sum() > 0 else x.tanh()


def middle(function, width=12):
    return Pair(Middle, (8, function), (width, function))


def sines(width):
    """Other values at every width: the first half are sines, the second cosines."""
    angles = torch.arange(width // 2, dtype=torch.float64) / width
    return torch.cat([angles.sin(), angles.cos()])


def kind(activation):
    return stack(8, activation=activation)


class Capped(nn.Module):
    """One square layer per bound."""

    def __init__(self, *bounds):
        super().__init__()
        layers = [part for bound in bounds for part in (nn.Linear(6, 6), nn.Hardtanh(0.0, bound))]
        self.layers, self.out = nn.Sequential(*layers), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.layers(x))


class PostNorm(nn.Module):
    """Blocks as the first transformer's."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch, self.norm = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)), nn.LayerNorm(6)

        def forward(self, x):
            return self.norm(x + self.branch(x))

    def __init__(self, depth):
        super().__init__()
        self.blocks, self.out = nn.Sequential(*(self.Block() for _ in range(depth))), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.blocks(x)).relu()


def trunk(shared):
    return TwoHeads(8) if shared else stack(8)


CASES = {
    "shrinks": (
        Pair(stack, (8,), (6,)),
        r"'0.weight' axis 0 \(and 2 more places\): source has 8 units, target has 6.*at least 8",
    ),
    "other activation": (Pair(kind, (nn.ReLU,), (nn.Tanh,)), r"aten.tanh.* in '1', where the source .* aten.relu"),
    "other layout": (
        Pair(trunk, (True,), (False,)),
        r"no place for the source's 'trunk', .* and 2 more \(11 tensors\).*rename=",
    ),
    "depth under tanh": (
        Pair(stack, (8, 8), (8, 8, 8), options={"activation": nn.Tanh}),
        r"new layers '4' change the function: .*aten.tanh.*0 never learns.*between two ReLUs.*not function-preserving",
    ),
    "depth behind a norm": (
        Pair(PostNorm, (1,), (2,)),
        r"new layers 'blocks.1' change the function: aten.native_layer_norm.default in 'blocks.1.norm' stands behind",
    ),
    "noise in eval mode": (
        middle(lambda x: x + torch.randn(x.shape, dtype=x.dtype)),
        r"aten.randn.default in the model's forward. It draws random numbers in eval mode too",
    ),
    "depth under a lower bound": (
        Pair(Capped, (20.0,), (20.0, 6.0)),
        r"new layers 'layers.2' change the function: the target computes aten.hardtanh",
    ),
    "softmax over units": (
        middle(lambda x: x.softmax(-1)),
        r"aten._softmax.* over 'into.weight' axis 0 \(8 -> 12\).*(?i:use a multiple of 8)",
    ),
    "roll": (middle(lambda x: x.roll(1, -1)), r"aten.roll.default in the model's forward goes by position along"),
    "sort": (middle(lambda x: x.sort(-1).values), r"aten.sort.* goes by position along 'into.weight' axis 0"),
    "fft": (middle(lambda x: torch.fft.fft(x).real), r"aten._fft_r2c.default .* goes by position along"),
    "no rule": (
        middle(lambda x: torch.linalg.svdvals(x).sum() + x),
        r"operator aten._linalg_svd.default has no rule.*'into.weight' axis 0 \(8 -> 12\).*@axis_rule",
    ),
    "an if on weights": (middle(by_sign), r"reads the content of a tensor that depends on weights.*torch.where"),
    "standard deviation of fresh units": (
        middle(lambda x: x.relu() / x.relu().std(-1, keepdim=True)),
        r"takes a std over 'into.weight' axis 0 \(8 -> 12\)",
    ),
    "heads swapped": (
        Pair(Heads, (4, 16), (8, 8), sequence),
        r"'qkv.weight' axis 0 \(and 1 more place\): .* as \(\(1\+1\+1\)\*8\*8\): one size grows at the cost of",
    ),
    "sines added in front of a norm": (
        middle(lambda x: torch.nn.functional.layer_norm(x + sines(x.shape[-1]), x.shape[-1:]), 16),
        r"in the model's forward takes its statistics over .*new entries of a constant that aten.cat.default in the "
        r"model's forward makes would change it",
    ),
    "rotary head size": (
        Pair(Rotary, (8, 2, 2, 4), (8, 2, 2, 6), sequence),
        r"has other values at the source's positions .*Take a multiple of the source's size",
    ),
    "slopes by heads": (Pair(Sloped, (2, 4), (3, 4), sequence), r"a constant used by aten.add.*has other values"),
    "tied in the target only": (Pair(Untied, (8, False), (12, True)), r"one tensor in the target and two in the"),
    "idle parameter": (Pair(Idle, (4,), (6,)), r"'idle' grows but no traced operator uses it.*forward="),
    "post-norm at 1.5": (
        Pair(Encoder, (8, 2, 12, 2, False), (12, 3, 12, 2, False), sequence),
        r"takes its statistics over .* \(8 -> 12\).*Use a multiple of 8",
    ),
    "post-norm depth": (
        Pair(Encoder, (8, 2, 12, 1, False), (8, 2, 12, 2, False), sequence),
        r"new layers 'encoder.layers.1.*change the function",
    ),
    "another eps": (
        Pair(lambda eps: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8, eps=eps)), (1e-5,), (1e-3,)),
        r"aten.native_layer_norm.default in '1', where eps is 1e-05 in the source and 0.001 in the target",
    ),
    "another constant": (
        Pair(lambda low: Middle(8, lambda x: x.clamp(low, 1.0)), (-1.0,), (0.5,)),
        r"aten.clamp.default .* uses the constant 0.5 where the source uses -1.0",
    ),
    "more outputs": (
        Pair(lambda count: nn.Linear(6, count), (3,), (5,)),
        r"output 0 grows along axis 1: the source has 3 .*allow_output_growth",
    ),
}


@pytest.mark.parametrize("strategy", ["preserve", "net2wider"])
@pytest.mark.parametrize(("pair", "message"), CASES.values(), ids=CASES)
def test_the_refusal_names_the_place_and_a_way_out(pair, message, strategy):
    source, target, inputs = pair.make()
    if strategy == "net2wider" and re.search("softmax|takes a (var|std)", message):
        message = r"over .* \(8 -> 12\).*(?i:use a multiple of 8)"
    with pytest.raises(RefusedGrowth, match=f"(?s){message}") as caught:
        grow(source, target, strategy=strategy, example_inputs=inputs)
    assert len(set(caught.value.refused)) == len(caught.value.refused)
    assert "the plan expected it to be exact" not in str(caught.value)  # the plan knew, before the numeric check


@pytest.mark.parametrize("case", ["roll", "softmax over units", "post-norm at 1.5"])
def test_the_plan_says_why_before_anything_runs(case):
    pair, message = CASES[case]
    source, target, inputs = pair.make()
    plan = plan_growth(source, target, example_inputs=inputs)
    assert plan.refused
    assert message.split(".*")[0].replace("\\", "")[:20] in " ".join(plan.refused).replace("\\", "")


def test_a_maximum_over_units_is_kept_by_copies():
    source, target, inputs = middle(lambda x: x - x.amax(-1, keepdim=True)).make()
    assert plan_growth(source, target, example_inputs=inputs).groups[0].mode == "copied"
    assert grow(source, target, example_inputs=inputs).max_output_error < 1e-14


def test_all_reasons_are_given_at_once():
    source, target, inputs = Pair(stack, (8, 9, 10, 11, 12), (7, 8, 9, 10, 11)).make()
    with pytest.raises(RefusedGrowth) as caught:
        grow(source, target, example_inputs=inputs)
    assert len(caught.value.refused) == 5
    assert str(caught.value).startswith(caught.value.refused[0])
    assert all(f"  - {reason}" in str(caught.value) for reason in caught.value.refused[1:4])


def test_inputs_grow_only_when_allowed():
    class Own(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.net, self.example_input_array = nn.Linear(size, 3), torch.ones(5, size)

        def forward(self, x):
            return self.net(x)

    with pytest.raises(RefusedGrowth, match=r"input 0 grows along axis 1: the source has 6 .* allow_input_growth=True"):
        grow(Own(6), Own(9))
    with pytest.warns(UserWarning, match="New inputs are taken to stand after the old ones: .* no input_names"):
        report = grow(Own(6), Own(9), allow_input_growth=True)
    assert report.function_preserving


def test_example_inputs_are_asked_for():
    with pytest.raises(RefusedGrowth, match=r"example_inputs=.*example_input_array"):
        grow(stack(8), stack(12))


def test_a_user_declares_an_operator():
    library = torch.library.custom_op("growtest::bend", mutates_args=(), schema="(Tensor x) -> Tensor")
    operator = library(lambda x: x * x.sigmoid())
    operator.register_fake(torch.empty_like)
    source, target, inputs = middle(torch.ops.growtest.bend).make()
    with pytest.raises(RefusedGrowth, match=r"operator growtest.bend.default has no rule.*@axis_rule"):
        grow(source, target, example_inputs=inputs)
    axis_rule("growtest::bend")(pointwise)
    try:
        assert grow(source, target, example_inputs=inputs).max_output_error < 1e-14
    finally:
        del RULES["growtest::bend"]


def test_the_numeric_check_catches_what_a_wrong_rule_lets_through():
    library = torch.library.custom_op("growtest::mean", mutates_args=(), schema="(Tensor x) -> Tensor")
    operator = library(lambda x: x - x.mean(-1, keepdim=True))
    operator.register_fake(torch.empty_like)
    source, target, inputs = middle(torch.ops.growtest.mean).make()
    axis_rule("growtest::mean")(pointwise)  # wrong: it is not pointwise
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    try:
        with pytest.raises(RefusedGrowth, match=r"differs from the source by .* of its output scale"):
            grow(source, target, example_inputs=inputs)
    finally:
        del RULES["growtest::mean"]
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())


def test_a_norm_behind_an_activation_needs_its_eps_changed():
    def build(width):
        return nn.Sequential(nn.Linear(6, width), nn.GELU(), nn.RMSNorm(width, eps=1e-2), nn.Linear(width, 3))

    source, target, inputs = Pair(build, (8,), (12,)).make()
    with pytest.raises(RefusedGrowth, match="allow_attribute_changes=True"):
        grow(source, target, example_inputs=inputs)
    assert target[2].eps == 1e-2
    report = grow(source, target, example_inputs=inputs, allow_attribute_changes=True)
    assert report.max_output_error < 1e-14
    assert report.attributes == {"2.eps": pytest.approx(1e-2 * 8 / 12)}
    assert target[2].eps == report.attributes["2.eps"]
    assert features()[0].shape == (5, 6)
