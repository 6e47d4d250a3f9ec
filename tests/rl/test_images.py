"""Eyes: images stay images, in bytes; frames are stacked as gymnasium does; encoders grow exactly, and learn."""

import gymnasium
import lightning
import numpy as np
import pytest
import torch
from gymnasium.wrappers import FrameStackObservation

from lightning_grow import ArchTransfer, grow, measure_liveness, plan_growth
from lightning_grow.errors import WrongSetting
from lightning_grow.rl import PPO, ActorCritic, env_spaces, evaluate
from lightning_grow.rl.encoders import impala_cnn, nature_cnn
from lightning_grow.rl.rollout import collect
from lightning_grow.rl.spaces import shown_names
from lightning_grow.rl.vector_env import VectorEnv

CATCH = {"id": "tests/Catch-v0"}
SMALL = {"kind": "nature_cnn", "channels": [6, 8], "kernels": [3, 3], "strides": [1, 2], "features": 16}
RESIDUAL = {"kind": "impala_cnn", "channels": [4, 6], "blocks": 1, "features": 16}
QUICK = {"hidden_dims": [16], "num_envs": 4, "num_steps": 16, "num_minibatches": 2, "update_epochs": 2}


def make_agent(encoder=SMALL, env=CATCH, **settings):
    torch.manual_seed(0)
    sizes = zip(("state_dim", "action_dim", "continuous"), env_spaces(env, images=True), strict=True)
    return PPO(**dict(sizes), env=env, encoder=encoder, **QUICK | settings)


def fit(agent, epochs, path=None, *callbacks):
    trainer = lightning.Trainer(
        max_epochs=epochs, callbacks=list(callbacks), logger=False, accelerator="cpu", enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(agent, ckpt_path=path, weights_only=True)
    return trainer


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("env", [CATCH, {"id": "CartPole-v1"}, {"id": "tests/Walk-v0"}], ids=lambda env: env["id"])
def test_frames_are_those_of_gymnasium(env, frames):
    envs = VectorEnv({**env, "frame_stack": frames}, 2, images=env is CATCH)
    theirs = [FrameStackObservation(gymnasium.make(env["id"]), frames) for _ in range(2)]
    envs.reset(seed=4)
    expected = [one.reset(seed=4 + index)[0] for index, one in enumerate(theirs)]
    generator = np.random.default_rng(0)
    for _ in range(60):
        for ours, stack in zip(envs.observations, expected, strict=True):
            assert np.array_equal(ours, np.concatenate(list(stack), -1))
        actions = generator.integers(2, size=2)
        *_, ends = envs.step(actions)
        for index, (one, action) in enumerate(zip(theirs, actions, strict=True)):
            expected[index], _, terminated, truncated, _ = one.step(action)
            if terminated or truncated:
                assert np.array_equal(ends.pop(0).observation, np.concatenate(list(expected[index]), -1))
                expected[index] = one.reset()[0]


@pytest.mark.parametrize("env", [CATCH, {"id": "CartPole-v1"}])
def test_frames_go_on_after_a_resume(env):
    straight, resumed = (VectorEnv({**env, "frame_stack": 3}, 2, images=env is CATCH) for _ in range(2))
    straight.reset(seed=0)
    for _ in range(5):
        straight.step(np.array([0, 1]))
    assert resumed.load_state_dict(straight.state_dict())
    if env is CATCH:  # it cannot be put back into an episode: a new one begins, with frames of its own
        assert all(np.array_equal(image[..., :1], image[..., 2:]) for image in resumed.observations)
        return
    for _ in range(30):
        straight.step(np.array([0, 1]))
        resumed.step(np.array([0, 1]))
        assert np.array_equal(straight.observations, resumed.observations)


def test_images_are_bytes_with_the_channels_last():
    first, last = (VectorEnv({**CATCH, "channel_first": first}, 2, images=True) for first in (True, False))
    for envs in (first, last):
        envs.reset(seed=0)
        envs.step(np.array([0, 2]))
    assert first.observations.dtype == np.uint8
    assert first.observations.shape == (2, 8, 8, 1)
    assert np.array_equal(first.observations, last.observations)
    rollout = collect(first, make_agent().agent, torch.nn.Identity(), 5, torch.Generator().manual_seed(0))
    assert rollout.observations.dtype == rollout.final_observations.dtype == torch.uint8


def test_bytes_are_scaled_and_other_images_are_not():
    encoder, image = nature_cnn((8, 8, 2), **{k: v for k, v in SMALL.items() if k != "kind"}), torch.rand(3, 8, 8, 2)
    image = (image * 255).round() / 255
    torch.testing.assert_close(encoder((image * 255).round().to(torch.uint8)), encoder(image))
    assert impala_cnn((8, 8, 2))(image[None].expand(5, -1, -1, -1, -1)).shape == (5, 3, 256)


GROWN = {
    "filters": (SMALL, SMALL | {"channels": [9, 12]}, {}),
    "features": (SMALL, SMALL | {"features": 24}, {}),
    "filters, features and hidden size": (SMALL, SMALL | {"channels": [9, 12], "features": 24}, {"hidden_dims": [24]}),
    "residual filters": (RESIDUAL, RESIDUAL | {"channels": [6, 9]}, {}),
    "residual blocks": (RESIDUAL, RESIDUAL | {"blocks": 2}, {}),
    "all but features": (RESIDUAL, RESIDUAL | {"channels": [6, 9], "blocks": 2}, {"hidden_dims": [20]}),
}


@pytest.mark.parametrize(("small", "large", "settings"), GROWN.values(), ids=GROWN)
def test_an_encoder_grows_exactly_and_its_new_units_learn(small, large, settings):
    source, target = make_agent(small).double(), make_agent(large, **settings).double()
    plan = plan_growth(source, target)
    report = grow(source, target)
    assert report.max_output_error <= 1e-13  # float64, a few hundred operations
    images = torch.randn(64, 8, 8, 1, dtype=torch.float64)
    liveness = measure_liveness(plan, target, (images,)).values()
    assert sum(group.new for group in liveness) or "blocks" in large
    assert not sum(group.idle for group in liveness)


def test_more_frames_are_told_apart_by_name():
    names = shown_names({**CATCH, "frame_stack": 2}, images=True)
    assert names == ["0[-2]", "0[-1]"]
    source, target = (make_agent(env={**CATCH, "frame_stack": frames}) for frames in (2, 3))
    grow(source, target, allow_input_growth=True)
    images = torch.randint(256, (5, 8, 8, 3), dtype=torch.uint8)
    for old, new in zip(source(images[..., 1:]), target(images), strict=True):
        torch.testing.assert_close(new, old)
    assert shown_names({"id": "tests/Look-v0", "frame_stack": 2})[:2] == ["look_x[-2]", "look_y[-2]"]


def test_an_agent_with_eyes_is_resumed_bigger(tmp_path):
    small = make_agent(RESIDUAL)
    fit(small, 2).save_checkpoint(tmp_path / "small.ckpt")
    large = make_agent(RESIDUAL | {"channels": [6, 8], "blocks": 2}, hidden_dims=[24])
    trainer = fit(large, 3, tmp_path / "small.ckpt", ArchTransfer())
    assert trainer.global_step == 12
    assert large.timesteps == 3 * 64


def test_an_agent_with_eyes_learns():
    eyes = SMALL | {"channels": [8, 16], "features": 64}
    agent = make_agent(eyes, num_envs=16, num_steps=32, learning_rate=5e-3, num_minibatches=4, hidden_dims=[32])
    assert fit(agent, 60).callback_metrics["episode_return"] > 0.8  # of 1; a blind agent's is about -0.7


def test_sampled_actions_of_an_agent_with_eyes_vary():
    agent = make_agent()
    agent.agent.actor[-1].weight.data.zero_()  # every action is as likely: a fixed one would repeat its returns
    returns = [evaluate(agent, CATCH, episodes=32, seed=seed) for seed in (0, 0, 1)]
    assert returns[0] == returns[1] != returns[2]
    taken = []
    step = VectorEnv.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VectorEnv, "step", lambda envs, actions: taken.extend(actions.tolist()) or step(envs, actions))
        evaluate(agent, CATCH, episodes=64, seed=0)
    assert min(taken.count(action) for action in range(3)) > 0.25 * len(taken)  # a third each; 448 draws


def test_images_that_are_flattened_are_said_to_be(caplog):
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        fit(PPO(64, 3, env=CATCH, **QUICK), 1)
        fit(make_agent(), 1)
    assert [record.msg for record in caplog.records if "images" in record.msg] == [
        "tests/Catch-v0 shows images, (8, 8, 1); without an encoder they are flattened to 64 numbers."
    ]


def test_eyes_and_images_belong_together():
    with pytest.raises(WrongSetting, match=r"An encoder is for images.*state_dim=4"):
        ActorCritic(4, 2, encoder=SMALL)
    with pytest.raises(WrongSetting, match="An encoder is for images"):
        ActorCritic([8, 8, 1], 2)
    with pytest.raises(WrongSetting, match=r"(?s)takes images.*; CartPole-v1 has Box.*Leave the encoder"):
        env_spaces({"id": "CartPole-v1"}, images=True)
    with pytest.raises(WrongSetting, match=r"(?s)does not take images of 8 x 8.*Use smaller kernels"):
        make_agent({"kind": "nature_cnn"})
    with pytest.raises(WrongSetting, match=r"no encoder named 'cnn'\. Known: nature_cnn, impala_cnn"):
        make_agent({"kind": "cnn"})
    with pytest.raises(WrongSetting, match=r"encoder impala_cnn: .*'filters'"):
        make_agent({"kind": "impala_cnn", "filters": [3]})


def test_breakout_of_minatar_is_learnt_and_goes_on_with_more_filters(tmp_path):
    env = {"id": "MinAtar/Breakout-v1"}
    learning = {"num_envs": 32, "num_steps": 64, "num_minibatches": 8, "update_epochs": 4, "learning_rate": 2.5e-3}
    small = {"kind": "nature_cnn", "channels": [8], "kernels": [3], "strides": [1], "features": 32}
    agent = make_agent(small, env, anneal_lr=False, activation="relu", **learning)
    trainer = fit(agent, 25)
    assert trainer.callback_metrics["episode_return"] > 1.5  # 0.4 at first
    trainer.save_checkpoint(tmp_path / "small.ckpt")
    seen = evaluate(agent, env, 8, seed=0)
    large = make_agent(small | {"channels": [16], "features": 64}, env, anneal_lr=False, activation="relu", **learning)
    large.load_with_transfer(tmp_path / "small.ckpt")
    assert evaluate(large, env, 8, seed=0) == seen
