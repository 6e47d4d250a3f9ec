"""Running statistics, kept as module buffers so that a checkpoint carries them, and the normaliser of observations."""

import torch
from torch import Tensor, nn

from lightning_grow.rl.processes import moments


class RunningMoments(nn.Module):
    """Mean and biased variance of all samples so far, feature by feature.

    `count` is kept per feature: features that a grown observation adds start their own statistics at 0 samples, and the
    millions seen before do not freeze them.

    Args:
        size: Number of features.

    Shape: buffers `mean`, `var` and `count` are `(size,)`.

    References: Chan et al. (1979) for merging the moments of two samples.

    >>> running = RunningMoments(1)
    >>> running.update(torch.tensor([[1.0], [3.0]]))
    >>> running.mean, running.var, running.count
    (tensor([2.]), tensor([1.]), tensor([2.]))
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("var", torch.ones(size))
        self.register_buffer("count", torch.zeros(size))

    @torch.no_grad()
    def update(self, samples: Tensor) -> None:
        """Merge the moments of all processes' `samples` `(..., size)` into the running ones."""
        number, mean, var = moments(samples.reshape(-1, self.mean.shape[0]))
        total, shift = self.count + number, mean - self.mean
        share = number / total
        # With count 0 the share is 1, so the initial mean 0 and variance 1 leave no trace.
        self.var += share * (var - self.var + (1 - share) * shift.square())
        self.mean += share * shift
        self.count.copy_(total)


class ObservationNormalizer(RunningMoments):
    """Shift and scale each feature to mean 0 and variance 1, then clip; a feature never seen passes as it is.

    The statistics change only in `update`, so all of one PPO iteration sees the same ones and its ratios start at 1.

    Args:
        state_dim: Length of an observation.
        clip: Largest absolute normalised value.
        epsilon: Added to the variance.

    References: Huang et al., "The 37 implementation details of PPO" (2022), continuous-action details 5 and 6.

    >>> normalizer = ObservationNormalizer(1)
    >>> normalizer.update(torch.tensor([[1.0], [3.0]]))
    >>> normalizer(torch.tensor([[4.0]]))
    tensor([[2.]])
    """

    def __init__(self, state_dim: int, clip: float = 10.0, epsilon: float = 1e-8) -> None:
        super().__init__(state_dim)
        self.clip, self.epsilon = clip, epsilon

    def forward(self, observations: Tensor) -> Tensor:
        """Return `observations` `(..., state_dim)` normalised and clipped."""
        normalized = (observations - self.mean) * (self.var + self.epsilon).rsqrt()
        return torch.where(self.count > 0, normalized, observations).clamp(-self.clip, self.clip)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return the mean and the factor of `forward`, `(state_dim,)`: 0 and 1 for a feature never seen."""
        seen = self.count > 0
        mean = torch.where(seen, self.mean, torch.zeros_like(self.mean))
        return mean, torch.where(seen, (self.var + self.epsilon).rsqrt(), torch.ones_like(self.var))
