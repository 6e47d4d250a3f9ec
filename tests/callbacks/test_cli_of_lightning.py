"""Lightning's own command line builds the callbacks; what it does to --ckpt_path is said."""

import warnings

import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from stacks import Stack, batches, train_small

from lightning_grow import ArchTransfer, GrowthSchedule

# LightningCLI 2.6 calls jsonargparse 4.53 in ways that it deprecates
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "limit_val_batches": 0,
    "max_epochs": 3,
}
GROWN = ["--model.hidden_dims=[16]"]


class Plain(Stack):
    """A stack with the types that a command line needs."""

    def __init__(
        self,
        hidden_dims: list[int] = (8,),
        state_dim: int = 4,
        activation: str = "relu",
        learning_rate: float = 1e-2,
        schedule: str | None = None,
    ):
        super().__init__(hidden_dims, state_dim, activation, learning_rate, schedule)

    def train_dataloader(self):
        return batches()

    val_dataloader = train_dataloader


@pytest.fixture
def command(tmp_path, monkeypatch):
    def run_command(*arguments, run=True):
        monkeypatch.setattr("sys.argv", ["train.py", *arguments])
        defaults = {**QUIET, "default_root_dir": str(tmp_path)}
        options = {"save_config_kwargs": {"overwrite": True}, "seed_everything_default": 0}
        return LightningCLI(Plain, trainer_defaults=defaults, run=run, **options)

    return run_command


def test_options_of_the_command_line_build_the_callbacks(command):
    cli = command(
        "--trainer.callbacks+=ArchTransfer",
        "--trainer.callbacks.optimizer=transfer",
        "--trainer.callbacks.num_warmup_steps=7",
        run=False,
    )
    (callback,) = [item for item in cli.trainer.callbacks if isinstance(item, ArchTransfer)]
    assert (callback.optimizer, callback.num_warmup_steps) == ("transfer", 7)
    cli = command(
        "--trainer.callbacks+=GrowthSchedule",
        "--trainer.callbacks.stages=[{hidden_dims: [16]}]",
        "--trainer.callbacks.at=[8]",
        "--trainer.callbacks.optimizer=transfer",
        run=False,
    )
    (callback,) = [item for item in cli.trainer.callbacks if isinstance(item, GrowthSchedule)]
    assert (callback.stages, callback.at, callback.optimizer) == ([{"hidden_dims": [16]}], [8], "transfer")


def test_a_growth_that_the_command_line_undoes_is_warned_of_and_the_way_out_works(tmp_path, command):
    small, path = train_small(tmp_path, Plain)
    options = ["--trainer.callbacks+=ArchTransfer", *GROWN]
    with pytest.warns(UserWarning, match=r"Nothing grew, and could not: LightningCLI.*run=False"):
        cli = command("fit", *options, f"--ckpt_path={path}")
    assert cli.model.net[0].weight.shape == (8, 4)
    for same in (True, False):
        cli = command(*options[: 1 if same else None], run=False)
        with warnings.catch_warnings(record=True) as seen:
            cli.trainer.fit(cli.model, ckpt_path=path)
        assert not [item for item in seen if "Nothing grew" in str(item.message)]
    assert cli.model.net[0].weight.shape == (16, 4)
    assert cli.trainer.global_step == 24
    assert not torch.equal(cli.model.net[0].weight[:8], small.net[0].weight)
