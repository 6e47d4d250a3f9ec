"""Optimizer and scheduler state for a grown module: fresh, or moved along with the weights, name by name."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from lightning_grow.architecture import find_param_names, find_record, strip_compiled
from lightning_grow.errors import RefusedGrowth
from lightning_grow.plan import GrowthPlan
from lightning_grow.schedule_state import keep_schedules

Choice = Literal["reset", "transfer", "asymmetric"]
Schedule = Literal["reset", "keep"]

POWERS: dict[str, int] = {
    "momentum_buffer": 1,  # SGD, Muon
    "exp_avg": 1,  # Adam and its family, Lion
    "exp_avg_sq": 2,
    "max_exp_avg_sq": 2,
    "exp_inf": 1,  # Adamax: a running maximum of |gradient|
    "square_avg": 2,  # RMSprop, Adadelta
    "grad_avg": 1,
    "sum": 2,  # Adagrad
    "prev": 1,  # Rprop: the last gradient
    "step_size": 0,  # Rprop: a length in parameter space, whatever the gradient's scale
    "acc_delta": 0,  # Adadelta: squared updates
    "variance": 2,  # Adafactor, where it is not factored
}
"""Per kind of state, the power of the gradient's factor that its entries carry."""

EXCEPTIONS: dict[tuple[str, str], int] = {("RMSprop", "momentum_buffer"): 0}  # holds g / sqrt(v)
"""Kinds that mean something else in one optimizer."""

COPIES: tuple[tuple[str, str], ...] = (("ASGD", "ax"),)
"""Kinds that follow the weight itself, in one optimizer: averages of it."""

FACTORED = (("row_var", "col_var"), ("exp_avg_sq_row", "exp_avg_sq_col"))
"""Means of squared gradients over columns and over rows: Adafactor in torch, and in transformers."""

AVERAGED_SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "variance")
"""Kinds that divide the step: at 0 under an old step count they would let new entries overshoot."""

WHOLE = ("Adafactor", "Muon")
"""Optimizers whose step of one entry depends on all the others of its tensor."""

LINEAR = ("SGD", "ASGD")
"""Optimizers whose step is proportional to the gradient; the others' does not depend on its scale."""


@dataclass(frozen=True)
class CarriedState:
    """What the optimizers and schedulers of the grown module are to load.

    Args:
        optimizer_states: One state dict an optimizer; empty when all of them start fresh.
        lr_schedulers: One state dict a scheduler; empty when all of them start fresh.
        moved: How many parameters keep their moments.
        fresh: Parameters that had state in the checkpoint and start without, each with the reason.
        approximate: Parameters whose moments only nearly are those of an ungrown run, each with the reason.
        paced: Parameters that learn at another pace than in an ungrown run, each with the factor.
    """

    optimizer_states: list[dict[str, Any]] = field(default_factory=list)
    lr_schedulers: list[dict[str, Any]] = field(default_factory=list)
    moved: int = 0
    fresh: list[str] = field(default_factory=list)
    approximate: list[str] = field(default_factory=list)
    paced: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """What became of the moments, for the report: counts and names, no tensors."""
        return {name: getattr(self, name) for name in ("moved", "fresh", "approximate", "paced")}


def carry_optimizers(
    checkpoint: Mapping[str, Any],
    module: nn.Module,
    optimizers: Sequence[Optimizer],
    schedulers: Sequence[Any] | None,
    plan: GrowthPlan,
    source_order: Sequence[str],
    *,
    optimizer: Choice = "reset",
    scheduler: Schedule = "reset",
) -> CarriedState:
    """Rewrite the checkpoint's optimizer and scheduler states for the optimizers of the grown module.

    Args:
        checkpoint: Where the old states are read from, with the new weights; not changed.
        module: The grown module.
        optimizers: Its optimizers, as the current config builds them.
        schedulers: Its schedulers, likewise; None where they are not built, and kept ones are not compared.
        plan: The growth that moved the weights.
        source_order: The trainable parameters of the source, for checkpoints that name none.
        optimizer: "transfer" moves the moments where that is exact, "asymmetric" those of all entries that go on,
            "reset" drops them.
        scheduler: "keep" goes on with the checkpoint's schedule and its learning rates, "reset" starts the config's.

    Returns:
        What to load, every tensor of it of its parameter's shape.

    Raises:
        RefusedGrowth: A schedule cannot be kept with the optimizers that the config builds.
    """
    states = list(checkpoint.get("optimizer_states") or [])
    if not states or (optimizer, scheduler) == ("reset", "reset"):
        return CarriedState()
    names = _find_names(checkpoint, states, source_order)
    own_names = [find_param_names(module, item) for item in optimizers]
    templates = [item.state_dict() for item in optimizers[: len(states)]]
    fresh = [optimizer == "reset" or had != has for had, has in _find_classes(checkpoint, optimizers)]
    schedules = []
    if scheduler == "keep":
        sources = [[[_source_name(plan, name) for name in group] for group in groups] for groups in own_names]
        schedules = keep_schedules(checkpoint, templates, optimizers, schedulers, names, sources, only_rates=fresh)
    carried, weights = CarriedState(templates, schedules), _find_weights(checkpoint)
    moved = 0
    for index, template in enumerate(templates if optimizer != "reset" else ()):
        had, has = _find_classes(checkpoint, optimizers)[index]
        if fresh[index]:
            carried.fresh.append(f"all of optimizer {index}: it is {had} in the checkpoint, {has} in the config")
            continue
        old = _by_name(states[index], names[index])
        for position, name in enumerate(chain.from_iterable(own_names[index])):
            own = old.get(_source_name(plan, name))
            if own and (state := _move_state(name, own, weights[name], plan, has, optimizer, carried)):
                template["state"][position] = state
                moved += 1
    check_shapes(templates, optimizers, module)
    return replace(carried, moved=moved)


def check_shapes(states: Iterable[Mapping[str, Any]], optimizers: Iterable[Optimizer], module: nn.Module) -> None:
    """Refuse state whose tensors do not have their parameter's shape.

    ``Optimizer.load_state_dict`` compares counts only; a fused optimizer then writes outside the tensor's memory.
    Kinds of state that we do not know (quantised) may have shapes of their own and pass.

    Args:
        states: The state dicts about to be loaded, one an optimizer.
        optimizers: The optimizers, in the same order.
        module: Gives the names in the error.

    Raises:
        RefusedGrowth: A tensor has another shape than its parameter.
    """
    refused = []
    for state, optimizer in zip(states, optimizers, strict=False):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        names = chain.from_iterable(find_param_names(module, optimizer))
        ids = [key for group in state.get("param_groups", ()) for key in group["params"]]
        for key, parameter, name in zip(ids, parameters, names, strict=False):
            for kind, value in state.get("state", {}).get(key, {}).items():
                if isinstance(value, Tensor) and value.dim() and not _fits(kind, value, parameter):
                    refused.append(
                        f"{type(optimizer).__name__} state {kind!r} of {name!r} has the shape {tuple(value.shape)}, "
                        f"its parameter {tuple(parameter.shape)}. The checkpoint's optimizer belongs to another "
                        "architecture: remove 'optimizer_states' from it, or resume with the original file."
                    )
    if refused:
        raise RefusedGrowth(refused)


def _fits(kind: str, value: Tensor, parameter: Tensor) -> bool:
    shape = tuple(parameter.shape)
    for row, column in FACTORED:
        if kind in (row, column):
            dropped = len(shape) - (1 if kind == row else 2)
            short = (*shape[:dropped], *shape[dropped + 1 :])
            return tuple(value.shape) in (short, (*shape[:dropped], 1, *shape[dropped + 1 :]))
    return kind not in POWERS or tuple(value.shape) == shape


def learning_rates(states: Iterable[Mapping[str, Any]]) -> list[float]:
    """The learning rate of every parameter group in some optimizer state dicts (or optimizers), in order."""
    return [float(group["lr"]) for state in states for group in state["param_groups"] if "lr" in group]


def _find_classes(checkpoint: Mapping[str, Any], optimizers: Sequence[Optimizer]) -> list[tuple[str, str]]:
    """For every optimizer its class in the checkpoint (the config's where none is recorded) and in the config."""
    built = [type(optimizer).__name__ for optimizer in optimizers]
    recorded = find_record(checkpoint).get("optimizer_classes", [])
    return list(zip([*recorded, *built[len(recorded) :]], built, strict=False))


def _find_names(checkpoint: Mapping[str, Any], states: Sequence[Any], order: Sequence[str]) -> list[list[list[str]]]:
    """Parameter names per optimizer and group: recorded by us, by torch, or the source's own order; else empty."""
    recorded = find_record(checkpoint).get("optimizers") or []
    found = []
    for index, state in enumerate(states):
        groups = state["param_groups"]
        sizes = [len(group["params"]) for group in groups]
        if index < len(recorded) and [len(names) for names in recorded[index]] == sizes:
            found.append(recorded[index])
        elif all(isinstance(key, str) for group in groups for key in group["params"]):  # a consolidated checkpoint
            found.append([[strip_compiled(name) for name in group["params"]] for group in groups])
        elif all("param_names" in group for group in groups):
            found.append([[strip_compiled(name) for name in group["param_names"]] for group in groups])
        elif len(states) == 1 and len(groups) == 1 and sizes == [len(order)]:
            found.append([list(order)])
        else:
            found.append([[""] * size for size in sizes])
    return found


def _find_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights that the optimizers step: not an average that the checkpoint has in their place."""
    weights = checkpoint.get("current_model_state") or checkpoint["state_dict"]
    return {strip_compiled(name): tensor for name, tensor in weights.items()}


def _source_name(plan: GrowthPlan, name: str) -> str:
    item = plan.tensors.get(name)
    return (item and item.source_name) or ""


def _by_name(state: Mapping[str, Any], names: Sequence[Sequence[str]]) -> dict[str, dict[str, Any]]:
    ids = [key for group in state["param_groups"] for key in group["params"]]
    flat = [name for group in names for name in group]
    return {name: state["state"][key] for key, name in zip(ids, flat, strict=True) if name and key in state["state"]}


def _move_state(
    name: str,
    old: Mapping[str, Any],
    weight: Tensor,
    plan: GrowthPlan,
    optimizer: str,
    choice: Choice,
    carried: CarriedState,
) -> dict[str, Any]:
    """A parameter's whole state in the target's shape, or none of it: half a state breaks an optimizer."""
    item = plan.tensors[name]
    if choice == "transfer" and not item.is_one_to_one:
        carried.fresh.append(f"{name}: its units are not one-to-one with the source's")
        return {}
    moved: dict[str, Any] = {}
    for kind, value in _multiply_factors(old, item.source_shape or ()).items():
        if _is_single(value):
            moved[kind] = value.clone() if isinstance(value, Tensor) else value
            continue
        tensor = _move_kind(name, kind, value, weight, plan, optimizer) if isinstance(value, Tensor) else None
        if tensor is None:
            carried.fresh.append(f"{name}: no rule moves the state {kind!r} of {optimizer}")
            return {}
        moved[kind] = _fill_second_moment(tensor, item.new_entries()) if kind in AVERAGED_SQUARES else tensor
    if not item.is_one_to_one:
        carried.approximate.append(f"{name}: its units are not one-to-one with the source's")
    elif optimizer in WHOLE and not item.is_plain:
        carried.approximate.append(f"{name}: {optimizer} steps a tensor as a whole, so new entries bear on old ones")
    for factor in item.factors:
        pace = factor ** (-2 if optimizer in LINEAR else -1)
        carried.paced.append(f"{name}: its weights are {factor:.3g} times as large, so steps count {pace:.3g} times")
    return _factor_again(moved, old)


def _move_kind(name: str, kind: str, value: Tensor, weight: Tensor, plan: GrowthPlan, optimizer: str) -> Tensor | None:
    if (optimizer, kind) in COPIES:
        return plan.move_copy(name, value, weight)
    power = EXCEPTIONS.get((optimizer, kind), POWERS.get(kind))
    return None if power is None else plan.move(name, value, power)


def _is_single(value: Any) -> bool:
    """Whether a state has no shape to move: a number, or something that holds no tensor with dimensions."""
    return not any(isinstance(leaf, Tensor) and leaf.dim() for leaf in tree_leaves(value))


def _multiply_factors(state: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """Factored squares as one tensor of the parameter's shape: rows times columns over their mean."""
    for row, column in FACTORED:
        if row in state and column in state:
            rows, columns = state[row].reshape(*shape[:-1], 1), state[column].reshape(*shape[:-2], 1, shape[-1])
            mean = rows.mean(-2, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
            rest = {kind: value for kind, value in state.items() if kind not in (row, column)}
            return {**rest, "variance": rows * columns / mean}
    return dict(state)


def _factor_again(moved: dict[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    for row, column in FACTORED:
        if row in old and column in old:
            variance = moved.pop("variance")
            keep = old[row].dim() == variance.dim()
            moved |= {row: variance.mean(-1, keepdim=keep), column: variance.mean(-2, keepdim=keep)}
    return moved


def _fill_second_moment(moment: Tensor, new: Tensor) -> Tensor:
    """Start new entries at the mean of the moved ones in their row, else their column, else the tensor.

    At zero under an old `step` they would get no bias correction and move by up to 6.6 times the learning rate.
    """
    known = (~new).to(moment.dtype)
    if not new.any() or not known.any():
        return moment
    flat, weight = moment.reshape(len(moment), -1), known.reshape(len(moment), -1)
    fill = (flat * weight).sum() / weight.sum() * torch.ones_like(flat)
    if moment.dim() > 1:
        for axis in (0, 1):  # rows win: they are written last
            count = weight.sum(axis, keepdim=True)
            mean = (flat * weight).sum(axis, keepdim=True) / count.clamp(min=1)
            fill = torch.where(count > 0, mean, fill)
    return torch.where(new, fill.reshape(moment.shape), moment)
