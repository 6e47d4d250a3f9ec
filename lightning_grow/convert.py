"""A checkpoint of the source turned into one of the target: in memory for a resume, or file to file."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import Unpack

from lightning_grow.apply.apply import Allocate, grow_state, in_memory, move_state
from lightning_grow.comparison import (
    describing,
    find_differing,
    is_another,
    own_fingerprint,
    renames_inputs,
    shapes_differ,
)
from lightning_grow.errors import RefusedGrowth
from lightning_grow.files.checkpoint import KEY, check_finite, is_mappable, load_mapped, read_checkpoint
from lightning_grow.files.hparams import find_hparams
from lightning_grow.files.rebuild import Source, rebuild_source
from lightning_grow.files.record import (
    find_record,
    read_ours,
    record_architecture,
    restore_attributes,
)
from lightning_grow.files.spool import Spool, spooling
from lightning_grow.files.writing import is_same_file
from lightning_grow.folding import by_reason
from lightning_grow.grow import Transfer, make_transfer
from lightning_grow.options import GrowthOptions, Options, check_options
from lightning_grow.pair.input_names import find_input_names
from lightning_grow.report import TransferReport
from lightning_grow.trace.names import align_names
from lightning_grow.trace.untouched import untouched_rng
from lightning_grow.training_state.optimizers import carry_optimizers, check_has_states
from lightning_grow.training_state.saved import in_order_of
from lightning_grow.training_state.warmup import end_warmup, from_runs
from lightning_grow.training_state.weight_copies import WeightCopies, in_float_type_of, share_new_outputs

GROWN_OUTSIDE = "lightning_grow_is_handled"
"""In a checkpoint in memory only: an outer caller grows it, so GrowableMixin's own hook must not."""


@dataclass(frozen=True)
class Growth:
    """What happened to one checkpoint.

    Args:
        transfer: The new weights, their report, and the plan that moves every other copy.
        differing: Each hyperparameter that differs, as (the checkpoint's, the config's).
        warming: Entries of the source that were still new in a warm-up under way, by parameter, as `to_runs` writes.
    """

    transfer: Transfer
    differing: dict[str, tuple[Any, Any]]
    warming: Mapping[str, Sequence[int]]

    def new_entries(self, name: str) -> Tensor:
        """Which entries of a tensor a warm-up is for: this growth's, and those that were in the middle of another's."""
        plan = self.transfer.plan
        item, new = plan.tensors[name], plan.new_entries(name)
        runs = self.warming.get(item.source_name or "")
        moved = None if runs is None else move_state(plan, name, from_runs(runs, item.source_shape or ()).float(), 0)
        return new if moved is None else new | moved.bool()


def convert_checkpoint(
    path: str | Path,
    target: nn.Module,
    out: str | Path,
    *,
    source: Source | None = None,
    optimizer: Literal["reset", "transfer"] = "reset",
    weights_only: bool = True,
    **options: Unpack[GrowthOptions],
) -> TransferReport:
    """Grow a checkpoint file into one that a plain Trainer resumes with `target`.

    Weights, averaged copies of them, hyperparameters and the recorded architecture become the target's; progress
    (epoch, steps, loops) is kept. The target's own `on_load_checkpoint` is not run.

    Args:
        path: The source's checkpoint.
        target: The bigger module; not changed.
        out: The file to write, in one piece or not at all, or its fsspec address; never `path` itself.
        source: A callable ``hparams -> nn.Module``, when the hyperparameters cannot rebuild the target's class.
        optimizer: "reset" leaves optimizers and schedulers out, so that they start as the target's config builds them;
            "transfer" moves the moments, as in `ArchTransfer`, and keeps the schedules:
            `target.configure_optimizers` must run without a Trainer. Sharded strategies only resume files that hold
            optimizer states.
        weights_only: False for a file of your own that needs code to load.
        **options: See `GrowthOptions`.

    Returns:
        The report of the transfer.

    Raises:
        CheckpointError: The file cannot be read, its weights are not finite, or `out` cannot be written.
        RefusedGrowth: The growth cannot be done, or `out` is `path`; nothing was written.
        UnknownStrategy: No strategy has that name.
        WrongSetting: An option has a value that nothing can be made of.
        ValueError: `optimizer` is neither of the two.
        TypeError: There is no such option.
    """
    checked = check_options(options, "convert_checkpoint", "source", "optimizer", "weights_only")
    if optimizer not in ("reset", "transfer"):
        raise ValueError(
            f"Expected optimizer to be 'reset' or 'transfer', but got {optimizer!r}. What 'asymmetric' does happens "
            "while a run goes on: use ArchTransfer(optimizer='asymmetric') in trainer.fit."
        )
    if is_same_file(path, out):
        raise RefusedGrowth(
            f"out is the source's own checkpoint, {path}. Pass another file name: it is never overwritten."
        )
    with spooling(out) as spool:
        return _convert(path, target, source, optimizer, weights_only, checked, spool)


def _convert(
    path: str | Path,
    target: nn.Module,
    source: Source | None,
    optimizer: Literal["reset", "transfer"],
    weights_only: bool,
    options: Options,
    spool: Spool,
) -> TransferReport:
    load = load_mapped if is_mappable(path) else None
    checkpoint = read_checkpoint(path, weights_only=weights_only, load=load, hparams=find_hparams(target))
    choices: dict[str, Any] = {"optimizer": optimizer, "scheduler": "reset" if optimizer == "reset" else "keep"}
    check_has_states(checkpoint, **choices)
    growth = _grow(checkpoint, target, options, path, source, spool.like)
    optimizers = [] if optimizer == "reset" else _configure_optimizers(target)
    plan = growth.transfer.plan
    carried = carry_optimizers(
        checkpoint, target, optimizers, None, plan, keep=lambda _, tensor: spool.keep(tensor), **choices
    )
    checkpoint.update(optimizer_states=carried.optimizer_states, lr_schedulers=carried.lr_schedulers)
    checkpoint["hyper_parameters"] = find_hparams(target)
    checkpoint.setdefault("pytorch-lightning_version", version("lightning"))  # a Trainer resumes no file without it
    checkpoint.pop("hparams_type", None)
    record_architecture(checkpoint, target, optimizers, tape=own_fingerprint(target, options))
    spool.finish(checkpoint)
    report = growth.transfer.report
    fresh = [f"Moments that start fresh: {by_reason(carried.fresh)}."] if carried.fresh else []
    return replace(report, notes=(*report.notes, *fresh))


def grow_checkpoint(
    checkpoint: dict[str, Any],
    target: nn.Module,
    options: Options,
    *,
    path: str | Path = "the checkpoint",
    source: Source | None = None,
) -> Growth | None:
    """Give a checkpoint in memory the target's weights, grown from its own; the target is not changed.

    Args:
        checkpoint: Changed in place, after every check passed: the weights, and averaged copies of them.
        target: The module that will load it.
        options: How to grow.
        path: Named in errors.
        source: A callable ``hparams -> nn.Module``; the target's class when None.

    Returns:
        None when nothing differs; the checkpoint is then as it was.

    Raises:
        CheckpointError: The weights are not finite.
        RefusedGrowth: The growth cannot be done.
    """
    state = align_names(checkpoint["state_dict"], target.state_dict())
    moves = shapes_differ(state, target) or renames_inputs(checkpoint, target)
    if moves or is_another(checkpoint, target, state, source, options):
        return _grow(checkpoint, target, options, path, source)
    if state.keys() != checkpoint["state_dict"].keys():
        checkpoint["state_dict"] = state
    return None


def _grow(
    checkpoint: dict[str, Any],
    target: nn.Module,
    options: Options,
    path: str | Path,
    source: Source | None,
    allocate: Allocate = in_memory,
) -> Growth:
    """Grow a checkpoint in memory, whether or not anything differs."""
    own = target.state_dict()
    state = align_names(checkpoint["state_dict"], own)
    module = rebuild_source(target, checkpoint, state, source)
    left_out = {name: item for name, item in align_names(module.state_dict(), own).items() if name not in state}
    state = {**state, **left_out}  # the file's own order first: it may tell whose moments are whose
    restore_attributes(module, checkpoint)
    check_finite(state, (name for name, _ in module.named_parameters()), path)
    with untouched_rng(), describing(checkpoint, target):
        result = make_transfer(module, target, options, allocate)
    _warn_of_unknown_names(checkpoint, module, target)
    copies, places = WeightCopies(result, module, target, state, options.seed, allocate).grow_all(checkpoint)
    extra = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    if (wide := in_float_type_of(state, own)) is not own:  # what a narrower module would round, its average keeps
        checkpoint["state_dict"] = {**grow_state(result.plan, state, wide, options.seed, allocate), **extra}
        share_new_outputs(result, checkpoint["state_dict"])
    else:
        checkpoint["state_dict"] = {**result.state_dict, **extra}
    checkpoint["state_dict"] = in_order_of(state, checkpoint["state_dict"], result.plan)
    checkpoint.update(copies)
    record = read_ours(checkpoint)
    record.pop("tape", None)
    warming = record.pop("pending", {}).get("new_entries", {})
    end_warmup(checkpoint, warming)
    checkpoint[KEY] = {**record, "attributes": dict(result.report.attributes)}
    if places:
        more = f" and {len(places) - 4} more" if len(places) > 4 else ""
        note = f"Copies of the weights that grew with them: {', '.join(places[:4])}{more}."
        result = replace(result, report=replace(result.report, notes=(*result.report.notes, note)))
    return Growth(result, find_differing(checkpoint, target), warming)


def growing_outside(hook: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], None]:
    """A module's `on_load_checkpoint` for a caller that grows the checkpoint: GrowableMixin's own leaves it alone."""

    def on_load_checkpoint(checkpoint: dict[str, Any]) -> None:
        checkpoint[GROWN_OUTSIDE] = True
        try:
            hook(checkpoint)
        finally:
            del checkpoint[GROWN_OUTSIDE]

    return on_load_checkpoint


def _warn_of_unknown_names(checkpoint: Mapping[str, Any], source: nn.Module, target: nn.Module) -> None:
    names, saved = find_input_names(target), find_record(checkpoint).get("input_names")
    if names and not saved and find_input_names(source) in (None, names):
        warnings.warn(
            "The checkpoint records no input names, so its inputs are taken to be the first ones that "
            f"{type(target).__name__} names today, in that order. If that is not so, every old weight now reads "
            "another input.",
            stacklevel=2,
        )


def _configure_optimizers(target: nn.Module) -> list[Optimizer]:
    try:
        return list(_find_optimizers(target.configure_optimizers()))  # type: ignore[operator]
    except Exception as error:
        raise RefusedGrowth(
            f"moving the moments needs the target's optimizers, and its configure_optimizers() does not run without "
            f"a Trainer ({type(error).__name__}: {error}). Use ArchTransfer(optimizer='transfer') in trainer.fit, or "
            "optimizer='reset' here."
        ) from error


def _find_optimizers(config: Any) -> Iterator[Optimizer]:
    """Every optimizer in what `configure_optimizers` returned, in order."""
    if isinstance(config, Optimizer):
        yield config
    elif isinstance(config, Mapping):
        yield from _find_optimizers(config.get("optimizer"))
    elif isinstance(config, (list, tuple)):
        for item in config:
            yield from _find_optimizers(item)
