"""Tensors whose memory is a file's: the kernel writes their pages to the disk when it needs room."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor

from lightning_grow.errors import CheckpointError

LEAST = 2**18
"""Bytes from which on a tensor gets a file; what is smaller is not worth one."""


class Spool:
    """Makes tensors in files of a folder; each is gone from the folder as soon as its tensor is there.

    >>> with spooling("out.ckpt") as spool:
    ...     spool.like(torch.empty(300, 300, device="meta")).fill_(2.0).sum()
    tensor(180000.)
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def like(self, tensor: Tensor) -> Tensor:
        """An empty tensor of the same shape and type, on the CPU.

        Raises:
            CheckpointError: The disk has no room for it.
        """
        size = tensor.numel() * tensor.element_size()
        if size < LEAST:
            return torch.empty_like(tensor, device="cpu")
        handle, name = tempfile.mkstemp(dir=self.folder)
        try:
            _reserve(handle, size)
            flat = torch.from_file(name, shared=True, size=tensor.numel(), dtype=tensor.dtype)
        except OSError as error:
            raise CheckpointError(f"{self.folder} has no room for {size:,} more bytes ({error}). Make room.") from error
        finally:
            os.close(handle)
            with suppress(PermissionError):  # Windows keeps a file that is mapped, until the folder goes
                os.unlink(name)
        return flat.as_strided(tensor.shape, torch.empty_like(tensor, device="meta").stride())

    def keep(self, tensor: Tensor) -> Tensor:
        """The same tensor, with a file's memory."""
        kept = self.like(tensor)
        kept.copy_(tensor)
        return kept


@contextmanager
def spooling(out: str | Path) -> Iterator[Spool]:
    """A spool beside a file that is about to be written; for an address of the web, among the temporary files."""
    filesystem, name = url_to_fs(str(out))
    above = Path(name).absolute().parents if isinstance(filesystem, LocalFileSystem) else ()
    folder = next((path for path in above if path.is_dir()), None)  # of the same disk, even before it is made
    try:
        place = tempfile.TemporaryDirectory(dir=folder, prefix=".growing.", ignore_cleanup_errors=True)
    except OSError as error:
        raise CheckpointError(f"{out} cannot be written ({error}). Make room, or write to another place.") from error
    with place as made:
        yield Spool(Path(made))


def _reserve(handle: int, size: int) -> None:
    """Ask for the room at once: a mapped file that finds none later ends the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)
    else:
        os.truncate(handle, size)
