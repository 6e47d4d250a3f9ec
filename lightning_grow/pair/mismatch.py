"""What differs between source and target in a way that no growth can bridge."""

from __future__ import annotations

import warnings
from collections.abc import Collection

from torch import Tensor, nn

from lightning_grow.options import Options
from lightning_grow.pair.alignment import Alignment
from lightning_grow.pair.input_names import find_input_names
from lightning_grow.trace.axes import atoms, resolve
from lightning_grow.trace.tape import Value


def find_mismatches(
    source: nn.Module, target: nn.Module, both: Alignment, options: Options, copies: Collection[str] = ()
) -> list[str]:
    """Say every difference without a meaning, each with its place and a way out; empty where there is none."""
    ends = [
        *_grown_ends("input", both.source.inputs, both.target.inputs, both, options.allow_input_growth),
        *_grown_ends("output", both.source.outputs, both.target.outputs, both, options.allow_output_growth),
    ]
    return [
        *both.pairing.refusals(),
        *_missing(source, target, both),
        *_untied(both),
        *_unused(target, both, copies),
        *ends,
    ]


def name_inputs(source: nn.Module, target: nn.Module, both: Alignment, options: Options) -> list[str]:
    """Pair the first input's features by name where both modules name them; return the names that are dropped."""
    names = [find_input_names(module) for module in (source, target)]
    ends = [trace.inputs[0].axes[-1:] if trace.inputs else [] for trace in (both.source, both.target)]
    sizes = [axes[0].size if axes else 0 for axes in ends]
    dropped: list[str] = []
    if names[0] is None or names[1] is None:
        if options.drop_inputs:
            both.pairing.refused.append(
                "drop_inputs needs the names of the inputs. Give source and target an input_names property, a list of "
                "str as long as the last axis of the first input."
            )
    elif [len(names[0]), len(names[1])] == sizes:
        dropped = both.pairing.name_inputs(ends[1][0], names[0], names[1], options.drop_inputs)
    elif names[0] != names[1] or _unnamed(both) or options.drop_inputs:
        both.pairing.refused.append(
            f"input_names do not fit the last axis of the first input: the source has {len(names[0])} names for "
            f"{sizes[0]} positions, the target {len(names[1])} for {sizes[1]}. Give each module the names of its own "
            "inputs (a source whose names were in code that has changed: build it with source=), or None to both if "
            "they are in order."
        )
    if options.allow_input_growth and not both.pairing.refusals() and (unnamed := _unnamed(both)):
        warnings.warn(
            f"New inputs are taken to stand after the old ones: {', '.join(unnamed)} grows and has no input_names to "
            "tell them apart by. If that is not so, every old weight now reads another input.",
            stacklevel=2,
        )
    return dropped


def _unnamed(both: Alignment) -> list[str]:
    """The axes of inputs, as places, that tensors of the model share (a batch is none) and that grow without names."""
    tensors = {resolve(atom) for value in both.target.tensors.values() for axis in value.axes for atom in atoms(axis)}
    return [
        f"input {number} axis {dim}"
        for number, value in enumerate(both.target.inputs)
        for dim, axis in enumerate(value.axes)
        if any(
            both.pairing.grows(atom) and resolve(atom) in tensors and resolve(atom) not in both.pairing.named
            for atom in atoms(axis)
        )
    ]


def saved_names(module: nn.Module) -> list[str]:
    """The tensors of a module's state dict, without torch.compile's prefixes."""
    return [name.replace("_orig_mod.", "") for name, item in module.state_dict().items() if isinstance(item, Tensor)]


def _missing(source: nn.Module, target: nn.Module, both: Alignment) -> list[str]:
    """Source tensors without a place in the target, one reason per module that the target lacks."""
    used, there = set(both.renamed.values()), saved_names(target)
    missing: dict[str, int] = {}
    for name in saved_names(source):
        if name not in used:
            parts = name.split(".")
            prefixes = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
            known = [item for item in prefixes if any(f"{other}.".startswith(f"{item}.") for other in there)]
            lacking = prefixes[min(len(known), len(prefixes) - 1)]
            missing[lacking] = missing.get(lacking, 0) + 1
    return [
        f"the target has no place for the source's '{name}' ({count} tensor{'s' * (count > 1)}). Keep that layer in "
        "the target, or pass rename={target prefix: source prefix} if it has another name there."
        for name, count in missing.items()
    ]


def _untied(both: Alignment) -> list[str]:
    """A tensor that the target uses under two names must be one tensor in the source too."""
    owner: dict[Value, str] = {}
    refused = []
    for name, old_name in both.renamed.items():
        first = owner.setdefault(both.target.tensors[name], name)
        if both.source.tensors[both.renamed[first]] is not both.source.tensors[old_name]:
            refused.append(
                f"'{name}' and '{first}' are one tensor in the target and two in the source; tie or untie both models "
                "alike."
            )
    return refused


def _unused(target: nn.Module, both: Alignment, copies: Collection[str]) -> list[str]:
    saved = set(saved_names(target)) - set(copies) - both.beside.keys()
    used = both.target.used()
    values = {name: both.target.tensors[name] for name in both.renamed if name in saved}
    return [
        f"'{name}' grows but no traced operator uses it, so what its axes mean is unknown. Pass forward= a callable "
        "that uses it, or keep its shape."
        for name, value in values.items()
        if value not in used and any(both.pairing.grows(atom) for axis in value.axes for atom in atoms(axis))
    ]


def _grown_ends(kind: str, old: list[Value], new: list[Value], both: Alignment, allowed: bool) -> list[str]:
    """Inputs and outputs keep their sizes unless the user said otherwise."""
    refused = []
    for number, value in enumerate([] if allowed else new):
        for dim, axis in enumerate(value.axes):
            grown = [atom for atom in atoms(axis) if both.pairing.old_size(atom) and both.pairing.grows(atom)]
            if grown:
                before = old[number].axes[dim].size if number < len(old) else both.pairing.old_size(grown[0])
                refused.append(
                    f"{kind} {number} grows along axis {dim}: the source has {before} positions, the target "
                    f"{axis.size}. Pass allow_{kind}_growth=True if the new ones are to be added, or keep the size."
                )
    return refused
