"""Grow a run on resume: the callback."""

import inspect
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from typing_extensions import Unpack

from lightning_grow.callbacks.first_batch import first_inputs
from lightning_grow.callbacks.interceptions import Interceptions
from lightning_grow.callbacks.reporting import describe_optimizers, mark_growth, print_report, write_report
from lightning_grow.callbacks.resume import UNNAMED, carrying, growing, reading
from lightning_grow.callbacks.sharded_growth import check_moments, part_like, parts_of, plan_sharded, write_sharded
from lightning_grow.callbacks.surroundings import (
    check_progress,
    check_total,
    clear_monitors,
    in_precision,
    warn_of_cli,
    without_averaging_schedule,
)
from lightning_grow.callbacks.together import together
from lightning_grow.comparison import own_fingerprint, shapes_differ
from lightning_grow.convert import Growth, grow_checkpoint
from lightning_grow.files.checkpoint import KEY, load_mapped, read_checkpoint
from lightning_grow.files.hparams import name_differences
from lightning_grow.files.rebuild import Source
from lightning_grow.files.record import find_param_names, read_ours, record_architecture, restore_attributes
from lightning_grow.options import NAMES, GrowthOptions, Options, OptionsBesideStrategy, check_options
from lightning_grow.plan.growth_plan import GrowthPlan
from lightning_grow.strategies import Strategy
from lightning_grow.trace.names import parameters_of
from lightning_grow.training_state.optimizers import (
    CarriedState,
    Keep,
    OptimizerChoice,
    Schedule,
    carry_optimizers,
    check_has_states,
    check_shapes,
)
from lightning_grow.training_state.saved import in_order_of
from lightning_grow.training_state.schedules import cover_groups
from lightning_grow.training_state.warmup import STATE_KEY, Scope, Shape, Warmup, end_warmup, from_runs, to_runs

DEFAULT_WARMUP_STEPS = 100
UNTRACED = ""  # no fingerprint, which has 64 digits, nor None: that of a module that cannot be traced


class ArchTransferOptions(GrowthOptions, total=False):
    """All keyword arguments of `ArchTransfer`, for what takes them in its place; see there."""

    optimizer: OptimizerChoice
    scheduler: Schedule | None
    num_warmup_steps: int | None
    warmup_start_factor: float
    warmup_scope: Scope | None
    warmup_shape: Shape
    source: Source | None
    reset_monitors: bool


class ArchTransfer(Callback):
    """Resume a run with a bigger network: ``Trainer(callbacks=[ArchTransfer()])``, then ``fit(..., ckpt_path=...)``.

    The checkpoint's weights are grown to the module's shapes before they load, in fit, validate, test and predict.
    Where nothing differs, nothing happens, and the resume is Lightning's own.

    Args:
        strategy: See `GrowthOptions`.
        optimizer: "reset" starts optimizers fresh, as the current config builds them; "transfer" moves their moments
            where that is exact; "asymmetric" lets every entry of the source keep its moments, copied units' too, while
            new ones warm up alone and, under Adam and AdamW, gather moments of their own (Sparkling, 2026). Another
            growth in the middle of that warm-up begins it again, for what was new in either.
        scheduler: "keep" goes on with the checkpoint's schedule, "reset" starts the config's; when None, "reset" after
            a reset, else "keep".
        num_warmup_steps: Optimizer steps of learning-rate warm-up after a growth; when None, 0 after a transfer, else
            100.
        warmup_start_factor: Factor of the learning rate at the first step, in (0, 1].
        warmup_scope: "all" entries, only the "new" ones, or only those of the "source"; when None, "new" if
            `optimizer` is "asymmetric", else "all".
        warmup_shape: "linear", or half a "cosine".
        source: A callable ``hparams -> nn.Module``, for modules that ``type(module)(**hparams)`` cannot build again.
        reset_monitors: Whether ModelCheckpoint and EarlyStopping forget the scores of the smaller network.
        **options: The others of `GrowthOptions`.

    Raises:
        ValueError: A choice or a setting is not one of those above.
        UnknownStrategy: No strategy has that name.
        TypeError: There is no such option.

    >>> ArchTransfer(optimizer="rest")
    Traceback (most recent call last):
    ValueError: Expected optimizer to be 'reset', 'transfer' or 'asymmetric', but got 'rest'.
    """

    def __init__(
        self,
        strategy: str | Strategy = "preserve",
        *,
        optimizer: OptimizerChoice = "reset",
        scheduler: Schedule | None = None,
        num_warmup_steps: int | None = None,
        warmup_start_factor: float = 0.1,
        warmup_scope: Scope | None = None,
        warmup_shape: Shape = "linear",
        source: Source | None = None,
        reset_monitors: bool = False,
        **options: Unpack[OptionsBesideStrategy],
    ) -> None:
        own = {*inspect.signature(type(self)).parameters, *ArchTransferOptions.__optional_keys__} - {"options"}
        self.options = check_options({"strategy": strategy, **options}, type(self).__name__, *sorted(own - {*NAMES}))
        if optimizer not in ("reset", "transfer", "asymmetric"):
            raise ValueError(f"Expected optimizer to be 'reset', 'transfer' or 'asymmetric', but got {optimizer!r}.")
        if scheduler not in (None, "reset", "keep"):
            raise ValueError(f"Expected scheduler to be 'reset', 'keep' or None, but got {scheduler!r}.")
        self.optimizer: OptimizerChoice = optimizer
        self.scheduler: Schedule = scheduler or ("reset" if optimizer == "reset" else "keep")
        steps = 0 if optimizer == "transfer" else DEFAULT_WARMUP_STEPS
        self.num_warmup_steps = steps if num_warmup_steps is None else num_warmup_steps
        self.warmup_start_factor, self.warmup_shape = warmup_start_factor, warmup_shape
        self.warmup_scope: Scope = warmup_scope or ("new" if optimizer == "asymmetric" else "all")
        self.source = source
        self.reset_monitors = reset_monitors
        if optimizer == "asymmetric" and not (self.warmup_scope == "new" and self.num_warmup_steps):
            raise ValueError(
                "Expected optimizer='asymmetric' with warmup_scope='new' and num_warmup_steps of 1 or more, in which "
                f"new entries gather moments of their own, but got {self.warmup_scope!r} and {self.num_warmup_steps}. "
                "Use optimizer='transfer' for moments that start at the size of the old ones."
            )
        self._make_warmup()  # a wrong setting is an error here, not hours later
        self._forget()
        self._interceptions = Interceptions()
        self._undo = ExitStack()  # an optimizer may be refused when the weights have loaded: until it has its states

    def _make_warmup(self) -> Warmup:
        fresh = self.optimizer == "asymmetric"
        return Warmup(self.num_warmup_steps, self.warmup_start_factor, self.warmup_scope, self.warmup_shape, fresh)

    def _forget(self) -> None:
        self._path: str | Path = UNNAMED
        self._checkpoint: dict[str, Any] | None = None  # from the load until the optimizers are there
        self._growth: Growth | None = None  # likewise
        self._tape: str | None = UNTRACED
        self._warmup = Warmup(0)
        self._new_entries: dict[str, list[int]] = {}  # by parameter name, as runs
        self.plan: GrowthPlan | None = None  # of the latest growth

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Intercept the calls that a checkpoint passes through before its weights load, and its optimizer states."""
        if stage == "fit":
            self._forget()
        self._interceptions.release()
        put, strategy = self._interceptions.put, trainer.strategy
        put(strategy, "load_checkpoint", partial(reading, self, trainer))
        put(pl_module, "on_load_checkpoint", partial(growing, self, trainer))
        put(strategy, "load_optimizer_state_dict", partial(carrying, self, trainer))

    def _carry(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Rewrite optimizer and scheduler state as they load it: every callback has regrouped them by now."""
        checkpoint, growth = self._checkpoint, self._growth
        self._checkpoint = self._growth = None
        if checkpoint is None:
            return
        if growth is None:
            check_shapes(checkpoint.get("optimizer_states", ()), trainer.optimizers, pl_module)
        else:
            carried = self._carry_states(trainer, pl_module, checkpoint, growth.transfer.plan)
            self._take_up(trainer, pl_module, checkpoint, growth, carried)
        if not self._warmup.is_finished or growth is not None:
            self._warmup.attach(trainer.optimizers, self._find_new_entries(pl_module))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin or go on with a warm-up where the strategy loads the optimizers by itself."""
        if trainer.strategy.restore_checkpoint_after_setup and not self._warmup.is_finished:
            self._warmup.attach(trainer.optimizers, self._find_new_entries(pl_module))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Log the warm-up's factor; 1 once it is over, for Lightning repeats the last value of an epoch."""
        if trainer.loggers and self._warmup.steps:
            factors = [self._warmup.factor(index) for index in range(len(trainer.optimizers))]
            pl_module.log("lr-warmup-factor", min(factors))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the hooks off when the warm-up is over."""
        if self._warmup.is_finished:
            self._warmup.detach()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Record the architecture, and which entries are new while that still matters: plain types under our key."""
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        if self._tape == UNTRACED and not trainer.strategy.restore_checkpoint_after_setup:
            self._tape = own_fingerprint(pl_module, self._find_options(trainer))
        record_architecture(checkpoint, pl_module, trainer.optimizers, schedulers, self._tape)
        warming = {
            name
            for index, optimizer in enumerate(trainer.optimizers)
            if self._new_entries and not self._warmup.is_over(index)
            for name in chain.from_iterable(find_param_names(pl_module, optimizer))
        }
        if warming:
            entries = {name: runs for name, runs in self._new_entries.items() if name in warming}
            checkpoint[KEY]["pending"] = {"new_entries": entries}

    @property
    def state_key(self) -> str:
        """One for all that grow a run: whichever saved the warm-up, the other goes on with it."""
        return STATE_KEY

    def state_dict(self) -> dict[str, Any]:
        """The warm-up under way; empty without one."""
        return self._warmup.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the warm-up that was under way; where this very resume grows, a new one starts."""
        if "steps" in state_dict:
            self._warmup = Warmup.from_state_dict(state_dict)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave trainer, module and optimizers as they were found."""
        self._interceptions.release()
        self._warmup.detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Likewise: Lightning calls no teardown after an error. The module is as it was if no step was taken."""
        with suppress(type(exception)):
            self._undo.__exit__(type(exception), exception, exception.__traceback__)
        self._interceptions.release()
        self._warmup.detach()

    def _grow(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Grow the checkpoint in memory, between the user's own hook and the loading of the weights."""
        fitting = trainer.state.fn == "fit"
        example = getattr(pl_module, "example_input_array", None)
        if shapes_differ(checkpoint["state_dict"], pl_module):
            in_precision(trainer, pl_module)
            if fitting:
                check_total(trainer, checkpoint)
                check_has_states(checkpoint, self.optimizer, self.scheduler)
        options = self._find_options(trainer)
        growth = grow_checkpoint(checkpoint, pl_module, options, path=self._path, source=self.source)
        if example is not None:
            pl_module.example_input_array = example
        restore_attributes(pl_module, checkpoint)
        self._new_entries = read_ours(checkpoint).get("pending", {}).get("new_entries", {})
        self._checkpoint, self._growth = (checkpoint, growth) if fitting else (None, None)
        if growth is None:
            warn_of_cli(trainer)
            return
        if fitting:  # a file of weights alone has neither, and the fresh start that was asked for needs none
            checkpoint.setdefault("optimizer_states", [])
            checkpoint.setdefault("lr_schedulers", [])
        if self.reset_monitors:
            clear_monitors(trainer, checkpoint)
        self._announce(growth)
        if not fitting:
            write_report(trainer, growth.transfer.report.to_dict(), checkpoint)

    def _grow_sharded(self, trainer: Trainer, path: str | Path, weights_only: bool) -> dict[str, Any]:
        """Grow where every process holds a part of each parameter; returns what Lightning restores by itself."""
        module, checkpoint = trainer.lightning_module, dict[str, Any]()

        def check() -> None:
            checkpoint.update(read_checkpoint(path, weights_only=weights_only, load=load_mapped))
            check_progress(trainer, checkpoint)
            check_total(trainer, checkpoint)
            check_has_states(checkpoint, self.optimizer, self.scheduler)
            check_moments(self.optimizer)
            record = read_ours(checkpoint)
            end_warmup(checkpoint, record.pop("pending", {}).get("new_entries", {}))
            checkpoint[KEY] = record

        together(check)
        options = self._find_options(trainer)
        plan = together(lambda: plan_sharded(module, checkpoint, options, path, self.source))
        saved = checkpoint | {"state_dict": in_order_of(checkpoint["state_dict"], module.state_dict(), plan)}
        carried = together(lambda: self._carry_states(trainer, module, saved, plan, parts_of(module)))
        growth = write_sharded(module, checkpoint, plan, options.seed)
        self._announce(growth)
        self._take_up(trainer, module, checkpoint, growth, carried)
        for optimizer, state in zip(trainer.optimizers, checkpoint["optimizer_states"], strict=False):
            optimizer.load_state_dict(state)
        self._warmup.attach(trainer.optimizers, self._find_new_entries(module))
        return {key: item for key, item in checkpoint.items() if key not in ("state_dict", "optimizer_states")}

    def _announce(self, growth: Growth) -> None:
        for line in name_differences(growth.differing):
            rank_zero_info(line)
        rank_zero_info(f"Growing {self._path} with the strategy {growth.transfer.report.strategy!r}.")
        print_report(growth)

    def _carry_states(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        checkpoint: dict[str, Any],
        plan: GrowthPlan,
        keep: Keep = lambda name, tensor: tensor,
    ) -> CarriedState:
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        choices: dict[str, Any] = {"optimizer": self.optimizer, "scheduler": self.scheduler}
        saved = without_averaging_schedule(trainer, checkpoint)
        return carry_optimizers(saved, pl_module, trainer.optimizers, schedulers, plan, keep=keep, **choices)

    def _take_up(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        checkpoint: dict[str, Any],
        growth: Growth,
        carried: CarriedState,
    ) -> None:
        self.plan = growth.transfer.plan
        if self.scheduler == "reset":
            for config in trainer.lr_scheduler_configs:
                cover_groups(config.scheduler)
        self._warmup = self._make_warmup()
        if self.warmup_scope != "all" and self.num_warmup_steps:
            self._new_entries = {name: to_runs(growth.new_entries(name)) for name in parameters_of(pl_module)}
        if growth.warming and self.optimizer == "asymmetric":
            carried.fresh.append("what was new in the warm-up under way: it gathers its moments again, from 0")
        rank_zero_info(describe_optimizers(trainer, checkpoint, carried, self.optimizer, self.scheduler, self._warmup))
        state = {"optimizer": self.optimizer, "scheduler": self.scheduler, **carried.to_dict()}
        write_report(trainer, {**growth.transfer.report.to_dict(), "training_state": state}, checkpoint)
        mark_growth(trainer, pl_module, growth.transfer.report)
        checkpoint.update(optimizer_states=carried.optimizer_states, lr_schedulers=carried.lr_schedulers)

    def _find_options(self, trainer: Trainer) -> Options:
        """The options, with the example inputs as the module gets its batches: out of the first if none are given."""
        given = self.options.example_inputs
        if given is not None:
            return replace(self.options, example_inputs=trainer.precision_plugin.convert_input(given))
        first = partial(first_inputs, trainer, trainer.lightning_module, self.options.forward)
        return replace(self.options, example_inputs=first)

    def _find_new_entries(self, pl_module: LightningModule) -> dict[Any, Any]:
        parameters = parameters_of(pl_module)
        return {
            parameters[name]: part_like(from_runs(runs, parameters[name].shape), parameters[name])
            for name, runs in self._new_entries.items()
            if name in parameters
        }
