"""Grow inside one run, stage by stage: the callback."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn
from typing_extensions import Unpack

from lightning_grow.callbacks.arch_transfer import UNTRACED, ArchTransfer, ArchTransferOptions
from lightning_grow.callbacks.plateau import Plateau
from lightning_grow.callbacks.reporting import print_report
from lightning_grow.callbacks.snapshot import HELD, find_averages, load_training_state, take_snapshot
from lightning_grow.callbacks.surroundings import find_callbacks, in_precision
from lightning_grow.convert import grow_checkpoint
from lightning_grow.errors import RefusedGrowth
from lightning_grow.files.hparams import compare_hparams, find_fields, find_hparams, in_kind, is_comparable, to_plain
from lightning_grow.files.rebuild import build_module, configure
from lightning_grow.files.record import checkpoint_hparams, restore_attributes
from lightning_grow.grow import Transfer, compared_forward, make_growth_plan, paired_inputs, shared_outputs
from lightning_grow.living.become import Contested, become
from lightning_grow.living.rollback import all_or_nothing
from lightning_grow.living.same_function import float_type, same_function
from lightning_grow.living.trainable import Trainable
from lightning_grow.pair.examples import find_examples
from lightning_grow.plan.growth_plan import refuse
from lightning_grow.private import HPARAMS_NAME, SPAWNING, metrics_of_validation, skips_validation
from lightning_grow.trace.untouched import untouched_rng


class GrowthSchedule(ArchTransfer):
    """Grow the network while `fit` runs: ``GrowthSchedule(stages=[{"hidden_dims": [192, 192, 96]}], at=[960])``.

    The configured module is the stage before the first. Each growth is that of a resume: the same plan, check,
    optimizer state, warm-up and report. All stages are planned before the first step, so that no run stops in its
    middle over a stage that cannot be; what only the living module shows (an attribute that goes by the old width) is
    refused when its stage begins, with everything as it was. It takes the place of ArchTransfer: a checkpoint of any
    stage resumes with the same configuration (the module takes on that stage's architecture before the weights load),
    a smaller one grows.

    Args:
        stages: For every stage, the hyperparameters that change, by name; dots reach into nested ones ("model.width"),
            be they a dict, a namespace or a dataclass.
        at: At which `trainer.global_step` (optimizer steps) each stage begins, ascending.
        on_plateau: Instead of `at`: grow when a logged value has stopped getting better, as a dict of "monitor" (its
            name), "patience" (epochs, 5 by default), "mode" ("min" by default, or "max"), "min_delta" (0 by default).
        **options: The keyword arguments of `ArchTransfer`, those of `GrowthOptions` among them.

    Raises:
        ValueError: Not exactly one of `at` and `on_plateau`, a list of another length or order, or a stage of values
            that cannot be compared.

    References: Chen et al., "Net2Net" (2016), and Gong et al., "Efficient training of BERT by progressively stacking"
    (2019) grow in stages.

    >>> GrowthSchedule(stages=[{"hidden_dims": [16]}], at=[100, 200])
    Traceback (most recent call last):
    ValueError: Expected at to have one step for each of the 1 stages, but got [100, 200].
    """

    def __init__(
        self,
        stages: Sequence[Mapping[str, Any]],
        at: Sequence[int] | None = None,
        on_plateau: Mapping[str, Any] | None = None,
        **options: Unpack[ArchTransferOptions],
    ) -> None:
        super().__init__(**options)
        if (at is None) == (on_plateau is None):
            raise ValueError("Expected one of at (optimizer steps) and on_plateau (a monitored value).")
        if at is not None and len(at) != len(stages):
            raise ValueError(f"Expected at to have one step for each of the {len(stages)} stages, but got {list(at)}.")
        if at is not None and list(at) != sorted(set(at)):
            raise ValueError(f"Expected at to be ascending, but got {list(at)}.")
        self.stages = [dict(to_plain(stage)) for stage in stages]
        for number, stage in enumerate(self.stages, start=1):
            for name, value in stage.items():
                if not is_comparable(value):
                    raise ValueError(
                        f"Expected stage {number} to set {name!r} to something that a reached stage can be told by (a "
                        f"number, a string, an enum, or a list, dict or dataclass of such), but got {value!r}."
                    )
        self.at = None if at is None else list(at)
        self.plateau = None if on_plateau is None else Plateau(**on_plateau)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """See ArchTransfer; and refuse what no stage could be built under."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if self.plateau is not None:
            self.plateau.forget()
        self._validated = self._is_of_validation = False  # in this fit: any value, the monitored one
        if trainer.strategy.restore_checkpoint_after_setup:
            raise RefusedGrowth(
                f"GrowthSchedule grows inside fit on one device or under DDP, not under "
                f"{type(trainer.strategy).__name__}. Train each stage in a run of its own: resume it with ArchTransfer "
                "(FSDP2), or from a file that convert_checkpoint has grown."
            )
        if SPAWNING in (cls.__name__ for cls in type(trainer.strategy.launcher).__mro__):
            raise RefusedGrowth(
                "GrowthSchedule grows the modules of the processes that train; where the Trainer spawns or forks those "
                "itself (ddp_spawn, ddp_fork, ddp_notebook) the fit ends with the main process's module, which has not "
                'grown. Use strategy="ddp".'
            )
        if find_callbacks(trainer, "StochasticWeightAveraging"):
            raise RefusedGrowth(
                "GrowthSchedule and StochasticWeightAveraging both own the learning-rate schedule. Use "
                "EMAWeightAveraging, or grow between two runs."
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plan every stage that is left."""
        current, options = self.find_stage(find_hparams(pl_module)), self._find_options(trainer)
        for number in range(current + 1, len(self.stages) + 1):
            small, large = self._build(pl_module, number - 1), self._build(pl_module, number)
            with _naming_stage(number):
                plan = make_growth_plan(small, large, options)
                refuse(plan)
                if plan.is_trivial:
                    raise RefusedGrowth(f"{self.stages[number - 1]} changes no shape. Leave it out, or make it bigger.")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Grow where a stage is due; never between the batches of one accumulated step."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
        if self.at is not None and stepped:
            self._advance(trainer, pl_module, sum(step <= trainer.global_step for step in self.at))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where Lightning leaves out what a plateau is counted by."""
        waits = self.find_stage(find_hparams(pl_module)) < len(self.stages)
        if self.plateau is not None and waits and skips_validation(trainer):
            rank_zero_warn(
                "The checkpoint was saved at an epoch's last step, before its validation, and Lightning (2.6) does not "
                f"make up for that: on_plateau has no {self.plateau.monitor!r} of this epoch and does not count it. "
                "Save at the end of the validation or of the epoch to go on as the run itself would have."
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the monitored value now, for a checkpoint of this very moment is resumed without it."""
        if self.plateau is not None and not trainer.sanity_checking:
            self._validated = True
            self._is_of_validation |= self.plateau.take(metrics_of_validation(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Grow where the monitored value has stopped getting better."""
        current = self.find_stage(find_hparams(pl_module))
        if self.plateau is None or current == len(self.stages):
            return
        if not self._is_of_validation:
            self.plateau.take(trainer.callback_metrics)
        if self.plateau.new is None and (self._validated or not trainer.enable_validation):
            self.plateau.refuse_unlogged(trainer.callback_metrics)
        if trainer.strategy.broadcast(self.plateau.is_over()):
            self._advance(trainer, pl_module, current + 1)
            self.plateau.forget()

    def find_stage(self, hparams: Mapping[str, Any]) -> int:
        """Return the last stage whose hyperparameters these are; 0 for the configured module."""
        fits = [not compare_hparams(hparams, override(hparams, stage)) for stage in self.stages]
        return max((number for number, fit in enumerate(fits, start=1) if fit), default=0)

    def state_dict(self) -> dict[str, Any]:
        """The warm-up under way, and how long a plateau has lasted; empty without either."""
        waiting = {} if self.plateau is None else self.plateau.state_dict()
        return {**super().state_dict(), **({"plateau": waiting} if waiting else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the warm-up and the plateau."""
        super().load_state_dict(state_dict)
        if self.plateau is not None:
            self.plateau.load_state_dict(state_dict.get("plateau", {}))

    def _grow(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint of a later stage than the module's: the module first becomes that stage."""
        stage = self.find_stage(checkpoint_hparams(checkpoint))
        if stage <= self.find_stage(find_hparams(pl_module)):
            super()._grow(trainer, pl_module, checkpoint)
            return
        with all_or_nothing([pl_module, *(average.module for average in find_averages(trainer))]):
            trainer.precision_plugin.convert_module(pl_module)
            self._become(trainer, pl_module, stage)
            super()._grow(trainer, pl_module, checkpoint)

    def _advance(self, trainer: Trainer, pl_module: LightningModule, stage: int) -> None:
        """Grow to a stage, as a resume from this very step would."""
        own = self.find_stage(find_hparams(pl_module))
        if stage <= own:
            return
        checkpoint, target = take_snapshot(trainer, pl_module), self._build(pl_module, stage)
        checkpoint["callbacks"][self.state_key] = self.state_dict()
        self.on_save_checkpoint(trainer, pl_module, checkpoint)
        modules = [pl_module, *(average.module for average in find_averages(trainer))]
        options = self._find_options(trainer)
        with _naming_stage(stage):
            growth = grow_checkpoint(checkpoint, target, options, path=f"stage {own}", source=self.source)
        if growth is None:
            return
        self._tape = UNTRACED
        with _naming_stage(stage), all_or_nothing(modules, [trainer.strategy, self]):
            trainable, warmup = Trainable.of(pl_module, trainer.optimizers), self._warmup
            with self._keeping_function(modules, target, growth.transfer) as suspects:
                suspects += self._change(trainer, pl_module, stage, checkpoint)
            # What Lightning does before the first step: device, precision, the DDP wrapper, the optimizers.
            trainer.strategy.model = pl_module
            trainer.strategy.setup(trainer)
            trainable.check(pl_module, trainer.optimizers)
            changes = self.stages[stage - 1]
            rank_zero_info(f"Stage {stage} of {len(self.stages)} at step {trainer.global_step}: {changes}.")
            carried = self._carry_states(trainer, pl_module, checkpoint, growth.transfer.plan)
            self._take_up(trainer, pl_module, checkpoint, growth, carried)
            load_training_state(trainer, checkpoint)
        print_report(growth)
        warmup.detach()
        self._warmup.attach(trainer.optimizers, self._find_new_entries(pl_module))

    def _change(
        self, trainer: Trainer, pl_module: LightningModule, stage: int, checkpoint: Mapping[str, Any]
    ) -> list[str]:
        """Make the module that of a stage, and every average of it, with a checkpoint's weights; name what it kept."""
        contested = self._become(trainer, pl_module, stage)
        lost = [name for one in contested for name in one.lost]
        if lost:
            raise RefusedGrowth(
                f"{', '.join(lost)}: of the architecture's shape, changed by the run, and in no state dict, so what it "
                "holds would be lost. Register it as a buffer (self.register_buffer) that forward reads, so that it "
                "grows with the layers, or empty it before the stage begins."
            )
        pl_module.load_state_dict(checkpoint["state_dict"])
        restore_attributes(pl_module, checkpoint)
        if checkpoint[HELD]:
            setattr(pl_module, HELD, checkpoint[HELD])
        for number, average in enumerate(find_averages(trainer)):
            average.module.load_state_dict(checkpoint["callbacks"][str(number)]["average_model_state"])
            average.to(pl_module.device)
        return contested[-1].kept

    def _keeping_function(
        self, modules: list[Any], target: nn.Module, transfer: Transfer
    ) -> AbstractContextManager[list[str]]:
        """The check of the growth itself, now on the modules that live."""
        report = transfer.report
        if report.tolerance is None or not report.function_preserving:
            return nullcontext([])
        options = self._find_options(modules[0].trainer)
        examples = find_examples(modules[0], target, options.example_inputs, options.forward)
        inputs, forward = paired_inputs(transfer.plan, *examples), compared_forward(transfer.plan, options)
        shared = partial(shared_outputs, plan=transfer.plan)
        return same_function(modules, *inputs, forward, report.tolerance, shared)

    def _become(self, trainer: Trainer, pl_module: LightningModule, stage: int) -> list[Contested]:
        """Change every averaged copy of the module, then itself, and what they say of themselves; see `become`."""
        hparams, fresh = self._hparams(pl_module, stage), self._build(pl_module, 0)
        modules: list[Any] = [*(average.module for average in find_averages(trainer)), pl_module]
        built = [self._build(pl_module, stage).to(float_type(module)) for module in modules]  # an average has its own
        contested = []
        for module, grown in zip(modules, built, strict=True):
            contested.append(become(module, grown, fresh))
            for name in compare_hparams(find_hparams(module), hparams):
                module.hparams[name] = in_kind(hparams[name], module.hparams.get(name))
        return contested

    def _build(self, pl_module: LightningModule, stage: int) -> nn.Module:
        """A new module of a stage, or of the one that `pl_module` has reached if that is later; alike in every run."""
        name: Any = getattr(pl_module, HPARAMS_NAME, None)
        hparams = self._hparams(pl_module, stage)
        with untouched_rng():
            torch.manual_seed(self.options.seed + stage)
            try:
                return in_precision(pl_module.trainer, configure(build_module(pl_module, hparams, self.source, name)))
            except Exception as error:  # any code may run in an __init__
                raise RefusedGrowth(
                    f"{type(pl_module).__name__} cannot be built from the hyperparameters it keeps, {sorted(hparams)} "
                    f"({type(error).__name__}: {error}). Keep all that its __init__ needs (save_hyperparameters "
                    "without ignore=), or pass source= (a callable hparams -> nn.Module) to GrowthSchedule."
                ) from error

    def _hparams(self, pl_module: LightningModule, stage: int) -> dict[str, Any]:
        hparams = find_hparams(pl_module)
        if not hparams:
            raise RefusedGrowth(
                f"{type(pl_module).__name__} keeps no hyperparameters, so its stages cannot be built. Call "
                "self.save_hyperparameters() in its __init__."
            )
        for changes in self.stages[self.find_stage(hparams) : stage]:
            hparams = override(hparams, changes)
        return hparams


def override(hparams: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters with some changed; dots reach into nested ones, which stay of their kind.

    Raises:
        RefusedGrowth: A name reaches into something without named parts.

    >>> override({"model": {"width": 8, "depth": 2}, "lr": 0.1}, {"model.width": 16})
    {'model': {'width': 16, 'depth': 2}, 'lr': 0.1}
    """
    changed = dict(hparams)
    for name, value in changes.items():
        first, _, rest = name.partition(".")
        inner = changed.get(first)
        fields = {} if inner is None else find_fields(inner)
        if rest and fields is None:
            raise RefusedGrowth(
                f"{name!r} reaches into {first!r}, which is of the type {type(inner).__name__}: expected a dict, a "
                f"namespace or a dataclass. Set {first!r} as a whole."
            )
        changed[first] = in_kind(override(fields or {}, {rest: value}), inner) if rest else value
    return changed


@contextmanager
def _naming_stage(number: int) -> Iterator[None]:
    try:
        yield
    except RefusedGrowth as error:
        raise RefusedGrowth([f"stage {number}: {reason}" for reason in error.refused]) from error
