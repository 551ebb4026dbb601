"""What is removed by age in PostgreSQL: events and the ledger by functions of their owner."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, time, timedelta
from typing import Final

import asyncpg

from logging_service.audit import RETENTION, Actor, Note
from logging_service.errors import BackendUnavailable
from logging_service.postgres import open_pool, said, weather
from logging_service.postgres_ledger import lock_folding
from logging_service.postgres_notes import note
from logging_service.rollups import ROLL_UPS
from logging_service.statement_parts import parts_of

_SQL: Final = parts_of("retention.sql")

_STATEMENT_MS: Final = 60_000
_ACQUIRE_SECONDS: Final = 5.0
_EVENTS_AT_ONCE: Final = 20_000
_ROWS_AT_ONCE: Final = 20_000
_ACTOR: Final = Actor("retention", None)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


class PostgresRetention:
    """A Retention in PostgreSQL.

    Who waits for a lock on a table waits a quarter of a second, and so do those behind it.
    """

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def today(self) -> date:
        """Return the day to count from, at most one behind the one that was returned before."""
        async with self._connection() as connection:
            day: date = await connection.fetchval("SELECT pass_day()")
            return day

    async def event_days(self, until: date) -> Sequence[date]:
        """Return the UTC days that are stored and over when `until` begins, the oldest first."""
        return await self._partitions("log_events", until)

    async def call_months(self, until: date) -> Sequence[date]:
        """Return the first days of months of the ledger that are over when `until` begins."""
        return await self._partitions("llm_calls", until)

    async def _partitions(self, table: str, until: date) -> Sequence[date]:
        async with self._connection() as connection:
            rows = await connection.fetch(_SQL["partitions"], table, _midnight(until))
            return [row["since"] for row in rows]

    async def event_types(self, day: date) -> Sequence[str]:
        """Return the types of the events of a day."""
        period = _midnight(day), _midnight(day + timedelta(days=1))
        async with self._connection() as connection:
            rows = await connection.fetch(_SQL["types"], *period)
            return [row["event_type"] for row in rows]

    async def drop_day(self, day: date, kept: Sequence[str]) -> int:
        """Remove a day's events and their facts, and return how many partitions.

        Raises BackendUnavailable when it has events of types whose `variable_part` is in `kept`.
        """
        return await self._drop("log_events", day, kept)

    async def drop_month(self, month: date) -> int:
        """Remove a month of the ledger, and return how many partitions."""
        return await self._drop("llm_calls", month, ())

    async def _drop(self, table: str, since: date, kept: Sequence[str]) -> int:
        async with self._connection() as connection:
            asked = "SELECT drop_partitions($1, $2, $3)"
            return len(await connection.fetchval(asked, table, since, kept))

    async def delete_events(self, day: date, event_type: str) -> int:
        """Remove some of a day's events of a type, with their facts, the oldest first.

        Returns how many; 0 when none is left.
        """
        async with self._connection() as connection:
            asked = (day, event_type, _EVENTS_AT_ONCE)
            number: int = await connection.fetchval("SELECT delete_events($1, $2, $3)", *asked)
            return number

    async def forget_sums(self, before: date) -> int:
        """Remove some rows of roll-ups, and facts of reviews, of the days before.

        Returns how many; 0 when none is left, or another folds at this moment.
        """
        rows, least = 0, _midnight(before)
        statements = [_SQL["forget_rows"].format(rollup=one.table) for one in ROLL_UPS]
        async with self._connection() as connection, connection.transaction():
            if not await lock_folding(connection):
                return 0
            for statement in (*statements, _SQL["forget_reviews"]):
                # What the server says is "DELETE" with the number.
                told = await connection.execute(statement, least, _ROWS_AT_ONCE)
                rows += int(told.rpartition(" ")[2])
            if rows:
                done = {"sums_before": before, "rows": rows}
                await note(connection, Note(RETENTION, _ACTOR, done))
            await connection.execute("SELECT forget_thinned_days($1)", before)
        return rows

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[asyncpg.Connection]:
        try:
            with weather("retention"):
                async with self._pool.acquire(timeout=_ACQUIRE_SECONDS) as connection:
                    yield connection
        except asyncpg.PostgresError as error:
            raise BackendUnavailable(f"retention: {said(error)}") from error


@asynccontextmanager
async def open_postgres_retention(url: str) -> AsyncIterator[PostgresRetention]:
    """Yield what removes in the database at `url`; it connects when it is first used."""
    async with open_pool(
        url,
        connections=1,
        name="logging-service retention",
        statement_timeout_ms=_STATEMENT_MS,
        command_seconds=_STATEMENT_MS / 1000 + 2,
        durable=True,
    ) as pool:
        yield PostgresRetention(pool)
