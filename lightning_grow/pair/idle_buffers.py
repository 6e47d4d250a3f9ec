"""Buffers that no forward uses (a normaliser's counts) have the axes of their module's buffers of the same sizes."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_grow.trace.axes import unify
from lightning_grow.trace.tape import Trace


def join_idle_buffers(source: Trace, target: Trace, names: Mapping[str, str]) -> dict[str, str]:
    """Unify the axes of idle buffers with those of the buffers beside them.

    Args:
        source: The source's tape.
        target: The target's tape.
        names: Target name -> source name.

    Returns:
        The idle buffer's name -> the other's.
    """
    used = target.used()
    buffers = {name: value for name, value in target.tensors.items() if not value.trained and name in names}

    def sizes(name: str) -> tuple[object, ...]:
        pair = source.tensors[names[name]], target.tensors[name]
        return name.rpartition(".")[0], *(tuple(axis.size for axis in value.axes) for value in pair)

    known = {sizes(name): name for name, value in buffers.items() if value in used}
    beside = {name: known[sizes(name)] for name, value in buffers.items() if value not in used and sizes(name) in known}
    for name, other in beside.items():
        for tape, (first, second) in ((source, (names[name], names[other])), (target, (name, other))):
            for one, two in zip(tape.tensors[first].axes, tape.tensors[second].axes, strict=True):
                unify(one, two)
    return {name: other for name, other in beside.items() if target.tensors[name].axes}
