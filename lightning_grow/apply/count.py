"""What became of one tensor, in numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_grow.apply.apply import open_index, take
from lightning_grow.plan.cells import Kind
from lightning_grow.plan.tensor_plan import TensorPlan
from lightning_grow.report import TensorReport


def report_tensor(item: TensorPlan, grown: Tensor, explanation: str = "") -> TensorReport:
    """Count what became of one tensor."""
    copied = new = zeroed = 0
    factor = 1.0
    for index, cell in item.blocks():
        count = grown[open_index(item.at(index))].numel() if item.maps else 1
        if cell.kind in (Kind.KEPT, Kind.MEAN):
            copied += count
            factor = cell.factor if cell.factor != 1.0 else factor
            continue
        new += count
        zeroed += count - int(torch.count_nonzero(take(grown, item.at(index))))
    return TensorReport(
        name=item.name,
        source_name=item.source_name,
        source_shape=item.source_shape,
        target_shape=item.target_shape,
        axes=_axes(item),
        copied=copied,
        new=new,
        zeroed=zeroed,
        factor=factor,
        explanation=tuple(explanation.splitlines()),
    )


def _axes(item: TensorPlan) -> tuple[str, ...]:
    if item.source_shape is None:
        return ("new layer",)
    parts = []
    for dim, (old, new) in enumerate(zip(item.source_shape, item.target_shape, strict=True)):
        if old != new:
            role = "fan-in" if item.reads[dim] else "fan-out"
            parts.append(f"{role} {old} -> {new}")
    return tuple(parts)
