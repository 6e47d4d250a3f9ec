"""A file is whole or not there at all, whenever its writer dies."""

import glob
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from lightning_grow.errors import CheckpointError


def write_checkpoint(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Write a checkpoint so that `path` holds the old file or the whole new one, whenever the writer dies.

    What a writer of this file left behind when it died on this machine goes.

    Args:
        checkpoint: What to save; its key of ours must be plain types.
        path: Where, or an address that fsspec knows, to which the whole file is sent; a folder is made when missing.

    Raises:
        CheckpointError: There is no room, no permission, or no way to write there; the old file is as it was.
    """
    try:
        filesystem, name = url_to_fs(str(path))
        if isinstance(filesystem, LocalFileSystem):
            _write(checkpoint, Path(name))
        else:
            with TemporaryDirectory() as folder:
                _write(checkpoint, whole := Path(folder) / "whole.ckpt")
                filesystem.put_file(str(whole), name)
    except Exception as error:
        cause = error.__context__ if isinstance(error, RuntimeError) else error  # torch's writer hides a full disk
        if not isinstance(cause, (OSError, ImportError, ValueError)):
            raise
        raise CheckpointError(
            f"{path} cannot be written ({cause}); what was there is as it was. Make room, or write to another place."
        ) from error


def is_same_file(path: str | Path, other: str | Path) -> bool:
    """Whether two paths or addresses are those of one file."""
    places = [url_to_fs(str(item)) for item in (path, other)]
    names = {os.path.realpath(name) if isinstance(system, LocalFileSystem) else name for system, name in places}
    return len({type(system) for system, _ in places}) == len(names) == 1


def _write(checkpoint: Mapping[str, Any], path: Path) -> None:
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
