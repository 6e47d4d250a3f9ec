"""What a forward takes back in its next call may change in size; where it does not, it is promised as any output."""

import pytest
import torch
from models import features
from torch import nn

from lightning_grow import RefusedGrowth, grow, plan_growth


class Steps(nn.Module):
    """Layers that remember what they saw, as a cache of keys and values does."""

    def __init__(self, width, depth=1, form=list, remembers=True):
        super().__init__()
        self.inner = nn.ModuleList(nn.Linear(6, width) for _ in range(depth))
        self.outer = nn.ModuleList(nn.Linear(width, 6) for _ in range(depth))
        self.form, self.remembers = form, remembers

    def forward(self, x, past=None):
        seen = []
        for inner, outer in zip(self.inner, self.outer, strict=True):
            hidden = inner(x).tanh()
            seen.append(hidden if self.remembers else hidden * 2)
            x = x + outer(hidden)
        return {"y": x, "past": self.form(seen)}


class Cache:
    """An object of a class that no container is."""

    def __init__(self, seen):
        self.layers = seen


@pytest.mark.parametrize("form", [list, Cache])
@pytest.mark.parametrize(("width", "depth", "left_out"), [(4, 1, 0), (7, 1, 1), (4, 2, 1), (7, 2, 2)])
def test_a_cache_of_another_size_is_left_out_and_said(width, depth, left_out, form):
    source, target = Steps(4, form=form).double(), Steps(width, depth, form).double()
    plan = plan_growth(source, target, example_inputs=features())
    assert (len(plan.left_out), len(plan.notes)) == (left_out, bool(left_out))
    report = grow(source, target, example_inputs=features())
    expected, got = source(*features()), target(*features())
    assert report.max_output_error < 1e-14  # float64: a few roundings of a sum of 7
    torch.testing.assert_close(got["y"], expected["y"])
    if not left_out:
        old, new = (item["past"] if form is list else item["past"].layers for item in (expected, got))
        torch.testing.assert_close(new, old)


def test_a_cache_of_the_same_size_is_promised():
    source, target = Steps(4).double(), Steps(4, remembers=False).double()
    with pytest.raises(RefusedGrowth, match=r"aten\.mul"):
        grow(source, target, example_inputs=features())


def test_a_plain_output_under_the_name_of_an_input_is_no_cache():
    class Renamed(nn.Linear):
        def forward(self, input):
            return {"input": super().forward(input)}

    with pytest.raises(RefusedGrowth, match="output 0 grows along axis 1"):
        grow(Renamed(6, 3), Renamed(6, 5), example_inputs=(torch.ones(2, 6),))


class Watched(Steps):
    """The same layers' hidden values as an output that no call takes back."""

    def __init__(self, depth, shown=9, seen="seen"):
        super().__init__(4, depth)
        self.shown, self.seen = shown, seen

    def forward(self, x):
        out = super().forward(x)
        return {"y": out["y"], self.seen: out["past"][: self.shown]}


def test_outputs_that_only_a_deeper_network_has_are_not_compared_and_said():
    source, target = Watched(1).double(), Watched(2).double()
    plan = plan_growth(source, target, example_inputs=features())
    assert plan.left_out == {"['seen'][1]"}
    assert any("returns 1 more tensors than the source (['seen'][1], say)" in note for note in plan.notes)
    grow(source, target, example_inputs=features())
    expected, got = source(*features()), target(*features())
    torch.testing.assert_close(got["y"], expected["y"])
    torch.testing.assert_close(got["seen"][:1], expected["seen"])


@pytest.mark.parametrize(
    ("source", "target"),
    [(Watched(2), Watched(2, shown=1)), (Watched(1), Watched(2, seen="z")), (Watched(1, shown=0), Watched(1))],
    ids=["fewer", "others", "of a new kind"],
)
def test_other_outputs_are_refused(source, target):
    with pytest.raises(RefusedGrowth, match=r"the source returns \d tensors, the target \d"):
        grow(source.double(), target.double(), example_inputs=features())
