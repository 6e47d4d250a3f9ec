"""Run source and grown target side by side: the check that makes the promise."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lightning_grow.trace import Forward, _plain, call_arguments, evaluating


@contextlib.contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Leave mode, random number generators and buffers as they were."""
    buffers = [(table, key, item, item.clone()) for table, key, item in _buffers(module)]
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    try:
        with evaluating(module), torch.random.fork_rng(devices=devices), torch.no_grad():
            yield
    finally:
        for table, key, item, content in buffers:
            item.copy_(content)
            table[key] = item


def set_attributes(module: nn.Module, attributes: Mapping[str, Any]) -> None:
    """Set attributes by dotted name."""
    for name, value in attributes.items():
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, value)


@contextlib.contextmanager
def changed_attributes(module: nn.Module, attributes: Mapping[str, Any]) -> Iterator[None]:
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


def _buffers(module: nn.Module) -> list[tuple[dict[str, Any], str, Tensor]]:
    return [
        (part._buffers, key, item)
        for part in module.modules()
        for key, item in part._buffers.items()
        if item is not None and not item.is_meta
    ]


def outputs(
    module: nn.Module, example_inputs: Any, forward: Forward | None = None, state: Mapping[str, Tensor] | None = None
) -> list[Tensor]:
    """Return the output tensors of one pass in eval mode, with another state in place of the module's own."""
    args, kwargs = call_arguments(example_inputs)
    call = forward if forward is not None else type(module).__call__
    with undisturbed(module):
        args, kwargs = copy.deepcopy((args, kwargs))
        if state is None:
            result = call(module, *args, **kwargs)
        else:
            wrapper = _Call(module, call)
            result = torch.func.functional_call(wrapper, {f"module.{k}": v for k, v in state.items()}, args, kwargs)
    return [leaf.detach() for leaf in tree_leaves(_plain(result)) if isinstance(leaf, Tensor)]


class _Call(nn.Module):
    """A module whose forward is any callable of another."""

    def __init__(self, module: nn.Module, call: Forward) -> None:
        super().__init__()
        self.module, self.call = module, call

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(self.module, *args, **kwargs)


def output_error(source: list[Tensor], target: list[Tensor]) -> float:
    """Return max|f_target - f_source| / max|f_source|, each output tensor on its own, the largest of them.

    A target output may have more positions than the source's; those are left out.

    >>> output_error([torch.tensor([2.0, 4.0])], [torch.tensor([2.0, 4.4, 9.0])])
    0.1...
    """
    worst = 0.0
    for old, new in zip(source, target, strict=True):
        shared = new[tuple(slice(0, size) for size in old.shape)]
        if not old.is_floating_point():
            worst = max(worst, 0.0 if torch.equal(old, shared) else 1.0)
            continue
        finite = torch.isfinite(old)
        if not torch.equal(finite, torch.isfinite(shared)):
            return float("inf")
        difference = (shared.double() - old.double())[finite].abs()
        size = old.double()[finite].abs()
        if difference.numel():
            worst = max(worst, float(difference.max()) / max(float(size.max()), torch.finfo(torch.float32).tiny))
    return worst


def rounding_floor(
    source: nn.Module, example_inputs: Any, forward: Forward | None, lowest: torch.dtype, expected: list[Tensor]
) -> float:
    """Measure how far rounding alone moves the outputs: the error when every parameter moves by one rounding.

    Args:
        source: The source.
        example_inputs: What to run it on.
        forward: Instead of its own forward.
        lowest: The lowest float type of the pass.
        expected: The source's outputs.

    Returns:
        The largest relative change over two draws; at least one rounding of `lowest`.
    """
    eps = torch.finfo(lowest).eps
    generator = torch.Generator().manual_seed(0)
    floor = eps
    for _ in range(2):
        moved = {name: _rounded(item, eps, generator) for name, item in source.named_parameters()}
        floor = max(floor, output_error(expected, outputs(source, example_inputs, forward, moved)))
    return floor


def _rounded(item: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    if not item.is_floating_point():
        return item.detach()
    sign = torch.randint(0, 2, item.shape, generator=generator).to(item.device, torch.float32) * 2 - 1
    return (item.detach().double() * (1 + eps * sign.double())).to(item.dtype)


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
