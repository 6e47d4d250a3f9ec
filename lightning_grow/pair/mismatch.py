"""What differs between source and target in a way that no growth can bridge."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from lightning_grow.options import Options
from lightning_grow.pair.match import Match
from lightning_grow.pair.names import name_some, new_modules
from lightning_grow.trace.axes import atoms
from lightning_grow.trace.names import strip_compiled
from lightning_grow.trace.tape import Value, atoms_of


def find_mismatches(
    source: nn.Module, target: nn.Module, match: Match, options: Options, copies: Collection[str] = ()
) -> list[str]:
    """Say every difference without a meaning, each with its place and a way out; empty where there is none."""
    old, new = (list(tape.outputs.values()) for tape in (match.source, match.target))
    ends = [
        *_grown_ends("input", match.source.inputs, match.target.inputs, match, options.allow_input_growth),
        *_grown_ends("output", old, new, match, options.allow_output_growth),
    ]
    return [
        *_missing(source, match),
        *match.refusals(),
        *_untied(match),
        *_unused(target, match, copies),
        *ends,
    ]


def saved_names(module: nn.Module) -> list[str]:
    """The tensors of a module's state dict, without torch.compile's prefixes."""
    return [strip_compiled(name) for name, item in module.state_dict().items() if isinstance(item, Tensor)]


def _missing(source: nn.Module, match: Match) -> list[str]:
    """The source's layers without a place in the target."""
    used, there = {*match.names.values(), *match.settings}, saved_names(source)
    missing = [name for name in there if name not in used]
    layers = sorted(
        new_modules(there, used), key=lambda layer: -sum(f"{name}.".startswith(f"{layer}.") for name in missing)
    )
    if not layers:
        return []
    count = len(missing)
    return [
        f"the target has no place for the source's {name_some(layers)} ({count} tensor{'s' * (count > 1)}). Keep "
        f"{'these layers' if len(layers) > 1 else 'that layer'} in the target, or pass rename={{target prefix: source "
        "prefix} if they have other names there."
    ]


def _untied(match: Match) -> list[str]:
    """A tensor that the target uses under two names must be one tensor in the source too."""
    owner: dict[Value, str] = {}
    refused = []
    for name, old_name in match.names.items():
        first = owner.setdefault(match.target.tensors[name], name)
        if match.source.tensors[match.names[first]] is not match.source.tensors[old_name]:
            refused.append(
                f"'{name}' and '{first}' are one tensor in the target and two in the source; tie or untie both models "
                "alike."
            )
    return refused


def _unused(target: nn.Module, match: Match, copies: Collection[str]) -> list[str]:
    saved = set(saved_names(target)) - set(copies) - match.beside.keys()
    used = match.target.used()
    values = {name: match.target.tensors[name] for name in match.names if name in saved}
    return [
        f"'{name}' grows but no traced operator uses it, so what its axes mean is unknown. Pass forward= a callable "
        "that uses it, or keep its shape."
        for name, value in values.items()
        if value not in used and any(map(match.grows, atoms_of([value])))
    ]


def _grown_ends(kind: str, old: list[Value], new: list[Value], match: Match, allowed: bool) -> list[str]:
    """Inputs and outputs keep their sizes unless the user said otherwise."""
    refused = []
    for number, value in enumerate([] if allowed else new):
        for dim, axis in enumerate(value.axes):
            grown = [atom for atom in atoms(axis) if match.old_size(atom) and match.grows(atom)]
            if grown:
                before = old[number].axes[dim].size if number < len(old) else match.old_size(grown[0])
                refused.append(
                    f"{kind} {number} grows along axis {dim}: the source has {before} positions, the target "
                    f"{axis.size}. Pass allow_{kind}_growth=True if the new ones are to be added, or keep the size."
                )
    return refused
