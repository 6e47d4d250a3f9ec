"""Tracing leaves the module as it was, and sees what its forward does."""

import copy
import functools
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import PAIRS, features, stack
from torch import nn

from lightning_grow import RefusedGrowth, grow, plan_growth
from lightning_grow.trace.axes import atoms
from lightning_grow.trace.meanings import Opaque
from lightning_grow.trace.tracer import call_arguments, trace


class Two(nn.Module):
    """Two parameters and a function of both."""

    def __init__(self, first, second, function):
        super().__init__()
        self.a, self.b, self.function = nn.Parameter(torch.randn(first)), nn.Parameter(torch.randn(second)), function

    def forward(self):
        return self.function(self.a, self.b)


# (shape of a, shape of b, function, the dimensions of a and b that become one axis)
JOINED = {
    "addition": ((3, 4), (4,), torch.add, [(1, 0)]),
    "matrix product": ((3, 4), (4, 5), torch.matmul, [(1, 0)]),
    "batched product": ((2, 3, 4), (2, 4, 5), torch.bmm, [(0, 0), (2, 1)]),
    "matrix by vector": ((3, 4), (4,), torch.mv, [(1, 0)]),
    "inner product": ((4,), (4,), torch.dot, [(0, 0)]),
    "bias of a product": ((4,), (3, 4), lambda a, b: torch.addmm(a, torch.ones(2, 3), b), [(0, 1)]),
    "concatenation": ((3, 4), (3, 2), lambda a, b: torch.cat([a, b], 1), [(0, 0)]),
    "stack": ((3, 4), (3, 4), lambda a, b: torch.stack([a, b]), [(0, 0), (1, 1)]),
    "channels of a convolution": ((5, 3, 7), (4, 3, 2), F.conv1d, [(1, 1)]),
    "channels of a group": ((1, 6, 7), (4, 3, 2), lambda a, b: F.conv1d(a, b, groups=2), []),
    "bias of a convolution": ((4, 3, 2), (4,), lambda a, b: F.conv1d(torch.ones(1, 3, 5), a, b), [(0, 0)]),
    "gain of a norm": ((2, 4), (4,), lambda a, b: F.layer_norm(a, (4,), b), [(1, 0)]),
    "gain of a batch norm": ((2, 4), (4,), lambda a, b: F.batch_norm(a, torch.zeros(4), torch.ones(4), b), [(1, 0)]),
    "gain of a group norm": ((2, 4, 3), (4,), lambda a, b: F.group_norm(a, 2, b), [(1, 0)]),
    "condition": ((3,), (3,), lambda a, b: torch.where(a > 0, a, b), [(0, 0)]),
    "queries and keys": ((2, 5, 4), (2, 6, 4), lambda a, b: torch.einsum("bqd,bkd->bqk", a, b), [(0, 0), (2, 2)]),
}


@pytest.mark.parametrize(("first", "second", "function", "joined"), JOINED.values(), ids=JOINED)
def test_operators_join_the_axes_that_they_share(first, second, function, joined):
    tensors = trace(Two(first, second, function), ()).tensors
    same = {
        (one, other)
        for one, left in enumerate(tensors["a"].axes)
        for other, right in enumerate(tensors["b"].axes)
        if list(atoms(left)) == list(atoms(right))
    }
    assert same == set(joined)


def test_a_grouped_convolution_joins_the_channels_of_its_groups():
    tensors = trace(Two((1, 6, 7), (4, 3, 2), lambda a, b: F.conv1d(a, b, groups=2)), ()).tensors
    (group, inner), (group_out, _) = list(atoms(tensors["a"].axes[1])), list(atoms(tensors["b"].axes[0]))
    assert [inner] == list(atoms(tensors["b"].axes[1]))
    assert group is group_out


def test_halves_of_a_gate_are_the_same_units():
    (axis,) = trace(Two((6,), (1,), lambda a, b: F.glu(a) + b), ()).tensors["a"].axes
    first, second = atoms(axis)
    assert first is second


@pytest.mark.parametrize(
    ("cut", "axes"),
    [
        (lambda a: a[-2:], "[(4+2)]"),
        (lambda a: a[1:-2], "[(1+3+2)]"),
        (lambda a: a[-9:2], "[(2+4)]"),
        (lambda a: a[1::3], "[(2*(1+1+1))]"),
    ],
    ids=["the last", "the middle", "beyond the start", "a column"],
)
def test_slices_count_from_both_ends(cut, axes):
    assert str(trace(Two((6,), (1,), lambda a, b: cut(a) * b), ()).tensors["a"].axes) == axes


def test_the_module_is_left_as_it_was():
    source, _, inputs = PAIRS["convolution"].make()
    source.train()
    source.bn.eval()
    before = {name: (id(item), item.clone(), item.requires_grad) for name, item in source.named_parameters()}
    buffers = {name: (id(item), item.clone()) for name, item in source.named_buffers()}
    settings = torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled(), torch.is_grad_enabled()
    rng = torch.get_rng_state()
    trace(source, inputs)
    assert [source.training, source.bn.training, source.first.training] == [True, False, True]
    for name, item in source.named_parameters():
        assert (id(item), item.requires_grad) == (before[name][0], before[name][2])
        assert torch.equal(item, before[name][1])
    for name, item in source.named_buffers():
        assert id(item) == buffers[name][0]
        assert torch.equal(item, buffers[name][1])
    after = torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled(), torch.is_grad_enabled()
    assert after == settings
    assert torch.equal(torch.get_rng_state(), rng)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in source.modules())


def test_a_failing_pass_leaves_the_module_as_it_was():
    module = stack(4).train()
    settings = torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()
    parameters = [id(item) for item in module.parameters()]
    with pytest.raises(RefusedGrowth, match=r"cannot trace Sequential: RuntimeError.*example_inputs that its forward"):
        trace(module, (torch.randn(5, 7),))
    assert module.training
    assert [id(item) for item in module.parameters()] == parameters
    assert (torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()) == settings
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


class Choosing(nn.Module):
    """A forward that goes by the content of its input."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        return self.a(x) if x.sum() > 0 else self.b(x)


def test_a_choice_by_the_input_is_traced_on_real_tensors():
    used = {value.name for node in trace(Choosing(), (torch.ones(2, 6),)).nodes for value in node.tensors()}
    assert {"a.weight", "a.bias"} <= used
    assert not {"b.weight", "b.bias"} & used


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda x: x.mean() > -5, True),
        (lambda x: x.int().sum().item() > -50, True),
        (lambda x: x.shape[1] > 3, False),
        (lambda x: torch.ones(3).sum() > 2, False),
    ],
    ids=["an if", "a number", "a length", "a constant"],
)
def test_the_plan_says_where_only_one_way_was_followed(read, said):
    class Model(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.net, self.other = stack(width), nn.Linear(6, 3)

        def forward(self, x):
            return self.net(x) if read(x) else self.other(x)

    plan = plan_growth(Model(4).double(), Model(6).double(), example_inputs=features())
    assert not plan.refused
    assert any("reads the content of an example input" in note for note in plan.notes) == said


def test_a_choice_by_the_input_is_made_with_real_inputs_where_the_weights_are_on_meta():
    real = Choosing()
    module = copy.deepcopy(real).to("meta")
    one, other = (trace(item, (torch.ones(2, 6),)) for item in (real, module))
    assert [node.op for node in one.nodes] == [node.op for node in other.nodes]
    assert all(tensor.is_meta for tensor in module.state_dict().values())


def test_weights_on_meta_lie_as_real_ones_do_where_a_forward_needs_contents():
    class Kernel(nn.Linear):
        def forward(self, x):
            if x.sum().item() > 0 and self.weight.stride() != (3, 1):  # as grouped products ask
                raise ValueError("it lies otherwise")
            return super().forward(x)

    with torch.device("meta"):
        module = Kernel(3, 4)
    assert trace(module, (torch.ones(2, 3),)).nodes


@functools.lru_cache(maxsize=4)
def positions(size):
    return torch.arange(size).flip(0)


class Cached(nn.Module):
    """A table that a cache outside the module keeps, and one that every call makes again where it is real."""

    def __init__(self, width):
        super().__init__()
        self.into, self.out = nn.Linear(3, width), nn.Linear(width, 2)

    def forward(self, x):
        return self.out(self.into(x)[positions(len(x))].relu())


def test_a_cache_outside_the_module_keeps_nothing_of_a_trace():
    positions.cache_clear()
    source, target, x = Cached(4), Cached(6), torch.randn(5, 3)
    for _ in range(2):
        assert not plan_growth(source, target, example_inputs=(x,)).refused
        assert positions.cache_info().currsize == 0
    expected = source(x)
    assert positions(5).tolist() == [4, 3, 2, 1, 0]
    assert not plan_growth(source, target, example_inputs=(x,)).refused  # the real one is of use
    assert positions.cache_info().currsize == 1
    torch.testing.assert_close(source(x), expected)


class Spectra(nn.Module):
    """Into frequencies and back: torch asks whether the windows overlap, which weights and buffers decide."""

    def __init__(self, width):
        super().__init__()
        self.into, self.out = nn.Conv1d(1, width, 3, padding=1), nn.Conv1d(width, 1, 3, padding=1)
        self.register_buffer("window", torch.hann_window(16, dtype=torch.float64))

    def forward(self, x):
        h = self.out(self.into(x).relu())[:, 0]
        z = torch.stft(h, 16, 4, window=self.window, return_complex=True)
        return torch.istft(z * 2, 16, 4, window=self.window, length=64)


def test_a_check_is_passed_whichever_answer_passes_it():
    x = torch.randn(2, 1, 64, dtype=torch.float64)
    assert grow(Spectra(4).double(), Spectra(6).double(), example_inputs=(x,)).max_output_error < 1e-12  # float64


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_comparison_of_weights_is_a_choice(device):
    class Compares(nn.Linear):
        def forward(self, x):
            return super().forward(x) if torch.equal(self.weight[0], self.weight[1]) else x[:, :4]

    with pytest.raises(RefusedGrowth, match="reads the content of a tensor that depends on weights"):
        trace(Compares(6, 4).to(device), (torch.ones(2, 6),))


def test_a_tensor_on_meta_that_nothing_holds_is_named():
    class Table(nn.Linear):
        def __init__(self):
            super().__init__(3, 4)
            self.table = torch.arange(4.0)

        def forward(self, x):
            return super().forward(x) * self.table

    with torch.device("meta"):
        module = Table()
    with pytest.raises(RefusedGrowth, match="its forward reads a tensor on the meta device that is no parameter"):
        trace(module, (torch.ones(2, 3),))


def test_every_operator_names_its_module():
    source, _, inputs = PAIRS["residual stream"].make()
    parts = [node for node in trace(source, inputs).nodes if node.whole is not None]
    assert {node.whole.name for node in parts} == {"native_layer_norm"}
    assert {node.path for node in parts} == {"blocks.0.0", "blocks.1.0", "norm"}
    assert parts[0].place == "aten.native_layer_norm.default in 'blocks.0.0'"


def test_constants_are_computed_and_weights_are_not():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("kept", torch.ones(4))
            self.register_buffer("made", torch.full((4,), 3.0), persistent=False)

        def forward(self, x):
            return x * (torch.arange(4.0) + 1) * self.made * self.kept

    tape = trace(Scaled(), (torch.ones(2, 4),))
    factors = [value.constant for node in tape.nodes if node.name == "mul" for value in node.tensors()]
    known = [item.tolist() for item in factors if item is not None]
    assert known == [[1.0, 2.0, 3.0, 4.0], [3.0] * 4]  # a saved buffer is a state, not a constant
    assert tape.tensors["kept"].learned
    assert not tape.tensors["made"].learned


def test_a_write_through_a_view_that_no_rule_knows_is_opaque():
    def assign(a, b):
        a = a * 2
        a.as_strided((2,), (2,)).copy_(b)
        return a

    tape = trace(Two((5,), (2,), assign), ())
    reasons = [meaning.reason for node in tape.nodes for meaning in node.meaning if isinstance(meaning, Opaque)]
    assert "writes in place through aten.as_strided.default" in reasons[-1]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [((1, 2), ((1, 2), {})), ([1], ((1,), {})), ({"x": 1}, ((), {"x": 1})), (3, ((3,), {}))],
    ids=["tuple", "list", "dict", "one"],
)
def test_example_inputs_become_arguments(given, wanted):
    assert call_arguments(given) == wanted


def test_tied_parameters_are_one_value():
    module = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    module[1].weight = module[0].weight
    tensors = trace(module, (torch.ones(2, 6),)).tensors
    assert tensors["0.weight"] is tensors["1.weight"]
    assert tensors["0.bias"] is not tensors["1.bias"]


def test_outputs_in_containers_are_found():
    call = lambda part, x: {"a": part(x), "b": [x, None], "c": torch.distributions.Normal(x, 1.0, validate_args=False)}  # noqa: E731
    tape = trace(stack(4).double(), features(), call)
    assert [[axis.size for axis in value.axes] for value in tape.outputs.values()] == [[5, 3], [5, 6], [5, 6], [5, 6]]


@dataclass
class Record:
    """What a forward may return: tensors beside settings."""

    y: Any
    settings: Any = None


class Thing:
    """A class of no particular kind that knows itself."""

    def __init__(self, y):
        self.y, self.me, self.name = y, self, "thing"


NORMAL = torch.distributions.Normal
HIDDEN = {
    "namespace": lambda y: SimpleNamespace(y=y),
    "dataclass": lambda y: Record(y, {"names": ["a"]}),
    "any class": Thing,
    "objects in containers in objects": lambda y: {"a": [Thing((1, Record([SimpleNamespace(y=y)])))]},
    "distribution of distributions": lambda y: torch.distributions.Independent(
        NORMAL(y, torch.ones(()), validate_args=False), 1, validate_args=False
    ),
}


@pytest.mark.parametrize("hide", HIDDEN.values(), ids=HIDDEN)
def test_outputs_in_objects_are_found_and_compared(hide):
    forward = lambda part, x: hide(part(x))  # noqa: E731
    source, target = stack(4).double(), stack(6).double()
    assert [5, 3] in [
        [axis.size for axis in value.axes] for value in trace(source, features(), forward).outputs.values()
    ]
    report = grow(source, target, strategy="random", example_inputs=features(), forward=forward)
    old, new = (module(*features()).detach() for module in (source, target))
    assert report.max_output_error == pytest.approx(float((new - old).abs().max() / old.abs().max()))
    assert grow(source, target, example_inputs=features(), forward=forward).function_preserving


@pytest.mark.parametrize(
    "lose",
    [lambda y: None, lambda y: float(len(y)), lambda y: iter([y]), lambda y: lambda: y],
    ids=["nothing", "a number", "an iterator", "a function"],
)
def test_a_forward_without_outputs_is_refused(lose):
    with pytest.raises(RefusedGrowth, match=r"Sequential returns no tensor that could be compared.*pass forward="):
        trace(stack(4).double(), features(), lambda part, x: lose(part(x)))


def test_a_buffer_on_the_meta_device_that_no_file_holds_is_named():
    class Rotary(nn.Linear):
        def __init__(self):
            super().__init__(3, 4)
            self.register_buffer("frequencies", torch.arange(4.0), persistent=False)

        def forward(self, x):
            return super().forward(x) * self.frequencies

    with torch.device("meta"):
        target = Rotary()
    with pytest.raises(RefusedGrowth, match=r"the buffers 'frequencies' are on the meta device.*on a real device"):
        trace(target, (torch.ones(2, 3),))


def test_a_forward_may_return_a_distribution():
    def checked(part, x):
        return torch.distributions.Categorical(logits=part(x), validate_args=True)

    tape = trace(stack(4), (torch.ones(5, 6),), checked)
    assert [[axis.size for axis in value.axes] for value in tape.outputs.values()] == [[5, 3]]


class Made(nn.Module):
    """A forward that makes constants where its input is: their content is not on the meta device."""

    def __init__(self, width, make):
        super().__init__()
        self.into, self.out, self.make = nn.Linear(6, width), nn.Linear(width, 3), make

    def forward(self, x):
        return self.out(self.make(x, self.into(x).tanh()))


MADE = {
    "a number on the input's device": lambda x, h: h * torch.tensor(0.5, device=x.device),
    "a mask from a list": lambda x, h: torch.where(torch.tensor([[True]] * len(x), device=x.device), h, -h),
    "a list as an index": lambda x, h: h[[3, 1, 0, 2, 4]],
    "an empty cache": lambda x, h: torch.cat([torch.tensor([], dtype=h.dtype, device=h.device), h], 0),
    "a permuted table": lambda x, h: (
        h * torch.arange(10.0, dtype=h.dtype).view(2, 5).t().contiguous().view(5, 2)[:, :1]
    ),
    "a permuted table, flat": lambda x, h: h * torch.ones(2, 5, 1).permute(1, 0, 2).contiguous().view(10)[:5, None],
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_contents_that_a_forward_makes_are_seen(make):
    source, target = Made(4, make).double(), Made(7, make).double()
    assert grow(source, target, example_inputs=features()).max_output_error < 1e-14  # a few roundings of float64
    torch.testing.assert_close(target(*features()), source(*features()))


def test_another_content_is_another_function():
    one, other = ((lambda x, h, number=number: h + torch.tensor(number, device=x.device)) for number in (0.5, 0.25))
    with pytest.raises(RefusedGrowth, match=r"aten\.add\.Tensor"):
        grow(Made(4, one), Made(7, other), example_inputs=(features()[0].float(),), verify=False)


def test_a_first_pass_computes_nothing():
    """Tensors on the meta device: a plan of a model of any size costs no arithmetic."""
    seen = []

    def forward(module, x):
        seen.append((x.device.type, module.weight.device.type))
        return module(x)

    trace(nn.Linear(6, 4), features(), forward)
    assert seen == [("meta", "meta")]


def test_a_laid_out_constant_keeps_its_kind():
    class Permuted(nn.Module):
        def forward(self, x):
            order = torch.arange(6).view(2, 3).t().clone()
            return x[:, order.add_(0).reshape(-1)]

    traced = trace(Permuted(), features())
    contents = [value.constant for node in traced.nodes for value in node.outputs if value.constant is not None]
    assert all(content.dtype == torch.int64 for content in contents)
    assert contents[-1].flatten().tolist() == [0, 3, 1, 4, 2, 5]
