"""Price bars: one frozen record of arrays, and the reader that lets no faulty file through."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from zoneinfo import available_timezones

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lightning_grow.errors import GrowError

PRICES = ("open", "high", "low", "close")
TIME_COLUMNS = ("time", "date", "datetime", "timestamp")
_ROUNDING = 1e-9  # of a price: files of adjusted prices are rounded
BUNDLED_TIME_FORMAT = "%d.%m.%Y %H:%M:%S.%f"


class MarketError(GrowError, ValueError):
    """The bars, or the settings, cannot make a market."""


@dataclass(frozen=True)
class BarFormat:
    """How a file of bars is written, where `read_bars` cannot tell.

    Attributes:
        time_column: The column with the times; None for `time`, `date`, `datetime` or `timestamp`.
        time_format: Of its times, as `datetime.strptime` has it: "%m/%d/%Y %H:%M".
        time_unit: Of times that are numbers since 1970: "s", "ms", "us" or "ns".
        time_zone: Of times without an offset, by its IANA name: "America/New_York"; None is UTC.
        separator: Between the columns of a CSV; None is a comma.
    """

    time_column: str | None = None
    time_format: str | None = None
    time_unit: str | None = None
    time_zone: str | None = None
    separator: str | None = None

    def __post_init__(self) -> None:
        """Refuse a unit, or a zone, that does not exist."""
        if self.time_unit not in (None, "s", "ms", "us", "ns"):
            raise MarketError(f"expected a time_unit of s, ms, us or ns, but got {self.time_unit!r}.")
        if self.time_format is not None and self.time_unit is not None:
            raise MarketError("expected time_format, for times that are text, or time_unit, for numbers; got both.")
        if self.time_zone is not None and self.time_zone not in available_timezones():
            near = get_close_matches(self.time_zone, available_timezones(), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise MarketError(f"there is no time_zone {self.time_zone!r}.{hint} Give an IANA name: 'Europe/Berlin'.")

    @classmethod
    def of(cls, options: Mapping[str, Any] | None) -> "BarFormat":
        """From the options of a configuration.

        Raises:
            MarketError: There is no such option, or a value is none of its.
        """
        known = [field.name for field in fields(cls)]
        if unknown := [name for name in options or {} if name not in known]:
            raise MarketError(f"bars has no option {unknown[0]!r}; known: {', '.join(known)}.")
        return cls(**dict(options or {}))


PLAIN = BarFormat()


@dataclass(frozen=True)
class Bars:
    """Bars in order of time; every array has shape `(num_bars,)`.

    Attributes:
        closes_at: When each bar is complete, UTC; a decision may use a bar from then on.
        open: First price, as high, low and close > 0.
        high: Highest price.
        low: Lowest price.
        close: Last price.
        volume: Traded volume, >= 0; all zeros where the market reports none.
        interval: The time that one bar spans.
    """

    closes_at: NDArray[np.datetime64]
    open: NDArray[np.float64]
    high: NDArray[np.float64]
    low: NDArray[np.float64]
    close: NDArray[np.float64]
    volume: NDArray[np.float64]
    interval: np.timedelta64

    def __len__(self) -> int:
        """Return the number of bars."""
        return len(self.close)

    def first(self, num_bars: int) -> "Bars":
        """Return the first `num_bars` bars: all that is known when the last of them closes."""
        arrays = {
            field.name: getattr(self, field.name)[:num_bars] for field in fields(self) if field.name != "interval"
        }
        return replace(self, **arrays)


def bundled_path() -> Path:
    """Find the hourly EUR/USD bars of 2017 that gym-anytrading ships, without importing that package.

    Raises:
        MarketError: gym-anytrading is not installed.
    """
    spec = importlib.util.find_spec("gym_anytrading")
    if spec is None or spec.origin is None:
        raise MarketError(
            "the market's default bars are read from the package gym-anytrading, which is not installed. "
            "Run `pip install gym-anytrading`, or give bars of your own with path=."
        )
    return Path(spec.origin).parent / "datasets" / "data" / "FOREX_EURUSD_1H_ASK.csv"


def read_bars(path: str | Path | None = None, written: BarFormat = PLAIN) -> Bars:
    """Read OHLCV bars from a CSV or Parquet file, or the hourly EUR/USD bars of 2017.

    Columns, in any case and order: open, high, low, close, volume, and the time at which each bar *opens* as `time`,
    `date`, `datetime` or `timestamp` (in Parquet also the index). Times are ISO 8601 or `31.12.2017 22:00:00.000`;
    an offset is converted to UTC, no offset is taken as UTC. `written` says so where a file is written otherwise.

    Args:
        path: The file; None reads the bundled bars.
        written: The time column, the format, unit or zone of its times, and the separator.

    Returns:
        The bars, checked: times strictly rising, prices positive, finite and within low and high, volume finite and
        not negative.

    Raises:
        MarketError: The file is missing or not a table, a column is missing, or a value is faulty; the row is named.

    >>> bars = read_bars()
    >>> len(bars), str(bars.interval), str(bars.closes_at[0])
    (6225, '3600 seconds', '2017-01-01T23:00:00')
    """
    path = bundled_path() if path is None else Path(path)
    table = _read_table(path, written)
    opens_at = _parse_times(table[_find_time_column(table, path, written)], path, written)
    _check_rising(opens_at, path)
    columns = {name: _parse_numbers(table[name], path) for name in (*PRICES, "volume")}
    for low, high in (("low", "high"), ("low", "open"), ("low", "close"), ("open", "high"), ("close", "high")):
        _check_order(columns, low, high, path)
    # A bar spans the smallest step: longer steps are nights, weekends and holidays without trade.
    interval = np.diff(opens_at).min()
    return Bars(closes_at=opens_at + interval, interval=interval, **columns)


def _check_order(columns: Mapping[str, NDArray[np.float64]], low: str, high: str, path: Path) -> None:
    crossed = np.flatnonzero(columns[low] > columns[high] * (1 + _ROUNDING))
    if crossed.size:
        row = crossed[0]
        raise MarketError(
            f"{path}: {high} ({columns[high][row]:g}) is below {low} ({columns[low][row]:g}) in row {row + 1} "
            f"({crossed.size} such rows). Are the columns named as they should be?"
        )


def _read_table(path: Path, written: BarFormat) -> pd.DataFrame:
    if not path.is_file():
        raise MarketError(f"no file with bars at {path}. Give path= a CSV or Parquet file with OHLCV columns.")
    is_parquet = path.suffix.lower() in (".parquet", ".pq")
    try:
        table = pd.read_parquet(path) if is_parquet else pd.read_csv(path, sep=written.separator or ",")
    except ImportError as error:
        raise MarketError(f"{path}: Parquet needs pyarrow. Run `pip install pyarrow`, or give a CSV.") from error
    except (ValueError, OSError) as error:  # pandas' and pyarrow's own errors are children of these two
        kind = "Parquet" if is_parquet else "CSV"
        raise MarketError(f"{path}: expected a {kind} file with OHLCV columns, but {error}") from error
    if isinstance(table.index, pd.DatetimeIndex):
        table = table.rename_axis("time").reset_index()
    table.columns = pd.Index([str(column).strip().lower() for column in table.columns])
    return table


def _find_time_column(table: pd.DataFrame, path: Path, written: BarFormat) -> str:
    names = TIME_COLUMNS if written.time_column is None else (written.time_column.strip().lower(),)
    time_column = next((column for column in names if column in table), names[0])
    expected = (time_column, *PRICES, "volume")
    missing = [column for column in expected if column not in table]
    if missing:
        raise MarketError(
            f"{path}: expected the columns {', '.join(expected)}; {', '.join(missing)} missing, "
            f"found {', '.join(table.columns)}. Rename the columns (a market without volume: a column of zeros)."
        )
    if repeated := [column for column in expected if list(table.columns).count(column) > 1]:
        raise MarketError(
            f"{path}: expected one column each, but found {', '.join(repeated)} more than once. Drop one."
        )
    if len(table) < 2:
        raise MarketError(f"{path}: expected bars, found {len(table)}; at least 2 are needed to tell their interval.")
    return time_column


def _parse_times(column: "pd.Series[Any]", path: Path, written: BarFormat) -> NDArray[np.datetime64]:
    if pd.api.types.is_numeric_dtype(column) and not (written.time_unit or written.time_format):
        raise MarketError(
            f"{path}: column '{column.name}' holds numbers such as {column.iloc[0]}, whose unit is not known. "
            "Say time_unit (s, ms, us or ns since 1970) or time_format, or write times as ISO 8601."
        )
    times = _read_times(column, written)
    faulty = np.flatnonzero(times.isna())
    if faulty.size:
        expected = written.time_format or "ISO 8601, such as 2017-12-31T22:00:00, or 31.12.2017 22:00:00.000"
        raise MarketError(
            f"{path}: cannot read {column.iloc[faulty[0]]!r} in column '{column.name}', row {faulty[0] + 1} "
            f"({faulty.size} such rows). Expected {expected}; say time_format, time_unit or time_zone for others."
        )
    parsed: NDArray[np.datetime64] = times.dt.tz_localize(None).to_numpy().astype("datetime64[s]")
    return parsed


def _read_times(column: "pd.Series[Any]", written: BarFormat) -> "pd.Series[Any]":
    """In UTC; NaT where a time cannot be read."""
    if written.time_unit is not None:
        return pd.to_datetime(column, unit=written.time_unit, errors="coerce", utc=True)
    if written.time_format is not None:
        return _in_utc(column.astype(str), written.time_format, written.time_zone)
    times = _in_utc(column, BUNDLED_TIME_FORMAT, written.time_zone)
    return times.fillna(_in_utc(column, "ISO8601", written.time_zone))


def _in_utc(column: "pd.Series[Any]", time_format: str, time_zone: str | None) -> "pd.Series[Any]":
    if time_zone is None:
        return pd.to_datetime(column, format=time_format, errors="coerce", utc=True)
    times = pd.to_datetime(column, format=time_format, errors="coerce")
    if times.dtype == object or getattr(times.dt, "tz", None) is not None:  # they have offsets of their own
        return pd.to_datetime(column, format=time_format, errors="coerce", utc=True)
    try:
        local = times.dt.tz_localize(time_zone, ambiguous="infer", nonexistent="NaT")
    except ValueError:  # an hour that the clock shows twice, and only one of them is there
        local = times.dt.tz_localize(time_zone, ambiguous="NaT", nonexistent="NaT")
    return local.dt.tz_convert("UTC")


def _check_rising(times: NDArray[np.datetime64], path: Path) -> None:
    faulty = np.flatnonzero(np.diff(times) <= np.timedelta64(0, "s"))
    if faulty.size:
        before, after = times[faulty[0]], times[faulty[0] + 1]
        problem = "comes twice" if before == after else f"follows {before}"
        raise MarketError(
            f"{path}: times must rise from row to row, but {after} {problem} in row {faulty[0] + 2} "
            f"({faulty.size} such rows). Sort the bars by time and drop duplicates."
        )


def _parse_numbers(column: "pd.Series[Any]", path: Path) -> NDArray[np.float64]:
    numbers: NDArray[np.float64] = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    is_volume = column.name == "volume"
    faulty = np.flatnonzero(~(np.isfinite(numbers) & (numbers >= 0 if is_volume else numbers > 0)))
    if faulty.size:
        raise MarketError(
            f"{path}: expected {'a volume >= 0' if is_volume else 'a price > 0'} in column '{column.name}', but row "
            f"{faulty[0] + 1} holds {column.iloc[faulty[0]]} ({faulty.size} such rows). Fill or drop these rows."
        )
    return numbers
