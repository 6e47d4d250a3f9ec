"""What a strategy is: the answers to three questions, and a registry of named answers."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from lightning_grow.errors import UnknownStrategy


@dataclass(frozen=True)
class Block:
    """Entries of one tensor that no source entry gives.

    Args:
        name: The tensor's name.
        initial: The target's own values there, any shape.
        source: The source's whole tensor, None where the source has none of that name.
        role: "written" for the entries that make new units, "read" for those with which new units are read, "state"
            for a buffer's.
        is_bias: Whether the tensor has one dimension.
        generator: The seeded generator for random entries.
    """

    name: str
    initial: Tensor
    source: Tensor | None
    role: str
    is_bias: bool
    generator: torch.Generator

    def normal(self, std: float) -> Tensor:
        """Gaussian entries with a standard deviation, in the block's shape and type."""
        dtype = torch.float64 if self.initial.dtype is torch.float64 else torch.float32
        return torch.randn(self.initial.shape, generator=self.generator, dtype=dtype).mul_(std).to(self.initial.dtype)


class Strategy:
    """Where new units come from and how they are read; subclass, override, register.

    The three questions:
        1. `units` and `shares`: which source unit does each new unit copy, if any, and with what share is it read?
        2. `fill`: what are the entries that no source gives?
        3. `new_layer`: what does a layer do that only the target has?

    A strategy with `function_preserving = True` promises equal outputs: the plan then decides which entries have to be
    0, a mean or rescaled (its decisions win over `fill`), refuses what cannot be kept, and the check enforces it.
    """

    name: ClassVar[str] = ""
    function_preserving: ClassVar[bool] = False
    transfers: ClassVar[bool] = True

    def __init_subclass__(cls) -> None:
        cls.name = cls.__dict__.get("name", cls.__name__)  # what reports call it, until it is registered

    def units(self, old: int, new: int, generator: torch.Generator) -> Tensor | None:
        """Say where new units come from.

        Args:
            old: Units of the source.
            new: Units of the target, larger than `old`.
            generator: Seeded.

        Returns:
            The source unit of each new unit, float64 (new - old,): a whole number copies that unit, a fraction
            interpolates between two neighbours. None where new units have no source.
        """
        del old, new, generator  # Unused: by default new units have no source.
        return None

    def shares(self, source: Tensor, generator: torch.Generator) -> Tensor | None:
        """Say with what share every unit is read when some are copies.

        Args:
            source: The source unit of every target unit, int64 (new,).
            generator: Seeded.

        Returns:
            float64 (new,), summing to 1 over the copies of each source unit; None to read every copy in full.
        """
        del generator  # Unused: the default split is fixed.
        return unequal_shares(source)

    def fill(self, block: Block) -> Tensor:
        """Return the entries of `block`; by default the target's own initial values."""
        return block.initial

    def new_layer(self, block: Block) -> Tensor | None:
        """Return the entries of a tensor that only the target has; None for an identity where there is one."""
        del block  # Unused: an identity by default.
        return None


def unequal_shares(source: Tensor) -> Tensor:
    """Split 1 among the copies of each unit in unequal parts, so that copies do not stay twins.

    The k-th of m copies gets a part proportional to m + 2k - 1: 1/4 and 3/4 for two, 1/6, 2/6, 3/6 for three.

    >>> unequal_shares(torch.tensor([0, 1, 0])).tolist()
    [0.375, 1.0, 0.625]
    """
    counts = torch.bincount(source)
    rank = torch.zeros(len(source), dtype=torch.float64)
    seen = torch.zeros(len(counts), dtype=torch.float64)
    for position, unit in enumerate(source.tolist()):
        rank[position] = seen[unit]
        seen[unit] += 1
    number = counts[source].double()
    weight = torch.where(number > 1, 0.75 + 0.5 * rank / (number - 1).clamp(min=1), 1.0)
    total = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, source, weight)
    return weight / total[source]


_REGISTRY: dict[str, type[Strategy]] = {}
_Registered = TypeVar("_Registered", bound=type[Strategy])


def register_strategy(name: str) -> Callable[[_Registered], _Registered]:
    """Register a `Strategy` subclass under a name, for `strategy="name"` everywhere.

    Args:
        name: A new name.

    Returns:
        A class decorator.

    Raises:
        ValueError: The name is taken by another class.

    >>> @register_strategy("doctest_zeros")
    ... class Zeros(Strategy):
    ...     def fill(self, block): return torch.zeros_like(block.initial)
    >>> "doctest_zeros" in list_strategies()
    True
    >>> del _REGISTRY["doctest_zeros"]
    """

    def enter(cls: _Registered) -> _Registered:
        taken = _REGISTRY.get(name)
        if taken is not None and taken is not cls:
            raise ValueError(
                f"strategy name '{name}' is taken by {taken.__module__}.{taken.__qualname__}; "
                f"register {cls.__module__}.{cls.__qualname__} under another name."
            )
        cls.name = name
        _REGISTRY[name] = cls
        return cls

    return enter


def _load_entry_points() -> None:
    """Import the strategies that other packages declare in the group lightning_grow.strategies."""
    for point in entry_points(group="lightning_grow.strategies"):
        if point.name not in _REGISTRY:
            register_strategy(point.name)(point.load())


def list_strategies() -> list[str]:
    """Return the registered names, sorted.

    >>> list_strategies()
    ['copy_and_extend', 'interpolate', 'net2wider', 'preserve', 'random', 'zero_pad']
    """
    _load_entry_points()
    return sorted(_REGISTRY)


def find_strategy(strategy: str | Strategy) -> Strategy:
    """Return the strategy of that name (with its defaults), or the strategy itself.

    Raises:
        UnknownStrategy: No strategy has that name; the message has the nearest one.

    >>> find_strategy("net2widr")
    Traceback (most recent call last):
    lightning_grow.errors.UnknownStrategy: no strategy named 'net2widr'. Did you mean 'net2wider'? Registered: ...
    """
    if isinstance(strategy, Strategy):
        return strategy
    names = list_strategies()
    if strategy not in names:
        near = difflib.get_close_matches(str(strategy), names, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise UnknownStrategy(f"no strategy named {strategy!r}.{hint} Registered: {', '.join(names)}.")
    return _REGISTRY[strategy]()
