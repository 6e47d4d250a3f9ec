"""An agent at play: its network as it stands, and what it remembers of each running episode."""

from typing import Any

import numpy.typing as npt
from torch import Tensor, nn

from lightning_grow.rl.actor_critic import ActorCritic
from lightning_grow.rl.frozen import freeze
from lightning_grow.rl.memory import State


class Player:
    """What a policy puts out for one observation after the other.

    Args:
        agent: The network; its weights must not change while it plays.
        normalizer: Maps observations to what the network is given.
        memory: What it remembers of the running episodes, changed in place.

    >>> import torch
    >>> agent = ActorCritic(state_dim=4, action_dim=2)
    >>> Player(agent, nn.Identity(), agent.new_memory(3))(torch.zeros(3, 4)).shape
    torch.Size([3, 2])
    """

    def __init__(self, agent: ActorCritic, normalizer: nn.Module, memory: State) -> None:
        self.agent, self.memory = agent, memory
        self._see = freeze(normalizer, *agent.eyes)
        self._decide = freeze(*agent.policy_head)

    def __call__(self, observations: Tensor) -> Tensor:
        """Return the policy's output, `(num_envs, action_dim)`."""
        features = self._see(observations)
        if self.agent.memory is not None:
            features = self.agent.memory.step(features, self.memory)
        return self._decide(features)

    def forget(self, ended: npt.NDArray[Any]) -> State:
        """Begin a new episode in some environments, bool `(num_envs,)`; return what was remembered there."""
        kept = tuple(part[ended] for part in self.memory)
        for part, begun in zip(self.memory, self.agent.new_memory(1), strict=True):
            part[ended] = begun
        return kept
