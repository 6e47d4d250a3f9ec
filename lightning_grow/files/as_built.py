"""Which buffers of a checkpoint are still as its module was built: settings, not something learned or counted."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from lightning_grow.trace.names import strip_compiled
from lightning_grow.trace.untouched import untouched_rng


def find_as_built(build: Callable[[], nn.Module], module: nn.Module, like: Mapping[str, Any]) -> set[str]:
    """Name the buffers that are as the constructor makes them, of those that are of another shape elsewhere, or gone.

    Args:
        build: Builds the module as it was before it was trained; called on the CPU, if it has such a buffer at all.
        module: It, with the checkpoint's weights.
        like: The state dict of the module that it is to become.

    Returns:
        Their names. A normaliser's statistics are not asked for: they have the shape of its weights.
    """
    saved = module.state_dict()
    doubtful = {
        name: item
        for name, item in module.named_buffers()
        if name in saved
        and getattr(like.get(strip_compiled(name)), "shape", None) != item.shape
        and item.shape not in {weight.shape for weight in _weights_beside(module, name)}
    }
    if not doubtful:
        return set()
    with untouched_rng():
        try:
            with torch.device("cpu"):
                fresh = dict(build().named_buffers())
        except Exception:  # any code may run in an __init__, and it may need the GPU
            return set()
    return {
        strip_compiled(name)
        for name, item in doubtful.items()
        if name in fresh and fresh[name].shape == item.shape and torch.equal(fresh[name].to(item), item)
    }


def _weights_beside(module: nn.Module, name: str) -> list[nn.Parameter]:
    return list(module.get_submodule(name.rpartition(".")[0]).parameters(recurse=False))
