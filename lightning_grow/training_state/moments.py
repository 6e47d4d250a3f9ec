"""One parameter's optimizer state (Adam's moments, say), moved to where a growth has put the parameter's entries."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_grow.apply.apply import move_copy, move_state
from lightning_grow.files.checkpoint import is_finite
from lightning_grow.plan.growth_plan import GrowthPlan
from lightning_grow.private import tree_leaves

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

NEEDED = {"amsgrad": "max_exp_avg_sq", "centered": "grad_avg", "momentum": "momentum_buffer"}
"""Settings of a parameter group -> the kind of state that an optimizer with them does not do without."""

MADE: dict[str, tuple[str, ...]] = {
    "Adadelta": ("square_avg", "acc_delta"),
    "Adagrad": ("sum",),
    "Adam": ("exp_avg", "exp_avg_sq"),
    "Adamax": ("exp_avg", "exp_inf"),
    "AdamW": ("exp_avg", "exp_avg_sq"),
    "ASGD": ("ax", "eta", "mu"),
    "NAdam": ("exp_avg", "exp_avg_sq", "mu_product"),
    "RAdam": ("exp_avg", "exp_avg_sq"),
    "RMSprop": ("square_avg",),
    "Rprop": ("prev", "step_size"),
}
"""The kinds that torch's optimizers make at a parameter's first step, and miss ever after if some are not there."""

MOST_STEPS = 2.0**53
"""No optimizer counts further: in a float every step is told from the one before it up to here."""

PLAIN = (bool, int, float, str, bytes, type(None), Tensor)


class NotMoved(Exception):
    """A parameter's state has to start fresh; says why."""


def move_moments(
    name: str,
    old: Mapping[str, Any],
    weight: Tensor,
    plan: GrowthPlan,
    optimizer: str,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Move a parameter's whole state to the target's shape, or none of it: half a state breaks an optimizer.

    Args:
        name: The target parameter.
        old: The source parameter's state.
        weight: The target parameter's value.
        plan: The growth that moved the weights.
        optimizer: The optimizer's class.
        settings: Those of its parameter group.

    Returns:
        The state, every tensor of it in the target's shape.

    Raises:
        NotMoved: A kind of state has no rule, another shape than its parameter's or no finite value, or the settings
            ask for one that is not there.
    """
    item = plan.tensors[name]
    moved: dict[str, Any] = {}
    for kind, value in old.items():
        _check(kind, value, item.source_shape or ())
        if isinstance(value, Tensor) and value.is_complex() and not weight.is_complex():
            raise NotMoved(f"its state {kind!r} is complex, the parameter real")
    for kind, value in _multiply_factors(old, item.source_shape or ()).items():
        if _is_single(value):
            moved[kind] = value.clone() if isinstance(value, Tensor) else value
            continue
        tensor = _move_kind(name, kind, value, weight, plan, optimizer) if isinstance(value, Tensor) else None
        if tensor is None:
            raise NotMoved(f"no rule moves the state {kind!r} of {optimizer}")
        moved[kind] = _fill_second_moment(tensor, item.continues) if kind in AVERAGED_SQUARES else tensor
    for setting, kind in NEEDED.items():
        if moved and settings.get(setting) and kind not in moved and optimizer != "SGD":  # which makes it when needed
            raise NotMoved(f"the config asks for {setting}, and the checkpoint has no {kind!r}")
    for kind in ("step", *MADE[optimizer]) if moved and optimizer in MADE else ():
        if kind not in moved:
            raise NotMoved(f"{optimizer} needs the state {kind!r}, which the checkpoint's optimizer has not")
    return _factor_again(moved, old)


def _check(kind: str, value: Any, shape: tuple[int, ...]) -> None:
    if kind == "step" and not isinstance(value, Tensor):
        value = torch.tensor(value, dtype=torch.float64) if isinstance(value, (int, float)) else value
    if not isinstance(value, Tensor):
        if kind in POWERS or kind == "step":
            raise NotMoved(f"its state {kind!r} is of the type {type(value).__name__}")
        return
    if value.layout != torch.strided or value.is_meta or value.is_quantized:
        raise NotMoved(f"its state {kind!r} is no dense tensor")
    if value.dim() and not fits(kind, value, shape):
        raise NotMoved(f"its state {kind!r} has the shape {tuple(value.shape)}, the parameter {shape}")
    if not is_finite(value):
        raise NotMoved(f"its state {kind!r} holds NaN or infinity")
    if kind == "step" and value.dim() == 0 and not 0 <= float(value) <= MOST_STEPS:
        raise NotMoved(f"its state 'step' is {float(value):g}, which is no count of steps")


def fits(kind: str, value: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a state tensor has the shape that this kind has for a parameter; true of kinds that are not known."""
    for row, column in FACTORED:
        if kind in (row, column):
            dropped = len(shape) - (1 if kind == row else 2)
            short = (*shape[:dropped], *shape[dropped + 1 :])
            return tuple(value.shape) in (short, (*shape[:dropped], 1, *shape[dropped + 1 :]))
    return kind not in POWERS or tuple(value.shape) == shape


def _move_kind(name: str, kind: str, value: Tensor, weight: Tensor, plan: GrowthPlan, optimizer: str) -> Tensor | None:
    if (optimizer, kind) in COPIES:
        return move_copy(plan, name, value, weight)
    power = EXCEPTIONS.get((optimizer, kind), POWERS.get(kind))
    return None if power is None else move_state(plan, name, value, power)


def _is_single(value: Any) -> bool:
    """Whether a state has no shape to move: a number, or something that holds nothing but numbers."""
    return all(isinstance(leaf, PLAIN) and not (isinstance(leaf, Tensor) and leaf.dim()) for leaf in tree_leaves(value))


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


def _fill_second_moment(moment: Tensor, continues: Sequence[Tensor]) -> Tensor:
    """Start new entries, which are 0, at the mean of the moved ones in their row, else their column, else the tensor.

    At zero under an old `step` they would get no bias correction and move by up to 6.6 times the learning rate.

    Args:
        moment: Changed in place.
        continues: For every dimension, bool, which positions are the source's.
    """
    if all(bool(known.all()) for known in continues) or not all(bool(known.any()) for known in continues):
        return moment  # a number, too: it has no dimension
    rows, *others = (known.to(moment.device) for known in continues)
    columns = rows.new_ones(1)
    for known in others:
        columns = (columns[:, None] & known).flatten()
    flat = moment.reshape(len(rows), len(columns))
    along_rows, along_columns = flat.sum(1, keepdim=True) / columns.sum(), flat.sum(0, keepdim=True) / rows.sum()
    beside = torch.where(columns, along_columns, along_columns.sum() / columns.sum())
    new = ~(rows[:, None] & columns)
    return torch.where(new, torch.where(rows[:, None], along_rows, beside), flat, out=flat).view(moment.shape)
