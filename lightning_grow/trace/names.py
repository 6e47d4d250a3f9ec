"""Names of tensors, without the prefix of a compiled module."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from lightning_grow.private import COMPILED


def find_tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict; extra state (any object) is left out."""
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def strip_compiled(name: str) -> str:
    """A parameter's name without the prefix that ``torch.compile`` puts on submodules.

    >>> strip_compiled("net._orig_mod.0.weight")
    'net.0.weight'
    """
    return name.replace(COMPILED, "")


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """A module's parameters by their names without compiled prefixes.

    >>> list(parameters_of(nn.Linear(2, 1)))
    ['weight', 'bias']
    """
    return {strip_compiled(name): parameter for name, parameter in module.named_parameters()}


def align_names(state: Mapping[str, Any], like: Iterable[str]) -> dict[str, Any]:
    """The same state under the names of `like` where the two differ by a compiled prefix only.

    >>> align_names({"net._orig_mod.0.weight": 1}, ["net.0.weight"])
    {'net.0.weight': 1}
    """
    names = {strip_compiled(name): name for name in like}
    return {names.get(strip_compiled(name), name): value for name, value in state.items()}
