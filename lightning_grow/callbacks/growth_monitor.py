"""Watch what becomes of a growth: the callback."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_grow.callbacks.arch_transfer import ArchTransfer
from lightning_grow.callbacks.plateau import Plateau
from lightning_grow.errors import MissingExtra
from lightning_grow.monitor.recovery import Recovery
from lightning_grow.monitor.sample import Sample
from lightning_grow.pictures import plot_curves
from lightning_grow.plan.growth_plan import GrowthPlan
from lightning_grow.verify.liveness import count_idle

MOST_POINTS = 10_000


class GrowthMonitor(Callback):
    """Log how a run fares over its growths, and say so in a sentence: no drop, recovered after N steps, idle units.

    Works beside `ArchTransfer` or `GrowthSchedule`, which grow. Logged every few batches: `growth/dormant_share` and
    `growth/effective_rank` of the hidden units (see `lightning_grow.monitor.units`), and for a while after a growth
    `growth/new_gradient_share` and `growth/new_update_share`, the norm of the gradient and of the update in new entries
    over that of all. As soon as it is clear, and at the end of the fit, a summary of the latest growth: `growth/drop`,
    `growth/recovered_after` in optimizer steps, `growth/gain` over the mean before.

    A checkpoint has the latest values, so that a growing resume is compared with what was before it.

    Args:
        monitor: The value that is compared before and after, among the logged ones.
        mode: "min" for a loss, "max" for a return.
        window: How many values before a growth are its measure.
        every_n_batches: Between two looks at the units.
        num_steps: Optimizer steps after a growth in which new entries are looked at.
        tau: Of the dormant share.
        patience: Values without a better one after which a hint is given; None gives none.

    Raises:
        ValueError: The mode is neither.

    >>> GrowthMonitor("train_loss", mode="low")
    Traceback (most recent call last):
    ValueError: Expected mode to be 'min' or 'max', but got 'low'.
    """

    def __init__(
        self,
        monitor: str,
        mode: str = "min",
        window: int = 5,
        every_n_batches: int = 10,
        num_steps: int = 1000,
        tau: float = 0.025,
        patience: int | None = None,
    ) -> None:
        self.plateau = Plateau(monitor, patience or 0, mode)
        self.monitor, self.mode, self.patience = monitor, mode, patience
        self.every_n_batches, self.num_steps, self.tau = every_n_batches, num_steps, tau
        self.values: deque[float] = deque(maxlen=window)
        self.recoveries: list[Recovery] = []
        self.curve: list[tuple[int, float]] = []  # (optimizer step, value) of this fit
        self._plan: GrowthPlan | None = None
        self._forget()

    def _forget(self) -> None:
        self._batches, self._looks = 0, 0
        self._sample: Sample | None = None
        self._seen: dict[str, Tensor] = {}
        self._new: dict[str, Tensor] = {}
        self._reached: dict[str, Tensor] = {}
        self._grown_at = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A new fit: its curve begins."""
        self._forget()
        self.curve = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A growing resume has just happened."""
        self._notice(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Look at this batch, if it is time."""
        self._notice(trainer)
        if self._batches % self.every_n_batches == 0:
            new = {name: mask.to(pl_module.device) for name, mask in self._new.items()}
            self._sample = Sample(pl_module, self.tau, new)
        self._batches += 1

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Look at the gradients."""
        if self._sample is not None:
            self._sample.take_gradients(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what was seen, and take the value."""
        if self._sample is not None:
            self._seen = self._sample.close(pl_module)
            pl_module.log_dict({f"growth/{name}": value for name, value in self._seen.items()})
            self._tell_idle(self._sample)
            self._sample = None
        self._take(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the value, if validation logs it."""
        if not trainer.sanity_checking:
            self._notice(trainer)
            self._take(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the value, if it is an epoch's."""
        self._notice(trainer)
        self._take(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what is left to say, and draw the curve where there was a growth."""
        if self.monitor not in trainer.callback_metrics:
            logged = ", ".join(sorted(trainer.callback_metrics)) or "nothing is logged"
            rank_zero_warn(f"GrowthMonitor monitors {self.monitor!r}, which was not logged. Log it, or take: {logged}.")
        for sentence in filter(None, (recovery.at_last() for recovery in self.recoveries[-1:])):
            rank_zero_info(sentence)
        self._summarise(trainer)
        folder = trainer.log_dir or trainer.default_root_dir
        if self.recoveries and self.curve and trainer.is_global_zero and "://" not in str(folder):
            self._draw(Path(folder))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the module as it was found."""
        if self._sample is not None:
            self._sample.release()

    def _draw(self, folder: Path) -> None:
        try:
            figure = self.plot()
        except MissingExtra as error:
            rank_zero_info(f"No growth.png: {error}")
            return
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / "growth.png", dpi=150)

    def plot(self) -> Any:
        """Draw the monitored value over the optimizer steps of this fit, with a line at each growth: a figure."""
        steps, values = zip(*self.curve, strict=True)
        grown_at = [recovery.step for recovery in self.recoveries]
        return plot_curves({self.monitor: (steps, values)}, grown_at, "optimizer steps", self.monitor)

    def state_dict(self) -> dict[str, Any]:
        """The latest values, and the growths they are held against: plain types."""
        return {"values": list(self.values), "recoveries": [recovery.to_dict() for recovery in self.recoveries]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from another fit's values."""
        self.values = deque(state_dict["values"], maxlen=self.values.maxlen)
        self.recoveries = [Recovery(**recovery) for recovery in state_dict["recoveries"]]

    def _notice(self, trainer: Trainer) -> None:
        """Whether something has grown since the last look."""
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        plan = next((item.plan for item in callbacks if isinstance(item, ArchTransfer)), None)
        if plan is not None and plan is not self._plan:
            self._grown_at, self._reached, self._looks = trainer.global_step, {}, 0
            masks = {name: plan.new_entries(name) for name, item in plan.tensors.items() if not item.is_state}
            self._new = {name: mask for name, mask in masks.items() if mask.any()}
            if len(self.values) > 1:
                before = list(self.values)
                self.recoveries.append(Recovery(self.monitor, trainer.global_step, before, self.mode == "max"))
            self.plateau.forget()
        if trainer.global_step > self._grown_at + self.num_steps:
            self._new = {}
        self._plan = plan

    def _take(self, trainer: Trainer) -> None:
        """Take in the monitored value, if it is a new one."""
        value = trainer.callback_metrics.get(self.monitor)
        if value is None or not torch.isfinite(value) or (self.values and float(value) == self.values[-1]):
            return
        self.values.append(float(value))
        self.curve.append((trainer.global_step, float(value)))
        if len(self.curve) > MOST_POINTS:  # more than a picture shows
            del self.curve[1::2]
        if self.recoveries and (sentence := self.recoveries[-1].take(trainer.global_step, float(value))):
            rank_zero_info(sentence)
            self._summarise(trainer)
        if self.patience is not None and self.plateau.take({self.monitor: value}) and self.plateau.is_over():
            self._hint()

    def _summarise(self, trainer: Trainer) -> None:
        """Put the latest growth's drop, recovery and gain into every logger."""
        numbers = self.recoveries[-1].summary() if self.recoveries else {}
        for logger in trainer.loggers if numbers else ():
            logger.log_metrics({f"growth/{name}": value for name, value in numbers.items()}, step=trainer.global_step)

    def _hint(self) -> None:
        dormant, rank = (self._seen.get(name) for name in ("dormant_share", "effective_rank"))
        if dormant is not None and rank is not None and dormant < 0.01:
            rank_zero_info(
                f"Hint: {self.monitor} has not improved in {self.patience} values, {dormant:.1%} of the units are "
                f"dormant and their effective rank is {rank:.0%} of the full one: a bigger network may help."
            )
        self.plateau.forget()

    def _tell_idle(self, sample: Sample) -> None:
        """After a few looks: which new units no gradient has reached."""
        for name, reached in sample.reached.items():
            self._reached[name] = self._reached.get(name, torch.tensor(False)) | reached
        self._looks += bool(sample.reached)
        if self._looks != Recovery.CLEAR or not sample.reached or self._plan is None:
            return
        idle = {group.name: count_idle(group, self._reached) for group in self._plan.groups}
        if sum(idle.values()):
            counts = ", ".join(f"{count} at {name}" for name, count in idle.items() if count)
            rank_zero_info(f"new units idle after {self._looks} looks, for no gradient reaches them: {counts}.")
        else:
            new = sum(group.new - group.old for group in self._plan.groups)
            rank_zero_info(f"all {new} new units learn.")
