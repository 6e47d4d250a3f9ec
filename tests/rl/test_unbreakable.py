"""What ends a run, and what must not: numbers that are not finite, settings out of range, spaces of any kind."""

import sys
import textwrap

import pytest
import torch
from environments import ACTIONS, OBSERVATIONS
from lightning.pytorch.callbacks import ModelCheckpoint
from test_ppo import LOGGED, fit, make_ppo, make_trainer

from lightning_grow import ArchTransfer
from lightning_grow.errors import GrowError, NotFinite, WrongSetting
from lightning_grow.rl import PPO, env_spaces, evaluate

TRAINS = [name for name in OBSERVATIONS if name not in ("sequence", "graph")]
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("sees", TRAINS)
def test_every_observation_of_a_fixed_length_trains(sees):
    agent = make_ppo({"id": "tests/Kinds-v0", "sees": sees})
    _, rows = fit(agent)
    assert rows[-1].keys() >= LOGGED
    assert torch.isfinite(torch.tensor([value for name, value in rows[-1].items()])).all()


@pytest.mark.parametrize("takes", [name for name in ACTIONS if name != "text"])
@pytest.mark.parametrize("shared_trunk", [False, True])
def test_every_action_of_numbers_trains_and_plays(takes, shared_trunk):
    env = {"id": "tests/Kinds-v0", "takes": takes}
    agent = make_ppo(env, shared_trunk=shared_trunk)
    before = [parameter.clone() for parameter in agent.parameters()]
    fit(agent)
    assert not any(torch.equal(old, new) for old, new in zip(before, agent.parameters(), strict=True))
    assert len(evaluate(agent, env, episodes=3, seed=0)) == 3
    assert len(evaluate(agent, env, episodes=3, seed=0, greedy=True)) == 3


def test_several_choices_are_learnt_each():
    """The first of three switches pays; the others do not."""
    agent = make_ppo({"id": "tests/Kinds-v0", "takes": "switches"}, num_steps=64, learning_rate=1e-2)
    fit(agent, max_epochs=30)
    first, *others, _ = agent(torch.zeros(1, 3))
    assert first.softmax(-1)[0, 1] > 0.9
    assert all(0.1 < other.softmax(-1)[0, 1] < 0.9 for other in others)


def test_a_part_of_the_choices_grows_and_the_others_stay(tmp_path):
    small = make_ppo({"id": "tests/Kinds-v0", "takes": "choices"})
    checkpoint = ModelCheckpoint(dirpath=tmp_path, filename="small")
    make_trainer(callbacks=[checkpoint], enable_checkpointing=True).fit(small)
    env = {"id": "tests/Kinds-v0", "takes": "more choices"}
    large = make_ppo(env, hidden_dims=[12])
    with pytest.raises(GrowError, match="allow_output_growth"):
        make_trainer(callbacks=[ArchTransfer()], max_epochs=3).fit(large, ckpt_path=checkpoint.best_model_path)
    large.load_with_transfer(checkpoint.best_model_path, allow_output_growth=True)
    x = torch.randn(5, 3)
    one, other = small(x), large(x)
    assert [part.shape[1] for part in other] == [4, 2, 1]
    for old, new in zip(one, other, strict=True):
        torch.testing.assert_close(new[:, : old.shape[1]], old, rtol=0, atol=1e-6)  # float32 outputs of about 1


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("reward", r"tests/Broken-v0, environment 0, step \d+ of its episode: the reward is (nan|-?inf)\."),
        ("observation", r"environment 0, step \d+ .* entry 1 \('speed'\) of the observation is (nan|-?inf)"),
        ("final observation", r"environment 0, step \d+ .* entry 1 \('speed'\) of the observation is (nan|-?inf)"),
    ],
)
def test_what_is_not_finite_ends_the_run_before_it_is_learnt_from(tmp_path, what, words, value):
    agent = make_ppo({"id": "tests/Broken-v0", "what": what, "value": value, "at": 20})
    checkpoint = ModelCheckpoint(dirpath=tmp_path, filename="last")
    with pytest.raises(NotFinite, match=words):
        make_trainer(callbacks=[checkpoint], enable_checkpointing=True, max_epochs=5).fit(agent)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["epoch"] == 0  # 16 steps: the first iteration was sound
    for name, tensor in kept["state_dict"].items():
        assert torch.equal(tensor, agent.state_dict()[name]), name


def test_an_episode_that_begins_with_nan_is_refused():
    agent = make_ppo({"id": "tests/Broken-v0", "what": "observation", "value": NAN, "at": 10**6})
    agent.hparams["env"] = {**agent.hparams["env"], "at": 1}
    with pytest.raises(NotFinite, match="environment 0, step 1 of its episode: entry 1"):
        fit(agent)


def test_a_gradient_that_is_not_finite_is_no_step():
    agent = make_ppo(vf_coef=1e38)
    before = {name: tensor.clone() for name, tensor in agent.agent.state_dict().items()}
    with pytest.raises(NotFinite, match=r"optimizer step 0: the loss is .* norm (inf|nan), so the step is not taken"):
        fit(agent)
    assert all(torch.equal(tensor, before[name]) for name, tensor in agent.agent.state_dict().items())


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    agent = make_ppo()
    trainer, _ = fit(agent)
    trainer.save_checkpoint(tmp_path / "kept.ckpt")
    good = (tmp_path / "kept.ckpt").read_bytes()
    agent.agent.critic[0].bias.data[2] = NAN
    with pytest.raises(NotFinite, match=r"'agent\.critic\.0\.bias' is not finite, so no checkpoint is written"):
        trainer.save_checkpoint(tmp_path / "kept.ckpt")
    assert (tmp_path / "kept.ckpt").read_bytes() == good


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("gamma", 1.5, "in [0, 1]"),
        ("gamma", NAN, "in [0, 1]"),
        ("gae_lambda", -0.5, "in [0, 1]"),
        ("clip_coef", 0.0, "above 0"),
        ("clip_coef", -0.2, "above 0"),
        ("max_grad_norm", 0, "above 0"),
        ("max_grad_norm", INF, "above 0"),
        ("learning_rate", -1.0, "above 0"),
        ("learning_rate", "fast", "above 0"),
        ("target_kl", -1.0, "above 0 or None"),
        ("ent_coef", -0.1, "at least 0"),
        ("vf_coef", -1, "at least 0"),
        ("total_iterations", 0, "a whole number, at least 1 or None"),
        ("num_envs", 2.5, "a whole number, at least 1"),
        ("num_steps", True, "a whole number, at least 1"),
    ],
)
def test_a_setting_out_of_its_range_is_refused(name, value, words):
    with pytest.raises(WrongSetting) as caught:
        make_ppo(**{name: value})
    assert str(caught.value) == f"Expected {name} to be {words}, but got {value!r}."


def test_all_faults_are_named_at_once():
    with pytest.raises(WrongSetting, match=r"gamma .* but got 2\. Expected clip_coef .* but got -1\."):
        make_ppo(gamma=2, clip_coef=-1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"accumulate_grad_batches": 2}, "accumulate_grad_batches=2. Leave it out, and set num_minibatches"),
        ({"gradient_clip_val": 0.5}, "gradient_clip_val=0.5. Leave it out, and set max_grad_norm"),
        ({"precision": "bf16-true"}, "PPO trains in 32-true, 64-true, bf16-mixed; the Trainer has precision=bf16-true"),
    ],
)
def test_what_ppo_cannot_honour_of_a_trainer_is_one_sentence(settings, words):
    with pytest.raises(WrongSetting, match=words):
        fit(make_ppo(), **settings)


@pytest.mark.parametrize("normalize_observations", [True, False])
@pytest.mark.parametrize(("precision", "dtype"), [("64-true", torch.float64), ("bf16-mixed", torch.float32)])
def test_other_precisions_train_and_play(precision, dtype, normalize_observations):
    env = {"id": "tests/Walk-v0", "continuous": True}
    agent = make_ppo(env, normalize_observations=normalize_observations)
    _, rows = fit(agent, precision=precision)
    assert rows[-1].keys() >= LOGGED
    assert all(parameter.dtype == dtype and torch.isfinite(parameter).all() for parameter in agent.parameters())
    assert len(evaluate(agent, env, episodes=2, seed=0)) == 2


def test_an_environment_of_a_module_of_ones_own_trains(tmp_path, monkeypatch):
    (tmp_path / "own_envs.py").write_text(
        textwrap.dedent(
            """
            import gymnasium
            from environments import Walk
            gymnasium.register("tests/Own-v0", Walk, max_episode_steps=7)
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert "own_envs" not in sys.modules
    env = {"id": "own_envs:tests/Own-v0"}
    agent = PPO(*env_spaces(env), env=env, hidden_dims=[8], num_envs=2, num_steps=16, total_iterations=2)
    _, rows = fit(agent)
    assert 0 < rows[-1]["episode_length"] <= 7
