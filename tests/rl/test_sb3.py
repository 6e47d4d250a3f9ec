"""Agents of Stable-Baselines3, saved by itself, taken over and grown: the same means, logits and values."""

import os
import pickle
import zipfile

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN
from stable_baselines3 import PPO as Theirs
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from lightning_grow.errors import CheckpointError, RefusedGrowth, WrongSetting
from lightning_grow.rl import PPO
from lightning_grow.rl.sb3 import is_sb3, read_vec_normalize

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
SMALL = {"n_steps": 32, "device": "cpu", "seed": 0}


def train(folder, environment, cls=Theirs, normalize=False, steps=64, **settings):
    venv = DummyVecEnv([lambda: gym.make(environment)])
    venv = VecNormalize(venv) if normalize else venv
    model = cls("MlpPolicy", venv, **{**SMALL, **({"batch_size": 32} if cls is Theirs else {}), **settings})
    model.learn(steps)
    model.save(folder / "theirs.zip")
    if normalize:
        venv.save(folder / "vec_normalize.pkl")
    return model, venv


def theirs(model, observations):
    """Logits or means, and values, in evaluation as in training."""
    with torch.no_grad():
        distribution = model.policy.get_distribution(observations).distribution
        out = distribution.logits if hasattr(distribution, "logits") else distribution.mean
        return out, model.policy.predict_values(observations)


def as_logits(out, continuous):
    return out if continuous else out.log_softmax(-1)  # Categorical normalises them


CASES = [
    ("CartPole-v1", Theirs, {}, {"state_dim": 4, "action_dim": 2}, False),
    ("Pendulum-v1", Theirs, {}, {"state_dim": 3, "action_dim": 1, "continuous": True}, True),
    ("CartPole-v1", A2C, {"n_steps": 8}, {"state_dim": 4, "action_dim": 2}, False),
    (
        "CartPole-v1",
        Theirs,
        {"policy_kwargs": {"net_arch": [24], "activation_fn": torch.nn.ReLU}},
        {"state_dim": 4, "action_dim": 2, "hidden_dims": [32], "activation": "relu"},
        False,
    ),
]


@pytest.mark.parametrize(("environment", "cls", "settings", "sizes", "continuous"), CASES)
def test_a_bigger_agent_does_what_theirs_did(tmp_path, environment, cls, settings, sizes, continuous):
    model, _ = train(tmp_path, environment, cls, **settings)
    sizes = {"hidden_dims": [96, 80], "activation": "tanh", "normalize_observations": False, **sizes}
    agent = PPO(**sizes)
    report = agent.load_with_transfer(tmp_path / "theirs.zip")
    observations = torch.randn(50, sizes["state_dim"])
    expected, got = theirs(model, observations), agent(observations)
    torch.testing.assert_close(as_logits(got[0], continuous), expected[0], rtol=1e-5, atol=1e-6)  # float32
    torch.testing.assert_close(got[1], expected[1], rtol=1e-5, atol=1e-6)
    if continuous:
        torch.testing.assert_close(agent.agent.log_std.detach().flatten(), model.policy.log_std.detach())
    assert report.function_preserving
    assert agent.statistics.timesteps == model.num_timesteps


def test_the_statistics_of_vec_normalize_come_along(tmp_path):
    model, venv = train(tmp_path, "Pendulum-v1", normalize=True)
    agent = PPO(3, 1, continuous=True, hidden_dims=[96, 64], activation="tanh")
    agent.load_with_transfer(tmp_path / "theirs.zip", vec_normalize=tmp_path / "vec_normalize.pkl")
    raw = 5 * torch.randn(50, 3)
    expected = theirs(model, torch.from_numpy(venv.normalize_obs(raw.numpy())).float())
    got = agent(raw)
    torch.testing.assert_close(got[0], expected[0], rtol=1e-4, atol=1e-5)  # their statistics are float64
    torch.testing.assert_close(got[1], expected[1], rtol=1e-4, atol=1e-5)
    assert agent.normalizer.count[0] == pytest.approx(venv.obs_rms.count)


class Hostile:
    def __reduce__(self):
        return os.system, ("echo hacked > " + os.environ["HACKED"],)


def test_a_pickle_with_code_in_it_runs_none(tmp_path, monkeypatch):
    monkeypatch.setenv("HACKED", str(tmp_path / "hacked"))
    _, venv = train(tmp_path, "Pendulum-v1", normalize=True)
    venv.evil = Hostile()
    venv.save(tmp_path / "evil.pkl")
    assert read_vec_normalize(tmp_path / "evil.pkl")["mean"].shape == (3,)
    (tmp_path / "worse.pkl").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(CheckpointError, match="no statistics of plain observations"):
        read_vec_normalize(tmp_path / "worse.pkl")
    assert not (tmp_path / "hacked").exists()
    os.system(f"echo seen > {tmp_path / 'hacked'}")  # what the code would have done
    assert (tmp_path / "hacked").exists()


def spoil_settings(venv):
    venv.clip_obs = 5.0


def spoil_statistics(venv):
    venv.obs_rms.mean = np.zeros((3, 3))


@pytest.mark.parametrize(
    ("spoil", "message"), [(spoil_settings, "'clip_obs': 5.0"), (spoil_statistics, "no statistics of plain")]
)
def test_other_statistics_are_refused(tmp_path, spoil, message):
    _, venv = train(tmp_path, "Pendulum-v1", normalize=True)
    spoil(venv)
    venv.save(tmp_path / "other.pkl")
    with pytest.raises(CheckpointError, match=message):
        read_vec_normalize(tmp_path / "other.pkl")


def test_what_does_not_go_together_is_refused(tmp_path):
    train(tmp_path, "CartPole-v1")
    files = tmp_path / "theirs.zip", tmp_path / "vec_normalize.pkl"
    (tmp_path / "pendulum").mkdir()
    train(tmp_path / "pendulum", "Pendulum-v1", normalize=True)
    os.rename(tmp_path / "pendulum" / "vec_normalize.pkl", files[1])
    settings = {"hidden_dims": [96, 64], "activation": "tanh"}
    with pytest.raises(CheckpointError, match="statistics of 3 features, and the policy reads 4"):
        PPO(4, 2, **settings).load_with_transfer(files[0], vec_normalize=files[1])
    with pytest.raises(WrongSetting, match="normalize_observations=True"):
        PPO(4, 2, normalize_observations=False, **settings).load_with_transfer(files[0], vec_normalize=files[1])
    with pytest.warns(UserWarning, match="has no observation statistics"):
        PPO(4, 2, **settings).load_with_transfer(files[0])
    with pytest.raises(RefusedGrowth):  # another activation is another function
        PPO(4, 2, normalize_observations=False, hidden_dims=[96, 64], activation="relu").load_with_transfer(files[0])
    with pytest.raises(CheckpointError, match="cannot be read as a VecNormalize"):
        read_vec_normalize(files[0])


def test_other_policies_are_named(tmp_path):
    model = DQN("MlpPolicy", "CartPole-v1", device="cpu")
    model.save(tmp_path / "dqn.zip")
    assert is_sb3(tmp_path / "dqn.zip")
    with pytest.raises(CheckpointError, match="no actor-critic"):
        PPO(4, 2).load_with_transfer(tmp_path / "dqn.zip")
    train(tmp_path, "CartPole-v1")
    with zipfile.ZipFile(tmp_path / "theirs.zip") as old, zipfile.ZipFile(tmp_path / "cut.zip", "w") as new:
        for name in ("data", "policy.pth"):
            new.writestr(name, old.read(name)[:-50])
    with pytest.raises(CheckpointError, match="damaged"):
        PPO(4, 2).load_with_transfer(tmp_path / "cut.zip")
