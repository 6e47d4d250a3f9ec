"""What one batch shows: of hidden units, and of the entries that a growth made new."""

import pytest
import torch
from torch import nn

from lightning_grow.monitor.sample import Sample


def test_units_are_what_hidden_layers_read():
    """The first layer reads inputs; of a convolution each channel is a unit, at all places."""
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    with torch.no_grad():
        module[0].weight[1] = module[0].bias[1] = 0
    sample = Sample(module, tau=0.0, new={})
    module(torch.randn(5, 1, 6, 6))
    assert set(sample.layers) == {"2", "4"}
    assert [share.sizes.numel() for share, _ in sample.layers.values()] == [3, 8]
    assert sample.layers["2"][0].compute() == pytest.approx(1 / 3)
    sample.close(module)
    module(torch.randn(5, 1, 6, 6))
    assert sample.layers["2"][0].rows == 5 * 4 * 4


def test_shares_of_new_entries_are_of_norms():
    module = nn.Linear(3, 2, bias=False)
    mask = torch.tensor([[False, False, True], [False, False, True]])
    sample = Sample(module, tau=0.0, new={"weight": mask})
    module.weight.grad = torch.tensor([[2.0, 0.0, 1.0], [2.0, 0.0, 0.0]])
    sample.take_gradients(module)
    with torch.no_grad():
        module.weight -= torch.tensor([[0.0, 3.0, 4.0], [0.0, 0.0, 0.0]])
    found = sample.close(module)
    assert found["new_gradient_share"] == pytest.approx(1 / 3)
    assert found["new_update_share"] == pytest.approx(4 / 5)
    assert sample.reached["weight"].tolist() == [[True, False, True], [True, False, False]]
