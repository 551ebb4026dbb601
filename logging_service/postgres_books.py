"""The books in PostgreSQL: one row an epoch, and the deliveries that are not settled yet."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import aiosql
import asyncpg

from logging_service.books import Account, Moved, Wreck
from logging_service.errors import BackendUnavailable
from logging_service.ports import NO_EPOCH, Appended, Reserve, Tally
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
_READ_SECONDS = 0.7
_ACQUIRE_SECONDS = 2.0


class PostgresBooks:
    """Books in PostgreSQL; everything takes some seconds at the most."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def note(self, read: Callable[[], Awaitable[list[Tally]]]) -> None:
        """Keep the tallies that `read` returns; of several callers one reads after the other.

        The last tally is that of the present epoch; where it is lower than the one noted before,
        the difference was rolled back. Raises what `read` raises; it is given 0.7 seconds.
        """
        async with self._noting() as connection:
            async with asyncio.timeout(_READ_SECONDS):
                *past, present = await read() or [Tally(NO_EPOCH, 0)]
            for tally in sorted(past):
                if tally.epoch != NO_EPOCH:
                    await _note_past(connection, tally)
            if present.epoch != NO_EPOCH:
                await _note_present(connection, present)

    async def note_reserves(self, read: Callable[[], Awaitable[list[Reserve]]]) -> None:
        """Keep the reserves that `read` returns, as `note` does for tallies.

        Other epochs that were noted for the same places hold nothing any more.
        """
        async with self._noting() as connection:
            async with asyncio.timeout(_READ_SECONDS):
                reserves = await read()
            at = {reserve.place: reserve for reserve in reserves}
            for reserve in sorted(reserves):
                await _note_reserve(connection, reserve, is_present=reserve is at[reserve.place])
            epochs = [reserve.epoch for reserve in at.values()]
            await _sql.empty_places(connection, places=list(at), epochs=epochs)

    async def credit(self, wreck: Wreck, events: int) -> int:
        """Count events of a salvaged file as moved into another queue, and return how many.

        They are `events` at the most, and no more than the file's epochs lack.
        """
        left = events
        async with self._noting() as connection:
            rows = _sql.empty_wreck(
                connection, epoch=wreck.epoch, place=wreck.place, successor=wreck.successor
            )
            emptied = {row["epoch"] async for row in rows}
            for account in await _accounts(connection):
                if account.epoch in emptied and (found := min(left, account.missing)):
                    move = {"origin": account.epoch, "epoch": NO_EPOCH, "events": found}
                    await _sql.add_move(connection, **move)
                    left -= found
        return events - left

    async def settle(self, lease_ids: Sequence[UUID]) -> None:
        """Add deliveries, whose leases can never come again, up in their epochs."""
        async with self._connection() as connection:
            await _sql.settle(connection, lease_ids=lease_ids)

    async def accounts(self) -> list[Account]:
        """Return the account of each epoch, all as of one moment."""
        async with self._connection() as connection:
            return await _accounts(connection)

    @asynccontextmanager
    async def _noting(self) -> AsyncIterator[asyncpg.Connection]:
        """Yield a transaction that no other one that notes runs beside."""
        async with (
            self._connection() as connection,
            asyncio.timeout(_NOTE_SECONDS),
            connection.transaction(),
        ):
            await connection.execute(_NOTING)
            await _sql.lock_books(connection)
            yield connection

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[asyncpg.Connection]:
        try:
            with weather("books"):
                async with self._pool.acquire(timeout=_ACQUIRE_SECONDS) as connection:
                    yield connection
        except asyncpg.PostgresError as error:
            # Of class 22, as from counters that somebody set by hand to what no count can be.
            raise BackendUnavailable(f"books: {said(error)}") from error


async def _note_past(connection: asyncpg.Connection, tally: Tally) -> None:
    await _sql.note_past(connection, epoch=tally.epoch, accepted=tally.accepted)
    await _sql.note_past_moves(connection, _moves_of(tally))


async def _note_present(connection: asyncpg.Connection, tally: Tally) -> None:
    await _sql.note_present(connection, epoch=tally.epoch, accepted=tally.accepted)
    await _sql.note_present_moves(connection, _moves_of(tally))
    origins = [move.origin for move in tally.moves]
    await _sql.note_ended_moves(connection, epoch=tally.epoch, origins=origins)


def _moves_of(tally: Tally) -> list[dict[str, Any]]:
    return [{**move._asdict(), "epoch": tally.epoch} for move in tally.moves]


async def _note_reserve(
    connection: asyncpg.Connection, reserve: Reserve, *, is_present: bool
) -> None:
    epoch, accepted, held, damaged, place = reserve
    if epoch == NO_EPOCH:
        return
    if accepted:
        note = _sql.note_present if is_present else _sql.note_past
        await note(connection, epoch=epoch, accepted=accepted)
    await _sql.note_holding(connection, epoch=epoch, held=held, damaged=damaged, place=place)


async def _accounts(connection: asyncpg.Connection) -> list[Account]:
    return [
        Account(
            row["epoch"],
            row["accepted"],
            row["rolled_back"],
            Appended(*(row[name] for name in Appended._fields)),
            row["unsettled"],
            row["held"],
            row["damaged"],
            tuple(map(Moved, row["into_epochs"], row["moved"], row["moves_rolled_back"])),
        )
        async for row in _sql.accounts(connection)
    ]


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
