"""The Trainer around a resume: its total, and its other callbacks."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn

from lightning_grow.errors import CheckpointError, RefusedGrowth
from lightning_grow.files.checkpoint import KEY
from lightning_grow.files.record import find_record, read_ours
from lightning_grow.private import ended_epochs

MOST = 2**62
"""No run counts further; torch's integers end a little later."""


def check_total(trainer: Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Refuse to resume a run that has already reached its total: not one step would be trained.

    Args:
        trainer: With the `max_epochs` and `max_steps` of the current config.
        checkpoint: The run so far.

    Raises:
        RefusedGrowth: Nothing is left to train.
    """
    done = {"max_epochs": ended_epochs(checkpoint), "max_steps": checkpoint.get("global_step", 0)}
    for name, count in done.items():
        total = getattr(trainer, name)
        if total is not None and total != -1 and count >= total:
            raise RefusedGrowth(
                f"the checkpoint's run has already reached its total: {count} of {name}={total}. "
                f"Ask for more: trainer.{name}={count + max(total, 1)}, say."
            )


def check_version(checkpoint: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """Refuse to resume what Lightning cannot bring to its own version; returns it otherwise.

    Raises:
        CheckpointError: The checkpoint does not say which Lightning wrote it.
    """
    if "pytorch-lightning_version" not in checkpoint:
        raise CheckpointError(
            f"{path} does not say which version of Lightning wrote it ('pytorch-lightning_version'), so a Trainer "
            "cannot resume it. Make a file of it that can be resumed: lightning_grow.convert_checkpoint."
        )
    return checkpoint


def check_progress(trainer: Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Refuse progress that the Trainer's loops cannot take up: they would fail after the weights have loaded.

    Args:
        trainer: Its own loops tell what a state of theirs looks like.
        checkpoint: The run so far, in the form of the Lightning that is here.

    Raises:
        CheckpointError: Something is missing, or of another type than the loop's own.
    """
    name = {"fit": "fit_loop", "validate": "validate_loop", "test": "test_loop", "predict": "predict_loop"}.get(
        str(getattr(trainer.state.fn, "value", ""))
    )
    if name is None or "loops" not in checkpoint:
        return
    wrong = list(_unlike(checkpoint["loops"], {name: getattr(trainer, name).state_dict()}, "['loops']"))
    if wrong:
        raise CheckpointError(
            f"the checkpoint's progress cannot be taken up: {'; '.join(wrong[:3])}. It was damaged, or a Lightning "
            "that keeps its progress in another way wrote it: resume from an earlier checkpoint."
        )


def _unlike(saved: Any, own: Any, place: str) -> Iterator[str]:
    """Where a saved state lacks what a loop's own has, or has it in another type."""
    if isinstance(own, dict):
        if not isinstance(saved, dict):
            yield f"{place} is {saved!r}, and should be a dict"
            return
        for key, item in own.items():
            if key not in saved:
                yield f"{place}[{key!r}] is missing"
            else:
                yield from _unlike(saved[key], item, f"{place}[{key!r}]")
    elif isinstance(own, (bool, int)) and (type(saved) is not type(own) or abs(saved) > MOST):
        yield f"{place} is {saved!r}, and should be a {type(own).__name__}"


def find_callbacks(trainer: Trainer, *names: str) -> list[Callback]:
    """The callbacks of these classes or of subclasses."""
    # by name, not isinstance: both import roots of Lightning have these classes
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [item for item in callbacks if {*names} & {cls.__name__ for cls in type(item).__mro__}]


def clear_monitors(trainer: Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Make ModelCheckpoint and EarlyStopping forget the scores that the checkpoint has."""
    for callback in find_callbacks(trainer, "ModelCheckpoint", "EarlyStopping"):
        checkpoint.get("callbacks", {}).pop(callback.state_key, None)


def without_averaging_schedule(trainer: Trainer, checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """A checkpoint without the schedule that StochasticWeightAveraging has put in the place of the config's.

    The callback has kept its state, and puts it there again in the next epoch.
    """
    states = [
        checkpoint.get("callbacks", {}).get(item.state_key) or {}
        for item in find_callbacks(trainer, "StochasticWeightAveraging")
    ]
    if not any(state.get("scheduler_state") for state in states):
        return checkpoint
    record = {key: item for key, item in find_record(checkpoint).items() if key != "schedulers"}
    own = [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs]
    return {**checkpoint, "lr_schedulers": own, KEY: {**read_ours(checkpoint), "architecture": record}}


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


def in_precision(trainer: Trainer, module: Any) -> nn.Module:
    """A module and its example inputs in the precision that it trains in; Lightning converts modules only later.

    Args:
        trainer: Has the precision.
        module: Changed in place.
    """
    module = trainer.precision_plugin.convert_module(module)
    if getattr(module, "example_input_array", None) is not None:
        module.example_input_array = trainer.precision_plugin.convert_input(module.example_input_array)
    return module  # type: ignore[no-any-return]
