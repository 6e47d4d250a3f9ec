"""Every rule of the table on a micro model: what an operator makes of a parameter's axes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_grow.trace.meanings import Opaque
from lightning_grow.trace.table import RULES
from lightning_grow.trace.tracer import trace

INDEX = torch.tensor([0, 2, 1])
OFFSETS = torch.tensor([2, 6], dtype=torch.int32)


class Micro(nn.Module):
    """One parameter, one function of it."""

    def __init__(self, shape, function):
        super().__init__()
        self.weight, self.function = nn.Parameter(torch.randn(shape)), function

    def forward(self):
        return self.function(self.weight)


def put_columns(weight):
    columns = torch.zeros(5, 7)
    columns[:, INDEX] = weight
    return columns


# rule -> [(shape of the parameter, function of it, its axes afterwards, axes of the first output)]
CASES = {
    "create": [((3,), lambda w: torch.arange(4) + w[:1], "[(1+2)]", "[4]")],
    "create_like": [((3, 4), lambda w: w.new_zeros(3, 4) + w, "[3, 4]", "[3, 4]")],
    "pointwise": [((3, 1), lambda w: w * torch.ones(5), "[3, 1]", "[3, 5]")],
    "complex_numbers": [
        ((3, 4), lambda w: torch.complex(w, w).conj() * 2, "[3, 4]", "[3, 4]"),
        ((3, 4), lambda w: torch.polar(w.abs(), w).conj().abs(), "[3, 4]", "[3, 4]"),
    ],
    "permute": [
        ((2, 3, 4), lambda w: w.permute(2, 0, 1), "[2, 3, 4]", "[4, 2, 3]"),
        ((2, 3), lambda w: w.t(), "[2, 3]", "[3, 2]"),
    ],
    "view": [
        ((2, 12), lambda w: w.view(2, 3, 4), "[2, (3*4)]", "[2, 3, 4]"),
        ((2, 3), lambda w: w.flatten(), "[2, 3]", "[(2*3)]"),
        ((2, 3), lambda w: w.unsqueeze(1), "[2, 3]", "[2, 1, 3]"),
    ],
    "expand": [((3, 1), lambda w: w.expand(3, 5), "[3, 1]", "[3, 5]")],
    "repeat": [((3,), lambda w: w.repeat(2), "[3]", "[(2*3)]")],
    "split": [
        ((6,), lambda w: w.split([2, 4]), "[(2+4)]", "[2]"),
        ((6, 2), lambda w: w.chunk(3), "[(2+2+2), 2]", "[2, 2]"),
    ],
    "slice_": [((6,), lambda w: w[1:4], "[(1+3+2)]", "[3]"), ((6,), lambda w: w[::2], "[(3*(1+1))]", "[3]")],
    "select": [((3, 4), lambda w: w[1], "[(1+1+1), 4]", "[4]")],
    "unbind": [((3, 4), lambda w: w.unbind(0), "[(1+1+1), 4]", "[4]")],
    "cat": [((3, 4), lambda w: torch.cat([w, w * 2], 0), "[3, 4]", "[((1*3)+(1*3)), 4]")],
    "stack": [((3,), lambda w: torch.stack([w, w * 2], 0), "[3]", "[(1+1), 3]")],
    "matmul": [((3, 4), lambda w: torch.ones(2, 4) @ w.t(), "[3, 4]", "[2, 3]")],
    "convolution": [
        ((4, 3, 2, 2), lambda w: F.conv2d(torch.ones(1, 3, 5, 5), w), "[4, 3, 2, 2]", "[1, 4, 4, 4]"),
        ((4, 3, 2, 2), lambda w: F.conv2d(torch.ones(1, 6, 5, 5), w, groups=2), "[(2*2), 3, 2, 2]", "[1, (2*2), 4, 4]"),
        ((3, 4, 2), lambda w: F.conv_transpose1d(torch.ones(1, 3, 5), w), "[3, 4, 2]", "[1, 4, 6]"),
        ((6, 4, 2), lambda w: F.conv_transpose1d(torch.ones(1, 6, 5), w, groups=3), "[(3*2), 4, 2]", "[1, (3*4), 6]"),
    ],
    "grouped_matmul": [
        ((2, 4, 8), lambda w: torch._grouped_mm(torch.ones(6, 4), w, OFFSETS), "[2, 4, 8]", "[6, 8]"),
    ],
    "nonzero": [((3, 4), lambda w: (w > 0).nonzero(), "[3, 4]", "[12, 2]")],
    "copy": [((4,), lambda w: torch.ones(3, 4).copy_(w), "[4]", "[3, 4]")],
    "embedding": [((7, 4), lambda w: F.embedding(INDEX, w), "[7, 4]", "[3, 4]")],
    "index": [
        ((7, 4), lambda w: w[INDEX], "[7, 4]", "[3, 4]"),
        ((4, 7), lambda w: w.index_select(1, INDEX), "[4, 7]", "[4, 3]"),
        ((4, 7), lambda w: w.gather(1, INDEX.expand(4, 3)), "[4, 7]", "[4, 3]"),
    ],
    "scatter": [
        ((3, 4), lambda w: torch.zeros(7, 4).index_add(0, INDEX, w), "[3, 4]", "[7, 4]"),
        ((3, 4), lambda w: torch.zeros(7, 4).scatter_add(0, INDEX[:, None].expand(3, 4), w), "[3, 4]", "[7, 4]"),
        ((3, 4), lambda w: torch.zeros(7, 5).scatter(0, INDEX[:, None].expand(3, 4), w), "[3, 4]", "[7, 5]"),
    ],
    "index_put": [
        ((3, 4), lambda w: torch.zeros(7, 4).index_put((INDEX,), w), "[3, 4]", "[7, 4]"),
        ((5, 3), put_columns, "[5, 3]", "[5, 7]"),
        ((2, 4), lambda w: torch.zeros(7, 4).index_put((INDEX.expand(2, 3)[:, 0],), w, True), "[2, 4]", "[7, 4]"),
        ((3, 2), lambda w: torch.zeros(7, 8, 2).index_put((INDEX, INDEX), w), "[3, 2]", "[7, 8, 2]"),
    ],
    "reduce": [
        ((3, 4), lambda w: w.mean(1), "[3, 4]", "[3]"),
        ((3, 4), lambda w: w.sum(0, keepdim=True), "[3, 4]", "[1, 4]"),
    ],
    "spatial": [((2, 3, 8, 8), lambda w: F.max_pool2d(w, 2), "[2, 3, 8, 8]", "[2, 3, 4, 4]")],
    "pad": [((2, 3), lambda w: F.pad(w, (1, 1)), "[2, 3]", "[2, 5]")],
    "along": [((2, 3), lambda w: w.cumsum(1), "[2, 3]", "[2, 3]"), ((2, 3), lambda w: w.flip(0), "[2, 3]", "[2, 3]")],
    "pick": [
        ((2, 5), lambda w: w.kthvalue(2, 1).values, "[2, 5]", "[2]"),
        ((2, 5), lambda w: w.median(0, keepdim=True).values, "[2, 5]", "[1, 5]"),
    ],
    "unfold": [((2, 6, 3), lambda w: w.unfold(1, 2, 2), "[2, 6, 3]", "[2, 3, 3, 2]")],
    "complex_parts": [((3, 4, 2), torch.view_as_complex, "[3, 4, 2]", "[3, 4]")],
    "solve": [
        ((4, 3), lambda w: torch.linalg.solve(torch.eye(4), w), "[4, 3]", "[4, 3]"),
        ((2, 4, 4), torch.linalg.inv, "[2, 4, 4]", "[2, 4, 4]"),
    ],
    "topk": [((2, 5), lambda w: w.topk(3).values, "[2, 5]", "[2, 3]")],
}


def test_every_rule_of_the_table_has_a_case():
    assert {rule.__name__ for rule in RULES.values()} == set(CASES)


@pytest.mark.parametrize(
    ("rule", "shape", "function", "axes", "output"),
    [(rule, *case) for rule, cases in CASES.items() for case in cases],
    ids=[f"{rule}-{number}" for rule, cases in CASES.items() for number in range(len(cases))],
)
def test_the_rule_refines_the_axes(rule, shape, function, axes, output):
    tape = trace(Micro(shape, function), ())
    assert rule in {RULES[node.name].__name__ if node.name in RULES else "pointwise" for node in tape.nodes} | {
        "create"
    }
    assert not any(isinstance(meaning, Opaque) for node in tape.nodes for meaning in node.meaning)
    assert str(tape.tensors["weight"].axes) == axes
    assert str(next(iter(tape.outputs.values())).axes) == output


MODULES = {
    "LSTM": (nn.LSTM(3, 2, 2), (5, 1, 3), {"weight_ih_l0": "[(2+2+2+2), 3]", "weight_hh_l1": "[(2+2+2+2), 2]"}),
    "GRU": (nn.GRU(3, 2), (5, 1, 3), {"weight_hh_l0": "[(2+2+2), 2]", "bias_ih_l0": "[(2+2+2)]"}),
    "attention": (
        nn.TransformerEncoderLayer(6, 2, 4, batch_first=True),
        (1, 5, 6),
        {"self_attn.in_proj_weight": "[((1+1+1)*2*3), 6]", "self_attn.out_proj.weight": "[6, (2*3)]"},
    ),
    "flatten": (
        nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(8, 3)),
        (1, 1, 3, 3),
        {"2.weight": "[3, (2*2*2)]"},
    ),
}


@pytest.mark.parametrize(("module", "shape", "axes"), MODULES.values(), ids=MODULES)
def test_torchs_own_layers_show_their_blocks(module, shape, axes):
    tape = trace(module, (torch.randn(shape),))
    assert {name: str(tape.tensors[name].axes) for name in axes} == axes


def test_an_operator_without_a_rule_is_named():
    tape = trace(Micro((3, 3), torch.linalg.svdvals), ())
    reasons = [meaning.reason for node in tape.nodes for meaning in node.meaning if isinstance(meaning, Opaque)]
    assert "aten._linalg_svd.default has no rule" in reasons[0]


def test_an_operator_is_traced_through_its_decomposition():
    tape = trace(Micro((4,), F.hardswish), ())
    assert "hardswish" not in [node.name for node in tape.nodes]
    assert "clamp" in " ".join(node.name for node in tape.nodes)
