"""What the optimizer states in a checkpoint are the states of: which parameters, and what class of optimizer."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_grow.errors import RefusedGrowth
from lightning_grow.files.record import find_record
from lightning_grow.plan.growth_plan import GrowthPlan
from lightning_grow.trace.names import strip_compiled
from lightning_grow.training_state.moments import fits
from lightning_grow.training_state.schedules import SCHEDULED, Groups

PARAMETERS = ("params", "param_names")


@dataclass(frozen=True)
class SavedOptimizer:
    """One optimizer of a checkpoint.

    Args:
        state: Its state dict.
        names: The source's parameters in every group; "" where they are not known.
        kind: The name of its class; "" where it is not recorded.
    """

    state: Mapping[str, Any]
    names: list[list[str]]
    kind: str

    @property
    def groups(self) -> list[Mapping[str, Any]]:
        """Its parameter groups; none of a wrapper that saves itself in a way of its own."""
        return list(self.state.get("param_groups", ()))

    @cached_property
    def states(self) -> dict[str, dict[str, Any]]:
        """The state of every parameter that has one, by the parameter's name."""
        keys = chain.from_iterable(group["params"] for group in self.groups)
        states = self.state.get("state", {})
        return {
            name: states[key]
            for key, name in zip(keys, chain.from_iterable(self.names), strict=True)
            if name and key in states
        }

    @property
    def is_known(self) -> bool:
        """Whether anything is known of whose state this is, or there is none."""
        return any(chain.from_iterable(self.names)) or self.state.get("state") == {}

    def find_group(self, name: str) -> Mapping[str, Any]:
        """The settings of a parameter."""
        return next(group for group, names in zip(self.groups, self.names, strict=True) if name in names)

    def differs_from(self, optimizer: Optimizer) -> str:
        """Say how this is of another class than an optimizer; nothing where it is of the same one."""
        has = type(optimizer).__name__
        if self.kind:
            return "" if self.kind == has else f"it is {self.kind} in the checkpoint, {has} in the config"
        own = {key for group in optimizer.param_groups for key in group}
        other = sorted({key for group in self.groups for key in group} - own - {*SCHEDULED, *PARAMETERS})
        return f"it has {', '.join(other)} in the checkpoint, which {has} in the config has not" if other else ""

    def find_progress(self, optimizer: Optimizer) -> set[str]:
        """What the optimizer counts for a whole group: entries that are neither settings nor a scheduler's.

        What the config gives its groups by itself (a name, a scale of the rate) has the same value there again.

        >>> import torch
        >>> adam = torch.optim.Adam([torch.zeros(1)])
        >>> SavedOptimizer(adam.state_dict(), [[""]], "").find_progress(adam)
        set()
        """
        classes = type(optimizer).__mro__[:-1]  # all but object
        settings = {name for cls in classes for name in inspect.signature(cls).parameters}
        counts = {key for group in self.groups for key in group} - settings - {*SCHEDULED, *PARAMETERS, "name"}
        return {
            key
            for key in counts
            if not all(
                any(_equal(group[key], own[key]) for own in optimizer.param_groups if key in own)
                for group in self.groups
                if key in group
            )
        }


def find_saved(checkpoint: Mapping[str, Any], expected: Sequence[Groups], plan: GrowthPlan) -> list[SavedOptimizer]:
    """The optimizers of a checkpoint, in order.

    Args:
        checkpoint: Names may be recorded by us or by torch; parameters may also have their names as keys (consolidated
            checkpoints of sharded runs).
        expected: Where none of that is so: the source's parameters in the order of the config's groups. They are taken
            if all counts and shapes agree, each group in the order that the file's weights have.
        plan: Knows the source's shapes.

    Raises:
        RefusedGrowth: The weights stand in another order in the file, and the config's groups in one of their own.
    """
    states, record = checkpoint["optimizer_states"], find_record(checkpoint)
    was, now = _source_names(checkpoint["state_dict"], plan), _source_names(plan.tensors, plan)
    kinds = [*record.get("optimizer_classes", []), *[""] * len(states)]
    saved = []
    for index, (state, kind) in enumerate(zip(states, kinds, strict=False)):
        recorded, there = _at(record.get("optimizers"), index), _at(expected, index)
        names = _find_names(state, recorded) or _guess_names(state, there, was, now, plan)
        saved.append(SavedOptimizer(state, names, kind))
    return saved


def looks_foreign(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a group's states have not the shapes of some of the file's weights, in their order: they may be others'.

    >>> weights = {"a": torch.zeros(2, 3), "b": torch.zeros(2), "c": torch.zeros(1, 2)}
    >>> states = {0: {"exp_avg": torch.zeros(2, 3)}, 1: {"exp_avg": torch.zeros(1, 2)}}
    >>> group = {"params": [0, 1]}
    >>> looks_foreign({"state_dict": weights, "optimizer_states": [{"state": states, "param_groups": [group]}]})
    False
    >>> group["params"].reverse()
    >>> looks_foreign({"state_dict": weights, "optimizer_states": [{"state": states, "param_groups": [group]}]})
    True
    """
    for state in checkpoint.get("optimizer_states", ()):
        for group in state.get("param_groups", ()):
            weights = iter([item.shape for item in checkpoint["state_dict"].values() if isinstance(item, Tensor)])
            for key in group["params"]:
                kinds = state.get("state", {}).get(key, {}).values()
                shapes = {item.shape for item in kinds if isinstance(item, Tensor) and item.dim()}
                if shapes and not any(shapes == {shape} for shape in weights):  # takes up to the first that fits
                    return True
    return False


def in_order_of(source: Iterable[str], state: Mapping[str, Any], plan: GrowthPlan) -> dict[str, Any]:
    """A grown state in the order of the file: where an optimizer's parameters have no names, that tells which they are.

    Args:
        source: The names in the file.
        state: The grown state.
        plan: What became of which.
    """
    places = {strip_compiled(name): place for place, name in enumerate(source)}
    origins = {name: item.source_name for name, item in plan.tensors.items()}
    return dict(
        sorted(state.items(), key=lambda item: places.get(origins.get(strip_compiled(item[0])) or "", len(places)))
    )


def _source_names(names: Iterable[str], plan: GrowthPlan) -> list[str]:
    items = (plan.tensors.get(strip_compiled(name)) for name in names)
    return [item.source_name for item in items if item is not None and item.source_name is not None]


def _reordered(names: Sequence[str], was: Sequence[str], now: Sequence[str]) -> list[str]:
    """The parameters of a group as they stood when it was saved.

    >>> _reordered(["key", "", "query"], ["query", "out", "key"], ["key", "query", "out"])
    ['query', '', 'key']
    """
    here = [name for name in names if name]
    if not {*here} <= {*was} or sorted(here, key=was.index) == sorted(here, key=now.index):
        return list(names)
    if here != sorted(here, key=now.index):
        raise RefusedGrowth(
            "the checkpoint does not name the parameters of its optimizer, its weights stand in another order than the "
            f"module's ({here[0]!r} is one that moved), and the config's optimizer has them in an order of its own: "
            "whose moments are whose is unknown. Put the layers back into the order that the file has, or start fresh: "
            "optimizer='reset'."
        )
    there = iter(sorted(here, key=was.index))
    return [next(there) if name else "" for name in names]


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one.cpu(), other.cpu())
    return bool(one == other)


def _at(items: Sequence[Groups] | None, index: int) -> Groups:
    return items[index] if items and index < len(items) else []


def _find_names(state: Mapping[str, Any], recorded: Groups) -> list[list[str]]:
    """The names that the checkpoint gives; none where it gives none."""
    groups = state.get("param_groups", ())
    if [len(names) for names in recorded] == [len(group["params"]) for group in groups]:
        return [list(names) for names in recorded]
    if all(isinstance(key, str) for group in groups for key in group["params"]):
        return [[strip_compiled(name) for name in group["params"]] for group in groups]
    if all("param_names" in group for group in groups):
        return [[strip_compiled(name) for name in group["param_names"]] for group in groups]
    return []


def _guess_names(
    state: Mapping[str, Any], expected: Groups, was: Sequence[str], now: Sequence[str], plan: GrowthPlan
) -> list[list[str]]:
    """The config's parameters, where all counts and shapes agree; no names where they do not."""
    sizes = [len(group["params"]) for group in state.get("param_groups", ())]
    if [len(names) for names in expected] == sizes:
        assumed = SavedOptimizer(state, [_reordered(names, was, now) for names in expected], "")
        if _have_the_shapes(assumed, plan):
            return assumed.names
    return [[""] * size for size in sizes]


def _have_the_shapes(saved: SavedOptimizer, plan: GrowthPlan) -> bool:
    shapes = {item.source_name: item.source_shape for item in plan.tensors.values()}
    return all(
        fits(kind, value, shapes[name] or ())
        for name, state in saved.states.items()
        for kind, value in state.items()
        if isinstance(value, Tensor) and value.dim()
    )
