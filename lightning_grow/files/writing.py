"""A file is whole or not there at all, whenever its writer dies."""

import glob
import os
import platform
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import torch
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from lightning_grow.errors import CheckpointError


class NewFile:
    """A file beside `path` that takes its place once it is whole.

    Args:
        path: Where, or an address that fsspec knows, to which the whole file is sent; a folder is made when missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self._filesystem, self._name = url_to_fs(str(path))
        self._folder = None if isinstance(self._filesystem, LocalFileSystem) else TemporaryDirectory()
        wanted = Path(self._name) if self._folder is None else Path(self._folder.name, "whole.ckpt")
        self._temporary = _temporary(wanted)
        self.file: IO[bytes] = self._temporary.open("x+b")

    def finish(self) -> None:
        """Let it take its place: all that was written is on the disk then."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        if self._folder is None:
            Path(self._name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(self._temporary, self._name)
        else:
            self._filesystem.put_file(str(self._temporary), self._name)

    def close(self) -> None:
        """Leave nothing beside `path`."""
        self.file.close()
        with suppress(FileNotFoundError, PermissionError):  # Windows keeps a file that is mapped
            self._temporary.unlink()
        if self._folder is not None:
            self._folder.cleanup()


@contextmanager
def new_file(path: str | Path) -> Iterator[NewFile]:
    """A file that is gone after the block where it was not finished.

    Raises:
        CheckpointError: There is no room, no permission, or no way to write there.
    """
    with saying_why(path):
        made = NewFile(path)
    try:
        yield made
    finally:
        made.close()


def write_checkpoint(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Write a checkpoint so that `path` holds the old file or the whole new one, whenever the writer dies.

    What a writer of this file left behind when it died on this machine goes.

    Args:
        checkpoint: What to save; its key of ours must be plain types.
        path: See `NewFile`.

    Raises:
        CheckpointError: There is no room, no permission, or no way to write there; the old file is as it was.
    """
    with new_file(path) as new, saying_why(path):
        torch.save(dict(checkpoint), new.file)
        new.finish()


@contextmanager
def saying_why(path: str | Path) -> Iterator[None]:
    """Turn what ends the writing of a file into a `CheckpointError`."""
    try:
        yield
    except Exception as error:
        cause = error.__context__ if isinstance(error, RuntimeError) else error  # torch's writer hides a full disk
        if isinstance(error, CheckpointError) or not isinstance(cause, (OSError, ImportError, ValueError)):
            raise
        raise CheckpointError(
            f"{path} cannot be written ({cause}); what was there is as it was. Make room, or write to another place."
        ) from error


def is_same_file(path: str | Path, other: str | Path) -> bool:
    """Whether two paths or addresses are those of one file."""
    places = [url_to_fs(str(item)) for item in (path, other)]
    names = {os.path.realpath(name) if isinstance(system, LocalFileSystem) else name for system, name in places}
    return len({type(system) for system, _ in places}) == len(names) == 1


def _temporary(path: Path) -> Path:
    """A name of this process on the same disk: beside a file, or its folder to be; what dead processes left goes."""
    folder = next(above for above in path.absolute().parents if above.is_dir())
    mark = f".{path.name}.{platform.node()}."
    for stale in folder.glob(f"{glob.escape(mark)}*.tmp"):
        if not _is_alive(stale.name.removeprefix(mark).removesuffix(".tmp").partition("-")[0]):
            stale.unlink(missing_ok=True)
    return folder / f"{mark}{os.getpid()}-{secrets.token_hex(4)}.tmp"


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
