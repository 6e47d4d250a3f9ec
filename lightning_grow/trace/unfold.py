"""Composite operators written in simple ones, so that no rule and no handler has to know them.

A norm is a mean, a variance and a product; a softmax an exponential and a sum. The tapes hold these, and remember the
composite for messages and for its arguments. Torch has decompositions too, which change with its version; these do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Unfolded = Tensor | tuple[Tensor, ...]
UNFOLDED: dict[str, Callable[..., Unfolded]] = {}


def _unfolds(*names: str) -> Callable[[Callable[..., Unfolded]], Callable[..., Unfolded]]:
    def enter(function: Callable[..., Unfolded]) -> Callable[..., Unfolded]:
        UNFOLDED.update(dict.fromkeys(names, function))
        return function

    return enter


def _whiten(value: Tensor, dims: list[int], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    mean = value.mean(dims, keepdim=True)
    rstd = (value.var(dims, correction=0, keepdim=True) + eps).rsqrt()
    return (value - mean) * rstd, mean, rstd


def _last(normalized_shape: Sequence[int]) -> list[int]:
    return list(range(-len(normalized_shape), 0))


def _scale_and_shift(value: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    value = value if weight is None else value * weight
    return value if bias is None else value + bias


def _channels(parameter: Any, rank: int) -> Any:
    """A parameter with one entry per channel, in a shape that broadcasts along dimension 1."""
    return None if parameter is None else parameter.view(-1, *[1] * (rank - 2))


@_unfolds("native_layer_norm")
def layer_norm(input: Tensor, normalized_shape: Sequence[int], weight: Any, bias: Any, eps: float) -> Unfolded:
    """Statistics over the last dimensions."""
    value, mean, rstd = _whiten(input, _last(normalized_shape), eps)
    return _scale_and_shift(value, weight, bias), mean, rstd


@_unfolds("_fused_rms_norm")
def rms_norm(input: Tensor, normalized_shape: Sequence[int], weight: Any, eps: float | None) -> Unfolded:
    """The root of the mean square over the last dimensions."""
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    rstd = (input.square().mean(_last(normalized_shape), keepdim=True) + eps).rsqrt()
    return _scale_and_shift(input * rstd, weight, None), rstd


@_unfolds("native_group_norm")
def group_norm(input: Tensor, weight: Any, bias: Any, N: int, C: int, HxW: int, group: int, eps: float) -> Unfolded:
    """Statistics over the channels of each group and all positions."""
    apart = input.reshape(input.shape[0], group, -1, *input.shape[2:])
    value, mean, rstd = _whiten(apart, list(range(2, apart.dim())), eps)
    value = _scale_and_shift(value.reshape(input.shape), _channels(weight, input.dim()), _channels(bias, input.dim()))
    return value, mean.reshape(-1, group), rstd.reshape(-1, group)


@_unfolds("native_batch_norm", "_native_batch_norm_legit")
def batch_norm(
    input: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float
) -> Unfolded:
    """Statistics per channel: kept ones, or those of the batch."""
    dims, rank = [0, *range(2, input.dim())], input.dim()
    if training or mean is None:
        value = _whiten(input, dims, eps)[0]
    else:
        rstd = (_channels(var, rank) + eps).rsqrt()
        value = (input - _channels(mean, rank)) * rstd
    nothing = input.new_empty(0)
    return _scale_and_shift(value, _channels(weight, rank), _channels(bias, rank)), nothing, nothing


@_unfolds("_native_batch_norm_legit_no_training")
def batch_norm_in_evaluation(
    input: Tensor, weight: Any, bias: Any, mean: Any, var: Any, momentum: float, eps: float
) -> Unfolded:
    """Kept statistics per channel."""
    return batch_norm(input, weight, bias, mean, var, False, momentum, eps)


@_unfolds("_softmax", "_safe_softmax")
def softmax(input: Tensor, dim: int, *_: Any) -> Unfolded:
    """A distribution over one dimension."""
    powers = (input - input.amax(dim, keepdim=True)).exp()
    return powers / powers.sum(dim, keepdim=True)


@_unfolds("_log_softmax")
def log_softmax(input: Tensor, dim: int, *_: Any) -> Unfolded:
    """The logarithm of a distribution over one dimension."""
    apart = input - input.amax(dim, keepdim=True)
    return apart - apart.exp().sum(dim, keepdim=True).log()


@_unfolds("rrelu_with_noise")
def rrelu(input: Tensor, noise: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, *_: Any) -> Unfolded:
    """In evaluation the slope is the middle one."""
    return torch.nn.functional.leaky_relu(input, (lower + upper) / 2)


@_unfolds("_cdist_forward")
def cdist(first: Tensor, second: Tensor, p: float, *_: Any) -> Unfolded:
    """Norms of all differences."""
    norms: Tensor = torch.linalg.vector_norm(first.unsqueeze(-2) - second.unsqueeze(-3), p, -1)
    return norms


@_unfolds("_trilinear")
def trilinear(
    first: Tensor, second: Tensor, third: Tensor, expand1: Any, expand2: Any, expand3: Any, sumdim: Any, *_: Any
) -> Unfolded:
    """A sum of products of three, each spread along dimensions of its own."""
    for tensor_dims, number in ((expand1, 0), (expand2, 1), (expand3, 2)):
        for dim in tensor_dims:
            first, second, third = (
                item.unsqueeze(dim) if at == number else item for at, item in enumerate((first, second, third))
            )
    return (first * second * third).sum(sumdim)


@_unfolds("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(
    weight: Tensor, indices: Tensor, offsets: Tensor, scale: bool = False, mode: int = 0, sparse: bool = False,
    shares: Any = None, include_last_offset: bool = False, padding_idx: int = -1,
) -> Unfolded:  # fmt: skip
    """Rows of a table, summed, averaged or maximised bag by bag."""
    bag = (torch.arange(indices.numel(), device=offsets.device)[:, None] >= offsets).sum(-1) - 1
    rows = torch.nn.functional.embedding(indices, weight)
    rows = rows if shares is None else rows * shares[:, None]
    there = (
        torch.ones_like(indices, dtype=weight.dtype) if padding_idx < 0 else (indices != padding_idx).to(weight.dtype)
    )
    count = offsets.numel() - include_last_offset
    nothing = weight.new_zeros(count, weight.shape[1])
    if mode == 2:
        bags = nothing.scatter_reduce(0, bag[:, None].expand_as(rows), rows, "amax", include_self=False)
    else:
        bags = nothing.index_add(0, bag, rows * there[:, None])
    if mode == 1:
        bags = bags / weight.new_zeros(count).index_add(0, bag, there).clamp(min=1)[:, None]
    return bags, bag, bag.new_empty(0), bag.new_empty(0)


@_unfolds("glu")
def glu(input: Tensor, dim: int = -1) -> Unfolded:
    """The first half times the sigmoid of the second."""
    first, second = input.chunk(2, dim)
    return first * second.sigmoid()


@_unfolds("pixel_shuffle")
def pixel_shuffle(input: Tensor, factor: int) -> Unfolded:
    """Channels are output channels by a square of pixels."""
    *lead, channels, height, width = input.shape
    apart = input.reshape(*lead, channels // factor**2, factor, factor, height, width)
    rank = len(lead)
    order = [*range(rank), rank, rank + 3, rank + 1, rank + 4, rank + 2]
    return apart.permute(order).reshape(*lead, channels // factor**2, height * factor, width * factor)
