"""A checkpoint of any kind planned, grown into a file of any kind, and held against its growth."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from lightning_grow.convert import convert_checkpoint
from lightning_grow.errors import WrongSetting
from lightning_grow.formats.models import Described, make_bigger, make_options, make_source
from lightning_grow.formats.pretrained import check_out, grow_pretrained, without_cache
from lightning_grow.formats.weights import Kind, Weights, write_weights
from lightning_grow.grow import compare_models, grow, plan_growth
from lightning_grow.options import GrowthOptions, check_options
from lightning_grow.plan.growth_plan import GrowthPlan
from lightning_grow.report import TransferReport

Optimizer = Literal["reset", "transfer"]


def plan_file(weights: Weights, path: Path, described: Described, options: GrowthOptions) -> GrowthPlan:
    """Plan the growth of a checkpoint; see `plan_growth`."""
    target = make_bigger(weights, path, described)
    source = make_source(weights, path, described, target)
    with without_cache(source, target):
        merged: GrowthOptions = {**options, **make_options(source, described, weights)}
        return plan_growth(source, target, **merged)


def convert_file(
    weights: Weights,
    path: Path,
    out: Path,
    described: Described,
    options: GrowthOptions,
    optimizer: Optimizer = "reset",
) -> TransferReport:
    """Grow a checkpoint into a new file, or a Hugging Face folder into a new folder.

    Raises:
        CheckpointError: `out` is there, or cannot be written.
        RefusedGrowth: The growth cannot be done; nothing was written.
        WrongSetting: The moments of what has none are to move.
    """
    check_out(out)
    is_whole = weights.kind is Kind.LIGHTNING and out.suffix != ".safetensors"
    if optimizer != "reset" and not is_whole:
        raise WrongSetting(f"--optimizer {optimizer} is for Lightning checkpoints; {out} gets weights alone.")
    if weights.kind is Kind.HUGGINGFACE and not out.suffix:
        return grow_pretrained(path, out, options=options, **described.changes or {})
    target = make_bigger(weights, path, described)
    merged: GrowthOptions
    if is_whole:
        merged = {**options, **make_options(target, described, weights)}
        return convert_checkpoint(path, target, out, optimizer=optimizer, **merged)
    source = make_source(weights, path, described, target)
    with without_cache(source, target):
        merged = {**options, **make_options(source, described, weights)}
        report = grow(source, target, **merged)
    return _with_note(report, write_weights(weights, target.state_dict(), out))


def verify_files(
    small: Weights, small_path: Path, large: Weights, large_path: Path, described: Described, options: GrowthOptions
) -> tuple[float, float]:
    """Compare the outputs of two checkpoints of one class.

    Returns:
        The largest error relative to the output's scale, and what rounding alone may make of it.

    Raises:
        RefusedGrowth: One is no growth of the other.
    """
    source = make_source(small, small_path, described)
    both = {**(described.was or {}), **(described.changes or {})}
    target = make_source(large, large_path, Described(described.model, both, {}, described.inputs))
    with without_cache(source, target):
        merged: GrowthOptions = {**options, **make_options(source, described, small)}
        return compare_models(source, target, check_options(merged, "verify"))


def _with_note(report: TransferReport, left_out: list[str]) -> TransferReport:
    note = [f"Left out, as it belongs to the old weights: {', '.join(left_out)}."] if left_out else []
    return replace(report, notes=(*report.notes, *note))
