"""The network: a policy (actor) and a state value (critic), as plain multilayer perceptrons."""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_grow.errors import WrongSetting
from lightning_grow.rl.distributions import Categorical, Distribution, Gaussian, MultiCategorical, SquashedGaussian
from lightning_grow.rl.encoders import Encoder, make_encoder, orthogonal
from lightning_grow.rl.memory import Memory, Past, State, make_memory

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


class ActorCritic(nn.Module):
    """Actor and critic with separate trunks (`actor`, `critic`) or one (`trunk`, `actor_head`, `critic_head`).

    Weights are orthogonal with CleanRL's gains: sqrt(2) in the trunk, 0.01 for the policy, 1 for the value; biases 0.

    Args:
        state_dim: Length of an observation; [height, width, channels] of an image, which needs an `encoder`.
        action_dim: Number of discrete actions (a list where several are chosen at once), or length of a continuous one.
        continuous: Gaussian actions with a state-independent `log_std` instead of a choice.
        hidden_dims: Width of each hidden layer, of actor and critic alike; may be empty.
        activation: One of `ACTIVATIONS`.
        shared_trunk: Whether actor and critic share all but their last layer.
        encoder: Of images, shared by actor and critic, which read its features: see `make_encoder`.
        memory: A recurrent layer, shared by actor and critic, which read what it gives: see `make_memory`. Observations
            are then whole sequences, `(sequences, steps, state_dim)`, and so is all that is said of them.
        squash_actions: Whether continuous actions go through tanh, into the bounds of the environment.

    Raises:
        ValueError: If there is no such activation, or a size is below 1.
        WrongSetting: If there are images and no encoder, or the other way round; if there is no such memory; or if
            choices are to be squashed.

    >>> agent = ActorCritic(state_dim=4, action_dim=2, hidden_dims=[8])
    >>> logits, value = agent(torch.zeros(3, 4))
    >>> logits.shape, value.shape
    (torch.Size([3, 2]), torch.Size([3, 1]))
    """

    def __init__(
        self,
        state_dim: int | Sequence[int],
        action_dim: int | Sequence[int],
        continuous: bool = False,
        hidden_dims: Sequence[int] = (64, 64),
        activation: str = "tanh",
        shared_trunk: bool = False,
        encoder: Mapping[str, Any] | None = None,
        memory: Mapping[str, Any] | None = None,
        squash_actions: bool = False,
    ) -> None:
        super().__init__()
        if squash_actions and not continuous:
            raise WrongSetting("squash_actions is for continuous actions; these are choices. Leave it out.")
        self.gaussian = SquashedGaussian if squash_actions else Gaussian
        if isinstance(state_dim, int) != (encoder is None):
            raise WrongSetting(
                f"An encoder is for images, state_dim=[height, width, channels]; came {state_dim=}, {encoder=}."
            )
        self.encoder: Encoder | None = None
        if isinstance(state_dim, int) or encoder is None:
            sizes = [cast(int, state_dim), *hidden_dims]
        else:
            self.encoder = make_encoder(state_dim, encoder)
            sizes = [self.encoder.out.out_features, *hidden_dims]
        self.memory: Memory | None = None
        if memory is not None:
            self.memory = make_memory(sizes[0], memory)
            sizes[0] = self.memory.layer.hidden_size
        parts = [action_dim] if isinstance(action_dim, int) else list(action_dim)
        if min(*sizes, *parts, len(parts)) < 1:
            raise ValueError(
                f"every size must be at least 1; came {state_dim=}, hidden_dims={list(hidden_dims)}, {action_dim=}."
            )
        self.parts = None if isinstance(action_dim, int) else parts
        self.action_dim, self.continuous, self.shared_trunk = sum(parts), continuous, shared_trunk
        if shared_trunk:
            self.trunk = make_trunk(sizes, activation)
            self.actor_head = make_linear(sizes[-1], self.action_dim, gain=0.01)
            self.critic_head = make_linear(sizes[-1], 1, gain=1.0)
        else:
            self.actor = make_trunk(sizes, activation).append(make_linear(sizes[-1], self.action_dim, gain=0.01))
            self.critic = make_trunk(sizes, activation).append(make_linear(sizes[-1], 1, gain=1.0))
        if continuous:
            self.log_std = nn.Parameter(torch.zeros(self.action_dim))

    @property
    def eyes(self) -> list[nn.Module]:
        """What makes features of observations: the encoder, if there is one."""
        return [] if self.encoder is None else [self.encoder]

    @property
    def policy_head(self) -> list[nn.Module]:
        """What makes the policy's output of features, or of what is remembered of them."""
        return [self.trunk, self.actor_head] if self.shared_trunk else [self.actor]

    @property
    def value_head(self) -> list[nn.Module]:
        """What makes the state value of the same."""
        return [self.trunk, self.critic_head] if self.shared_trunk else [self.critic]

    def features(self, observations: Tensor, past: Past | None = None) -> Tensor:
        """Return what both heads read: `(..., state_dim)` to `(..., features)`."""
        seen = chain(self.eyes, observations)
        return seen if self.memory is None else self.memory(seen, past)

    def policy(self, observations: Tensor, past: Past | None = None) -> Tensor:
        """Return the logits or the mean of the actions: `(..., state_dim)` to `(..., action_dim)`."""
        return chain(self.policy_head, self.features(observations, past))

    def value(self, observations: Tensor, past: Past | None = None) -> Tensor:
        """Return the state values: `(..., state_dim)` to `(..., 1)`."""
        return chain(self.value_head, self.features(observations, past))

    def both(self, observations: Tensor, past: Past | None = None) -> tuple[Tensor, Tensor]:
        """Return what `policy` and `value` do; what they share is run once."""
        features = self.features(observations, past)
        if self.shared_trunk:
            features = self.trunk(features)
            return self.actor_head(features), self.critic_head(features)
        return self.actor(features), self.critic(features)

    def new_memory(self, num_envs: int) -> State:
        """Return what is remembered where every episode has just begun."""
        begun = () if self.memory is None else self.memory.begun
        return tuple(part.repeat(num_envs, 1) for part in begun)

    def forward(self, observations: Tensor) -> tuple[Tensor, ...]:
        """Return (logits, value), the logits of each part and the value, or (mean, value, log_std)."""
        output, value = self.both(observations)
        if self.parts is not None:  # apart, so that a part that grows keeps the others where they are
            return *torch.split(output, self.parts, -1), value
        return (output, value, self.log_std) if self.continuous else (output, value)

    def distribution(self, output: Tensor) -> Distribution:
        """Return the action distribution that `policy`'s output stands for."""
        if self.parts is not None:
            return MultiCategorical(output, self.parts)
        return self.gaussian(output, self.log_std) if self.continuous else Categorical(output)

    @property
    def action_shape(self) -> tuple[int, ...]:
        """The shape of one action."""
        if self.parts is not None:
            return (len(self.parts),)
        return (self.action_dim,) if self.continuous else ()

    def noise(self, leading: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw what the distribution's `sample` needs, `(*leading, action_dim)`, on the generator's device."""
        family = Gaussian if self.continuous else Categorical
        return family.noise((*leading, self.action_dim), generator)


def chain(layers: Iterable[nn.Module], inputs: Tensor) -> Tensor:
    """Run one layer after the other."""
    for layer in layers:
        inputs = layer(inputs)
    return inputs


def make_trunk(sizes: Sequence[int], activation: str) -> nn.Sequential:
    """Return linear layers between `sizes`, each followed by the activation."""
    if activation not in ACTIVATIONS:
        nearest = difflib.get_close_matches(activation.lower(), ACTIVATIONS, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"no activation named {activation!r}.{hint} Known: {', '.join(ACTIVATIONS)}.")
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [make_linear(fan_in, fan_out, gain=math.sqrt(2)), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)


def make_linear(fan_in: int, fan_out: int, gain: float) -> nn.Linear:
    """Return a linear layer with an orthogonal weight of that gain and no bias yet."""
    return orthogonal(nn.Linear(fan_in, fan_out), gain)
