"""Faults of what was asked for, not of the program: their message is all that a user needs."""

import sys
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from lightning_grow.errors import GrowError


def is_of_the_user(error: Exception) -> bool:
    """Whether an error is about what was asked for."""
    gymnasium = sys.modules.get("gymnasium")  # where it was not imported, it has raised nothing
    own = () if gymnasium is None else (gymnasium.error.Error,)
    return isinstance(error, (GrowError, HydraException, OmegaConfBaseException, *own))


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
