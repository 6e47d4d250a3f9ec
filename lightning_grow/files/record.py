"""What is written under our key of a checkpoint, and read back."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_grow.errors import CheckpointError
from lightning_grow.files.checkpoint import KEY
from lightning_grow.files.hparams import find_hparams, is_plain, to_plain
from lightning_grow.pair.input_names import find_input_names
from lightning_grow.private import SCHEDULERS
from lightning_grow.trace.names import find_tensors, strip_compiled

ATTRIBUTES = "_lightning_grow_attributes"
VERSION = 1
"""Of what is written under our key; a reader of a later one must not guess."""


def read_ours(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What the library wrote under its key; empty where it was not there at save time.

    Raises:
        CheckpointError: A later version of the library wrote it.
    """
    ours = dict(checkpoint.get(KEY) or {})
    if (version := ours.get("version", VERSION)) > VERSION:
        raise CheckpointError(
            f"the checkpoint was written by a later lightning_grow: its record has version {version}, and this one "
            f"reads up to {VERSION}. Update lightning_grow (pip install -U lightning-grow) to resume or grow it."
        )
    return ours


def record_architecture(
    checkpoint: dict[str, Any],
    module: nn.Module,
    optimizers: Iterable[Optimizer] = (),
    schedulers: Iterable[Any] = (),
    tape: str | None = None,
) -> None:
    """Write under our key what a later, bigger resume must know: plain types only.

    Args:
        checkpoint: The checkpoint being saved, changed in place.
        module: The module it belongs to.
        optimizers: Its optimizers; the names of their parameters are recorded group by group.
        schedulers: Its learning-rate schedulers; what they are is recorded.
        tape: The fingerprint of what it computes, where that is known.
    """
    optimizers = list(optimizers)
    record = {
        "class": f"{type(module).__module__}.{type(module).__qualname__}",
        "hparams": {key: value for key, value in find_hparams(module).items() if is_plain(value)},
        "shapes": {name: list(tensor.shape) for name, tensor in find_tensors(module.state_dict()).items()},
        "optimizers": [find_param_names(module, optimizer) for optimizer in optimizers],
        "optimizer_classes": [type(optimizer).__name__ for optimizer in optimizers],
        "schedulers": list(map(scheduler_kind, schedulers)),
        "input_names": find_input_names(module),
    }
    ours = {"version": VERSION, "architecture": record, "attributes": getattr(module, ATTRIBUTES, {}), "tape": tape}
    checkpoint[KEY] = {**checkpoint.get(KEY, {}), **{key: value for key, value in ours.items() if value}}


def restore_attributes(module: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Set the attributes that an earlier growth had to change (a norm's eps): no state dict carries them.

    Args:
        module: Changed in place, and remembers them for its next checkpoint.
        checkpoint: Keeps them under our key, by dotted name.
    """
    attributes = dict(read_ours(checkpoint).get("attributes") or {})
    for name, value in attributes.items():
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, value)
    if attributes:
        setattr(module, ATTRIBUTES, attributes)


def find_record(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture recorded under our key; empty where the library was not there at save time."""
    return dict(read_ours(checkpoint).get("architecture", {}))


def find_param_names(module: nn.Module, optimizer: Optimizer) -> list[list[str]]:
    """The parameter names of each group, in the optimizer's order; "" for a tensor that is not in the module."""
    names = {id(parameter): strip_compiled(name) for name, parameter in module.named_parameters()}
    return [[names.get(id(parameter), "") for parameter in group["params"]] for group in optimizer.param_groups]


def scheduler_kind(scheduler: Any) -> str:
    """A scheduler's class, and the classes of the schedulers within it.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1)])
    >>> constant = torch.optim.lr_scheduler.ConstantLR(optimizer)
    >>> scheduler_kind(torch.optim.lr_scheduler.ChainedScheduler([constant]))
    'ChainedScheduler(ConstantLR)'
    """
    within = ", ".join(map(scheduler_kind, getattr(scheduler, SCHEDULERS, ())))
    return type(scheduler).__name__ + (f"({within})" if within else "")


def checkpoint_hparams(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters the checkpoint was written under.

    What we recorded at save time wins: `load_from_checkpoint(path, hidden_dims=...)` overwrites `hyper_parameters`
    before any hook runs.
    """
    saved = to_plain(dict(checkpoint.get("hyper_parameters") or {}))
    return {**saved, **find_record(checkpoint).get("hparams", {})}
