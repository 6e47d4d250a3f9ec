"""The action distributions, as plain formulas: a rollout has no time for `torch.distributions` objects."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Categorical:
    """Choose one of `action_dim` actions with probability softmax(logits).

    Args:
        logits: `(..., action_dim)`.
    """

    logits: Tensor

    @cached_property
    def log_probs(self) -> Tensor:
        """Of every action, `(..., action_dim)`."""
        return self.logits.log_softmax(-1)

    @staticmethod
    def noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw Gumbel noise, -log(E) with E ~ Exp(1): all that `sample` needs of chance."""
        return -torch.empty(shape, device=generator.device).exponential_(generator=generator).log()

    def sample(self, noise: Tensor) -> Tensor:
        """Sample by the Gumbel-max trick: argmax(logits + noise) has the probabilities softmax(logits)."""
        return (self.logits + noise).argmax(-1)

    @property
    def mode(self) -> Tensor:
        """The most probable action."""
        return self.logits.argmax(-1)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Return log p(actions), of the shape of `actions`: `(...)`."""
        return self.log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """Return -sum p log p in nats, shape `(...)`."""
        return -(self.log_probs.exp() * self.log_probs).sum(-1)


@dataclass(frozen=True)
class MultiCategorical:
    """Choose one action in each of several parts, independently.

    Args:
        logits: Those of all parts, one after the other, `(..., sum(sizes))`.
        sizes: The number of actions of each part.
    """

    logits: Tensor
    sizes: Sequence[int]

    @cached_property
    def parts(self) -> list[Categorical]:
        """The distribution of each part."""
        return [Categorical(logits) for logits in torch.split(self.logits, list(self.sizes), -1)]

    @staticmethod
    def noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw Gumbel noise, as for one choice."""
        return Categorical.noise(shape, generator)

    def sample(self, noise: Tensor) -> Tensor:
        """Sample each part: `(..., len(sizes))`."""
        return MultiCategorical(self.logits + noise, self.sizes).mode

    @property
    def mode(self) -> Tensor:
        """The most probable action of each part."""
        return torch.stack([part.mode for part in self.parts], -1)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Return log p of all parts together, shape `(...)` of `actions` `(..., len(sizes))`."""
        pairs = zip(self.parts, actions.unbind(-1), strict=True)
        return torch.stack([part.log_prob(action) for part, action in pairs]).sum(0)

    def entropy(self) -> Tensor:
        """Return the joint entropy in nats, shape `(...)`."""
        return torch.stack([part.entropy() for part in self.parts]).sum(0)


@dataclass(frozen=True)
class Gaussian:
    """Independent normal actions; their standard deviation does not depend on the state.

    Args:
        mean: `(..., action_dim)`.
        log_std: `(action_dim,)`.
    """

    mean: Tensor
    log_std: Tensor

    @staticmethod
    def noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw standard normal noise: all that `sample` needs of chance."""
        return torch.randn(shape, generator=generator, device=generator.device)

    def sample(self, noise: Tensor) -> Tensor:
        """Return mean + std * noise, not clipped: the environment clips to its bounds."""
        return self.mean + self.log_std.exp() * noise

    @property
    def mode(self) -> Tensor:
        """The most probable action."""
        return self.mean

    def log_prob(self, actions: Tensor) -> Tensor:
        """Return the log density of the joint action, shape `(...)` of `actions` `(..., action_dim)`."""
        standardized = (actions - self.mean) * (-self.log_std).exp()
        return -(0.5 * standardized.square() + self.log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """Return the joint differential entropy in nats, shape `(...)`."""
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum().expand(self.mean.shape[:-1])


@dataclass(frozen=True)
class SquashedGaussian(Gaussian):
    """tanh of independent normal actions, in (-1, 1); actions here are those before tanh, which loses none of them.

    References: Haarnoja et al., "Soft actor-critic" (2018), appendix C.

    >>> narrow = SquashedGaussian(torch.zeros(1), torch.full((1,), -3.0))
    >>> narrow.entropy() < Gaussian(narrow.mean, narrow.log_std).entropy()
    tensor(True)
    """

    def log_prob(self, actions: Tensor) -> Tensor:
        """Return the log density of tanh(actions), shape `(...)` of `actions` `(..., action_dim)`."""
        return super().log_prob(actions) - _log_slope(actions).sum(-1)

    def entropy(self) -> Tensor:
        """Return the joint differential entropy in nats, shape `(...)`: the normal's + E[log tanh'], by quadrature."""
        nodes, weights = (item.to(self.mean) for item in _HERMITE)
        actions = self.mean.unsqueeze(-1) + self.log_std.exp().unsqueeze(-1) * nodes
        return super().entropy() + (_log_slope(actions) * weights).sum((-1, -2))


def _log_slope(actions: Tensor) -> Tensor:
    """Log of tanh's derivative, 1 - tanh(x)^2, without cancellation."""
    return 2 * (math.log(2) - actions - F.softplus(-2 * actions))


def _gauss_hermite(count: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of a mean over a standard normal variable, exact for polynomials of degree below 2 count."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


_HERMITE = _gauss_hermite(16)
Distribution = Categorical | MultiCategorical | Gaussian
