"""What the roll-ups tell about the events of one project, which no index of the events has."""

import time
from bisect import bisect_right
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

import asyncpg

from logging_service.periods import Period, quarter_of
from logging_service.ports import EventKey, EventTypeCount, Filter
from logging_service.read_statements import SQL
from logging_service.rollups import DAY_SPAN, QUARTER_SPAN

_WINDOW: Final = timedelta(days=7)
_SHORT: Final = timedelta(days=2)
_MICROSECOND: Final = timedelta(microseconds=1)
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_FIRST_ID, _LAST_ID = UUID(int=0), UUID(int=2**128 - 1)


def _counted_types(wanted: Filter) -> list[str]:
    return list(wanted.event_types) or [""]


async def _stored_days(connection: asyncpg.Connection) -> list[Period]:
    """Return the time that each partition covers, the oldest first."""
    rows = await connection.fetch(SQL["partitions"])
    return [(row["since"], row["until"]) for row in reversed(rows)]


async def types_of(connection: asyncpg.Connection, source: str) -> list[EventTypeCount]:
    """Return every event type of a project, the most frequent first, as the roll-ups count them."""
    days = await _stored_days(connection)
    rows = await connection.fetch(SQL["types_of_source"], source, days[0][0]) if days else []
    return [EventTypeCount(*row) for row in rows]


async def most_of(connection: asyncpg.Connection, wanted: Filter) -> int:
    """Return how many events of these types the project has in days or quarter hours of this time.

    Whatever else is asked for only makes it fewer.
    """
    days = await _stored_days(connection)
    if not days:
        return 0
    since = max(wanted.start or days[0][0], days[0][0])
    until = min(wanted.end or days[-1][1], days[-1][1])
    span, begin = QUARTER_SPAN, quarter_of(since)
    if until - since > _SHORT:
        span, begin = DAY_SPAN, since.replace(hour=0, minute=0, second=0, microsecond=0)
    counted = (begin, until, wanted.source, _counted_types(wanted), span)
    number: int = await connection.fetchval(SQL["count_of_source"], *counted)
    return number


class Places:
    """Where in time a project can have events that are wanted, so that the rest is not read."""

    def __init__(self, connection: asyncpg.Connection, wanted: Filter, deadline: float) -> None:
        self.ended = False
        self._connection = connection
        self._wanted = wanted
        self._deadline = deadline
        self._days: list[Period] | None = None
        self._window = datetime.min.replace(tzinfo=UTC)
        self._periods: list[Period] = []

    async def behind(self, after: EventKey) -> EventKey:
        """Return behind which key to read on: `after`, or one with nothing of the project between.

        `ended` is set where nothing of it is left. At the deadline it ends as far as it got.
        """
        if self._days is None:
            self._days = await _stored_days(self._connection)
        look = self._back if self._wanted.newest_first else self._ahead
        here = after.timestamp
        while not self._is_beyond(here):
            await self._read(here)
            found, here = look(here)
            if found is not None:
                return found if self._is_further(found, after) else after
            if time.monotonic() >= self._deadline:
                return self._key_at(here)
        self.ended = True
        return after

    def _is_beyond(self, here: datetime) -> bool:
        days = self._days or []
        if not days:
            return True
        since = max(self._wanted.start or days[0][0], days[0][0])
        until = min(self._wanted.end or days[-1][1], days[-1][1])
        return here < since if self._wanted.newest_first else here >= until

    def _is_further(self, found: EventKey, after: EventKey) -> bool:
        return found < after if self._wanted.newest_first else found > after

    def _key_at(self, here: datetime) -> EventKey:
        """Return the key behind which everything from `here` on lies."""
        if self._wanted.newest_first:
            return EventKey(here + _MICROSECOND, _FIRST_ID)
        return EventKey(here - _MICROSECOND, _LAST_ID)

    def _back(self, here: datetime) -> tuple[EventKey | None, datetime]:
        """Return where the last period up to `here` ends, or a time before this window."""
        place = bisect_right(self._periods, here, key=lambda period: period[0])
        if place == 0:
            return None, self._window - _MICROSECOND
        until = self._periods[place - 1][1]
        return EventKey(until, _FIRST_ID), here

    def _ahead(self, here: datetime) -> tuple[EventKey | None, datetime]:
        """Return where the first period that ends behind `here` begins, or the next window."""
        place = bisect_right(self._periods, here, key=lambda period: period[1])
        if place == len(self._periods):
            return None, self._window + _WINDOW
        since = self._periods[place][0]
        return EventKey(since - _MICROSECOND, _LAST_ID), here

    async def _read(self, here: datetime) -> None:
        window = _EPOCH + (here - _EPOCH) // _WINDOW * _WINDOW
        if window == self._window:
            return
        days = self._days or []
        rows = await self._connection.fetch(
            SQL["places"],
            window,
            window + _WINDOW,
            self._wanted.source,
            _counted_types(self._wanted),
            [since for since, _ in days],
            [until for _, until in days],
        )
        self._window = window
        self._periods = [(row["since"], row["until"]) for row in rows]
