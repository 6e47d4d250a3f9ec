"""Running normalisation of observations, kept as module buffers so that a checkpoint carries it."""

import torch
from torch import Tensor, nn

from lightning_grow.rl.processes import moments


class ObservationNormalizer(nn.Module):
    """Shift and scale each feature to mean 0 and variance 1, then clip.

    The statistics change only in `update`, so all of one PPO iteration sees the same ones and its ratios start at 1.
    `count` is kept per feature: features that a grown observation adds start their own statistics at 0 observations,
    and the millions seen before do not freeze them. A feature never seen passes as it is.

    Args:
        state_dim: Length of an observation.
        clip: Largest absolute normalised value.
        epsilon: Added to the variance.

    Shape: buffers `mean`, `var` and `count` are `(state_dim,)`; `var` is the biased variance.

    References: Huang et al., "The 37 implementation details of PPO" (2022), continuous-action details 5 and 6; Chan et
    al. (1979) for merging the moments of two samples.

    >>> normalizer = ObservationNormalizer(1)
    >>> normalizer.update(torch.tensor([[1.0], [3.0]]))
    >>> normalizer(torch.tensor([[4.0]]))
    tensor([[2.]])
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, state_dim: int, clip: float = 10.0, epsilon: float = 1e-8) -> None:
        super().__init__()
        self.clip, self.epsilon = clip, epsilon
        self.register_buffer("mean", torch.zeros(state_dim))
        self.register_buffer("var", torch.ones(state_dim))
        self.register_buffer("count", torch.zeros(state_dim))

    def forward(self, observations: Tensor) -> Tensor:
        """Return `observations` `(..., state_dim)` normalised and clipped."""
        normalized = (observations - self.mean) * (self.var + self.epsilon).rsqrt()
        return torch.where(self.count > 0, normalized, observations).clamp(-self.clip, self.clip)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return the mean and the factor of `forward`, `(state_dim,)`: 0 and 1 for a feature never seen."""
        seen = self.count > 0
        mean = torch.where(seen, self.mean, torch.zeros_like(self.mean))
        return mean, torch.where(seen, (self.var + self.epsilon).rsqrt(), torch.ones_like(self.var))

    @torch.no_grad()
    def update(self, observations: Tensor) -> None:
        """Merge the moments of all processes' `observations` `(..., state_dim)` into the running ones."""
        batch = observations.reshape(-1, self.mean.shape[0])
        number, mean, var = moments(batch)
        total, shift = self.count + number, mean - self.mean
        share = number / total
        # With count 0 the share is 1, so the initial mean 0 and variance 1 leave no trace.
        self.var += share * (var - self.var + (1 - share) * shift.square())
        self.mean += share * shift
        self.count.copy_(total)
