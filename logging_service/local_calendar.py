"""Where hours, days, weeks and months begin by the clock of a place."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from typing import Literal
from zoneinfo import ZoneInfo, available_timezones

Interval = Literal["hour", "day", "week", "month"]

_HOUR = timedelta(hours=1)
_LEAST = timedelta(microseconds=1)
# One is whatever this host is set to, the other says that it was never set.
_NO_PLACES = {"localtime", "Factory"}


@cache
def zone_names() -> frozenset[str]:
    """Return the names of the IANA time zones that this host or the package tzdata knows."""
    return frozenset(available_timezones() - _NO_PLACES)


def beginnings(after: datetime, interval: Interval, zone: ZoneInfo) -> Iterator[datetime]:
    """Yield in UTC, ascending and without end, where hours (or days …) after `after` begin.

    An hour ends where the minutes are 0, and where the clock is turned: then it is shorter, or
    comes twice. Days begin at midnight, or where the clock jumped over it; so they have 23 to 25
    hours, and one that a place left out is none. Weeks begin on Mondays, months on the first.
    """
    moment = after
    while True:
        moment = _next_hour(moment, zone) if interval == "hour" else _next(moment, interval, zone)
        yield moment


def _next_hour(moment: datetime, zone: ZoneInfo) -> datetime:
    local = moment.astimezone(zone)
    past = timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)
    ahead = moment + (_HOUR - past)
    if ahead.astimezone(zone).utcoffset() == local.utcoffset():
        return ahead
    return _turn(moment, ahead, zone)


def _next(moment: datetime, interval: Interval, zone: ZoneInfo) -> datetime:
    day = _following(moment.astimezone(zone).date(), interval)
    # A clock turned back over midnight comes to the same day again, which has begun by then.
    while (opening := _opening(day, zone)) <= moment:
        day = _following(day, interval)
    return opening


def _following(day: date, interval: Interval) -> date:
    """Return the next day, Monday or first of a month after `day`."""
    if interval == "day":
        return day + timedelta(days=1)
    if interval == "week":
        return day + timedelta(days=7 - day.weekday())
    return date(day.year + day.month // 12, day.month % 12 + 1, 1)


def _opening(day: date, zone: ZoneInfo) -> datetime:
    midnight = datetime.combine(day, time(), zone)
    opening = midnight.astimezone(UTC)
    if opening.astimezone(zone).replace(tzinfo=None) == midnight.replace(tzinfo=None):
        return opening
    return _turn(midnight.replace(fold=1).astimezone(UTC), opening, zone)


def _turn(before: datetime, after: datetime, zone: ZoneInfo) -> datetime:
    """Return when the clock is turned: behind `before`, not behind `after`."""
    offset = before.astimezone(zone).utcoffset()
    while after - before > _LEAST:
        middle = before + (after - before) / 2
        if middle.astimezone(zone).utcoffset() == offset:
            before = middle
        else:
            after = middle
    return after
