"""How hidden units are used, as torchmetrics metrics of the activations that layers read."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class DormantShare(Metric):
    """The share of units whose mean absolute activation is at most `tau` times the layer's mean.

    Args:
        tau: The threshold, at least 0.
        **kwargs: Of torchmetrics' `Metric`.

    References: Sokar et al., "The dormant neuron phenomenon in deep reinforcement learning" (2023), definition 3.1.

    >>> share = DormantShare(tau=0.0)
    >>> share.update(torch.tensor([[1.0, 0.0, -2.0, 0.0]]))
    >>> share.compute()
    tensor(0.5000)
    """

    higher_is_better = False
    full_state_update = False
    sizes: Tensor
    rows: Tensor

    def __init__(self, tau: float = 0.025, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tau = tau
        self.add_state("sizes", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("rows", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, activations: Tensor) -> None:
        """Take in activations, `(rows, units)`."""
        self.sizes = self.sizes + activations.float().abs().sum(0)
        self.rows = self.rows + len(activations)

    def compute(self) -> Tensor:
        """Return the share, in [0, 1]."""
        sizes = self.sizes / self.rows
        return (sizes <= self.tau * sizes.mean()).float().mean()

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw one value or several, as every torchmetrics metric does: (figure, axes)."""
        return self._plot(val, ax)


class EffectiveRank(Metric):
    """exp of the entropy of the normalised singular values of activations, over the largest that it could be.

    Args:
        most_rows: Activations beyond these are left out.
        **kwargs: Of torchmetrics' `Metric`.

    References: Roy and Vetterli, "The effective rank" (2007), definition 1; Kumar et al., "Implicit
    under-parameterization inhibits data-efficient deep reinforcement learning" (2021), for its use.

    >>> rank = EffectiveRank()
    >>> rank.update(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    >>> rank.compute()
    tensor(1.)
    """

    higher_is_better = True
    full_state_update = False
    activations: list[Tensor]

    def __init__(self, most_rows: int = 512, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.most_rows = most_rows
        self.add_state("activations", [], dist_reduce_fx="cat")

    def update(self, activations: Tensor) -> None:
        """Take in activations, `(rows, units)`."""
        left = self.most_rows - sum(map(len, self.activations))
        if left > 0:
            self.activations.append(activations[:left].float())

    def compute(self) -> Tensor:
        """Return the effective rank over min(rows, units), in (0, 1]; 0 of activations that are all 0."""
        rows = torch.cat(self.activations) if isinstance(self.activations, list) else self.activations
        values = torch.linalg.svdvals(rows)
        if not values.any():
            return torch.zeros_like(values[0])
        shares = values / values.sum()
        rank: Tensor = torch.special.entr(shares).sum().exp() / min(rows.shape)
        return rank

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw one value or several, as every torchmetrics metric does: (figure, axes)."""
        return self._plot(val, ax)
