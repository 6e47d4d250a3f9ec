"""Hyperparameters that are objects: a file that holds them resumes, grows, and differs field by field."""

from dataclasses import dataclass, field
from enum import Enum

import pytest
import torch
from stacks import GrowableStack, Stack, batches, make_trainer, train_small

from lightning_grow import ArchTransfer, CheckpointError, convert_checkpoint
from lightning_grow.files.checkpoint import read_checkpoint
from lightning_grow.files.hparams import name_differences


class Activation(Enum):
    RELU = "relu"
    TANH = "tanh"


@dataclass
class Inner:
    width: int = 8
    activation: Activation = Activation.RELU


@dataclass
class Config:
    inner: Inner = field(default_factory=Inner)
    lr: float = 1e-2


class Other(Enum):
    ONE = 1


class Configured(Stack):
    def __init__(self, cfg=None, state_dim=4):
        cfg = cfg or Config()
        super().__init__((cfg.inner.width,), state_dim, cfg.inner.activation.value, cfg.lr)


class GrowableConfigured(GrowableStack, Configured):
    pass


@pytest.mark.parametrize("cls", [Configured, GrowableConfigured])
@pytest.mark.parametrize("width", [8, 12])
def test_dataclasses_and_enums_of_the_module_are_read(tmp_path, cls, width):
    small, path = train_small(tmp_path, cls, ArchTransfer())
    big = cls(Config(Inner(width)))
    make_trainer(tmp_path, ArchTransfer()).validate(big, batches(), ckpt_path=path)
    torch.testing.assert_close(big.eval()(big.example_input_array), small.eval()(big.example_input_array))
    convert_checkpoint(path, cls(Config(Inner(12))), tmp_path / "big.ckpt")


def test_what_the_module_is_not_made_of_is_not_read(tmp_path):
    torch.save({"state_dict": {}, "hyper_parameters": {"cfg": Config(), "other": Other.ONE}}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"test_hparams\.Other"):
        read_checkpoint(tmp_path / "a.ckpt", hparams={"cfg": Config()})
    assert read_checkpoint(tmp_path / "a.ckpt", hparams=[Config(), {"x": (Other.ONE,)}])["hyper_parameters"]["other"]


def test_they_differ_field_by_field():
    pair = Config(), Config(Inner(12, Activation.TANH))
    assert list(name_differences({"cfg": pair})) == [
        "cfg.inner.width: 8 in the checkpoint, 12 in the config.",
        "cfg.inner.activation: relu in the checkpoint, tanh in the config.",
    ]


class ByName(Enum):
    """Pickled as Python 3.11.0 to 3.11.3 pickles every enum."""

    ONE = 1

    def __reduce_ex__(self, protocol):
        return getattr, (type(self), self.name)


class Reached:
    """Pickled as a method of a class that is allowed: what asks ``getattr`` for more than a member."""

    def __reduce__(self):
        return getattr, (Config, "__init__")


def test_enums_pickled_by_name_are_read_and_nothing_else_is_reached(tmp_path):
    torch.save({"state_dict": {}, "hyper_parameters": {"one": ByName.ONE}}, tmp_path / "a.ckpt")
    assert read_checkpoint(tmp_path / "a.ckpt", hparams=[ByName.ONE])["hyper_parameters"]["one"] is ByName.ONE
    with pytest.raises(CheckpointError, match="ByName"):
        read_checkpoint(tmp_path / "a.ckpt")
    torch.save({"state_dict": {}, "hyper_parameters": {"one": Reached()}}, tmp_path / "b.ckpt")
    with pytest.raises(CheckpointError, match=r"would need code to load \(builtins\.getattr\)"):
        read_checkpoint(tmp_path / "b.ckpt", hparams=[Config()])
