import copy
import warnings

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.utils._pytree import tree_flatten

from lightning_grow.rl import PPO, env_spaces

WALK = {"id": "tests/Walk-v0"}
LOGGED = {
    "episode_return", "episode_length", "timesteps", "episodes", "policy_loss", "value_loss", "entropy", "approx_kl",
    "clipfrac", "explained_variance", "learning_rate",
}  # fmt: skip


class Log(Callback):
    """Keep what each iteration logged."""

    def __init__(self):
        self.rows = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.rows.append({name: value.item() for name, value in trainer.callback_metrics.items()})


def make_ppo(env=None, **settings):
    env = env or WALK
    state_dim, action_dim, continuous = env_spaces(env)
    small = {
        "hidden_dims": [8],
        "num_envs": 3,
        "num_steps": 16,
        "num_minibatches": 2,
        "update_epochs": 2,
        "learning_rate": 1e-3,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PPO(state_dim, action_dim, continuous, env, **{**small, **settings})


def make_trainer(max_epochs=2, callbacks=(), **settings):
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return lightning.Trainer(
        accelerator="cpu", **{**quiet, "max_epochs": max_epochs, "callbacks": list(callbacks), **settings}
    )


def fit(agent, max_epochs=2, ckpt_path=None, **settings):
    log = Log()
    trainer = make_trainer(max_epochs, [log], **settings)
    trainer.fit(agent, ckpt_path=ckpt_path)
    return trainer, log.rows


def bits(agent):
    """Everything that the next iteration depends on, but the optimizer."""
    return {"state": dict(agent.state_dict()), "statistics": agent.statistics.state(), "run": agent.run_state}


def assert_same_bits(left, right):
    left, right = tree_flatten(left), tree_flatten(right)
    assert left[1] == right[1]
    for one, other in zip(left[0], right[0], strict=True):
        if isinstance(one, (torch.Tensor, float)):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
        else:
            assert one == other


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="discrete"),
        pytest.param({"env": {**WALK, "continuous": True}}, id="continuous"),
        pytest.param({"env": {**WALK, "continuous": True}, "squash_actions": True}, id="squashed"),
        pytest.param({"shared_trunk": True, "normalize_observations": False, "anneal_lr": False}, id="shared trunk"),
        pytest.param({"target_kl": 1e-4}, id="target_kl"),
        pytest.param({"memory": {"kind": "lstm", "hidden_size": 8}, "num_minibatches": 2}, id="memory"),
    ],
)
def test_resuming_is_training_straight_on_bit_for_bit(tmp_path, settings):
    settings = {"total_iterations": 5, **settings}
    straight, first, resumed = (make_ppo(**settings) for _ in range(3))
    trainer, rows = fit(straight, max_epochs=5)
    half, first_rows = fit(first, max_epochs=2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    torch.nn.init.normal_(resumed.agent.get_parameter(next(iter(dict(resumed.agent.named_parameters())))))
    rest, rest_rows = fit(resumed, max_epochs=5, ckpt_path=tmp_path / "half.ckpt")
    assert_same_bits(bits(resumed), bits(straight))
    assert_same_bits(rest.optimizers[0].state_dict(), trainer.optimizers[0].state_dict())
    assert_same_bits(first_rows + rest_rows, rows)
    assert (rest.global_step, rest.current_epoch) == (trainer.global_step, trainer.current_epoch)


@pytest.mark.filterwarnings("ignore:Checkpoint directory:UserWarning")
def test_a_checkpoint_in_the_middle_of_a_fit_resumes_as_well(tmp_path):
    straight, resumed = make_ppo(), make_ppo()
    for agent, ckpt_path in ((straight, None), (resumed, tmp_path / "epoch=1.ckpt")):
        keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        make_trainer(4, [keep], enable_checkpointing=True).fit(agent, ckpt_path=ckpt_path)
    assert_same_bits(bits(resumed), bits(straight))


def test_a_second_fit_goes_on_where_the_first_ended():
    straight, twice = (make_ppo(learning_rate=1e-50, anneal_lr=False) for _ in range(2))
    fit(straight, max_epochs=3)
    trainer, _ = fit(twice, max_epochs=2)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(twice)
    assert_same_bits(bits(twice), bits(straight))


def test_a_seed_repeats_and_another_does_not():
    first, again, other = make_ppo(), make_ppo(), make_ppo(seed=2)
    rows, again_rows, other_rows = (fit(agent)[1] for agent in (first, again, other))
    assert_same_bits(bits(first), bits(again))
    assert_same_bits(rows, again_rows)
    assert rows != other_rows


def test_training_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    fit(make_ppo())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_checkpoint_is_of_plain_types(tmp_path):
    agent = make_ppo(hidden_dims=(8,))
    fit(agent)[0].save_checkpoint(tmp_path / "agent.ckpt")
    checkpoint = torch.load(tmp_path / "agent.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["hidden_dims"] == [8]
    assert checkpoint["hyper_parameters"]["env"] == WALK


def test_load_from_checkpoint_brings_the_counters(tmp_path):
    agent = make_ppo()
    fit(agent)[0].save_checkpoint(tmp_path / "agent.ckpt")
    loaded = PPO.load_from_checkpoint(tmp_path / "agent.ckpt")
    assert_same_bits(bits(loaded), bits(agent))
    assert (loaded.timesteps, loaded.episodes) == (2 * 3 * 16, agent.episodes)
    assert torch.equal(loaded(loaded.example_input_array)[0], agent(agent.example_input_array)[0])


def test_a_foreign_environment_starts_anew_and_counters_stay(tmp_path):
    agent, resumed = (make_ppo({"id": "CartPole-v1"}) for _ in range(2))
    fit(agent)[0].save_checkpoint(tmp_path / "agent.ckpt")
    fit(resumed, max_epochs=4, ckpt_path=tmp_path / "agent.ckpt")
    assert resumed.timesteps == 4 * 3 * 16
    assert resumed.episodes > agent.episodes > 0


def test_other_environments_than_the_checkpoints_start_anew(tmp_path):
    agent, resumed = make_ppo(), make_ppo(num_envs=2)
    fit(agent)[0].save_checkpoint(tmp_path / "agent.ckpt")
    fit(resumed, max_epochs=3, ckpt_path=tmp_path / "agent.ckpt")
    assert resumed.timesteps == 2 * 3 * 16 + 2 * 16


def test_one_iteration_is_one_epoch_and_logs_everything():
    agent = make_ppo()
    trainer, rows = fit(agent, max_epochs=3)
    assert [set(row) for row in rows] == [LOGGED] * 3
    assert (trainer.current_epoch, trainer.global_step) == (3, 3 * 2 * 2)
    assert [row["timesteps"] for row in rows] == [48, 96, 144]
    assert agent.timesteps == 144
    assert agent.envs is None


def test_max_steps_counts_optimizer_steps():
    agent = make_ppo()
    trainer, rows = fit(agent, max_epochs=-1, max_steps=8)
    assert trainer.global_step == 8
    assert [row["learning_rate"] for row in rows] == pytest.approx([1e-3, 5e-4])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param({}, [1e-3, 0.75e-3, 0.5e-3, 0.25e-3], id="over max_epochs"),
        pytest.param({"total_iterations": 5}, [1e-3, 0.8e-3, 0.6e-3, 0.4e-3], id="over total_iterations"),
        pytest.param({"anneal_lr": False}, [1e-3] * 4, id="not at all"),
    ],
)
def test_the_learning_rate_falls_linearly(settings, expected):
    _, rows = fit(make_ppo(**settings), max_epochs=4)
    assert [row["learning_rate"] for row in rows] == pytest.approx(expected)


def test_a_fresh_schedule_falls_over_what_is_left_of_the_run(tmp_path):
    agent, resumed = make_ppo(total_iterations=6), make_ppo(total_iterations=6)
    fit(agent, max_epochs=2)[0].save_checkpoint(tmp_path / "agent.ckpt")
    checkpoint = torch.load(tmp_path / "agent.ckpt", weights_only=True)
    checkpoint |= {"optimizer_states": [], "lr_schedulers": []}  # as growth with optimizer="reset" leaves it
    torch.save(checkpoint, tmp_path / "grown.ckpt")
    _, rows = fit(resumed, max_epochs=6, ckpt_path=tmp_path / "grown.ckpt")
    assert [row["learning_rate"] for row in rows] == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])


@pytest.mark.parametrize("settings", [{"anneal_lr": True}, {"anneal_lr": False, "anneal_clip_coef": True}])
def test_annealing_without_an_end_is_refused_before_anything_runs(settings):
    agent = make_ppo(**settings)
    with pytest.raises(ValueError, match="set total_iterations, or max_epochs of the Trainer"):
        fit(agent, max_epochs=-1)
    assert agent.timesteps == 0
    assert agent.envs is None


def test_target_kl_stops_the_passes_over_a_rollout():
    trainer, _ = fit(make_ppo(target_kl=1e-30, update_epochs=4), max_epochs=3)
    assert trainer.global_step == 3 * 2


def test_an_agent_of_other_sizes_than_the_environment_is_refused():
    with pytest.raises(ValueError, match=r"tests/Walk-v0 has {'state_dim': 2, .*built with {'state_dim': 3,"):
        fit(PPO(3, 2, env=WALK))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_envs": 0}, "num_envs to be a whole number, at least 1, but got 0"),
        ({"num_steps": -1}, "num_steps to be a whole number, at least 1, but got -1"),
        ({"num_minibatches": 0}, "num_minibatches to be a whole number, at least 1"),
        ({"update_epochs": 0}, "update_epochs to be a whole number, at least 1"),
        ({"num_envs": 1, "num_steps": 7, "num_minibatches": 4}, "at least 8 for num_minibatches=4, but got 7"),
        (
            {"num_envs": 1, "num_steps": 3, "num_minibatches": 4, "norm_adv": False},
            "at least 4 for num_minibatches=4, but got 3",
        ),
    ],
)
def test_sizes_that_cannot_train_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        PPO(4, 2, **settings)


@pytest.mark.parametrize(
    ("settings", "num_minibatches"),
    [({"num_envs": 1, "num_steps": 13}, 4), ({"num_envs": 3, "num_steps": 3}, 4), ({"norm_adv": False}, 48)],
)
def test_every_minibatch_is_a_step_and_keeps_the_network_finite(settings, num_minibatches):
    agent = make_ppo(**settings, num_minibatches=num_minibatches)
    trainer, _ = fit(agent)
    assert trainer.global_step == 2 * 2 * num_minibatches
    assert all(torch.isfinite(parameter).all() for parameter in agent.parameters())


def test_building_makes_no_environment_and_works_on_meta():
    with torch.device("meta"):
        agent = PPO(5, 2, env={"id": "no such environment"}, hidden_dims=[8])
    assert all(tensor.is_meta for tensor in agent.state_dict().values())
    assert agent.example_input_array.shape == (7, 5)
    assert torch.equal(agent.example_input_array, PPO(5, 2).example_input_array)


def test_a_network_can_be_copied_after_training():
    agent = make_ppo()
    fit(agent)
    twin = copy.deepcopy(agent)
    assert torch.equal(twin(twin.example_input_array)[0], agent(agent.example_input_array)[0])


def test_the_normaliser_sees_every_observation_once():
    agent = make_ppo()
    fit(agent, max_epochs=3)
    assert agent.normalizer.count.tolist() == [agent.timesteps] * 2


def test_the_default_trainer_gives_no_warning_of_ours(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_trainer(2, logger=True, default_root_dir=tmp_path, log_every_n_steps=1).fit(make_ppo())
    assert not [warning for warning in caught if "lightning_grow" in warning.filename]


def test_input_names_come_from_the_environment():
    market = {"id": "lightning_grow/Market-v0", "state_features": 2, "lookback_bars": 3}
    names = PPO(18, 3, env=market).input_names
    assert (len(names), names[0].endswith("@1h[-3]")) == (18, True)
    assert PPO(4, 2).input_names is None
    look = {"id": "tests/Look-v0"}
    assert PPO(2, 2, env=look).input_names == ["look_x", "look_y"]
    assert PPO(4, 2, env={**look, "parts": True}).input_names == ["x[0]", "x[1]", "y[0]", "y[1]"]
    frames = ["look_x[-2]", "look_y[-2]", "look_x[-1]", "look_y[-1]"]
    assert PPO(4, 2, env={**look, "frames": 2}).input_names == frames


class Record(PPO):
    """Keep what the update was given."""

    def update(self, samples, generator):
        self.before, self.samples = copy.deepcopy(self.agent), samples
        self.orders = torch.Generator().set_state(generator.get_state())
        return super().update(samples, generator)


def reference_update(agent, samples, orders, settings):
    """PPO's update in torch's own words: one graph a minibatch, `torch.distributions`, plain Adam."""
    adam = torch.optim.Adam(agent.parameters(), lr=settings["learning_rate"], eps=1e-5)
    for _ in range(settings["update_epochs"]):
        order = torch.randperm(len(samples.returns), generator=orders)
        for indices in order.reshape(settings["num_minibatches"], -1):
            logits, values = agent(samples.observations[indices])
            policy = torch.distributions.Categorical(logits=logits)
            ratio = (policy.log_prob(samples.actions[indices]) - samples.log_probs[indices]).exp()
            advantages = samples.advantages[indices]
            if settings["norm_adv"]:
                advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
            gain = torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()
            error = (values[:, 0] - samples.returns[indices]) ** 2
            if settings["clip_vloss"]:
                old = samples.values[indices]
                error = torch.max(error, (old + (values[:, 0] - old).clamp(-0.2, 0.2) - samples.returns[indices]) ** 2)
            loss = -gain - settings["ent_coef"] * policy.entropy().mean() + settings["vf_coef"] * 0.5 * error.mean()
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(agent.parameters(), settings["max_grad_norm"])
            adam.step()


@pytest.mark.parametrize(
    "setting", [{}, {"norm_adv": False}, {"clip_vloss": False}, {"ent_coef": 0.5}, {"vf_coef": 2.0}]
)
def test_an_iteration_is_the_textbooks_update(setting):
    # A small norm, so that clipping to it shows in Adam's relative step sizes.
    small = {"hidden_dims": [8], "num_envs": 3, "num_steps": 16, "learning_rate": 1e-2, "max_grad_norm": 1e-3}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        agent = Record(2, 2, env=WALK, **{**small, "ent_coef": 0.1, **setting})
    fit(agent, max_epochs=1)
    reference_update(agent.before, agent.samples, agent.orders, agent.hparams)
    for name, expected in agent.before.state_dict().items():
        # Weights move by about 5e-3; fused Adam rounds otherwise than plain Adam.
        torch.testing.assert_close(agent.agent.state_dict()[name], expected, atol=1e-4, rtol=0)


def test_load_from_checkpoint_grows(tmp_path):
    agent = make_ppo()
    fit(agent)[0].save_checkpoint(tmp_path / "agent.ckpt")
    grown = PPO.load_from_checkpoint(tmp_path / "agent.ckpt", hidden_dims=[16])
    torch.testing.assert_close(grown(agent.example_input_array)[0], agent(agent.example_input_array)[0])
    assert grown.timesteps == agent.timesteps


def test_pendulum_trains():
    _, rows = fit(make_ppo({"id": "Pendulum-v1"}, num_steps=128), max_epochs=3)
    assert all(torch.tensor(list(row.values())).isfinite().all() for row in rows[1:])


def test_cartpole_is_learnt():
    settings = {"hidden_dims": [64, 64], "num_envs": 8, "num_steps": 128, "num_minibatches": 4, "update_epochs": 4}
    _, rows = fit(make_ppo({"id": "CartPole-v1"}, **settings), max_epochs=20)
    # Random play lasts 22 steps; every one of five seeds came out above 80 after these 20k timesteps.
    assert rows[-1]["episode_return"] > 60
