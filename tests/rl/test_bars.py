import csv
import datetime
import sys

import numpy as np
import pandas as pd
import pytest

from lightning_grow.errors import GrowError
from lightning_grow.rl.bars import BarFormat, MarketError, bundled_path, read_bars
from lightning_grow.rl.market import MarketEnv

HEADER = "time,open,high,low,close,volume\n"
ROWS = ["2020-01-01T00:00:00,1,4,0.5,2,10\n", "2020-01-01T01:00:00,2,5,1.5,3,0\n", "2020-01-01T03:00:00,3,6,2.5,4,30\n"]


def write_csv(tmp_path, text, name="bars.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_bundled_bars_are_what_a_plain_csv_reader_finds_day_first():
    with bundled_path().open() as file:
        rows = list(csv.DictReader(file))
    bars = read_bars()
    opens_at = [datetime.datetime.strptime(row["Time"], "%d.%m.%Y %H:%M:%S.%f") for row in rows]
    assert (bars.closes_at == np.array(opens_at, "datetime64[s]") + np.timedelta64(1, "h")).all()
    for name in ("open", "high", "low", "close", "volume"):
        assert (getattr(bars, name) == [float(row[name.capitalize()]) for row in rows]).all(), name
    assert len(bars) == 6225
    assert (bars.high >= np.maximum(bars.open, bars.close)).all()


def test_bundled_bars_are_found_without_importing_their_package():
    bundled_path()
    assert "gym_anytrading" not in sys.modules


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(HEADER + "".join(ROWS), id="iso"),
        pytest.param("Volume,CLOSE, Low,high,open,Date\n10,2,.5,4,1,2020-01-01 00:00\n0,3,1.5,5,2,2020-01-01 01:00\n"
                     "30,4,2.5,6,3,2020-01-01 03:00\n", id="any case and order"),
        pytest.param(HEADER + "".join(ROWS).replace("2020-01-01T", "01.01.2020 ").replace(":00,", ":00.000,"),
                     id="dotted"),
        pytest.param(HEADER + ROWS[0].replace("00:00,", "00:00+00:00,") + ROWS[1].replace("01:00:00", "03:00:00+02:00")
                     + ROWS[2], id="offsets become UTC"),
    ],
)  # fmt: skip
def test_the_same_bars_are_read_however_they_are_written(tmp_path, text):
    bars = read_bars(write_csv(tmp_path, text))
    assert [str(time) for time in bars.closes_at] == [f"2020-01-01T0{hour}:00:00" for hour in (1, 2, 4)]
    assert bars.interval == np.timedelta64(1, "h")
    assert bars.high.tolist() == [4, 5, 6]
    assert bars.volume.tolist() == [10, 0, 30]


@pytest.mark.parametrize("time_as_index", [False, True])
def test_parquet_gives_the_bars_of_the_csv(tmp_path, time_as_index):
    table = pd.read_csv(bundled_path()).head(50)
    table["Time"] = pd.to_datetime(table["Time"], format="%d.%m.%Y %H:%M:%S.%f")
    table = table.set_index("Time") if time_as_index else table
    table.to_parquet(tmp_path / "bars.parquet")
    bars, expected = read_bars(tmp_path / "bars.parquet"), read_bars().first(50)
    for name in ("closes_at", "open", "high", "low", "close", "volume"):
        assert (getattr(bars, name) == getattr(expected, name)).all(), name


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MarketError, match=r"needs pyarrow\. Run `pip install pyarrow`"):
        read_bars(write_csv(tmp_path, "", "bars.parquet"))


def test_missing_gym_anytrading_says_what_to_install(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    with pytest.raises(MarketError, match="pip install gym-anytrading`, or give bars of your own with path="):
        bundled_path()


GOOD = HEADER + "".join(ROWS)
FAULTS = {
    "missing columns": (GOOD.replace("close", "price").replace("volume", "size"),
                        "expected the columns time, open, high, low, close, volume; close, volume missing, "
                        "found time, open, high, low, price, size"),
    "missing time": (GOOD.replace("time", "when"), "time missing, found when, open"),
    "misnamed column": (GOOD.replace("open", "Close"), "open missing, found time, close, high, low, close, volume"),
    "column in two cases": (HEADER.replace("close", "close,Close") + "2020-01-01T00:00:00,1,4,0.5,2,2,10\n",
                            "close more than once"),
    "american dates": (GOOD.replace("2020-01-01T03", "12/31/2020 03"),
                       r"cannot read '12/31/2020 03:00:00' in column 'time', row 3 \(1 such rows\)"),
    "empty time": (GOOD.replace("2020-01-01T01:00:00", ""), "cannot read nan in column 'time', row 2"),
    "epoch": (HEADER + "1577836800,1,4,0.5,2,10\n1577840400,2,5,1.5,3,0\n", "holds numbers such as 1577836800"),
    "unsorted": (HEADER + ROWS[0] + ROWS[2] + ROWS[1],
                 "2020-01-01T01:00:00 follows 2020-01-01T03:00:00 in row 3 .1 such rows.. Sort"),
    "duplicated": (HEADER + ROWS[0] + ROWS[1] + ROWS[1], "2020-01-01T01:00:00 comes twice in row 3"),
    "empty price": (GOOD.replace("0.5", ""), "expected a price > 0 in column 'low', but row 1 holds nan"),
    "text for a price": (GOOD.replace("2.5", "n/k"), "column 'low', but row 3 holds n/k"),
    "infinite price": (GOOD.replace(",6,", ",inf,"), "column 'high', but row 3 holds inf"),
    "zero price": (GOOD.replace(",3,0\n", ",0,0\n"), "expected a price > 0 in column 'close', but row 2 holds 0"),
    "negative volume": (GOOD.replace(",10\n", ",-1\n"),
                        "expected a volume >= 0 in column 'volume', but row 1 holds -1"),
    "swapped columns": (GOOD.replace("high,low", "low,high"),
                        r"high \(0\.5\) is below low \(4\) in row 1 \(3 such rows\)"),
    "open below low": (GOOD.replace("1,4,0.5", "0.25,4,0.5"), r"open \(0\.25\) is below low \(0\.5\) in row 1"),
    "close above high": (GOOD.replace("6,2.5,4", "6,2.5,6.5"), r"high \(6\) is below close \(6\.5\) in row 3 .1 such"),
    "open above high": (GOOD.replace("2,5,1.5", "5.5,5,1.5"), r"high \(5\) is below open \(5\.5\) in row 2"),
    "close below low": (GOOD.replace("6,2.5,4", "6,2.5,2.25"), r"close \(2\.25\) is below low \(2\.5\) in row 3"),
    "no rows": (HEADER, "expected bars, found 0; at least 2"),
    "empty file": ("", "expected a CSV file with OHLCV columns, but No columns"),
    "broken rows": (GOOD + "1,2,3,4,5,6,7,8,9\n", "expected a CSV file with OHLCV columns, but Error tokenizing"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), FAULTS.values(), ids=FAULTS)
def test_a_faulty_file_is_refused_by_name_place_and_cure(tmp_path, text, message):
    path = write_csv(tmp_path, text)
    with pytest.raises(MarketError, match=message) as caught:
        read_bars(path)
    assert str(path) in str(caught.value)
    assert isinstance(caught.value, GrowError)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [("absent.csv", None, "no file with bars at .*absent.csv"), ("bars.parquet", GOOD, "expected a Parquet file")],
)
def test_a_file_that_is_absent_or_of_another_format_is_refused(tmp_path, name, text, message):
    path = tmp_path / name if text is None else write_csv(tmp_path, text, name)
    with pytest.raises(MarketError, match=message):
        read_bars(path)


FORMATS = {
    "column": (GOOD.replace("time", "When"), {"time_column": "when"}),
    "seconds": (HEADER + "1577836800,1,4,0.5,2,10\n1577840400,2,5,1.5,3,0\n1577847600,3,6,2.5,4,30\n",
                {"time_unit": "s"}),
    "milliseconds": (HEADER + "1577836800000,1,4,0.5,2,10\n1577840400000,2,5,1.5,3,0\n1577847600000,3,6,2.5,4,30\n",
                     {"time_unit": "ms"}),
    "american": (GOOD.replace("2020-01-01T", "01/01/2020 "), {"time_format": "%m/%d/%Y %H:%M:%S"}),
    "numbers as text": (HEADER + "2020010100,1,4,0.5,2,10\n2020010101,2,5,1.5,3,0\n2020010103,3,6,2.5,4,30\n",
                        {"time_format": "%Y%m%d%H"}),
    "zone": (GOOD.replace("2020-01-01T00", "2020-01-01T01").replace("2020-01-01T01:00:00,2", "2020-01-01T02:00:00,2")
             .replace("2020-01-01T03", "2020-01-01T04"), {"time_zone": "Europe/Berlin"}),
    "an offset beside a zone": (GOOD.replace(":00,", ":00Z,", 1).replace(":00:00,2", ":00:00Z,2")
                                .replace(":00:00,3", ":00:00Z,3"), {"time_zone": "Europe/Berlin"}),
    "separator": (GOOD.replace(",", ";"), {"separator": ";"}),
}  # fmt: skip


@pytest.mark.parametrize(("text", "options"), FORMATS.values(), ids=FORMATS)
def test_a_file_is_read_as_it_is_said_to_be_written(tmp_path, text, options):
    bars = read_bars(write_csv(tmp_path, text), BarFormat.of(options))
    assert [str(time) for time in bars.closes_at] == [f"2020-01-01T0{hour}:00:00" for hour in (1, 2, 4)]
    assert bars.close.tolist() == [2, 3, 4]


def test_an_hour_that_the_clock_shows_twice_is_two_hours(tmp_path):
    hours = ["01:00:00", "02:00:00", "02:00:00", "03:00:00"]  # summer time ends at three
    text = HEADER + "".join(f"2020-10-25T{hour},1,4,0.5,2,10\n" for hour in hours)
    bars = read_bars(write_csv(tmp_path, text), BarFormat(time_zone="Europe/Berlin"))
    assert [str(time)[11:13] for time in bars.closes_at] == ["00", "01", "02", "03"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time_unit": "h"}, "time_unit of s, ms, us or ns, but got 'h'"),
        ({"time_unit": "s", "time_format": "%Y"}, "got both"),
        ({"time_zone": "Europe/Berln"}, "Did you mean 'Europe/Berlin'"),
        ({"sep": ";"}, "no option 'sep'; known: time_column, time_format, time_unit, time_zone, separator"),
    ],
)
def test_a_format_that_is_none_is_refused(options, message):
    with pytest.raises(MarketError, match=message):
        BarFormat.of(options)


def test_prices_may_differ_by_rounding(tmp_path):
    assert len(read_bars(write_csv(tmp_path, GOOD.replace("1,4,0.5", "1,4,1.0000000000001")))) == 3


def test_the_market_takes_the_format_of_its_file(tmp_path):
    table = pd.read_csv(bundled_path())
    table.rename(columns={"Time": "When"}).to_csv(tmp_path / "own.csv", sep=";", index=False)
    own = MarketEnv(path=str(tmp_path / "own.csv"), bars={"time_column": "when", "separator": ";"})
    (ours, _), (theirs, _) = own.reset(seed=1), MarketEnv().reset(seed=1)
    assert np.array_equal(ours, theirs)
