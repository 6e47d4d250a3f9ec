"""The network: a policy (actor) and a state value (critic), as plain multilayer perceptrons."""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_grow.errors import WrongSetting
from lightning_grow.rl.distributions import Categorical, Distribution, Gaussian, MultiCategorical
from lightning_grow.rl.encoders import Encoder, make_encoder, orthogonal

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

    Raises:
        ValueError: If there is no such activation, or a size is below 1.
        WrongSetting: If there are images and no encoder, or the other way round.

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
    ) -> None:
        super().__init__()
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
    def policy_layers(self) -> list[nn.Module]:
        """What `policy` runs, one after the other."""
        head: list[nn.Module] = [self.trunk, self.actor_head] if self.shared_trunk else [self.actor]
        return head if self.encoder is None else [self.encoder, *head]

    def policy(self, observations: Tensor) -> Tensor:
        """Return the logits or the mean of the actions: `(..., state_dim)` to `(..., action_dim)`."""
        return self._chain(self.policy_layers, observations)

    def value(self, observations: Tensor) -> Tensor:
        """Return the state values: `(..., state_dim)` to `(..., 1)`."""
        head = [self.trunk, self.critic_head] if self.shared_trunk else [self.critic]
        return self._chain(head if self.encoder is None else [self.encoder, *head], observations)

    @staticmethod
    def _chain(layers: Iterable[nn.Module], inputs: Tensor) -> Tensor:
        for layer in layers:
            inputs = layer(inputs)
        return inputs

    def both(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `policy` and `value` do; what they share is run once."""
        features = observations if self.encoder is None else self.encoder(observations)
        if self.shared_trunk:
            features = self.trunk(features)
            return self.actor_head(features), self.critic_head(features)
        return self.actor(features), self.critic(features)

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
        return Gaussian(output, self.log_std) if self.continuous else Categorical(output)

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
