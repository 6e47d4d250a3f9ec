"""The Trainer around a resume: its total, and its other callbacks."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_grow.errors import RefusedGrowth


def check_total(trainer: Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Refuse to resume a run that has already reached its total: not one step would be trained.

    Args:
        trainer: With the `max_epochs` and `max_steps` of the current config.
        checkpoint: The run so far.

    Raises:
        RefusedGrowth: Nothing is left to train.
    """
    fit_loop = checkpoint.get("loops", {}).get("fit_loop", {})
    epochs = fit_loop.get("epoch_progress", {}).get("current", {}).get("processed", 0)
    done = {"max_epochs": epochs, "max_steps": checkpoint.get("global_step", 0)}
    for name, count in done.items():
        total = getattr(trainer, name)
        if total is not None and total != -1 and count >= total:
            raise RefusedGrowth(
                f"the checkpoint's run has already reached its total: {count} of {name}={total}. "
                f"Ask for more: trainer.{name}={count + max(total, 1)}, say."
            )


def find_callbacks(trainer: Trainer, *names: str) -> list[Callback]:
    """The callbacks of these classes or of subclasses."""
    # by name, not isinstance: both import roots of Lightning have these classes
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [item for item in callbacks if {*names} & {cls.__name__ for cls in type(item).__mro__}]


def clear_monitors(trainer: Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Make ModelCheckpoint and EarlyStopping forget the scores that the checkpoint has."""
    for callback in find_callbacks(trainer, "ModelCheckpoint", "EarlyStopping"):
        checkpoint.get("callbacks", {}).pop(callback.state_key, None)


def warn_of_cli(trainer: Trainer) -> None:
    """Say where LightningCLI has undone the growth."""
    savers: list[Any] = find_callbacks(trainer, "SaveConfigCallback")
    if any(saver.config.get("ckpt_path") for saver in savers):  # absent where the user calls fit
        rank_zero_warn(
            "Nothing grew, and could not: LightningCLI (2.6) puts the model's arguments in --ckpt_path's file in place "
            "of yours. To grow, build with LightningCLI(..., run=False) and call "
            "cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=...) yourself."
        )


def warn_of_tuners(trainer: Trainer) -> None:
    """Say where a search for the learning rate or batch size undoes the resume."""
    for callback in find_callbacks(trainer, "LearningRateFinder", "BatchSizeFinder"):
        rank_zero_warn(
            f"{type(callback).__name__} together with ckpt_path loses the checkpoint's progress and optimizer state: "
            "Lightning (2.6) empties the loaded checkpoint when it has finished its search. Search in a run of its "
            "own, then resume without it."
        )
