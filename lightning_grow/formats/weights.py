"""Weights in whatever holds them, read and written: Lightning's files, torch's, safetensors, folders of shards."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from lightning_grow.errors import CheckpointError
from lightning_grow.extras import extra
from lightning_grow.files.checkpoint import KEY, explain, is_mappable, read_file
from lightning_grow.files.metadata import read_metadata
from lightning_grow.files.sections import check_sections
from lightning_grow.files.writing import write_checkpoint
from lightning_grow.private import tree_leaves

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


class Kind(Enum):
    """What holds weights."""

    LIGHTNING = "Lightning checkpoint"
    TORCH = "torch.save file"
    SAFETENSORS = "safetensors file"
    HUGGINGFACE = "Hugging Face folder"
    DISTRIBUTED = "distributed checkpoint folder"


@dataclass(frozen=True)
class Weights:
    """Weights, and what stands around them.

    Args:
        kind: What holds them.
        state: Tensors by name; on the meta device where only their shapes were read.
        content: All of a torch file, or a folder's config; empty where there is nothing else.
        key: The dotted path to the weights in `content`.
    """

    kind: Kind
    state: dict[str, Tensor]
    content: dict[str, Any] = field(default_factory=dict)
    key: str = ""

    @property
    def beside(self) -> list[str]:
        """What else stands in a file, by its outermost key."""
        return [str(name) for name in self.content if name != self.key.split(".")[0]]


def find_kind(path: Path) -> Kind:
    """Tell by its name, or by the files in it, what a path is; a Lightning checkpoint is a torch.save file here.

    Raises:
        CheckpointError: It is a folder of none of the kinds.
    """
    if not path.is_dir():
        return Kind.SAFETENSORS if path.suffix == ".safetensors" else Kind.TORCH
    if (path / "config.json").exists():
        return Kind.HUGGINGFACE
    if (path / ".metadata").exists():
        return Kind.DISTRIBUTED
    raise CheckpointError(
        f"{path} is a folder with neither a config.json (Hugging Face) nor a .metadata (torch's distributed "
        "checkpoints). Pass one of these, or a file."
    )


def read_weights(path: Path, key: str = "", *, data: bool = True) -> Weights:
    """Read weights without running any code that may be in a file.

    Args:
        path: A file or a folder.
        key: Where in a torch file the weights are (``model.state_dict``); found where there is only one such place.
        data: False reads names, shapes and types only, and no tensor's content.

    Raises:
        CheckpointError: It cannot be read, or it is not clear where the weights are.
        MissingExtra: It is a safetensors file, and safetensors is not installed.
    """
    kind = find_kind(path)
    if kind is Kind.SAFETENSORS:
        return Weights(kind, dict(_read_safetensors(path, data)))
    if kind is Kind.HUGGINGFACE:
        return Weights(kind, _read_shards(path, data), read_json(path / "config.json"))
    if kind is Kind.DISTRIBUTED and not data:
        return Weights(kind, _read_shapes(path))
    return _read_torch(path, key, data)


def write_weights(like: Weights, state: Mapping[str, Tensor], path: Path) -> list[str]:
    """Write other weights in a file of the kind that its name asks for, whole or not at all.

    Args:
        like: What is to stand around them: everything but tensors, which belong to the old weights.
        state: The weights.
        path: Ends in ``.safetensors``, or is a torch file with the weights under the same key as in `like`.

    Returns:
        What was left out of what stood around them.

    Raises:
        CheckpointError: It cannot be written.
    """
    if path.suffix == ".safetensors":
        _write_safetensors(state, path)
        return like.beside
    if not like.key:
        write_checkpoint(state, path)
        return []
    content, left_out = _replaced(like.content, like.key.split("."), dict(state))
    write_checkpoint(content, path)
    return left_out


def _replaced(
    content: Mapping[str, Any], path: list[str], state: dict[str, Tensor]
) -> tuple[dict[str, Any], list[str]]:
    first, *rest = path
    inside, left_out = _replaced(content[first], rest, state) if rest else (state, [])
    kept = {name: item for name, item in content.items() if name != first and not _has_tensors(item)}
    gone = [str(name) for name in content if name != first and name not in kept]
    return {**kept, first: inside}, [*gone, *(f"{first}.{name}" for name in left_out)]


def _has_tensors(item: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(item))


def _read_torch(path: Path, key: str, data: bool) -> Weights:
    content = read_file(path) if data else _read_header(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, and should hold a dict of weights.")
    if not key and "pytorch-lightning_version" in content and isinstance(content.get("state_dict"), Mapping):
        if data:
            check_sections(content, KEY, path)
        return Weights(Kind.LIGHTNING, _tensors(content["state_dict"]), dict(content), "state_dict")
    places = dict(_find_states(content, ""))
    if key not in places and (key or len(places) != 1):
        found = ", ".join(map(repr, places)) or "none"
        asked = f"there are no weights under {key!r}" if key else f"it is not clear which weights of {path} are meant"
        raise CheckpointError(f"{asked} (of {path}). Expected --key to be one of: {found}.")
    where = key or next(iter(places))
    return Weights(Kind.TORCH, _tensors(places[where]), dict(content) if where else {}, where)


def _read_header(path: Path) -> Any:
    """All of a file but the content of its tensors."""
    if not path.exists():
        return read_file(path)  # which says so
    try:
        return torch.load(path, map_location="meta", mmap=is_mappable(path), weights_only=True)
    except Exception as error:  # of a file that may hold anything
        raise CheckpointError(explain(path, error)) from error


def _find_states(content: Mapping[Any, Any], place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The dicts of named tensors in a file, each by its dotted path; an optimizer's have numbers for names."""
    names = [name for name, item in content.items() if isinstance(item, Tensor)]
    if names and all(isinstance(name, str) for name in content) and len(names) * 2 > len(content):
        yield place, content
        return
    for name, item in content.items():
        if isinstance(item, Mapping) and isinstance(name, str):
            yield from _find_states(item, f"{place}.{name}".strip("."))


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: item for name, item in state.items() if isinstance(item, Tensor)}


def _read_safetensors(path: Path, data: bool) -> Iterator[tuple[str, Tensor]]:
    with extra("huggingface"):
        import safetensors
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                shape = file.get_slice(name).get_shape()
                if data or not shape:
                    yield name, file.get_tensor(name)
                else:
                    yield name, torch.empty(shape, dtype=file.get_slice(name)[:0].dtype, device="meta")
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} is no safetensors file that can be read ({error}). Copy it again.") from error


def _read_shards(folder: Path, data: bool) -> dict[str, Tensor]:
    index = folder / INDEX
    files = sorted(set(read_json(index).get("weight_map", {}).values())) if index.exists() else [SINGLE]
    if any(Path(name).name != name for name in files):
        raise CheckpointError(f"{index} names files outside its folder. Do not load this folder.")
    return {name: item for file in files for name, item in _read_safetensors(folder / file, data)}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: There is none.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}). Pass a folder that save_pretrained wrote to its end."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, and should hold an object.")
    return content


def _read_shapes(folder: Path) -> dict[str, Tensor]:
    entries = read_metadata(folder).state_dict_metadata
    return {
        name: torch.empty(tuple(entry.size), dtype=entry.properties.dtype, device="meta")
        for name, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def _write_safetensors(state: Mapping[str, Tensor], path: Path) -> None:
    with extra("huggingface"):
        from safetensors.torch import save_file
    apart = {name: item.detach().clone().contiguous() for name, item in state.items()}  # tied ones under every name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as place:
            save_file(apart, whole := Path(place) / path.name, metadata={"format": "pt"})
            os.replace(whole, path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written ({error}). Make room, or write to another place.") from error
