"""The one safe door for checkpoint files: nothing that they hold runs, and every fault is named."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor

from lightning_grow.errors import CheckpointError
from lightning_grow.files.archive import AGAIN, at_hand, check_file, find_records, open_file
from lightning_grow.files.foreign import describe, describe_file
from lightning_grow.files.hparams import find_types, take_member
from lightning_grow.files.sections import check_sections
from lightning_grow.private import tree_leaves

KEY = "lightning_grow"
"""The library's own key in a checkpoint; everything under it is of plain types."""

REST = "meta.pt"
"""Lightning's file in the folder of a distributed checkpoint: all but weights and moments."""

Load = Callable[[str, bool], Any]


def read_checkpoint(
    path: str | Path, *, weights_only: bool = True, load: Load | None = None, hparams: Any = None
) -> dict[str, Any]:
    """Read a checkpoint that Lightning wrote, without ever running code from it.

    Args:
        path: A file, or the address of one that fsspec can open (file://, memory://, s3://, https://); or the folder
            of a distributed checkpoint.
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
        _gather_optimizers(checkpoint)
        check_sections(checkpoint, KEY, path)
        return checkpoint
    raise CheckpointError(f"{path} is not a Lightning checkpoint: {describe(checkpoint)}")


def _gather_optimizers(checkpoint: dict[str, Any]) -> None:
    """Put `optimizer_0`, ... of a sharded checkpoint where Lightning keeps those of any other."""
    named = (key for key in checkpoint if isinstance(key, str) and re.fullmatch(r"optimizer_\d+", key))
    names = sorted(named, key=lambda key: int(key[10:]))
    if names and "optimizer_states" not in checkpoint:
        checkpoint["optimizer_states"] = [checkpoint.pop(name) for name in names]


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
    if is_distributed(path):
        return _read_folder(Path(path), weights_only)
    with at_hand(path) as place:
        check_file(place, others=load is not None)
        try:
            return (load or _load)(str(place), weights_only)
        except (MemoryError, CheckpointError):
            raise
        except Exception as error:
            raise CheckpointError(explain(place, error)) from error


def _read_folder(folder: Path, weights_only: bool) -> dict[str, Any]:
    from lightning_grow.files.folder import read_parts  # with torch's own part, which is slow to import

    beside = folder / REST
    try:
        content = read_parts(folder)
    except (MemoryError, CheckpointError):
        raise
    except Exception as error:  # what is said of a tensor may be anything
        raise CheckpointError(
            f"{folder}/.metadata is damaged ({type(error).__name__}: {str(error)[:60]}). {AGAIN}"
        ) from error
    return content | (read_file(beside, weights_only=weights_only) if beside.is_file() else {})


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
    broken = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if broken:
        raise CheckpointError(
            f"{path}: NaN or infinite weights in {', '.join(broken)}. The run had diverged when this was saved: "
            "resume from an earlier checkpoint."
        )


def is_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite; the sum tells at once, unless it is too large itself."""
    return bool(torch.isfinite(tensor.sum()).all()) or bool(torch.isfinite(tensor).all())


def _load(path: str, weights_only: bool) -> Any:
    with open_file(path) as file:
        return torch.load(file, map_location="cpu", weights_only=weights_only)


def is_distributed(path: str | Path) -> bool:
    """Whether a path is the folder of a checkpoint that a sharded strategy wrote to its end."""
    return (Path(path) / ".metadata").is_file()


def is_mappable(path: str | Path) -> bool:
    """Whether a file lies on this machine, and is an archive: its tensors can stay there until they are read."""
    filesystem, name = url_to_fs(str(path))
    if not isinstance(filesystem, LocalFileSystem) or not Path(name).is_file():
        return False
    with open(name, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def load_mapped(path: str, weights_only: bool) -> Any:
    """Load an archive whose tensors are read where they are used, from the file itself.

    Raises:
        CheckpointError: A tensor is longer or shorter than its record: torch would take the bytes beside it.
    """
    name = url_to_fs(path)[1]
    content = torch.load(name, map_location="cpu", weights_only=weights_only, mmap=True)
    tensors = [leaf for leaf in tree_leaves(content) if isinstance(leaf, Tensor) and leaf.layout == torch.strided]
    storages = [item.untyped_storage() for item in tensors if not item.is_meta]
    if not _are_records([(item.data_ptr(), item.nbytes()) for item in storages if item.nbytes()], find_records(name)):
        raise CheckpointError(f"{path} is damaged: a tensor has not the size of its record. {AGAIN}")
    return content


def _are_records(mapped: Sequence[tuple[int, int]], records: Mapping[int, int]) -> bool:
    """Whether pieces of memory, each as (address, bytes), are whole records of a mapped file, each as offset -> bytes.

    >>> _are_records([(1064, 8), (1128, 4)], {64: 8, 128: 4}), _are_records([(1064, 16), (1128, 4)], {64: 8, 128: 4})
    (True, False)
    """
    starts = [mapped[0][0] - offset for offset in records] if mapped else [0]
    return any(all(records.get(address - start) == size for address, size in mapped) for start in starts)


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
