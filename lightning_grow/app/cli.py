"""The command line: train a PPO agent from a Hydra configuration, and resume it with a bigger network."""

import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import gymnasium
import hydra
import torch
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, MissingConfigException
from hydra.utils import instantiate
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from lightning_grow.app.config import GymConfig, MarketConfig, Mode, RunConfig
from lightning_grow.app.evaluation import run_evaluation
from lightning_grow.callbacks.surroundings import check_total
from lightning_grow.errors import CheckpointError, GrowError, WrongSetting
from lightning_grow.files.checkpoint import read_checkpoint
from lightning_grow.rl import env_spaces

FAULTS = (GrowError, HydraException, OmegaConfBaseException, gymnasium.error.Error)
"""Faults of what was asked for, not of the program: their message is all that a user needs."""

store = ConfigStore.instance()
store.store(name="run", group="schema", node=RunConfig, package="_global_")
store.store(name="gym", group="schema/env", node=GymConfig)
store.store(name="market", group="schema/env", node=MarketConfig)


FLAGS = {
    "--checkpoint": "ckpt_path=FILE",
    "--ckpt": "ckpt_path=FILE",
    "--ckpt_path": "ckpt_path=FILE",
    "--resume": "ckpt_path=FILE",
    "--config": "experiment=NAME for a whole run, group=choice for a part, or --config-dir=FOLDER for your own files",
    "--seed": "seed=NUMBER",
    "--strategy": "strategy=NAME",
}
"""Flags of other programs, and how the same is said here."""


def main() -> None:
    """Run the command line; a fault is one message and exit code 1, or a traceback with `debug=true`."""
    for flag in [argument.split("=")[0] for argument in sys.argv[1:]]:
        if flag in FLAGS:
            sys.exit(f"There is no {flag} here: say {FLAGS[flag]} (lightning-grow --help lists what there is).")
    sys.path.insert(0, os.getcwd())  # for env.id=module:Id with a module of one's own, as `python -m` has it
    wants_traceback = "debug=true" in sys.argv or os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing, so that the message can be ours
    try:
        run()
    except FAULTS as error:
        if wants_traceback:
            raise
        sys.exit(f"{explain(error)}\n(debug=true shows where.)")


@hydra.main(version_base="1.3", config_path="pkg://lightning_grow.conf", config_name="config")
def run(config: DictConfig) -> None:
    """Train as configured, from `ckpt_path` on if there is one, or evaluate its agent; say what was written."""
    check_keys(config)
    hush_host()
    ckpt_path = find_checkpoint(config.ckpt_path)
    torch.set_num_threads(config.num_threads)
    seed_everything(config.seed, workers=True, verbose=False)
    if config.mode == Mode.eval:
        return run_evaluation(config, ckpt_path)
    model, trainer = make_model(config), make_trainer(config)
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
        print_summary(trainer, Path(config.run_dir))


def check_keys(config: DictConfig) -> None:
    """Refuse what `+` has added where nothing reads it, and name the key that is meant.

    Raises:
        WrongSetting: A key of the run is not one of its schema's.
    """
    known = [item.name for item in fields(RunConfig)]
    for key in [str(key) for key in config if key not in known]:
        added = config[key]
        names = list(added) if isinstance(added, DictConfig) else [key]
        paths = {path.rpartition(".")[2]: path for path in [*reversed(list(key_paths(config, known))), *known]}
        meant = [paths[near] for name in names for near in get_close_matches(str(name), paths, n=1, cutoff=0.5)]
        hint = f" Did you mean {' and '.join(dict.fromkeys(meant))}?" if meant else ""
        raise WrongSetting(f"There is no key '{key}', and nothing reads it.{hint} Known: {', '.join(known)}.")


def key_paths(config: DictConfig, keys: Iterable[str]) -> Iterator[str]:
    """The dotted names of all keys in the groups of these names."""
    for key in keys:
        group = config.get(key)
        yield from (f"{key}.{name!s}" for name in group) if isinstance(group, DictConfig) else ()


def hush_host() -> None:
    """Leave out what a user can do nothing about."""
    # Lightning asks torch in a way that torch deprecates; and every run here has a folder of its own.
    for message in (r"`isinstance\(treespec, LeafSpec\)` is deprecated", "The dirpath has changed from"):
        warnings.filterwarnings("ignore", message)
    # Advertisements.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "Tip:" not in str(record.msg))


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


def explain(error: BaseException) -> str:
    """Say what was wrong in one message: the library's own words if there are any in the chain, else Hydra's."""
    chain = list(causes(error))
    for cause in chain:
        if isinstance(cause, GrowError):
            return str(cause)
    hint = next(filter(None, map(suggest, chain)), "")
    message = str(error)
    if hint:  # Hydra's next lines list the same choices, its search path, or how to add a key that was only misspelt
        message = message.splitlines()[0].rstrip(".") + "."
    elif isinstance(error.__cause__, OmegaConfBaseException):
        message += f"\n{error.__cause__}"
    return f"{message}\n{hint}".strip()


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, its cause, the cause of that, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


def suggest(error: BaseException) -> str:
    """Name what was probably meant where a key, or a choice of a group, is unknown; else nothing."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        wanted, known = Path(error.missing_cfg_file).name, list(error.options)
    elif isinstance(error, (ConfigAttributeError, ConfigKeyError)) and isinstance(error.parent_node, DictConfig):
        wanted, known = str(error.key), [str(key) for key in error.parent_node]
    else:
        return ""
    nearest = " or ".join(f"'{near}'" for near in get_close_matches(wanted, known, n=2, cutoff=0.7))
    return f"Did you mean {nearest}? Known: {', '.join(known)}." if nearest else f"Known: {', '.join(known)}."
