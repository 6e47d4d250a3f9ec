"""What a plan says when it is printed."""

import gc
import json
import pickle

from models import PAIRS, features, stack

from lightning_grow import plan_growth


def test_a_plan_prints_a_row_for_every_group_and_what_changes():
    text = str(plan_growth(stack(4).double(), stack(6).double(), example_inputs=features()))
    rows = [[cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in text.splitlines()]
    assert "Growth by preserve" in text
    assert ["unit group", "source", "target", "new units", "tensors"] in rows
    assert ["'0.weight' axis 0", "4", "6", "fresh", "0.weight[0], 0.bias[0], 2.weight[1]"] in rows
    assert text.splitlines()[-1].startswith("3 of 4 tensors change.")


def test_a_refusal_stands_below_the_table():
    text = str(plan_growth(stack(6).double(), stack(4).double(), example_inputs=features()))
    assert "refused: cannot grow '0.weight' axis 0 (and 2 more places): source has 6 units, target has 4." in " ".join(
        text.split()
    )


def test_a_plan_as_plain_data():
    source, target, inputs = PAIRS["relu"].make()
    plan = plan_growth(source, target, example_inputs=inputs)
    found = json.loads(json.dumps(plan.to_dict()))
    assert found["strategy"] == "preserve"
    assert found["refused"] == []
    assert [(group["source"], group["target"]) for group in found["groups"]] == [
        (group.old, group.new) for group in plan.groups
    ]
    assert found["tensors"].keys() == plan.tensors.keys()
    assert found["groups"][0]["members"]


def test_a_plan_knows_its_modules_and_keeps_none_alive():
    source, target, inputs = PAIRS["relu"].make()
    plan = plan_growth(source, target, example_inputs=inputs)
    assert (plan.modules.source, plan.modules.target) == (source, target)
    copied = pickle.loads(pickle.dumps(plan))
    assert (copied.modules.source, copied.modules.target) == (None, None)
    del source
    gc.collect()
    assert plan.modules.source is None
