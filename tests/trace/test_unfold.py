"""A composite operator unfolded is the operator: the same numbers, and axes that say what it does with units."""

import pytest
import torch
from torch import nn

from lightning_grow.trace.meanings import Opaque
from lightning_grow.trace.tracer import trace
from lightning_grow.trace.unfold import UNFOLDED

EXACT = 1e-13  # float64: sums of a few dozen numbers of about 1, in another order


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


X, G, S = normal(2, 6, 3), normal(6), normal(6)
MEAN, VAR = normal(6), normal(6).square()
ROWS_OF, BAGS = torch.tensor([0, 2, 2, 6, 1]), torch.tensor([0, 2, 3])
OPS = torch.ops.aten

# name -> [(arguments of the operator, axes of a parameter in the place of the first one)]
CASES = {
    "native_layer_norm": [
        ((X, [6, 3], normal(6, 3), normal(6, 3), 1e-3), "[2, 6, 3]"),
        ((X, [3], None, None, 0.1), "[2, 6, 3]"),
    ],
    "_fused_rms_norm": [((X, [3], normal(3), 1e-3), "[2, 6, 3]"), ((X, [6, 3], None, None), "[2, 6, 3]")],
    "native_group_norm": [
        ((X, G, S, 2, 6, 3, 2, 1e-3), "[2, (2*3), 3]"),
        ((X, None, None, 2, 6, 3, 6, 0.1), "[2, 6, 3]"),
    ],
    "native_batch_norm": [
        ((X, G, S, MEAN, VAR, False, 0.1, 1e-3), "[2, 6, 3]"),
        ((X, None, None, None, None, True, 0.1, 1e-3), "[2, 6, 3]"),
    ],
    "_native_batch_norm_legit": [((X, G, None, MEAN, VAR, False, 0.1, 1e-3), "[2, 6, 3]")],
    "_native_batch_norm_legit_no_training": [((X, G, S, MEAN, VAR, 0.1, 1e-3), "[2, 6, 3]")],
    "_softmax": [((X, 1, False), "[2, 6, 3]")],
    "_safe_softmax": [((X, -1), "[2, 6, 3]")],
    "_log_softmax": [((X, 2, False), "[2, 6, 3]")],
    "rrelu_with_noise": [((X, X, 0.1, 0.3, False), "[2, 6, 3]")],
    "_cdist_forward": [((X, normal(2, 4, 3), p, None), "[2, 6, 3]") for p in (2.0, 1.0, float("inf"))],
    "_trilinear": [((normal(5, 3), normal(4, 3, 6), normal(5, 6), [1, 3], [0], [1, 2], [2, 3]), "[5, 3]")],
    "_embedding_bag": [((normal(7, 4), ROWS_OF, BAGS, False, mode), "[7, 4]") for mode in (0, 1, 2)],
    "_embedding_bag_forward_only": [
        ((normal(7, 4), ROWS_OF, BAGS, False, 0, False, normal(5)), "[7, 4]"),
        ((normal(7, 4), ROWS_OF, torch.tensor([0, 2, 3, 5]), False, 1, False, None, True), "[7, 4]"),
        ((normal(7, 4), ROWS_OF, BAGS, False, 1, False, None, False, 2), "[7, 4]"),
    ],
    "glu": [((X, 1), "[2, (3+3), 3]")],
    "pixel_shuffle": [((normal(2, 8, 3, 3), 2), "[2, (2*2*2), 3, 3]")],
}
ROWS = [(name, *case) for name, cases in CASES.items() for case in cases]


def test_every_composite_has_a_case():
    assert set(CASES) == set(UNFOLDED)


@pytest.mark.parametrize(("name", "arguments", "axes"), ROWS)
def test_it_computes_what_torch_computes(name, arguments, axes):
    del axes  # Unused: they are the next test's.
    first = lambda result: result if isinstance(result, torch.Tensor) else result[0]  # noqa: E731
    got, expected = (first(function(*arguments)) for function in (UNFOLDED[name], getattr(OPS, name)))
    assert torch.allclose(got, expected, rtol=0, atol=EXACT)


class Micro(nn.Module):
    """An operator on a parameter."""

    def __init__(self, name, value, *rest):
        super().__init__()
        self.weight, self.op, self.rest = nn.Parameter(value), getattr(OPS, name), rest

    def forward(self):
        return self.op(self.weight, *self.rest)


# the CPU has no kernel of its own for it: there torch takes it apart before anyone sees it
@pytest.mark.parametrize(("name", "arguments", "axes"), [row for row in ROWS if row[0] != "_fused_rms_norm"])
def test_its_parts_are_known_and_name_the_whole(name, arguments, axes):
    tape = trace(Micro(name, *arguments), ())
    assert not any(isinstance(meaning, Opaque) for node in tape.nodes for meaning in node.meaning)
    assert {node.whole.name for node in tape.nodes if node.whole is not None} == {name}
    assert str(tape.tensors["weight"].axes) == axes


def test_the_arguments_of_the_whole_are_kept():
    tape = trace(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4, eps=0.5)), (torch.ones(2, 3),))
    assert {node.whole.arguments["eps"] for node in tape.nodes if node.whole is not None} == {0.5}


def test_a_softmax_in_a_softmax_is_named_once():
    tape = trace(nn.Sequential(nn.Linear(3, 4), nn.Softmax(-1)), (torch.ones(2, 3),))
    assert {node.place for node in tape.nodes if node.path == "1"} == {"aten._softmax.default in '1'"}
