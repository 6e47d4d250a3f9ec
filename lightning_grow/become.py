"""Turn a living module into one of another architecture, in place: whoever holds it goes on holding it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_grow.architecture import is_plain

HOOKS = "_hooks"
"""How the names of nn.Module's hook tables end."""


def become(module: nn.Module, grown: nn.Module, fresh: nn.Module) -> None:
    """Give a module the architecture of another; what a run has put into it stays.

    Submodules that are alike in `fresh` and `grown` are not touched. Of the others, containers keep their identity and
    every attribute in which `fresh` and `grown` agree (counters, environments, metrics); layers take everything but
    their hooks and their mode. Values are not carried: load a state dict afterwards.

    Args:
        module: Changed in place.
        grown: A newly built module of the new architecture; given away, its parts are used.
        fresh: A newly built module of the architecture that `module` has.

    >>> module, fresh, grown = (nn.Sequential(nn.Linear(2, size), nn.Linear(size, 2)) for size in (3, 3, 5))
    >>> first = module[0]
    >>> become(module, grown, fresh)
    >>> module[0] is first, first.out_features, module(torch.ones(1, 2)).shape
    (True, 5, torch.Size([1, 2]))
    """
    trained = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    _become_container(module, grown, fresh)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(trained.get(name, parameter.requires_grad))


def _become(module: nn.Module, grown: nn.Module, fresh: nn.Module) -> None:
    if _describe(fresh) == _describe(grown):
        return
    if grown._modules:
        _become_container(module, grown, fresh)
        return
    kept = {name: value for name, value in vars(module).items() if name.endswith(HOOKS) or name == "training"}
    vars(module).update({**vars(grown), **kept})


def _become_container(module: nn.Module, grown: nn.Module, fresh: nn.Module) -> None:
    children: dict[str, nn.Module | None] = {}
    for name, child in grown._modules.items():
        own, old = module._modules.get(name), fresh._modules.get(name)
        if child is not None and own is not None and old is not None and type(own) is type(child) is type(old):
            _become(own, child, old)
            children[name] = own
        else:
            children[name] = child if child is None else child.train(module.training)
    module._modules = children
    _take_attributes(module, grown, fresh)


def _take_attributes(module: nn.Module, grown: nn.Module, fresh: nn.Module) -> None:
    for table in ("_parameters", "_buffers"):
        own, old, new = (getattr(item, table) for item in (module, fresh, grown))
        kept = {name: own.get(name) for name, value in new.items() if not _differs(old.get(name), value)}
        setattr(module, table, {**new, **kept})
    module._non_persistent_buffers_set = grown._non_persistent_buffers_set
    for name, value in vars(grown).items():
        if name not in vars(fresh) or _differs(vars(fresh)[name], value):
            vars(module)[name] = value


def _differs(old: Any, new: Any) -> bool:
    """Whether two newly built modules differ in an attribute because of their architectures."""
    if isinstance(old, Tensor) and isinstance(new, Tensor):
        return old.shape != new.shape
    if isinstance(old, torch.Size) or (is_plain(old) and is_plain(new)):
        return bool(old != new)
    return type(old) is not type(new)


def _describe(module: nn.Module) -> list[tuple[object, ...]]:
    """All that an architecture is: types, shapes and plain attributes, part by part."""
    described: list[tuple[object, ...]] = []
    for name, part in module.named_modules():
        tensors = (*part._parameters.items(), *part._buffers.items())
        shapes = [(key, None if tensor is None else tensor.shape) for key, tensor in tensors]
        described.append((name, type(part), shapes, [item for item in vars(part).items() if is_plain(item[1])]))
    return described
