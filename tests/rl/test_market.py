import io
import math
import warnings

import gymnasium
import numpy as np
import pandas as pd
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from lightning_grow.rl.bars import MarketError, bundled_path, read_bars
from lightning_grow.rl.features import FEATURE_BOUND, FEATURES, WARM_UP_BARS, compute_features, resample
from lightning_grow.rl.market import MARKET_ID, MarketEnv


def bundled_table():
    table = pd.read_csv(bundled_path())
    table["Time"] = pd.to_datetime(table["Time"], format="%d.%m.%Y %H:%M:%S.%f")
    return table


def seen_at(env, decision):
    env.decision = decision
    return env.observe()


def play(env, actions):
    """Step through `actions`, over ends of episodes; everything that came back, as one flat list of arrays."""
    seen = []
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        seen += [observation, np.array([reward, terminated, truncated, info["log_equity"]])]
        if truncated:
            seen.append(env.reset()[0])
    return seen


@pytest.mark.parametrize("period", ["train", "evaluate"])
@pytest.mark.parametrize("kwargs", [{}, {"state_features": 3, "timeframes": ["4h"], "lookback_bars": 1}])
def test_gymnasium_finds_no_fault(period, kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(MARKET_ID, period=period, **kwargs).unwrapped)


def test_the_default_market_shows_900_named_inputs():
    env = gymnasium.make(MARKET_ID)
    observation, _ = env.reset(seed=0)
    names = env.unwrapped.observation_names
    assert observation.shape == env.observation_space.shape == (900,)
    assert observation.dtype == np.float32
    assert len(names) == len(set(names)) == 900
    assert {name.split("@")[0] for name in names} == set(list(FEATURES)[:15])


def test_each_input_is_the_feature_of_the_bar_that_its_name_says():
    env = MarketEnv()
    bars = read_bars()
    tables = {timeframe: resample(bars, timeframe) for timeframe in ("1h", "4h", "1d")}
    features = {timeframe: compute_features(table) for timeframe, table in tables.items()}
    for decision in np.random.default_rng(0).integers(env.decisions.start, env.decisions.stop, 5):
        now = bars.closes_at[decision]
        closed = {timeframe: int((table.closes_at <= now).sum()) for timeframe, table in tables.items()}
        for value, name in zip(seen_at(env, int(decision)), env.observation_names, strict=True):
            feature, rest = name.split("@")
            timeframe, age = rest.rstrip("]").split("[")
            bar = closed[timeframe] + int(age)
            assert value == features[timeframe][bar, list(FEATURES).index(feature)]


def test_nothing_seen_at_a_decision_depends_on_later_bars(tmp_path):
    random = np.random.default_rng(0)
    table, full = bundled_table(), MarketEnv(period="evaluate")
    for number, decision in enumerate(random.integers(2000, len(table) - 1, 12)):
        expected = seen_at(full, int(decision))
        table.head(decision + 1).to_csv(tmp_path / f"cut{number}.csv", index=False)
        assert np.array_equal(seen_at(MarketEnv(path=f"{tmp_path}/cut{number}.csv"), int(decision)), expected)
        other = table.copy()
        other.loc[decision + 1 :, ["Open", "High", "Low", "Close"]] *= 1 + random.random()
        other.loc[decision + 1 :, "Volume"] = 0.0
        other.to_csv(tmp_path / f"other{number}.csv", index=False)
        changed = MarketEnv(path=f"{tmp_path}/other{number}.csv")
        assert np.array_equal(seen_at(changed, int(decision)), expected)
        assert not np.array_equal(seen_at(changed, int(decision) + 1), seen_at(full, int(decision) + 1))


def test_a_market_with_fewer_features_shows_the_first_ones_at_the_same_decisions():
    few, all_features = MarketEnv(state_features=10), MarketEnv()
    assert few.decisions == all_features.decisions
    position = {name: index for index, name in enumerate(all_features.observation_names)}
    observation, expected = few.reset(seed=3)[0], all_features.reset(seed=3)[0]
    assert np.array_equal(observation, expected[[position[name] for name in few.observation_names]])


@pytest.mark.parametrize("period", ["train", "evaluate"])
def test_every_observation_is_within_the_space(period):
    env = MarketEnv(period=period)
    seen = np.stack([seen_at(env, decision) for decision in [*env.decisions, env.decisions.stop]])
    assert np.isfinite(seen).all()
    assert np.abs(seen).max() < FEATURE_BOUND


def test_reward_is_position_times_log_return_minus_costs():
    close = pd.read_csv(bundled_path())["Close"].tolist()
    env = MarketEnv(period="evaluate", cost=1e-4, reward_scale=10.0)
    env.reset(seed=0)
    start = env.decision
    before, equity = 0, 1.0
    for step, action in enumerate([0, 2, 2, 1, 1, 0]):
        _, reward, _, _, info = env.step(np.int64(action))
        position = {0: -1, 1: 0, 2: 1}[action]
        expected = position * math.log(close[start + step + 1] / close[start + step]) - 1e-4 * abs(position - before)
        assert reward == pytest.approx(10 * expected, rel=1e-9)
        before, equity = position, equity * math.exp(expected)
    assert math.exp(info["log_equity"]) == pytest.approx(equity, rel=1e-12)


def test_training_episodes_start_at_random_and_are_cut_after_episode_bars():
    env = MarketEnv(episode_bars=5)
    starts = set()
    for seed in range(20):
        env.reset(seed=seed)
        starts.add(env.decision)
        ends = [env.step(np.int64(2))[2:4] for _ in range(5)]
        assert ends == [(False, False)] * 4 + [(False, True)]
        assert env.position == 1
    assert len(starts) > 15
    assert all(start in env.decisions and start + 4 in env.decisions for start in starts)


def test_an_episode_may_span_the_whole_training_period():
    num_decisions = len(MarketEnv().decisions)
    env = MarketEnv(episode_bars=num_decisions)
    env.reset(seed=0)
    assert (env.decision, env.episode_end) == (env.decisions.start, env.decisions.stop)
    env = MarketEnv(episode_bars=num_decisions - 1)
    assert {env.reset(seed=seed) and env.decision - env.decisions.start for seed in range(10)} == {0, 1}
    with pytest.raises(MarketError, match=f"at most {num_decisions} episode_bars, .* but got {num_decisions + 1}"):
        MarketEnv(episode_bars=num_decisions + 1)


def test_evaluation_is_one_episode_to_the_last_bar():
    env = MarketEnv(period="evaluate", episode_bars=7)
    _, _ = env.reset(seed=5)
    assert env.decision == env.decisions.start
    steps, is_truncated = 0, False
    while not is_truncated:
        *_, is_truncated, _ = env.step(np.int64(1))
        steps += 1
    assert steps == len(env.decisions)
    assert env.decision == len(read_bars()) - 1


@pytest.mark.parametrize(("timeframes", "lookback_bars"), [(["1h", "4h", "1d"], 20), (["1h"], 3), (["4h", "1d"], 1)])
def test_no_bar_that_pays_a_training_decision_is_shown_by_an_evaluation(timeframes, lookback_bars):
    train, evaluate = (
        MarketEnv(timeframes=timeframes, lookback_bars=lookback_bars, period=period) for period in ("train", "evaluate")
    )
    closes_at = train.table.closes_at
    # Decision t is paid by bar t + 1.
    last_paying = closes_at[train.decisions.stop]
    for timeframe in timeframes:
        table = resample(read_bars(), timeframe)
        shown = np.flatnonzero(table.closes_at <= closes_at[evaluate.decisions.start])[-lookback_bars:]
        opens_at = read_bars().closes_at[read_bars().closes_at > table.closes_at[shown[0] - 1]][0] - np.timedelta64(
            1, "h"
        )
        assert last_paying <= opens_at
    assert train.decisions.stop < evaluate.decisions.start
    assert len(evaluate.decisions) == pytest.approx(0.2 * (evaluate.decisions.stop - train.decisions.start), abs=1)


def test_a_saved_state_goes_on_bit_for_bit_in_the_middle_of_an_episode():
    actions = np.random.default_rng(0).integers(0, 3, 200)
    straight = MarketEnv(episode_bars=30)
    straight.reset(seed=1)
    play(straight, actions[:100])
    file = io.BytesIO()
    torch.save(straight.get_state(), file)
    file.seek(0)
    resumed = MarketEnv(episode_bars=30)
    resumed.reset(seed=2)
    resumed.set_state(torch.load(file, weights_only=True))
    assert np.array_equal(resumed.observe(), straight.observe())
    for ours, expected in zip(play(resumed, actions[100:]), play(straight, actions[100:]), strict=True):
        assert np.array_equal(ours, expected)
    assert resumed.get_state() == straight.get_state()


def test_a_state_holds_all_that_changes_in_an_episode():
    env, fresh = MarketEnv(episode_bars=30), MarketEnv(episode_bars=30)
    env.reset(seed=1)
    play(env, [2, 0, 1, 2])
    fresh.reset(seed=2)
    fresh.set_state(env.get_state())
    for name, value in vars(env).items():
        if isinstance(value, int | float) and name != "_np_random_seed":  # gymnasium's note of the last reset
            assert getattr(fresh, name) == value, name


def test_a_state_goes_on_when_newer_bars_were_added_to_the_file(tmp_path):
    table, path = bundled_table(), tmp_path / "bars.csv"
    table.head(5000).to_csv(path, index=False)
    short = MarketEnv(path=str(path))
    short.reset(seed=0)
    state = short.get_state()
    table.iloc[100:].to_csv(path, index=False)
    longer = MarketEnv(path=str(path))
    longer.reset(seed=1)
    longer.set_state(state)
    assert longer.decision == short.decision - 100
    assert len(longer.table.closes_at) == len(table) - 100


def test_a_state_of_another_period_or_market_is_refused_and_changes_nothing():
    train, evaluate = MarketEnv(), MarketEnv(period="evaluate")
    train.reset(seed=0)
    evaluate.reset(seed=0)
    of_train, of_evaluate = train.get_state(), evaluate.get_state()
    between, later = {**of_train, "time": "2017-05-06T12:30:00"}, {**of_train, "time": "2030-01-01T00:00:00"}
    for env, state in ((train, of_evaluate), (evaluate, of_train), (train, between), (train, later)):
        before = env.get_state()
        with pytest.raises(
            MarketError, match=f"cannot go on at {state['time']} for .* expected a decision of this period"
        ):
            env.set_state(state)
        assert env.get_state() == before


def test_tables_are_computed_once_and_observations_are_not_shared():
    one, two = MarketEnv(), MarketEnv(period="evaluate", lookback_bars=5)
    assert one.table is two.table
    observation, _ = one.reset(seed=0)
    kept = observation.copy()
    observation[:] = 0
    assert np.array_equal(one.observe(), kept)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"state_features": 17}, "expected state_features from 1 to 16, but got 17: return_1, rsi_14"),
        ({"state_features": 0}, "from 1 to 16, but got 0"),
        ({"lookback_bars": 0}, "lookback_bars and episode_bars >= 1, but got 0 and 240"),
        ({"episode_bars": 0}, "lookback_bars and episode_bars >= 1, but got 20 and 0"),
        ({"period": "test"}, "expected period 'train' or 'evaluate', but got 'test'"),
        ({"cost": -1e-5}, "expected a cost from 0 to 1, a fraction of the price, but got -1e-05"),
        ({"timeframes": ["1d", "1h"]}, "from the shortest to the longest"),
        ({"timeframes": ["10min"]}, "not a multiple of the bars' own interval"),
        ({"timeframes": ["1h", "200w"]}, "6225 bars of 3600 seconds do not close one bar of '200w'"),
        ({"lookback_bars": 200}, r"too few bars: .* warm up \(33\), look back \(200\) .* found 6225, 1608, 311"),
        ({"path": "absent.csv"}, "no file with bars at .*absent.csv"),
    ],
)  # fmt: skip
def test_settings_that_make_no_market_are_refused(kwargs, message):
    with pytest.raises(MarketError, match=message):
        MarketEnv(**kwargs)


@pytest.mark.parametrize("lookback_bars", [1, 4, 20])
def test_the_number_of_bars_asked_for_is_enough_and_little_more_than_that(tmp_path, lookback_bars):
    bars = bundled_table()
    bars.head(WARM_UP_BARS).to_csv(tmp_path / "few.csv", index=False)
    with pytest.raises(MarketError, match="needs about") as caught:
        MarketEnv(path=str(tmp_path / "few.csv"), timeframes=["1h"], lookback_bars=lookback_bars, episode_bars=1)
    enough = int(str(caught.value).split("about ")[1].split()[0])
    bars.head(enough).to_csv(tmp_path / "enough.csv", index=False)
    env = MarketEnv(path=str(tmp_path / "enough.csv"), timeframes=["1h"], lookback_bars=lookback_bars, episode_bars=1)
    env.reset(seed=0)
    assert 1 <= len(env.decisions) < 5
