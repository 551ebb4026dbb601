"""How a period falls into days, hours, quarter hours and edges."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logging_service.periods import (
    Pieces,
    aligned,
    covering,
    end_of_quarters,
    pieces_of,
    quarter_of,
)

DAY = datetime(2026, 11, 1, tzinfo=UTC)
moments = st.datetimes(datetime(1999, 12, 30), datetime(2000, 1, 6), timezones=st.just(UTC))  # noqa: DTZ001
several = st.lists(moments, min_size=2, max_size=9, unique=True).map(sorted)


def at(text: str) -> datetime:
    day, hour, minute = map(int, text.replace(":", " ").split())
    return DAY.replace(day=day, hour=hour, minute=minute)


def spelled(pieces: Pieces) -> list[str]:
    edges = [("edge", *edge) for edge in pieces.edges]
    rows = [(f"{stretch.span}", stretch.start, stretch.end) for stretch in pieces.stretches]
    ordered = sorted(edges + rows, key=lambda one: one[1])
    return [f"{kind} {start:%d %H:%M}-{end:%d %H:%M}" for kind, start, end in ordered]


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ("1 00:00, 3 00:00", ["1440 01 00:00-03 00:00"]),
        ("1 10:05, 1 10:10", ["edge 01 10:05-01 10:10"]),
        ("1 10:05, 1 10:20", ["edge 01 10:05-01 10:15", "edge 01 10:15-01 10:20"]),
        ("1 10:00, 1 10:07", ["edge 01 10:00-01 10:07"]),
        ("1 10:00, 1 10:45", ["15 01 10:00-01 10:45"]),
        ("1 09:45, 1 12:15", [
            "15 01 09:45-01 10:00", "60 01 10:00-01 12:00", "15 01 12:00-01 12:15",
        ]),
        (
            "1 21:50, 4 01:20",
            [
                "edge 01 21:50-01 22:00", "60 01 22:00-02 00:00", "1440 02 00:00-04 00:00",
                "60 04 00:00-04 01:00", "15 04 01:00-04 01:15", "edge 04 01:15-04 01:20",
            ],
        ),
        (
            "1 18:30, 2 18:30, 3 18:30",
            [
                "15 01 18:30-01 19:00", "60 01 19:00-02 18:00", "15 02 18:00-02 19:00",
                "60 02 19:00-03 18:00", "15 03 18:00-03 18:30",
            ],
        ),
        ("1 18:00, 2 00:00, 3 00:00", ["60 01 18:00-02 00:00", "1440 02 00:00-03 00:00"]),
        ("1 18:00, 2 18:00, 3 18:00", ["60 01 18:00-03 18:00"]),
        (
            "1 18:00, 3 18:00, 4 18:00",
            ["60 01 18:00-02 00:00", "1440 02 00:00-03 00:00", "60 03 00:00-04 18:00"],
        ),
    ],
)  # fmt: skip
def test_a_period_is_made_of_days_hours_quarters_and_edges(
    points: str, expected: list[str]
) -> None:
    assert spelled(pieces_of([at(point) for point in points.split(", ")])) == expected


@given(several)
def test_pieces_follow_each_other_without_gaps_and_no_row_reaches_into_two_parts(
    points: list[datetime],
) -> None:
    points = aligned(points)
    pieces = pieces_of(points)
    ordered = sorted([*pieces.edges, *((one.start, one.end) for one in pieces.stretches)])
    assert [ordered[0][0], ordered[-1][1]] == [points[0], points[-1]]
    assert all(before[1] == after[0] for before, after in pairwise(ordered))
    quarters = [(one.start, one.end) for one in pieces.stretches]
    assert all(quarter_of(moment) == moment for piece in quarters for moment in piece)
    if quarters:
        assert (quarters[0][0], quarters[-1][1]) == pieces.quarters
    for span, start, end in pieces.stretches:
        length = timedelta(minutes=span)
        inner = [start, *(point for point in points if start < point < end), end]
        assert all((moment - DAY) % length == timedelta() for moment in inner)


@given(several)
def test_aligned_points_keep_the_ends_and_begin_quarter_hours_between(
    points: list[datetime],
) -> None:
    start, *between, end = aligned(points)
    assert (start, end) == (points[0], points[-1])
    assert all(quarter_of(point) == point for point in between)
    assert [start, *between, end] == sorted({start, *between, end})


@given(moments)
def test_a_quarter_hour_ends_where_the_next_one_begins(moment: datetime) -> None:
    start, end = quarter_of(moment), end_of_quarters(moment)
    assert start <= moment <= end
    assert end - start == (timedelta(0) if start == moment else timedelta(minutes=15))
    assert (start.minute % 15, start.second, start.microsecond) == (0, 0, 0)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), max_size=9))
def test_covering_periods_are_apart_and_cover_the_same_and_nothing_else(
    several: list[tuple[int, int]],
) -> None:
    minutes = [DAY + timedelta(minutes=number) for number in range(60)]
    given_periods = [(minutes[start], minutes[start + length]) for start, length in several]
    found = covering(given_periods)
    assert all(before[1] < after[0] for before, after in pairwise(found))
    for moment in minutes:
        inside = any(start <= moment < end for start, end in given_periods)
        assert inside == any(start <= moment < end for start, end in found)
