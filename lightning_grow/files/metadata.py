"""What a distributed checkpoint says of its tensors, read without running code from it; torch's reader would."""

import dataclasses
import importlib
import pickle
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata

from lightning_grow.errors import CheckpointError
from lightning_grow.files.hparams import take_member
from lightning_grow.private import LAYOUT


def read_metadata(folder: Path) -> Metadata:
    """Read the .metadata of a folder.

    Raises:
        CheckpointError: There is no such file, it is damaged, or it would need code to load.
    """
    path = folder / ".metadata"
    try:
        with path.open("rb") as file:
            metadata = _Unpickler(file).load()
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} is a folder without a .metadata file: no distributed checkpoint that torch wrote to its end. "
            "Pass the folder that trainer.save_checkpoint made."
        ) from error
    except CheckpointError:
        raise
    except Exception as error:  # a pickle that is cut short can fail in any way
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__}: {str(error)[:60]}). Copy the folder again, or resume from an "
            "earlier checkpoint."
        ) from error
    if not isinstance(metadata, Metadata):
        raise CheckpointError(
            f"{path} holds a {type(metadata).__name__}, not the metadata of a distributed checkpoint."
        )
    return metadata


class _Unpickler(pickle.Unpickler):
    """Makes only what torch's own writer puts there: records, enums, types and paths."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PLAIN or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        if (module, name) == ("builtins", "getattr"):
            return take_member
        found = getattr(importlib.import_module(module), name, None) if module in _RECORDS else None
        if dataclasses.is_dataclass(found) or (isinstance(found, type) and issubclass(found, Enum)):
            return found
        raise CheckpointError(
            f"the checkpoint's .metadata would need code to load ({module}.{name}), so it was not opened: torch's "
            "writer never puts that there. Do not load this folder."
        )


_PLAIN = {
    ("torch", "Size"),
    LAYOUT,
    ("pathlib", "PosixPath"),
    ("pathlib", "PurePosixPath"),
    ("pathlib", "WindowsPath"),
    ("collections", "OrderedDict"),
}
_RECORDS = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
