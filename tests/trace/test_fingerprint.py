"""A fingerprint is equal where the computation is, and differs where anything of it does."""

import pytest
import torch
import torch.nn.functional as F
from models import features
from torch import nn

from lightning_grow.trace.fingerprint import fingerprint
from lightning_grow.trace.tracer import trace


class Net(nn.Module):
    def __init__(self, function, width=4, name="inner"):
        super().__init__()
        self.function, self.name = function, name
        setattr(self, name, nn.Linear(6, width))
        self.register_buffer("table", torch.arange(4.0).double(), persistent=False)

    def forward(self, x):
        return self.function(getattr(self, self.name)(x), self.table)


def mark(function, seed=0, **options):
    torch.manual_seed(seed)
    return fingerprint(trace(Net(function, **options).double(), features()))


SAME = {
    "other weights": lambda y, table: F.elu(y),
    "a constant": lambda y, table: y + torch.tensor([1.0, 2.0, 3.0, 4.0]).to(y),
    "where it is made": lambda y, table: y + torch.zeros(4, device=y.device, dtype=y.dtype),
    "a table": lambda y, table: y * table,
}


@pytest.mark.parametrize("function", SAME.values(), ids=SAME)
def test_other_weights_are_the_same_computation(function):
    assert mark(function) == mark(function, seed=1)
    assert len(mark(function)) == 64


def test_each_of_these_is_another_computation():
    base = lambda y, table: F.elu(y)  # noqa: E731
    others = [
        lambda y, table: F.elu(y, 0.5),
        lambda y, table: F.selu(y),
        lambda y, table: F.elu(y) + torch.tensor(1.0).to(y),
        lambda y, table: F.elu(y) + torch.tensor(2.0).to(y),
        lambda y, table: F.elu(y) + torch.tensor([2.0]).to(y),
        lambda y, table: F.elu(y) + table,
        lambda y, table: F.elu(y) + (table + 1),
        lambda y, table: (F.elu(y), y),
        lambda y, table: (y, F.elu(y)),
        lambda y, table: {"a": F.elu(y)},
        lambda y, table: {"b": F.elu(y)},
        lambda y, table: F.elu(F.elu(y)),
        lambda y, table: y - table,
        lambda y, table: table - y,
    ]
    marks = [mark(function) for function in (base, *others)]
    marks += [mark(base, width=5), mark(base, name="outer")]
    assert len({*marks}) == len(marks)


def test_two_inputs_are_told_apart():
    marks = [
        fingerprint(trace(nn.Linear(2, 2), features(), lambda module, x, swapped=swapped: swapped(x, x * 2)))
        for swapped in (lambda a, b: a - b, lambda a, b: b - a)
    ]
    assert marks[0] != marks[1]
