"""The one safe door for checkpoint files: nothing that they hold runs, and every fault is named."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from lightning_grow.errors import CheckpointError
from lightning_grow.files.archive import at_hand, check_file, open_file
from lightning_grow.files.foreign import describe, describe_file
from lightning_grow.files.hparams import find_types, take_member
from lightning_grow.files.sections import check_sections

KEY = "lightning_grow"
"""The library's own key in a checkpoint; everything under it is of plain types."""

Load = Callable[[str, bool], Any]


def read_checkpoint(
    path: str | Path, *, weights_only: bool = True, load: Load | None = None, hparams: Any = None
) -> dict[str, Any]:
    """Read a checkpoint that Lightning wrote, without ever running code from it.

    Args:
        path: A file, or the address of one that fsspec can open (file://, memory://, s3://, https://).
        weights_only: False lets the file run code while it loads; only for files you made yourself.
        load: What reads the file, given the path and `weights_only`; ``torch.load`` to the CPU when None.
        hparams: The hyperparameters of the module that it is for: the dataclasses and enums among them may be in the
            file, for the module's own code has made them already.

    Returns:
        The checkpoint; `state_dict` is in it.

    Raises:
        CheckpointError: The file is missing, a folder, empty, cut short, damaged, no checkpoint, would need code to
            load, or has something under a key that cannot be what the key is for.
    """
    with torch.serialization.safe_globals([*find_types(hparams), (take_member, "builtins.getattr")]):
        checkpoint = read_file(path, weights_only=weights_only, load=load)
    if isinstance(checkpoint, dict) and isinstance(checkpoint.get("state_dict"), Mapping):
        check_sections(checkpoint, KEY, path)
        return checkpoint
    raise CheckpointError(f"{path} is not a Lightning checkpoint: {describe(checkpoint)}")


def read_file(path: str | Path, *, weights_only: bool = True, load: Load | None = None) -> Any:
    """Read any file that ``torch.save`` wrote, as safely as `read_checkpoint` but whatever it holds.

    Args:
        path: As for `read_checkpoint`.
        weights_only: As for `read_checkpoint`.
        load: As for `read_checkpoint`.

    Returns:
        What was saved, on the CPU.

    Raises:
        CheckpointError: As for `read_checkpoint`.
    """
    with at_hand(path) as place:
        check_file(place, others=load is not None)
        try:
            return (load or _load)(str(place), weights_only)
        except MemoryError:
            raise
        except Exception as error:
            raise CheckpointError(explain(place, error)) from error


def check_finite(state: Mapping[str, Any], names: Iterable[str], path: str | Path = "the checkpoint") -> None:
    """Refuse to grow weights that are already lost.

    Args:
        state: A state dict.
        names: The parameters to look at. Buffers may hold infinities on purpose (an attention mask).
        path: Named in the error.

    Raises:
        CheckpointError: A parameter holds NaN or infinity.
    """
    tensors = {name: state[name] for name in names if isinstance(state.get(name), Tensor)}
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(
            f"{path}: NaN or infinite weights in {', '.join(broken)}. The run had diverged when this was saved: "
            "resume from an earlier checkpoint."
        )


def _load(path: str, weights_only: bool) -> Any:
    with open_file(path) as file:
        return torch.load(file, map_location="cpu", weights_only=weights_only)


def explain(path: str | Path, error: Exception) -> str:
    """Say why torch could not read a file, and what to do."""
    if foreign := describe_file(path):
        return foreign
    unsafe = _find_unsafe_globals(path, error) if isinstance(error, UnpicklingError) else []
    if unsafe:
        return (
            f"{path} would need code to load ({', '.join(unsafe)}), so it was not opened. "
            "Save hyperparameters as plain containers (GrowableMixin does). If you made the file yourself, allow the "
            "names with torch.serialization.add_safe_globals, or pass weights_only=False to the Trainer's method."
        )
    return (
        f"{path} is not a checkpoint that torch can read ({type(error).__name__}: {str(error)[:60]}). "
        "Pass a file that ModelCheckpoint or trainer.save_checkpoint wrote."
    )


def _find_unsafe_globals(path: str | Path, error: Exception) -> list[str]:
    named = sorted(set(re.findall(r"GLOBAL ([\w.]+)", str(error))))
    try:
        with open_file(path) as file:
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file)) or named
    except Exception:  # no zip archive, or damaged inside: the message is all there is
        return named
