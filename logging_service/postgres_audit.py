"""The notes for the audit in PostgreSQL, until they are forwarded."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiosql
import asyncpg

from logging_service.audit import KeptNote, Note
from logging_service.errors import BackendUnavailable
from logging_service.postgres import open_pool, said, weather
from logging_service.postgres_notes import note

_sql: Any = aiosql.from_path(Path(__file__).parent / "sql" / "audit.sql", "asyncpg")

# A name that all who forward agree on; any number will do.
_LOCK = 7_260_411_535
_STATEMENT_MS = 5_000
_ACQUIRE_SECONDS = 2.0


class PostgresAuditOutbox:
    """An AuditOutbox in PostgreSQL; a statement takes five seconds at the most."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def add(self, notes: Sequence[Note]) -> None:
        """Keep notes, all or none."""
        async with self._transaction() as connection:
            await note(connection, *notes)

    @asynccontextmanager
    async def taking(self, most: int) -> AsyncIterator[Sequence[KeptNote]]:
        """Yield up to `most` of the oldest notes, which are forgotten unless that fails.

        There are none for one who takes while another does.
        """
        async with self._transaction() as connection:
            notes: list[KeptNote] = []
            if await _sql.lock_forwarding(connection, lock=_LOCK):
                notes = [KeptNote(*row) async for row in _sql.take_notes(connection, most=most)]
            yield notes

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[asyncpg.Connection]:
        try:
            with weather("audit"):
                async with (
                    self._pool.acquire(timeout=_ACQUIRE_SECONDS) as connection,
                    connection.transaction(),
                ):
                    yield connection
        except asyncpg.PostgresError as error:
            raise BackendUnavailable(f"audit: {said(error)}") from error


@asynccontextmanager
async def open_postgres_audit_outbox(
    url: str, *, connections: int
) -> AsyncIterator[PostgresAuditOutbox]:
    """Yield the outbox in the database at `url`; it connects when it is first used."""
    async with open_pool(
        url,
        connections=connections,
        name="logging-service audit",
        statement_timeout_ms=_STATEMENT_MS,
        command_seconds=_STATEMENT_MS / 1000 + 1,
        durable=True,
    ) as pool:
        yield PostgresAuditOutbox(pool)
