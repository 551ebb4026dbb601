"""One connection to PostgreSQL for the one who corrects what was counted."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from logging_service.errors import BackendUnavailable
from logging_service.postgres import check_schema, open_pool, said, weather

# A name that all who do such work agree on; any number will do.
_LOCK = 7_260_411_534
_ACQUIRE_SECONDS = 5.0
_STATEMENT_MS = 600_000


@asynccontextmanager
async def open_sole_connection(url: str, work: str) -> AsyncIterator[asyncpg.Connection]:
    """Yield a connection for `work`, while which nobody else can have one, for whatever work.

    Raises BackendUnavailable, also while another has it, and SchemaMismatch; so do errors of
    PostgreSQL inside. A statement may take ten minutes.
    """
    async with open_pool(
        url,
        connections=1,
        name=f"logging-service {work}",
        statement_timeout_ms=_STATEMENT_MS,
        command_seconds=_STATEMENT_MS / 1000 + 2,
        durable=True,
    ) as pool:
        await check_schema(pool)
        try:
            with weather(work):
                async with pool.acquire(timeout=_ACQUIRE_SECONDS) as connection:
                    if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):
                        raise BackendUnavailable(
                            "another reprice or rebuild is at work, or an erasure: let it end first"
                        )
                    yield connection
        except asyncpg.PostgresError as error:
            raise BackendUnavailable(f"{work}: {said(error)}") from error


async def note_change(connection: asyncpg.Connection) -> None:
    """Say, in the transaction in which it happens, that what was counted before has changed."""
    await connection.execute("UPDATE ledger_changes SET number = number + 1")
