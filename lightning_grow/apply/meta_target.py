"""A target on the meta device: memory, initial values where the plan asks for some, buffers that no file holds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from lightning_grow.apply.apply import Allocate, in_memory
from lightning_grow.errors import RefusedGrowth
from lightning_grow.plan.cells import Kind
from lightning_grow.plan.growth_plan import GrowthPlan
from lightning_grow.private import RESETS, tables
from lightning_grow.trace.names import strip_compiled
from lightning_grow.trace.tracer import named_tensors


def initial_state(target: nn.Module, plan: GrowthPlan, seed: int, allocate: Allocate = in_memory) -> dict[str, Tensor]:
    """The target's own initial values; a meta target is initialised on the CPU by its modules' reset_parameters."""
    return dict((_initialised(target, plan, seed, allocate) if is_meta(target) else target).state_dict())


def is_meta(module: nn.Module) -> bool:
    """Whether something that a file holds is on the meta device."""
    return any(item.is_meta for item in module.state_dict().values() if isinstance(item, Tensor))


def _initialised(target: nn.Module, plan: GrowthPlan, seed: int, allocate: Allocate) -> nn.Module:
    """A real copy of a meta target, with initial values wherever the plan asks for some."""
    real = _filled(target, lambda _, tensor: allocate(tensor))
    wanted = {name for name, item in plan.tensors.items() if any(cell.kind is Kind.NEW for _, cell in item.blocks())}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, part in real.named_modules():
            own = {strip_compiled(f"{name}.{key}".strip(".")) for key in part.state_dict() if "." not in key}
            reset = _find_reset(part)
            if reset is not None:
                getattr(part, reset)()
            elif unknown := sorted(own & wanted):
                raise RefusedGrowth(
                    f"'{unknown[0]}' has new entries, and '{name}' ({type(part).__name__}) is on the meta device and "
                    "has no reset_parameters that says what they start at; build the target on a real device."
                )
    return real


def with_known_buffers(module: nn.Module) -> nn.Module:
    """The module, or a copy with values in those buffers on meta that no file holds and `reset_parameters` computes.

    That is how torch fills a module that was built on meta: to_empty, then reset_parameters.
    """
    known = dict(_known_buffers(module))
    return set_buffers(copy.deepcopy(module), known) if known else module


def take_buffers(module: nn.Module, other: nn.Module) -> None:
    """Give a module on meta the buffers that no file holds, from a copy of it where they are known."""
    lacking = {name for name, buffer in module.named_buffers() if buffer.is_meta} - module.state_dict().keys()
    set_buffers(module, {name: buffer for name, buffer in other.named_buffers() if name in lacking})


def _known_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, part in module.named_modules():
        saved, reset = part.state_dict().keys(), _find_reset(part)
        lacking = [key for key, item in part.named_buffers(recurse=False) if item.is_meta and key not in saved]
        if lacking and reset is not None:
            real = _filled(part, lambda _, tensor: in_memory(tensor))
            with torch.random.fork_rng(devices=[]):
                getattr(real, reset)()
            yield from ((f"{path}.{key}".strip("."), real.get_buffer(key)) for key in lacking)


def set_buffers(module: nn.Module, buffers: Mapping[str, Tensor]) -> nn.Module:
    """Give a module other buffers, by dotted name; returns it."""
    for name, buffer in buffers.items():
        owner, _, key = name.rpartition(".")
        setattr(module.get_submodule(owner), key, buffer)
    return module


def _find_reset(part: nn.Module) -> str | None:
    return next((name for name in RESETS if hasattr(part, name)), None)


def with_memory(target: nn.Module, grown: Mapping[str, Tensor]) -> nn.Module:
    """The target, or where it is on the meta device a real one with the grown values."""
    if not any(item.is_meta for item in named_tensors(target).values()):
        return target
    return _filled(target, lambda name, tensor: grown[name] if name in grown else in_memory(tensor))


def _filled(target: nn.Module, make: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """A copy with memory for what is on meta, tied where that is; what is not keeps its values."""
    real, made = copy.deepcopy(target), dict[int, Tensor]()
    for path, part in real.named_modules():
        for table in tables(part)[:2]:
            for key, tensor in table.items():
                if tensor is None or not tensor.is_meta:
                    continue
                if id(tensor) not in made:
                    item = make(f"{path}.{key}".strip("."), tensor)
                    trained = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(item, tensor.requires_grad) if trained else item
                table[key] = made[id(tensor)]  # type: ignore[assignment]
    return real
