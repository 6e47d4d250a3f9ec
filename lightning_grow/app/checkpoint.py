"""Checkpoints by time: what a crash costs does not depend on how long an epoch is."""

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_grow.errors import NotFinite


class TimedCheckpoint(ModelCheckpoint):
    """Save at the end of the first epoch, of every epoch that ends `seconds` after the last save, and of the run.

    An error or an interrupt saves too, so that at most the step under way is lost; but for `NotFinite`, whose state is
    worth nothing: the last checkpoint stays. (Lightning's `train_time_interval` has no effect where a module steps its
    optimizers itself.)

    Args:
        seconds: Least time between two saves, at least 0; 0 saves after every epoch.
        **kwargs: Of `ModelCheckpoint`.
    """

    def __init__(self, seconds: float = 30.0, **kwargs: Any) -> None:
        super().__init__(save_on_exception=True, **kwargs)
        self.seconds = seconds
        self.saved_at: float | None = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if it is time; all processes agree on that."""
        now = time.monotonic()
        is_time = self.saved_at is None or now - self.saved_at >= self.seconds or is_last_epoch(trainer)
        if trainer.strategy.broadcast(is_time):
            self.saved_at = now
            super().on_train_epoch_end(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save where training stopped."""
        if not isinstance(exception, NotFinite):
            super().on_exception(trainer, pl_module, exception)


def is_last_epoch(trainer: Trainer) -> bool:
    """Whether the epoch that ends is the last of the run: checkpoint callbacks run after those that stop it."""
    epochs, steps = trainer.max_epochs, trainer.max_steps
    reached = epochs is not None and epochs != -1 and trainer.current_epoch + 1 >= epochs
    return trainer.should_stop or reached or (steps != -1 and trainer.global_step >= steps)
