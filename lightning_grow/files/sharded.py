"""Sharded strategies load past every hook: where a checkpoint would have to grow, say how to do it offline."""

from pathlib import Path

from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from lightning_grow.errors import RefusedGrowth
from lightning_grow.files.checkpoint import read_checkpoint
from lightning_grow.trace.names import find_tensors


def check_sharded(path: str | Path, module: nn.Module, *, weights_only: bool = True) -> None:
    """Refuse a checkpoint of another architecture before a sharded strategy (FSDP, ModelParallel) loads it.

    Args:
        path: A full checkpoint file, or the folder of a distributed one.
        module: The module being resumed; a DTensor's shape is the whole tensor's.
        weights_only: As in `read_checkpoint`.

    Raises:
        CheckpointError: The file cannot be read.
        RefusedGrowth: Names or shapes differ.
    """
    source = _read_shapes(Path(path), weights_only)
    target = {name: tuple(tensor.shape) for name, tensor in find_tensors(module.state_dict()).items()}
    differing = sorted(name for name in source.keys() | target.keys() if source.get(name) != target.get(name))
    if differing:
        name = differing[0]
        raise RefusedGrowth(
            f"cannot grow {path} inside a sharded strategy, which loads each rank's part by itself: {len(differing)} "
            f"tensors differ, e.g. {name!r} is {source.get(name, 'absent')} in the checkpoint and "
            f"{target.get(name, 'absent')} in the module. Consolidate a folder into one file (python -m "
            "lightning.fabric.utilities.consolidate_checkpoint FOLDER), grow that with "
            "lightning_grow.convert_checkpoint(..., optimizer='transfer'), and resume from what it writes."
        )


def _read_shapes(path: Path, weights_only: bool) -> dict[str, tuple[int, ...]]:
    if not path.is_dir():
        state = find_tensors(read_checkpoint(path, weights_only=weights_only)["state_dict"])
        return {name: tuple(tensor.shape) for name, tensor in state.items()}
    entries = FileSystemReader(path).read_metadata().state_dict_metadata
    return {
        name.removeprefix("state_dict."): tuple(entry.size)
        for name, entry in entries.items()
        if name.startswith("state_dict.") and isinstance(entry, TensorStorageMetadata)
    }
