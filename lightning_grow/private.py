"""What this library takes from torch and Lightning that is not public: here and nowhere else.

Every name has a test that fails when a release takes it away; Lightning's are reached through a trainer or a module, so
nothing of Lightning is imported here.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._decomp import core_aten_decompositions
from torch._ops import OpOverload as Operator
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_map

__all__ = ["Operator", "TorchDispatchMode", "keystr", "tree_flatten_with_path", "tree_leaves", "tree_map"]

COMPILED = "_orig_mod."
"""What torch.compile puts before the names of a module's parts."""

RESETS = ("reset_parameters", "_reset_parameters")
"""How torch's modules draw their values anew."""

INITIALISES = "_init_weights"
"""The method of transformers, timm and many others that draws the values of a part it is given: ``apply`` calls it."""

STATE_DICT_HOOKS = "_optimizer_state_dict_post_hooks"
"""What torch's Optimizer.__init__ gives an optimizer; some wrappers never call it."""

LAST_RATES = "_last_lr"
"""Where a scheduler keeps the rates of its groups."""

SCHEDULERS = "_schedulers"
"""Where a scheduler of several keeps them, and their states."""

LAYOUT = ("torch.serialization", "_get_layout")
"""What a distributed checkpoint's .metadata calls for a tensor's layout."""


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of a module runs hooks of its own around its forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


class Stored(NamedTuple):
    """The memory of a tensor as a file of torch names it."""

    storage: torch.UntypedStorage
    kind: Any
    entries: int
    identity: int


def stored(item: Any) -> Stored | None:
    """What torch's pickler makes of a tensor's memory; None for all else that is pickled."""
    if isinstance(item, torch.storage.TypedStorage):
        kind, storage = getattr(torch, item._pickle_storage_type()), item._untyped_storage  # type: ignore[no-untyped-call]
        return Stored(storage, kind, item._size(), storage._cdata)  # type: ignore[no-untyped-call]
    if isinstance(item, torch.UntypedStorage):
        return Stored(item, torch.UntypedStorage, item.nbytes(), item._cdata)
    return None


class Tables(NamedTuple):
    """Where an nn.Module keeps its parts, by name."""

    parameters: dict[str, nn.Parameter | None]
    buffers: dict[str, Tensor | None]
    modules: dict[str, nn.Module | None]
    non_persistent: set[str]


TABLES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
"""Their names in vars(module)."""


def tables(module: nn.Module) -> Tables:
    """The module's own tables, to be changed in place: a compiled module's attributes are those of the one inside."""
    return Tables(*(vars(module)[name] for name in TABLES))


def schema(op: Operator) -> Any:
    """An operator's name, arguments and returns, and which of them it writes into."""
    return op._schema


def version(tensor: Tensor) -> int:
    """How often a tensor was written into."""
    return tensor._version


def base(view: Tensor) -> Tensor | None:
    """The tensor that another is a view of."""
    return view._base


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Torch's own table of operators written in simpler ones."""
    return dict(core_aten_decompositions())


@contextlib.contextmanager
def no_dispatch() -> Iterator[None]:
    """Run operators as they are, within a TorchDispatchMode."""
    with _disable_current_modes():
        yield


@contextlib.contextmanager
def no_onednn() -> Iterator[None]:
    """Run without oneDNN's own kernels; the public backends.mkldnn.flags() warns about TF32 on machines without it."""
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(enabled)


EXAMPLE = "_example_input_array"
"""Where a LightningModule keeps example_input_array."""

HPARAMS_NAME = "_hparams_name"
"""Where it keeps the name of its one argument, if that is all its hyperparameters."""

TRAINER = "_trainer"
"""Where it keeps its Trainer; `module.trainer` raises without one."""

AVERAGE = "_average_model"
"""Where WeightAveraging and StochasticWeightAveraging keep the averaged copy of the module."""

STEPPED_STATE = "current_model_state"
"""Under which WeightAveraging saves the weights that the optimizers step, for state_dict then has the average."""

SPAWNING = "_MultiProcessingLauncher"
"""Launchers whose processes end with fit."""


def data_source(trainer: Any) -> Any:
    """Where the loop that runs gets its loaders."""
    return trainer._active_loop._data_source


def transfer_batch(pl_module: Any, batch: Any) -> Any:
    """A batch as training_step gets it: through the module's hooks, on its device."""
    batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return pl_module._apply_batch_transfer_handler(batch, device=pl_module.device, dataloader_idx=0)


def metrics_of_validation(trainer: Any) -> Any:
    """What a validation has logged, while it ends: callback_metrics has it only later."""
    return trainer._logger_connector.metrics["callback"]


def ended_epochs(checkpoint: Any) -> int:
    """How many epochs of fit a checkpoint has behind it: counted before its hooks, or after."""
    epochs = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_progress", {}).get("current", {})
    return int(max(epochs.get("processed", 0), epochs.get("completed", 0)))


def skips_validation(trainer: Any) -> bool:
    """Whether fit goes on after an epoch's last step, without the validation that the checkpoint was saved before."""
    loop = trainer.fit_loop.epoch_loop
    return bool(loop.restarted_on_train_batch_end and loop.batch_progress.is_last_batch)
