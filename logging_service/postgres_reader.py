"""The stored events in PostgreSQL, read: pages by key, single events, counts."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from logging_service import wire
from logging_service.errors import QueryRejected
from logging_service.events import uuid7_micros
from logging_service.ports import (
    Event,
    EventKey,
    EventTypeCount,
    Filter,
    Page,
    Total,
)
from logging_service.postgres import (
    check_schema,
    open_pool,
    weather,
)
from logging_service.postgres_projects import Places, most_of, types_of
from logging_service.postgres_roles import role_warnings
from logging_service.read_statements import SQL, Statement

READ_SECONDS = 2.0
MOST_COUNTED = 10_000
_COUNT_SECONDS = 0.3
_ACQUIRE_SECONDS = 5.0
_STATEMENT_MS = 10_000
_COMMAND_SECONDS = 12.0  # for a server that no longer minds its own limit
_FIRST_CHUNK, _SMALLEST_CHUNK, _LARGEST_CHUNK = 200, 20, 20_000
_QUICK_SECONDS, _SLOW_SECONDS = 0.05, 0.2
# An answer holds 16 MiB and a slice more: rows are fetched in slices of at most 15 MiB.
_PAGE_BYTES, _SLICE = 16 * 1024 * 1024, 60
_KEY_COLUMNS = "event_id, timestamp, matches, place"


class EstimatedTypeCount(EventTypeCount, frozen=True):
    """An event type whose `count` is the planner's estimate."""

    count_is_estimate: bool = True


class _Search:
    """Reads rows in time order, chunk by chunk, keeps those that match, and minds the time.

    `after` is the key of the last row read; at least one chunk is read, so that a caller who goes
    on from there gets to the end.
    """

    def __init__(
        self,
        connection: asyncpg.Connection,
        wanted: Filter,
        after: EventKey | None,
        seconds: float,
    ) -> None:
        self.after = after
        self.ended = False
        self._connection = connection
        self._wanted = wanted
        self._deadline = time.monotonic() + seconds
        self._chunk = _FIRST_CHUNK
        # A session is read by its own index.
        leaps = wanted.source is not None and wanted.session_id is None
        self._places = Places(connection, wanted, self._deadline) if leaps else None

    async def collect(self, most: int, columns: str) -> list[asyncpg.Record]:
        """Return the next matches, `most` unless the rows, the time or the room come to an end."""
        found: list[asyncpg.Record] = []
        room = _PAGE_BYTES
        while len(found) < most and not self.ended and room > 0:
            wanted = most - len(found)
            slice_ = min(wanted, _SLICE) if columns == "*" else wanted
            rows = await self._next_chunk(slice_, columns)
            found += rows
            room -= _size(rows)
            if not rows and not self.ended:
                await self._leap()
            if time.monotonic() >= self._deadline:
                break
        return found

    async def _next_chunk(self, most: int, columns: str) -> list[asyncpg.Record]:
        began, chunk = time.monotonic(), self._chunk
        try:
            rows = await self._read(most, columns, "payload")
        except asyncpg.DataError:
            rows = await self._read(most, columns, Statement.GUARDED)
        self._adapt(time.monotonic() - began)
        if rows:
            self.after = _key_of(rows[-1])
        self.ended = len(rows) < most and (not rows or rows[-1]["place"] < chunk)
        return [row for row in rows if row["matches"]]

    async def _leap(self) -> None:
        """Go on where the project has events again, if that is known."""
        if self._places and self.after:
            before = self.after
            self.after = await self._places.behind(before)
            self.ended = self._places.ended
            if self.after != before:
                # What is looked for is near by.
                self._chunk = _FIRST_CHUNK

    async def _read(self, most: int, columns: str, payload: str) -> list[asyncpg.Record]:
        statement = Statement(self._wanted)
        text = SQL["judged"].format(
            columns=columns,
            matches=statement.matches(payload),
            rows=statement.rows(self.after, self._chunk),
            chunk=statement.bind(self._chunk),
            limit=statement.bind(most),
            direction=statement.direction,
        )
        rows: list[asyncpg.Record] = await self._connection.fetch(text, *statement.values)
        return rows

    def _adapt(self, seconds: float) -> None:
        if seconds < _QUICK_SECONDS:
            self._chunk = min(self._chunk * 2, _LARGEST_CHUNK)
        elif seconds > _SLOW_SECONDS:
            self._chunk = max(self._chunk // 4, _SMALLEST_CHUNK)


class PostgresReader:
    """An EventReader in PostgreSQL."""

    def __init__(self, pool: asyncpg.Pool, read_seconds: float = READ_SECONDS) -> None:
        self._pool = pool
        self._read_seconds = read_seconds
        # Those who read rows for seconds leave half of the connections to those who do not.
        self._searches = asyncio.Semaphore(max(1, pool.get_max_size() // 2))

    async def page(self, wanted: Filter, after: EventKey | None, limit: int, skip: int = 0) -> Page:
        """Return events behind `after`, `limit` at the most, leaving out the first `skip`.

        A filter that reads rows is given two seconds, and a page holds about
        16 MiB; a page that ends there is `partial`, and whoever goes on from its `after` meets
        every event once.
        """
        if wanted.reads_rows:
            return await self._search(wanted, after, limit, skip)
        with weather("events"):
            async with self._connection() as connection:
                if skip:
                    after = await _key_at(connection, wanted, after, skip)
                    if after is None:
                        return Page([], None)
                return await _quick_page(connection, wanted, after, limit)

    async def _search(self, wanted: Filter, after: EventKey | None, limit: int, skip: int) -> Page:
        with weather("search"):
            async with asyncio.timeout(_ACQUIRE_SECONDS):
                await self._searches.acquire()
            try:
                async with self._connection() as connection:
                    search = _Search(connection, wanted, after, self._read_seconds)
                    return await _found_page(search, limit, skip)
            finally:
                self._searches.release()

    async def total(self, wanted: Filter) -> Total:
        """Count matching events: exactly up to 10,000, else as the planner estimates.

        Of one project the estimate is the number of its events of these types and in these days.

        The count is given 0.3 seconds, so a filter that reads rows often has an estimate only.
        """
        with weather("total"):
            async with self._connection() as connection:
                counted = await _count(connection, wanted)
                if counted is not None and counted <= MOST_COUNTED:
                    return Total(counted, is_estimate=False)
                estimated = await _estimate(connection, wanted)
                return Total(max(estimated, counted or 0), is_estimate=True)

    async def find(
        self, event_id: UUID, timestamp: datetime | None, source: str | None = None
    ) -> Event | None:
        """Return one event, by one look where its time is known or in its id.

        Else the partitions are read, newest first; raises QueryRejected when two seconds are not
        enough for that. With a `source` it is an event of that project.
        """
        with weather("event"):
            async with self._connection() as connection:
                span = _span_of(event_id, timestamp)
                sought = (event_id, source)
                row = await connection.fetchrow(SQL["event_at"], *span, *sought) if span else None
                if row is None and timestamp is None:
                    row = await self._find_anywhere(connection, *sought)
                return None if row is None else _event(row)

    async def _find_anywhere(
        self, connection: asyncpg.Connection, event_id: UUID, source: str | None
    ) -> asyncpg.Record | None:
        try:
            async with asyncio.timeout(self._read_seconds):
                for since, until in await connection.fetch(SQL["partitions"]):
                    row = await connection.fetchrow(SQL["event_at"], since, until, event_id, source)
                    if row is not None:
                        return row
        except TimeoutError:
            raise QueryRejected(
                "timestamp",
                "is needed to find this event: its id does not tell its time, and reading the"
                f" newest events for {self._read_seconds:g} s did not find it",
            ) from None
        return None

    async def event_types(self, source: str | None = None) -> list[EventTypeCount]:
        """Return every stored event type, most frequent first.

        Counts are exact if two seconds are enough to count, else each is the planner's estimate,
        an EstimatedTypeCount; first and last are always exact. With a `source` they are those of
        that project, as the roll-ups count them.
        """
        with weather("event types"):
            async with self._connection() as connection:
                if source is not None:
                    return await types_of(connection, source)
                try:
                    async with asyncio.timeout(self._read_seconds):
                        rows = await connection.fetch(SQL["count_types"])
                except TimeoutError:
                    return await _estimated_types(connection)
                return [EventTypeCount(*row) for row in rows]

    async def stored(self, keys: Sequence[EventKey]) -> dict[EventKey, str]:
        """Return those of `keys` that are stored, each with the `wire.digest` of its content."""
        times, ids = [key.timestamp for key in keys], [key.event_id for key in keys]
        with weather("stored"):
            async with self._connection() as connection:
                rows = await connection.fetch(SQL["stored"], times, ids)
        return {EventKey(moment, event_id): digest for moment, event_id, digest in rows}

    async def check(self) -> None:
        """Raise BackendUnavailable, SchemaMismatch or SchemaTooNew when nothing can be read."""
        await check_schema(self._pool)

    async def warnings(self) -> list[str]:
        """Return what is to be said of the role by which events are read; raises like `check`."""
        with weather("role"):
            async with self._connection() as connection:
                return await role_warnings(connection)

    def _connection(self) -> Any:
        return self._pool.acquire(timeout=_ACQUIRE_SECONDS)


async def _quick_page(
    connection: asyncpg.Connection, wanted: Filter, after: EventKey | None, limit: int
) -> Page:
    statement = Statement(wanted)
    text = statement.rows(after, limit + 1)
    if limit < _SLICE:
        return _page(await connection.fetch(text, *statement.values), limit, None)
    rows: list[asyncpg.Record] = []
    room, ended = _PAGE_BYTES, False
    async with connection.transaction(readonly=True):
        cursor = await connection.cursor(text, *statement.values)
        while room > 0 and not ended:
            rows += (more := await cursor.fetch(_SLICE))
            room -= _size(more)
            ended = len(more) < _SLICE
    return _page(rows, limit, None if ended else _key_of(rows[-1]))


def _size(rows: Sequence[asyncpg.Record]) -> int:
    return sum(len(row["payload"]) for row in rows if "payload" in row)


def _key_of(row: asyncpg.Record) -> EventKey:
    return EventKey(row["timestamp"], row["event_id"])


async def _found_page(search: _Search, limit: int, skip: int) -> Page:
    passed = await search.collect(skip, _KEY_COLUMNS)
    rows = await search.collect(limit + 1, "*") if len(passed) == skip else []
    return _page(rows, limit, None if search.ended else search.after)


def _page(rows: Sequence[asyncpg.Record], limit: int, read_to: EventKey | None) -> Page:
    """Return a page of at most `limit` rows; with fewer it goes on at `read_to`, if at all."""
    events = [_event(row) for row in rows[:limit]]
    if len(rows) > limit:
        return Page(events, EventKey(events[-1].timestamp, events[-1].event_id))
    return Page(events, read_to, partial=read_to is not None)


def _event(row: asyncpg.Record) -> Event:
    fields = {name: row[name] for name in Event.__struct_fields__}
    fields["payload"] = msgspec.Raw(row["payload"])
    counted = row["redactions"]
    fields["redactions"] = msgspec.UNSET if counted is None else msgspec.json.decode(counted)
    return Event(**fields)


async def _key_at(
    connection: asyncpg.Connection, wanted: Filter, after: EventKey | None, skip: int
) -> EventKey | None:
    """Return the key of the last of `skip` rows, None if there are fewer."""
    statement = Statement(wanted)
    rows = statement.rows(after, skip)
    text = SQL["key_at"].format(rows=rows, offset=statement.bind(skip - 1))
    row = await connection.fetchrow(text, *statement.values)
    return None if row is None else EventKey(*row)


async def _count(connection: asyncpg.Connection, wanted: Filter) -> int | None:
    """Count up to one more than is counted exactly; None when that takes too long."""
    statement = Statement(wanted)
    conditions = statement.everything()
    text = SQL["count"].format(conditions=conditions, limit=statement.bind(MOST_COUNTED + 1))
    try:
        async with asyncio.timeout(_COUNT_SECONDS):
            number: int = await connection.fetchval(text, *statement.values)
            return number
    except (TimeoutError, asyncpg.DataError):
        return None


async def _estimate(connection: asyncpg.Connection, wanted: Filter) -> int:
    if wanted.source is not None:
        # The planner's number would tell something of the other projects.
        return await most_of(connection, wanted)
    statement = Statement(wanted)
    text = SQL["estimate"].format(conditions=statement.everything())
    plan = msgspec.json.decode(await connection.fetchval(text, *statement.values))
    return int(plan[0]["Plan"]["Plan Rows"])


async def _estimated_types(connection: asyncpg.Connection) -> list[EventTypeCount]:
    types: list[EventTypeCount] = []
    for event_type, first, last in await connection.fetch(SQL["list_types"]):
        number = await _estimate(connection, Filter(event_types=(event_type,)))
        types.append(EstimatedTypeCount(event_type, number, first, last))
    return sorted(types, key=lambda one: (-one.count, one.event_type))


def _span_of(event_id: UUID, timestamp: datetime | None) -> tuple[datetime, datetime] | None:
    """Return the time in which an event of this id lies: a microsecond, or its id's millisecond."""
    try:
        if timestamp is not None:
            return timestamp, timestamp + timedelta(microseconds=1)
        micros = uuid7_micros(event_id)
        if micros is None:
            return None
        moment = wire.from_micros(micros)
        return moment, moment + timedelta(milliseconds=1)
    except OverflowError:
        return None


@asynccontextmanager
async def open_postgres_reader(
    url: str, *, connections: int, read_seconds: float = READ_SECONDS
) -> AsyncIterator[PostgresReader]:
    """Yield a reader that connects when it is first used."""
    # A plan that serves any event type would serve the rare ones by reading everything. Both
    # settings go into the URL, from where asyncpg takes what it does not know as settings.
    planner = "plan_cache_mode=force_custom_plan&jit=off"
    async with open_pool(
        f"{url}{'&' if '?' in url else '?'}{planner}",
        connections=connections,
        name="logging-service reader",
        statement_timeout_ms=_STATEMENT_MS,
        command_seconds=_COMMAND_SECONDS,
    ) as pool:
        yield PostgresReader(pool, read_seconds)
