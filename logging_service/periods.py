"""The pieces of a period: days, hours and quarter hours of roll-ups, and the edges."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Final, NamedTuple

from logging_service.rollups import DAY_SPAN, HOUR_SPAN, QUARTER_SPAN

_QUARTER: Final = timedelta(minutes=QUARTER_SPAN)
_SPANS: Final = (DAY_SPAN, HOUR_SPAN, QUARTER_SPAN)
_ZERO: Final = datetime(2000, 1, 1, tzinfo=UTC)

Period = tuple[datetime, datetime]
"""From the first time to the second, which is not included."""


class Stretch(NamedTuple):
    """A time that rows of one span, in minutes, make up: quarter hours, hours, or UTC days."""

    span: int
    start: datetime
    end: datetime


class Pieces(NamedTuple):
    """What a period consists of; each moment of it lies in one edge or in one stretch."""

    edges: tuple[Period, ...]
    """The times at both ends, or the one, that are less than a quarter hour."""
    quarters: Period
    """All stretches together; where there are none, its end is not behind its start."""
    stretches: tuple[Stretch, ...]
    """None reaches from one part into another that has rows of another span."""


def quarter_of(moment: datetime) -> datetime:
    """Return the start of the quarter hour in which `moment` lies."""
    return _start_of(moment, _QUARTER)


def end_of_quarters(moment: datetime) -> datetime:
    """Return the first start of a quarter hour that is not before `moment`."""
    return _end_of(moment, _QUARTER)


def aligned(points: Sequence[datetime]) -> list[datetime]:
    """Return points of which all but the first and the last begin a quarter hour.

    Those that do not are moved to the one before. The same point is there once.
    """
    start, *between, end = points
    kept = dict.fromkeys(point for point in map(quarter_of, between) if start < point < end)
    return [start, *kept, end]


def pieces_of(points: Sequence[datetime]) -> Pieces:
    """Return the pieces of the parts between aligned points: no row serves two parts."""
    start, end = points[0], points[-1]
    first, last = end_of_quarters(start), quarter_of(end)
    if first > last:
        return Pieces(((start, end),), (first, last), ())
    edges = tuple((since, until) for since, until in ((start, first), (last, end)) if since < until)
    parts = pairwise([first, *(point for point in points if first < point < last), last])
    return Pieces(edges, (first, last), tuple(_joined(parts)))


def covering(several: Iterable[Period]) -> list[Period]:
    """Return the periods, ascending and apart from each other, that several make up together."""
    apart: list[Period] = []
    for since, until in sorted(several):
        if apart and since <= apart[-1][1]:
            apart[-1] = apart[-1][0], max(until, apart[-1][1])
        else:
            apart.append((since, until))
    return apart


def _joined(parts: Iterator[Period]) -> list[Stretch]:
    stretches: list[Stretch] = []
    for since, until in parts:
        for stretch in _stretches(since, until, _SPANS):
            if stretches and stretches[-1].span == stretch.span:
                stretch = stretch._replace(start=stretches.pop().start)  # noqa: PLW2901
            stretches.append(stretch)
    return stretches


def _stretches(since: datetime, until: datetime, spans: Sequence[int]) -> Iterator[Stretch]:
    """Yield the stretch of the longest span that fits, between those before it and behind it."""
    if since == until:
        return
    span, *shorter = spans
    start, end = _end_of(since, timedelta(minutes=span)), _start_of(until, timedelta(minutes=span))
    if start < end:
        yield from _stretches(since, start, shorter)
        yield Stretch(span, start, end)
        yield from _stretches(end, until, shorter)
    else:
        yield from _stretches(since, until, shorter)


def _start_of(moment: datetime, length: timedelta) -> datetime:
    """Return the last multiple of `length` that is not behind `moment`."""
    return moment - (moment - _ZERO) % length


def _end_of(moment: datetime, length: timedelta) -> datetime:
    """Return the first multiple of `length` that is not before `moment`."""
    return moment + (_ZERO - moment) % length
