"""A checkpoint of this moment, in memory: taken from a run, and given back to it."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from lightning_grow.files.hparams import find_hparams
from lightning_grow.private import AVERAGE, HPARAMS_NAME, tree_map

HELD = "held_copies"
"""The attribute of `GrowableMixin`, and where a snapshot has it."""


def take_snapshot(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """What a checkpoint of this moment would hold of weights, their averages, and optimizers."""
    averages = [{"average_model_state": _on_cpu(average.module.state_dict())} for average in find_averages(trainer)]
    return {
        "state_dict": _on_cpu(pl_module.state_dict()),
        HELD: getattr(pl_module, HELD, ()),
        "hyper_parameters": find_hparams(pl_module),
        "hparams_name": getattr(pl_module, HPARAMS_NAME, None),
        "optimizer_states": [_on_cpu(optimizer.state_dict()) for optimizer in trainer.optimizers],
        "lr_schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "callbacks": {str(number): state for number, state in enumerate(averages)},
        "global_step": trainer.global_step,
        "epoch": trainer.current_epoch,
    }


def load_training_state(trainer: Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Give the Trainer's optimizers and schedules what a checkpoint has of them."""
    if checkpoint["optimizer_states"]:
        trainer.strategy.load_optimizer_state_dict(checkpoint)
    for config, state in zip(trainer.lr_scheduler_configs, checkpoint["lr_schedulers"], strict=False):
        config.scheduler.load_state_dict(state)


def find_averages(trainer: Trainer) -> list[AveragedModel]:
    """The averaged copies of the module that callbacks keep."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    averages = [getattr(callback, AVERAGE, None) for callback in callbacks]
    return [average for average in averages if isinstance(average, AveragedModel)]


def _on_cpu(state: Mapping[str, Any]) -> Any:
    return tree_map(lambda leaf: leaf.detach().cpu().clone() if isinstance(leaf, Tensor) else leaf, dict(state))
