"""The archive that torch.save writes, around tensors that lie in its file already.

A zip archive is records anywhere in a file and a directory of them at its end. So a tensor's bytes can be there first;
its record's header goes into the room before it once its checksum is known.
"""

import io
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from typing import IO, Any

import torch

from lightning_grow.private import Stored, stored

HEADER = 256
"""Room before a tensor: for its record's header (30 bytes, a name, 20 more from 2 GiB on), and once for a first one."""

ALIGNMENT = 64
"""Of the bytes of a record, as torch.save aligns them."""

_FRAME = ("version", "byteorder", ".data/serialization_id")  # what torch wants beside the content


class _Pickler(pickle.Pickler):
    """Leaves the bytes of tensors out, as torch's does.

    Raises:
        RuntimeError: Two tensors of other types share memory, which torch saves no more than this.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, protocol=2)  # the one that weights_only reads
        self.storages: list[Stored] = []
        self.keys: dict[int, int] = {}

    def persistent_id(self, item: Any) -> Any:
        """What stands for a storage; None for all else."""
        found = stored(item)
        if found is None:
            return None
        key = self.keys.setdefault(found.identity, len(self.storages))
        if key == len(self.storages):
            self.storages.append(found)
        if self.storages[key].kind is not found.kind:
            raise RuntimeError("Cannot save multiple tensors or storages that view the same data as different types")
        return "storage", found.kind, str(key), torch.serialization.location_tag(found.storage), found.entries


def write_around(checkpoint: Mapping[str, Any], file: IO[bytes], starts: Mapping[int, int], end: int) -> bool:
    """Write a checkpoint behind the tensors that a file holds already.

    Args:
        checkpoint: What to save.
        file: Open to write.
        starts: Where in the file the tensors lie, by the address of their memory.
        end: Where the last of them ends.

    Returns:
        False where the checkpoint does not hold all of them; then nothing was written.
    """
    content = io.BytesIO()
    pickler = _Pickler(content)
    pickler.dump(dict(checkpoint))
    storages = [item.storage.cpu() for item in pickler.storages]  # type: ignore[no-untyped-call]
    if not starts.keys() <= {item.data_ptr() for item in storages}:
        return False
    file.seek(0)
    with zipfile.ZipFile(file, "w") as archive:
        for name, piece in _frame().items():
            _append(archive, name, piece)
            archive.start_dir = max(archive.start_dir, end)  # the first one begins the file: readers look for it there
        _append(archive, "data.pkl", content.getvalue())
        for key, storage in enumerate(storages):
            start = starts.get(storage.data_ptr())
            if start is None:
                _append(archive, f"data/{key}", _bytes_of(storage))
            else:
                _enter(archive, file, f"data/{key}", _bytes_of(storage), start)
    return True


def _frame() -> dict[str, bytes]:
    torch.save({}, empty := io.BytesIO())
    with zipfile.ZipFile(empty) as archive:
        return {name: archive.read(f"archive/{name}") for name in _FRAME if f"archive/{name}" in archive.namelist()}


def _append(archive: zipfile.ZipFile, name: str, content: Any) -> None:
    """A record behind all others, its bytes aligned as torch aligns them: with an extra field before them."""
    record = zipfile.ZipInfo(f"archive/{name}")
    padding = -(archive.start_dir + 30 + len(record.filename) + 4) % ALIGNMENT  # of a header, and of the field itself
    record.extra = b"FB" + padding.to_bytes(2, "little") + bytes(padding)
    archive.writestr(record, content)


def _enter(archive: zipfile.ZipFile, file: IO[bytes], name: str, content: Any, start: int) -> None:
    """A record whose bytes are there: its header before them, and its entry in the directory."""
    record = zipfile.ZipInfo(f"archive/{name}")
    record.CRC, record.file_size, record.compress_size = zlib.crc32(content), len(content), len(content)
    header = record.FileHeader()
    record.header_offset = start - len(header)
    file.seek(record.header_offset)
    file.write(header)
    archive.filelist.append(record)
    archive.NameToInfo[record.filename] = record


def _bytes_of(storage: torch.UntypedStorage) -> memoryview:
    return memoryview(torch.empty(0, dtype=torch.uint8).set_(storage).numpy())  # type: ignore[arg-type]
