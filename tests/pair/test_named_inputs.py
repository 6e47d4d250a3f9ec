"""Inputs with names: inserted, reordered, stacked, dropped."""

import pytest
import torch
from torch import nn

from lightning_grow import RefusedGrowth, grow, plan_growth

OLD = ["price", "volume", "trend"]


class Named(nn.Module):
    """A network whose inputs have names, behind a normaliser in buffers."""

    def __init__(self, names, width=8):
        super().__init__()
        size = len(names)
        self.input_names = list(names)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("var", torch.ones(size))
        self.net = nn.Sequential(nn.Linear(size, width), nn.Tanh(), nn.Linear(width, 2))
        self.example_input_array = torch.randn(7, size, generator=torch.Generator().manual_seed(size))

    def forward(self, x):
        return self.net((x - self.mean) / (self.var + 1e-8).sqrt())


def trained(names, width=8):
    torch.manual_seed(0)
    source = Named(names, width).double()
    source.mean.copy_(torch.arange(len(names)))
    source.var.copy_(torch.arange(len(names)) + 0.5)
    source.example_input_array = source.example_input_array.double()
    return source


def make(names, width=8):
    torch.manual_seed(1)
    target = Named(names, width).double()
    target.example_input_array = target.example_input_array.double()
    return target


def values(names, seed=2):
    """Some values of every input, by name."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(5, generator=generator, dtype=torch.float64) for name in sorted(names)}


def stacked(found, names):
    return torch.stack([found[name] for name in names], 1)


FRAMES = [f"{name}[{age}]" for age in (-2, -1) for name in OLD]
ALLOWED = {
    "inserted": (OLD, ["price", "new", "volume", "trend", "other"]),
    "reordered": (OLD, ["trend", "price", "volume"]),
    "inserted and reordered": (OLD, ["trend", "new", "price", "volume"]),
    "a feature more in stacked frames": (FRAMES, [f"{name}[{age}]" for age in (-2, -1) for name in ["new", *OLD]]),
    "a frame more, in front": (FRAMES, [f"{name}[{age}]" for age in (-3, -2, -1) for name in OLD]),
    "from frames by feature to features by frame": (FRAMES, [f"{name}[{age}]" for name in OLD for age in (-2, -1)]),
}


@pytest.mark.parametrize("width", [8, 12])
@pytest.mark.parametrize(("old", "new"), ALLOWED.values(), ids=ALLOWED)
def test_every_old_weight_reads_the_input_that_it_read(old, new, width):
    source, target = trained(old), make(new, width)
    report = grow(source, target, allow_input_growth=True)
    assert report.function_preserving
    found = values({*old, *new})
    expected, got = source(stacked(found, old)), target(stacked(found, new))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)  # sums of at most 12 terms in float64


@pytest.mark.parametrize("width", [8, 12])
@pytest.mark.parametrize("more", [[], ["new"], ["new", "other"]])
@pytest.mark.parametrize("kept", [["price", "trend"], ["trend", "price"]])
def test_a_dropped_input_is_as_if_it_always_were_at_its_mean(kept, more, width):
    new = [*more, *kept]
    source, target = trained(OLD), make(new, width)
    report = grow(source, target, allow_input_growth=True, drop_inputs=["volume"])
    found = values({*OLD, *new})
    found["volume"] = torch.full((5,), float(source.mean[1]), dtype=torch.float64)  # normalised: 0
    expected, got = source(stacked(found, OLD)), target(stacked(found, new))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)
    assert not report.function_preserving
    assert report.max_output_error > 0.01
    assert report.refused == ["1 inputs are dropped as drop_inputs asks (volume): the outputs change."]


class Shown(Named):
    """Returns what it normalised, too."""

    def forward(self, x):
        seen = (x - self.mean) / (self.var + 1e-8).sqrt()
        return self.net(seen), seen


def test_a_dropped_input_may_be_an_output_that_is_gone():
    source, target = Shown(OLD).double(), Shown(["price", "trend"]).double()
    plan = plan_growth(source, target, drop_inputs=["volume"], example_inputs=(target.example_input_array.double(),))
    assert plan.impossible == ()
    assert plan.lost == ("1 inputs are dropped as drop_inputs asks (volume): the outputs change.",)


def test_the_change_that_dropping_makes_is_measured():
    source, target = trained(OLD), make(["price", "trend"])
    report = grow(source, target, drop_inputs=["volume"])
    example = source.example_input_array.clone()
    example[:, [0, 2]] = target.example_input_array
    change = (target(target.example_input_array) - source(example)).abs().max() / source(example).abs().max()
    assert report.max_output_error == pytest.approx(float(change.detach()))


def test_without_leave_an_input_that_is_gone_is_refused_and_nothing_changes():
    target = make(["price", "trend"])
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(RefusedGrowth, match=r"not in the target \(volume\).*drop_inputs"):
        grow(trained(OLD), target)
    with pytest.raises(RefusedGrowth, match="drop_inputs names volumes"):
        grow(trained(OLD), target, drop_inputs=["volume", "volumes"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


class Counted(Named):
    """The same, behind a normaliser that counts what it has seen."""

    def __init__(self, names, width=8, count=()):
        super().__init__(names, width)
        self.register_buffer("count", torch.full(count, 1e6))


@pytest.mark.parametrize(("counts", "said"), [(((), ()), True), (((3,), (4,)), False)], ids=["one", "of its own"])
def test_one_count_for_old_and_new_statistics_is_said(counts, said):
    source, target = (Counted(names, 8, count) for names, count in zip((OLD, ["new", *OLD]), counts, strict=True))
    source.count.mul_(2)
    notes = grow(source, target, allow_input_growth=True).notes
    assert any("'count' is one count for all inputs" in note and "(mean, var)" in note for note in notes) == said
    assert any("No forward uses the buffer 'count': it grows as" in note for note in notes) != said
    assert target.count.tolist() == (2e6 if said else [1e6, 2e6, 2e6, 2e6])


def test_an_unused_buffer_beside_none_of_its_sizes_is_refused():
    source, target = (Counted(names, 8, (size,)) for names, size in ((OLD, 5), ([*OLD, "new"], 6)))
    with pytest.raises(RefusedGrowth, match="'count' grows but no traced operator uses it"):
        grow(source, target, allow_input_growth=True)


def test_dropping_needs_names():
    source, target = trained(OLD), make(["price", "trend"])
    source.input_names = None
    with pytest.raises(RefusedGrowth, match="drop_inputs needs the names of the inputs"):
        grow(source, target, drop_inputs=["volume"])


@pytest.mark.parametrize("allowed", [False, True])
def test_names_that_do_not_fit_the_axis_are_refused_where_they_would_tell_something(allowed):
    cases = {
        "the target's on both, as where they are a constant of the class": (3, 4, ["a", "x", "b", "c"], None),
        "too few in the source": (3, 4, ["a", "b"], ["a", "b", "c", "d"]),
        "another order": (3, 3, ["a", "b"], ["b", "a"]),
    }
    for old, new, first, second in cases.values():
        source, target = make(OLD[:1] * old), make(OLD[:1] * new)
        source.input_names, target.input_names = first, second or first
        with pytest.raises(RefusedGrowth, match=f"the source has {len(first)} names for {old} positions"):
            grow(source, target, allow_input_growth=allowed)
    source, target = make(OLD), make(OLD, 12)
    source.input_names = target.input_names = ["a", "b"]  # of no use, and none is needed
    assert grow(source, target).function_preserving


@pytest.mark.parametrize("names", [(["a", "a", "b"], ["a", "b", "a", "c"]), (OLD, [*OLD, "new", "new"])])
def test_names_that_are_not_unique_are_refused_where_they_are_needed(names):
    with pytest.raises(RefusedGrowth, match=r"not unique \((a|new)\)"):
        grow(trained(names[0]), make(names[1]), allow_input_growth=True)
    assert grow(trained(names[0]), make(names[0], 12)).function_preserving


class Two(nn.Module):
    """Two inputs, the first with names."""

    def __init__(self, names, size, order="xy", width=4):
        super().__init__()
        self.input_names = names and list(names)
        self.first, self.second = nn.Linear(len(names or "abc"), width), nn.Linear(size, width)
        example = {"x": torch.randn(5, self.first.in_features), "y": torch.randn(5, size)}
        self.example_input_array = {key: example[key] for key in order}

    def forward(self, x, y):
        return torch.tanh(self.first(x) + self.second(y))


class Pixels(nn.Module):
    """Channels that grow are no last axis."""

    def __init__(self, names):
        super().__init__()
        self.input_names = None if names is None else list(names)
        self.net = nn.Conv2d(len(names or "rgb"), 4, 3)
        self.example_input_array = torch.randn(2, self.net.in_channels, 5, 5)

    def forward(self, x):
        return self.net(x).mean((2, 3))


@pytest.mark.parametrize(
    ("source", "target", "place"),
    [
        pytest.param(lambda: Two("abc", 2), lambda: Two("abc", 3), "input 1 axis 1", id="the second input"),
        pytest.param(lambda: Two(None, 2), lambda: Two("abcd", 3), "input 0 axis 1, input 1 axis 1", id="both"),
        pytest.param(lambda: Pixels(None), lambda: Pixels("argb"), "input 0 axis 1", id="channels"),
    ],
)
def test_every_axis_of_an_input_that_grows_without_names_is_said(source, target, place):
    with pytest.warns(UserWarning, match=f"stand after the old ones: {place} grows and has no input_names"):
        grow(source(), target(), allow_input_growth=True)


def test_a_batch_of_another_size_is_no_new_input():
    source, target = make(OLD), make(["new", *OLD])
    source.example_input_array = source.example_input_array[:5]
    assert grow(source, target, allow_input_growth=True).function_preserving


@pytest.mark.parametrize("orders", [("yx", "yx"), ("xy", "yx"), ("yx", "xy")])
def test_names_are_those_of_forwards_first_parameter(orders):
    source, target = Two("abc", 2, orders[0]), Two("dabc", 2, orders[1])
    grow(source, target, allow_input_growth=True)
    x, y = torch.randn(5, 4), torch.randn(5, 2)
    torch.testing.assert_close(target(x, y), source(x[:, 1:], y))


def test_names_of_channels_are_refused():
    with pytest.raises(
        RefusedGrowth, match="do not fit the last axis of the first input: the source has 3 names for 5"
    ):
        grow(Pixels("rgb"), Pixels("argb"), allow_input_growth=True)
