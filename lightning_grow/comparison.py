"""How a checkpoint and a module differ: in shapes, in the order of inputs, or only in what they compute."""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from textwrap import shorten
from typing import Any

from torch import nn

from lightning_grow.errors import RefusedGrowth
from lightning_grow.files.hparams import compare_hparams, find_hparams, name_differences
from lightning_grow.files.rebuild import Source, rebuild_source
from lightning_grow.files.record import checkpoint_hparams, find_record, read_ours
from lightning_grow.grow import make_growth_plan
from lightning_grow.options import Options
from lightning_grow.pair.examples import find_own_examples
from lightning_grow.pair.input_names import find_input_names
from lightning_grow.plan.growth_plan import refuse
from lightning_grow.trace.fingerprint import fingerprint
from lightning_grow.trace.names import align_names, find_tensors
from lightning_grow.trace.tracer import trace
from lightning_grow.trace.untouched import untouched_rng


def shapes_differ(state: Mapping[str, Any], target: nn.Module) -> bool:
    """Whether names or shapes differ; under `strict_loading=False` a name on one side only is the user's choice."""
    own = target.state_dict()
    source_shapes = {name: tensor.shape for name, tensor in find_tensors(align_names(state, own)).items()}
    target_shapes = {name: tensor.shape for name, tensor in find_tensors(own).items()}
    if getattr(target, "strict_loading", True):
        return source_shapes != target_shapes
    return any(source_shapes[name] != target_shapes[name] for name in source_shapes.keys() & target_shapes.keys())


def renames_inputs(checkpoint: Mapping[str, Any], target: nn.Module) -> bool:
    """Whether the checkpoint records other input names than the target's, or the same ones in another order."""
    saved, own = find_record(checkpoint).get("input_names"), find_input_names(target)
    return bool(saved and own and saved != own)


def is_another(
    checkpoint: Mapping[str, Any],
    target: nn.Module,
    state: Mapping[str, Any],
    source: Source | None,
    options: Options,
) -> bool:
    """Equal shapes can hide inputs that stand elsewhere, or another computation (an activation), which is refused.

    Where the tape that was saved is the target's own, no source is built. What cannot be compared is a plain resume.
    """
    saved, differing = read_ours(checkpoint).get("tape"), find_differing(checkpoint, target)
    if not differing:
        return False
    known = find_record(checkpoint).get("shapes", {})
    is_whole = known.keys() >= find_tensors(target.state_dict()).keys()  # under strict_loading=False parts may be new
    if is_whole and saved is not None and saved == own_fingerprint(target, options):
        return False
    with untouched_rng():
        try:
            plan = make_growth_plan(rebuild_source(target, checkpoint, state, source), target, options)
        except Exception as error:  # whatever a foreign __init__ or forward raises: a plain resume must not fail for it
            warnings.warn(
                f"No shape differs, so this is a plain resume. Whether the hyperparameters that differ "
                f"({', '.join(differing)}) change what is computed could not be seen: {type(error).__name__}: {error}",
                stacklevel=2,
            )
            return False
    with describing(checkpoint, target):
        refuse(plan)
    return plan.moves or any(item.source_name is None for item in plan.tensors.values())


def own_fingerprint(module: nn.Module, options: Options) -> str | None:
    """The fingerprint of a module's tape on its own example inputs, or those given; None without or where it fails."""
    inputs = find_own_examples(module, options.example_inputs)
    if inputs is None:
        return None
    with untouched_rng():  # in the middle of a run
        try:
            return fingerprint(trace(module, inputs, options.forward))
        except RefusedGrowth:  # a growth will say so
            return None


def find_differing(checkpoint: Mapping[str, Any], target: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Each hyperparameter that differs, as (the checkpoint's, the module's)."""
    return compare_hparams(checkpoint_hparams(checkpoint), find_hparams(target))


@contextmanager
def describing(checkpoint: Mapping[str, Any], target: nn.Module) -> Iterator[None]:
    """Add to a refusal which hyperparameters differ, and to a refused input size how it comes about."""
    try:
        yield
    except RefusedGrowth as error:
        describe: Callable[[dict[str, Any]], str] = getattr(target, "describe_inputs", lambda hparams: "")
        had, has = (describe(hparams) for hparams in (checkpoint_hparams(checkpoint), find_hparams(target)))
        first = next((number for number, reason in enumerate(error.refused) if re.search(r"\binputs?\b", reason)), None)
        refused = list(error.refused)
        if had != has and first is not None:
            refused[first] += f" In the checkpoint: {had.rstrip('.')}. In the config: {has.rstrip('.')}."
        lines = [
            shorten(line, 120, placeholder=" ...") for line in name_differences(find_differing(checkpoint, target))
        ]
        refused[-1] += "".join(f"\n{line}" for line in ["Hyperparameters that differ:", *lines] if lines)
        raise RefusedGrowth(refused) from error
