"""A checkpoint of the source turned into one of the target: in memory for a resume, or file to file."""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import Unpack

from lightning_grow.apply.apply import grow_state, move_state
from lightning_grow.comparison import (
    describing,
    find_differing,
    is_another,
    own_fingerprint,
    renames_inputs,
    shapes_differ,
)
from lightning_grow.errors import RefusedGrowth
from lightning_grow.files.checkpoint import KEY, check_finite, read_checkpoint, write_checkpoint
from lightning_grow.files.hparams import find_hparams
from lightning_grow.files.rebuild import Source, rebuild_source
from lightning_grow.files.record import (
    find_record,
    read_ours,
    record_architecture,
    restore_attributes,
)
from lightning_grow.grow import Transfer, make_transfer
from lightning_grow.options import GrowthOptions, Options, check_options
from lightning_grow.pair.input_names import find_input_names
from lightning_grow.report import TransferReport
from lightning_grow.trace.names import align_names, strip_compiled
from lightning_grow.trace.untouched import untouched_rng
from lightning_grow.training_state.optimizers import carry_optimizers, check_has_states
from lightning_grow.training_state.warmup import end_warmup, from_runs

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
        out: The file to write, in one piece or not at all; never `path` itself.
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
        CheckpointError: The file cannot be read, or its weights are not finite.
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
    if Path(out).resolve() == Path(path).resolve():
        raise RefusedGrowth(
            f"out is the source's own checkpoint, {path}. Pass another file name: it is never overwritten."
        )
    checkpoint = read_checkpoint(path, weights_only=weights_only)
    _gather_optimizers(checkpoint)
    choices: dict[str, Any] = {"optimizer": optimizer, "scheduler": "reset" if optimizer == "reset" else "keep"}
    check_has_states(checkpoint, **choices)
    growth = _grow(checkpoint, target, checked, path, source)
    optimizers = [] if optimizer == "reset" else _configure_optimizers(target)
    carried = carry_optimizers(checkpoint, target, optimizers, None, growth.transfer.plan, **choices)
    checkpoint.update(optimizer_states=carried.optimizer_states, lr_schedulers=carried.lr_schedulers)
    checkpoint["hyper_parameters"] = find_hparams(target)
    checkpoint.pop("hparams_type", None)
    record_architecture(checkpoint, target, optimizers, tape=own_fingerprint(target, checked))
    write_checkpoint(checkpoint, out)
    report = growth.transfer.report
    fresh = [f"Moments that start fresh: {'; '.join(carried.fresh)}."] if carried.fresh else []
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
    checkpoint: dict[str, Any], target: nn.Module, options: Options, path: str | Path, source: Source | None
) -> Growth:
    """Grow a checkpoint in memory, whether or not anything differs."""
    own = target.state_dict()
    state = align_names(checkpoint["state_dict"], own)
    module = rebuild_source(target, checkpoint, state, source)
    restore_attributes(module, checkpoint)
    check_finite(state, (name for name, _ in module.named_parameters()), path)
    with untouched_rng(), describing(checkpoint, target):
        result = make_transfer(module, target, options)
    _warn_of_unknown_names(checkpoint, module, target)
    copies = _grow_copies(checkpoint, result, own, options.seed)
    extra = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    if (wide := in_float_type_of(state, own)) is not own:  # what a narrower module would round, its average keeps
        checkpoint["state_dict"] = {**grow_state(result.plan, state, wide, options.seed), **extra}
        _share_new_outputs(result, checkpoint["state_dict"])
    else:
        checkpoint["state_dict"] = {**result.state_dict, **extra}
    for holder, key, grown in copies:
        holder[key] = grown
    record = read_ours(checkpoint)
    record.pop("tape", None)
    warming = record.pop("pending", {}).get("new_entries", {})
    end_warmup(checkpoint, warming)
    checkpoint[KEY] = {**record, "attributes": dict(result.report.attributes)}
    return Growth(result, find_differing(checkpoint, target), warming)


@contextmanager
def growing_outside(checkpoint: dict[str, Any]) -> Iterator[None]:
    """Mark a checkpoint in memory, so that GrowableMixin's own hook leaves the growing to the caller."""
    checkpoint[GROWN_OUTSIDE] = True
    try:
        yield
    finally:
        del checkpoint[GROWN_OUTSIDE]


def _warn_of_unknown_names(checkpoint: Mapping[str, Any], source: nn.Module, target: nn.Module) -> None:
    names, saved = find_input_names(target), find_record(checkpoint).get("input_names")
    if names and not saved and find_input_names(source) in (None, names):
        warnings.warn(
            "The checkpoint records no input names, so its inputs are taken to be the first ones that "
            f"{type(target).__name__} names today, in that order. If that is not so, every old weight now reads "
            "another input.",
            stacklevel=2,
        )


def _grow_copies(
    checkpoint: Mapping[str, Any], result: Transfer, own: Mapping[str, Any], seed: int
) -> list[tuple[Any, str, dict[str, Any]]]:
    """Every other copy of the weights (moving averages), grown by the same maps and the same fill."""
    holders = [(checkpoint, "current_model_state")]
    holders += [(state, "average_model_state") for state in (checkpoint.get("callbacks") or {}).values()]
    copies = []
    for holder, key in holders:
        copy = holder.get(key) if isinstance(holder, Mapping) else None
        if copy:
            grown = grow_state(result.plan, align_names(copy, own), in_float_type_of(copy, own), seed)
            _share_new_outputs(result, grown)
            copies.append((holder, key, grown))
    return copies


def in_float_type_of(copy: Mapping[str, Any], own: Mapping[str, Any]) -> Mapping[str, Any]:
    """A state as it is where it has the one float type of another, else its floats in that type.

    >>> in_float_type_of({"w": torch.ones(1).double()}, {"w": torch.ones(2), "n": torch.tensor(1)})
    {'w': tensor([1., 1.], dtype=torch.float64), 'n': tensor(1)}
    """
    types, wanted = (
        {item.dtype for item in state.values() if isinstance(item, Tensor) and item.is_floating_point()}
        for state in (own, copy)
    )
    if len(wanted) != 1 or types == wanted:
        return own
    (dtype,) = wanted
    return {
        name: item.to(dtype) if isinstance(item, Tensor) and item.is_floating_point() else item
        for name, item in own.items()
    }


def _share_new_outputs(result: Transfer, copy: Mapping[str, Tensor]) -> None:
    """New outputs may have been set after the fill (a probability, a deviation): the same in every copy."""
    names = {strip_compiled(name): name for name in copy}
    for name, dim in (member for group in result.plan.groups if group.output >= 0 for member in group.members):
        new = torch.nonzero(result.plan.tensors[name].maps[dim].low < 0).flatten()
        own = copy[names[name]]
        own.index_copy_(dim, new.to(own.device), result.state_dict[names[name]].index_select(dim, new).to(own))


def _gather_optimizers(checkpoint: dict[str, Any]) -> None:
    """Put `optimizer_0`, ... of a consolidated checkpoint where Lightning keeps those of any other."""
    names = sorted((key for key in checkpoint if re.fullmatch(r"optimizer_\d+", key)), key=lambda key: int(key[10:]))
    if names and "optimizer_states" not in checkpoint:
        checkpoint["optimizer_states"] = [checkpoint.pop(name) for name in names]


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
