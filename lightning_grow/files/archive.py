"""What a checkpoint file is, before it is opened: whole, with every checksum right, and of the kind that is read."""

import contextlib
import struct
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from fsspec.core import url_to_fs

from lightning_grow.errors import CheckpointError, MissingCheckpoint
from lightning_grow.waiting import each

AGAIN = "Copy it again, or resume from an earlier checkpoint."


def check_file(path: str | Path, *, others: bool = False) -> None:
    """Refuse what is no whole file.

    Args:
        path: A path, or an address that fsspec knows.
        others: Whether another reader may know an address that fsspec does not (a CheckpointIO of one's own).

    Raises:
        CheckpointError: It is a folder, missing, empty, cut short, damaged, or cannot be opened.
    """
    try:
        filesystem, name = url_to_fs(str(path))
    except (ValueError, ImportError) as error:
        if others:
            return
        raise CheckpointError(f"{path}: no way to open this address ({error}). Download the file first.") from error
    try:
        _check(path, filesystem, name)
    except CheckpointError:
        raise
    except Exception as error:  # of a file system, which may be a cloud's
        raise CheckpointError(f"{path} cannot be opened ({type(error).__name__}: {error}).") from error


def open_file(path: str | Path) -> Any:
    """Open a file for reading, wherever it is."""
    filesystem, name = url_to_fs(str(path))
    return filesystem.open(name, "rb")


@contextlib.contextmanager
def at_hand(path: Any) -> Iterator[Any]:
    """The path or open file itself, or for an address of the web the path of a copy: what is checked is what is loaded.

    Lightning's own reader runs the code in a file from the web, and takes an old copy for any file of that name.

    Raises:
        CheckpointError: It is not there, or the connection fails.
    """
    if not str(path).startswith(("http://", "https://")):
        yield path
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder, "copy.ckpt")
        _fetch(str(path), copy)
        try:
            yield copy
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(copy), str(path))) from error


def _fetch(address: str, copy: Path) -> None:
    filesystem, name = url_to_fs(address)
    try:
        filesystem.get_file(name, str(copy))
    except FileNotFoundError as error:
        raise MissingCheckpoint(f"Checkpoint file not found: {address}. Pass the address of a file.") from error
    except Exception as error:  # of the connection
        raise CheckpointError(
            f"{address} cannot be fetched ({type(error).__name__}: {error}). Download the file, and pass its path."
        ) from error


def _check(path: str | Path, filesystem: Any, name: str) -> None:
    if filesystem.isdir(name):
        raise CheckpointError(
            f"{path} is a folder{_kind({Path(item).name for item in filesystem.ls(name, detail=False)}, path)}"
        )
    if not filesystem.isfile(name):
        raise MissingCheckpoint(f"Checkpoint file not found: {path}. Pass the path of a file that exists.")
    with filesystem.open(name, "rb") as file:
        start = file.read(4)
        if not start:
            raise CheckpointError(
                f"{path} is empty: the run that wrote it was stopped. Resume from an earlier checkpoint."
            )
        if start == b"PK\x03\x04":
            check_archive(path, file, filesystem.size(name))


def _kind(names: set[str], path: str | Path) -> str:
    """Say what a folder is, and what to do with it."""
    if "zero_to_fp32.py" in names or "latest" in names:
        return (
            f" of DeepSpeed. Make one file of it (python {path}/zero_to_fp32.py {path} weights.ckpt), whose weights "
            "lightning_grow.convert_checkpoint grows; its moments stay behind."
        )
    if any(name == "config.json" or name.endswith(".safetensors") for name in names):
        return (
            f" of Hugging Face. Grow it into another one: lightning_grow.grow_pretrained({str(path)!r}, out, "
            "num_hidden_layers=...)."
        )
    return (
        ": a sharded checkpoint. Consolidate it into one file "
        f"(python -m lightning.fabric.utilities.consolidate_checkpoint {path}), "
        "then grow that file with lightning_grow.convert_checkpoint."
    )


def find_records(path: str | Path) -> dict[int, int]:
    """Where in an archive its records begin, and how long they are, in bytes."""
    found = {}
    with open(path, "rb") as file:
        for record in zipfile.ZipFile(file).infolist():
            file.seek(record.header_offset + 26)  # of a header, after which a name and an extra field follow
            name, more = struct.unpack("<HH", file.read(4))
            found[record.header_offset + 30 + name + more] = record.file_size
    return found


def _find_damaged(archive: zipfile.ZipFile, what: str) -> str:
    """The first record whose bytes do not match their checksum; as ZipFile.testzip, with a progress bar."""
    records = archive.infolist()
    for record in each(records, what, [record.file_size for record in records]):
        try:
            with archive.open(record) as part:
                while part.read(2**20):
                    pass
        except zipfile.BadZipFile:
            return record.filename
    return ""


def check_archive(path: str | Path, file: IO[bytes], size: int) -> None:
    """Refuse an archive of torch.save that is not whole, `size` bytes long.

    Raises:
        CheckpointError: It is cut short, damaged, or of another writer.
    """
    # torch.load checks no CRC: one flipped byte in a tensor would load as silently different weights.
    try:
        archive = zipfile.ZipFile(file)
        records = archive.infolist()
        if twice := [name for name, count in Counter(record.filename for record in records).items() if count > 1]:
            raise CheckpointError(f"{path} is damaged: it has record {twice[0]!r} twice. {AGAIN}")
        stored = all(record.compress_type == zipfile.ZIP_STORED for record in records)
        if not stored or sum(record.file_size for record in records) > size:
            raise CheckpointError(f"{path} is a zip archive that torch.save did not write. Pass a checkpoint file.")
        damaged = _find_damaged(archive, f"checking {Path(path).name}")
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, UnicodeError) as error:
        raise CheckpointError(f"{path} is cut short or damaged ({size} bytes; {error}). {AGAIN}") from error
    if damaged:
        raise CheckpointError(
            f"{path} is damaged: the bytes of record {damaged!r} do not match their checksum. {AGAIN}"
        )
