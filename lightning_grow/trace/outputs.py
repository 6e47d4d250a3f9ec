"""The tensors that a forward returns, by name, and which of them are state that it takes back in its next call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from lightning_grow.private import keystr, tree_flatten_with_path

Forward = Callable[..., Any]
_NO_OUTPUTS = (Tensor, nn.Module, type, FunctionType, MethodType, ModuleType)
_PARTS = (torch.distributions.Distribution, list)


def named_outputs(result: Any) -> dict[str, Tensor]:
    """The tensors in containers, distributions, dataclasses and other objects of any depth, by their place.

    >>> from types import SimpleNamespace
    >>> list(named_outputs([torch.ones(2), SimpleNamespace(y={"z": torch.ones(3)})]))
    ['[0]', "[1]['y']['z']"]
    """
    leaves, _ = tree_flatten_with_path(_plain(result, ()))
    return {keystr(path): leaf for path, leaf in leaves if isinstance(leaf, Tensor)}


def find_carried(result: Any, module: nn.Module) -> set[str]:
    """The outputs in something that a forward also takes under that name: a cache of keys and values, say.

    >>> class Model(nn.Module):
    ...     def forward(self, x, past=None): ...
    >>> find_carried({"x": torch.ones(2), "past": [torch.ones(3)]}, Model())
    {"['past'][0]"}
    """
    taken = {name for part in module.modules() for name in inspect.signature(part.forward).parameters}
    leaves, _ = tree_flatten_with_path(_plain(result, ()))
    return {keystr(path) for path, _ in leaves if not taken.isdisjoint(getattr(key, "key", None) for key in path[:-1])}


def without(forward: Forward | None, left_out: Collection[str]) -> Forward | None:
    """A forward, the module's own when None, that returns all but some outputs."""
    if not left_out:
        return forward

    def rest(module: nn.Module, *args: Any, **kwargs: Any) -> list[Tensor]:
        result = (forward or type(module).__call__)(module, *args, **kwargs)
        return [tensor for name, tensor in named_outputs(result).items() if name not in left_out]

    return rest


def _plain(result: Any, around: tuple[Any, ...]) -> Any:
    """Objects (dataclasses, as Hugging Face returns, namespaces, distributions) as dicts of what they hold."""
    if isinstance(result, Mapping):
        return {key: _plain(item, around) for key, item in result.items()}
    if isinstance(result, (tuple, list)):
        return [_plain(item, around) for item in result]
    if isinstance(result, _NO_OUTPUTS) or any(result is item for item in around):
        return result
    held = getattr(result, "__dict__", {})
    if hasattr(result, "__dataclass_fields__"):
        held = {key: getattr(result, key) for key in result.__dataclass_fields__}
    elif isinstance(result, torch.distributions.Distribution):
        own = result.arg_constraints  # given arguments; what they are made of, where there are none (Independent)
        held = {key: item for key, item in held.items() if key in own or isinstance(item, _PARTS)}
    return {key: _plain(item, (*around, result)) for key, item in held.items()} if held else result
