"""The command line: a Hydra configuration and what to do with it; `--help` is answered before anything heavy loads."""

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import fields
from difflib import get_close_matches
from importlib.metadata import version

import hydra
from omegaconf import DictConfig

from lightning_grow.app.config import RunConfig
from lightning_grow.app.faults import explain, is_of_the_user
from lightning_grow.errors import WrongSetting
from lightning_grow.extras import extra

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
    if "--version" in sys.argv:
        return print(f"lightning-grow {version('lightning-grow')}")
    for flag in [argument.split("=")[0] for argument in sys.argv[1:]]:
        if flag in FLAGS:
            sys.exit(f"There is no {flag} here: say {FLAGS[flag]} (lightning-grow --help lists what there is).")
    sys.path.insert(0, os.getcwd())  # for env.id=module:Id with a module of one's own, as `python -m` has it
    wants_traceback = "debug=true" in sys.argv or os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing, so that the message can be ours
    try:
        run()
    except Exception as error:
        if wants_traceback or not is_of_the_user(error):
            raise
        sys.exit(f"{explain(error)}\n(debug=true shows where.)")


@hydra.main(version_base="1.3", config_path="pkg://lightning_grow.conf", config_name="config")
def run(config: DictConfig) -> None:
    """Train as configured, from `ckpt_path` on if there is one, or evaluate its agent; say what was written."""
    check_keys(config)
    with extra("all"):
        from lightning_grow.app.training import train_or_evaluate  # seconds of imports, which --help does without

    train_or_evaluate(config)


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
