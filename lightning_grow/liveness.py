"""Units that can never learn: dead ones, and twins."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_grow.plan import GrowthPlan, UnitGroup


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
        prints = _fingerprints(plan, group, state)
        new = prints[group.old :]
        dead[group.name] = int((new == 0).all(1).sum())
        _, inverse, counts = torch.unique(prints, dim=0, return_inverse=True, return_counts=True)
        twins[group.name] = int((counts[inverse[group.old :]] > 1).sum())
    return dead, twins


def _fingerprints(plan: GrowthPlan, group: UnitGroup, state: Mapping[str, Tensor]) -> Tensor:
    """Two random projections of every unit's entries in each weight, float64 (units, 2 x members), rounded."""
    generator = torch.Generator().manual_seed(0)
    columns = []
    for (name, dim), units in zip(group.members, group.units, strict=True):
        tensor = state[name] if name in plan.tensors and name in state else None
        if tensor is None or not tensor.is_floating_point() or plan.tensors[name].is_state:
            continue
        if tensor.dim() == 1 and not bool((plan.tensors[name].maps[0].low < 0).any()):
            continue
        rows = tensor.detach().movedim(dim, 0).reshape(tensor.shape[dim], -1).double().cpu()
        inside = units >= 0
        probe = torch.randn(rows.shape[1], 2, generator=generator, dtype=torch.float64)
        place = torch.zeros(len(units), 1, dtype=torch.float64)
        place[inside, 0] = _rank_within(units[inside]).double() + 1
        summed = torch.zeros(group.new, 2, dtype=torch.float64)
        summed.index_add_(0, units[inside], (rows @ probe)[inside] * place[inside])
        columns.append(summed)
    if not columns:
        return torch.arange(1, group.new + 1, dtype=torch.float64)[:, None]
    prints = torch.cat(columns, 1)
    size = prints.abs().amax(0, keepdim=True).clamp(min=1e-300)
    return (prints / size * 1e9).round()


def _rank_within(units: Tensor) -> Tensor:
    """The how-manieth position of its unit each position is."""
    order = torch.argsort(units, stable=True)
    ordered = units[order]
    starts = torch.searchsorted(ordered, ordered, right=False)
    rank = torch.empty_like(units)
    rank[order] = torch.arange(len(units)) - starts
    return rank
