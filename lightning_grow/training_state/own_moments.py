"""New entries of a tensor whose Adam moments begin at 0, under the step count of the old ones."""

import math
from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

FIRST, SECOND = ("exp_avg",), ("exp_avg_sq", "max_exp_avg_sq")


class OwnMoments:
    """Let the new entries of tensors gather their own moments, as a fresh Adam or AdamW would.

    Torch keeps one step count a tensor, so entries that begin later get no bias correction: their steps would be up to
    6.6 times too long. Here their steps are shortened by the ratio of the two corrections; once the estimates are good
    the corrections move into the moments, and nothing is left to do.

    Args:
        optimizer: Any optimizer; only Adam and its subclasses (AdamW) are touched.
        new: For each parameter, where its entries are new.
        begun: The step count of each tensor when its new entries began, by the parameter's number in the optimizer;
            filled by `forget`, and given back after a resume.

    References: Kingma and Ba, "Adam" (2015), section 3.
    """

    def __init__(self, optimizer: Optimizer, new: Mapping[Tensor, Tensor], begun: MutableMapping[int, float]) -> None:
        self.optimizer, self.new, self.begun = optimizer, new, begun
        groups = optimizer.param_groups if isinstance(optimizer, Adam) else []
        homes = [(parameter, group) for group, item in enumerate(groups) for parameter in item["params"]]
        self.numbers = {parameter: number for number, (parameter, _) in enumerate(homes) if parameter in new}
        self.groups = dict(homes)

    @torch.no_grad()
    def forget(self) -> None:
        """Set the moments of new entries to 0; from here on they count their own steps."""
        for parameter, number in self.numbers.items():
            state = self.optimizer.state[parameter]
            self.begun[number] = float(state.get("step", 0.0))
            for kind in {*FIRST, *SECOND} & state.keys():
                state[kind][self.new[parameter]] = 0

    def correction(self, parameter: Tensor) -> float:
        """The factor on the last step of new entries; 1 where the tensor is new itself, or has not stepped."""
        state = self.optimizer.state.get(parameter, {})
        if parameter not in self.numbers or not state:
            return 1.0
        first, second = corrections(float(state["step"]), self.begun[self.numbers[parameter]], self._betas(parameter))
        return first / math.sqrt(second)

    @torch.no_grad()
    def settle(self) -> None:
        """Give the moments of new entries the size that needs no correction under the tensor's step count."""
        for parameter, number in self.numbers.items():
            state = self.optimizer.state[parameter]
            settled = settle_moments(state, self.new[parameter], self.begun[number], self._betas(parameter))
            for kind, moment in settled.items():
                state[kind].copy_(moment)

    def _betas(self, parameter: Tensor) -> tuple[float, float]:
        """Those in force: a load or a scheduler may have changed them."""
        first, second = self.optimizer.param_groups[self.groups[parameter]]["betas"]
        return float(first), float(second)


def corrections(step: float, begun: float, betas: tuple[float, float]) -> tuple[float, float]:
    """What the first and second moments of entries that began later are to be multiplied by.

    Args:
        step: The tensor's step count.
        begun: Its step count when the entries began.
        betas: Adam's.

    >>> corrections(10.0, 0.0, (0.9, 0.999))
    (1.0, 1.0)
    """
    own = max(step - begun, 1.0)
    first, second = ((1 - beta ** max(step, 1.0)) / (1 - beta**own) for beta in betas)
    return first, second


def settle_moments(
    state: Mapping[str, Any], new: Tensor, begun: float, betas: tuple[float, float]
) -> dict[str, Tensor]:
    """Adam's moments with those of later entries corrected, so that the tensor's step count fits all of them."""
    if "step" not in state:
        return {}
    first, second = corrections(float(state["step"]), begun, betas)
    factors = {**dict.fromkeys(FIRST, first), **dict.fromkeys(SECOND, second)}
    return {
        kind: torch.where(new.to(state[kind].device), state[kind] * factor, state[kind])
        for kind, factor in factors.items()
        if kind in state
    }
