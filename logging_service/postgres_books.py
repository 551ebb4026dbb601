"""The books in PostgreSQL: one row an epoch, and the deliveries that are not settled yet."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import aiosql
import asyncpg

from logging_service.errors import BackendUnavailable
from logging_service.ports import NO_EPOCH, Account, Appended, Tally
from logging_service.postgres import open_pool, said, weather

_sql: Any = aiosql.from_path(Path(__file__).parent / "sql" / "books.sql", "asyncpg")

# A note that a crash of the database takes back is made again a second later; and who is stopped
# while it notes must not keep the others from it.
_NOTING = """
SET LOCAL synchronous_commit = off;
SET LOCAL lock_timeout = '2s';
SET LOCAL idle_in_transaction_session_timeout = '3s';
"""
_STATEMENT_MS = 5_000
_NOTE_SECONDS = 5.0
_ACQUIRE_SECONDS = 2.0


class PostgresBooks:
    """Books in PostgreSQL; everything takes some seconds at the most."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def note(self, read: Callable[[], Awaitable[list[Tally]]]) -> None:
        """Keep the tallies that `read` returns; of several callers one reads after the other.

        The last tally is that of the present epoch; where it is lower than the one noted before,
        the difference was rolled back. Raises what `read` raises.
        """
        async with (
            self._connection() as connection,
            asyncio.timeout(_NOTE_SECONDS),
            connection.transaction(),
        ):
            await connection.execute(_NOTING)
            await _sql.lock_books(connection)
            *past, present = await read() or [Tally(NO_EPOCH, 0)]
            for tally in sorted(past):
                if tally.epoch != NO_EPOCH:
                    await _sql.note_past(connection, **tally._asdict())
            if present.epoch != NO_EPOCH:
                await _sql.note_present(connection, **present._asdict())

    async def settle(self, lease_ids: Sequence[UUID]) -> None:
        """Add deliveries, whose leases can never come again, up in their epochs."""
        async with self._connection() as connection:
            await _sql.settle(connection, lease_ids=lease_ids)

    async def accounts(self) -> list[Account]:
        """Return the account of each epoch, all as of one moment."""
        async with self._connection() as connection:
            return [
                Account(
                    row["epoch"],
                    row["accepted"],
                    row["rolled_back"],
                    Appended(*(row[name] for name in Appended._fields)),
                    row["unsettled"],
                )
                async for row in _sql.accounts(connection)
            ]

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[asyncpg.Connection]:
        try:
            with weather("books"):
                async with self._pool.acquire(timeout=_ACQUIRE_SECONDS) as connection:
                    yield connection
        except asyncpg.PostgresError as error:
            # Of class 22, as from counters that somebody set by hand to what no count can be.
            raise BackendUnavailable(f"books: {said(error)}") from error


@asynccontextmanager
async def open_postgres_books(url: str, *, connections: int) -> AsyncIterator[PostgresBooks]:
    """Yield the books in the database at `url`; it connects when it is first used."""
    async with open_pool(
        url,
        connections=connections,
        name="logging-service books",
        statement_timeout_ms=_STATEMENT_MS,
        command_seconds=_STATEMENT_MS / 1000 + 1,
    ) as pool:
        yield PostgresBooks(pool)
