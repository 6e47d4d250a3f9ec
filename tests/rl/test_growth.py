import lightning
import pytest
import torch

import lightning_grow
from lightning_grow.rl import PPO
from lightning_grow.rl.vector_env import VectorEnv

MARKET = {"id": "lightning_grow/Market-v0", "timeframes": ["1h", "4h"], "lookback_bars": 3}


def make_agent(*sizes, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(sum(sizes))
        agent = PPO(*sizes, **{"num_steps": 16, "num_minibatches": 2, "update_epochs": 2, **settings})
        if not agent.hparams["shared_trunk"]:
            # A head of gain 0.01 would hide differences of what comes before it.
            torch.nn.init.normal_(agent.agent.actor[-1].weight)
    return agent


@pytest.mark.parametrize("shared_trunk", [False, True])
def test_new_features_start_their_own_statistics(shared_trunk):
    source = make_agent(4, 2, hidden_dims=[8], shared_trunk=shared_trunk)
    target = make_agent(6, 2, hidden_dims=[12], shared_trunk=shared_trunk)
    source.normalizer.update(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1)
    with pytest.warns(UserWarning, match="New inputs are taken to stand after the old ones"):
        lightning_grow.grow(source, target, allow_input_growth=True)
    for name, fresh in (("mean", 0.0), ("var", 1.0), ("count", 0.0)):
        expected = torch.cat([source.normalizer.get_buffer(name), torch.full((2,), fresh)])
        assert torch.equal(target.normalizer.get_buffer(name), expected)
    observations = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(target(observations)[0], source(observations[:, :4])[0])


def test_more_features_of_a_market_find_their_places_by_name():
    small, large = ({**MARKET, "state_features": features} for features in (2, 5))
    source = make_agent(2 * 2 * 3, 3, env=small, hidden_dims=[8])
    target = make_agent(5 * 2 * 3, 3, env=large, hidden_dims=[12])
    lightning_grow.grow(source, target, allow_input_growth=True)
    outputs = []
    for agent, env in ((source, small), (target, large)):
        envs = VectorEnv(env, 4)
        envs.reset(seed=0)
        outputs.append(agent(torch.from_numpy(envs.observations))[0])
    # Features reach 20 and sums have 30 terms, in float32.
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-4, rtol=1e-4)


def test_an_agent_does_without_a_feature_of_a_market_that_it_is_told_to_drop():
    small, large = ({**MARKET, "state_features": features} for features in (5, 4))
    source = make_agent(5 * 2 * 3, 3, env=small, hidden_dims=[8])
    target = make_agent(4 * 2 * 3, 3, env=large, hidden_dims=[12])
    with pytest.raises(
        lightning_grow.RefusedGrowth, match=r"6 of the source's 30 input names.*natr_14@1h\[-3\].*drop_inputs"
    ):
        lightning_grow.grow(source, target)
    report = lightning_grow.grow(source, target, drop_inputs=["natr_14@*"])
    assert not report.function_preserving
    assert 0 < report.max_output_error < 1
    envs = VectorEnv(small, 4)
    envs.reset(seed=0)
    observations = torch.from_numpy(envs.observations)
    gone = torch.tensor([name.startswith("natr_14@") for name in source.input_names])
    without = observations.masked_fill(gone, 0.0)
    torch.testing.assert_close(target(observations[:, ~gone])[0], source(without)[0], atol=1e-4, rtol=1e-4)


def test_a_bigger_agent_goes_on_with_the_counters_and_the_episodes(tmp_path):
    source, target = (make_agent(2, 2, env={"id": "tests/Walk-v0"}, hidden_dims=[size]) for size in (8, 12))
    first = make_trainer(tmp_path, 2)
    first.fit(source)
    first.save_checkpoint(tmp_path / "small.ckpt")
    seen = {}

    class Look(lightning.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            seen.setdefault("steps", trainer.global_step)
            seen.setdefault("run", pl_module._current_run_state())
            seen.setdefault("output", pl_module(source.example_input_array)[0].detach())

    second = make_trainer(tmp_path, 3, lightning_grow.ArchTransfer(), Look())
    second.fit(target, ckpt_path=tmp_path / "small.ckpt")
    torch.testing.assert_close(seen["output"], source(source.example_input_array)[0])
    assert seen["steps"] == first.global_step
    assert seen["run"]["envs"] == source.run_state["envs"]
    assert torch.equal(seen["run"]["generator"], source.run_state["generator"])
    assert target.timesteps == 3 * 4 * 16


@pytest.mark.parametrize(("continuous", "option"), [(False, {"new_action_prob": 0.1}), (True, {"new_log_std": -2.0})])
def test_an_agent_with_more_actions_goes_on_and_trains_on_its_own_rollouts(tmp_path, continuous, option):
    envs = [{"id": "tests/Walk-v0", "continuous": continuous, "actions": count} for count in (1 + (not continuous), 3)]
    source, target = (make_agent(2, env["actions"], continuous, env=env, hidden_dims=[8]) for env in envs)
    trainer = make_trainer(tmp_path, 2)
    trainer.fit(source)
    trainer.save_checkpoint(tmp_path / "few.ckpt")
    found = {}

    class Look(lightning.Callback):
        def on_train_start(self, trainer, pl_module):
            found["outputs"] = [output.detach().clone() for output in pl_module(source.example_input_array)]

    growing = lightning_grow.ArchTransfer(allow_output_growth=True, **option)
    resumed = make_trainer(tmp_path, 3, growing, Look())
    resumed.fit(target, ckpt_path=tmp_path / "few.ckpt")
    old, new = source(source.example_input_array)[0].detach(), found["outputs"][0]
    torch.testing.assert_close(new[:, : old.shape[-1]], old)
    if continuous:
        assert found["outputs"][2].tolist()[1:] == [-2.0, -2.0]
    else:
        assert float(new.softmax(-1)[:, 2].mean()) == pytest.approx(0.1, rel=1e-3)
    # log-probabilities of the old policy would differ by log(1 - 0.1) from the first minibatch on: a KL of 0.1
    assert resumed.callback_metrics["approx_kl"] < 0.03


@pytest.mark.parametrize("optimizer", ["reset", "asymmetric"])
def test_a_staged_agent_goes_on_from_any_stage_as_if_never_stopped(tmp_path, optimizer):
    def agent():
        return make_agent(2, 2, env={"id": "tests/Walk-v0"}, hidden_dims=[8], total_iterations=6)

    def schedule():  # an iteration has 4 steps: the first stage begins after the first, the second after the fourth
        stages = [{"hidden_dims": [12]}, {"hidden_dims": [16]}]
        return lightning_grow.GrowthSchedule(stages, at=[4, 16], optimizer=optimizer, num_warmup_steps=6)

    straight, half, resumed = agent(), agent(), agent()
    make_trainer(tmp_path, 6, schedule()).fit(straight)
    trainer = make_trainer(tmp_path, 2, schedule())
    trainer.fit(half)
    trainer.save_checkpoint(tmp_path / "stage.ckpt")
    assert half.hparams["hidden_dims"] == [12]
    make_trainer(tmp_path, 6, schedule()).fit(resumed, ckpt_path=tmp_path / "stage.ckpt")
    assert resumed.hparams["hidden_dims"] == [16]
    assert (resumed.timesteps, resumed.episodes) == (straight.timesteps, straight.episodes)
    for name, tensor in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


LOOK = {"id": "tests/Look-v0"}
STAGES = {
    "the same inputs, reordered": ({"env.names": "zxy"}, (3, 2)),
    "a new input between two": ({"env.names": "xyaz", "state_dim": 4}, (4, 2)),
    "a new action": ({"env.actions": 3, "action_dim": 3}, (3, 3)),
    "more environments and units": ({"num_envs": 5, "hidden_dims": [12]}, (3, 2)),
}


@pytest.mark.parametrize(("stage", "sizes"), STAGES.values(), ids=STAGES)
def test_a_stage_that_changes_the_environment_is_played_in_it(tmp_path, stage, sizes):
    def agent():
        return make_agent(3, 2, env={**LOOK, "names": "xyz", "actions": 2}, hidden_dims=[8], total_iterations=3)

    def schedule():
        allowed = {"allow_input_growth": True, "allow_output_growth": True}
        return lightning_grow.GrowthSchedule([stage], at=[8], num_warmup_steps=0, **allowed)

    played = []

    class Watch(lightning.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            played.append((pl_module.envs.env, len(pl_module.envs.envs), pl_module.envs.sizes[:2]))

    straight, half, resumed = agent(), agent(), agent()
    make_trainer(tmp_path, 3, schedule(), Watch()).fit(straight)
    first = {**LOOK, "names": "xyz", "actions": 2}
    assert played[:2] == [(first, 4, (3, 2))] * 2  # the stage begins when the second iteration has ended
    assert played[2] == (straight.hparams["env"], straight.hparams["num_envs"], sizes)
    trainer = make_trainer(tmp_path, 2, schedule())
    trainer.fit(half)
    trainer.save_checkpoint(tmp_path / "stage.ckpt")
    make_trainer(tmp_path, 3, schedule()).fit(resumed, ckpt_path=tmp_path / "stage.ckpt")
    assert resumed.timesteps == straight.timesteps
    for name, tensor in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


SEEN = {
    "names of its own": ({"names": "xz"}, {"names": "xyz"}, (2, 3)),
    "a part between two": ({"names": "xz", "parts": True}, {"names": "xyz", "parts": True}, (4, 6)),
    "a feature of every frame": ({"names": "xz", "frames": 2}, {"names": "xyz", "frames": 2}, (4, 6)),
    "an older frame": ({"names": "xz", "frames": 2}, {"names": "xz", "frames": 3}, (4, 6)),
}


@pytest.mark.parametrize(("old", "new", "sizes"), SEEN.values(), ids=SEEN)
def test_inputs_of_any_space_find_their_places(old, new, sizes):
    source, target = (
        make_agent(size, 2, env={**LOOK, **kind}, hidden_dims=[8]) for kind, size in zip((old, new), sizes, strict=True)
    )
    lightning_grow.grow(source, target, allow_input_growth=True)
    outputs = []
    for agent in (source, target):
        envs = VectorEnv(agent.hparams["env"], 4)
        envs.reset(seed=0)
        outputs.append(agent(torch.from_numpy(envs.observations))[0])
    torch.testing.assert_close(outputs[1], outputs[0])


def make_trainer(folder, max_epochs, *callbacks):
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    settings = {"accelerator": "cpu", "default_root_dir": folder, **quiet}
    return lightning.Trainer(max_epochs=max_epochs, callbacks=list(callbacks), **settings)
