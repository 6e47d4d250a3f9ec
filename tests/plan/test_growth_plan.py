"""What a plan says when it is printed."""

from models import features, stack

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
