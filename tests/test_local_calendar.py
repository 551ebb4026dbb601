"""Where hours, days, weeks and months begin by the clock of a place."""

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise, takewhile
from typing import get_args
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from logging_service.local_calendar import Interval, beginnings, zone_names

LEAST = timedelta(microseconds=1)
ZONES = st.sampled_from(sorted(zone_names()))
START = datetime(2000, 1, 1, tzinfo=UTC)
MOMENTS = st.timedeltas(timedelta(), timedelta(days=37 * 365)).map(lambda past: START + past)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def all_between(start: str, end: str, interval: Interval, zone: str) -> list[str]:
    """Return the beginnings from `start`, included, to `end`, not included, by the local clock."""
    place = ZoneInfo(zone)
    found = takewhile(lambda at_: at_ < at(end), beginnings(at(start) - LEAST, interval, place))
    return [moment.astimezone(place).isoformat() for moment in found]


def label(moment: datetime, interval: Interval, zone: ZoneInfo) -> object:
    """Return what the clock and the calendar on the wall tell, as far as the interval goes."""
    local = moment.astimezone(zone)
    return {
        "hour": (local.date(), local.hour, local.utcoffset()),
        "day": local.date(),
        "week": local.isocalendar()[:2],
        "month": (local.year, local.month),
    }[interval]


@settings(max_examples=300, deadline=None)
@given(ZONES, MOMENTS, st.sampled_from(get_args(Interval)))
@example("Pacific/Apia", at("2011-12-28T00:00:00Z"), "day")
@example("America/St_Johns", at("2010-11-06T00:00:00Z"), "day")
@example("America/St_Johns", at("2010-11-07T02:30:00Z"), "day")
@example("America/Sao_Paulo", at("2018-11-02T00:00:00Z"), "day")
@example("America/Havana", at("2026-10-30T00:00:00Z"), "hour")
@example("Australia/Lord_Howe", at("2026-04-03T00:00:00Z"), "hour")
def test_each_part_is_one_hour_day_week_or_month_of_the_local_clock_and_none_is_left_out(
    name: str, start: datetime, interval: Interval
) -> None:
    zone = ZoneInfo(name)
    points = list(islice(beginnings(start, interval, zone), 40))
    assert points[0] > start
    for begin, end in pairwise(points):
        assert begin < end
        assert label(begin - LEAST, interval, zone) != label(begin, interval, zone)
        assert label(begin, interval, zone) == label(end - LEAST, interval, zone)


@settings(max_examples=100, deadline=None)
@given(ZONES, MOMENTS)
@example("America/St_Johns", at("2010-11-06T00:00:00Z"))
@example("Australia/Lord_Howe", at("2026-10-02T00:00:00Z"))
def test_days_begin_where_hours_begin_and_weeks_and_months_where_days_do(
    name: str, start: datetime
) -> None:
    zone = ZoneInfo(name)

    def until(end: datetime, interval: Interval) -> set[datetime]:
        return set(takewhile(lambda point: point < end, beginnings(start, interval, zone)))

    assert until(start + timedelta(days=9), "hour") >= until(start + timedelta(days=9), "day")
    days = until(start + timedelta(days=70), "day")
    assert days >= until(start + timedelta(days=70), "week")
    assert days >= until(start + timedelta(days=70), "month")


def hours_of(days: list[str]) -> list[float]:
    moments = map(datetime.fromisoformat, days)
    return [(later - earlier).total_seconds() / 3600 for earlier, later in pairwise(moments)]


@pytest.mark.parametrize(
    ("zone", "start", "hours"),
    [
        ("UTC", "2026-03-07T00:00:00+00:00", [24, 24, 24]),
        ("Asia/Kolkata", "2026-03-07T00:00:00+05:30", [24, 24, 24]),
        ("America/New_York", "2026-03-07T00:00:00-05:00", [24, 23, 24]),
        ("America/New_York", "2026-10-31T00:00:00-04:00", [24, 25, 24]),
        ("Australia/Lord_Howe", "2026-10-03T00:00:00+10:30", [24, 23.5, 24]),
        ("Australia/Lord_Howe", "2026-04-04T00:00:00+11:00", [24, 24.5, 24]),
        ("America/Sao_Paulo", "2018-11-03T00:00:00-03:00", [24, 23, 24]),
    ],
)
def test_days_are_as_long_as_the_clock_makes_them(
    zone: str, start: str, hours: list[float]
) -> None:
    end = (at(start) + timedelta(hours=sum(hours) + 1)).isoformat()
    days = all_between(start, end, "day", zone)
    assert days[0] == start
    assert hours_of(days) == hours


def test_a_day_whose_midnight_the_clock_jumps_over_begins_behind_it() -> None:
    days = all_between("2018-11-03T03:00:00Z", "2018-11-05T03:00:00Z", "day", "America/Sao_Paulo")
    assert days == [
        "2018-11-03T00:00:00-03:00",
        "2018-11-04T01:00:00-02:00",
        "2018-11-05T00:00:00-02:00",
    ]


def test_a_day_that_a_place_left_out_is_no_part() -> None:
    days = all_between("2011-12-28T12:00:00Z", "2012-01-01T00:00:00Z", "day", "Pacific/Apia")
    assert days == [
        "2011-12-29T00:00:00-10:00",
        "2011-12-31T00:00:00+14:00",
        "2012-01-01T00:00:00+14:00",
    ]


@pytest.mark.parametrize(
    ("zone", "start", "end", "expected"),
    [
        (
            "America/New_York",
            "2026-11-01T00:00:00-04:00",
            "2026-11-01T03:00:00-05:00",
            ["00:00-04:00", "01:00-04:00", "01:00-05:00", "02:00-05:00"],
        ),
        (
            "America/New_York",
            "2026-03-08T01:00:00-05:00",
            "2026-03-08T05:00:00-04:00",
            ["01:00-05:00", "03:00-04:00", "04:00-04:00"],
        ),
        (
            "Australia/Lord_Howe",
            "2026-10-04T01:00:00+10:30",
            "2026-10-04T05:00:00+11:00",
            ["01:00+10:30", "02:30+11:00", "03:00+11:00", "04:00+11:00"],
        ),
        (
            "Australia/Lord_Howe",
            "2026-04-05T00:00:00+11:00",
            "2026-04-05T03:00:00+10:30",
            ["00:00+11:00", "01:00+11:00", "01:30+10:30", "02:00+10:30"],
        ),
        (
            "Asia/Kathmandu",
            "2026-01-01T00:00:00Z",
            "2026-01-01T02:00:00Z",
            ["06:00+05:45", "07:00+05:45"],
        ),
    ],
)
def test_hours_begin_where_the_local_minutes_are_0_and_where_the_clock_is_turned(
    zone: str, start: str, end: str, expected: list[str]
) -> None:
    found = all_between(start, end, "hour", zone)
    assert [hour[11:16] + hour[19:] for hour in found] == expected


def test_weeks_begin_on_mondays_and_months_on_their_first_also_over_a_new_year() -> None:
    weeks = all_between("2026-12-20T00:00:00Z", "2027-01-12T00:00:00Z", "week", "UTC")
    assert [week[:10] for week in weeks] == ["2026-12-21", "2026-12-28", "2027-01-04", "2027-01-11"]
    months = all_between(
        "2026-11-01T00:00:00+01:00", "2027-04-05T00:00:00Z", "month", "Europe/Berlin"
    )
    assert months == [
        "2026-11-01T00:00:00+01:00",
        "2026-12-01T00:00:00+01:00",
        "2027-01-01T00:00:00+01:00",
        "2027-02-01T00:00:00+01:00",
        "2027-03-01T00:00:00+01:00",
        "2027-04-01T00:00:00+02:00",
    ]


def test_every_zone_is_a_place() -> None:
    assert {"UTC", "Europe/Berlin", "Asia/Kolkata", "Etc/GMT+5"} <= zone_names()
    assert not {"localtime", "Factory", "../UTC", "posix/UTC", ""} & zone_names()
