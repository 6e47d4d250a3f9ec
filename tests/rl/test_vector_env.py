import json

import gymnasium
import numpy as np
import pytest

from lightning_grow.errors import WrongSetting
from lightning_grow.rl import PPO, ActorCritic
from lightning_grow.rl.evaluate import make_envs
from lightning_grow.rl.spaces import env_spaces, make_env
from lightning_grow.rl.stepping import CartPoles, OneByOne, make_stepper
from lightning_grow.rl.vector_env import VectorEnv, make_fitting


def play(envs, num_steps, seed=0):
    generator = np.random.default_rng(seed)
    seen = []
    for _ in range(num_steps):
        continuous = envs.sizes[2]
        actions = (
            generator.normal(size=(len(envs.envs), 1)) if continuous else generator.integers(2, size=len(envs.envs))
        )
        rewards, terminated, truncated, ends = envs.step(actions.astype(np.float32) if continuous else actions)
        endings = [(end.observation.tolist(), end.episode_return, end.length) for end in ends]
        seen.append((envs.observations.tolist(), rewards.tolist(), terminated.tolist(), truncated.tolist(), endings))
    return seen


@pytest.mark.parametrize("ends_by", ["termination", "truncation"])
def test_an_episode_ends_and_the_next_begins_in_one_step(ends_by):
    envs = VectorEnv({"id": "tests/Clock-v0", "length": 2, "ends_by": ends_by}, 1)
    envs.reset(seed=0)
    ended = [ends_by == "termination"], [ends_by == "truncation"]
    assert play(envs, 3) == [
        ([[0.0, 1.0]], [1.0], [False], [False], []),
        ([[1.0, 0.0]], [1.0], *ended, [([0.0, 2.0], 2.0, 2)]),
        ([[1.0, 1.0]], [1.0], [False], [False], []),
    ]


@pytest.mark.parametrize(
    ("env", "lengths"),
    [
        pytest.param({"id": "tests/Clock-v0", "length": 9, "max_episode_steps": 4}, [4, 4], id="asked for"),
        pytest.param({"id": "tests/Clock-v0", "length": 3, "max_episode_steps": 9}, [3, 3, 3], id="not reached"),
        pytest.param({"id": "tests/FiveStepClock-v0", "length": 9}, [5], id="of the id"),
        pytest.param(
            {"id": "tests/FiveStepClock-v0", "length": 9, "max_episode_steps": 7}, [7], id="longer than the id's"
        ),
    ],
)
def test_a_time_limit_truncates(env, lengths):
    envs = VectorEnv(env, 1)
    envs.reset(seed=0)
    seen = play(envs, 9)
    assert [length for step in seen for _, _, length in step[-1]] == lengths
    assert any(step[3][0] for step in seen) == (lengths[0] != 3)


def test_the_time_limit_of_the_id_is_kept():
    assert VectorEnv({"id": "CartPole-v1"}, 1).time_limit == 500
    assert VectorEnv({"id": "tests/Clock-v0"}, 1).time_limit is None


def test_reaching_the_goal_in_the_last_allowed_step_is_termination():
    envs = VectorEnv({"id": "tests/Clock-v0", "length": 2, "max_episode_steps": 2}, 1)
    envs.reset(seed=0)
    assert play(envs, 2)[-1][2:4] == ([True], [False])


def test_steps_are_those_of_gymnasium():
    envs = VectorEnv({"id": "CartPole-v1"}, 3)
    theirs = gymnasium.vector.SyncVectorEnv(
        [lambda: gymnasium.make("CartPole-v1")] * 3, autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP
    )
    envs.reset(seed=5)
    assert np.array_equal(envs.observations, theirs.reset(seed=5)[0])
    generator = np.random.default_rng(0)
    for _ in range(100):
        actions = generator.integers(2, size=3)
        rewards, terminated, truncated, ends = envs.step(actions)
        expected = theirs.step(actions)
        for ours, wanted in zip((envs.observations, rewards, terminated, truncated), expected, strict=False):
            assert np.array_equal(ours, wanted)
        if ends:
            finals = [final for final in expected[-1]["final_obs"] if final is not None]
            assert np.array_equal([end.observation for end in ends], finals)


def test_continuous_actions_are_clipped_to_the_bounds():
    envs = VectorEnv({"id": "Pendulum-v1"}, 2)
    assert envs.to_env_actions(np.array([[5.0], [-0.5]])).tolist() == [[2.0], [-0.5]]


def test_discrete_actions_start_where_the_space_does():
    envs = VectorEnv({"id": "tests/Clock-v0", "start": 7}, 2)
    envs.reset(seed=0)
    envs.step(np.array([0, 1]))
    assert [env.unwrapped.actions for env in envs.envs] == [[7], [8]]


@pytest.mark.parametrize("continuous", [False, True])
def test_going_on_from_a_state_is_going_straight_on(continuous):
    env = {"id": "tests/Walk-v0", "continuous": continuous}
    straight, resumed = VectorEnv(env, 3), VectorEnv(env, 3)
    straight.reset(seed=0)
    play(straight, 33)
    assert resumed.load_state_dict(straight.state_dict())
    assert resumed.state_dict() == straight.state_dict()
    assert play(resumed, 50, seed=1) == play(straight, 50, seed=1)


def test_a_foreign_environment_starts_its_next_episode():
    envs, resumed = VectorEnv({"id": "MountainCar-v0"}, 2), VectorEnv({"id": "MountainCar-v0"}, 2)
    envs.reset(seed=0)
    play(envs, 7)
    assert resumed.load_state_dict(envs.state_dict())
    assert resumed.episode_lengths.tolist() == [0, 0]
    assert np.array_equal(resumed.observations[0], envs.envs[0].reset()[0])


ARRAYS = {
    "CartPole": {"id": "CartPole-v1"},
    "CartPole, Sutton and Barto's reward": {"id": "CartPole-v1", "sutton_barto_reward": True},
    "Pendulum": {"id": "Pendulum-v1", "g": 9.0, "max_episode_steps": 50},
    "market": {"id": "lightning_grow/Market-v0", "episode_bars": 30, "timeframes": ["1h", "4h"], "lookback_bars": 3},
}


def random_actions(envs, seed=0):
    generator, (_, choices, continuous) = np.random.default_rng(seed), envs.sizes
    shape = len(envs.envs), 1
    while True:
        drawn = generator.normal(size=shape, scale=3) if continuous else generator.integers(choices, size=shape[0])
        yield drawn.astype(np.float32 if continuous else np.int64)


@pytest.mark.parametrize("env", ARRAYS.values(), ids=ARRAYS)
def test_arrays_take_the_steps_of_the_environments_themselves(env):
    arrays, one_by_one = VectorEnv(env, 5), VectorEnv(env, 5)
    assert type(arrays.stepper) is not OneByOne
    one_by_one.stepper = OneByOne(one_by_one.envs)
    for envs in (arrays, one_by_one):
        envs.reset(seed=3)
    ended = 0
    for actions, _ in zip(random_actions(arrays), range(300), strict=False):
        ours, theirs = arrays.step(actions), one_by_one.step(actions)
        assert np.array_equal(arrays.observations, one_by_one.observations)
        # numpy's scalars and arrays square float32 torques alike but for one unit in the last place, once in a thousand
        np.testing.assert_allclose(ours[0], theirs[0], rtol=2e-7)
        assert np.array_equal(ours[1:3], theirs[1:3])
        for our, their in zip(ours[3], theirs[3], strict=True):
            assert np.array_equal(our.observation, their.observation)
            assert (our.episode_return, our.length) == (pytest.approx(their.episode_return, 2e-7), their.length)
        ended += len(ours[3])
    assert ended >= 20


@pytest.mark.parametrize("env", ARRAYS.values(), ids=ARRAYS)
def test_arrays_go_on_from_a_state_and_from_one_of_the_environments_themselves(env):
    straight, resumed = VectorEnv(env, 3), VectorEnv(env, 3)
    straight.reset(seed=0)
    for actions, _ in zip(random_actions(straight), range(33), strict=False):
        straight.step(actions)
    state = straight.state_dict()
    assert resumed.load_state_dict(json.loads(json.dumps(state)))
    assert resumed.state_dict() == state
    for actions, _ in zip(random_actions(straight, 1), range(60), strict=False):
        straight.step(actions)
        resumed.step(actions)
    assert resumed.state_dict() == straight.state_dict()


class Doubled(gymnasium.RewardWrapper):
    """Another reward for a known environment."""

    def reward(self, reward):
        return 2 * reward


def test_what_is_around_a_known_environment_keeps_it_from_being_stepped_as_arrays():
    plain, shown = gymnasium.make("CartPole-v1", -1), gymnasium.make("CartPole-v1", -1, render_mode="rgb_array")
    assert type(make_stepper([plain])) is CartPoles
    assert type(make_stepper([Doubled(plain)])) is OneByOne
    assert type(make_stepper([shown])) is OneByOne


@pytest.mark.parametrize(
    ("env", "num_envs"), [({"id": "tests/Walk-v0", "continuous": True}, 2), ({"id": "tests/Walk-v0"}, 3)]
)
def test_other_environments_do_not_take_the_state(env, num_envs):
    envs = VectorEnv({"id": "tests/Walk-v0"}, 2)
    envs.reset(seed=0)
    assert not VectorEnv(env, num_envs).load_state_dict(envs.state_dict())


@pytest.mark.parametrize(
    ("env", "sizes"),
    [
        ({"id": "CartPole-v1"}, (4, 2, False)),
        ({"id": "Pendulum-v1"}, (3, 1, True)),
        ({"id": "FrozenLake-v1"}, (16, 4, False)),
        ({"id": "tests/Walk-v0", "continuous": True}, (2, 1, True)),
    ],
)
def test_sizes_are_read_off_the_spaces(env, sizes):
    assert env_spaces(env) == sizes


def test_actions_of_another_kind_are_refused():
    with pytest.raises(ValueError, match=r"needs Discrete, .* or Box actions; tests/Kinds-v0 has Text.*Wrap"):
        env_spaces({"id": "tests/Kinds-v0", "takes": "text"})


@pytest.mark.parametrize("sees", ["sequence", "graph"])
def test_observations_without_a_fixed_length_are_refused(sees):
    with pytest.raises(ValueError, match=r"needs observations of a fixed length; tests/Kinds-v0 has (Seq|Graph).*Wrap"):
        env_spaces({"id": "tests/Kinds-v0", "sees": sees})


def test_an_environment_without_id_is_refused():
    with pytest.raises(ValueError, match=r"env must be .* came {'lookback_bars': 3}"):
        make_env({"lookback_bars": 3})


def test_squashed_actions_reach_the_bounds_and_no_further():
    envs = VectorEnv({"id": "Pendulum-v1"}, 3, squash=True)
    taken = envs.to_env_actions(np.array([[-50.0], [0.0], [0.5]]))
    assert taken.ravel().tolist() == pytest.approx([-2.0, 0.0, 2 * np.tanh(0.5)])
    envs.close()


@pytest.mark.parametrize("env", [{"id": "CartPole-v1"}, {"id": "tests/Walk-v0", "continuous": True, "bound": np.inf}])
def test_actions_without_bounds_are_not_squashed(env):
    with pytest.raises(WrongSetting, match="squash_actions takes actions to the bounds of the environment"):
        VectorEnv(env, 2, squash=True)
    with pytest.raises(WrongSetting, match="squash_actions is for continuous actions; these are choices"):
        ActorCritic(2, 2, squash_actions=True)


def test_a_squashing_agent_plays_in_environments_that_squash():
    env = {"id": "tests/Walk-v0", "continuous": True}
    agent = PPO(2, 1, True, env=env, squash_actions=True, num_envs=2)
    for envs in (make_fitting(agent.hparams), make_envs(agent, env, 2)):
        assert envs.to_env_actions(np.array([[0.5], [1.0]])).ravel() == pytest.approx(np.tanh([0.5, 1.0]))
