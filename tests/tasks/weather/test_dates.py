import numpy as np
import pytest

from hftune.tasks.weather.dates import (
    describe_times,
    format_time,
    interval_seconds,
    parse_dates,
    select_rows,
)
from hftune.utils.errors import DataError

DAY = 86400


def seconds(text: str) -> int:
    return int(np.datetime64(text, "s").astype(np.int64))


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("1995", "1995-01-01", "1996-01-01"),
        ("1996-02", "1996-02-01", "1996-03-01"),
        ("1995-12-31", "1995-12-31", "1996-01-01"),
        ("1995-12-31T12", "1995-12-31T12", "1995-12-31T13"),
        ("1961-01-01:1994-12-31", "1961-01-01", "1995-01-01"),
        ("1961:1994-06", "1961-01-01", "1994-07-01"),
        ("2020-01-01T06:2020-01-02T18", "2020-01-01T06", "2020-01-02T19"),
        ("2020-01-01T06:30:2020-01-01T07:00", "2020-01-01T06:30", "2020-01-01T07:01"),
    ],
)
def test_ranges(text, start, end):
    assert parse_dates(text) == [(seconds(start), seconds(end))]


def test_several_and_open_ranges():
    first, second = parse_dates("1995, 1997:1998")
    assert first == (seconds("1995"), seconds("1996"))
    assert second == (seconds("1997"), seconds("1999"))
    assert parse_dates("1995:")[0][0] == seconds("1995") < parse_dates("1995:")[0][1]
    assert parse_dates(":1995")[0][1] == seconds("1996")


@pytest.mark.parametrize("text", ["", "95", "1995/1996", "yesterday", "1995:96", ":", "1995,,1996"])
def test_unreadable(text):
    with pytest.raises(DataError, match="cannot read .* as dates. Give a range like 1961-01-01:"):
        parse_dates(text)


def test_impossible():
    with pytest.raises(DataError, match="'1995-02-30' .* is not a date: day"):
        parse_dates("1995-02-30")
    with pytest.raises(DataError, match="'1996:1995' end before they begin: swap them"):
        parse_dates("1996:1995")


def test_select_rows():
    times = seconds("2020-01-01") + DAY * np.arange(10)
    assert select_rows(times, "2020-01-03:2020-01-05").tolist() == [2, 3, 4]
    assert select_rows(times, "2020-01-09:,2020-01-01").tolist() == [0, 8, 9]
    assert select_rows(times, "0%:80%").tolist() == list(range(8))
    assert select_rows(times, "80%:100%").tolist() == [8, 9]
    assert select_rows(times, None).tolist() == list(range(10))
    assert select_rows(times, slice(2, 6, 2)).tolist() == [2, 4]
    assert select_rows(times, [7, 1]).tolist() == [7, 1]


def test_empty_selection_says_what_there_is():
    times = seconds("2020-01-01") + DAY * np.arange(10)
    with pytest.raises(DataError) as error:
        select_rows(times, "2021")
    assert str(error.value) == (
        "no time lies within '2021': the data have 10 times from 2020-01-01 to 2020-01-10, "
        "every 24 h."
    )
    with pytest.raises(DataError, match="row 10 does not exist: the rows go from 0 to 9"):
        select_rows(times, [3, 10])
    with pytest.raises(DataError, match="must increase and end at 100%"):
        select_rows(times, "80%:120%")


def test_descriptions():
    assert format_time(seconds("1995-06-01")) == "1995-06-01"
    assert format_time(seconds("1995-06-01T06:30")) == "1995-06-01T06:30"
    assert interval_seconds(np.array([0, 6, 12, 30, 36]) * 3600) == 6 * 3600
    assert describe_times(np.array([0])) == "one time, 1970-01-01"
