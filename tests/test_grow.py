"""Grown models compute what their sources compute."""

import copy
import random

import numpy as np
import pytest
import torch
from models import PAIRS, Pair, Residual, Streams, features, stack
from torch import nn

from lightning_grow import GrowError, RefusedGrowth, grow, plan_growth
from lightning_grow.apply.apply import write_state
from lightning_grow.grow import transfer

PRESERVING = ("preserve", "net2wider")
# Float64 rounds at 2e-16; a few hundred products and a norm's division leave at most some 1e-14.
EXACT = 1e-13


def outputs(module, inputs):
    with torch.no_grad():
        result = module.eval()(*inputs)
    return [item.detach() for item in (result if isinstance(result, tuple) else (result,))]


def largest_error(source, target, inputs):
    """Recomputed here, apart from the library's own check."""
    pairs = zip(outputs(source, inputs), outputs(target, inputs), strict=True)
    return max(float((new - old).abs().max() / old.abs().max()) for old, new in pairs)


@pytest.mark.parametrize("strategy", PRESERVING)
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_the_grown_model_computes_the_sources_function(pair, strategy):
    source, target, inputs = pair.make()
    report = grow(source, target, strategy=strategy, example_inputs=inputs)
    assert report.function_preserving
    assert report.max_output_error <= EXACT
    other = tuple(torch.randn_like(item) if item.is_floating_point() else item.flip(0) for item in inputs)
    assert largest_error(source, target, other) <= EXACT  # not only on the example


@pytest.mark.parametrize("pair", ["relu", "norms between", "LSTM", "larger heads", "convolution"])
def test_the_promise_holds_in_train_mode(pair):
    source, target, inputs = PAIRS[pair].make()
    grow(source, target, example_inputs=inputs)
    # BatchNorm's own statistics are per unit, so they are the same in train mode too
    torch.testing.assert_close(source.train()(*inputs), target.train()(*inputs), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("strategy", PRESERVING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("pair", ["tanh", "LayerNorm x1.5", "residual stream", "larger heads"])
def test_the_tolerance_follows_the_float_type(pair, dtype, strategy):
    source, target, inputs = PAIRS[pair].make(dtype)
    report = grow(source, target, strategy=strategy, example_inputs=inputs)
    assert report.max_output_error <= report.tolerance
    assert torch.finfo(dtype).eps < report.tolerance < 100 * torch.finfo(dtype).eps


def test_widening_agrees_with_the_formula_written_out_in_numpy():
    source, target, inputs = PAIRS["tanh"].make()
    initial = {name: tensor.clone().numpy() for name, tensor in target.state_dict().items()}
    grow(source, target, example_inputs=inputs)
    old = {name: tensor.numpy() for name, tensor in source.state_dict().items()}
    for layer, (rows, columns) in {"0": (8, 6), "2": (8, 8), "4": (3, 8)}.items():
        wanted = initial[f"{layer}.weight"]
        wanted[:rows, columns:] = 0
        wanted[:rows, :columns] = old[f"{layer}.weight"]
        bias = initial[f"{layer}.bias"]
        bias[:rows] = old[f"{layer}.bias"]
        np.testing.assert_array_equal(target.state_dict()[f"{layer}.weight"].numpy(), wanted)
        np.testing.assert_array_equal(target.state_dict()[f"{layer}.bias"].numpy(), bias)


def test_gates_keep_their_blocks():
    source, target, inputs = PAIRS["LSTM"].make()
    grow(source, target, example_inputs=inputs)
    old, new = source.rnn.weight_hh_l0.view(4, 5, 5), target.rnn.weight_hh_l0.view(4, 8, 8)
    assert torch.equal(new[:, :5, :5], old)
    assert not new[:, :5, 5:].any()


def state_of(module):
    return (
        {name: tensor.clone() for name, tensor in module.state_dict().items()},
        [part.training for part in module.modules()],
        [parameter.requires_grad for parameter in module.parameters()],
    )


REFUSED = {
    "activation": Pair(lambda kind: stack(8, activation=kind), (nn.ReLU,), (nn.Tanh,)),
    "narrower": Pair(stack, (8,), (6,)),
    "tolerance": PAIRS["tanh"],
}


@pytest.mark.parametrize("case", REFUSED)
def test_after_an_error_everything_is_as_it_was(case):
    source, target, inputs = REFUSED[case].make()
    target[0].requires_grad_(False)
    target[1].eval()
    before = [
        state_of(source),
        state_of(target),
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state()[1].copy(),
    ]
    with pytest.raises(RefusedGrowth):
        grow(
            source, target, strategy="net2wider", example_inputs=inputs, tolerance=0.0 if case == "tolerance" else None
        )
    after = [state_of(source), state_of(target), torch.get_rng_state(), random.getstate(), np.random.get_state()[1]]
    for (old, *modes), (new, *new_modes) in zip(before[:2], after[:2], strict=True):
        assert modes == new_modes
        assert all(torch.equal(old[name], new[name]) for name in old)
    assert torch.equal(before[2], after[2])
    assert before[3] == after[3]
    assert (before[4] == after[4]).all()


def test_a_plan_changes_nothing_and_prints():
    source, target, inputs = PAIRS["convolution"].make()
    before = copy.deepcopy([state_of(source), state_of(target)])
    plan = plan_growth(source, target, example_inputs=inputs)
    for old, new in zip(before, [state_of(source), state_of(target)], strict=True):
        assert old[1:] == new[1:]
        assert all(torch.equal(old[0][name], new[0][name]) for name in old[0])
    assert "first.weight" in str(plan)
    assert [(group.old, group.new) for group in plan.groups] == [(4, 6), (8, 12)]


def test_growing_keeps_modes_gradients_and_buffers():
    source, target, inputs = PAIRS["convolution"].make()
    target.train()
    target.first.requires_grad_(False)
    grow(source, target, example_inputs=inputs)
    assert target.training
    assert not target.first.weight.requires_grad
    assert target.second.weight.requires_grad
    assert torch.equal(target.bn.running_var[:4], source.bn.running_var)  # the check ran in eval mode


@pytest.mark.parametrize("strategy", ["preserve", "copy_and_extend"])
def test_the_same_seed_gives_the_same_entries(strategy):
    states = []
    for seed in (0, 0, 1):
        source, target, inputs = PAIRS["relu"].make()
        states.append(transfer(source, target, strategy=strategy, example_inputs=inputs, seed=seed).state_dict)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    differs = any(not torch.equal(states[0][name], states[2][name]) for name in states[0])
    assert differs == (strategy == "copy_and_extend")  # preserve takes the target's own initial values


def test_a_target_on_the_meta_device_is_initialised_by_its_modules():
    source, _, inputs = PAIRS["relu"].make()
    with torch.device("meta"):
        target = stack(12, 10).double()
    report = grow(source, target, example_inputs=inputs)
    assert report.max_output_error <= EXACT
    assert not any(parameter.is_meta for parameter in target.parameters())
    assert target[0].weight[8:].abs().min() > 0


class Gain(nn.Module):
    """A gain that says nothing of how it starts."""

    def __init__(self, width):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * self.gain


def test_a_meta_module_without_reset_parameters_is_refused():
    source = nn.Sequential(nn.Linear(6, 8), Gain(8), nn.Linear(8, 3)).double()
    with torch.device("meta"):
        target = nn.Sequential(nn.Linear(6, 12), Gain(12), nn.Linear(12, 3)).double()
    with pytest.raises(RefusedGrowth, match=r"'1.gain' has new entries, and '1' \(Gain\) .*has no reset_parameters"):
        grow(source, target, example_inputs=features())


def test_a_meta_module_without_reset_parameters_grows_where_it_needs_no_initial_values():
    source = nn.Sequential(Gain(6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    with torch.device("meta"):
        target = nn.Sequential(Gain(6), nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).double()
    assert grow(source, target, example_inputs=features()).max_output_error <= EXACT


class Keywords(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.net = stack(width)

    def forward(self, *, observation, scale=1.0):
        return {"logits": self.net(observation["features"]) * scale}


def test_inputs_may_be_keywords_and_containers():
    source, target = Keywords(8).double(), Keywords(12).double()
    example = {"observation": {"features": features()[0]}, "scale": 2.0}
    assert grow(source, target, example_inputs=example).max_output_error <= EXACT


def test_a_callable_stands_in_for_a_missing_forward():
    class OnlyStep(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.net = stack(width)

    source, target = OnlyStep(8).double(), OnlyStep(12).double()
    with pytest.raises(RefusedGrowth, match="forward="):
        grow(source, target, example_inputs=features())
    report = grow(source, target, example_inputs=features(), forward=lambda module, x: module.net(x))
    assert report.max_output_error <= EXACT


def test_a_shared_layer_grows_once():
    class Twice(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.into, self.layer, self.out = nn.Linear(6, width), nn.Linear(width, width), nn.Linear(width, 3)

        def forward(self, x):
            x = self.into(x)
            for _ in range(3):
                x = x + self.layer(x.tanh())
            return self.out(x)

    source, target, inputs = Pair(Twice, (8,), (11,)).make()
    assert grow(source, target, example_inputs=inputs).max_output_error <= EXACT


class Named(nn.Module):
    """Observations with names."""

    def __init__(self, names, width=8):
        super().__init__()
        self.input_names = list(names)
        self.register_buffer("mean", torch.zeros(len(names)))
        self.net = nn.Sequential(nn.Linear(len(names), width), nn.Tanh(), nn.Linear(width, 2))

    def forward(self, x):
        return self.net(x - self.mean)


def test_inputs_are_found_by_name_wherever_they_stand():
    old, new = ["a", "b", "c"], ["new", "c", "a", "other", "b"]
    source, target = Named(old).double(), Named(new, 12).double()
    source.mean.normal_(generator=torch.Generator().manual_seed(0))
    x = torch.randn(5, len(new), dtype=torch.float64)
    source.example_input_array = (x[:, [new.index(name) for name in old]],)
    report = grow(source, target, example_inputs=(x,), allow_input_growth=True)
    assert report.max_output_error <= EXACT
    with torch.no_grad():
        known = source(x[:, [new.index(name) for name in old]])
        assert torch.allclose(known, target(x), rtol=0, atol=1e-14)
        x[:, [0, 3]] += 100.0  # new inputs are read with zeros
        assert torch.allclose(known, target(x), rtol=0, atol=1e-12)


def test_a_lost_input_is_refused_by_name():
    source, target = Named(["a", "b", "c"]), Named(["a", "x", "c"])
    with pytest.raises(RefusedGrowth, match=r"inputs are gone: 1 of .* \(b\)"):
        grow(source, target, example_inputs=(torch.randn(5, 3),), allow_input_growth=True)


def test_layers_can_be_renamed():
    class Other(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.a, self.b, self.head = nn.Linear(6, width), nn.Linear(6, width), nn.Linear(2 * width, 3)

        def forward(self, x):
            return self.head(torch.cat([self.a(x).tanh(), self.b(x).relu()], -1))

    torch.manual_seed(0)
    source, target = Streams(6, 6).double(), Other(9).double()
    with pytest.raises(RefusedGrowth, match="no place for the source's 'first'"):
        grow(source, target, example_inputs=features())
    names = {"a": "first", "b": "second", "head": "out"}
    assert grow(source, target, example_inputs=features(), rename=names).max_output_error <= EXACT


def test_a_compiled_submodule_matches_its_plain_twin():
    source, target, inputs = PAIRS["residual stream"].make()
    target.out = torch.compile(target.out, backend="eager")
    assert "_orig_mod" in "".join(target.state_dict())
    report = grow(source, target, example_inputs=inputs)
    assert report.max_output_error <= EXACT
    assert all(item.copied for item in report.tensors)


def test_growing_twice_is_growing_once():
    source, middle, inputs = Pair(Residual, (8, 12), (10, 14)).make()
    _, target, _ = Pair(Residual, (8, 12), (13, 20)).make()
    grow(source, middle, example_inputs=inputs)
    grow(middle, target, example_inputs=inputs)
    assert largest_error(source, target, inputs) <= EXACT


def test_nothing_to_grow_copies_everything():
    source, target, inputs = Pair(Residual, (8, 12), (8, 12)).make()
    report = grow(source, target, example_inputs=inputs)
    assert report.max_output_error == 0.0
    assert all(torch.equal(old, target.state_dict()[name]) for name, old in source.state_dict().items())
    assert issubclass(RefusedGrowth, GrowError)


@pytest.mark.parametrize("strategy", PRESERVING)
@pytest.mark.parametrize("pair", ["LayerNorm x1.5", "LSTM", "tied head, scaled embedding", "deeper and wider"])
def test_writing_in_place_is_writing_a_copy(pair, strategy):
    source, target, inputs = PAIRS[pair].make()
    _, other, _ = PAIRS[pair].make()
    grow(source, target, strategy=strategy, example_inputs=inputs)
    before = [parameter.data_ptr() for parameter in other.parameters()]
    grow(source, other, strategy=strategy, example_inputs=inputs, verify=False)
    assert [parameter.data_ptr() for parameter in other.parameters()] == before
    assert all(torch.equal(one, two) for one, two in zip(target.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (1, 4), (2, 2), (4, 4), (1, 8)], ids=str)
@pytest.mark.parametrize("pair", ["larger heads", "more heads in a group", "pre-norm encoder", "LSTM"])
def test_sizes_that_coincide_do_not_confuse_the_trace(pair, shape):
    source, target, _ = PAIRS[pair].make()
    batch, steps = shape  # as many as heads, units of a head, or one
    grow(source, target, example_inputs=(torch.randn(batch, steps, 6, dtype=torch.float64),))
    other = (torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64),)
    assert largest_error(source, target, other) <= EXACT


@pytest.mark.parametrize("spoil", ["source", "target"])
def test_tensors_that_the_plan_was_not_made_for_are_refused_before_any_is_written(spoil):
    source, target, inputs = PAIRS["tanh"].make()
    plan = plan_growth(source, target, example_inputs=inputs)
    states = {"source": dict(source.state_dict()), "target": dict(target.state_dict())}
    states[spoil]["4.weight"] = torch.zeros(3, 7, dtype=torch.float64)
    before = {name: item.clone() for name, item in states["target"].items()}
    with pytest.raises(RefusedGrowth, match=r"grows '4\.weight' from .* but got .*\(3, 7\).*Nothing was written"):
        write_state(plan, states["source"], states["target"], states["target"], 0)
    assert all(torch.equal(before[name], item) for name, item in states["target"].items())


class Rotary(nn.Module):
    """Turns features by angles that only this module knows: no state dict carries them."""

    def __init__(self, width, base=100.0):
        super().__init__()
        self.width, self.base = width, base
        self.register_buffer("angles", torch.empty(width // 2), persistent=False)
        self.reset_parameters()

    def reset_parameters(self):
        self.angles = self.base ** -(torch.arange(0, self.width, 2, dtype=torch.float64) / self.width)

    def forward(self, x):
        turns = torch.cat([self.angles, self.angles])
        return x * turns.cos() + x.roll(self.width // 2, -1) * turns.sin()


@pytest.mark.parametrize("verify", [True, False])
def test_buffers_of_no_file_on_the_meta_device_are_what_reset_parameters_makes_them(verify):
    source = nn.Sequential(nn.Linear(6, 8), Rotary(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).double()

    def make():
        return nn.Sequential(nn.Linear(6, 8), Rotary(8), nn.ReLU(), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))

    with torch.device("meta"):
        target = make().double()
    inputs = features()
    assert plan_growth(source, target, example_inputs=inputs).refused == ()
    assert target[1].angles.is_meta  # a plan changes nothing
    grow(source, target, example_inputs=inputs, verify=verify)
    assert torch.equal(target[1].angles, source[1].angles)
    torch.testing.assert_close(target(*inputs), source(*inputs), rtol=1e-13, atol=1e-13)  # float64 sums of 12


class Drawn(nn.Module):
    """Initialises what it holds as transformers and timm do: a method of the whole for every part."""

    def __init__(self, width, base=100.0):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, width), Gain(width), Mask(), nn.ReLU(), nn.Linear(width, 3)).double()
        self.apply(self._init_weights)

    def _init_weights(self, part):
        if isinstance(part, Gain):
            nn.init.constant_(part.gain, 7.0)
        if isinstance(part, Mask):
            part.seen.copy_(torch.ones(4, 4).tril().bool())

    def forward(self, x):
        return self.body(x)


class Mask(nn.Module):
    """Adds up what is before: a table of no file, of a type that has no NaN."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.ones(4, 4).tril().bool(), persistent=False)

    def forward(self, x):
        return self.seen.to(x.dtype) @ x


def test_what_is_on_meta_starts_as_init_weights_of_a_module_around_it_says():
    source, inputs = Drawn(8), (torch.randn(4, 6, dtype=torch.float64),)
    with torch.device("meta"):
        target = Drawn(12)
    report = grow(source, target, example_inputs=inputs)
    assert report.max_output_error <= EXACT
    assert target.body[1].gain[8:].tolist() == [7.0] * 4
    assert torch.equal(target.body[2].seen, source.body[2].seen)


@pytest.mark.parametrize("left", ["gain", "seen"])
def test_what_init_weights_leaves_out_is_no_value(left, monkeypatch):
    whole = Drawn._init_weights
    part = {"gain": Gain, "seen": Mask}[left]
    source, inputs = Drawn(8), (torch.randn(4, 6, dtype=torch.float64),)
    monkeypatch.setattr(
        Drawn, "_init_weights", lambda self, item: None if isinstance(item, part) else whole(self, item)
    )
    with torch.device("meta"):
        target = Drawn(12)
    with pytest.raises(RefusedGrowth, match=left):
        grow(source, target, example_inputs=inputs)
    assert all(item.is_meta for item in (*target.parameters(), *target.buffers()))


class TiedHead(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.tokens, self.head = nn.Embedding(16, width), nn.Linear(width, 16, bias=False)
        self.mix = nn.Linear(width, width)
        self.head.weight = self.tokens.weight

    def forward(self, x):
        return self.head(self.mix(self.tokens(x)).relu())


@pytest.mark.parametrize("verify", [True, False])
def test_tied_weights_on_meta_stay_tied(verify):
    source, inputs = TiedHead(8).double(), (torch.arange(6),)
    with torch.device("meta"):
        target = TiedHead(12).double()
    grow(source, target, example_inputs=inputs, verify=verify)
    assert target.head.weight is target.tokens.weight
    torch.testing.assert_close(target(*inputs), source(*inputs), rtol=1e-13, atol=1e-13)  # float64 sums of 12


def test_buffers_of_no_file_whose_values_differ_are_refused_on_the_meta_device_too():
    source = nn.Sequential(nn.Linear(6, 8), Rotary(8), nn.ReLU(), nn.Linear(8, 3)).double()
    with torch.device("meta"):
        target = nn.Sequential(nn.Linear(6, 8), Rotary(8, base=50.0), nn.ReLU(), nn.Linear(8, 3)).double()
    with pytest.raises(RefusedGrowth, match="has other values at the source's positions"):
        grow(source, target, example_inputs=features())
    assert target[1].angles.is_meta


class Described(nn.Sequential):
    """A state dict with something in it that is no tensor."""

    def state_dict(self, *args, **kwargs):
        return {**super().state_dict(*args, **kwargs), "about": {"layers": len(self)}}

    def load_state_dict(self, state_dict, *args, **kwargs):
        return super().load_state_dict({name: item for name, item in state_dict.items() if name != "about"})


def test_what_is_no_tensor_in_a_state_dict_is_no_parameter():
    source, target = (Described(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3)).double() for width in (4, 6))
    assert grow(source, target, example_inputs=features()).max_output_error <= EXACT


def test_a_forward_that_fails_where_the_outputs_are_compared_is_named():
    source, target = (nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3)) for width in (4, 6))
    before = target[0].weight.clone()
    with pytest.raises(RefusedGrowth, match=r"source's own forward fails on the example inputs .*Sequential: .*dtype"):
        grow(source, target, example_inputs=features())
    assert torch.equal(target[0].weight, before)
