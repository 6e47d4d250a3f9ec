"""Match two modules: trace both, and pair their tensors by name and their inputs by place."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from lightning_grow.pair.idle import join_idle
from lightning_grow.pair.layouts import is_ambiguous, say_other_layout
from lightning_grow.pair.match import LeftOut, Match, Refusal
from lightning_grow.pair.mismatch import saved_names
from lightning_grow.pair.names import match_names
from lightning_grow.pair.settings import find_settings
from lightning_grow.trace.axes import Axis
from lightning_grow.trace.outputs import Forward
from lightning_grow.trace.tape import Trace, Value
from lightning_grow.trace.tracer import named_tensors, trace


def match_modules(
    source: nn.Module,
    target: nn.Module,
    source_inputs: Any,
    target_inputs: Any,
    forward: Forward | None,
    rename: Mapping[str, str] | None,
) -> Match:
    """Trace two modules and match what they share by name.

    Args:
        source: The trained module.
        target: The bigger module.
        source_inputs: Arguments for the source's forward.
        target_inputs: Arguments for the target's forward.
        forward: A callable `(module, *inputs)` instead of their own forward.
        rename: Target prefix -> source prefix.

    Raises:
        RefusedGrowth: A module cannot be traced.
    """
    tapes = trace(source, source_inputs, forward), trace(target, target_inputs, forward)
    old, new, left_out = without_others(*tapes)
    shapes, anew = (_shapes(source), _shapes(target)), _made_anew(source, old) | _made_anew(target, new)
    others = {name for name in anew if shapes[0].get(name) != shapes[1].get(name)}
    before, after = ({name: shape for name, shape in found.items() if name not in others} for found in shapes)
    names, settings = match_names(before, after, rename), find_settings(source, old)
    match = match_tapes(old, new, {name: own for name, own in names.items() if own not in settings}, settings)
    match.left_out = left_out
    return match


def without_others(source: Trace, target: Trace) -> tuple[Trace, Trace, LeftOut]:
    """Leave out outputs that cannot be compared.

    These are what a forward carries to its next call where its size is another one, a cache of more heads, and what the
    target returns besides all that the source does, the attention of new layers in a list of all layers'.
    """
    carried = source.carried | target.carried
    sizes = [{name: value.shape for name, value in tape.outputs.items()} for tape in (source, target)]
    state = {name for name in carried if sizes[0].get(name) != sizes[1].get(name)}
    old, new = (tape.outputs.keys() - state for tape in (source, target))
    added = new - old if old <= new and all(_continues(name, old) for name in new - old) else set[str]()
    kept = [
        {name: value for name, value in tape.outputs.items() if name not in state | added} for tape in (source, target)
    ]
    left_out = LeftOut(frozenset(state), frozenset(added))
    return replace(source, outputs=kept[0]), replace(target, outputs=kept[1]), left_out


def _continues(name: str, others: Collection[str]) -> bool:
    """Whether an output is one more of a container's, of which others are known."""
    container = name[: name.rfind("[")]
    return bool(container) and any(other.startswith(f"{container}[") for other in others)


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(item.shape) for name, item in named_tensors(module).items()}


def _made_anew(module: nn.Module, tape: Trace) -> set[str]:
    """Buffers in no file that a forward does not read: what it keeps for its next calls, or fills in its first one."""
    used = tape.used()
    unread = {name for name, value in tape.tensors.items() if value not in used and not value.trained}
    return unread - set(saved_names(module))


def match_tapes(source: Trace, target: Trace, names: dict[str, str], settings: Collection[str] = ()) -> Match:
    """Zip two tapes by parameter name and dimension, and by input."""
    match = Match(source, target, names, join_idle(source, target, names), settings)
    pairs = [(source.tensors[old], target.tensors[name], f"'{name}'") for name, old in names.items()]
    pairs += [
        (old, new, f"example input {index}")
        for index, (old, new) in enumerate(zip(source.inputs, target.inputs, strict=False))
    ]
    axes = [pair for old, new, place in pairs for pair in _by_dimension(match, old, new, place)]
    for one, other, place in sorted(axes, key=lambda pair: is_ambiguous(*pair[:2])):  # the others may decide these
        match.refused += match.pair(one, other, place)
    if not match.refused:
        match.refused += _do_not_add_up(match)
    return match


def _by_dimension(match: Match, source: Value, target: Value, place: str) -> list[tuple[Axis, Axis, str]]:
    """State that a tensor is the source's; its axes beside the source's, and where they are met."""
    if target not in match.values:
        match.pair_values(source, target)
    if len(source.axes) != len(target.axes):
        reason = (
            f"cannot grow {place}: it has {len(source.axes)} dimensions in the source, {len(target.axes)} in the "
            "target. Keep the layer's kind."
        )
        match.refused.append(Refusal(reason))
        return []
    places = [f"{place} axis {dim}" for dim in range(len(target.axes))]
    return list(zip(source.axes, target.axes, places, strict=True))


def _do_not_add_up(match: Match) -> list[Refusal]:
    """What was paired part by part and does not add up to the source's tensors."""
    pairs = [(name, match.source.tensors[old], match.target.tensors[name]) for name, old in match.names.items()]
    return [
        Refusal(say_other_layout(old, new), place=f"'{name}' axis {dim}")
        for name, source, target in pairs
        for dim, (old, new) in enumerate(zip(source.axes, target.axes, strict=True))
        if match.old_length(new) != old.size
    ]
