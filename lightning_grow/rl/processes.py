"""Several processes that train one agent: each steps its share of the environments, all learn from all of them."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is."""
    return dist.get_rank() if count() > 1 else 0


def share_of(whole: Tensor, dim: int) -> Tensor:
    """This process's part of what is the same in all.

    >>> share_of(torch.arange(4), 0)
    tensor([0, 1, 2, 3])
    """
    return whole.chunk(count(), dim)[rank()]


def permutation(length: int, generator: torch.Generator) -> Tensor:
    """A random order of this process's `length` samples; all processes draw as one with all samples does.

    >>> permutation(3, torch.Generator().manual_seed(0)).sort().values
    tensor([0, 1, 2])
    """
    order = torch.randperm(length * count(), generator=generator)
    return order[order % count() == rank()] // count()


def average(value: Tensor) -> Tensor:
    """The mean over all processes."""
    if count() == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / count()


def gather(item: Any) -> list[Any]:
    """What each process has, in the order of their ranks."""
    if count() == 1:
        return [item]
    items = [None] * count()
    dist.all_gather_object(items, item)
    return items


def moments(samples: Tensor) -> tuple[int, Tensor, Tensor]:
    """The number, the mean and the biased variance of all processes' samples along their first dimension.

    >>> moments(torch.tensor([[1.0], [3.0]]))
    (2, tensor([2.]), tensor([1.]))
    """
    mean = average(samples.mean(0))  # as many samples in each
    return len(samples) * count(), mean, average((samples - mean).square_().mean(0))  # faster than Tensor.var


def standardized(samples: Tensor) -> Tensor:
    """Samples less the mean of all processes', over their standard deviation."""
    if count() == 1:
        return (samples - samples.mean()) / (samples.std() + 1e-8)
    number, mean, var = moments(samples.flatten())
    return (samples - mean) / ((var * number / (number - 1)).sqrt() + 1e-8)
