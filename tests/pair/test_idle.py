"""Parameters that no forward runs: the one axis that grows as they do, found alike in every process."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from lightning_grow import RefusedGrowth, grow, plan_growth


class Masked(nn.Module):
    """A mask token, and a matrix, which only training uses."""

    def __init__(self, width, norm=False, heads=1):
        super().__init__()
        self.token, self.head = nn.Parameter(torch.randn(1, 1, width)), nn.Linear(width, 5)
        self.into, self.norm = nn.Linear(3, width), nn.LayerNorm(width) if norm else nn.Identity()
        self.parts = nn.ModuleList(nn.Linear(width, width) for _ in range(heads))
        self.out = nn.Linear(width, 2)

    def forward(self, x):
        x = self.into(x)
        for part in self.parts:
            x = x + part(self.norm(x))
        return self.out(x)


X = (torch.randn(2, 3),)


def test_they_keep_their_entries_and_new_ones_are_0():
    source, target = Masked(4), Masked(6)
    notes = grow(source, target, example_inputs=X).notes
    assert torch.equal(target.token[..., :4], source.token)
    assert torch.equal(target.head.weight[:, :4], source.head.weight)
    assert not target.token[..., 4:].any()
    assert not target.head.weight[:, 4:].any()
    assert sum("No forward uses the parameter" in note for note in notes) == 2


def test_a_vector_follows_the_mean_that_its_units_have_and_a_matrix_is_refused():
    with pytest.raises(RefusedGrowth, match=r"'head.weight' grows .*unknown whether it reads or writes the units"):
        grow(Masked(4, norm=True), Masked(6, norm=True), example_inputs=X)


class Queue(nn.Module):
    """What training has gathered, which evaluation does not read: nothing knows what belongs in new entries."""

    def __init__(self, width):
        super().__init__()
        self.into, self.out = nn.Linear(3, width), nn.Linear(width, 2)
        self.register_buffer("queue", torch.rand(7, width))

    def forward(self, x):
        return self.out(self.into(x).relu())


def test_an_idle_buffer_that_grows_is_refused_by_name():
    with pytest.raises(RefusedGrowth, match="'queue' grows but no traced operator uses it"):
        grow(Queue(4), Queue(6), example_inputs=X)


FOUND = """
import torch
from test_idle import X, Masked
from lightning_grow import plan_growth
print(sorted(note for note in plan_growth(Masked(4, heads=8), Masked(6, heads=8), example_inputs=X).notes))
"""


def test_every_process_finds_the_same_axis():
    def found(seed):
        path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
        environment = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": path}
        command = [sys.executable, "-c", FOUND]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert len({found(seed) for seed in range(3)}) == 1
    assert plan_growth(Masked(4, heads=8), Masked(6, heads=8), example_inputs=X).notes
