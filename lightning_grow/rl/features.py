"""What the agent sees of a market: closed bars of any timeframe, and scale-free features of each."""

import re
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import talib
from numpy.typing import NDArray

from lightning_grow.rl.bars import Bars, MarketError

Array = NDArray[np.float64]

FEATURE_BOUND = 20.0
"""Features are clipped to +-20, far outside what real bars give, so that the observation space has honest limits."""

WARM_UP_BARS = 33
"""Bars before the first with all features: MACD's 26 + 9 - 2. It is the same for any number of features, so that
an agent that grows from 10 to 15 features meets the same decisions."""

_SECONDS = {"min": 60, "h": 3600, "d": 86_400, "w": 604_800}


def parse_timeframe(timeframe: str) -> np.timedelta64:
    """Turn `5min`, `4h`, `1d` or `1w` into the time that one bar spans.

    Raises:
        MarketError: It is not a whole number and one of those units.

    >>> parse_timeframe("4h")
    np.timedelta64(14400,'s')
    """
    match = re.fullmatch(r"([1-9]\d*)(min|h|d|w)", timeframe)
    if match is None:
        raise MarketError(f"expected a timeframe such as 5min, 1h, 4h, 1d or 1w, but got {timeframe!r}.")
    return np.timedelta64(int(match[1]) * _SECONDS[match[2]], "s")


def check_timeframes(timeframes: tuple[str, ...], interval: np.timedelta64) -> None:
    """Check that the timeframes rise and that bars of `interval` can be joined into each.

    Raises:
        MarketError: They do not, or cannot.
    """
    spans = [parse_timeframe(timeframe) for timeframe in timeframes]
    if not spans or any(after <= before for before, after in pairwise(spans)):
        raise MarketError(f"expected timeframes from the shortest to the longest, but got {list(timeframes)}.")
    for timeframe, span in zip(timeframes, spans, strict=True):
        if span % interval != np.timedelta64(0, "s"):
            raise MarketError(
                f"timeframe '{timeframe}' is not a multiple of the bars' own interval of {interval}. "
                "Give finer bars or longer timeframes."
            )


def resample(bars: Bars, timeframe: str) -> Bars:
    """Join bars into longer ones, and return only those that are closed when the last of `bars` is.

    Longer bars start at whole multiples of the timeframe since 1970-01-01 UTC, so `1d` is the UTC day. One closes at
    its scheduled end, never early: Friday's last 4h bar may not be used before the market opens again, as nobody knows
    on Friday evening that no trade will follow.

    >>> from lightning_grow.rl.bars import read_bars
    >>> four_hours = resample(read_bars().first(7), "4h")  # 22:00 .. 04:59: one part of a bar, one whole, one open
    >>> [str(time) for time in four_hours.closes_at]
    ['2017-01-02T00:00:00', '2017-01-02T04:00:00']
    """
    span = parse_timeframe(timeframe)
    opens_at = bars.closes_at - bars.interval
    starts_at = opens_at - (opens_at - np.datetime64(0, "s")) % span
    first = np.flatnonzero(np.append(True, starts_at[1:] != starts_at[:-1]))
    last = np.append(first[1:], len(bars)) - 1
    # Bars that do not start on the grid (09:30 in 4h) may end after the longer bar's scheduled end.
    closes_at = np.maximum(starts_at[first] + span, bars.closes_at[last])
    is_closed = closes_at <= bars.closes_at[-1]
    return Bars(
        closes_at=closes_at[is_closed],
        open=bars.open[first][is_closed],
        high=np.maximum.reduceat(bars.high, first)[is_closed],
        low=np.minimum.reduceat(bars.low, first)[is_closed],
        close=bars.close[last][is_closed],
        volume=np.add.reduceat(bars.volume, first)[is_closed],
        interval=span,
    )


def _ratio(numerator: Array, denominator: Array) -> Array:
    """Divide; 0 where the denominator is 0 (no trade, no movement), nan where it is nan (warm-up)."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0)


def _in_ranges(change: Array, bars: Bars) -> Array:
    """Express a price difference in average true ranges, the market's own yardstick."""
    return _ratio(change, talib.ATR(bars.high, bars.low, bars.close, 14))


def _bollinger(bars: Bars) -> Array:
    upper, middle, _ = talib.BBANDS(bars.close, 20, 2, 2)
    return _ratio(bars.close - middle, upper - middle)


FEATURES: dict[str, Callable[[Bars], Array]] = {
    "return_1": lambda bars: _in_ranges(talib.MOM(bars.close, 1), bars),
    "rsi_14": lambda bars: talib.RSI(bars.close, 14) / 50 - 1,
    "macd_hist": lambda bars: _in_ranges(talib.MACD(bars.close, 12, 26, 9)[2], bars),
    "bollinger_20": _bollinger,
    "natr_14": lambda bars: talib.NATR(bars.high, bars.low, bars.close, 14),  # in percent of the price
    "adx_14": lambda bars: talib.ADX(bars.high, bars.low, bars.close, 14) / 50 - 1,
    "stoch_14": lambda bars: talib.STOCH(bars.high, bars.low, bars.close, 14, slowk_period=3)[0] / 50 - 1,
    "cci_20": lambda bars: talib.CCI(bars.high, bars.low, bars.close, 20) / 100,
    "ema_gap_20": lambda bars: _in_ranges(bars.close - talib.EMA(bars.close, 20), bars),
    "volume_20": lambda bars: _ratio(bars.volume, talib.SMA(bars.volume, 20)) - 1,
    "return_5": lambda bars: _in_ranges(talib.MOM(bars.close, 5), bars),
    "aroon_14": lambda bars: talib.AROONOSC(bars.high, bars.low, 14) / 100,
    "di_14": lambda bars: (
        (talib.PLUS_DI(bars.high, bars.low, bars.close, 14) - talib.MINUS_DI(bars.high, bars.low, bars.close, 14)) / 50
    ),
    "ultosc_28": lambda bars: talib.ULTOSC(bars.high, bars.low, bars.close, 7, 14, 28) / 50 - 1,
    "body": lambda bars: talib.BOP(bars.open, bars.high, bars.low, bars.close),  # (close - open) / (high - low)
    "williams_14": lambda bars: talib.WILLR(bars.high, bars.low, bars.close, 14) / 50 + 1,
}
"""Name -> feature, most telling first: an agent with `state_features=k` sees the first k."""

STATE_FEATURES = 15
"""How many an agent sees unless told otherwise; the last one is there to grow by."""


def compute_features(bars: Bars) -> NDArray[np.float32]:
    """Compute all features of every bar, each from that bar and earlier ones only.

    Returns:
        Shape `(num_bars, 16)`, within +-`FEATURE_BOUND`; the first `WARM_UP_BARS` rows hold nan.

    >>> from lightning_grow.rl.bars import read_bars
    >>> features = compute_features(read_bars())
    >>> features.shape, bool(np.isfinite(features[WARM_UP_BARS:]).all())
    ((6225, 16), True)
    """
    table = np.stack([feature(bars) for feature in FEATURES.values()], axis=1)
    return table.clip(-FEATURE_BOUND, FEATURE_BOUND).astype(np.float32)
