"""The settings of saved parameter groups: of use to the optimizer that takes them up."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_grow.errors import CheckpointError

MOST = 2.0**63
"""No setting is as great; torch's integers end here."""


def check_settings(states: Iterable[Mapping[str, Any]], optimizers: Iterable[Optimizer]) -> None:
    """Refuse parameter groups whose settings are of no use to the optimizer: other types, numbers that are not finite.

    Raises:
        CheckpointError: It names the setting.
    """
    for index, (state, optimizer) in enumerate(zip(states, optimizers, strict=False)):
        for number, group in enumerate(state.get("param_groups", ())):
            for key, built in optimizer.defaults.items():
                if key in group and not _alike(group[key], built):
                    raise CheckpointError(
                        f"['optimizer_states'][{index}]['param_groups'][{number}] has {key}={group[key]!r}, where the "
                        f"config's {type(optimizer).__name__} has {built!r}: it was damaged, or the run had diverged. "
                        "Resume from an earlier checkpoint."
                    )


def _alike(saved: Any, built: Any) -> bool:
    if isinstance(built, (list, tuple)):
        same = isinstance(saved, (list, tuple)) and len(saved) == len(built)
        return same and all(_alike(*pair) for pair in zip(saved, built, strict=True))
    if isinstance(built, (int, float, Tensor)) and not isinstance(built, bool):
        number = torch.as_tensor(saved, dtype=torch.float64) if isinstance(saved, (int, float, Tensor)) else None
        return number is not None and number.numel() == 1 and bool(number.abs() < MOST)
    return built is None or saved is None or isinstance(saved, type(built))
