"""Guards that only one line holds: each of these pairs was planned wrongly with that line broken."""

import re

import pytest
import torch
from models import features, stack
from torch import nn

from lightning_grow import RefusedGrowth, grow, plan_growth
from lightning_grow.plan.content import constant_ratio


class Normed(nn.Module):
    """Rows of unit length times a gain, then a sum without weights: new units can only be silenced by the gain."""

    def __init__(self, width, form, has_gain=True):
        super().__init__()
        self.v, self.form = nn.Parameter(torch.randn(width, 6)), form
        self.g = nn.Parameter(torch.rand(width, 1) + 0.5) if has_gain else None

    def forward(self, x):
        weight = self.form(self.g, self.v, self.v.square().sum(1, keepdim=True).sqrt())
        return (x @ weight.t()).sum(-1)


FORMS = {
    "g v / n": lambda g, v, n: g * v / n,
    "v g / n": lambda g, v, n: v * g / n,
    "v (g / n)": lambda g, v, n: v * (g / n),
    "g (v / n)": lambda g, v, n: g * (v / n),
    "(v / n) g": lambda g, v, n: v / n * g,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_what_a_weight_is_divided_by_is_never_zeroed(form):
    source, target = Normed(4, form).double(), Normed(6, form).double()
    grow(source, target, example_inputs=features())
    torch.testing.assert_close(target(*features()), source(*features()))
    assert (target.v[4:] != 0).any(1).all()
    assert (target.g[4:] == 0).all()


NO_GAIN = {
    "v / n": lambda g, v, n: v / n,
    "v v / n": lambda g, v, n: v * v / n,
    "v / n + v / n": lambda g, v, n: v / n + 2 * v / n,
    "tanh": lambda g, v, n: (v / n).tanh(),
}


@pytest.mark.parametrize("form", NO_GAIN.values(), ids=NO_GAIN)
def test_where_only_that_could_be_zeroed_it_is_refused(form):
    plan = plan_growth(Normed(4, form, False).double(), Normed(6, form, False).double(), example_inputs=features())
    assert len(plan.refused) == 1
    assert "takes a sum over" in plan.refused[0]


class Tied(nn.Module):
    """One matrix writes the hidden units and reads them."""

    def __init__(self, width, act=torch.tanh):
        super().__init__()
        self.w, self.act = nn.Parameter(torch.randn(6, width) / 3), act

    def forward(self, x):
        return self.act(x @ self.w) @ self.w.t()


@pytest.mark.parametrize("act", [torch.tanh, torch.relu, torch.square])
@pytest.mark.parametrize("verify", [True, False])
def test_copies_are_not_read_in_shares_by_what_writes_them(act, verify):
    source, target = Tied(4, act).double(), Tied(8, act).double()
    plan = plan_growth(source, target, strategy="net2wider", example_inputs=features())
    if plan.refused:
        with pytest.raises(RefusedGrowth, match=re.escape(plan.refused[0])):
            grow(source, target, strategy="net2wider", example_inputs=features(), verify=verify)
    else:
        grow(source, target, strategy="net2wider", example_inputs=features(), verify=verify)
        torch.testing.assert_close(target(*features()), source(*features()))


class Spread(nn.Module):
    """The spread of the units, without a weight that could take up a factor."""

    def __init__(self, width, correction=1):
        super().__init__()
        self.into, self.correction = nn.Linear(6, width), correction

    def forward(self, x):
        return self.into(x).var(-1, correction=self.correction)


@pytest.mark.parametrize(("correction", "old", "new"), [(1, 1, 2), (1, 1, 3), (2, 2, 4)])
@pytest.mark.filterwarnings("ignore:var.*degrees of freedom")
def test_a_variance_of_too_few_entries_is_refused(correction, old, new):
    source, target = Spread(old, correction).double(), Spread(new, correction).double()
    plan = plan_growth(source, target, strategy="net2wider", example_inputs=features())
    assert len(plan.refused) == 1
    assert "no number in the source" in plan.refused[0]


RATIOS = {
    "equal": ([1.0, -2.0, 0.0], [1.0, -2.0, 0.0], 1.0),
    "a factor": ([1.0, -2.0, 0.0], [3.0, -6.0, 0.0], 3.0),
    "rounding": ([1.0, -2.0], [3.0, -6.0000001], 3.0),
    "nearly a factor": ([1.0, -2.0], [3.0, -6.0001], None),
    "another sign": ([1.0, -2.0], [1.0, 2.0], None),
    "a 0 elsewhere": ([1.0, 0.0], [0.0, 1.0], None),
}


@pytest.mark.parametrize(("old", "new", "ratio"), RATIOS.values(), ids=RATIOS)
def test_a_constant_is_another_times_a_factor_or_another_one(old, new, ratio):
    found = constant_ratio(torch.tensor(old, dtype=torch.float64), torch.tensor(new, dtype=torch.float64))
    assert found == (ratio if ratio is None else pytest.approx(ratio))


class Gated(nn.Module):
    """What the norm reads is read by a sigmoid too, which does not take the factor that fresh units ask for."""

    def __init__(self, width):
        super().__init__()
        self.into, self.norm = nn.Linear(6, width), nn.LayerNorm(width)
        self.head, self.gate = nn.Linear(width, 2), nn.Linear(width, 2)

    def forward(self, x):
        hidden = self.into(x)
        return self.head(self.norm(hidden)) + self.gate(hidden.sigmoid())


def test_units_are_copied_where_only_the_scales_of_fresh_ones_fail():
    source, target = Gated(4).double(), Gated(8).double()
    grow(source, target, example_inputs=features())
    torch.testing.assert_close(target(*features()), source(*features()))
    with pytest.raises(RefusedGrowth, match="another scale"):
        grow(source, Gated(6).double(), example_inputs=features())


class Length(nn.Module):
    """A norm over the units, and a layer that could take up a factor of it."""

    def __init__(self, width, norm):
        super().__init__()
        self.into, self.out, self.norm = nn.Linear(6, width), nn.Linear(1, 2), norm

    def forward(self, x):
        return self.out(self.norm(self.into(x)))


NORMS = {f"ord {p}": (lambda y, p=p: torch.linalg.vector_norm(y, p, -1, keepdim=True)) for p in (1, 2, 3, 0.5)}
NORMS |= {f"p {p}": (lambda y, p=p: torch.norm(y, p, -1, keepdim=True)) for p in (1, 2, 3)}
LARGEST = {
    "ord inf": lambda y: torch.linalg.vector_norm(y, torch.inf, -1, keepdim=True),
    "p inf": lambda y: torch.norm(y, torch.inf, -1, keepdim=True),
}
COUNTS = {f"ord {p}": (lambda y, p=p: torch.linalg.vector_norm(y, p, -1, keepdim=True)) for p in (0, -1, -torch.inf)}


@pytest.mark.parametrize("strategy", ["preserve", "net2wider"])
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_a_norm_of_any_power_grows_by_its_own_factor(norm, strategy):
    source, target = Length(4, norm).double(), Length(8, norm).double()
    grow(source, target, strategy=strategy, example_inputs=features())
    torch.testing.assert_close(target(*features()), source(*features()))


@pytest.mark.parametrize("strategy", ["preserve", "net2wider"])
@pytest.mark.parametrize("norm", LARGEST.values(), ids=LARGEST)
def test_an_infinite_norm_is_a_maximum(norm, strategy):
    source, target = Length(4, norm).double(), Length(8, norm).double()
    grow(source, target, strategy=strategy, example_inputs=features())
    torch.testing.assert_close(target(*features()), source(*features()))
    torch.testing.assert_close(
        target.out.weight, source.out.weight, rtol=0, atol=0
    )  # neither copies nor zeros change it


@pytest.mark.parametrize("strategy", ["preserve", "net2wider"])
@pytest.mark.parametrize("norm", COUNTS.values(), ids=COUNTS)
def test_what_is_no_sum_of_powers_is_refused(norm, strategy):
    plan = plan_growth(Length(4, norm).double(), Length(8, norm).double(), strategy=strategy, example_inputs=features())
    assert plan.refused


class Act(nn.Module):
    def __init__(self, width, act):
        super().__init__()
        self.into, self.out, self.act = nn.Linear(6, width), nn.Linear(width, 3), act

    def forward(self, x):
        return self.out(self.act(self.into(x)))


@pytest.mark.parametrize("strategy", ["preserve", "copy_and_extend", "interpolate", "zero_pad"])
def test_another_computation_is_refused_where_the_function_is_not_promised_too(strategy):
    source, target = Act(4, torch.tanh).double(), Act(6, torch.relu).double()
    with pytest.raises(RefusedGrowth, match=r"aten\.relu"):
        grow(source, target, strategy=strategy, example_inputs=features())


ROWS = torch.tensor([4, 2, 0, 1, 3])
ADDED = {
    "flip": lambda y: y.flip(0),
    "roll": lambda y: y.roll(1, 0),
    "cumsum": lambda y: y.cumsum(0),
    "sort": lambda y: y.sort(0).values,
    "index": lambda y: y[ROWS],
    "index_select": lambda y: y.index_select(0, ROWS),
    "index_copy": lambda y: y.index_copy(0, ROWS, y),
    "index_add": lambda y: y.index_add(0, ROWS, y),
    "index_put": lambda y: y.index_put((ROWS,), y),
    "scatter": lambda y: y.scatter(0, ROWS[:, None].expand_as(y), y),
    "gather": lambda y: y.gather(0, ROWS[:, None].expand_as(y)),
    "topk": lambda y: y.topk(5, 0).values,
    "transposed": lambda y: y.t().reshape(y.shape),
    "mean": lambda y: y - y.mean(0),
    "norm": lambda y: y / y.norm(dim=0),
    "amax": lambda y: y - y.amax(0),
    "softmax": lambda y: y.softmax(0),
}


@pytest.mark.parametrize("width", [4, 6])
@pytest.mark.parametrize("added", ADDED.values(), ids=ADDED)
def test_an_operator_that_the_source_does_not_have_is_refused_by_the_plan(added, width):
    source, target = Act(4, torch.tanh).double(), Act(width, lambda y: added(y.tanh())).double()
    plan = plan_growth(source, target, example_inputs=features())
    assert plan.refused


class Gram(nn.Module):
    """Units that are read without weights, and are 1 where what writes them is 0."""

    def __init__(self, width):
        super().__init__()
        self.into = nn.Linear(6, width)

    def forward(self, x):
        hidden = self.into(x).exp()
        return hidden @ hidden.t()


def test_units_that_nothing_can_silence_are_named():
    plan = plan_growth(Gram(4).double(), Gram(6).double(), example_inputs=features())
    assert len(plan.refused) == 1
    assert "aten.mm" in plan.refused[0]
    assert "no parameter can be set to 0 to prevent it" in plan.refused[0]


class Returning(nn.Module):
    def __init__(self, width, outputs):
        super().__init__()
        self.into, self.left, self.right = nn.Linear(6, width), nn.Linear(width, 3), nn.Linear(width, 3)
        self.outputs = outputs

    def forward(self, x):
        found = {"hidden": self.into(x).relu()}
        found |= {"left": self.left(found["hidden"]), "right": self.right(found["hidden"])}
        return [found[name] for name in self.outputs]


@pytest.mark.parametrize("outputs", [["left"], ["right", "left"], ["left", "right", "right"], ["left", "left"]])
@pytest.mark.parametrize("strategy", ["preserve", "copy_and_extend", "interpolate"])
def test_outputs_that_are_others_are_refused_where_the_function_is_not_promised_too(strategy, outputs):
    source, target = Returning(4, ["left", "right"]).double(), Returning(6, outputs).double()
    assert plan_growth(source, target, strategy=strategy, example_inputs=features()).refused


class Shuffled(nn.Module):
    """Returns which positions are hidden, as masked autoencoders do: some zeros written into ones, then shuffled."""

    def __init__(self, width, hidden):
        super().__init__()
        self.net, self.hidden = stack(width), hidden

    def forward(self, x):
        mask = torch.ones(len(x), 6)
        mask[:, : self.hidden] = 0
        return self.net(x), mask.gather(1, x.argsort(1))


@pytest.mark.parametrize("hidden", [1, 2, 5])
def test_a_constant_that_was_written_into_is_the_sources_where_it_is_read(hidden):
    report = grow(Shuffled(4, hidden).double(), Shuffled(6, hidden).double(), example_inputs=features())
    assert report.max_output_error <= report.tolerance
