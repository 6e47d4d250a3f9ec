"""Why a new layer changes the function, as the tape shows it: what stands behind the sum that it ends with."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_grow.pair.entries import only_moves
from lightning_grow.pair.names import name_some
from lightning_grow.trace.tape import Node, Trace, Value


def say_new_layers(trace: Trace, layers: Sequence[str], origin: str) -> str:
    """Why new layers change the function, for a refusal.

    Args:
        trace: The target's tape.
        layers: The new modules.
        origin: What the target computes and the source does not, where no layer shows a cause of its own.
    """
    behind = next(filter(None, (behind_the_sum(trace, layer) for layer in layers)), None)
    cause = f"{behind.place} stands behind the residual sum" if behind else f"the target computes {origin}"
    return (
        f"new layers {name_some(layers)} change the function: {cause}. A new layer keeps the function as a residual "
        "branch that ends in weights (behind a ReLU, 0 never learns; a norm after the sum changes it), or as an "
        "identity between two ReLUs (an activation that changes nothing when applied again). Widen instead of "
        "deepening, or choose a strategy that is not function-preserving."
    )


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
