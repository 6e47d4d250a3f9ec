import pytest
import torch
from torch import nn

from lightning_grow.rl import PPO
from lightning_grow.rl.actor_critic import ACTIVATIONS
from lightning_grow.rl.frozen import freeze


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shared_trunk", [False, True])
def test_a_frozen_policy_has_the_bits_of_the_policy(activation, shared_trunk):
    agent = PPO(4, 3, hidden_dims=[8, 8], activation=activation, shared_trunk=shared_trunk)
    agent.normalizer.update(3 * torch.randn(50, 4) + 1)
    agent.normalizer.count[2] = 0  # a feature that is new: it passes as it is
    observations = 20 * torch.randn(16, 4)
    frozen = freeze(agent.normalizer, *agent.agent.policy_head)
    assert torch.equal(frozen(observations), agent.agent.policy(agent.normalizer(observations)))


class Twice(nn.Linear):
    """Not a linear layer, though it is one."""

    def forward(self, inputs):
        return 2 * super().forward(inputs)


def test_what_a_layer_does_beside_its_arithmetic_is_done():
    network, inputs = nn.Sequential(nn.Linear(4, 8), Twice(8, 2)), torch.randn(3, 4)
    assert torch.equal(freeze(network)(inputs), network(inputs))
    after = network[0].register_forward_hook(lambda module, given, output: 3 * output)
    assert torch.equal(freeze(network)(inputs), network(inputs))
    after.remove()
    network.register_forward_pre_hook(lambda module, given: (given[0] + 1,))
    assert torch.equal(freeze(network)(inputs), network(inputs))
