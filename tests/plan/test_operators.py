"""What the plan calls exact is exact: operators between two layers, grown unverified and compared on other inputs."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_grow import RefusedGrowth, grow

EXACT = 1e-12  # float64, a few dozen operations on outputs near 1


class Between(nn.Module):
    """Any function of the units between two linear layers."""

    def __init__(self, width, function):
        super().__init__()
        self.into, self.out, self.function = nn.Linear(6, width), nn.Linear(width, 3), function

    def forward(self, x):
        return self.out(self.function(self.into(x)))


def batch(size, seed):
    return torch.randn(size, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def grown_error(function, width, strategy, size=1.0):
    """Grow 8 units to `width` without the library's own check, and compare on inputs `size` as large, never seen."""
    torch.manual_seed(0)
    source, target = Between(8, function).double(), Between(width, function).double()
    grow(source, target, strategy=strategy, example_inputs=(batch(5, 1),), verify=False)
    with torch.no_grad():
        old, new = source(batch(9, 2) * size), target(batch(9, 2) * size)
    return float((new - old).abs().max() / old.abs().max())


EDGES = torch.tensor([0, 2, 1, 0])


def less_mean(x):
    return x - x.mean(-1, keepdim=True)


def if_any_is_set(x):
    result, rows = x * 1, x[:, :2].sum(-1) > 0
    if rows.any():
        result[rows] += x[rows].tanh()
    return result


def write_halves(x):
    first, second = (x * 1).chunk(2, 0)
    first.mul_(3.0)
    return torch.cat([second, first])


def with_entries(x, write):
    x = x * 1
    write(x)
    return x


KEPT = {
    "number put at places": lambda x: with_entries(x, lambda y: y.__setitem__((torch.arange(3), slice(None)), 0.5)),
    "number put where a mask says": lambda x: with_entries(x, lambda y: y.__setitem__(y > 0.1, 0.5)),
    "number put in rows of a mask": lambda x: with_entries(x, lambda y: y.__setitem__(y[:, 0] > 0.1, 0.5)),
    "number put in given rows": lambda x: with_entries(x, lambda y: y.__setitem__(torch.arange(len(y)) < 2, 0.5)),
    "distances": lambda x: x * torch.cdist(x, x).mean(-1, keepdim=True),
    "codebook": lambda x: x + x[:4][torch.cdist(x, x[:4]).argmin(-1)],
    "turned in pairs": lambda x: torch.view_as_real(
        torch.view_as_complex(x.view(len(x), -1, 2)) * torch.polar(torch.ones(1), torch.ones(1)).to(torch.complex128)
    ).flatten(1),
    "rank in the batch": lambda x: x - x.kthvalue(2, 0, keepdim=True).values + x.median(0).values,
    "windows over the batch": lambda x: torch.cat([x.unfold(0, 2, 1).sum(-1), x[:1]]),
    "solved by the batch": lambda x: torch.linalg.solve(torch.eye(len(x)).to(x) + torch.ones(len(x), 1).to(x), x),
    "inverse": lambda x: torch.linalg.inv(x @ x.t() + torch.eye(len(x)).to(x)) @ x,
    "numbers put into the batch": lambda x: x.scatter(0, EDGES[:3, None].expand(3, x.shape[1]), 0.5),
    "rows of a mask": lambda x: x.masked_fill(x[:, :1] > 0, 0.0).index_put((x[:, 0] > 0,), x[x[:, 0] > 0] * 2),
    "only where there are any": lambda x: if_any_is_set(x),
    "written through halves": lambda x: write_halves(x),
    "softplus": F.softplus,
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "round": lambda x: x.round(),
    "where": lambda x: torch.where(x > 0.1, x, x * x),
    "masked_fill": lambda x: x.masked_fill(x < 0, -1.0),
    "lerp": lambda x: torch.lerp(x, x * x, 0.3),
    "power of a magnitude": lambda x: x.abs().pow(1.5),
    "in place": lambda x: x.relu_().mul_(2.0),
    "both signs": lambda x: torch.cat([x.relu(), (-x).relu()], -1)[..., : x.shape[-1]],
    "first units": lambda x: x * x[:, :3].sum(-1, keepdim=True),
    "fixed part": lambda x: torch.cat([x[:, :4] * 2, x[:, 4:]], -1),
    "every second of pairs": lambda x: torch.stack([x, x * 2], -1).flatten(-2)[..., ::2],
    "unit vectors": lambda x: F.normalize(x, dim=-1),
    "sum": lambda x: x * x.sum(-1, keepdim=True).sigmoid(),
    "mean": lambda x: x * x.mean(-1, keepdim=True).tanh(),
    "less its mean": lambda x: x - x.mean(-1, keepdim=True),
    "1-norm": lambda x: x / (x.abs().sum(-1, keepdim=True) + 1),
    "2-norm": lambda x: x / (x.norm(dim=-1, keepdim=True) + 1),
    "maximum norm": lambda x: x / (x.abs().amax(-1, keepdim=True) + 1),
    "1-norm by torch": lambda x: F.normalize(x, p=1, dim=-1),
    "3-norm": lambda x: x / (x.norm(3, dim=-1, keepdim=True) + 1),
    "unbiased variance": lambda x: x / (x.var(-1, keepdim=True) + 0.1),
    "unbiased deviation": lambda x: (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 0.1),
    "deviation times the variance": lambda x: x * x.std(-1, keepdim=True, unbiased=False) * x.var(-1, keepdim=True),
    "twice corrected": lambda x: x * torch.std(x, -1, correction=2, keepdim=True),
    "variance and mean": lambda x: (
        (x - torch.var_mean(x, -1, keepdim=True)[1]) * torch.var_mean(x, -1, keepdim=True)[0]
    ),
    "biased deviation": lambda x: (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True, unbiased=False) + 0.1),
    "sum of squares over their number": lambda x: x * (x * x).sum(-1, keepdim=True) * x.shape[-1] ** -0.5,
    "root of the width": lambda x: x * math.sqrt(x.shape[-1]),
    "products of the batch": lambda x: (x @ x.t()) @ x,
    "variance of the batch": lambda x: x / (x.var(0, keepdim=True) + 1),
    "softmax over the batch": lambda x: x.softmax(0),
    "rows added": lambda x: torch.zeros_like(x).index_add(0, EDGES, x[:4]),
    "rows scattered": lambda x: torch.zeros_like(x).scatter_add(0, EDGES[:, None].expand(4, x.shape[-1]), x[:4]),
    "rows added to others": lambda x: x.tanh().index_add(0, EDGES, x[:4]),
    "rows added, less the mean": lambda x: less_mean(x + torch.zeros_like(x).index_add(0, EDGES, x[:4])),
    "largest of rows": lambda x: torch.zeros_like(x).scatter_reduce(
        0, EDGES[:, None].expand(4, x.shape[-1]), x[:4], "amax", include_self=False
    ),
    "mean of rows": lambda x: less_mean(
        torch.zeros_like(x).scatter_reduce(0, EDGES[:, None].expand(4, x.shape[-1]), x[:4], "mean", include_self=False)
    ),
    "one entry of each row": lambda x: (
        x.tanh()[:, None].repeat(1, 2, 1).index_put((torch.arange(4), EDGES[:4] % 2), x[:4]).sum(1)
    ),
    "rows put": lambda x: torch.zeros_like(x).index_put((EDGES[:3],), x[:3]),
    "rows put and scaled": lambda x: (
        torch.zeros_like(x).index_put((EDGES,), x[:4], accumulate=True).norm(dim=-1, keepdim=True) * x
    ),
    "groups of two": lambda x: F.group_norm(x, x.shape[-1] // 2),
    "softmax in groups": lambda x: x.view(len(x), -1, 4).softmax(-1).flatten(1),
    "gated halves": lambda x: torch.cat([F.glu(x)] * 2, -1),
    "halves turned": lambda x: torch.cat([-x[:, x.shape[1] // 2 :], x[:, : x.shape[1] // 2]], -1),
    "odd after even": lambda x: torch.cat([x[:, ::2], x[:, 1::2]], -1),
    "transposed inside": lambda x: x.view(len(x), 4, -1).transpose(1, 2).flatten(1),
}
KEPT_BY_ONE = {  # (function, strategy, width): what only fresh units, or only copies, can keep
    "positions, fresh units": (lambda x: x * torch.arange(x.shape[-1]), "preserve", 12),
    "a triangle, fresh units": (lambda x: x @ torch.ones(x.shape[-1], x.shape[-1]).to(x).triu(), "preserve", 12),
    "norm of a group, copies": (lambda x: F.group_norm(x, 2), "net2wider", 16),
    "softmax, copies": (lambda x: x.softmax(-1), "net2wider", 16),
    "maximum, copies": (lambda x: x - x.amax(-1, keepdim=True), "net2wider", 16),
    "unsqueeze_": (lambda x: x.relu().unsqueeze_(1).squeeze(1), "preserve", 12),
    "unsqueeze_, then one more axis": (
        lambda x: (x.relu().unsqueeze_(-1) * torch.ones(2).to(x)).sum(-1),
        "net2wider",
        12,
    ),
    "vmap": (lambda x: torch.vmap(torch.tanh)(x), "preserve", 12),
}


@pytest.mark.parametrize(("strategy", "width"), [("preserve", 12), ("net2wider", 16)])
@pytest.mark.parametrize("function", KEPT.values(), ids=KEPT)
def test_the_plan_alone_keeps_the_function(function, strategy, width):
    assert grown_error(function, width, strategy) <= EXACT


@pytest.mark.parametrize(("function", "strategy", "width"), KEPT_BY_ONE.values(), ids=KEPT_BY_ONE)
def test_the_plan_keeps_what_one_strategy_can_keep(function, strategy, width):
    assert grown_error(function, width, strategy) <= EXACT


SATURATING = {
    "relu6": F.relu6,
    "both bounds": lambda x: x.clamp(-8, 8),
    "a bound far below": lambda x: x.clamp(min=-50),
    "remainder": lambda x: x.fmod(10),
    "threshold": lambda x: torch.where(x > 7, x, -x),
    "tensor bound": lambda x: x.minimum(torch.tensor(9.0, dtype=x.dtype)),
    "whole numbers": lambda x: x.long().to(x.dtype),
}
SCALED = {
    "mean": lambda x: x * x.mean(-1, keepdim=True),
    "layer norm": lambda x: F.layer_norm(x, x.shape[-1:]),
}


@pytest.mark.parametrize("behind", SCALED.values(), ids=SCALED)
@pytest.mark.parametrize("function", SATURATING.values(), ids=SATURATING)
def test_no_factor_or_mean_is_sent_through_what_saturates(function, behind):
    for size in (1.0, 50.0):
        try:
            error = grown_error(lambda x: behind(function(x)), 12, "preserve", size)
        except RefusedGrowth:
            continue
        assert error <= EXACT


def set_slice(x):
    x = x.clone()
    x[:, :4] = 0.0
    return x


UNLIKE = {  # constants that differ from one copy to the next
    "positions": lambda x: x * torch.arange(x.shape[-1]),
    "identity matrix": lambda x: x @ torch.eye(x.shape[-1]).to(x),
    "triangle": lambda x: x @ torch.ones(x.shape[-1], x.shape[-1]).to(x).tril(),
    "cosines": lambda x: x * (x[:, :1].detach() * 0 + torch.arange(1, x.shape[-1] + 1)).cos(),
    "a slice set to 0": set_slice,
}


@pytest.mark.parametrize("function", UNLIKE.values(), ids=UNLIKE)
def test_what_the_plan_cannot_keep_with_copies_it_refuses(function):
    try:
        error = grown_error(function, 16, "net2wider")
    except RefusedGrowth:
        return
    assert error <= EXACT


def with_fixed(x, statistic):
    """Copied units beside ones that do not grow."""
    joined = torch.cat([x, torch.ones(len(x), 3).to(x) * x[:, :1]], -1)
    return x * statistic(joined)


BESIDE_OTHERS = {
    "mean": lambda x: with_fixed(x, lambda item: item.mean(-1, keepdim=True)),
    "variance": lambda x: with_fixed(x, lambda item: item.var(-1, keepdim=True)),
    "sum of two kinds": lambda x: x * torch.cat([x[:, : x.shape[1] // 2], x], -1).sum(-1, keepdim=True),
    "norm": lambda x: with_fixed(x, lambda item: item.norm(dim=-1, keepdim=True)),
}


@pytest.mark.parametrize("strategy", ["preserve", "net2wider"])
@pytest.mark.parametrize("function", BESIDE_OTHERS.values(), ids=BESIDE_OTHERS)
def test_a_statistic_over_units_of_several_kinds_is_kept_or_refused(function, strategy):
    try:
        error = grown_error(function, 16, strategy)
    except RefusedGrowth:
        return
    assert error <= EXACT


REFUSED_COPIES = {
    "product": lambda x: x * x.prod(-1, keepdim=True),
    "logsumexp": lambda x: x * x.logsumexp(-1, keepdim=True),
    "argmax": lambda x: x * x.argmax(-1, keepdim=True),
}


@pytest.mark.parametrize("strategy", ["preserve", "net2wider"])
@pytest.mark.parametrize("function", REFUSED_COPIES.values(), ids=REFUSED_COPIES)
def test_what_copies_change_is_refused_by_the_plan(function, strategy):
    with pytest.raises(RefusedGrowth, match=r"over 'into.weight' axis 0 \(8 -> 16\).*would change it. Keep this size"):
        grown_error(function, 16, strategy)


class Beside(Between):
    """A second way from the input to the output, on which nothing grows."""

    def __init__(self, width, meets):
        super().__init__(width, torch.tanh)
        self.meets = meets

    def forward(self, x):
        return super().forward(x) + self.meets(x).sum()


BESIDE = {
    "svdvals": lambda x: torch.linalg.svdvals(x[:3, :3]),
    "median": lambda x: x.median(-1).values,
    "bucketize": lambda x: torch.bucketize(x, torch.linspace(-1, 1, 3, dtype=x.dtype)),
    "scatter": lambda x: torch.zeros(5, 6).to(x).scatter(1, torch.arange(6).expand(5, 6), x),
    "noise": lambda x: x + torch.randn_like(x),
    "noise of its own size": lambda x: x[:, :3] * torch.rand(3).to(x),
    "dropout at any time": lambda x: F.dropout(x, 0.5, training=True),
}


@pytest.mark.parametrize("strategy", ["preserve", "net2wider"])
@pytest.mark.parametrize("meets", BESIDE.values(), ids=BESIDE)
def test_any_operator_is_kept_where_nothing_grows(meets, strategy):
    torch.manual_seed(0)
    source, target = Beside(8, meets).double(), Beside(12, meets).double()
    assert grow(source, target, strategy=strategy, example_inputs=(batch(5, 1),)).max_output_error <= EXACT


class Weighed(nn.Module):
    """Some numbers in one parameter, taken one by one."""

    def __init__(self, width, take):
        super().__init__()
        self.into, self.out, self.alpha, self.take = nn.Linear(6, width), nn.Linear(width, 3), nn.Parameter(W), take

    def forward(self, x):
        return self.out(self.into(x).tanh() * self.take(self.alpha))


W = torch.tensor([0.5, 2.0, -1.0])
ONE = {
    "an index": lambda alpha: alpha[0] + alpha[-1],
    "unpacking": lambda alpha: math.prod(alpha),
    "the first of a piece": lambda alpha: alpha[1:][0],
    "a stack of them": lambda alpha: torch.stack([alpha[1], alpha[0]]).sum(),
    "an index tensor": lambda alpha: alpha[torch.tensor(1)] * alpha[torch.tensor([2])],
    "torch.take": lambda alpha: torch.take(alpha, torch.tensor([0, 2])).sum(),
    "of a matrix": lambda alpha: torch.outer(alpha, alpha)[0][1],
}


@pytest.mark.parametrize("width", [8, 12])
@pytest.mark.parametrize("take", ONE.values(), ids=ONE)
def test_one_entry_of_a_vector_has_no_axis(take, width):
    source, target = Weighed(8, take).double(), Weighed(width, take).double()
    assert grow(source, target, example_inputs=(batch(5, 1),)).max_output_error <= EXACT


def test_packed_sequences_are_followed():
    class Packed(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.rnn, self.out = nn.LSTM(6, width, batch_first=True), nn.Linear(width, 3)

        def forward(self, x, lengths):
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
            return self.out(self.rnn(packed)[1][0][-1])

    inputs = torch.randn(3, 7, 6, dtype=torch.float64), torch.tensor([7, 5, 3])
    assert grow(Packed(4).double(), Packed(6).double(), example_inputs=inputs).max_output_error <= EXACT


@pytest.mark.parametrize("strategy", ["preserve", "net2wider"])
@pytest.mark.parametrize("draw", [torch.randn_like, lambda x: F.dropout(x, 0.5, training=True), torch.rand_like])
def test_random_numbers_for_new_units_shift_those_of_the_others(draw, strategy):
    with pytest.raises(RefusedGrowth, match="the two models differ: the target computes aten"):
        grown_error(lambda x: x + draw(x), 12, strategy)


class Quantised(nn.Module):
    """Takes the nearest row of a table, and says which one if it is asked to."""

    def __init__(self, codes, says):
        super().__init__()
        self.into, self.codes, self.out, self.says = nn.Linear(6, 4), nn.Embedding(codes, 4), nn.Linear(4, 3), says

    def forward(self, x):
        place = torch.cdist(self.into(x), self.codes.weight).argmin(-1)
        quantised = self.out(self.codes(place.view(-1)))
        return (quantised, place) if self.says else quantised


def test_more_rows_to_choose_from_begin_as_copies_unless_the_choice_is_told():
    x = torch.randn(40, 6, dtype=torch.float64)
    source, target = (Quantised(codes, False).double() for codes in (5, 8))
    assert grow(source, target, example_inputs=(x,)).max_output_error <= EXACT
    assert torch.equal(target.codes.weight[5:], source.codes.weight[:3])
    source, target = (Quantised(codes, True).double() for codes in (5, 8))  # equal rows: rounding chooses between them
    with pytest.raises(RefusedGrowth, match=r"argmin.* runs over 'codes.weight' axis 0 \(5 -> 8\).* Keep this size"):
        grow(source, target, example_inputs=(x,))


class Positions(nn.Module):
    """Heads that look positions up by what they compute themselves (contextual position encodings)."""

    def __init__(self, heads):
        super().__init__()
        self.into, self.out, self.heads = nn.Linear(6, 4 * heads), nn.Linear(4 * heads, 3), heads

    def forward(self, x):
        each = self.into(x).view(len(x), self.heads, 4)
        places = (each.sigmoid() * 3).long()
        return self.out(each.gather(-1, places).flatten(1))


@pytest.mark.parametrize("strategy", ["preserve", "net2wider"])
def test_new_heads_go_by_positions_of_their_own(strategy):
    x = torch.randn(5, 6, dtype=torch.float64)
    source, target = (Positions(heads).double() for heads in (2, 3))
    report = grow(source, target, strategy=strategy, example_inputs=(x,))
    assert report.max_output_error <= EXACT


class Indexed(nn.Module):
    """Goes by positions that a wider layer computes."""

    def __init__(self, width):
        super().__init__()
        self.into, self.mid, self.out = nn.Linear(6, width), nn.Linear(width, 4), nn.Linear(4, 3)

    def forward(self, x):
        places = (self.mid(self.into(x)).sigmoid() * 3).long()
        return self.out(x[:, :4].gather(-1, places))


def test_positions_that_are_kept_are_gone_by():
    x = torch.randn(5, 6, dtype=torch.float64)
    source, target = (Indexed(width).double() for width in (8, 12))
    assert grow(source, target, example_inputs=(x,)).max_output_error <= EXACT
