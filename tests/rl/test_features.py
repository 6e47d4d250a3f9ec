import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_grow.rl.bars import Bars, MarketError, read_bars
from lightning_grow.rl.features import (
    FEATURE_BOUND,
    FEATURES,
    WARM_UP_BARS,
    check_timeframes,
    compute_features,
    parse_timeframe,
    resample,
)

HOUR = np.timedelta64(3600, "s")


def resample_by_hand(bars, hours):
    """A second reading of the rule, bar by bar: [(closes_at, open, high, low, close, volume)], closed ones only."""
    groups = {}
    for row in range(len(bars)):
        opens_at = (bars.closes_at[row] - bars.interval).item()
        epoch = opens_at.replace(year=1970, month=1, day=1, hour=0, minute=0, second=0)
        groups.setdefault(int((opens_at - epoch).total_seconds() // 3600 // hours), []).append(row)
    result = []
    for key, rows in groups.items():
        scheduled = np.datetime64(key * hours * 3600, "s")
        closes_at = max(scheduled + hours * HOUR, bars.closes_at[rows[-1]])
        if closes_at <= bars.closes_at[-1]:
            high, low = max(bars.high[row] for row in rows), min(bars.low[row] for row in rows)
            volume = sum(bars.volume[row] for row in rows)
            result.append((closes_at, bars.open[rows[0]], high, low, bars.close[rows[-1]], volume))
    return result


def random_bars(seed, num_bars, minutes_late=0, interval=HOUR, scale=1.0):
    """Hourly bars with gaps, for what the real ones do not show."""
    random = np.random.default_rng(seed)
    steps = 1 + random.integers(0, 60, num_bars) * (random.random(num_bars) < 0.1)
    steps[1] = 1
    close = np.exp(np.cumsum(random.normal(0, 0.01, num_bars)))
    opening = np.append(1.0, close[:-1])
    return Bars(
        closes_at=np.datetime64("2020-02-27T21:00:00")
        + np.timedelta64(minutes_late, "m")
        + np.cumsum(steps) * interval,
        open=scale * opening,
        high=scale * np.maximum(opening, close) * np.exp(random.random(num_bars) / 100),
        low=scale * np.minimum(opening, close) * np.exp(-random.random(num_bars) / 100),
        close=scale * close,
        volume=random.integers(0, 1000, num_bars).astype(float),
        interval=interval,
    )


@pytest.mark.parametrize("hours", [1, 4, 24, 168])
@pytest.mark.parametrize("minutes_late", [0, 30], ids=["on the grid", "off the grid"])
def test_resampling_equals_a_loop_over_the_bars(hours, minutes_late):
    real, made = read_bars(), random_bars(hours, 400, minutes_late)
    for bars in (made, real) if minutes_late == 0 else (made,):
        longer = resample(bars, f"{hours}h")
        expected = list(zip(*resample_by_hand(bars, hours), strict=True))
        names = ("closes_at", "open", "high", "low", "close")
        for name, column in zip(names, expected, strict=False):
            assert (getattr(longer, name) == np.array(column)).all(), name
        # numpy adds in another order
        np.testing.assert_allclose(longer.volume, expected[-1], rtol=1e-12)


@given(
    seed=st.integers(0, 2**32 - 1), hours=st.sampled_from([1, 2, 4, 24]), late=st.sampled_from([0, 30]), data=st.data()
)
def test_bars_closed_at_a_time_are_the_same_whatever_comes_after(seed, hours, late, data):
    bars = random_bars(seed, 120, late)
    num_bars = data.draw(st.integers(2, 120))
    known = resample(bars.first(num_bars), f"{hours}h")
    later = resample(bars, f"{hours}h")
    is_closed = later.closes_at <= bars.closes_at[num_bars - 1]
    for name in ("closes_at", "open", "high", "low", "close", "volume"):
        assert (getattr(known, name) == getattr(later, name)[is_closed]).all(), name


def test_features_are_finite_after_the_warm_up_and_not_before():
    for timeframe in ("1h", "4h", "1d"):
        is_finite = np.isfinite(compute_features(resample(read_bars(), timeframe))).all(axis=1)
        assert is_finite[WARM_UP_BARS:].all()
        assert not is_finite[:WARM_UP_BARS].any()


def test_features_of_a_bar_do_not_change_when_later_bars_do():
    bars = read_bars()
    expected = compute_features(bars)
    for num_bars in np.random.default_rng(0).integers(WARM_UP_BARS, len(bars), 10):
        assert np.array_equal(compute_features(bars.first(num_bars)), expected[:num_bars], equal_nan=True)


def test_features_are_the_same_in_any_currency():
    expected = compute_features(random_bars(1, 500))
    for scale in (1e-7, 3.0, 1e6):
        # float32 rounding of values up to 20, and float64 cancellation in the running sums before it
        np.testing.assert_allclose(compute_features(random_bars(1, 500, scale=scale)), expected, rtol=1e-5, atol=1e-5)


def test_real_features_are_far_from_the_bound():
    for timeframe in ("1h", "4h", "1d"):
        features = compute_features(resample(read_bars(), timeframe))
        assert np.nanmax(np.abs(features)) < FEATURE_BOUND / 2


@pytest.mark.parametrize("volume", [0.0, 5.0])
def test_features_of_a_market_that_stands_still_are_finite(volume):
    still = np.full(100, 1.25)
    times = np.datetime64("2020-01-01T00:00:00") + np.arange(100) * HOUR
    features = compute_features(Bars(times, still, still, still, still, np.full(100, volume), HOUR))
    assert np.isfinite(features[WARM_UP_BARS:]).all()
    names = list(FEATURES)
    assert (
        features[WARM_UP_BARS:, [names.index("return_1"), names.index("bollinger_20"), names.index("body")]] == 0
    ).all()


def test_features_without_volume_differ_in_the_volume_only():
    bars = read_bars().first(200)
    with_volume = compute_features(bars)
    without = compute_features(dataclasses.replace(bars, volume=np.zeros(200)))
    differs = (with_volume[WARM_UP_BARS:] != without[WARM_UP_BARS:]).any(axis=0)
    assert [name for name, is_different in zip(FEATURES, differs, strict=True) if is_different] == ["volume_20"]
    assert np.isfinite(without[WARM_UP_BARS:]).all()


# References in plain numpy, from the indicators' definitions.


def rolling(values, length):
    """Windows that end at each row, nan-filled before the first whole one: (num_bars, length)."""
    windows = np.lib.stride_tricks.sliding_window_view(values, length)
    return np.concatenate([np.full((length - 1, length), np.nan), windows])


def wilder(values, start, length):
    """Wilder's average: the mean of the first `length` values from `start`, then 1/length of each new one."""
    result = np.full(len(values), np.nan)
    result[start + length - 1] = values[start : start + length].mean()
    for row in range(start + length, len(values)):
        result[row] = (result[row - 1] * (length - 1) + values[row]) / length
    return result


def ema(values, start, length):
    """Exponential average: the mean of the first `length` values from `start`, then weight 2 / (length + 1)."""
    result = np.full(len(values), np.nan)
    result[start + length - 1] = values[start : start + length].mean()
    for row in range(start + length, len(values)):
        result[row] = result[row - 1] + 2 / (length + 1) * (values[row] - result[row - 1])
    return result


def true_range(bars):
    before = np.append(np.nan, bars.close[:-1])
    return np.maximum(bars.high, before) - np.minimum(bars.low, before)


def average_true_range(bars):
    return wilder(true_range(bars), 1, 14)


def change(bars, length):
    return np.append(np.full(length, np.nan), bars.close[length:] - bars.close[:-length])


def rsi(bars):
    moves = change(bars, 1)
    up, down = wilder(np.maximum(moves, 0), 1, 14), wilder(np.maximum(-moves, 0), 1, 14)
    return up / (up + down) * 2 - 1


def macd_hist(bars):
    # The fast average starts where the slow one does: both have their first value on bar 25.
    macd = ema(bars.close, 14, 12) - ema(bars.close, 0, 26)
    return (macd - ema(macd, 25, 9)) / average_true_range(bars)


def bollinger(bars):
    windows = rolling(bars.close, 20)
    return (bars.close - windows.mean(axis=1)) / (2 * windows.std(axis=1))


def stochastic(bars):
    lowest, highest = rolling(bars.low, 14).min(axis=1), rolling(bars.high, 14).max(axis=1)
    return rolling((bars.close - lowest) / (highest - lowest), 3).mean(axis=1) * 2 - 1


def cci(bars):
    typical = (bars.high + bars.low + bars.close) / 3
    windows = rolling(typical, 20)
    mean = windows.mean(axis=1)
    return (typical - mean) / (0.015 * np.abs(windows - mean[:, None]).mean(axis=1)) / 100


def aroon(bars):
    # Bars since the highest high less bars since the lowest low; of equal ones the newest counts.
    since_high = rolling(bars.high, 15)[:, ::-1].argmax(axis=1)
    since_low = rolling(bars.low, 15)[:, ::-1].argmin(axis=1)
    return (since_low - since_high) / 14


def directional(bars):
    up, down = np.diff(bars.high, prepend=np.nan), -np.diff(bars.low, prepend=np.nan)
    plus, minus = np.where((up > down) & (up > 0), up, 0), np.where((down > up) & (down > 0), down, 0)
    ranges = true_range(bars)
    sums = np.zeros(3)
    result = np.full(len(up), np.nan)
    for row in range(1, len(up)):
        # Wilder's running sums: 13 bars to start with, then 1/14 of the old sum makes room for the new bar.
        sums += np.array([plus[row], minus[row], ranges[row]]) - (sums / 14 if row >= 14 else 0)
        result[row] = (sums[0] - sums[1]) / sums[2] * 2
    return result


def ultimate(bars):
    before = np.append(np.nan, bars.close[:-1])
    pressure = bars.close - np.minimum(bars.low, before)
    ratios = [
        rolling(pressure, length).sum(axis=1) / rolling(true_range(bars), length).sum(axis=1) for length in (7, 14, 28)
    ]
    return (4 * ratios[0] + 2 * ratios[1] + ratios[2]) / 7 * 2 - 1


REFERENCES = {
    "return_1": lambda bars: change(bars, 1) / average_true_range(bars),
    "rsi_14": rsi,
    "macd_hist": macd_hist,
    "bollinger_20": bollinger,
    "natr_14": lambda bars: 100 * average_true_range(bars) / bars.close,
    "stoch_14": stochastic,
    "cci_20": cci,
    "ema_gap_20": lambda bars: (bars.close - ema(bars.close, 0, 20)) / average_true_range(bars),
    "volume_20": lambda bars: bars.volume / rolling(bars.volume, 20).mean(axis=1) - 1,
    "return_5": lambda bars: change(bars, 5) / average_true_range(bars),
    "aroon_14": aroon,
    "di_14": directional,
    "ultosc_28": ultimate,
    "body": lambda bars: (bars.close - bars.open) / (bars.high - bars.low),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_a_feature_equals_its_definition_in_numpy(name):
    bars = read_bars().first(1000)
    feature = compute_features(bars)[WARM_UP_BARS:, list(FEATURES).index(name)]
    # TA-Lib's running sums cancel to about 1e-7 of the deviation; float32 rounds at 1e-7 of values up to 10
    np.testing.assert_allclose(feature, REFERENCES[name](bars)[WARM_UP_BARS:], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("timeframe", "seconds"), [("5min", 300), ("1h", 3600), ("4h", 14400), ("1d", 86400), ("1w", 604800)]
)
def test_timeframes_are_read_as_times(timeframe, seconds):
    assert parse_timeframe(timeframe) == np.timedelta64(seconds, "s")


@pytest.mark.parametrize("timeframe", ["", "h", "0h", "1m", "1.5h", "1h ", "-1h"])
def test_what_is_not_a_timeframe_is_refused(timeframe):
    with pytest.raises(MarketError, match="expected a timeframe such as 5min, 1h, 4h, 1d or 1w, but got"):
        parse_timeframe(timeframe)


@pytest.mark.parametrize(
    ("timeframes", "message"),
    [
        ((), "from the shortest to the longest"),
        (("4h", "1h"), "from the shortest to the longest"),
        (("1h", "1h"), "from the shortest to the longest"),
        (("30min",), "'30min' is not a multiple of the bars' own interval of 3600 seconds"),
        (("1h", "90min"), "'90min' is not a multiple"),
    ],
)
def test_timeframes_that_bars_cannot_be_joined_into_are_refused(timeframes, message):
    with pytest.raises(MarketError, match=message):
        check_timeframes(timeframes, HOUR)
