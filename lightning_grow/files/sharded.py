"""Sharded strategies load past every hook: where a checkpoint would have to grow, say how to do it offline."""

from pathlib import Path

from torch import nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from lightning_grow.errors import RefusedGrowth
from lightning_grow.files.checkpoint import read_checkpoint
from lightning_grow.files.metadata import read_metadata
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
    differing = find_differing_shapes(path, module, weights_only=weights_only)
    if differing:
        name, (old, new) = next(iter(differing.items()))
        raise RefusedGrowth(
            f"cannot grow {path} inside a sharded strategy, which loads each rank's part by itself: {len(differing)} "
            f"tensors differ, e.g. {name!r} is {'absent' if old is None else old} in the checkpoint and "
            f"{'absent' if new is None else new} in the module. Grow it first with "
            "lightning_grow.convert_checkpoint(..., optimizer='transfer'), which reads files and folders, and resume "
            "from what it writes."
        )


def find_differing_shapes(
    path: str | Path, module: nn.Module, *, weights_only: bool = True
) -> dict[str, tuple[tuple[int, ...] | None, tuple[int, ...] | None]]:
    """The tensors, by name, whose shapes differ between a checkpoint and a module; reads no tensor of a folder."""
    source = _read_shapes(Path(path), weights_only)
    target = {name: tuple(tensor.shape) for name, tensor in find_tensors(module.state_dict()).items()}
    every = sorted(source.keys() | target.keys())
    return {name: (source.get(name), target.get(name)) for name in every if source.get(name) != target.get(name)}


def _read_shapes(path: Path, weights_only: bool) -> dict[str, tuple[int, ...]]:
    if not path.is_dir():
        state = find_tensors(read_checkpoint(path, weights_only=weights_only)["state_dict"])
        return {name: tuple(tensor.shape) for name, tensor in state.items()}
    entries = read_metadata(path).state_dict_metadata
    weights = "model." if any(name.startswith("model.") for name in entries) else "state_dict."  # FSDP1, FSDP2
    return {
        name.removeprefix(weights): tuple(entry.size)
        for name, entry in entries.items()
        if name.startswith(weights) and isinstance(entry, TensorStorageMetadata)
    }
