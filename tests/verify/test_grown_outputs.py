"""Outputs that grow inside (groups, heads): compared at the source's own positions, which a note names."""

import torch
from torch import nn

from lightning_grow import grow


class Grouped(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.into, self.norm = nn.Conv1d(3, width, 1), nn.GroupNorm(2, width)

    def forward(self, x):
        return self.norm(self.into(x))


def test_an_output_of_groups_is_compared_group_by_group():
    torch.manual_seed(0)
    source, target = Grouped(8).double(), Grouped(16).double()
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    report = grow(source, target, example_inputs=(x,), allow_output_growth=True)
    assert report.max_output_error <= 1e-13  # float64, a few dozen operations
    at = torch.tensor([0, 1, 2, 3, 8, 9, 10, 11])
    assert torch.allclose(target(x)[:, at], source(x), rtol=0, atol=1e-12)
    assert any(
        "Output 0 grows between its positions along axis 1: the source's are at 0, 1, 2, 3" in note
        for note in report.notes
    )
