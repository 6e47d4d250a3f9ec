"""A gymnasium environment over price bars: short, flat or long, paid by the next bar."""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from lightning_grow.rl.bars import PLAIN, BarFormat, Bars, MarketError, bundled_path, read_bars
from lightning_grow.rl.features import (
    FEATURE_BOUND,
    FEATURES,
    STATE_FEATURES,
    WARM_UP_BARS,
    check_timeframes,
    compute_features,
    resample,
)

MARKET_ID = "lightning_grow/Market-v0"
EVALUATE_SHARE = 0.2
"""The last fifth of the decisions is for evaluation."""


@dataclass(frozen=True)
class MarketTable:
    """All that stepping needs, computed once. A decision is taken whenever a bar of the shortest timeframe closes.

    Attributes:
        closes_at: Time of each decision, `(num_decisions,)`.
        log_prices: Logarithm of the price at each decision, `(num_decisions,)`.
        features: One table a timeframe, `(num_bars, 16)` float32, first bars nan.
        newest_bars: Row of the newest bar in each table that is closed at each decision, -1 where none is,
            `(num_timeframes, num_decisions)`.
    """

    closes_at: NDArray[np.datetime64]
    log_prices: NDArray[np.float64]
    features: tuple[NDArray[np.float32], ...]
    newest_bars: NDArray[np.int64]

    def decisions(self, lookback_bars: int) -> dict[str, range]:
        """Return the decisions to train and to evaluate on.

        A decision needs `WARM_UP_BARS + lookback_bars` closed bars of every timeframe, and a next bar that pays it.
        The last fifth is for evaluation. Training ends earlier than that fifth begins, so early that no bar which
        pays a training decision is among the bars that an evaluation shows: 20 days with 20 lookback bars of one day.
        (Exponential averages still remember older bars, as they would in use.)

        Raises:
            MarketError: There are too few bars.
        """
        end = len(self.closes_at) - 1
        is_ready = (self.newest_bars + 1 >= WARM_UP_BARS + lookback_bars).all(axis=0)
        first = int(is_ready.argmax()) if is_ready.any() else end
        evaluate = end - round(EVALUATE_SHARE * (end - first))
        # The newest bar that the first evaluation does not show any more, then the decision at which it has closed.
        unseen = self.newest_bars[:, evaluate] - lookback_bars
        train_end = min(int(np.searchsorted(*pair)) for pair in zip(self.newest_bars, unseen, strict=True)) - 1
        if not first < train_end < evaluate < end:
            enough = WARM_UP_BARS + lookback_bars + math.ceil(lookback_bars / (1 - EVALUATE_SHARE)) + 3
            raise MarketError(
                f"too few bars: to warm up ({WARM_UP_BARS}), look back ({lookback_bars}) and keep training and "
                f"evaluation apart, every timeframe needs about {enough} closed bars; found "
                f"{', '.join(str(len(table)) for table in self.features)} in the order of the timeframes. "
                "Give more bars, fewer lookback_bars or shorter timeframes."
            )
        return {"train": range(first, train_end), "evaluate": range(evaluate, end)}


def market_table(path: str | None, timeframes: Sequence[str], written: BarFormat = PLAIN) -> MarketTable:
    """Read bars and compute the features of every timeframe, once for all environments of a process.

    Args:
        path: OHLCV file, None for the bundled bars; read again when it has changed on disk.
        timeframes: From the shortest to the longest.
        written: How the file is written.

    Raises:
        MarketError: The file or the timeframes are faulty.
    """
    file = bundled_path() if path is None else Path(path)
    modified_at = file.stat().st_mtime_ns if file.is_file() else 0
    return _market_table(str(file.resolve()), tuple(timeframes), written, modified_at)


@lru_cache(maxsize=8)
def _market_table(path: str, timeframes: tuple[str, ...], written: BarFormat, modified_at: int) -> MarketTable:
    del modified_at  # part of the cache's key only
    return make_market_table(read_bars(path, written), timeframes)


def make_market_table(bars: Bars, timeframes: tuple[str, ...]) -> MarketTable:
    """Compute the features of every timeframe and which of its bars are closed at each decision."""
    check_timeframes(timeframes, bars.interval)
    tables = [resample(bars, timeframe) for timeframe in timeframes]
    if not all(len(table) for table in tables):
        raise MarketError(f"{len(bars)} bars of {bars.interval} do not close one bar of '{timeframes[-1]}'.")
    closes_at = tables[0].closes_at
    return MarketTable(
        closes_at=closes_at,
        log_prices=np.log(tables[0].close),
        features=tuple(compute_features(table) for table in tables),
        newest_bars=np.stack([np.searchsorted(table.closes_at, closes_at, side="right") - 1 for table in tables]),
    )


class MarketEnv(gymnasium.Env[NDArray[np.float32], np.int64]):
    """Hold a short, flat or long position in one market from bar to bar.

    At the close of each bar of the shortest timeframe the agent sees, for every timeframe, the `lookback_bars` newest
    bars that are *closed* by then, and chooses the position until the next close (filled at this close).

    - Observation: float32 `(num_timeframes * lookback_bars * state_features,)`, in that order, oldest bar first;
      `observation_names` names each entry, `rsi_14@4h[-1]` being the newest closed 4h bar. Clipped to +-20.
    - Action: 0 short, 1 flat, 2 long.
    - Reward: `reward_scale * (position * log(next price / price) - cost * |change of position|)`.
    - End: never terminated, since equity `exp(log_equity)` cannot reach zero; truncated after `episode_bars` decisions
      (train) or at the end of the period (evaluate). An open position is not charged for closing then.

    The position itself is not observed: the market does not react to it, and it bears on the reward through costs only.

    Args:
        state_features: See the first k of `FEATURES`, 1 to 16.
        timeframes: From the shortest to the longest, multiples of the bars' own interval.
        lookback_bars: Bars seen of each timeframe, >= 1.
        path: OHLCV file (CSV or Parquet, see `read_bars`); None for EUR/USD, hourly, 2017.
        bars: How that file is written, as `BarFormat`: `{"time_column": "when", "time_unit": "ms"}`.
        period: "train" starts episodes at random in the first part of the data; "evaluate" is one episode over the last
            fifth of the decisions. `MarketTable.decisions` says how they are kept apart.
        cost: Fraction of the price paid for each unit of position change, >= 0. The default is half of a spread of
            0.45 pips, usual for EUR/USD; from short to long costs it twice.
        episode_bars: Decisions in a training episode, >= 1; 240 hours are two weeks of trading.
        reward_scale: The default brings hourly EUR/USD log returns (standard deviation 0.1 %) to about 1, so that the
            value loss has a sensible size. Divide by it for log returns; `info["log_equity"]` is not scaled.

    Raises:
        MarketError: A setting is out of range, the file is faulty, or it has too few bars.

    >>> env = MarketEnv()
    >>> observation, info = env.reset(seed=1)
    >>> observation.shape, env.observation_names[0], env.observation_names[-1]
    ((900,), 'return_1@1h[-20]', 'body@1d[-1]')
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (gymnasium declares it on the instance)

    def __init__(
        self,
        state_features: int = STATE_FEATURES,
        timeframes: Sequence[str] = ("1h", "4h", "1d"),
        lookback_bars: int = 20,
        path: str | None = None,
        bars: Mapping[str, str] | None = None,
        period: str = "train",
        cost: float = 2e-5,
        episode_bars: int = 240,
        reward_scale: float = 1000.0,
    ) -> None:
        """Read the bars and compute their features, if no environment of this process has yet."""
        _check_settings(state_features, lookback_bars, period, cost, episode_bars)
        self.lookback_bars, self.cost, self.reward_scale = lookback_bars, cost, reward_scale
        self.table = market_table(path, timeframes, BarFormat.of(bars))
        self.decisions = self.table.decisions(lookback_bars)[period]
        self.episode_bars = episode_bars if period == "train" else len(self.decisions)
        if self.episode_bars > len(self.decisions):
            raise MarketError(
                f"expected at most {len(self.decisions)} episode_bars, the decisions of the training period, "
                f"but got {episode_bars}."
            )
        self.features = [np.ascontiguousarray(table[:, :state_features]) for table in self.table.features]
        self.observation_names = [
            f"{feature}@{timeframe}[{age}]"
            for timeframe in timeframes
            for age in range(-lookback_bars, 0)
            for feature in list(FEATURES)[:state_features]
        ]
        bound = np.full(len(self.observation_names), FEATURE_BOUND, dtype=np.float32)
        self.observation_space = spaces.Box(-bound, bound)
        self.action_space = spaces.Discrete(3)
        self._start_episode(self.decisions[0])

    def _start_episode(self, decision: int) -> None:
        self.decision, self.episode_end = decision, decision + self.episode_bars
        self.position, self.log_equity = 0, 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, float]]:
        """Start an episode, flat: at a random decision when training, else at the first."""
        super().reset(seed=seed, options=options)
        last_start = len(self.decisions) - self.episode_bars
        self._start_episode(self.decisions[int(self.np_random.integers(last_start + 1))])
        return self.observe(), {"log_equity": self.log_equity}

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, float]]:
        """Take the position `action - 1` until the next bar closes."""
        position = int(action) - 1
        log_prices = self.table.log_prices
        log_return = position * float(log_prices[self.decision + 1] - log_prices[self.decision])
        log_return -= self.cost * abs(position - self.position)
        self.decision += 1
        self.position = position
        self.log_equity += log_return
        is_truncated = self.decision >= self.episode_end
        return self.observe(), self.reward_scale * log_return, False, is_truncated, {"log_equity": self.log_equity}

    def observe(self) -> NDArray[np.float32]:
        """Return what the agent sees now, a new array of shape `(num_timeframes * lookback_bars * state_features,)`."""
        newest_bars = self.table.newest_bars[:, self.decision].tolist()
        windows = [
            features[newest + 1 - self.lookback_bars : newest + 1].ravel()
            for features, newest in zip(self.features, newest_bars, strict=True)
        ]
        return np.concatenate(windows)

    def get_state(self) -> dict[str, Any]:
        """Return all that the rest of the episode, and every later one, depends on, as plain types.

        Times stand for positions in the data, so that a file which has grown since is no obstacle.
        """
        return {
            "time": str(self.table.closes_at[self.decision]),
            "bars_left": self.episode_end - self.decision,
            "position": self.position,
            "log_equity": self.log_equity,
            "rng": self.np_random.bit_generator.state,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from `get_state`'s answer; `observe` shows what the agent sees there.

        Raises:
            MarketError: The bars, or this environment's period, do not have the episode's time.
        """
        decision = int(np.searchsorted(self.table.closes_at, np.datetime64(state["time"])))
        episode_end = decision + state["bars_left"]
        is_inside = self.decisions.start <= decision and episode_end <= self.decisions.stop
        if not is_inside or str(self.table.closes_at[decision]) != state["time"]:
            first, last = (self.table.closes_at[index] for index in (self.decisions.start, self.decisions.stop))
            raise MarketError(
                f"cannot go on at {state['time']} for {state['bars_left']} bars: expected a decision of this period, "
                f"{first} to {last}. Use the bars and settings that the state was saved with, or reset."
            )
        self.decision, self.episode_end = decision, episode_end
        self.position, self.log_equity = state["position"], state["log_equity"]
        self.np_random.bit_generator.state = state["rng"]


def _check_settings(state_features: int, lookback_bars: int, period: str, cost: float, episode_bars: int) -> None:
    if not 1 <= state_features <= len(FEATURES):
        raise MarketError(
            f"expected state_features from 1 to {len(FEATURES)}, but got {state_features}: {', '.join(FEATURES)}."
        )
    if lookback_bars < 1 or episode_bars < 1:
        raise MarketError(f"expected lookback_bars and episode_bars >= 1, but got {lookback_bars} and {episode_bars}.")
    if period not in ("train", "evaluate"):
        raise MarketError(f"expected period 'train' or 'evaluate', but got {period!r}.")
    if not 0 <= cost < 1:
        raise MarketError(f"expected a cost from 0 to 1, a fraction of the price, but got {cost}.")


def describe_sizes(settings: Mapping[str, Any]) -> str:
    """Say how the length of a state comes about.

    Args:
        settings: Arguments of `MarketEnv`; its defaults for those that are missing.

    >>> describe_sizes({"state_features": 10})
    '10 features x 3 timeframes x 20 lookback bars = 600'
    """
    parameters = inspect.signature(MarketEnv).parameters
    features, timeframes, bars = (
        settings.get(name, parameters[name].default) for name in ("state_features", "timeframes", "lookback_bars")
    )
    total = features * len(timeframes) * bars
    return f"{features} features x {len(timeframes)} timeframes x {bars} lookback bars = {total}"


gymnasium.register(
    id=MARKET_ID,
    entry_point="lightning_grow.rl.market:MarketEnv",
    kwargs={"state_features": STATE_FEATURES, "timeframes": ["1h", "4h", "1d"], "lookback_bars": 20},
)
