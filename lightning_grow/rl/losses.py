"""PPO's losses and diagnostics, as pure functions of one batch; every mean is over all its samples.

References: Schulman et al., "Proximal policy optimization algorithms" (2017); Huang et al., "The 37 implementation
details of PPO" (2022).
"""

import torch
from torch import Tensor


def policy_loss(log_ratios: Tensor, advantages: Tensor, clip_coef: float) -> Tensor:
    """Return the clipped surrogate loss, -mean(min(r A, clip(r, 1 - c, 1 + c) A)) (Schulman et al., equation 7).

    Args:
        log_ratios: log r, the log-probability of each action now less the one it was taken with, `(batch,)`.
        advantages: A, `(batch,)`.
        clip_coef: c, at least 0.

    >>> policy_loss(torch.tensor([2.0]).log(), torch.tensor([1.0]), clip_coef=0.2)
    tensor(-1.2000)
    """
    ratios = log_ratios.exp()
    clipped = ratios.clamp(1 - clip_coef, 1 + clip_coef)
    return -torch.minimum(ratios * advantages, clipped * advantages).mean()


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_coef: float | None) -> Tensor:
    """Return half the mean squared error, of the worse of the value and the clipped value where clipping is on.

    Args:
        values: V(s) now, `(batch,)`.
        old_values: V(s) at the time of the rollout, `(batch,)`.
        returns: The target, `(batch,)`.
        clip_coef: How far the clipped value may leave the old one; None does not clip.

    >>> value_loss(torch.tensor([2.0]), torch.tensor([0.0]), torch.tensor([2.0]), clip_coef=0.5)
    tensor(1.1250)
    """
    errors = (values - returns).square()
    if clip_coef is not None:
        clipped = old_values + (values - old_values).clamp(-clip_coef, clip_coef)
        errors = torch.maximum(errors, (clipped - returns).square())
    return 0.5 * errors.mean()


def approximate_kl(log_ratios: Tensor) -> Tensor:
    """Return mean(r - 1 - log r), an unbiased and never negative estimate of KL(old || new).

    References: http://joschu.net/blog/kl-approx.html (k3).

    >>> approximate_kl(torch.zeros(3))
    tensor(0.)
    """
    return (log_ratios.expm1() - log_ratios).mean()


def clip_fraction(log_ratios: Tensor, clip_coef: float) -> Tensor:
    """Return the share of samples whose ratio left [1 - clip_coef, 1 + clip_coef].

    >>> clip_fraction(torch.tensor([1.0, 2.0]).log(), clip_coef=0.2)
    tensor(0.5000)
    """
    return (log_ratios.expm1().abs() > clip_coef).float().mean()


def explained_variance(values: Tensor, returns: Tensor) -> Tensor:
    """Return 1 - var(returns - values) / var(returns): 1 is perfect, 0 no better than a constant; NaN if all are equal.

    >>> explained_variance(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0]))
    tensor(1.)
    """
    variance = returns.var()
    return torch.where(variance > 0, 1 - (returns - values).var() / variance, torch.nan)
