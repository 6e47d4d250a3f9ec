"""Operators on meta tensors: torch takes up to a millisecond for a shape, and layers that are alike ask it often."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from lightning_grow.private import schema
from lightning_grow.trace.nested import leaves, mapped


class MetaResults:
    """Calls operators; one that makes new meta tensors from arguments like those of before makes them like before.

    >>> call, x = MetaResults(), torch.empty(3, 4, device="meta")
    >>> [call(torch.ops.aten.sum.dim_IntList, (x, [1]), {}).shape for _ in range(2)]
    [torch.Size([3]), torch.Size([3])]
    """

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}

    def __call__(self, op: Any, args: Any, kwargs: Any) -> Any:
        """Call an operator."""
        tensors = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not tensors or not _makes_new(op) or not all(map(_is_plain, tensors)):
            return op(*args, **kwargs)
        key = op, repr(mapped(_described, (args, kwargs)))
        if key in self._known:
            return mapped(_made, self._known[key])
        result = op(*args, **kwargs)
        if all(isinstance(leaf, Tensor) and _is_plain(leaf) for leaf in leaves(result)):
            self._known[key] = mapped(_described, result)
        return result


class _Tensor(tuple[Any, ...]):
    """A tensor's shape, strides and type; no container."""

    __slots__ = ()


def _is_plain(tensor: Tensor) -> bool:
    return tensor.is_meta and tensor.layout is torch.strided and type(tensor) in (Tensor, torch.nn.Parameter)


def _described(leaf: Any) -> Any:
    return _Tensor((tuple(leaf.shape), leaf.stride(), leaf.dtype)) if isinstance(leaf, Tensor) else leaf


def _made(leaf: Any) -> Tensor:
    shape, stride, dtype = leaf
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")


@cache
def _makes_new(op: Any) -> bool:
    """Whether nothing is written to or shared, and the result depends on no content."""
    return not schema(op).is_mutable and not any(item.alias_info for item in schema(op).returns)
