"""Run source and grown target side by side: the check that makes the promise."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_grow.private import tree_leaves, tree_map
from lightning_grow.trace.outputs import Forward, named_outputs
from lightning_grow.trace.tracer import call_arguments, evaluating
from lightning_grow.trace.untouched import untouched_attributes, untouched_contents


@contextlib.contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Leave mode, random number generators, attributes, caches and buffers as they were."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with (
        untouched_attributes(module),
        untouched_contents(module),
        evaluating(module),
        torch.random.fork_rng(devices=devices),
        torch.no_grad(),
    ):
        yield


def set_attributes(module: nn.Module, attributes: Mapping[str, Any]) -> None:
    """Set attributes by dotted name."""
    for name, value in attributes.items():
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, value)


@contextlib.contextmanager
def with_attributes(module: nn.Module, attributes: Mapping[str, Any]) -> Iterator[None]:
    """Set attributes by dotted name, and put the old values back afterwards."""
    old = {}
    for name in attributes:
        owner, _, attribute = name.rpartition(".")
        old[name] = getattr(module.get_submodule(owner), attribute)
    set_attributes(module, attributes)
    try:
        yield
    finally:
        set_attributes(module, old)


def outputs(
    module: nn.Module, example_inputs: Any, forward: Forward | None = None, state: Mapping[str, Tensor] | None = None
) -> list[Tensor]:
    """Return the output tensors of one pass in eval mode, with another state in place of the module's own."""
    args, kwargs = call_arguments(example_inputs)
    call = forward if forward is not None else type(module).__call__
    with untouched(module):
        args, kwargs = copy.deepcopy(tree_map(_leaf, (args, kwargs)))
        if state is None:
            result = call(module, *args, **kwargs)
        else:
            wrapper = _Call(module, call)
            tensors = {f"module.{name}": item for name, item in state.items() if isinstance(item, Tensor)}
            result = torch.func.functional_call(wrapper, tensors, args, kwargs)
        return [leaf.detach() for leaf in named_outputs(result).values()]


def _leaf(item: Any) -> Any:
    return item.detach() if isinstance(item, Tensor) else item  # only leaves of a graph can be copied


class _Call(nn.Module):
    """A module whose forward is any callable of another."""

    def __init__(self, module: nn.Module, call: Forward) -> None:
        super().__init__()
        self.module, self.call = module, call

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(self.module, *args, **kwargs)


def shared_inputs(
    target_inputs: Any, source_inputs: Any, positions: Sequence[Sequence[Tensor]], kept: Sequence[Sequence[Tensor]]
) -> Any:
    """What the source sees of the target's example inputs; inputs that only it has are its own examples'.

    Args:
        target_inputs: The target's example inputs.
        source_inputs: The source's.
        positions: For every dimension of every tensor, the target's positions that the source has too.
        kept: Their positions in the source.
    """
    examples = (leaf for leaf in tree_leaves(source_inputs) if isinstance(leaf, Tensor))
    rest = iter(zip(positions, kept, examples, strict=True))

    def take(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        *places, own = next(rest)
        for dim, (there, here) in enumerate(zip(*places, strict=True)):
            same = len(there) == leaf.shape[dim] and bool((there == torch.arange(len(there))).all())
            leaf = leaf if same else leaf.index_select(dim, there.to(leaf.device))
            if len(here) < own.shape[dim]:
                batch = min(len(own), len(leaf))
                leaf = own[:batch].index_copy(dim, here.to(leaf.device), leaf[:batch])
        return leaf

    return tree_map(take, target_inputs)
