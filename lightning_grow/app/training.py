"""What the command line does: train a PPO agent, resume it with a bigger network, or evaluate it."""

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from lightning_grow.app.config import Mode
from lightning_grow.app.evaluation import run_evaluation
from lightning_grow.app.sweep import write_run
from lightning_grow.callbacks.surroundings import check_total
from lightning_grow.errors import CheckpointError, WrongSetting
from lightning_grow.files.checkpoint import read_checkpoint
from lightning_grow.rl import env_spaces


def train_or_evaluate(config: DictConfig) -> None:
    """Train as configured, from `ckpt_path` on if there is one, or evaluate its agent; say what was written."""
    hush_host()
    with logged_to_file():
        _train_or_evaluate(config)


def _train_or_evaluate(config: DictConfig) -> None:
    ckpt_path = find_checkpoint(config.ckpt_path)
    torch.set_num_threads(config.num_threads)
    seed_everything(config.seed, workers=True, verbose=False)
    if config.mode == Mode.eval:
        return run_evaluation(config, ckpt_path)
    model, trainer, start = make_model(config), make_trainer(config), time.perf_counter()
    if ckpt_path is not None:
        check_total(trainer, read_checkpoint(ckpt_path))
    try:
        trainer.fit(model, ckpt_path=ckpt_path, weights_only=True)
    except KeyError as error:
        if "checkpoint contains only the model" not in str(error):  # Lightning's words
            raise
        raise CheckpointError(
            f"ckpt_path={ckpt_path} holds weights only, and a run of the same network goes on with its optimizer. Pass "
            "a checkpoint that was saved in full; a bigger network may start from weights only."
        ) from error
    if trainer.is_global_zero:
        numbers = {
            "metrics": {name: value.item() for name, value in trainer.callback_metrics.items()},
            "global_step": trainer.global_step,
            "parameters": sum(item.numel() for item in model.parameters()),
            "seconds": time.perf_counter() - start,
        }
        write_run(Path(config.run_dir), HydraConfig.get().overrides.task, numbers)
        print_summary(trainer, Path(config.run_dir))


def hush_host() -> None:
    """Leave out what a user can do nothing about."""
    # Lightning asks torch in a way that torch deprecates; and every run here has a folder of its own.
    for message in (r"`isinstance\(treespec, LeafSpec\)` is deprecated", "The dirpath has changed from"):
        warnings.filterwarnings("ignore", message)
    # Advertisements.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "Tip:" not in str(record.msg))


@contextmanager
def logged_to_file() -> Iterator[None]:
    """Let Hydra's file, cli.log, have what Lightning says in here: the next run of a sweep has a file of its own."""
    lightning = logging.getLogger("lightning.pytorch")
    files = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)]
    for handler in files:
        lightning.addHandler(handler)
    try:
        yield
    finally:
        for handler in files:
            lightning.removeHandler(handler)


def find_checkpoint(ckpt_path: str | None) -> str | None:
    """Check that the checkpoint is there, and make its path absolute.

    Raises:
        CheckpointError: If there is no such file; names those beside it.
    """
    if ckpt_path is None or "://" in ckpt_path:  # an address is looked up where files are read
        return ckpt_path
    path = Path(ckpt_path).absolute()
    if not path.exists():
        beside = sorted(file.name for file in path.parent.glob("*.ckpt"))
        found = f"that folder has {', '.join(beside)}" if beside else "that folder has no .ckpt file either"
        raise CheckpointError(f"ckpt_path={ckpt_path} does not exist ({path}); {found}.")
    return str(path)


def make_model(config: DictConfig) -> LightningModule:
    """Build the module, with the sizes that the environment has; its hyperparameters are plain containers."""
    env: dict[str, Any] = OmegaConf.to_container(config.env, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    env |= env.pop("kwargs", {})
    found = env_spaces(env, images=config.model.get("encoder") is not None)
    sizes = dict(zip(("state_dim", "action_dim", "continuous"), found, strict=True))
    missing = {name: size for name, size in sizes.items() if config.model[name] is None}
    model: LightningModule = instantiate(config.model, env=env, **missing, _convert_="all")
    return model


def make_trainer(config: DictConfig) -> Trainer:
    """Build the callbacks, the loggers and the Trainer; a null among them is left out."""
    callbacks, loggers = (instantiate(group or {}, _convert_="all") for group in (config.callbacks, config.logger))
    chosen = {
        "callbacks": [callback for callback in callbacks.values() if callback is not None],
        "logger": [logger for logger in loggers.values() if logger is not None] or False,
    }
    make = instantiate(config.trainer, _convert_="all", _partial_=True)
    try:
        trainer: Trainer = make(**chosen)
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise WrongSetting(f"the Trainer cannot be made as configured: {error}") from error
    return trainer


def print_summary(trainer: Trainer, run_dir: Path) -> None:
    """Print the final numbers and every file that the run wrote."""
    print(f"\n{trainer.current_epoch} epochs, {trainer.global_step} optimizer steps (global_step) in all")
    width = max(map(len, trainer.callback_metrics), default=0)
    for name, value in sorted(trainer.callback_metrics.items()):
        print(f"  {name:<{width}} {value.item():.6g}")
    print(f"wrote to {run_dir}")
    for file in sorted(run_dir.rglob("*")):
        if file.is_file() and ".hydra" not in file.parts:
            print(f"  {file.relative_to(run_dir)}")
