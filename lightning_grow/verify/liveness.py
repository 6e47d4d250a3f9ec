"""Units that can never learn: dead ones, and twins."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_grow.plan.growth_plan import GrowthPlan
from lightning_grow.plan.unit_group import UnitGroup
from lightning_grow.trace.names import strip_compiled
from lightning_grow.trace.outputs import Forward, named_outputs
from lightning_grow.trace.tracer import call_arguments


@dataclass(frozen=True)
class Liveness:
    """How the new units of one group fare in a short training.

    Args:
        new: New units.
        idle: Those of them that no gradient reached. A ReLU that is off on the whole batch is idle too.
        twins: Those of them that still equal another unit in every tensor.
    """

    new: int
    idle: int
    twins: int


def measure_liveness(
    plan: GrowthPlan,
    module: nn.Module,
    example_inputs: Any,
    forward: Forward | None = None,
    steps: int = 2,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> dict[str, Liveness]:
    """Train a copy of a grown module for a few Adam steps and see which of its new units take part.

    The loss is a random linear function of the outputs, so that every output sends a gradient.

    Args:
        plan: The plan that grew the module.
        module: The grown module; not changed.
        example_inputs: Arguments of its forward, as for `grow`; a larger batch finds more units active.
        forward: A callable `(module, *inputs)` instead of its own forward.
        steps: Optimizer steps.
        learning_rate: Of Adam.
        seed: Of the loss.

    Returns:
        One entry per unit group.

    >>> from lightning_grow import grow, plan_growth
    >>> small, large = (nn.Sequential(nn.Linear(3, n), nn.Tanh(), nn.Linear(n, 2)) for n in (4, 6))
    >>> x = torch.ones(5, 3)
    >>> plan = plan_growth(small, large, example_inputs=(x,))
    >>> _ = grow(small, large, example_inputs=(x,))
    >>> measure_liveness(plan, large, (x,))
    {"'0.weight' axis 0": Liveness(new=2, idle=0, twins=0)}
    """
    trial = copy.deepcopy(module).eval()
    args, kwargs = call_arguments(example_inputs)
    call = forward if forward is not None else type(trial).__call__
    optimizer = torch.optim.Adam(trial.parameters(), lr=learning_rate)
    reached = {name: torch.zeros(parameter.shape, dtype=torch.bool) for name, parameter in trial.named_parameters()}
    with torch.random.fork_rng(devices=[]):
        for _ in range(steps):
            torch.manual_seed(seed)
            optimizer.zero_grad()
            outputs = [leaf for leaf in named_outputs(call(trial, *args, **kwargs)).values() if leaf.requires_grad]
            sum((leaf * torch.randn_like(leaf)).sum().real for leaf in outputs).backward()  # type: ignore[union-attr]
            for name, parameter in trial.named_parameters():
                if parameter.grad is not None:
                    reached[name] |= parameter.grad.cpu() != 0
            optimizer.step()
    state = {strip_compiled(name): tensor for name, tensor in trial.state_dict().items()}
    masks = {strip_compiled(name): mask for name, mask in reached.items()}
    return {group.name: _liveness(plan, group, masks, state) for group in plan.groups}


def _liveness(
    plan: GrowthPlan, group: UnitGroup, reached: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> Liveness:
    idle = count_idle(group, reached)
    return Liveness(group.new - group.old, idle, _count_twins(_fingerprints(plan, group, state), group.old))


def count_idle(group: UnitGroup, reached: Mapping[str, Tensor]) -> int:
    """Count the new units of a group none of whose entries is in `reached`, bool by parameter."""
    alive = torch.zeros(group.new, dtype=torch.bool)
    for (name, dim), units in zip(group.members, group.units, strict=True):
        if name in reached:
            touched = reached[name].movedim(dim, 0).reshape(len(units), -1).any(1)
            alive[units[touched & (units >= 0)]] = True
    return int((~alive[group.old :]).sum())


def count_dead_and_twins(plan: GrowthPlan, state: Mapping[str, Tensor]) -> tuple[dict[str, int], dict[str, int]]:
    """Count the new units of every group that no gradient can reach, or that equal another unit.

    A unit with zero fan-in and zero fan-out gets no gradient where the activation keeps 0 at 0 (ReLU, tanh, GELU).
    A unit whose entries equal another unit's in every tensor gets that unit's gradient forever.

    Args:
        plan: The plan.
        state: The grown state, by the plan's names.

    Returns:
        Group name -> dead units, group name -> twins.
    """
    dead: dict[str, int] = {}
    twins: dict[str, int] = {}
    for group in plan.groups:
        if group.output >= 0:  # the loss reaches each output by itself, however alike they begin
            continue
        prints = _fingerprints(plan, group, state)
        new = prints[group.old :]
        dead[group.name] = int((new == 0).all(1).sum())
        twins[group.name] = _count_twins(prints, group.old)
    return dead, twins


def _count_twins(prints: Tensor, old: int) -> int:
    _, inverse, counts = torch.unique(prints, dim=0, return_inverse=True, return_counts=True)
    return int((counts[inverse[old:]] > 1).sum())


def _fingerprints(plan: GrowthPlan, group: UnitGroup, state: Mapping[str, Tensor]) -> Tensor:
    """Two random projections of every unit's entries in each weight, float64 (units, 2 x members), rounded."""
    generator = torch.Generator().manual_seed(0)
    columns, digits = [], 1e9  # what rounding leaves of a sum of products
    for (name, dim), units in zip(group.members, group.units, strict=True):
        tensor = state[name] if name in plan.tensors and name in state else None
        if tensor is None or not tensor.is_floating_point() or plan.tensors[name].is_state:
            continue
        if tensor.dim() == 1 and not bool((plan.tensors[name].maps[0].low < 0).any()):
            continue
        rows = tensor.detach().movedim(dim, 0).reshape(tensor.shape[dim], -1).cpu()
        rows = rows if rows.dtype is torch.float64 else rows.float()  # no second copy of a float32 weight
        probe = torch.randn(rows.shape[1], 2, generator=generator, dtype=torch.float64).to(rows.dtype)
        inside = units >= 0
        place = torch.zeros(len(units), 1, dtype=torch.float64)
        place[inside, 0] = _rank_within(units[inside]).double() + 1
        summed = torch.zeros(group.new, 2, dtype=torch.float64)
        made = torch.stack(
            [rows.mv(column) for column in probe.T.contiguous()], 1
        )  # a product by a thin matrix is slow
        summed.index_add_(0, units[inside], made.double()[inside] * place[inside])
        columns.append(summed)
        digits = min(digits, 1e9 if rows.dtype is torch.float64 else 1e5)
    if not columns:
        return torch.arange(1, group.new + 1, dtype=torch.float64)[:, None]
    prints = torch.cat(columns, 1)
    size = prints.abs().amax(0, keepdim=True).clamp(min=1e-300)
    return (prints / size * digits).round()


def _rank_within(units: Tensor) -> Tensor:
    """The how-manieth position of its unit each position is."""
    order = torch.argsort(units, stable=True)
    ordered = units[order]
    starts = torch.searchsorted(ordered, ordered, right=False)
    rank = torch.empty_like(units)
    rank[order] = torch.arange(len(units)) - starts
    return rank
