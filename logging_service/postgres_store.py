"""The store in PostgreSQL: each delivery is one transaction, each event one row."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from operator import itemgetter
from pathlib import Path
from typing import Any
from uuid import UUID

import aiosql
import asyncpg
import structlog

from logging_service import wire
from logging_service.burials import CONFLICT, Burials, row_of
from logging_service.entries import Entries
from logging_service.errors import BackendUnavailable, DeliveryTooWide
from logging_service.ports import DeadLetter, Delivery, Outcome, Sorted, Trial
from logging_service.postgres import EVENT_CLASSES, check_schema, open_pool, said, weather
from logging_service.postgres_ledger import (
    CountedBefore,
    copy_rows,
    counted_before,
    entries_of,
    fold,
    write,
)
from logging_service.postgres_partitions import make_days
from logging_service.postgres_roles import role_warnings
from logging_service.postgres_sessions import sum_sessions
from logging_service.pricing import Prices

_SQL = Path(__file__).parent / "sql"
_sql: Any = aiosql.from_path(_SQL / "writes.sql", "asyncpg")
_books: Any = aiosql.from_path(_SQL / "books.sql", "asyncpg")
_trials: Any = aiosql.from_path(_SQL / "trials.sql", "asyncpg")
_log = structlog.get_logger()

_COMMAND_SECONDS = 30
_CONNECT_SECONDS = 5
_DAYS_AHEAD = 7
_MOST_DAYS = 4_000
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

    def __init__(self, pool: asyncpg.Pool, prices: Prices) -> None:
        self._pool = pool
        self._prices = prices
        self._days: set[date] = set()

    async def append(
        self,
        batch: Sorted,
        most_dead: int | None = None,
        confirm: Callable[[], None] | None = None,
    ) -> Outcome:
        """Store a delivery in one transaction; a lease that was committed before counts nothing.

        A batch with a place is counted with its delivery's trials, once. Raises TooManyDead, with
        nothing stored, where more than `most_dead` events cannot be, conflicts aside;
        DeliveryTooWide for days too many for one transaction;
        BackendUnavailable when it is not known whether the transaction was committed,
        SchemaMismatch when the schema does not fit this release; and what `confirm` raises, with
        nothing stored: it is called last before the commit.
        """
        async with self._connection() as connection:
            try:
                return await self._append(connection, batch, most_dead, confirm or _is_confirmed)
            except _LeaseTaken:
                if batch.place is None:
                    await _trials.drop_trials(connection, lease_id=batch.delivery.lease_id)
                return Outcome(0, 0, 0, 0)

    async def begin_delivery(self, delivery: Delivery, run: UUID) -> int:
        """Commit that `run` begins the delivery, and count the runs that began and did not end.

        0 when the lease was committed before. Raises like `append`.
        """
        lease_id = delivery.lease_id
        async with self._connection() as connection:
            begun: int = await _trials.begin_delivery(connection, lease_id=lease_id, run=run)
            return 0 if await _is_over(connection, lease_id) else begun

    async def release_delivery(self, delivery: Delivery, run: UUID) -> None:
        """Take back what `begin_delivery` counted: `run` ended the delivery in order."""
        async with self._connection() as connection:
            await _trials.release_delivery(connection, lease_id=delivery.lease_id, run=run)

    async def begin_trial(self, delivery: Delivery, run: UUID) -> Trial | None:
        """Commit that `run` tries the next event; None when the lease was committed before."""
        lease_id = delivery.lease_id
        async with self._connection() as connection:
            row = await _trials.begin_trial(connection, lease_id=lease_id, run=run)
            if await _is_over(connection, lease_id):
                return None
            return Trial(row["place"], row["tries"])

    async def release_trial(self, delivery: Delivery, run: UUID) -> None:
        """Take back what `begin_trial` counted: `run` lives, whatever ended its trial."""
        async with self._connection() as connection:
            await _trials.release_trial(connection, lease_id=delivery.lease_id, run=run)

    async def end_trials(self, delivery: Delivery) -> None:
        """Record a lease whose events are all settled, and forget its trials; in one transaction.

        Raises like `append`; harmless when another consumer was first.
        """
        lease_id, place = delivery.lease_id, len(delivery.events)
        async with self._connection() as connection, connection.transaction():
            totals = await _trials.end_trials(connection, lease_id=lease_id, place=place)
            if totals is not None:
                lease = {"lease_id": lease_id, "epoch": delivery.epoch}
                await _sql.record_delivery(connection, **lease, **totals)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[asyncpg.Connection]:
        try:
            with weather("store"):
                # The time bounds the release too, which a server that hangs would hold up.
                async with self._pool.acquire(timeout=_CONNECT_SECONDS) as connection:
                    yield connection
        except asyncpg.PostgresError as error:
            raise BackendUnavailable(f"store: {said(error)}") from error
        except BackendUnavailable as error:
            if isinstance(error.__cause__, asyncpg.ReadOnlySQLTransactionError | TimeoutError):
                # A session keeps the default with which it began, and of a connection that says
                # nothing each sibling would have to be waited for in turn.
                await self._pool.expire_connections()
            raise

    async def _append(
        self,
        connection: asyncpg.Connection,
        batch: Sorted,
        most_dead: int | None,
        confirm: Callable[[], None],
    ) -> Outcome:
        # An aborted COPY leaves its rows as dead space: where duplicates are likely, the batch
        # goes through the staging table at once.
        directly = batch.delivery.attempts == 1 or batch.place is not None
        await self._make_new_days(connection, wire.days_of(batch.events))
        days_made = asks_ledger = False
        while True:
            dead = Burials(batch, most_dead)
            how = {"directly": directly, "asks_ledger": asks_ledger}
            try:
                async with connection.transaction():
                    outcome = await self._store(connection, batch, dead, **how)
                    confirm()
                    return outcome
            except CountedBefore:
                if asks_ledger:
                    # Another consumer has the same events under work.
                    raise BackendUnavailable("store: the ledger changed meanwhile") from None
                asks_ledger = True
            except asyncpg.PostgresError as error:
                if _lacks_a_day(error) and not days_made:
                    self._days.clear()
                    await self._make_new_days(connection, wire.days_of(batch.events))
                    days_made = True
                elif directly and _is_the_events_fault(error):
                    directly = False
                elif isinstance(error, asyncpg.OutOfMemoryError) and batch.place is None:
                    raise DeliveryTooWide(f"store: {said(error)}") from error
                else:
                    raise

    async def _make_new_days(self, connection: asyncpg.Connection, days: Sequence[date]) -> None:
        if new := set(days) - self._days:
            await make_days(connection, new)
            if len(self._days) > _MOST_DAYS:
                self._days.clear()
            self._days |= new

    async def _store(
        self,
        connection: asyncpg.Connection,
        batch: Sorted,
        dead: Burials,
        *,
        directly: bool,
        asks_ledger: bool,
    ) -> Outcome:
        append = _append_directly if directly else _append_staged
        stored = await append(connection, batch, dead)
        known = await counted_before(connection, stored) if asks_ledger else set()
        entries = await self._entries(stored, known)
        await write(connection, entries)
        await _record(connection, batch, outcome := dead.outcome(len(stored)), dead.letters)
        outcome.queries = entries.calls.queries
        return outcome

    async def _entries(self, stored: Sequence[bytes], known: set[bytes]) -> Entries:
        """Return the entries of `stored`: of what is `known` to the ledger the facts alone."""
        if not known:
            return await entries_of(stored, self._prices)
        new = [event for event in stored if wire.key_of(event) not in known]
        old = [event for event in stored if wire.key_of(event) in known]
        entries = await entries_of(new, self._prices)
        entries.fact_rows += (await entries_of(old, self._prices)).fact_rows
        return entries

    async def fold(self) -> None:
        """Move what the last batches added into the roll-ups; raises like `append`."""
        async with self._connection() as connection:
            await fold(connection)
            await sum_sessions(connection, datetime.now(UTC))

    async def prepare(self) -> None:
        """Make the partitions of the week ahead, let go of old deliveries, epochs and letters.

        Raises like `append`.
        """
        today = datetime.now(UTC).date()
        days = [today + timedelta(days=ahead) for ahead in range(_DAYS_AHEAD + 1)]
        async with self._connection() as connection:
            await make_days(connection, days)
            await _books.settle(connection, lease_ids=[])
            await _books.fold_epochs(connection)
            await _sql.forget_replayed_letters(connection)
            await _trials.forget_trials(connection)

    async def dead_letters(self) -> int:
        """Count the dead letters."""
        async with self._connection() as connection:
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

    async def warnings(self) -> list[str]:
        """Return what is to be said of the role that stores; raises like `append`."""
        async with self._connection() as connection:
            return await role_warnings(connection)


def _is_confirmed() -> None:
    pass


async def _is_over(connection: asyncpg.Connection, lease_id: UUID) -> bool:
    """Whether the lease is committed; asked behind a row in `trials`, which goes then.

    Who committed the lease may have removed the row before, and ours replaced it.
    """
    is_over: bool = await _sql.lease_committed(connection, lease_id=lease_id)
    if is_over:
        await _trials.drop_trials(connection, lease_id=lease_id)
    return is_over


async def _append_directly(
    connection: asyncpg.Connection, batch: Sorted, dead: Burials
) -> Sequence[bytes]:
    dead.add_all(batch.dead)
    # Rows of one session beside each other are taken by its index a fifth faster.
    await _copy(connection, "log_events", sorted(batch.events, key=wire.session_of))
    # A COPY that did not fail stored every row.
    return batch.events


async def _append_staged(
    connection: asyncpg.Connection, batch: Sorted, dead: Burials
) -> Sequence[bytes]:
    if await _sql.lease_committed(connection, lease_id=batch.delivery.lease_id):
        raise _LeaseTaken
    dead.add_all(batch.dead)
    await connection.execute(_STAGING)
    return await _insert(connection, batch.events, dead)


async def _insert(
    connection: asyncpg.Connection, events: Sequence[bytes], dead: Burials
) -> list[bytes]:
    """Insert the new ones of `events`, halving them until the bad ones stand alone."""
    if not events:
        return []
    try:
        async with connection.transaction():
            return await _insert_staged(connection, events, dead)
    except asyncpg.PostgresError as error:
        if not _is_the_events_fault(error):
            raise
        if len(events) == 1:
            dead.add(events[0], "rejected", said(error), error.sqlstate)
            return []
    half = len(events) // 2
    first = await _insert(connection, events[:half], dead)
    return first + await _insert(connection, events[half:], dead)


async def _insert_staged(
    connection: asyncpg.Connection, events: Sequence[bytes], dead: Burials
) -> list[bytes]:
    await _copy(connection, "staged_events", events)
    # Of equals it is the first that is inserted.
    by_key = {wire.key_of(event): event for event in reversed(events)}
    stored = [by_key[wire.key(*row)] async for row in _sql.insert_staged(connection)]
    if len(stored) < len(events):
        detail = "an event with this id and time is stored with other content"
        for place in [row["place"] async for row in _sql.conflicting_staged(connection)]:
            dead.add(events[place], CONFLICT, detail)
    await _sql.clear_staging(connection)
    return stored


def _is_the_events_fault(error: asyncpg.PostgresError) -> bool:
    return (error.sqlstate or "")[:2] in EVENT_CLASSES and not _lacks_a_day(error)


def _lacks_a_day(error: asyncpg.PostgresError) -> bool:
    # "no partition of relation" has the SQLSTATE of a CHECK, but no constraint's name; what a
    # trigger raises by itself has no table's either.
    return (
        isinstance(error, asyncpg.CheckViolationError)
        and error.constraint_name is None
        and error.table_name is not None
    )


async def _copy(connection: asyncpg.Connection, table: str, events: Sequence[bytes]) -> None:
    rows = [event[wire.SEAL_SIZE :] for event in events]
    await copy_rows(connection, table, wire.COLUMNS, rows)


async def _record(
    connection: asyncpg.Connection,
    batch: Sorted,
    outcome: Outcome,
    dead: Sequence[DeadLetter],
) -> None:
    if dead:
        # In one order everywhere: two consumers that bury the same events do not block each other.
        await _sql.bury(connection, sorted(map(row_of, dead), key=itemgetter("digest", "reason")))
    lease_id, counts = batch.delivery.lease_id, outcome._asdict()
    if batch.place is not None:
        recorded = await _trials.advance_trial(
            connection, lease_id=lease_id, place=batch.place, **counts
        )
    else:
        if batch.delivery.attempts > 1:
            # In the order of `end_trials`.
            await _trials.drop_trials(connection, lease_id=lease_id)
        epoch = batch.delivery.epoch
        recorded = await _sql.record_delivery(connection, lease_id=lease_id, epoch=epoch, **counts)
    if recorded is None:
        raise _LeaseTaken


@asynccontextmanager
async def open_postgres_store(
    url: str, *, connections: int, prices: Prices | None = None
) -> AsyncIterator[PostgresStore]:
    """Yield the store of the database at `url`; it connects when it is first used.

    Without `prices` model calls are priced by the list.
    """
    async with open_pool(
        url,
        connections=connections,
        name="logging-service store",
        command_seconds=_COMMAND_SECONDS,
        durable=True,
    ) as pool:
        yield PostgresStore(pool, prices or Prices())
