import gymnasium
import pytest
import torch

from lightning_grow.rl import PPO, evaluate


def play_one(agent, seed):
    """One greedy CartPole episode in gymnasium's own loop."""
    env = gymnasium.make("CartPole-v1")
    observation, _ = env.reset(seed=seed)
    total, is_over = 0.0, False
    while not is_over:
        action = agent(torch.from_numpy(observation).unsqueeze(0))[0].argmax().item()
        observation, reward, terminated, truncated, _ = env.step(action)
        total, is_over = total + reward, terminated or truncated
    return total


def make_agent(env, *sizes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PPO(*sizes, env=env)


def test_greedy_returns_are_those_of_a_plain_loop():
    agent = make_agent({"id": "CartPole-v1"}, 4, 2)
    agent.agent.actor[-1].weight.data *= 100  # far from ties, which batches may break differently
    expected = [play_one(agent, seed) for seed in (3, 4, 5, 6)]
    assert evaluate(agent, {"id": "CartPole-v1"}, episodes=4, seed=3, greedy=True) == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize(
    ("env", "sizes"), [({"id": "CartPole-v1"}, (4, 2)), ({"id": "tests/Walk-v0", "continuous": True}, (2, 1, True))]
)
def test_sampled_returns_repeat_for_a_seed(env, sizes):
    agent = make_agent(env, *sizes)
    first, again, other = (evaluate(agent, env, episodes=5, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_only_the_first_episode_of_each_environment_counts():
    agent = make_agent({"id": "CartPole-v1"}, 4, 2)
    both = evaluate(agent, {"id": "CartPole-v1"}, episodes=2, seed=3, greedy=True)
    assert both == [play_one(agent, 3), play_one(agent, 4)]
