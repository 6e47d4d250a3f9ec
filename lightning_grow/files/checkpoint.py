"""The one safe door for checkpoint files: every fault is named, and a file is whole or not there at all."""

import glob
import os
import platform
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from lightning_grow.errors import CheckpointError, MissingCheckpoint

KEY = "lightning_grow"
"""The library's own key in a checkpoint; everything under it is of plain types."""

Load = Callable[[str, bool], Any]


def read_checkpoint(path: str | Path, *, weights_only: bool = True, load: Load | None = None) -> dict[str, Any]:
    """Read a checkpoint that Lightning wrote, without ever running code from it.

    Args:
        path: A local file. An address must be downloaded first.
        weights_only: False lets the file run code while it loads; only for files you made yourself.
        load: What reads the file, given the path and `weights_only`; ``torch.load`` to the CPU when None.

    Returns:
        The checkpoint; `state_dict` is in it.

    Raises:
        CheckpointError: The file is missing, a folder, empty, cut short, damaged, no checkpoint, or would need code
            to load.
    """
    checkpoint = read_file(path, weights_only=weights_only, load=load)
    if isinstance(checkpoint, dict) and isinstance(checkpoint.get("state_dict"), Mapping):
        return checkpoint
    found = f"a dict with the keys {sorted(map(str, checkpoint))[:8]}" if isinstance(checkpoint, dict) else "a "
    found += "" if isinstance(checkpoint, dict) else type(checkpoint).__name__
    raise CheckpointError(
        f"{path} is not a Lightning checkpoint: expected a dict with a 'state_dict', found {found}. "
        "Pass a file that ModelCheckpoint or trainer.save_checkpoint wrote."
    )


def read_file(path: str | Path, *, weights_only: bool = True, load: Load | None = None) -> Any:
    """Read any file that ``torch.save`` wrote, as safely as `read_checkpoint` but whatever it holds.

    Args:
        path: A local file.
        weights_only: As for `read_checkpoint`.
        load: As for `read_checkpoint`.

    Returns:
        What was saved, on the CPU.

    Raises:
        CheckpointError: As for `read_checkpoint`.
    """
    if not _is_remote(path, load):
        _check_file(Path(path))
    try:
        return (load or _load)(str(path), weights_only)
    except MemoryError:
        raise
    except Exception as error:
        raise CheckpointError(_explain(path, error)) from error


def write_checkpoint(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Write a checkpoint so that `path` holds the old file or the whole new one, whenever the writer dies.

    What a writer of this file left behind when it died on this machine goes.

    Args:
        checkpoint: What to save; its key of ours must be plain types.
        path: Where; its folder is made when missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = f".{path.name}.{platform.node()}."
    for stale in path.parent.glob(f"{glob.escape(mark)}*.tmp"):
        if not _is_alive(stale.name.removeprefix(mark).removesuffix(".tmp")):
            stale.unlink(missing_ok=True)
    temporary = path.with_name(f"{mark}{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(dict(checkpoint), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _is_alive(process: str) -> bool:
    """Whether a process of this machine runs; True where that cannot be asked without harm."""
    if os.name != "posix" or not process.isdecimal():
        return True
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    return True


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
    return torch.load(path, map_location="cpu", weights_only=weights_only)


def _is_remote(path: str | Path, load: Load | None) -> bool:
    """Whether `load` must fetch the file itself (s3://...); an http address is refused, it loads code by default."""
    if "://" not in str(path):
        return False
    if load is None or str(path).startswith(("http://", "https://")):
        raise CheckpointError(
            f"{path} is an address, and a file from the network must not be opened unseen. "
            "Download it first, compare its checksum, and pass the local path."
        )
    return True


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a folder: a sharded checkpoint. Consolidate it into one file "
            f"(python -m lightning.fabric.utilities.consolidate_checkpoint {path}), "
            "then grow that file with lightning_grow.convert_checkpoint."
        )
    if not path.is_file():
        raise MissingCheckpoint(f"{path} does not exist. Pass the path of a checkpoint file.")
    with path.open("rb") as file:
        start = file.read(4)
    if not start:
        raise CheckpointError(f"{path} is empty: the run that wrote it was stopped. Resume from an earlier checkpoint.")
    if start == b"PK\x03\x04":
        _check_archive(path)


def _check_archive(path: Path) -> None:
    # torch.load checks no CRC: one flipped byte in a tensor would load as silently different weights.
    try:
        damaged = zipfile.ZipFile(path).testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, UnicodeError) as error:
        raise CheckpointError(
            f"{path} is cut short or damaged ({path.stat().st_size} bytes; {error}). "
            "Copy it again, or resume from an earlier checkpoint."
        ) from error
    if damaged:
        raise CheckpointError(
            f"{path} is damaged: the bytes of record {damaged!r} do not match their checksum. "
            "Copy it again, or resume from an earlier checkpoint."
        )


def _explain(path: str | Path, error: Exception) -> str:
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
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except (ValueError, RuntimeError, OSError):  # not a zip archive: the message is all there is
        return sorted(set(re.findall(r"GLOBAL ([\w.]+)", str(error))))
