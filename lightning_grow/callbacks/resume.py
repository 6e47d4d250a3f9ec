"""What stands in for the three calls that a checkpoint passes through on a resume; the callback does the rest."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy

from lightning_grow.callbacks.interceptions import Function
from lightning_grow.callbacks.surroundings import check_progress, check_version, warn_of_tuners
from lightning_grow.callbacks.together import together
from lightning_grow.comparison import shapes_differ
from lightning_grow.convert import growing_outside
from lightning_grow.files.checkpoint import is_distributed, is_mappable, load_mapped, read_checkpoint
from lightning_grow.files.hparams import find_hparams
from lightning_grow.files.record import read_ours
from lightning_grow.files.sharded import check_sharded, find_differing_shapes
from lightning_grow.living.rollback import all_or_nothing
from lightning_grow.private import tree_map
from lightning_grow.training_state.saved import looks_foreign
from lightning_grow.training_state.weight_copies import NOT_COPIES

UNNAMED = "the checkpoint"


def reading(callback: Any, trainer: Trainer, own: Function) -> Function:
    """Read the file through the one safe door."""

    def load_checkpoint(checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        if callback._path == UNNAMED and trainer.state.fn == "fit":
            warn_of_tuners(trainer)
        callback._path = checkpoint_path
        only = weights_only is not False
        if trainer.strategy.restore_checkpoint_after_setup:
            if is_sharded_growth(trainer, checkpoint_path, only):
                return dict(callback._grow_sharded(trainer, checkpoint_path, only))
            together(lambda: check_sharded(checkpoint_path, trainer.lightning_module, weights_only=only))
            loaded = dict(own(checkpoint_path, weights_only=weights_only))
            callback._new_entries = read_ours(loaded).get("pending", {}).get("new_entries", {})
            return loaded
        hparams, load = find_hparams(trainer.lightning_module), lambda path, only: own(path, weights_only=only)
        read = partial(read_checkpoint, weights_only=only, load=load, hparams=hparams)
        return together(lambda: check_version(read(checkpoint_path), checkpoint_path))

    return load_checkpoint


def is_sharded_growth(trainer: Trainer, path: str | Path, weights_only: bool) -> bool:
    """Whether a checkpoint of another architecture meets parameters that lie in parts (FSDP2)."""
    module = trainer.lightning_module
    if not isinstance(trainer.strategy, ModelParallelStrategy) or trainer.state.fn != "fit":
        return False
    if is_distributed(path):
        return together(lambda: bool(find_differing_shapes(path, module)))
    if not is_mappable(path):
        return False
    read = partial(read_checkpoint, weights_only=weights_only, load=load_mapped)
    return together(lambda: shapes_differ(read(path)["state_dict"], module))


def growing(callback: Any, trainer: Trainer, own: Function) -> Function:
    """Grow what was read before its weights load, around the module's own hook."""
    hook = growing_outside(own)

    def restore(checkpoint: dict[str, Any]) -> None:
        if "state_dict" not in checkpoint:
            return hook(checkpoint)  # a sharded strategy has loaded it by itself
        check_progress(trainer, checkpoint)
        others = shapes_differ(checkpoint["state_dict"], trainer.lightning_module) or looks_foreign(checkpoint)
        if trainer.state.fn == "fit" and others:  # what optimizers hold can be refused only once they are there
            callback._undo.enter_context(all_or_nothing([trainer.lightning_module]))
        module, as_saved = trainer.lightning_module, tree_map(lambda leaf: leaf, checkpoint)
        try:
            hook(checkpoint)  # the user's hook first: it may rename keys
        except Exception:
            if not shapes_differ(as_saved["state_dict"], module):
                raise
            checkpoint |= as_saved  # it may load a copy of the weights: that has to grow before
            callback._grow(trainer, module, checkpoint)
            return hook(checkpoint)
        checkpoint |= {key: item for key, item in as_saved.items() if key not in checkpoint}
        before = dict(checkpoint)
        callback._grow(trainer, module, checkpoint)
        grown = {key: item for key, item in checkpoint.items() if item is not before.get(key)}
        if copies := grown.keys() - NOT_COPIES - {"callbacks"}:  # the hook has taken the source's
            hook({**as_saved, **{key: grown[key] for key in copies}})

    return lambda checkpoint: together(lambda: restore(checkpoint))


def carrying(callback: Any, trainer: Trainer, own: Function) -> Function:
    """Rewrite the optimizers' states as they load them; once they have, nothing of the growth is taken back."""

    def load_optimizer_state_dict(checkpoint: Mapping[str, Any]) -> None:
        together(lambda: callback._carry(trainer, trainer.lightning_module))
        own(checkpoint)
        callback._undo.close()

    return load_optimizer_state_dict
