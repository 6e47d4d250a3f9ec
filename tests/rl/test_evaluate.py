import math
from statistics import fmean

import gymnasium
import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_grow.rl import PPO, EvaluationCallback, evaluate
from lightning_grow.rl.evaluate import equity_curve, unseen


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


class Evaluated(EvaluationCallback):
    """Notes what the callback has left for others."""

    seen: tuple = ()

    def on_train_epoch_end(self, trainer, pl_module):
        super().on_train_epoch_end(trainer, pl_module)
        self.seen += (trainer.callback_metrics.get("eval/episode_return"),)


def train(tmp_path, *callbacks):
    torch.manual_seed(0)
    agent = PPO(4, 2, hidden_dims=[8], num_envs=2, num_steps=64)
    trainer = lightning.Trainer(
        max_epochs=4, callbacks=list(callbacks), logger=False, accelerator="cpu", enable_progress_bar=False,
        enable_checkpointing=bool(callbacks), enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(agent)
    return agent


def test_an_evaluation_changes_nothing_of_the_training_and_decides_on_the_best(tmp_path):
    evaluated = Evaluated(every_n_epochs=2, episodes=3, seed=7)
    best = ModelCheckpoint(tmp_path, "best", monitor="eval/episode_return", mode="max", every_n_epochs=2)
    plain, agent = train(tmp_path), train(tmp_path, evaluated, best)
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in agent.state_dict().items())
    first, second, third, last = evaluated.seen
    assert first is None
    assert second == third
    assert last.item() == pytest.approx(fmean(evaluate(agent, {"id": "CartPole-v1"}, 3, 7, greedy=True)))
    assert best.best_model_score == max(second, last)


def test_the_equity_of_the_evaluation_is_what_its_rewards_add_up_to():
    env = {"id": "lightning_grow/Market-v0", "timeframes": ["4h", "1d"], "lookback_bars": 2, "state_features": 3}
    agent = make_agent(env, 12, 3)
    agent.agent.actor[-1].weight.data *= 1000
    times, equity = equity_curve(agent, env)
    (earned,) = evaluate(agent, unseen(env), episodes=1, seed=0, greedy=True)
    assert equity[0] == 1
    assert math.log(equity[-1]) * 1000 == pytest.approx(earned, rel=1e-6)  # rewards are float32
    market = gymnasium.make(**unseen(env)).unwrapped
    assert len(equity) == len(market.decisions) + 1
    assert (times[0], times[-1]) == (market.table.closes_at[market.decisions.start], market.table.closes_at[-1])
    with pytest.raises(TypeError, match="only a market"):
        equity_curve(make_agent({"id": "CartPole-v1"}, 4, 2), {"id": "CartPole-v1"})
