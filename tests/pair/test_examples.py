"""The arguments that source and target are compared on, however they are given."""

import pytest
import torch
from torch import nn

from lightning_grow import RefusedGrowth, grow
from lightning_grow.pair.examples import find_examples


class Two(nn.Module):
    """Two inputs, of which the second may be left out."""

    def __init__(self, first, second, width=4, example=None):
        super().__init__()
        self.input_names = list("abcdef"[:first])
        self.first, self.second, self.head = nn.Linear(first, width), nn.Linear(second, width), nn.Linear(width, 2)
        self.example_input_array = example

    def forward(self, x, y=None):
        hidden = self.first(x) if y is None else self.first(x) + self.second(y)
        return self.head(torch.tanh(hidden))


def features(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(kind, samples, sizes):
    """Inputs in one of the forms that a call can have."""
    x, y = (features(samples, size, seed=size) for size in sizes)
    return {"tensor": x, "one": (x,), "tuple": (x, y), "dict": {"x": x, "y": y}, "turned": {"y": y, "x": x}}[kind]


FORMS = [("tensor", "one"), ("one", "tensor"), ("tensor", "tensor")]
FORMS += [(own, given) for own in ("tuple", "dict", "turned") for given in ("tuple", "dict", "turned")]


@pytest.mark.parametrize("samples", [5, 3, 8])
@pytest.mark.parametrize(("own", "given"), FORMS)
@pytest.mark.parametrize("is_given", [False, True])
def test_each_module_is_run_on_inputs_of_its_own_sizes(own, given, is_given, samples):
    both = own not in ("one", "tensor")
    source = Two(3, 2, example=pair(own, 5, (3, 2))).double()
    theirs = pair(given, samples, (4, 2))
    target = Two(4, 2, 6 if both else 4, example=pair(own, samples, (4, 2)) if is_given else theirs).double()
    report = grow(source, target, allow_input_growth=True, example_inputs=theirs if is_given else None)
    assert report.function_preserving
    x, y = features(7, 4), features(7, 2)
    wanted, got = (source(x[:, :3], y), target(x, y)) if both else (source(x[:, :3]), target(x))
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-13)  # sums of at most 6 terms in float64


def test_a_dropped_input_is_measured_on_what_is_given():
    source, target = Two(4, 2, example=features(5, 4)).double(), Two(3, 2).double()
    given = features(3, 3)
    report = grow(source, target, drop_inputs=["d"], example_inputs=(given,))
    seen = torch.cat([given, features(5, 4)[:3, 3:]], 1)
    change = (target(given) - source(seen)).abs().max() / source(seen).abs().max()
    assert report.max_output_error == pytest.approx(float(change.detach()), rel=1e-9)


class Steps(nn.Module):
    """A sequence model: any number of steps, or as many as its table of positions has."""

    def __init__(self, size, steps=0, width=4):
        super().__init__()
        self.table = nn.Parameter(torch.randn(steps, size)) if steps else None
        self.rnn = nn.LSTM(size, width, batch_first=True)

    def forward(self, x, lengths):
        x = x if self.table is None else x + self.table
        return self.rnn(x)[0] * lengths[:, None, None]


@pytest.mark.parametrize(("steps", "seen"), [((0, 0), (2, 9, 4)), ((9, 9), (2, 9, 3)), ((7, 9), (2, 7, 3))])
def test_what_the_source_takes_is_its_input_too(steps, seen):
    source, target = Steps(3 if seen[2] == 3 else 4, steps[0]), Steps(4, steps[1], 6)
    source.example_input_array = torch.randn(5, 7 if steps[0] in (0, 7) else 9, seen[2]), torch.ones(5)
    given = torch.randn(2, 9, 4), torch.ones(2)
    own, theirs = find_examples(source, target, given, None)
    assert theirs is given
    assert [tuple(item.shape) for item in own] == [seen, (2,)]


def test_a_callable_names_its_own_parameters():
    source, target = Two(3, 2, example=pair("turned", 5, (3, 2))), Two(4, 2)
    own, _ = find_examples(source, target, pair("dict", 5, (4, 2)), lambda module, y, x: module(x, y))
    assert list(own) == ["y", "x"]


def test_none_at_all_is_refused():
    with pytest.raises(RefusedGrowth, match=r"no example inputs: expected .* Two\.forward"):
        grow(Two(3, 2), Two(4, 2))
