"""A network as it stands during a rollout: the same arithmetic in fewer calls."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_grow.private import has_hooks
from lightning_grow.rl.normalizer import ObservationNormalizer

Function = Callable[[Tensor], Tensor]


def freeze(*modules: nn.Module) -> Function:
    """Return what one module after the other computes, with the weights that they have now.

    A call of a module looks up its weights, its hooks and its mode; a rollout makes thousands of calls between two
    changes of any of them. What is not known here, or has hooks, is called as it is.

    >>> network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    >>> observations = torch.randn(3, 4)
    >>> torch.equal(freeze(network)(observations), network(observations))
    True
    """
    functions = [function for module in modules for function in _functions(module)]

    def run(inputs: Tensor) -> Tensor:
        for function in functions:
            inputs = function(inputs)
        return inputs

    return run


def _functions(module: nn.Module) -> list[Function]:
    known = _KNOWN.get(type(module))  # a subclass may do anything
    if known is None or has_hooks(module):
        return [module]
    return known(module)


def _linear(module: nn.Linear) -> list[Function]:
    return [partial(F.linear, weight=module.weight, bias=module.bias)]


def _sequential(module: nn.Sequential) -> list[Function]:
    return [function for part in module for function in _functions(part)]


def _normalizer(module: ObservationNormalizer) -> list[Function]:
    mean, scale = module.folded()
    return [lambda observations: torch.sub(observations, mean).mul_(scale).clamp_(-module.clip, module.clip)]


_KNOWN: dict[type[nn.Module], Callable[[Any], list[Function]]] = {
    nn.Identity: lambda module: [],
    nn.Linear: _linear,
    nn.ReLU: lambda module: [torch.relu],
    nn.Sequential: _sequential,
    nn.Tanh: lambda module: [torch.tanh],
    ObservationNormalizer: _normalizer,
}
