"""An argument that differs is refused by the plan itself, which names the operator, the place and both values."""

import re

import pytest
import torch
import torch.nn.functional as F
from models import features
from torch import nn

from lightning_grow import RefusedGrowth, grow, plan_growth

SOUND = (torch.randn(5, 3, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64),)


class Apply(nn.Module):
    """A function as a module, so that it has a place."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, y):
        return self.function(y)


class Net(nn.Module):
    """Channels by steps, with any module between two convolutions."""

    def __init__(self, width, middle):
        super().__init__()
        self.into, self.middle, self.out = nn.Conv1d(3, width, 3, padding=1), middle, nn.Conv1d(width, 2, 1)

    def forward(self, x):
        return self.out(self.middle(self.into(x).tanh()))


def refused(old, new, width):
    """What the plan refuses where `old` (width -> module) has become `new`, from 4 channels to `width`."""
    torch.manual_seed(0)
    source, target = Net(4, old(4)).double(), Net(width, new(width)).double()
    return plan_growth(source, target, example_inputs=SOUND).refused


def says(reason, operator, argument, old, new):
    """Whether a reason names all of them, the values after their argument."""
    values = "".join(rf"(?=.*(?<![\w.-]){re.escape(str(value))}(?!\w|\.\d))" for value in (old, new))
    return re.search(f"(?s)(?:{operator}).*'middle[.0]*'", reason) and re.search(
        rf"(?s)\b(?:{argument})\b{values}", reason
    )


def conv(**options):
    return lambda width: nn.Conv1d(width, width, 3, **options)


def call(function, *args, **options):
    return lambda width: Apply(lambda y: function(y, *args, **options))


def build(kind, *args, **options):
    return lambda width: kind(*args, **options)


CHANGED = {  # (module of the source, module of the target, operator, argument, value there, value here)
    "dilation": (conv(padding=1), conv(padding=2, dilation=2), "convolution", "dilation", 1, 2),
    "padding": (conv(padding=1), conv(padding=2), "convolution", "padding", 1, 2),
    "padding with its kernel": (
        lambda width: nn.Conv1d(width, width, 3, padding=1),
        lambda width: nn.Conv1d(width, width, 5, padding=2),
        "convolution",
        "padding",
        1,
        2,
    ),
    "kernel": (
        lambda width: nn.Conv1d(width, width, 1),
        lambda width: nn.Conv1d(width, width, 3),
        "convolution",
        r"kernel|weight",
        1,
        3,
    ),
    "stride": (conv(padding=1), conv(padding=1, stride=2), "convolution", "stride", 1, 2),
    "stride, same sizes": (
        lambda width: nn.Sequential(nn.Conv1d(width, width, 1), nn.AdaptiveAvgPool1d(4)),
        lambda width: nn.Sequential(nn.Conv1d(width, width, 1, stride=2), nn.AdaptiveAvgPool1d(4)),
        "convolution",
        "stride",
        1,
        2,
    ),
    "roll": (call(torch.roll, 1, 2), call(torch.roll, 2, 2), "roll", "shifts", 1, 2),
    "rolled axis": (call(torch.roll, 1, 2), call(torch.roll, 1, 0), "roll", "dims", 2, 0),
    "maximum pool": (build(nn.MaxPool1d, 3, 1, 1), build(nn.MaxPool1d, 5, 1, 2), "max_pool", "kernel_size", 3, 5),
    "average pool": (build(nn.AvgPool1d, 3, 1, 1), build(nn.AvgPool1d, 5, 1, 2), "avg_pool", "kernel_size", 3, 5),
    "what an average counts": (
        build(nn.AvgPool1d, 3, 1, 1),
        build(nn.AvgPool1d, 3, 1, 1, count_include_pad=False),
        "avg_pool",
        "count_include_pad",
        True,
        False,
    ),
    "pooled grid": (build(nn.AdaptiveAvgPool1d, 4), build(nn.AdaptiveAvgPool1d, 6), "avg_pool", "output_size", 4, 6),
    "softmax": (build(nn.Softmax, 2), build(nn.Softmax, 0), "softmax", "dim", 2, 0),
    "log softmax": (build(nn.LogSoftmax, 2), build(nn.LogSoftmax, 0), "log_softmax", "dim", 2, 0),
    "sort": (
        call(lambda y: y.sort(2).values),
        call(lambda y: y.sort(2, descending=True).values),
        "sort",
        "descending",
        False,
        True,
    ),
    "top k": (
        call(lambda y: y.topk(3, 2).values),
        call(lambda y: y.topk(3, 2, largest=False).values),
        "topk",
        "largest",
        True,
        False,
    ),
    "upsampling": (
        build(nn.Upsample, scale_factor=2),
        build(nn.Upsample, scale_factor=3),
        "upsample_nearest",
        "output_size",
        24,
        36,
    ),
    "corners": (
        build(nn.Upsample, 24, mode="linear"),
        build(nn.Upsample, 24, mode="linear", align_corners=True),
        "upsample_linear",
        "align_corners",
        False,
        True,
    ),
    "GELU": (build(nn.GELU), build(nn.GELU, "tanh"), "gelu", "approximate", "none", "tanh"),
    "LayerNorm": (
        build(nn.LayerNorm, 12, eps=1e-5),
        build(nn.LayerNorm, 12, eps=1e-3),
        "layer_norm",
        "eps",
        1e-5,
        1e-3,
    ),
    "BatchNorm": (
        lambda width: nn.BatchNorm1d(width, eps=1e-5),
        lambda width: nn.BatchNorm1d(width, eps=1e-3),
        "batch_norm",
        "eps",
        1e-5,
        1e-3,
    ),
    "GroupNorm": (
        lambda width: nn.GroupNorm(width // 2, width, eps=1e-5),
        lambda width: nn.GroupNorm(width // 2, width, eps=1e-3),
        "group_norm",
        "eps",
        1e-5,
        1e-3,
    ),
    "running sum": (call(torch.cumsum, 2), call(torch.cumsum, 0), "cumsum", "dim", 2, 0),
    "running product": (call(torch.cumprod, 2), call(torch.cumprod, 0), "cumprod", "dim", 2, 0),
    "flip": (call(torch.flip, (2,)), call(torch.flip, (0,)), "flip", "dims", 2, 0),
    "slice offset": (call(lambda y: y[..., :10]), call(lambda y: y[..., 1:11]), "slice", "start", 0, 1),
    "slice step": (call(lambda y: y[..., :6]), call(lambda y: y[..., ::2]), "slice", "step", 1, 2),
    "one step": (call(lambda y: y[..., 0, None]), call(lambda y: y[..., 5, None]), "select", "index", 0, 5),
    "pad": (call(F.pad, (1, 0)), call(F.pad, (0, 1)), "pad", "pad", 1, 0),
    "pad's value": (call(F.pad, (1, 0), value=0.5), call(F.pad, (1, 0), value=0.75), "pad", "value", 0.5, 0.75),
    "lower bound": (call(torch.clamp, -0.5, 0.3), call(torch.clamp, -0.75, 0.3), "clamp", "min", -0.5, -0.75),
    "lower bound, by hardtanh": (
        call(F.hardtanh, -0.5, 0.3),
        call(F.hardtanh, -0.4, 0.3),
        "hardtanh",
        "min_val",
        -0.5,
        -0.4,
    ),
    "triangle": (call(torch.tril), call(torch.tril, 1), "tril", "diagonal", 0, 1),
    "dropped bias": (
        lambda width: Added(width, 1),
        lambda width: Added(width, 0),
        "addmm|baddbmm",
        "beta",
        1,
        0,
    ),
}


class Added(nn.Module):
    """A product of steps, and a bias `beta` times."""

    def __init__(self, width, beta):
        super().__init__()
        self.weight, self.bias, self.beta = nn.Parameter(torch.eye(12)), nn.Parameter(torch.ones(12)), beta

    def forward(self, y):
        return torch.addmm(self.bias, y.flatten(0, 1), self.weight, beta=self.beta).view_as(y)


@pytest.mark.parametrize("width", [6, 4], ids=["wider", "equal shapes"])
@pytest.mark.parametrize(("old", "new", "operator", "argument", "there", "here"), CHANGED.values(), ids=CHANGED)
def test_the_plan_names_the_argument_that_differs(old, new, operator, argument, there, here, width):
    assert not refused(old, old, width)
    reasons = refused(old, new, width)
    # a step cuts the axis otherwise, which shows where the axis is made
    assert any(says(item, operator, argument, there, here) or "uses its 12 positions" in item for item in reasons), (
        reasons
    )


OTHER_OPERATOR = {
    "padding mode": (call(F.pad, (1, 1), "reflect"), call(F.pad, (1, 1), "replicate"), "reflection", "replication"),
    "interpolation": (
        build(nn.Upsample, scale_factor=2),
        build(nn.Upsample, scale_factor=2, mode="linear"),
        "upsample_nearest1d",
        "upsample_linear1d",
    ),
    "kind of pool": (build(nn.MaxPool1d, 3, 1, 1), build(nn.AvgPool1d, 3, 1, 1), "max_pool", "avg_pool"),
}


@pytest.mark.parametrize("width", [6, 4], ids=["wider", "equal shapes"])
@pytest.mark.parametrize(("old", "new", "there", "here"), OTHER_OPERATOR.values(), ids=OTHER_OPERATOR)
def test_the_plan_names_the_operator_that_differs(old, new, there, here, width):
    reasons = refused(old, new, width)
    assert any(re.search(f"(?s){here}.*'middle'.*{there}", reason) for reason in reasons), reasons


SAME = {  # other numbers for the same thing
    "the last axis by its number": (build(nn.Softmax, -1), build(nn.Softmax, 2)),
    "flipped axis": (call(torch.flip, (-1,)), call(torch.flip, (2,))),
    "rolled axis": (call(torch.roll, 1, -1), call(torch.roll, 1, 2)),
    "summed axis": (call(lambda y: y - y.mean(-1, keepdim=True)), call(lambda y: y - y.mean(2, keepdim=True))),
    "end of a slice": (call(lambda y: y[..., 2:]), call(lambda y: y[..., 2:12])),
    "a slice from the end": (call(lambda y: y[..., :-2]), call(lambda y: y[..., :10])),
    "the last step": (call(lambda y: y[..., -1, None]), call(lambda y: y[..., 11, None])),
    "momentum in evaluation": (
        lambda width: nn.BatchNorm1d(width, momentum=0.1),
        lambda width: nn.BatchNorm1d(width, momentum=0.2),
    ),
    "joined axis": (
        call(lambda y: torch.cat([y, y], -1)),
        call(lambda y: torch.cat([y, y], 2)),
    ),
}


@pytest.mark.parametrize("width", [6, 4], ids=["wider", "equal shapes"])
@pytest.mark.parametrize(("old", "new"), SAME.values(), ids=SAME)
def test_the_same_thing_by_other_numbers_is_no_difference(old, new, width):
    assert not refused(old, new, width)


class Grid(nn.Module):
    """A pooled grid, flattened: a size that no parameter names."""

    def __init__(self, grid):
        super().__init__()
        self.body, self.pool, self.head = nn.Conv1d(3, 4, 3), nn.AdaptiveAvgPool1d(grid), nn.Linear(4 * grid, 2)

    def forward(self, x):
        return self.head(self.pool(self.body(x).tanh()).flatten(1))


@pytest.mark.parametrize(("old", "new"), [(2, 4), (2, 3), (4, 6)])
def test_a_grid_that_grows_is_refused_where_it_is_pooled(old, new):
    plan = plan_growth(Grid(old).double(), Grid(new).double(), example_inputs=SOUND)
    assert any(re.search(rf"avg_pool.*'pool'.*output_size.*\b{old}\b.*\b{new}\b", item) for item in plan.refused), plan


class Tokens(nn.Module):
    """MLP-Mixer's token mixing by a convolution: its window runs along the channels."""

    def __init__(self, width, kernel):
        super().__init__()
        self.into, self.out = nn.Linear(12, width), nn.Linear(width, 3)
        self.mix = nn.Conv1d(3, 3, kernel, padding=kernel // 2)

    def forward(self, x):
        return self.out(self.mix(self.into(x)))


def test_a_window_along_a_growing_axis_is_refused():
    pair = Tokens(8, 3).double(), Tokens(16, 3).double()
    reasons = plan_growth(*pair, example_inputs=SOUND).refused
    assert any(re.search(r"convolution.*'mix'.*'into.weight' axis 0 \(8 -> 16\)", item) for item in reasons), reasons


def test_a_window_of_one_goes_along_any_axis():
    pair = Tokens(8, 1).double(), Tokens(16, 1).double()
    assert not plan_growth(*pair, example_inputs=SOUND).refused


class Cut(nn.Module):
    """A piece of an interpolated signal, weighed by a distribution over the input's steps."""

    def __init__(self, width, start):
        super().__init__()
        self.into, self.out, self.start = nn.Conv1d(3, width, 3, padding=1), nn.Linear(width, 2), start

    def forward(self, x):
        y = F.interpolate(self.into(x), scale_factor=2)[..., self.start : self.start + 12]
        return self.out((y * F.softmax(x.mean(1, keepdim=True), -1)).transpose(1, 2))


@pytest.mark.parametrize("width", [6, 4], ids=["wider", "equal shapes"])
def test_another_offset_of_a_piece_is_refused(width):
    assert not plan_growth(Cut(4, 0), Cut(width, 0), example_inputs=(SOUND[0].float(),)).refused
    reasons = plan_growth(Cut(4, 0), Cut(width, 3), example_inputs=(SOUND[0].float(),)).refused
    assert any("aten.slice.Tensor" in item and "start is 0 in the source and 3" in item for item in reasons), reasons


PLACES = {
    "select": (lambda y, places: y.index_select(2, places)),
    "index": (lambda y, places: y[..., places]),
    "gather": (lambda y, places: y.gather(2, places.expand(*y.shape[:2], -1))),
}


@pytest.mark.parametrize("width", [6, 4], ids=["wider", "equal shapes"])
@pytest.mark.parametrize("take", PLACES.values(), ids=PLACES)
def test_the_content_of_an_index_is_compared(take, width):
    first, second = (call(lambda y, start=start: take(y, torch.arange(start, 9, 2))) for start in (0, 1))
    assert not refused(first, first, width)
    reasons = refused(first, second, width)
    assert any(re.search(r"(index|gather).*'middle'|uses its 12 positions", reason) for reason in reasons), reasons


class Doubled(nn.Linear):
    """Twice the product, and the bias."""

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight.t(), alpha=2)


def test_a_new_layer_is_the_identity_by_its_arguments_too():
    def build(depth):
        layers = [part for _ in range(depth) for part in (Doubled(6, 6), nn.ReLU())]
        return nn.Sequential(*layers, nn.Linear(6, 3)).double()

    source, target, x = build(1), build(2), torch.randn(5, 6, dtype=torch.float64)
    try:
        grow(source, target, example_inputs=(x,), verify=False)
    except RefusedGrowth:
        return
    assert torch.allclose(source(x), target(x), rtol=0, atol=1e-12)  # float64, a dozen operations


class Flat(nn.Module):
    """Three parts of `width` units, cut out of one flat axis that two axes were merged into."""

    def __init__(self, width, cut):
        super().__init__()
        self.width, self.cut = width, cut
        self.into, self.out = nn.Linear(6, 3 * width), nn.Linear(len(range(*cut)) * width, 2)

    def forward(self, x):
        parts = self.into(x).view(len(x), 3, self.width).tanh().reshape(len(x), -1)
        first, last = (number * self.width for number in self.cut)
        return self.out(parts[:, first:last])


@pytest.mark.parametrize("cut", [(0, 1), (1, 2), (1, 3), (0, 2), (2, 3)])
@pytest.mark.parametrize("strategy", ["preserve", "net2wider"])
def test_a_cut_at_whole_parts_of_a_merged_axis_is_explained_by_it(cut, strategy):
    source, target = Flat(4, cut).double(), Flat(6, cut).double()
    grow(source, target, strategy=strategy, example_inputs=features())
    torch.testing.assert_close(target(*features()), source(*features()))


@pytest.mark.parametrize(("old", "new"), [((0, 1), (1, 2)), ((1, 3), (0, 2))])
def test_a_cut_at_other_parts_is_refused(old, new):
    plan = plan_growth(Flat(4, old).double(), Flat(6, new).double(), example_inputs=features())
    assert "aten.slice" in plan.refused[0]
