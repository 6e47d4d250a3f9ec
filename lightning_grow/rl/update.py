"""PPO's update: a rollout made into samples, and the optimizer steps on minibatches of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_grow.rl.actor_critic import ActorCritic, chain
from lightning_grow.rl.frozen import freeze
from lightning_grow.rl.gae import generalized_advantages
from lightning_grow.rl.losses import approximate_kl, clip_fraction, policy_loss, value_loss
from lightning_grow.rl.memory import Past, State
from lightning_grow.rl.processes import average, permutation, standardized
from lightning_grow.rl.rollout import Rollout

_IMAGES = 256  # images whose features are worked out together
DIAGNOSTICS = ("policy_loss", "value_loss", "entropy", "approx_kl", "clipfrac")


@dataclass(frozen=True)
class Batch:
    """One iteration's samples, or some of them; each `(batch, ...)`.

    Those of an agent with a memory are whole sequences, one of each environment: `(batch, steps, ...)`.

    Attributes:
        observations: Normalised, `(batch, state_dim)`.
        actions: `(batch,)` or `(batch, action_dim)`.
        log_probs: Of the actions at the time of the rollout, `(batch,)`.
        values: V(s) at the time of the rollout, `(batch,)`.
        advantages: `(batch,)`.
        returns: What the critic learns, `(batch,)`.
        begins: Whether an episode begins with a sample, after the first of a sequence; bool, `(batch,)`.
        memory: What was remembered before each sequence, each `(batch, hidden_size)`; () of no memory.
    """

    observations: Tensor
    actions: Tensor
    log_probs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    begins: Tensor
    memory: State = field(kw_only=True)

    @property
    def past(self) -> Past | None:
        """What the sequences are to be read after."""
        return Past(self.memory, self.begins) if self.memory else None

    def shuffled(self, order: Tensor, parts: int) -> list["Batch"]:
        """Return the samples in another order, cut into parts whose sizes differ by one at most."""
        named = [getattr(self, name) for name in self.__dataclass_fields__ if name != "memory"]
        columns = [column.index_select(0, order).tensor_split(parts) for column in (*named, *self.memory)]
        return [Batch(*part[: len(named)], memory=part[len(named) :]) for part in zip(*columns, strict=True)]


@dataclass(frozen=True)
class Diagnostics:
    """What one optimizer step has seen.

    Attributes:
        losses: Of policy and value, and the entropy; scalars.
        log_ratios: Of the minibatch, `(batch,)`.
    """

    losses: tuple[Tensor, Tensor, Tensor]
    log_ratios: Tensor


@torch.no_grad()
def prepare(rollout: Rollout, agent: ActorCritic, normalizer: nn.Module, gamma: float, gae_lambda: float) -> Batch:
    """Add log-probabilities, values, advantages and returns to a rollout, and flatten it."""
    normalize = freeze(normalizer)
    observations, ended = normalize(rollout.observations), rollout.terminated | rollout.truncated
    values = _values(agent, observations, rollout.memory, rollout.begins)
    next_values = values[1:].clone()
    # The observation after an end belongs to the next episode.
    final_observations = normalize(rollout.final_observations).unsqueeze(0)
    goes_on = ended.new_zeros(final_observations.shape[:2])
    next_values[ended] = _values(agent, final_observations, rollout.final_memory, goes_on).squeeze(0)
    ends = rollout.terminated, rollout.truncated
    advantages = generalized_advantages(rollout.rewards, values[:-1], next_values, *ends, gamma, gae_lambda)
    log_probs = agent.distribution(rollout.outputs).log_prob(rollout.actions)
    returns = advantages + values[:-1]
    columns = (observations[:-1], rollout.actions, log_probs, values[:-1], advantages, returns, rollout.begins[:-1])
    if agent.memory is None:
        return Batch(*(column.flatten(0, 1) for column in columns), memory=())
    return Batch(*(column.transpose(0, 1) for column in columns), memory=rollout.memory)


def _values(agent: ActorCritic, observations: Tensor, memory: State, begins: Tensor) -> Tensor:
    """V(s), `(steps, num_envs)`, of observations `(steps, num_envs, ...)`, read after what was remembered."""
    if not begins.numel():
        return begins.new_zeros(begins.shape, dtype=torch.get_default_dtype())
    seen = observations.flatten(0, 1)
    size = _IMAGES if agent.eyes else len(seen)  # their maps would fill the memory
    features = torch.cat([chain(agent.eyes, part) for part in torch.split(seen, size)]).reshape(*begins.shape, -1)
    if agent.memory is not None:
        features = agent.memory(features.transpose(0, 1), Past(memory, begins.T)).transpose(0, 1)
    return chain(agent.value_head, features).squeeze(-1)


def update(
    agent: ActorCritic,
    samples: Batch,
    settings: Mapping[str, Any],
    generator: torch.Generator,
    take_step: Callable[[Tensor], None],
) -> dict[str, Tensor]:
    """Take all optimizer steps of an iteration.

    Args:
        agent: Changed by `take_step`.
        samples: Of the iteration.
        settings: PPO's hyperparameters.
        generator: Draws the minibatches, on the CPU.
        take_step: Follows the gradient of a loss.

    Returns:
        Each of `DIAGNOSTICS`: means of the losses over the steps, of the others over the samples of all steps.
    """
    found: list[Diagnostics] = []
    for _ in range(settings["update_epochs"]):
        order = permutation(len(samples.returns), generator).to(samples.returns.device)
        for minibatch in samples.shuffled(order, settings["num_minibatches"]):
            loss, diagnostics = minibatch_loss(agent, minibatch, settings)
            take_step(loss)
            found.append(diagnostics)
        limit = settings["target_kl"]
        if limit is not None and average(approximate_kl(found[-1].log_ratios)) > limit:
            break
    log_ratios = torch.cat([step.log_ratios for step in found])
    means = torch.stack([torch.stack(step.losses) for step in found]).mean(0)
    kl, clipped = approximate_kl(log_ratios), clip_fraction(log_ratios, settings["clip_coef"])
    return dict(zip(DIAGNOSTICS, average(torch.stack([*means, kl, clipped])), strict=True))


def minibatch_loss(agent: ActorCritic, samples: Batch, settings: Mapping[str, Any]) -> tuple[Tensor, Diagnostics]:
    """Return the loss of some samples, and what `DIAGNOSTICS` are made of."""
    clip_coef = settings["clip_coef"]
    output, values = agent.both(samples.observations, samples.past)
    distribution, values = agent.distribution(output), values.squeeze(-1)
    log_ratios = distribution.log_prob(samples.actions) - samples.log_probs
    advantages = standardized(samples.advantages) if settings["norm_adv"] else samples.advantages
    actor_loss = policy_loss(log_ratios, advantages, clip_coef)
    critic_loss = value_loss(values, samples.values, samples.returns, clip_coef if settings["clip_vloss"] else None)
    entropy = distribution.entropy().mean()
    loss = actor_loss - settings["ent_coef"] * entropy + settings["vf_coef"] * critic_loss
    return loss, Diagnostics((actor_loss.detach(), critic_loss.detach(), entropy.detach()), log_ratios.detach())
