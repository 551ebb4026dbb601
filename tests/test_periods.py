"""How a period falls into days, quarter hours and edges."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logging_service.periods import Pieces, aligned, end_of_quarters, pieces_of, quarter_of

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
        (
            "1 22:50, 4 01:20",
            [
                "edge 01 22:50-01 23:00", "15 01 23:00-02 00:00", "1440 02 00:00-04 00:00",
                "15 04 00:00-04 01:15", "edge 04 01:15-04 01:20",
            ],
        ),
        ("1 18:30, 2 18:30, 3 18:30", ["15 01 18:30-03 18:30"]),
        ("1 18:00, 2 00:00, 3 00:00", ["15 01 18:00-02 00:00", "1440 02 00:00-03 00:00"]),
        (
            "1 18:30, 3 18:30, 4 18:30",
            [
                "15 01 18:30-02 00:00", "1440 02 00:00-03 00:00", "15 03 00:00-04 18:30",
            ],
        ),
    ],
)  # fmt: skip
def test_a_period_is_made_of_days_quarters_and_edges(points: str, expected: list[str]) -> None:
    assert spelled(pieces_of([at(point) for point in points.split(", ")])) == expected


@given(several)
def test_pieces_follow_each_other_without_gaps_and_days_lie_within_one_part(
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
    days = [one for one in pieces.stretches if one.span == 1440]
    for day in days:
        assert day.start.time() == day.end.time() == DAY.time()
        inner = [point for point in points if day.start < point < day.end]
        assert all(point.time() == DAY.time() for point in inner)


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
