"""The dead letters in PostgreSQL: found, marked as replayed, dropped; the store writes them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiosql
import asyncpg

from logging_service.audit import DROPPED, REPLAYED, Actor, Note
from logging_service.ports import KeptLetter, LetterFilter, LetterKey
from logging_service.postgres import open_pool, weather
from logging_service.postgres_notes import note

_sql: Any = aiosql.from_path(Path(__file__).parent / "sql" / "dead_letters.sql", "asyncpg")

_STATEMENT_MS = 10_000
_ACQUIRE_SECONDS = 5.0


class PostgresDeadLetters:
    """DeadLetters in PostgreSQL."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def keys(
        self, wanted: LetterFilter, limit: int, *, beyond: int = 0, newest_first: bool = False
    ) -> list[LetterKey]:
        """Return up to `limit` keys in the order of their ids, which is that of their coming.

        They lie beyond the id `beyond`: above it or, newest first, below it (0: nowhere yet).
        """
        conditions = _Conditions(wanted)
        if beyond or not newest_first:
            conditions.add("id < {}" if newest_first else "id > {}", beyond)
        text = _sql.keys.sql.format(
            conditions=conditions,
            direction="DESC" if newest_first else "ASC",
            limit=conditions.bind(limit),
        )
        async with self._connection() as connection:
            return [LetterKey(*row) for row in await connection.fetch(text, *conditions.values)]

    async def count(self, wanted: LetterFilter, beyond: int = 0) -> int:
        """Count those above the id `beyond`."""
        conditions = _Conditions(wanted)
        conditions.add("id > {}", beyond)
        text = _sql.count_letters.sql.format(conditions=conditions)
        async with self._connection() as connection:
            number: int = await connection.fetchval(text, *conditions.values)
            return number

    async def letters(self, ids: Sequence[int]) -> dict[int, KeptLetter]:
        """Return those of these letters that are there, by id."""
        async with self._connection() as connection:
            rows = [KeptLetter(*row) async for row in _sql.letters(connection, ids=ids)]
        return {letter.id: letter for letter in rows}

    async def mark_replayed(self, keys: Sequence[LetterKey], actor: Actor) -> None:
        """Say that the events are on their way again; one that failed since stays as it is.

        With a note for the audit of who did that.
        """
        ids, attempts = [key.id for key in keys], [key.attempts for key in keys]
        replayed = Note(REPLAYED, actor, {"dead_letters": len(ids), "ids": ids})
        async with self._connection() as connection, connection.transaction():
            await note(connection, replayed)
            await _sql.mark_replayed(connection, ids=ids, attempts=attempts)

    async def drop(self, ids: Sequence[int], actor: Actor) -> int:
        """Forget letters for good, with a note for the audit, and return how many there were."""
        async with self._connection() as connection, connection.transaction():
            dropped = [row["id"] async for row in _sql.drop_letters(connection, ids=ids)]
            if dropped:
                payload = {"dead_letters": len(dropped), "ids": dropped}
                await note(connection, Note(DROPPED, actor, payload))
        return len(dropped)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[asyncpg.Connection]:
        with weather("dead letters"):
            async with self._pool.acquire(timeout=_ACQUIRE_SECONDS) as connection:
                yield connection


class _Conditions:
    """The conditions of a filter, joined; `values` are what their parameters bind."""

    def __init__(self, wanted: LetterFilter) -> None:
        self.values: list[object] = []
        self._texts = [f"replayed_at IS {'NOT ' if wanted.replayed else ''}NULL"]
        if wanted.ids is not None:
            self.add("id = ANY ({}::bigint[])", wanted.ids)
        if wanted.reason is not None:
            self.add("reason = {}", wanted.reason)
        if wanted.event_type is not None:
            self.add("event_type = {}", wanted.event_type)

    def add(self, condition: str, value: object) -> None:
        self._texts.append(condition.format(self.bind(value)))

    def bind(self, value: object) -> str:
        self.values.append(value)
        return f"${len(self.values)}"

    def __str__(self) -> str:
        return " AND ".join(self._texts)


@asynccontextmanager
async def open_postgres_dead_letters(
    url: str, *, connections: int
) -> AsyncIterator[PostgresDeadLetters]:
    """Yield the dead letters in the database at `url`; it connects when it is first used."""
    async with open_pool(
        url,
        connections=connections,
        name="logging-service dead letters",
        statement_timeout_ms=_STATEMENT_MS,
        command_seconds=_STATEMENT_MS / 1000 + 2,
    ) as pool:
        yield PostgresDeadLetters(pool)
