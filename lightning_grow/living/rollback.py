"""Put modules and other objects back as they were when a change of them fails half-way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import nn

from lightning_grow.trace.untouched import untouched_attributes


@contextmanager
def all_or_nothing(modules: Iterable[nn.Module], others: Iterable[Any] = ()) -> Iterator[None]:
    """Undo what the block has done if it raises.

    Put back are the parts, the attributes and the values of modules, the attributes of other objects, and what
    containers among them hold; not what happened deeper inside.

    Args:
        modules: Modules; the values of their parameters and buffers are kept on the CPU meanwhile.
        others: Any other objects.

    >>> layer = nn.Linear(2, 3)
    >>> with all_or_nothing([layer]):
    ...     layer.weight, layer.out_features = nn.Parameter(torch.zeros(5, 2)), 1 / 0
    Traceback (most recent call last):
    ZeroDivisionError: division by zero
    >>> layer.weight.shape
    torch.Size([3, 2])
    """
    modules = list(modules)
    tensors = chain.from_iterable((*module.parameters(), *module.buffers()) for module in modules)
    values = [(tensor, tensor.detach().to("cpu", copy=True)) for tensor in tensors]
    try:
        with untouched_attributes(*modules, *others) as put_back:
            yield
            put_back.clear()
    except BaseException:
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)
        raise
