"""Scaled rewards: gymnasium's discounted returns, sound statistics, and a resume that has the bits of going on."""

import lightning
import pytest
import torch

from lightning_grow import grow
from lightning_grow.rl import PPO
from lightning_grow.rl.reward_scaling import RewardScaler
from lightning_grow.rl.update import update


def test_rewards_are_divided_by_the_deviation_of_the_discounted_return():
    generator = torch.Generator().manual_seed(0)
    scaler, returns, running = RewardScaler(gamma=0.9, clip=1.5).double(), [], torch.zeros(3, dtype=torch.float64)
    for _ in range(3):
        rewards = 5 * torch.randn(20, 3, generator=generator, dtype=torch.float64) + 1
        ended = torch.rand(20, 3, generator=generator) < 0.1
        for reward, is_over in zip(rewards, ended, strict=True):
            running = 0.9 * running + reward
            returns.append(running)
            running = torch.where(is_over, 0.0, running)
        deviation = torch.stack(returns).std(correction=0)
        torch.testing.assert_close(scaler(rewards, ended), (rewards / deviation).clamp(-1.5, 1.5))


def make_agent(**settings):
    torch.manual_seed(0)
    return PPO(3, 1, True, {"id": "Pendulum-v1"}, hidden_dims=[8], num_steps=32, scale_rewards=True, **settings)


def fit(agent, epochs, path=None):
    trainer = lightning.Trainer(
        max_epochs=epochs, logger=False, accelerator="cpu", enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(agent, ckpt_path=path, weights_only=True)
    return trainer


def test_a_resume_goes_on_with_the_statistics_and_the_returns_under_way(tmp_path):
    fit(make_agent(total_iterations=4), 2).save_checkpoint(tmp_path / "a.ckpt")
    resumed, straight = make_agent(total_iterations=4), make_agent(total_iterations=4)
    fit(resumed, 4, tmp_path / "a.ckpt")
    trainer = fit(straight, 4)
    assert all(torch.equal(tensor, resumed.state_dict()[name]) for name, tensor in straight.state_dict().items())
    assert straight.reward_scaler.var > 10  # rewards of -8 and less
    assert trainer.callback_metrics["value_loss"] < 5  # thousands without
    larger = make_agent(total_iterations=4, num_envs=8)
    grow(straight, larger)
    assert torch.equal(larger.reward_scaler.var, straight.reward_scaler.var)


@pytest.mark.parametrize("anneals", [False, True])
def test_the_clipping_range_falls_with_the_iterations(anneals, monkeypatch):
    seen = []

    def noted(agent, samples, settings, *others):
        seen.append(settings)
        return update(agent, samples, settings, *others)

    monkeypatch.setattr("lightning_grow.rl.ppo.update", noted)
    fit(make_agent(anneal_clip_coef=anneals, clip_coef=0.4, total_iterations=4), 4)
    expected = [0.4, 0.3, 0.2, 0.1] if anneals else [0.4] * 4
    assert [settings["clip_coef"] for settings in seen] == pytest.approx(expected)
