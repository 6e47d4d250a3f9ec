"""Both callbacks from a file: LightningCLI's and Hydra's own reading of it, with each of the options."""

import pytest
import torch
import yaml
from hydra.utils import instantiate
from lightning.pytorch.cli import LightningCLI
from omegaconf import OmegaConf
from stacks import Stack

from lightning_grow import ArchTransfer, GrowthOptions, GrowthSchedule
from lightning_grow.strategies.copy_and_extend import CopyAndExtend

STRATEGY = "lightning_grow.strategies.copy_and_extend.CopyAndExtend"
PLAIN = {
    "strategy": "net2wider",
    "rename": {"body": "net"},
    "allow_input_growth": True,
    "allow_output_growth": True,
    "allow_attribute_changes": True,
    "drop_inputs": ["rsi*", "d"],
    "new_action_prob": 0.25,
    "new_log_std": -1.0,
    "verify": False,
    "tolerance": 0.5,
    "seed": 7,
}
# option -> (as LightningCLI has it, as Hydra has it, what the callback then has)
ITEMS = {name: (value, value, value) for name, value in PLAIN.items() if name != "strategy"} | {
    "drop_inputs": (PLAIN["drop_inputs"], PLAIN["drop_inputs"], ("rsi*", "d")),
    "forward": (
        "torch.func.functional_call",
        {"_target_": "hydra.utils.get_method", "path": "torch.func.functional_call"},
        torch.func.functional_call,
    ),
    "example_inputs": (
        [{"class_path": "torch.ones", "init_args": {"size": [2, 4]}}],
        [{"_target_": "torch.ones", "_args_": [2, 4]}],
        (torch.ones(2, 4),),
    ),
    "strategy": (
        {"class_path": STRATEGY, "init_args": {"init_scale": 0.5}},
        {"_target_": STRATEGY, "init_scale": 0.5},
        CopyAndExtend(0.5),
    ),
    "strategy by name": ("net2wider", "net2wider", "net2wider"),
}
STAGES = {"stages": [{"hidden_dims": [16]}], "at": [8]}
CALLBACKS = {"ArchTransfer": (ArchTransfer, {}), "GrowthSchedule": (GrowthSchedule, STAGES)}


def built_by_lightning(tmp_path, monkeypatch, name, arguments):
    path = tmp_path / "config.yaml"
    callback = {"class_path": f"lightning_grow.{name}", "init_args": arguments}
    path.write_text(yaml.safe_dump({"trainer": {"callbacks": [callback], "accelerator": "cpu", "logger": False}}))
    monkeypatch.setattr("sys.argv", ["train.py", f"--config={path}"])
    (found,) = [
        item
        for item in LightningCLI(Stack, run=False, seed_everything_default=1).trainer.callbacks
        if isinstance(item, ArchTransfer)
    ]
    return found


def built_by_hydra(tmp_path, monkeypatch, name, arguments):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"_target_": f"lightning_grow.callbacks.{name}", **arguments}))
    return instantiate(OmegaConf.load(path))


def same(found, expected):
    if isinstance(expected, tuple) and isinstance(expected[0], torch.Tensor):
        return type(found) is tuple and len(found) == len(expected) and all(map(torch.equal, found, expected))
    if isinstance(expected, CopyAndExtend):
        return type(found) is CopyAndExtend and found.init_scale == expected.init_scale
    return found == expected


# LightningCLI 2.6 calls jsonargparse 4.53 in ways that it deprecates
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("build", [built_by_lightning, built_by_hydra])
@pytest.mark.parametrize("item", ITEMS)
@pytest.mark.parametrize("name", CALLBACKS)
def test_a_file_builds_a_callback_with_each_option(tmp_path, monkeypatch, build, item, name):
    cls, own = CALLBACKS[name]
    option = item.split()[0]
    *written, expected = ITEMS[item]
    value = written[build is built_by_hydra]
    callback = build(tmp_path, monkeypatch, name, {**own, option: value, "num_warmup_steps": 7})
    assert type(callback) is cls
    found = getattr(callback.options, option)
    assert same(found.name if item == "strategy by name" else found, expected)
    assert callback.num_warmup_steps == 7


def test_each_option_is_here():
    assert {item.split()[0] for item in ITEMS} == GrowthOptions.__optional_keys__


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("build", [built_by_lightning, built_by_hydra])
@pytest.mark.parametrize("name", CALLBACKS)
def test_a_file_builds_a_callback_with_all_options_together(tmp_path, monkeypatch, build, name):
    callback = build(tmp_path, monkeypatch, name, {**CALLBACKS[name][1], **PLAIN})
    assert callback.options.strategy.name == "net2wider"
    assert all(getattr(callback.options, option) == ITEMS[option][2] for option in PLAIN if option != "strategy")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("build", [built_by_lightning, built_by_hydra])
@pytest.mark.parametrize("name", CALLBACKS)
def test_an_unknown_option_in_a_file_is_an_error(tmp_path, monkeypatch, build, name, capsys):
    with pytest.raises((SystemExit, Exception)) as caught:
        build(tmp_path, monkeypatch, name, {**CALLBACKS[name][1], "alow_input_growth": True})
    assert "alow_input_growth" in f"{caught.value} {caught.value.__cause__} {capsys.readouterr().err}"
