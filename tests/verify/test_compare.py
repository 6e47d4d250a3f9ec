"""Outputs are compared by what rounding alone does to each of them."""

import copy

import pytest
import torch
from models import features, stack
from torch import nn

from lightning_grow import grow
from lightning_grow.verify.compare import compare, output_error
from lightning_grow.verify.rounding import Moved
from lightning_grow.verify.run import outputs

NAN, INF = float("nan"), float("inf")
ERRORS = {
    "equal": ([[2.0, 4.0]], [[2.0, 4.0]], 0.0),
    "relative to the largest": ([[2.0, 4.0]], [[2.0, 5.0]], 0.25),
    "the worst of several": ([[2.0], [10.0]], [[2.0], [15.0]], 0.5),
    "new positions are left out": ([[2.0, 4.0]], [[2.0, 4.0, 99.0]], 0.0),
    "the same not finite": ([[1.0, INF, NAN]], [[1.0, INF, NAN]], 0.0),
    "no longer finite": ([[1.0, 2.0]], [[1.0, NAN]], INF),
    "finite at last": ([[1.0, INF]], [[1.0, 2.0]], INF),
    "other integers": ([[1, 2]], [[1, 3]], 1.0),
    "equal integers": ([[1, 2]], [[1, 2]], 0.0),
    "nothing to compare": ([[]], [[]], 0.0),
    "the same not finite in one part": ([[complex(INF, 1), 2j]], [[complex(INF, 1), 2j]], 0.0),
    "another finite part": ([[complex(INF, 1), 2j]], [[complex(INF, 2), 2j]], INF),
}


@pytest.mark.parametrize(("old", "new", "wanted"), ERRORS.values(), ids=ERRORS)
def test_the_error_is_relative_to_the_sources_outputs(old, new, wanted):
    assert output_error([torch.tensor(item) for item in old], [torch.tensor(item) for item in new]) == wanted


def test_an_output_of_zero_does_not_hide_an_error():
    assert output_error([torch.zeros(2)], [torch.full((2,), 1e-3)]) > 1e30


def floor(module, inputs):
    expected = outputs(module, inputs)
    return [limit / 10 for _, limit in compare(expected, expected, Moved(module, inputs))]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_limit_follows_the_float_type_and_what_the_model_makes_of_it(dtype):
    torch.manual_seed(0)
    module, inputs = stack(8).to(dtype), (features()[0].to(dtype),)
    eps = torch.finfo(dtype).eps
    (plain,) = floor(module, inputs)
    assert eps <= plain < 30 * eps
    ill = nn.Sequential(*stack(8), nn.Linear(3, 1)).to(dtype)
    with torch.no_grad():  # a difference of large numbers loses digits, and the limit says so
        ill[-1].weight.copy_(torch.tensor([[1e3, -1e3, 0.0]]))
        ill[2].weight[1] = ill[2].weight[0]
        ill[2].bias[1] = ill[2].bias[0]
    assert floor(ill, inputs)[0] >= min(10 * plain, 0.05)  # half of the scale is the highest limit of all


class Headed(nn.Module):
    """A small net, and what is made of its output (and of its input)."""

    def __init__(self, width, head):
        super().__init__()
        self.into, self.out, self.head = nn.Linear(6, width), nn.Linear(width, 4), head

    def forward(self, x):
        return self.head(self.out(self.into(x).tanh()), x)


def grown(head, strategy="preserve", dtype=torch.float32, batch=50):
    torch.manual_seed(0)
    source, target = (Headed(width, head).to(dtype) for width in (4, 8))
    report = grow(source, target, strategy=strategy, example_inputs=(features(batch)[0].to(dtype),))
    return report, source, target


LAST = torch.tensor([False, False, False, True])
MASKS = {
    "-1e9": lambda y, x: y.masked_fill(LAST, -1e9),
    "the smallest float": lambda y, x: y.masked_fill(LAST, torch.finfo(y.dtype).min),
    "-inf": lambda y, x: y.masked_fill(LAST, -torch.inf),
    "an addition": lambda y, x: y + LAST * -1e6,
    "one state only": lambda y, x: torch.where(LAST, 1e12 * (torch.arange(len(y)) == 3)[:, None], y),
    "a large input beside": lambda y, x: torch.cat([y[:, :3], 1e8 * x], 1),
}


@pytest.mark.parametrize("strategy", ["preserve", "random", "copy_and_extend"])
@pytest.mark.parametrize("head", MASKS.values(), ids=MASKS)
def test_entries_that_no_weight_reaches_do_not_hide_the_others(head, strategy):
    report, source, target = grown(head, strategy)
    x = features(50)[0].float()
    old, new = (module(x)[:, :3].detach() for module in (source, target))
    wanted = (new - old).abs().max() / old.abs().max()
    assert report.function_preserving == (strategy == "preserve")
    if strategy != "preserve":
        assert report.max_output_error == pytest.approx(float(wanted), rel=1e-3)  # -1e6 leaves a float32 six digits


@pytest.mark.parametrize(
    "head",
    [
        lambda y, x: y * torch.tensor([1e6, 1.0, 1.0, 1.0]),
        lambda y, x: (y * torch.tensor([99.0, 1.0, 1.0, 1.0])).log_softmax(-1),
        lambda y, x: y.relu().square() * (torch.arange(4) == 2),
        lambda y, x: y.masked_fill(LAST, 500.0),
    ],
    ids=["one large logit", "log-probabilities", "mostly zeros", "a constant of a size that outputs have"],
)
@pytest.mark.parametrize("strategy", ["preserve", "random"])
def test_ordinary_outputs_are_measured_by_their_largest_entry(head, strategy):
    report, source, target = grown(head, strategy)
    x = (features(50)[0].float(),)
    assert report.max_output_error == output_error(outputs(source, x), outputs(target, x))


def test_a_large_entry_beside_a_residue_of_rounding_sets_the_scale():
    torch.manual_seed(0)
    module = Headed(4, lambda y, x: (y.abs() * torch.tensor([99.0, 1.0, 1.0, 1.0])).log_softmax(-1)).double()
    x = features(50)
    (old,) = outputs(module, x)
    new = torch.where(old.abs() < 1e-6, 0.5 * old, old)
    assert not torch.equal(old, new)
    ((error, _),) = compare([old], [new], Moved(module, x))
    assert error == output_error([old], [new]) < 1e-6


class Cancelling(nn.Module):
    """An output of about 1, and the difference of two equal parameters, made larger."""

    def __init__(self, factor):
        super().__init__()
        self.p, self.q = (nn.Parameter(torch.tensor([one], dtype=torch.float64)) for one in (1.0, 1.0 - 2**-51))
        self.factor = factor

    def forward(self, x):
        return x * self.p, self.factor * (self.p - self.q)


@pytest.mark.parametrize(("factor", "excused"), [(10.0, True), (1e5, False)])
def test_a_residue_is_a_thousand_roundings_of_the_largest_output_and_no_more(factor, excused):
    module, x = Cancelling(factor), (torch.ones(1, dtype=torch.float64),)
    ones, residue = outputs(module, x)
    assert residue > 0
    compared = compare([ones, residue], [ones, -residue], Moved(module, x))[1]
    assert compared == ((0.0, 0.5) if excused else (2.0, 0.5))


def rounded(y, x):
    return y, (y * 1e5).round().long()


CODES = {
    "a complex output": lambda y, x: torch.fft.rfft(y, dim=0),
    "codes that rounding flips": rounded,
    "the best action": lambda y, x: (y, y.argmax(-1)),
    "a choice": lambda y, x: (y, y > 0),
}


@pytest.mark.parametrize("strategy", ["preserve", "net2wider", "random", "interpolate"])
@pytest.mark.parametrize("head", CODES.values(), ids=CODES)
def test_every_output_has_a_limit_of_its_own(head, strategy):
    report, _, _ = grown(head, strategy, batch=500)
    assert report.function_preserving == (strategy in ("preserve", "net2wider"))
    assert report.tolerance < 1e-5  # codes do not loosen the limit of the logits


@pytest.mark.parametrize(
    "head",
    [
        lambda y, x: y[(y[:, 0] * 2**50).round() % 2 == 0],
        lambda y, x: torch.where((y * 2**50).round() % 2 == 0, y, torch.nan),
        lambda y, x: (y * 2**50).round().long()[(y[:, 0] * 2**50).round() % 2 == 0],
        lambda y, x: torch.cat([torch.full((1, 4), 1e9), y])[: 40 + int((y.sum() * 2**50).round() % 7)],
    ],
    ids=["a shape", "a NaN", "a shape of codes", "a shape with a constant"],
)
def test_an_output_that_rounding_makes_another_one_is_still_checked(head):
    torch.manual_seed(0)
    module = Headed(4, head).double()
    x = features(50)
    (old,) = outputs(module, x)
    ((error, limit),) = compare([old], [torch.where(old == 1e9, old, old + 2)], Moved(module, x))
    assert error > limit


def test_a_code_that_changes_is_an_error():
    """A mask alone: there are no logits beside it that would tell."""
    for strategy, kept in (("preserve", True), ("random", False)):
        report, _, _ = grown(lambda y, x: y > 0, strategy, batch=500)
        assert report.function_preserving == kept
        assert report.max_output_error == (0.0 if kept else 1.0)


def beside(side):
    """A norm, with something beside it that is computed in another type."""

    class Model(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.into, self.out = nn.Linear(6, width), nn.Linear(width, 4)

        def forward(self, x):
            h = self.into(x)
            y = self.out(nn.functional.layer_norm(h, h.shape[-1:]))
            return y + side(self, x)

    return Model


@pytest.mark.parametrize(
    "side",
    [
        lambda self, x: 0 * x[..., :1].bfloat16().float(),
        lambda self, x: 0 * self.into(x).mean(-1, keepdim=True).bfloat16().float(),
        lambda self, x: 1e-6 * self.into(x).mean(-1, keepdim=True).half().float(),
        lambda self, x: 0.1 * torch.ones_like(x[..., :1]).double().float().floor(),
    ],
    ids=["of the input", "of the units", "of little weight", "of a constant at a threshold"],
)
def test_a_cast_on_the_side_does_not_loosen_the_limit(side):
    model = beside(side)
    report = grow(model(8), model(16), strategy="copy_and_extend", example_inputs=(features(64)[0].float(),))
    assert report.tolerance < 1e-4
    assert not report.function_preserving


def autocast(module, x):
    with torch.autocast("cpu", torch.bfloat16):
        return module(x.float()).float()


@pytest.mark.parametrize(
    ("types", "forward", "lowest"),
    [
        ((torch.float32, torch.float32), autocast, torch.bfloat16),
        ((torch.float32, torch.bfloat16), lambda part, x: part(x.to(part[0].weight.dtype)).double(), torch.bfloat16),
        ((torch.bfloat16, torch.float32), lambda part, x: part(x.to(part[0].weight.dtype)).double(), torch.bfloat16),
        ((torch.float64, torch.float64), lambda part, x: part(x).float(), torch.float32),
    ],
    ids=["autocast", "a narrower target", "a wider target", "a narrower output"],
)
def test_a_model_is_held_to_the_narrowest_type_on_its_way(types, forward, lowest):
    torch.manual_seed(0)
    source, target = (stack(width, width).to(dtype) for width, dtype in zip((16, 24), types, strict=True))
    report = grow(source, target, example_inputs=features(64), forward=forward)
    assert report.max_output_error <= report.tolerance
    assert torch.finfo(lowest).eps < report.tolerance < 100 * torch.finfo(lowest).eps


def test_tied_weights_that_are_copied_move_as_one():
    class Tied(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.net = nn.ModuleDict({"first": nn.Embedding(7, width), "last": nn.Linear(width, 7, bias=False)})
            self.net["last"].weight = self.net["first"].weight
            self.target = copy.deepcopy(self.net)

        def forward(self, x):
            return self.net["last"](self.net["first"](x).tanh())

    report = grow(Tied(4), Tied(6), example_inputs=(torch.arange(7)[None],))
    assert report.max_output_error <= report.tolerance < 1e-5


RESIDUES = {
    "a divergence from itself": lambda y, x: (
        y,
        nn.functional.kl_div(y.log_softmax(-1), y.softmax(-1), reduction="sum"),
    ),
    "the sum of probabilities": lambda y, x: (y, y.log_softmax(-1).logsumexp(-1)),
    "the mean of what is centred": lambda y, x: (y, (y - y.mean(-1, keepdim=True)).mean(-1)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("strategy", ["preserve", "net2wider"])
@pytest.mark.parametrize("head", RESIDUES.values(), ids=RESIDUES)
def test_an_output_that_is_0_but_for_rounding_does_not_refuse_a_growth(head, strategy, dtype):
    assert grown(head, strategy, dtype)[0].function_preserving


def test_a_residue_does_not_hide_an_error_beside_it():
    assert not grown(RESIDUES["the mean of what is centred"], "random", torch.float64)[0].function_preserving


@pytest.mark.parametrize("fine", [1e6, 1e8])
def test_a_code_may_flip_only_as_far_as_rounding_flips_it(fine):
    report, _, _ = grown(lambda y, x: (y * fine).long(), "random", torch.float32)
    assert not report.function_preserving
    assert grown(lambda y, x: (y * fine).long(), "net2wider", torch.float32)[0].function_preserving


def test_inputs_may_be_made_by_another_model():
    torch.manual_seed(0)
    source, target = Headed(4, lambda y, x: y), Headed(8, lambda y, x: y)
    backbone = nn.Linear(3, 6)
    assert grow(source, target, example_inputs=(backbone(torch.randn(5, 3)),)).function_preserving


def test_an_output_without_entries_is_compared_too():
    module, x = nn.Linear(6, 3).double(), features()
    expected = [*outputs(module, x), torch.empty(0, 3, dtype=torch.float64)]
    moved = Moved(module, x, lambda part, x: (part(x), x[:0, :3]))
    assert [error for error, _ in compare(expected, expected, moved)] == [0.0, 0.0]
    changed = [expected[0] + 1, expected[1]]
    assert [error > limit for error, limit in compare(expected, changed, moved)] == [True, False]
