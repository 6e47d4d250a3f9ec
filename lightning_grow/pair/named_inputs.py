"""Inputs with names: which of the target's is which of the source's, wherever they stand."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from lightning_grow.pair.input_names import find_input_names
from lightning_grow.pair.match import Match, Refusal
from lightning_grow.trace.axes import Axis, atoms, resolve
from lightning_grow.trace.tape import atoms_of


def name_inputs(
    source: nn.Module, target: nn.Module, match: Match, dropped: Sequence[str] = (), may_grow: bool = False
) -> list[str]:
    """Pair the first input's features by name where both modules name them; return the names that are dropped.

    Args:
        source: The trained module.
        target: The bigger module.
        match: Their tapes; what cannot be paired becomes one of its refusals.
        dropped: Names that the target may lack, or patterns of them ("rsi*"; only * and ? are wildcards).
        may_grow: Whether new inputs are allowed; those without names are then warned of.
    """
    names = [find_input_names(module) for module in (source, target)]
    ends = [tape.inputs[0].axes[-1:] if tape.inputs else [] for tape in (match.source, match.target)]
    sizes = [axes[0].size if axes else 0 for axes in ends]
    gone: list[str] = []
    if names[0] is None or names[1] is None:
        if dropped:
            _refuse(
                match,
                "drop_inputs needs the names of the inputs. Give source and target an input_names property, a list of "
                "str as long as the last axis of the first input.",
            )
    elif [len(names[0]), len(names[1])] == sizes:
        gone = pair_by_name(match, ends[1][0], names[0], names[1], dropped)
    elif names[0] != names[1] or _unnamed(match) or dropped:
        _refuse(
            match,
            f"input_names do not fit the last axis of the first input: the source has {len(names[0])} names for "
            f"{sizes[0]} positions, the target {len(names[1])} for {sizes[1]}. Give each module the names of its own "
            "inputs (a source whose names were in code that has changed: build it with source=), or None to both if "
            "they are in order.",
        )
    if may_grow and not match.refused and (unnamed := _unnamed(match)):
        warnings.warn(
            f"New inputs are taken to stand after the old ones: {', '.join(unnamed)} grows and has no input_names to "
            "tell them apart by. If that is not so, every old weight now reads another input.",
            stacklevel=2,
        )
    return gone


def pair_by_name(
    match: Match, axis: Axis, source: Sequence[str], target: Sequence[str], dropped: Sequence[str] = ()
) -> list[str]:
    """Pair the units of an input axis by their names.

    Args:
        match: The two tapes.
        axis: The target's axis, as long as `target`.
        source: The source's names, each once.
        target: The target's names, each once.
        dropped: Names that the target may lack, or patterns of them.

    Returns:
        The names that are dropped.
    """
    if list(source) == list(target) and not dropped:
        return []
    for role, names in (("source", source), ("target", target)):
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            _refuse(
                match,
                f"input_names of the {role} are not unique ({_shorten(twice)}), so its inputs cannot be told apart "
                "by them. Give every input a name of its own.",
            )
            return []
    atom = resolve(axis)
    match.refused = [item for item in match.refused if item.atom is not atom]  # the names tell more
    missing = [name for name in source if name not in set(target)]
    gone = [name for name in missing if not any(_is_like(name, pattern) for pattern in dropped)]
    idle = [pattern for pattern in dropped if not any(_is_like(name, pattern) for name in missing)]
    if gone:
        _refuse(
            match,
            f"inputs are gone: {len(gone)} of the source's {len(source)} input names are not in the target "
            f"({_shorten(gone)}). Growth only adds inputs: keep these, or name them in drop_inputs (patterns like "
            f"{gone[0][:3]}* will do), which changes the outputs.",
        )
    if idle:
        _refuse(
            match,
            f"drop_inputs names {_shorten(idle)}, but the source has no such input, or the target still has it. "
            f"The source's inputs: {_shorten(source)}.",
        )
    if gone or idle or list(source) == list(target):
        return []
    if atom.kind is not None:
        _refuse(
            match,
            f"inputs change by name ({len(source)} -> {len(target)}), but the model splits its input axis as {atom}"
            "; give each part an input of its own.",
        )
        return []
    place = {name: number for number, name in enumerate(source)}
    match.named[atom] = torch.tensor([place.get(name, -1) for name in target], dtype=torch.float64)
    return missing


def _refuse(match: Match, reason: str) -> None:
    match.refused.insert(0, Refusal(reason))


def _unnamed(match: Match) -> list[str]:
    """The axes of inputs, as places, that tensors of the model share (a batch is none) and that grow without names."""
    tensors = atoms_of(match.target.tensors.values())
    return [
        f"input {number} axis {dim}"
        for number, value in enumerate(match.target.inputs)
        for dim, axis in enumerate(value.axes)
        if any(match.grows(atom) and atom in tensors and atom not in match.named for atom in atoms(axis))
    ]


def _is_like(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern.replace("[", "[[]"))  # brackets are part of names: rsi@4h[-1]


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
