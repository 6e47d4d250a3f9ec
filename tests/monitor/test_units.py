import math

import pytest
import torch

from lightning_grow.monitor.units import DormantShare, EffectiveRank


@pytest.mark.parametrize(("tau", "share"), [(0.0, 1 / 4), (0.1, 2 / 4), (10.0, 1.0)])
def test_a_unit_is_dormant_beside_the_mean_of_its_layer(tau, share):
    metric = DormantShare(tau)
    for rows in (torch.tensor([[4.0, 0.0, 0.1, -2.0]]), torch.tensor([[-4.0, 0.0, 0.1, 2.0], [4.0, 0.0, -0.1, 2.0]])):
        metric.update(rows)
    assert metric.compute() == pytest.approx(share)


def test_effective_rank_is_the_entropy_of_the_singular_values():
    """Singular values 3, 1 and 0 of three units: shares 3/4, 1/4."""
    metric = EffectiveRank()
    metric.update(torch.diag(torch.tensor([3.0, 1.0, 0.0])))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert metric.compute() == pytest.approx(math.exp(entropy) / 3)
    metric.reset()
    metric.update(torch.zeros(4, 3))
    assert metric.compute() == 0


def test_effective_rank_takes_the_first_rows_only():
    metric = EffectiveRank(most_rows=3)
    metric.update(torch.eye(2, 5))
    metric.update(torch.eye(5)[2:])
    assert sum(map(len, metric.activations)) == 3
    assert metric.compute() == pytest.approx(1.0)


@pytest.mark.parametrize("metric", [DormantShare(), EffectiveRank()])
def test_metrics_plot_themselves(metric):
    metric.update(torch.eye(3))
    figure, axes = metric.plot()
    assert axes.lines
    figure.clear()
