"""The store in PostgreSQL: each delivery is one transaction, each event one row."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import aiosql
import asyncpg
import structlog

from logging_service import wire
from logging_service.errors import BackendUnavailable
from logging_service.ports import Appended, DeadLetter, Sorted
from logging_service.postgres import EVENT_CLASSES, check_schema, open_pool, said, weather

_sql: Any = aiosql.from_path(Path(__file__).parent / "sql" / "writes.sql", "asyncpg")
_log = structlog.get_logger()

_DAYS_AHEAD = 7
_COPY_BEGIN = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
_COPY_END = b"\xff\xff"

# Names that all makers of partitions agree on; any number will do.
_PARTITION_LOCK = 7_260_411_531

_STAGING = """
CREATE TEMPORARY TABLE staged_events (
    ordinal bigint GENERATED ALWAYS AS IDENTITY,
    LIKE log_events
) ON COMMIT DROP;
-- The staged rows are few and have no statistics: look each up, never scan the days.
SET LOCAL enable_hashjoin = off;
SET LOCAL enable_mergejoin = off;
"""


class _LeaseTaken(Exception):
    """The lease is committed already."""


class PostgresStore:
    """An EventStore in PostgreSQL."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def append(self, batch: Sorted) -> Appended:
        """Store a delivery in one transaction; a lease that was committed before counts nothing.

        Raises BackendUnavailable when it is not known whether the transaction was committed,
        SchemaMismatch when the schema does not fit this release.
        """
        try:
            with weather("store"):
                async with self._pool.acquire() as connection:
                    return await self._append(connection, batch)
        except _LeaseTaken:
            return Appended(0, 0, 0, 0)
        except asyncpg.PostgresError as error:
            raise BackendUnavailable(f"store: {said(error)}") from error
        except BackendUnavailable as error:
            if isinstance(error.__cause__, asyncpg.ReadOnlySQLTransactionError):
                # A session keeps the default with which it began, so it never recovers.
                await self._pool.expire_connections()
            raise

    async def _append(self, connection: asyncpg.Connection, batch: Sorted) -> Appended:
        # An aborted COPY leaves its rows as dead space: where duplicates are likely, the batch
        # goes through the staging table at once.
        directly = batch.delivery.attempts == 1
        days_made = False
        while True:
            try:
                async with connection.transaction():
                    if directly:
                        return await _append_directly(connection, batch)
                    return await _append_staged(connection, batch)
            except asyncpg.PostgresError as error:
                if _lacks_a_day(error) and not days_made:
                    await _make_days(connection, wire.days_of(batch.events))
                    days_made = True
                elif directly and _is_the_events_fault(error):
                    directly = False
                else:
                    raise

    async def prepare(self) -> None:
        """Make the partitions of the week ahead, fold what is told of old deliveries.

        Raises like `append`.
        """
        today = datetime.now(UTC).date()
        days = [today + timedelta(days=ahead) for ahead in range(_DAYS_AHEAD + 1)]
        with weather("partitions"):
            async with self._pool.acquire() as connection:
                await _make_days(connection, days)
                await _sql.fold_deliveries(connection)

    async def dead_letters(self) -> int:
        """Count the dead letters."""
        with weather("dead letters"):
            async with self._pool.acquire() as connection:
                count: int = await _sql.count_dead_letters(connection)
                return count

    async def check(self) -> None:
        """Raise BackendUnavailable or SchemaMismatch when the store cannot be used."""
        await check_schema(self._pool)
        with weather("store"):
            async with self._pool.acquire(timeout=1) as connection:
                is_read_only = await connection.fetchval("SHOW transaction_read_only") == "on"
        if is_read_only:
            await self._pool.expire_connections()
            raise BackendUnavailable("store: the database is read-only")


async def _append_directly(connection: asyncpg.Connection, batch: Sorted) -> Appended:
    # Rows of one session beside each other are taken by its index a fifth faster.
    await _copy(connection, "log_events", sorted(batch.events, key=wire.session_of))
    # A COPY that did not fail stored every row.
    appended = Appended(len(batch.events), 0, len(batch.dead), batch.expired)
    return await _record(connection, batch, appended, batch.dead)


async def _append_staged(connection: asyncpg.Connection, batch: Sorted) -> Appended:
    if await _sql.lease_committed(connection, lease_id=batch.delivery.lease_id):
        raise _LeaseTaken
    await connection.execute(_STAGING)
    bad: list[DeadLetter] = []
    stored = await _insert(connection, batch, batch.events, bad)
    duplicates = len(batch.events) - stored - len(bad)
    dead = [*batch.dead, *bad]
    appended = Appended(stored, duplicates, len(dead), batch.expired)
    return await _record(connection, batch, appended, dead)


async def _insert(
    connection: asyncpg.Connection, batch: Sorted, events: Sequence[bytes], bad: list[DeadLetter]
) -> int:
    """Insert the new ones of `events`, halving them until the bad ones stand alone; count them."""
    if not events:
        return 0
    try:
        async with connection.transaction():
            return await _insert_staged(connection, batch, events, bad)
    except asyncpg.PostgresError as error:
        if not _is_the_events_fault(error):
            raise
        if len(events) == 1:
            bad.append(_dead(batch, events[0], "rejected", said(error), error.sqlstate))
            return 0
    half = len(events) // 2
    first = await _insert(connection, batch, events[:half], bad)
    return first + await _insert(connection, batch, events[half:], bad)


async def _insert_staged(
    connection: asyncpg.Connection, batch: Sorted, events: Sequence[bytes], bad: list[DeadLetter]
) -> int:
    await _copy(connection, "staged_events", events)
    stored = len([row async for row in _sql.insert_staged(connection)])
    if stored < len(events):
        detail = "an event with this id and time is stored with other content"
        places = [row["place"] async for row in _sql.conflicting_staged(connection)]
        bad.extend(_dead(batch, events[place], "conflict", detail) for place in places)
    await _sql.clear_staging(connection)
    return stored


def _is_the_events_fault(error: asyncpg.PostgresError) -> bool:
    return (error.sqlstate or "")[:2] in EVENT_CLASSES and not _lacks_a_day(error)


def _lacks_a_day(error: asyncpg.PostgresError) -> bool:
    # "no partition of relation" has the SQLSTATE of a CHECK, but no constraint's name.
    return isinstance(error, asyncpg.CheckViolationError) and error.constraint_name is None


def _dead(
    batch: Sorted, event: bytes, reason: str, detail: str, sqlstate: str | None = None
) -> DeadLetter:
    return DeadLetter(event, reason, detail, batch.delivery.attempts, sqlstate)


async def _copy(connection: asyncpg.Connection, table: str, events: Sequence[bytes]) -> None:
    if not events:
        return
    rows = b"".join((_COPY_BEGIN, *[event[wire.SEAL_SIZE :] for event in events], _COPY_END))
    # asyncpg takes plain bytes for a file's name.
    source = memoryview(rows)
    await connection.copy_to_table(table, source=source, columns=wire.COLUMNS, format="binary")


async def _record(
    connection: asyncpg.Connection, batch: Sorted, appended: Appended, dead: Sequence[DeadLetter]
) -> Appended:
    if dead:
        await _sql.bury(connection, [letter._asdict() for letter in dead])
    lease_id = batch.delivery.lease_id
    if await _sql.record_delivery(connection, lease_id=lease_id, **appended._asdict()) is None:
        raise _LeaseTaken
    return appended


async def _make_days(connection: asyncpg.Connection, days: Sequence[date]) -> None:
    async with connection.transaction():
        await connection.execute("SET LOCAL lock_timeout = '4s'")
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _PARTITION_LOCK)
        for day in days:
            name = f"log_events_p{day:%Y%m%d}"
            if await connection.fetchval("SELECT to_regclass($1)", name) is not None:
                continue
            # Attaching takes a weaker lock on the parent than CREATE TABLE … PARTITION OF, which
            # would wait for every reader and writer.
            await connection.execute(f"CREATE TABLE {name} (LIKE log_events INCLUDING ALL)")
            await connection.execute(
                f"ALTER TABLE log_events ATTACH PARTITION {name} "
                f"FOR VALUES FROM ('{day} 00:00+00') TO ('{day + timedelta(days=1)} 00:00+00')"
            )
            _log.info("partition_made", partition=name)


@asynccontextmanager
async def open_postgres_store(url: str, *, connections: int) -> AsyncIterator[PostgresStore]:
    """Yield the store of the database at `url`; it connects when it is first used."""
    async with open_pool(url, connections=connections, name="logging-service store") as pool:
        yield PostgresStore(pool)
