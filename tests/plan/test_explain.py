"""A plan explained: what becomes of a tensor, for which operator's sake, and where a refused growth gets stuck."""

import pytest
import torch
from models import PAIRS
from torch import nn

from lightning_grow import grow, plan_growth
from lightning_grow.errors import WrongSetting


class Ways(nn.Module):
    def __init__(self, width, last=torch.tanh):
        super().__init__()
        self.into, self.norm, self.out, self.last = nn.Linear(6, width), nn.LayerNorm(width), nn.Linear(width, 3), last
        self.beside = nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.last(self.norm(self.into(x)))) + self.beside(x)


X = (torch.randn(2, 6),)


def test_each_block_says_what_it_is_and_for_whose_sake():
    plan = plan_growth(Ways(4), Ways(6), example_inputs=X)
    assert (
        "new entries of axis 0: the mean of the source's along axis 0, for aten.native_layer_norm.default in 'norm'"
        in (plan.explain("into.weight"))
    )
    assert "all other entries: the source's times 1.22474" in plan.explain("into.weight")
    assert "new entries of axis 0: 0, for aten.addmm.default in 'out'" in plan.explain("norm.bias")
    assert "4 units become 6, the new ones fresh; they are also " in plan.explain("norm.bias")
    assert plan.explain("beside.weight").splitlines()[1:] == [
        "  all other entries: the source's",
        "  used by aten.t.default in 'beside'",
    ]


def test_a_refusal_says_the_way_to_its_cause():
    small, large = (Ways(width, lambda x: x.cumsum(-1)) for width in (4, 6))
    plan = plan_growth(small, large, example_inputs=X)
    (way,) = [line for line in plan.explain("into.weight").splitlines() if "reaches" in line]
    assert "reaches aten.cumsum.default in the model's forward by way of aten.t.default in 'into', aten.addmm" in way
    assert "aten.native_layer_norm.default in 'norm'" in way
    assert "refused: aten.cumsum.default in the model's forward goes by position" in plan.explain("into.weight")
    assert "reaches" not in plan.explain("beside.weight")


def test_where_the_outputs_differ_the_way_leads_to_them():
    small, large = Ways(4), Ways(4, torch.sigmoid)
    plan = plan_growth(small, large, example_inputs=X)
    assert plan.refused
    assert "reaches aten.add.Tensor in the model's forward" in plan.explain("into.weight")


def test_a_name_that_no_tensor_has_is_an_error_with_those_that_are_near():
    plan = plan_growth(Ways(4), Ways(6), example_inputs=X)
    with pytest.raises(WrongSetting, match=r"got 'out.weigth': did you mean 'out.weight'"):
        plan.explain("out.weigth")


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_every_tensor_of_every_plan_can_be_explained(pair):
    source, target, inputs = pair.make()
    plan = plan_growth(source, target, example_inputs=inputs)
    for name, item in plan.tensors.items():
        said = plan.explain(name)
        assert said.startswith(f"{name}: ")
        if "copied" not in said and item.source_name is not None:
            assert ("new entries" in said) == bool(item.new_entries().any())


def test_a_report_keeps_the_plans_words():
    source, target = Ways(4), Ways(6)
    plan, report = plan_growth(source, target, example_inputs=X), grow(source, target, example_inputs=X)
    for name in plan.tensors:
        assert report.explain(name) == plan.explain(name)
    written = {item["name"]: item["explanation"] for item in report.to_dict()["tensors"]}
    assert written["norm.bias"] == plan.explain("norm.bias").splitlines()
    with pytest.raises(WrongSetting, match=r"got 'norm.bais': did you mean 'norm.bias'"):
        report.explain("norm.bais")
