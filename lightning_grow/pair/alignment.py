"""Two traced models side by side: which tensor is which, and which unit is which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from lightning_grow.pair.names import match_names
from lightning_grow.pair.pairing import Pairing, pair_traces
from lightning_grow.pair.roles import Roles, find_roles
from lightning_grow.trace.axes import unify
from lightning_grow.trace.tape import Trace
from lightning_grow.trace.tracer import Forward, named_tensors, trace


@dataclass(frozen=True, eq=False)
class Alignment:
    """Source and target, traced and paired.

    Args:
        source: The source's tape.
        target: The target's tape.
        renamed: Target name -> source name, for every tensor that both have.
        pairing: Which atoms are which.
        roles: Which dimensions of the target's parameters are read and written.
        beside: Buffers that no traced operator uses -> the one of their module whose axes they have.
    """

    source: Trace
    target: Trace
    renamed: dict[str, str]
    pairing: Pairing
    roles: Roles
    beside: dict[str, str]


def align(
    source: nn.Module,
    target: nn.Module,
    source_inputs: Any,
    target_inputs: Any,
    forward: Forward | None,
    rename: Mapping[str, str] | None,
) -> Alignment:
    """Trace two modules and pair what they share.

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
    old, new = trace(source, source_inputs, forward), trace(target, target_inputs, forward)
    renamed = match_names(_shapes(source), _shapes(target), rename)
    beside = _join_idle_buffers(old, new, renamed)
    return Alignment(old, new, renamed, pair_traces(old, new, renamed), find_roles(new), beside)


def _join_idle_buffers(source: Trace, target: Trace, renamed: Mapping[str, str]) -> dict[str, str]:
    """Give a buffer that no forward uses (a normaliser's counts) the axes of its module's buffers of the same sizes."""
    used = target.used()
    buffers = {name: value for name, value in target.tensors.items() if not value.trained and name in renamed}

    def sizes(name: str) -> tuple[object, ...]:
        pair = source.tensors[renamed[name]], target.tensors[name]
        return name.rpartition(".")[0], *(tuple(axis.size for axis in value.axes) for value in pair)

    known = {sizes(name): name for name, value in buffers.items() if value in used}
    beside = {name: known[sizes(name)] for name, value in buffers.items() if value not in used and sizes(name) in known}
    for name, other in beside.items():
        for trace_of, names in ((source, (renamed[name], renamed[other])), (target, (name, other))):
            for first, second in zip(*(trace_of.tensors[item].axes for item in names), strict=True):
                unify(first, second)
    return {name: other for name, other in beside.items() if target.tensors[name].axes}


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(item.shape) for name, item in named_tensors(module).items()}
