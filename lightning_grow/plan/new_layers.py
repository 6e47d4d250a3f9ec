"""Why a new layer changes the function, as the tape shows it: what stands behind the sum that it ends with."""

from __future__ import annotations

from lightning_grow.pair.entries import only_moves
from lightning_grow.trace.tape import Node, Trace, Value


def behind_the_sum(trace: Trace, layer: str) -> Node | None:
    """The operator that a module applies to its residual sum before it returns it: a norm, an activation.

    >>> import torch
    >>> from lightning_grow.trace.tracer import trace
    >>> layer = torch.nn.TransformerEncoderLayer(4, 2, 8, norm_first=False)
    >>> behind_the_sum(trace(torch.nn.Sequential(layer), (torch.ones(3, 1, 4),)), "0").place
    "aten.native_layer_norm.default in '0.norm2'"
    """
    own = [node for node in trace.nodes if f"{node.path}.".startswith(f"{layer}.")]
    inside = {value for node in own for value in node.outputs}
    read = {value for node in trace.nodes for value in node.tensors() if inside.isdisjoint(node.outputs)}
    left = [value for node in own for value in node.outputs if value in read or value in trace.outputs.values()]
    behind, value = None, left[-1] if left else None
    while value in inside:
        node = trace.makers[value]
        computed = [item for item in node.tensors() if _is_computed(trace, item)]
        if not computed or (node.name == "add" and node.whole is None and len(computed) > 1):
            return behind if computed else None
        behind, value = behind if only_moves(node) else node, computed[0]
    return None


def _is_computed(trace: Trace, value: Value) -> bool:
    return value.constant is None and (value in trace.makers or value in trace.inputs)
