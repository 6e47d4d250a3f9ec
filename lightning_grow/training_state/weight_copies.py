"""Other copies of the weights in a checkpoint (averages, the best so far, those of user hooks): they grow with them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lightning_grow.apply.apply import Allocate, grow_state, in_memory
from lightning_grow.errors import RefusedGrowth
from lightning_grow.files.checkpoint import KEY
from lightning_grow.grow import Transfer
from lightning_grow.trace.names import parameters_of, strip_compiled

NOT_COPIES = {"state_dict", "optimizer_states", "lr_schedulers", "loops", "hyper_parameters", KEY}
WAY_OUT = "Save it under the full names of the parameters, or take it out of the checkpoint."


@dataclass(frozen=True)
class WeightCopies:
    """Finds and grows what in a checkpoint has the names and shapes of the source's weights.

    A mapping is a copy if tensors in it have the names and shapes of the source's, with a prefix more or less; tensors
    without such names are one if their shapes are those of the parameters of the source, or of a module of it, in their
    order (torch_ema).

    Args:
        transfer: The growth of the weights themselves.
        source: The module that wrote the checkpoint.
        target: The module that will load it.
        state: The source's state dict.
        seed: Of the fill; the same as that of the weights.
        allocate: Makes the grown copies.
    """

    transfer: Transfer
    source: nn.Module
    target: nn.Module
    state: Mapping[str, Any]
    seed: int
    allocate: Allocate = in_memory

    def grow_all(self, checkpoint: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Grow every copy in a checkpoint.

        Args:
            checkpoint: Not changed.

        Returns:
            What changes of its keys, and the place of every copy that grew.

        Raises:
            RefusedGrowth: Something is a copy in part, or of one of several modules.
        """
        places: list[str] = []
        rest = {key: item for key, item in checkpoint.items() if key not in NOT_COPIES}
        found = {key: self._grown(item, f"[{key!r}]", places) for key, item in rest.items()}
        return {key: item for key, item in found.items() if item is not checkpoint[key]}, places

    def _grown(self, value: Any, place: str, places: list[str]) -> Any:
        """The same with every copy in it grown; the very object where there is none."""
        if not isinstance(value, (Mapping, list, tuple)):
            return value
        items = dict(value.items() if isinstance(value, Mapping) else enumerate(value))
        tensors = {key: item for key, item in items.items() if isinstance(item, Tensor)}
        grown = self._grow_named(items, tensors, place)
        if grown is None and tensors and len(tensors) == len(items):
            grown = self._grow_ordered(items, place)
        if grown is not None:
            places.append(place)
        within = grown or {key: self._grown(item, f"{place}[{key!r}]", places) for key, item in items.items()}
        if within.keys() == items.keys() and all(within[key] is items[key] for key in items):
            return value
        return _of_type(value, within)

    # ---- by name
    def _grow_named(self, items: Mapping[Any, Any], tensors: Mapping[Any, Tensor], place: str) -> dict[Any, Any] | None:
        """The items, with those that have names of the source's grown; None where nothing is to grow."""
        keys = [key for key in tensors if isinstance(key, str)]
        pairs = {pair for key in keys for pair in self._prefixes(strip_compiled(key))}
        found = {pair: self._held(tensors, keys, pair) for pair in pairs}
        most = max(map(len, found.values()), default=0)
        best = {pair: held for pair, held in found.items() if len(held) == most and self._changes({*held.values()})}
        if not best:
            return None
        if len({frozenset(held.values()) for held in best.values()}) > 1:
            modules = " or ".join(sorted(repr(theirs) for _, theirs in best))
            raise RefusedGrowth(f"checkpoint{place} is a copy of {modules}: nothing says of which. {WAY_OUT}")
        (mine, theirs), held = min(best.items())
        others = {self.shapes[name] for name in self.grows - {*held.values()}}
        if strange := [key for key in tensors if key not in held and tuple(tensors[key].shape) in others]:
            raise RefusedGrowth(
                f"checkpoint{place} is a copy of the weights in part: {', '.join(map(repr, strange))} has the shape of "
                f"a weight that grows, and another name. {WAY_OUT}"
            )
        grown = self._grow_state({name: tensors[key] for key, name in held.items()})
        wanted = [name for name in grown if self._belongs(name, {*held.values()})]
        if lost := [name for name in wanted if not name.startswith(theirs)]:
            raise RefusedGrowth(f"checkpoint{place} has names without {theirs!r}, which {lost} do not have. {WAY_OUT}")
        rest = {key: item for key, item in items.items() if key not in held}
        return {**{mine + name.removeprefix(theirs): grown[name] for name in wanted}, **rest}

    def _prefixes(self, key: str) -> Iterator[tuple[str, str]]:
        """What may stand before one name, here and in the source."""
        parts = key.split(".")
        for count in range(len(parts)):
            if (rest := ".".join(parts[count:])) in self.shapes:
                yield key.removesuffix(rest), ""
        if len(parts) > 1:  # "weight" alone is any layer's
            yield from (("", name.removesuffix(key)) for name in self.shapes if name.endswith(f".{key}"))

    def _held(self, tensors: Mapping[Any, Tensor], keys: Iterable[str], pair: tuple[str, str]) -> dict[str, str]:
        """The keys that have both the name and the shape of one of the source's tensors."""
        mine, theirs = pair
        plain = {key: name for key in keys if (name := strip_compiled(key)).startswith(mine)}
        names = {key: theirs + name.removeprefix(mine) for key, name in plain.items()}
        return {key: name for key, name in names.items() if self.shapes.get(name) == tuple(tensors[key].shape)}

    def _changes(self, held: set[str]) -> bool:
        return not self.grows.isdisjoint(held) or any(self._belongs(name, held) for name in self.new)

    def _belongs(self, name: str, held: set[str]) -> bool:
        """Whether a tensor of the target is in the copy: its source is, or it is new among what is there as a whole."""
        source = self.transfer.plan.tensors[name].source_name
        if source is not None:
            return source in held
        parts = name.split(".")
        owners = (parts[:count] for count in range(len(parts), -1, -1))
        beside = ({item for item in self.parameters if item.split(".")[: len(owner)] == owner} for owner in owners)
        return next(filter(None, beside), {""}) <= held

    # ---- by order
    def _grow_ordered(self, items: Mapping[Any, Tensor], place: str) -> dict[Any, Any] | None:
        """The items, grown, where they have the shapes of parameters in their order; None where nothing is to grow."""
        shapes = [tuple(item.shape) for item in items.values()]
        if len(shapes) < 2 or max(map(len, shapes)) < 2:
            return None
        orders = dict(_orders(self.source))
        found = {way: names for way, names in orders.items() if [self.shapes.get(name) for name in names] == shapes}
        found = {way: names for way, names in found.items() if self._changes({*names})}
        if not found:
            return None
        names = next(iter(found.values()))
        targets = dict(_orders(self.target))
        ours = {tuple(targets.get(way, ())) for way in found}
        if (
            len({tuple(names) for names in found.values()}) > 1
            or len(ours) > 1
            or (len(next(iter(ours))) != len(items) and list(items) != list(range(len(items))))
        ):
            raise RefusedGrowth(f"checkpoint{place} is a copy of the weights without their names. {WAY_OUT}")
        grown = self._grow_state(dict(zip(names, items.values(), strict=True)))
        tensors = [grown[name] for name in ours.pop()]
        return dict(zip(items if len(items) == len(tensors) else range(len(tensors)), tensors, strict=True))

    # ---- both
    def _grow_state(self, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The target's whole state under plain names, of the copy where it holds a weight."""
        whole = self.source.state_dict(keep_vars=True)
        of = {id(whole[name]): held[plain] for name in whole if (plain := strip_compiled(name)) in held}
        state = {name: of.get(id(whole.get(name)), item) for name, item in self.state.items()}
        wide = in_float_type_of(held, self.target.state_dict())
        grown = grow_state(self.transfer.plan, state, wide, self.seed, self.allocate)
        share_new_outputs(self.transfer, grown)
        named = {strip_compiled(name): item for name, item in grown.items()}
        return {name: named[name] for name in named if name in self.transfer.plan.tensors}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The source's tensors."""
        tensors = {strip_compiled(name): item for name, item in self.state.items() if isinstance(item, Tensor)}
        return {name: tuple(item.shape) for name, item in tensors.items()}

    @cached_property
    def grows(self) -> set[str]:
        """The source's tensors that the target does not take as they are."""
        items = self.transfer.plan.tensors.values()
        return {item.source_name for item in items if item.source_name is not None and not item.is_plain}

    @cached_property
    def new(self) -> set[str]:
        """The target's tensors that the source does not have."""
        return {name for name, item in self.transfer.plan.tensors.items() if item.source_name is None}

    @cached_property
    def parameters(self) -> set[str]:
        """The source's parameters."""
        return {strip_compiled(name) for name, _ in self.source.named_parameters()}


def _orders(module: nn.Module) -> Iterator[tuple[tuple[str, bool], list[str]]]:
    """The parameters below every module in order, all and those that are trained; a single layer is any probe's."""
    parameters = parameters_of(module)
    for owner in [name for name, part in module.named_modules() if not name or list(part.children())]:
        prefix = strip_compiled(f"{owner}.") if owner else ""
        below = [name for name in parameters if name.startswith(prefix)]
        yield (prefix, False), below
        yield (prefix, True), [name for name in below if parameters[name].requires_grad]


def _of_type(value: Any, items: Mapping[Any, Any]) -> Any:
    """A container like another, with other items."""
    if isinstance(value, Mapping):
        other: Any = copy.copy(value)
        other.clear()
        other.update(items)
        return other
    return type(value)(*items.values()) if hasattr(value, "_fields") else type(value)(items.values())


def in_float_type_of(copy: Mapping[str, Any], own: Mapping[str, Any]) -> Mapping[str, Any]:
    """A state as it is where it has the one float type of another, else its floats in that type.

    >>> in_float_type_of({"w": torch.ones(1).double()}, {"w": torch.ones(2), "n": torch.tensor(1)})
    {'w': tensor([1., 1.], dtype=torch.float64), 'n': tensor(1)}
    """
    types, wanted = (
        {item.dtype for item in state.values() if isinstance(item, Tensor) and item.is_floating_point()}
        for state in (own, copy)
    )
    if len(wanted) != 1 or types == wanted:
        return own
    (dtype,) = wanted
    return {
        name: item.to(dtype) if isinstance(item, Tensor) and item.is_floating_point() else item
        for name, item in own.items()
    }


def share_new_outputs(result: Transfer, copy: Mapping[str, Tensor]) -> None:
    """New outputs may have been set after the fill (a probability, a deviation): the same in every copy."""
    names = {strip_compiled(name): name for name in copy}
    for name, dim in (member for group in result.plan.groups if group.output >= 0 for member in group.members):
        new = torch.nonzero(result.plan.tensors[name].maps[dim].low < 0).flatten()
        own = copy[names[name]]
        own.index_copy_(dim, new.to(own.device), result.state_dict[names[name]].index_select(dim, new).to(own))
