"""A file is whole or not there at all, whenever its writer dies."""

import glob
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


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
