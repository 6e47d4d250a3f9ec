import pytest
import torch
from torch import nn

from lightning_grow.rl import PPO, ActorCritic
from lightning_grow.rl.rollout import collect
from lightning_grow.rl.vector_env import VectorEnv


def roll(env, num_envs=2, num_steps=8, seed=0, continuous=False):
    envs = VectorEnv(env, num_envs)
    envs.reset(seed=seed)
    agent = ActorCritic(2, 1 if continuous else 2, continuous)
    return agent, collect(envs, agent, nn.Identity(), num_steps, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("ends_by", ["termination", "truncation"])
def test_every_transition_is_a_real_one(ends_by):
    _, rollout = roll({"id": "tests/Clock-v0", "length": 3, "ends_by": ends_by})
    steps = torch.arange(9)
    expected = torch.stack([steps // 3, steps % 3], -1).float()
    for index in range(2):
        assert torch.equal(rollout.observations[:, index], expected)
    ended = (steps[:8] % 3 == 2).unsqueeze(-1).expand(8, 2)
    assert torch.equal(rollout.terminated, ended & (ends_by == "termination"))
    assert torch.equal(rollout.truncated, ended & (ends_by == "truncation"))
    assert rollout.final_observations.tolist() == [[0, 3], [0, 3], [1, 3], [1, 3]]
    assert rollout.rewards.sum() == 16
    assert (rollout.episode_returns, rollout.episode_lengths) == ([3.0] * 4, [3] * 4)


@pytest.mark.parametrize("continuous", [False, True])
def test_outputs_and_actions_belong_to_the_observations(continuous):
    agent, rollout = roll({"id": "tests/Walk-v0", "continuous": continuous}, continuous=continuous)
    torch.testing.assert_close(rollout.outputs, agent.policy(rollout.observations[:-1]))
    noise = agent.noise((8, 2), torch.Generator().manual_seed(0))
    assert torch.equal(rollout.actions, agent.distribution(rollout.outputs).sample(noise))


@pytest.mark.parametrize(("ends_by", "cut"), [("termination", 0.0), ("truncation", 0.9)])
def test_only_a_truncated_episode_is_bootstrapped_from_its_final_observation(ends_by, cut):
    env = {"id": "tests/Clock-v0", "length": 3, "ends_by": ends_by}
    _, rollout = roll(env, num_envs=1, num_steps=4)
    ppo = PPO(2, 2, env=env, gamma=0.9, gae_lambda=0.0, normalize_observations=False)

    class Value(nn.Module):
        def forward(self, observations):
            return 10 * observations[..., :1] + observations[..., 1:]

    ppo.agent.critic = Value()
    # lambda 0: returns are r + gamma V(s'), with V = 10 * episode + step.
    expected = [1 + 0.9 * 1, 1 + 0.9 * 2, 1 + cut * 3, 1 + 0.9 * 11]
    torch.testing.assert_close(ppo.prepare(rollout).returns, torch.tensor(expected))
