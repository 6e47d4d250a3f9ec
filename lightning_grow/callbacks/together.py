"""What fails in one of several processes fails in all of them, with the same error."""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from lightning_grow.errors import GrowError

T = TypeVar("T")


def together(work: Callable[[], T]) -> T:
    """Do something in every process, and raise in each what was raised in any: no one waits for one that has gone.

    Args:
        work: Takes no part in collective calls itself, or all processes come as far in it.

    Raises:
        GrowError: The one of another process; of its class where it is a GrowError itself.
        Exception: Its own.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return work()
    own: Exception | None = None
    try:
        result = work()
    except Exception as error:
        own = error
    shown = own if own is None or isinstance(own, GrowError) else GrowError(f"{type(own).__name__}: {own}")
    all_shown: list[GrowError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(all_shown, shown)
    if own is not None:
        raise own
    for rank, other in enumerate(all_shown):
        if other is not None:
            raise other from GrowError(f"This is the error of process {rank}.")
    return result
