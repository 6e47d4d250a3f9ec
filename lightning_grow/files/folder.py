"""The folder of a distributed checkpoint as one checkpoint: a tensor at a time, and nothing that it holds runs.

torch's own reader keeps the whole in memory, and runs what is pickled in it. Layout: torch.distributed.checkpoint's
FileSystemWriter; Lightning puts what is neither weights nor moments into a file of its own beside it.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata

from lightning_grow.errors import CheckpointError
from lightning_grow.files.archive import AGAIN, check_archive
from lightning_grow.files.metadata import read_metadata
from lightning_grow.files.spool import Spool, spooling


def read_parts(folder: Path) -> dict[str, Any]:
    """Read what all processes wrote into the folder of a sharded strategy: weights and moments.

    Returns:
        All but what stands in the file beside them. The tensors lie in files of their own, which are gone with them.

    Raises:
        CheckpointError: A part is missing, cut short, damaged, or would need code to load.
    """
    metadata = read_metadata(folder)
    places: dict[str, list[tuple[MetadataIndex, Any]]] = defaultdict(list)
    for index, place in (metadata.storage_data or {}).items():
        places[index.fqn].append((index, place))
    content: dict[str, Any] = {}
    with spooling(folder) as spool:
        for name, entry in metadata.state_dict_metadata.items():
            item = _read(folder, name, entry, places[name], spool)
            _put(content, (metadata.planner_data or {}).get(name, (name,)), item)
    if "model" in content and "state_dict" not in content:  # FSDPStrategy's name for it
        content["state_dict"] = content.pop("model")
    return content


def _read(folder: Path, name: str, entry: Any, places: Sequence[tuple[MetadataIndex, Any]], spool: Spool) -> Any:
    if not isinstance(entry, TensorStorageMetadata):
        parts = [_load(folder, name, place) for _, place in places]
        if len(parts) != 1:
            raise CheckpointError(f"{folder} is damaged: {name!r} has {len(parts)} records, expected 1. {AGAIN}")
        return parts[0]
    whole = spool.like(torch.empty(entry.size, dtype=entry.properties.dtype, device="meta"))
    sizes = {tuple(chunk.offsets): tuple(chunk.sizes) for chunk in entry.chunks}
    found = {}
    for index, place in places:
        part, start = _load(folder, name, place), tuple(index.offset or (0,) * whole.dim())
        if not isinstance(part, Tensor) or part.dtype != whole.dtype or tuple(part.shape) != sizes.get(start):
            raise CheckpointError(f"{folder} is damaged: a part of {name!r} is not what .metadata says. {AGAIN}")
        whole[tuple(slice(at, at + size) for at, size in zip(start, part.shape, strict=True))] = part
        found[start] = part.numel()
    count = sum(found.values())
    if count != whole.numel() or found.keys() != sizes.keys():
        raise CheckpointError(
            f"{folder} is damaged: the parts of {name!r} have {count:,} entries of {whole.numel():,}. {AGAIN}"
        )
    return whole


def _load(folder: Path, name: str, place: Any) -> Any:
    """What one record holds, an archive of its own that is checked first."""
    path = folder / place.relative_path
    if Path(place.relative_path).name != place.relative_path or getattr(place, "transform_descriptors", None):
        raise CheckpointError(f"{folder}: {name!r} lies in {place.relative_path!r}, in a way that torch never writes.")
    try:
        with path.open("rb") as file:
            file.seek(place.offset)
            record = io.BytesIO(file.read(place.length))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): it has {name!r}. {AGAIN}") from error
    check_archive(f"{path}, at {name!r},", record, place.length)
    record.seek(0)
    try:
        return torch.load(record, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} is damaged, or would need code to load, at {name!r} ({str(error)[:60]}). {AGAIN}"
        ) from error


def _put(content: dict[str, Any], path: Sequence[str | int], item: Any) -> None:
    """Put an item where it was before the names were flattened; lists are in order of their numbers."""
    for key, after in pairwise(path):
        content = _within(content, key, [] if isinstance(after, int) else {})
    _within(content, path[-1], item)


def _within(content: Any, key: str | int, default: Any) -> Any:
    if isinstance(content, dict):
        return content.setdefault(key, default)
    content.extend([None] * (int(key) + 1 - len(content)))
    if content[key] is None:
        content[key] = default
    return content[key]
