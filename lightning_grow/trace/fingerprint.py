"""A tape in one line: equal for two models that run the same operators on tensors of the same names and sizes."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from lightning_grow.trace.nested import mapped
from lightning_grow.trace.tape import Trace, Value

_WHERE = ("device", "pin_memory")  # arguments that say where, not what


def fingerprint(tape: Trace) -> str:
    """Return a digest of every operator, its arguments and its constants: 64 hexadecimal digits.

    >>> from torch import nn
    >>> from lightning_grow.trace.tracer import trace
    >>> marks = [fingerprint(trace(nn.ELU(alpha), (torch.ones(3),))) for alpha in (1.0, 1.0, 0.5)]
    >>> marks[0] == marks[1] != marks[2]
    True
    """
    names = {value: f"input {number}" for number, value in enumerate(tape.inputs)}
    names |= {value: f"tensor {name}" for name, value in sorted(tape.tensors.items(), reverse=True)}
    digest = hashlib.sha256()

    def name(leaf: Any) -> Any:
        if not isinstance(leaf, Value):
            return leaf
        return names.get(leaf) or (str(leaf.dtype), leaf.shape, _content(leaf.constant))

    for number, node in enumerate(tape.nodes):
        arguments = {key: item for key, item in node.arguments.items() if key not in _WHERE}
        digest.update(repr((str(node.op), mapped(name, arguments))).encode())
        for place, value in enumerate(node.outputs):
            names.setdefault(value, f"{number}.{place}: {value.dtype} {value.shape}")
    digest.update(repr([(place, name(value)) for place, value in tape.outputs.items()]).encode())
    return digest.hexdigest()


def _content(constant: Tensor | None) -> str:
    if constant is None:
        return "unknown"
    return hashlib.sha256(constant.contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
