"""One set of options: every door takes it all, checks it, and hands it on."""

import inspect
import math
import re
from dataclasses import fields
from typing import get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from models import features, stack
from omegaconf import OmegaConf
from stacks import GrowableStack, train_small
from typing_extensions import Unpack

import lightning_grow
from lightning_grow import ArchTransfer, GrowableMixin, GrowthOptions, GrowthSchedule, UnknownStrategy
from lightning_grow.errors import WrongSetting
from lightning_grow.options import Options, check_options
from lightning_grow.rl import PPO

TYPES = get_type_hints(GrowthOptions)


def call_mixin(options):
    class Own(GrowableStack):
        transfer_options = options

    Own().on_load_checkpoint({"state_dict": {}})


# door -> (what takes the options, a call with some)
DOORS = {
    "grow": (lightning_grow.grow, lambda options: lightning_grow.grow(stack(8), stack(9), **options)),
    "plan_growth": (
        lightning_grow.plan_growth,
        lambda options: lightning_grow.plan_growth(stack(8), stack(9), **options),
    ),
    "transfer": (
        lightning_grow.grow.__globals__["transfer"],
        lambda options: lightning_grow.grow.__globals__["transfer"](stack(8), stack(9), **options),
    ),
    "convert_checkpoint": (
        lightning_grow.convert_checkpoint,
        lambda options: lightning_grow.convert_checkpoint("no.ckpt", GrowableStack(), "out.ckpt", **options),
    ),
    "ArchTransfer": (ArchTransfer.__init__, lambda options: ArchTransfer(**options)),
    "GrowthSchedule": (
        GrowthSchedule.__init__,
        lambda options: GrowthSchedule([{"hidden_dims": [9]}], at=[1], **options),
    ),
    "load_with_transfer": (
        PPO.load_with_transfer,
        lambda options: PPO(4, 2, hidden_dims=[8]).load_with_transfer("no.ckpt", **options),
    ),
    "transfer_options": (GrowableMixin, call_mixin),
}


def options_of(taker):
    """Name -> type of every keyword that a door takes: its own, and those of the type of its **options."""
    hints = get_type_hints(taker, include_extras=True)
    if isinstance(taker, type):
        return get_type_hints(get_args(hints["transfer_options"])[0])
    (rest,) = [item.name for item in inspect.signature(taker).parameters.values() if item.kind is item.VAR_KEYWORD]
    hint = hints.pop(rest)
    assert get_origin(hint) is Unpack
    return {**hints, **get_type_hints(get_args(hint)[0])}


@pytest.mark.parametrize("door", DOORS)
def test_every_door_takes_every_option_by_its_type(door):
    taken = options_of(DOORS[door][0])
    assert {name: taken.get(name) for name in TYPES} == TYPES


def test_what_is_checked_is_what_is_taken_and_what_is_documented():
    documented = re.findall(r"^        (\w+): ", GrowthOptions.__doc__, re.MULTILINE)
    assert [field.name for field in fields(Options)] == documented
    assert sorted(documented) == sorted(TYPES)


def test_a_schedule_takes_the_keywords_of_arch_transfer():
    own = {name: hint for name, hint in options_of(ArchTransfer.__init__).items() if name != "return"}
    assert {name: options_of(GrowthSchedule.__init__).get(name) for name in own} == own


@pytest.mark.parametrize("door", DOORS)
def test_an_unknown_option_is_an_error_at_every_door(door):
    with pytest.raises(TypeError, match=rf"{door} has no option 'alow_output_growth'. Did you mean 'allow_output_g"):
        DOORS[door][1]({"alow_output_growth": True})


@pytest.mark.parametrize("door", DOORS)
def test_a_wrong_value_is_an_error_at_every_door(door):
    with pytest.raises(WrongSetting, match="Expected seed to be a whole number, but got 'one'"):
        DOORS[door][1]({"seed": "one"})
    with pytest.raises(UnknownStrategy, match="Did you mean 'net2wider'"):
        DOORS[door][1]({"strategy": "net2widr"})


@pytest.mark.parametrize(
    ("door", "wrong", "right"),
    [
        ("convert_checkpoint", "optimiser", "optimizer"),
        ("ArchTransfer", "num_warmup_step", "num_warmup_steps"),
        ("GrowthSchedule", "reset_monitor", "reset_monitors"),
        ("GrowthSchedule", "on_plateu", "on_plateau"),
        ("load_with_transfer", "transfer_stratgy", "transfer_strategy"),
        ("transfer_options", "sourse", "source"),
    ],
)
def test_a_door_knows_its_own_parameters_too(door, wrong, right):
    with pytest.raises(TypeError, match=rf"has no option '{wrong}'. Did you mean '{right}'\?"):
        DOORS[door][1]({wrong: None})


WRONG = {
    "strategy": [None, 3, lightning_grow.Strategy],
    "forward": ["forward", 1],
    "rename": ["body", ["body"], {"body": 1}, {1: "body"}],
    "allow_input_growth": ["yes", 1, None],
    "allow_output_growth": ["false", 0],
    "allow_attribute_changes": [None],
    "drop_inputs": ["rsi*", [1], None, {"rsi": 1}],
    "new_action_prob": [0, 1.0, -0.1, math.nan, "0.1", True],
    "new_log_std": [math.inf, math.nan, "0", False],
    "verify": ["no", 2],
    "tolerance": [-1e-9, math.nan, "1e-3", True],
    "seed": [0.5, "0", None, True],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_value_that_nothing_can_be_made_of_is_refused(name, value):
    with pytest.raises(WrongSetting, match=rf"^Expected {name} to be .*, but got "):
        check_options({name: value}, "grow")


def test_any_value_is_an_example_input():
    assert WRONG.keys() == TYPES.keys() - {"example_inputs"}


X = torch.ones(2, 6)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("example_inputs", [X], (X,)),
        ("example_inputs", OmegaConf.create({"x": 1}), {"x": 1}),
        ("example_inputs", X, X),
        ("drop_inputs", OmegaConf.create(["rsi*"]), ("rsi*",)),
        ("rename", OmegaConf.create({"body": "net"}), {"body": "net"}),
        ("seed", np.int64(3), 3),
        ("tolerance", np.float32(0.5), 0.5),
        ("new_log_std", -1, -1),
    ],
)
def test_what_a_configuration_holds_is_taken_as_pythons_own(name, value, expected):
    found = getattr(check_options({name: value}, "grow"), name)
    assert type(found) is type(expected) or name == "tolerance"
    assert found is expected or found == expected


def test_two_names_of_one_option_are_not_given_at_once():
    with pytest.raises(TypeError, match="a strategy and a transfer_strategy"):
        PPO(4, 2, hidden_dims=[8]).load_with_transfer("no.ckpt", "random", strategy="preserve")


class Drawn(lightning_grow.Strategy):
    """Copies that are drawn."""

    def units(self, old, new, generator):
        return torch.randint(old, (new - old,), generator=generator).double()


def test_a_plan_draws_by_its_seed():
    options = {"strategy": Drawn(), "example_inputs": features()}
    plans = [lightning_grow.plan_growth(stack(8), stack(40), **options, seed=seed) for seed in (0, 1, 1)]
    drawn = [plan.tensors["0.weight"].maps[0].low.tolist() for plan in plans]
    assert drawn[0] != drawn[1] == drawn[2]


def test_transfer_options_may_have_a_source(tmp_path):
    built = []

    class Own(GrowableStack):
        transfer_options = {"source": lambda hparams: built.append(hparams) or GrowableStack(**hparams), "seed": 5}  # noqa: RUF012

    _, path = train_small(tmp_path, GrowableStack)
    assert Own.load_from_checkpoint(path, hidden_dims=[16]).net[0].weight.shape == (16, 4)
    assert built
