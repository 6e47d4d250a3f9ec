import math

import pytest
import torch

from lightning_grow.rl import ActorCritic
from lightning_grow.rl.actor_critic import ACTIVATIONS

SEPARATE = {
    f"{net}.{layer}.{kind}" for net in ("actor", "critic") for layer in (0, 2, 4) for kind in ("weight", "bias")
}
TRUNKS = ("trunk.0", "trunk.2", "actor_head", "critic_head")
SHARED = {f"{layer}.{kind}" for layer in TRUNKS for kind in ("weight", "bias")}


@pytest.mark.parametrize(("shared_trunk", "names"), [(False, SEPARATE), (True, SHARED)])
@pytest.mark.parametrize("continuous", [False, True])
def test_parameters_have_their_fixed_names(shared_trunk, names, continuous):
    agent = ActorCritic(3, 2, continuous, [8, 5], shared_trunk=shared_trunk)
    assert set(agent.state_dict()) == names | ({"log_std"} if continuous else set())


@pytest.mark.parametrize("shared_trunk", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden_dims", [[], [8], [8, 5, 6]])
def test_forward_is_policy_and_value(shared_trunk, activation, hidden_dims):
    agent = ActorCritic(3, 2, True, hidden_dims, activation, shared_trunk)
    observations = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    mean, value, log_std = agent(observations)
    assert torch.equal(mean, agent.policy(observations))
    assert torch.equal(value, agent.value(observations))
    assert (mean.shape, value.shape, log_std.shape) == ((7, 2), (7, 1), (2,))


@pytest.mark.parametrize(("layer", "gain"), [("trunk.0", math.sqrt(2)), ("actor_head", 0.01), ("critic_head", 1.0)])
def test_weights_are_orthogonal_with_the_gains_of_cleanrl(layer, gain):
    agent = ActorCritic(3, 2, hidden_dims=[8], shared_trunk=True).double()
    weight = agent.get_parameter(f"{layer}.weight")
    weight = weight if weight.shape[0] <= weight.shape[1] else weight.T
    # Drawn in float32.
    torch.testing.assert_close(weight @ weight.T, gain**2 * torch.eye(len(weight)).double(), atol=1e-5, rtol=0)
    assert not agent.get_parameter(f"{layer}.bias").any()


def test_an_unknown_activation_names_the_nearest():
    with pytest.raises(ValueError, match=r"no activation named 'Tahn'. Did you mean 'tanh'\? Known: elu, gelu,"):
        ActorCritic(3, 2, activation="Tahn")


@pytest.mark.parametrize("sizes", [(0, 2, [8]), (3, 0, [8]), (3, 2, [8, 0])])
def test_a_size_below_1_is_refused(sizes):
    state_dim, action_dim, hidden_dims = sizes
    with pytest.raises(ValueError, match="every size must be at least 1; came state_dim="):
        ActorCritic(state_dim, action_dim, hidden_dims=hidden_dims)
