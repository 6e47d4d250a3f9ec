"""Pictures show what the plan says, entry by entry, and stay within a page."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_grow import grow, plan_growth
from lightning_grow.errors import WrongSetting
from lightning_grow.pictures import MOST_PANELS, ORIGINS, plot_curves
from lightning_grow.report import TransferReport

NAMES = list(ORIGINS)


def net(width):
    return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2))


def entries(axes):
    """What is drawn for every entry, from the rectangles and their colours."""
    mesh = axes.collections[0]
    rows, columns = (np.round(mesh._coordinates[:, 0, 1]), np.round(mesh._coordinates[0, :, 0]))
    codes = mesh.get_array().reshape(len(rows) - 1, len(columns) - 1)
    whole = codes.repeat(np.diff(rows).astype(int), 0).repeat(np.diff(columns).astype(int), 1)
    return [[NAMES[int(code)] for code in row] for row in whole]


@pytest.mark.parametrize(
    ("strategy", "new_row", "new_column"), [("preserve", "new", "new, 0"), ("net2wider", *["a copy"] * 2)]
)
def test_the_picture_shows_where_every_entry_comes_from(strategy, new_row, new_column):
    small, large = net(4), net(6)
    report = grow(small, large, example_inputs=(torch.ones(5, 3),), strategy=strategy)
    first, second = map(entries, report.plot().axes)
    old = "from the source"
    assert first == [[old] * 3] * 4 + [[new_row] * 3] * 2
    assert second == [[old] * 4 + [new_column] * 2] * 2


def test_zeros_in_the_picture_are_zeros_in_the_weights():
    small, large = (nn.Sequential(nn.Conv2d(2, n, 3), nn.ReLU(), nn.Conv2d(n, 4, 3)) for n in (4, 7))
    report = grow(small, large, example_inputs=(torch.randn(2, 2, 8, 8),))
    for axes, name in zip(report.plot().axes, ("0.weight", "2.weight"), strict=True):
        weight = large.state_dict()[name].flatten(2).abs().sum(-1)
        assert (np.array(entries(axes)) == "new, 0").tolist() == (weight == 0).tolist()


def test_biases_are_drawn_where_nothing_else_grows_or_they_are_asked_for():
    report = grow(net(4), net(6), example_inputs=(torch.ones(5, 3),))
    assert entries(report.plot(["0.bias"]).axes[0]) == [["from the source"]] * 4 + [["new"]] * 2
    with pytest.raises(WrongSetting, match=r"got '0.wieght': did you mean '0.weight'"):
        report.plot(["0.wieght"])


def test_a_big_growth_is_a_page():
    layers = lambda width: nn.Sequential(*(nn.Linear(width, width) for _ in range(40)))  # noqa: E731
    small, large = (nn.Sequential(nn.Linear(3, n), layers(n), nn.Linear(n, 2)) for n in (4, 6))
    plan = plan_growth(small, large, example_inputs=(torch.ones(5, 3),))
    figure = plan.plot_tensors()
    assert len(figure.axes) == MOST_PANELS
    assert max(figure.get_size_inches()) <= 13
    assert figure.legends[0].get_title().get_text() == f"and {42 - MOST_PANELS} more tensors"
    assert plan.plot().axes[0].get_title() == "the first 40 of 41 unit groups"


def test_groups_are_drawn_with_their_units():
    plan = plan_growth(net(4), net(6), example_inputs=(torch.ones(5, 3),))
    bars = plan.plot().axes[0].patches
    assert [(bar.get_x(), bar.get_width()) for bar in bars] == [(0, 4), (4, 2)]


def test_a_report_without_a_plan_says_so():
    with pytest.raises(WrongSetting, match="no plan to draw"):
        TransferReport((), "preserve", seed=0).plot()


def test_the_curves_meet_at_the_growth():
    figure = plot_curves({"small": ([0, 5], [1.0, 2.0]), "large": ([5, 9], [2.0, 3.0])}, grown_at=[5])
    assert [list(line.get_xdata()) for line in figure.axes[0].lines] == [[0, 5], [5, 9], [5, 5]]
