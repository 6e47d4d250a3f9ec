"""Leave a module as it was: a forward may fill caches, store activations, count, register buffers and layers."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import random
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from lightning_grow.private import version

MOST_HELD = 1000
_CACHE = type(functools.cache(lambda: None))
_CONTAINERS = (dict, OrderedDict, defaultdict, list, deque, set)


@contextlib.contextmanager
def untouched_attributes(*owners: Any) -> Iterator[list[Any]]:
    """Take back what is added to, replaced in or removed from modules and other objects, and the containers they hold.

    It yields what it will take back: to keep the changes after all, empty it.
    """
    kept: list[Any] = [(item, copy.copy(item)) for item in _containers(owners)]
    try:
        yield kept
    finally:
        for item, content in kept:
            item.clear()
            item.extend(content) if isinstance(item, (list, deque)) else item.update(content)


@contextlib.contextmanager
def untouched_contents(module: nn.Module) -> Iterator[None]:
    """Take back what is written into the tensors that a module holds; parameters are not looked after.

    Nor are the contents of large containers (a replay buffer): no forward writes into thousands of tensors.
    """
    small = (item for item in _containers([module]) if len(item) <= MOST_HELD)
    held = [leaf for item in small for leaf in _parts(item) if isinstance(leaf, Tensor)]
    kept = [
        (item, version(item), item.detach().clone())
        for item in {id(item): item for item in held if not isinstance(item, nn.Parameter)}.values()
        if not item.is_meta and not item.is_inference()  # inference tensors can't be written into here
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for item, before, content in kept:
                if version(item) != before:  # a write that is not needed would spoil a stored graph
                    item.copy_(content)


@contextlib.contextmanager
def untouched_caches() -> Iterator[None]:
    """Empty the `functools` caches that take tensors in between: what a traced forward computes are stand-ins."""
    before = {cache: cache.cache_info().misses for cache in _find_caches(len(sys.modules))}
    try:
        yield
    finally:
        for cache, misses in before.items():
            if cache.cache_info().misses != misses and _holds_tensors(cache):
                cache.cache_clear()


@functools.lru_cache(maxsize=1)
def _find_caches(modules: int) -> list[Any]:
    """All there are; with every import there may be more."""
    return [item for item in gc.get_objects() if type(item) is _CACHE]


def _holds_tensors(cache: Any) -> bool:
    waiting = gc.get_referents(cache)
    while waiting:
        item = waiting.pop()
        if isinstance(item, Tensor):
            return True
        if type(item) in (dict, list, tuple):
            waiting.extend(gc.get_referents(item))
    return False


def _containers(owners: Iterable[Any]) -> list[Any]:
    """The attributes of objects, of modules and of all in them, as dicts, and every container in them."""
    found: dict[int, Any] = {}
    parts = (owner.modules() if isinstance(owner, nn.Module) else [owner] for owner in owners)
    waiting: list[Any] = [vars(part) for part in chain.from_iterable(parts)]
    while waiting:
        item = waiting.pop()
        if type(item) in _CONTAINERS and id(item) not in found:
            found[id(item)] = item
            waiting.extend(_parts(item))
    return list(found.values())


def _parts(item: Any) -> list[Any]:
    return list(item.values() if isinstance(item, dict) else item)


@contextmanager
def untouched_rng() -> Iterator[None]:
    """Put the random states of Python, NumPy and torch back as they were."""
    python, numpy = random.getstate(), sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy is not None else None
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            if numpy is not None:
                numpy.random.set_state(numpy_state)
