"""Tensors whose memory is the file that is being written: they are on the disk before the rest of it is.

The kernel writes their pages when it needs room, so that a growth takes no more memory than a few tensors; and what was
grown is not written a second time.
"""

import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_grow.errors import CheckpointError
from lightning_grow.files.container import ALIGNMENT, HEADER, write_around
from lightning_grow.files.writing import NewFile, new_file, saying_why, write_checkpoint

LEAST = 2**18
"""Bytes from which on a tensor lies in the file; smaller ones are written at its end."""


class Spool:
    """Makes tensors in a file, one after the other, each with room for the header of its record before it.

    >>> with spooling("out.ckpt") as spool:
    ...     spool.like(torch.empty(300, 300, device="meta")).fill_(2.0).sum()
    tensor(180000.)
    """

    def __init__(self, new: NewFile) -> None:
        self.new, self.end = new, 0
        self.starts: dict[int, int] = {}
        self._windows, self._first = [memoryview(b"")], 0  # all of them: no other tensor may get the address of one

    def like(self, tensor: Tensor) -> Tensor:
        """An empty tensor of the same shape and type, on the CPU.

        Raises:
            CheckpointError: The disk has no room for it.
        """
        size = tensor.numel() * tensor.element_size()
        if size < LEAST:
            return torch.empty_like(tensor, device="cpu")
        start = _aligned(self.end + HEADER, ALIGNMENT)
        try:
            if start + size > self._first + len(self._windows[-1]):
                start = self._move_window(start, size)
            _reserve(self.new.file.fileno(), start, size)
        except OSError as error:
            raise CheckpointError(
                f"{self.new.path} has no room for {size:,} more bytes ({error}). Make room, or write to another place."
            ) from error
        flat = torch.frombuffer(self._windows[-1], dtype=torch.uint8, count=size, offset=start - self._first)
        self.starts[flat.data_ptr()], self.end = start, start + size
        return flat.view(tensor.dtype).as_strided(tensor.shape, torch.empty_like(tensor, device="meta").stride())

    def _move_window(self, start: int, size: int) -> int:
        """Map a part of the file that is not there yet: as long as all before, for each keeps a descriptor open."""
        start = _aligned(start, mmap.ALLOCATIONGRANULARITY)
        length = max(size, self.end, 2**26)
        os.truncate(self.new.file.fileno(), start + length)
        self._windows.append(memoryview(mmap.mmap(self.new.file.fileno(), length, offset=start)))
        self._first = start
        return start

    def keep(self, tensor: Tensor) -> Tensor:
        """The same tensor, with a file's memory."""
        kept = self.like(tensor)
        kept.copy_(tensor)
        return kept

    def finish(self, checkpoint: Mapping[str, Any]) -> None:
        """Make the file a checkpoint, which takes its place.

        Raises:
            CheckpointError: It cannot be written; what was there is as it was.
        """
        with saying_why(self.new.path):
            self.new.file.truncate(self.end)
            if write_around(checkpoint, self.new.file, self.starts, self.end):
                self.new.finish()
            else:  # some of them are no part of it, and would stay in the file for ever
                write_checkpoint(checkpoint, self.new.path)


@contextmanager
def spooling(out: str | Path) -> Iterator[Spool]:
    """A spool for a file that is about to be written; it is gone after the block where it was not finished."""
    with new_file(out) as new:
        yield Spool(new)


def _aligned(place: int, unit: int) -> int:
    return -(-place // unit) * unit


def _reserve(handle: int, start: int, size: int) -> None:
    """Ask for the room at once: a mapped file that finds none later ends the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, start, size)
