"""Every copy of the weights in a checkpoint grows by their plan, wherever it lies and whatever it is called."""

import copy
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from stacks import Stack
from torch import nn

from lightning_grow import RefusedGrowth, convert_checkpoint

INPUT = torch.linspace(-1, 1, 20).reshape(5, 4)
SOURCE, TARGETS = {"hidden_dims": (8,)}, {"wider": {"hidden_dims": (12,)}, "deeper": {"hidden_dims": (8, 8)}}


def as_torch_ema(average):
    return {"ema": {"decay": 0.5, "shadow_params": list(average.values()), "collected_params": None}}


# what a user's callback, hook or library makes of {name: tensor}, and how its owner finds the weights again
HELD = {
    "by name, in a callback": (
        lambda average: {"callbacks": {"Ema": {"shadow": average}}},
        lambda held, names: held["callbacks"]["Ema"]["shadow"],
    ),
    "with a prefix, nested": (
        lambda average: {
            "best": [{"score": 1.0, "state": OrderedDict({f"module.{k}": v for k, v in average.items()})}]
        },
        lambda held, names: {k.removeprefix("module."): v for k, v in held["best"][0]["state"].items()},
    ),
    "without a prefix": (
        lambda average: {"model": {k.removeprefix("net."): v for k, v in average.items()}},
        lambda held, names: {f"net.{k}": v for k, v in held["model"].items()},
    ),
    "compiled, beside a counter": (
        lambda average: {"ema": {"n_averaged": torch.tensor(3), **{f"_orig_mod.{k}": v for k, v in average.items()}}},
        lambda held, names: {k.removeprefix("_orig_mod."): v for k, v in held["ema"].items() if k != "n_averaged"},
    ),
    "a list (torch_ema)": (
        as_torch_ema,
        lambda held, names: dict(zip(names, held["ema"]["shadow_params"], strict=True)),
    ),
    "a tuple in a tuple": (
        lambda average: {"ema": (0.5, tuple(average.values()))},
        lambda held, names: dict(zip(names, held["ema"][1], strict=True)),
    ),
    "in another precision": (
        lambda average: {"ema": {k: v.double() for k, v in average.items()}},
        lambda held, names: {k: v.float() for k, v in held["ema"].items() if v.dtype == torch.float64},
    ),
}


def averaged(seed=1):
    """A module and another one of its shapes, as an average would be."""
    torch.manual_seed(seed)
    module, average = Stack(**SOURCE), Stack(**SOURCE)
    return module, {name: item.detach().clone() for name, item in average.named_parameters()}, average(INPUT).detach()


def grow_file(folder, module, extra, target, **options):
    path = folder / "small.ckpt"
    state = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams), "callbacks": {}}
    torch.save({"pytorch-lightning_version": "2.6.4", "epoch": 0, "global_step": 0, **state, **extra}, path)
    report = convert_checkpoint(path, target, folder / "big.ckpt", **options)
    return SimpleNamespace(report=report, held=torch.load(folder / "big.ckpt", weights_only=True))


@pytest.mark.parametrize("way", TARGETS)
@pytest.mark.parametrize(("hold", "take"), HELD.values(), ids=HELD)
def test_a_copy_computes_what_it_did(tmp_path, hold, take, way):
    module, average, expected = averaged()
    target = Stack(**TARGETS[way])
    done = grow_file(tmp_path, module, hold(average), target)
    got = take(done.held, [name for name, _ in target.named_parameters()])
    assert got.keys() == dict(target.named_parameters()).keys()
    torch.testing.assert_close(torch.func.functional_call(target, got, (INPUT,)), expected)  # float32's own tolerance
    assert any("Copies of the weights that grew with them" in note for note in done.report.notes)


@pytest.mark.parametrize("strategy", ["preserve", "net2wider", "interpolate"])
def test_its_new_entries_are_those_of_the_weights(tmp_path, strategy):
    module, _, _ = averaged()
    same = {name: item.clone() for name, item in module.state_dict().items()}
    held = grow_file(tmp_path, module, {"ema": same}, Stack(hidden_dims=(12,)), strategy=strategy).held
    assert held["ema"].keys() == held["state_dict"].keys()
    assert all(torch.equal(held["ema"][name], item) for name, item in held["state_dict"].items())


class Twins(Stack):
    """Two parts that are alike."""

    def __init__(self, hidden_dims=(8,), state_dim=4):
        super().__init__(hidden_dims, state_dim)
        self.other = copy.deepcopy(self.net)

    def forward(self, x):
        return self.net(x) + self.other(x)


def part(average):
    first, *rest = average.items()
    return {"ema": {f"old.{first[0]}": first[1], **dict(rest)}}


REFUSED = {
    "some names are others": (Stack, part, "in part: 'old.net.0.weight' has the shape"),
    "by name, of one of two": (
        Twins,
        lambda average: {"ema": {k[4:]: v for k, v in average.items() if k.startswith("net.")}},
        r"checkpoint\['ema'\] is a copy of 'net.' or 'other.'",
    ),
    "by order, of one of two": (
        Twins,
        lambda average: {"ema": [v for k, v in average.items() if k.startswith("net.")]},
        "without their names",
    ),
}


@pytest.mark.parametrize(("cls", "hold", "said"), REFUSED.values(), ids=REFUSED)
def test_a_copy_of_nobody_knows_what_is_refused(tmp_path, cls, hold, said):
    module = cls()
    average = {name: item.detach().clone() for name, item in module.named_parameters()}
    with pytest.raises(RefusedGrowth, match=said):
        grow_file(tmp_path, module, hold(average), cls(hidden_dims=(12,)))
    assert not (tmp_path / "big.ckpt").exists()


NO_COPIES = {
    "statistics": {"mean": torch.zeros(8), "var": torch.ones(8)},
    "a probe that is as big as a layer": nn.Linear(4, 8).state_dict(),
    "a history": [torch.zeros(8), torch.zeros(8)],
    "numbers": {"best": 1.0, "steps": [1, 2], "none": None, 3: torch.zeros(())},
}


class Normed(Stack):
    """Has a part with two vectors of the same size, as any history may be."""

    def __init__(self, hidden_dims=(8,), state_dim=4):
        super().__init__(hidden_dims, state_dim)
        self.net.insert(1, nn.Sequential(nn.LayerNorm(hidden_dims[0])))


@pytest.mark.parametrize("extra", NO_COPIES.values(), ids=NO_COPIES)
def test_what_is_no_copy_stays(tmp_path, extra):
    done = grow_file(tmp_path, Normed(), {"callbacks": {"Other": extra}}, Normed(hidden_dims=(12,)))
    torch.testing.assert_close(done.held["callbacks"]["Other"], extra, rtol=0, atol=0)
    assert not any("Copies" in note for note in done.report.notes)
