"""New entries of a tensor whose Adam moments begin at 0, under the step count of the old ones."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer


class OwnMoments:
    """Let the new entries of tensors gather their own moments, as a fresh Adam or AdamW would.

    Torch keeps one step count a tensor, so entries that begin later get no bias correction: their steps would be up to
    6.6 times too long. Here their steps are shortened by the ratio of the two corrections; once the estimates are good
    the corrections move into the moments, and nothing is left to do.

    Args:
        optimizer: Any optimizer; only Adam and its subclasses (AdamW) are touched.
        new: For each parameter, where its entries are new.

    References: Kingma and Ba, "Adam" (2015), section 3.
    """

    def __init__(self, optimizer: Optimizer, new: Mapping[Tensor, Tensor]) -> None:
        self.optimizer, self.new = optimizer, new
        groups = optimizer.param_groups if isinstance(optimizer, Adam) else []
        self.betas = {
            parameter: group["betas"] for group in groups for parameter in group["params"] if parameter in new
        }

    @torch.no_grad()
    def forget(self) -> None:
        """Set the moments of new entries to 0."""
        for parameter in self.betas:
            for kind, value in self.optimizer.state[parameter].items():
                if kind.startswith(("exp_avg", "max_exp_avg")):
                    value[self.new[parameter]] = 0

    def correction(self, parameter: Tensor, count: int) -> float:
        """The factor on the steps of new entries after `count` steps of their own; 1 where the tensor is new itself."""
        if parameter not in self.betas:
            return 1.0
        (first, second), (own_first, own_second) = self._biases(parameter, count)
        return math.sqrt(own_second / second) * first / own_first

    @torch.no_grad()
    def settle(self, count: int) -> None:
        """Give the moments of new entries the size that needs no correction under the tensor's step count."""
        for parameter in self.betas:
            (first, second), (own_first, own_second) = self._biases(parameter, count)
            for kind, value in self.optimizer.state[parameter].items():
                if kind.startswith(("exp_avg", "max_exp_avg")):
                    value[self.new[parameter]] *= second / own_second if kind.endswith("_sq") else first / own_first

    def _biases(self, parameter: Tensor, count: int) -> tuple[tuple[float, float], tuple[float, float]]:
        """1 - beta ** steps, of the tensor and of its new entries."""
        step = float(self.optimizer.state[parameter]["step"]) if self.optimizer.state[parameter] else count
        steps = max(step, 1), max(1, min(count, step))
        (first, second), (own_first, own_second) = (
            tuple(1 - float(beta) ** number for beta in self.betas[parameter]) for number in steps
        )
        return (first, second), (own_first, own_second)
