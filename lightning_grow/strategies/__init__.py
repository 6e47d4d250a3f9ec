"""The strategies: one file each, found by name."""

from lightning_grow.strategies import copy_and_extend, interpolate, net2wider, preserve, random, zero_pad
from lightning_grow.strategies.base import Block, Strategy, find_strategy, list_strategies, register_strategy

__all__ = [
    "Block",
    "Strategy",
    "copy_and_extend",
    "find_strategy",
    "interpolate",
    "list_strategies",
    "net2wider",
    "preserve",
    "random",
    "register_strategy",
    "zero_pad",
]
