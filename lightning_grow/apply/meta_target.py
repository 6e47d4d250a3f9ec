"""A target on the meta device: memory, initial values where the plan asks for some, buffers that no file holds."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_grow.apply.apply import Allocate, empty_state, in_memory
from lightning_grow.errors import RefusedGrowth
from lightning_grow.plan.cells import Kind
from lightning_grow.plan.growth_plan import GrowthPlan
from lightning_grow.private import INITIALISES, RESETS, tables
from lightning_grow.trace.names import strip_compiled
from lightning_grow.trace.tracer import named_tensors


def initial_state(target: nn.Module, plan: GrowthPlan, seed: int, allocate: Allocate = in_memory) -> dict[str, Tensor]:
    """The target's own initial values; a meta target is initialised on the CPU by its modules' reset_parameters."""
    if not is_meta(target):
        return dict(target.state_dict())
    return empty_state(_initialised(target, plan, seed, allocate).state_dict(), lambda drawn: drawn)


def is_meta(module: nn.Module) -> bool:
    """Whether something that a file holds is on the meta device."""
    return any(item.is_meta for item in module.state_dict().values() if isinstance(item, Tensor))


def _initialised(target: nn.Module, plan: GrowthPlan, seed: int, allocate: Allocate) -> nn.Module:
    """A real copy of a meta target, with initial values wherever the plan asks for some."""
    real = _fill(copy.deepcopy(target), lambda _, tensor: allocate(tensor))
    wanted = {name for name, item in plan.tensors.items() if any(cell.kind is Kind.NEW for _, cell in item.blocks())}
    drawn = set[int]()  # a tied one is drawn once
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for path, part in _from_the_leaves(real):
            parameters, buffers, _, others = tables(part)
            own = {key: item for key, item in {**parameters, **buffers}.items() if item is not None}
            own = {key: item for key, item in own.items() if key not in others and id(item) not in drawn}
            unknown = _draw(part, _initialisers(real, path), own)
            drawn |= {id(item) for key, item in own.items() if key not in unknown}
            if lost := sorted({strip_compiled(_join(path, key)) for key in unknown} & wanted):
                raise RefusedGrowth(
                    f"'{lost[0]}' has new entries, and '{path}' ({type(part).__name__}) is on the meta device and has "
                    "no reset_parameters that says what they start at (nor does an _init_weights(module) of a module "
                    "around it); build the target on a real device."
                )
    return real


def _from_the_leaves(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """All modules by name, parts first: what is around them may draw their values again, as `apply` has it."""
    return list(module.named_modules())[::-1]


def _initialisers(module: nn.Module, path: str) -> list[Callable[[nn.Module], Any]]:
    """What draws a part's values: its own `reset_parameters`, then the nearest `_init_weights(part)` around it."""
    names = path.split(".") if path else []
    around = [module.get_submodule(".".join(names[:length])) for length in range(len(names), -1, -1)]
    own = [operator.methodcaller(name) for name in RESETS if hasattr(around[0], name)]
    methods = (getattr(part, INITIALISES, None) for part in around)
    takes_parts: Iterator[Any] = (method for method in methods if _takes_one(method))
    return [*own[:1], *itertools.islice(takes_parts, 1)]


def _takes_one(method: Any) -> bool:
    """Whether something can be called with one argument."""
    if not callable(method):
        return False
    try:
        inspect.signature(method).bind(None)
    except TypeError:
        return False
    return True


@torch.no_grad()
def _draw(part: nn.Module, initialisers: Sequence[Callable[[nn.Module], Any]], own: Mapping[str, Tensor]) -> set[str]:
    """Draw a part's own values; return those that are not all drawn, for they depend on what the memory held before.

    NaN shows where floats were left as they were; of other types it takes two draws, into other contents.
    """
    if not (initialisers and own):
        return set(own)
    if all(tensor.is_floating_point() for tensor in own.values()):
        drawn = _draw_over(math.nan, part, initialisers, own)
        return {key for key, tensor in drawn.items() if bool(tensor.isnan().any())}
    state = torch.get_rng_state()
    first = {key: tensor.clone() for key, tensor in _draw_over(0, part, initialisers, own).items()}
    torch.set_rng_state(state)
    drawn = _draw_over(1, part, initialisers, own)
    return {key for key, tensor in drawn.items() if not torch.equal(first[key], tensor)}


def _draw_over(
    fill: float, part: nn.Module, initialisers: Sequence[Callable[[nn.Module], Any]], own: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Draw values in the place of what is the same number everywhere."""
    for tensor in own.values():
        tensor.fill_(fill)
    for initialise in initialisers:
        initialise(part)
    return {key: getattr(part, key).detach() for key in own}


def with_known_buffers(module: nn.Module) -> nn.Module:
    """The module, or a copy with values in those buffers on meta that no file holds and its initialisers compute.

    That is how torch and transformers fill a module that was built on meta: to_empty, then `reset_parameters` or
    `_init_weights`.
    """
    known = dict(_known_buffers(module))
    return set_buffers(copy.deepcopy(module), known) if known else module


def take_buffers(module: nn.Module, other: nn.Module) -> None:
    """Give a module on meta the buffers that no file holds, from a copy of it where they are known."""
    lacking = {name for name, buffer in module.named_buffers() if buffer.is_meta} - module.state_dict().keys()
    set_buffers(module, {name: buffer for name, buffer in other.named_buffers() if name in lacking})


def _known_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, part in module.named_modules():
        saved, own = part.state_dict().keys(), dict(part.named_buffers(recurse=False))
        lacking = [key for key, item in own.items() if item.is_meta and key not in saved]
        if lacking and (initialisers := _initialisers(module, path)):
            real = _fill(copy.deepcopy(part), lambda _, tensor: in_memory(tensor))
            with torch.random.fork_rng(devices=[]):
                unknown = _draw(real, initialisers, {key: real.get_buffer(key) for key in lacking})
            yield from ((_join(path, key), real.get_buffer(key)) for key in lacking if key not in unknown)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}".strip(".")


def set_buffers(module: nn.Module, buffers: Mapping[str, Tensor]) -> nn.Module:
    """Give a module other buffers, by dotted name; returns it."""
    for name, buffer in buffers.items():
        owner, _, key = name.rpartition(".")
        setattr(module.get_submodule(owner), key, buffer)
    return module


def with_memory(target: nn.Module, grown: Mapping[str, Tensor]) -> nn.Module:
    """The target, or where it is on the meta device a real one with the grown values."""
    if not any(item.is_meta for item in named_tensors(target).values()):
        return target
    return _fill(copy.deepcopy(target), lambda name, tensor: grown[name] if name in grown else in_memory(tensor))


def take_memory(target: nn.Module, grown: Mapping[str, Tensor]) -> None:
    """Put grown values in the place of what is on the meta device; what was tied there stays tied."""
    _fill(target, lambda name, tensor: grown.get(name, tensor))


def _fill(module: nn.Module, make: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """Give a module memory for what is on meta, tied where that is; what is not keeps its values."""
    made = dict[int, Tensor]()
    for path, part in module.named_modules():
        for table in tables(part)[:2]:
            for key, tensor in table.items():
                if tensor is None or not tensor.is_meta:
                    continue
                if id(tensor) not in made:
                    item = make(_join(path, key), tensor)
                    trained = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(item, tensor.requires_grad) if trained else item
                table[key] = made[id(tensor)]  # type: ignore[assignment]
    return module
