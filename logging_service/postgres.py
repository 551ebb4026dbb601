"""Connections to PostgreSQL, and what its errors mean for the one who waits."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import asyncpg

from logging_service.errors import BackendUnavailable, SchemaMismatch, SchemaTooNew

SQL_STATE_SCHEMA = "42"
# SQLSTATE classes that are the event's own fault: data, integrity, limits.
EVENT_CLASSES = frozenset({"22", "23", "54"})
SCHEMA_REVISION = "0012"
_CHECK_SECONDS = 1.0
# A default that answers before the commit is on disk, or on the standby that is to have it, is
# raised; the others are the operator's choice.
_DURABLE = """
SELECT set_config('synchronous_commit', 'on', false)
 WHERE current_setting('synchronous_commit') NOT IN ('remote_write', 'remote_apply');
"""


@contextmanager
def weather(what: str) -> Iterator[None]:
    """Turn every error of PostgreSQL into BackendUnavailable, class 42 into SchemaMismatch.

    Errors that are the event's own (classes 22, 23 and 54) pass as they are.
    """
    try:
        yield
    except asyncpg.PostgresError as error:
        state = error.sqlstate or ""
        if state[:2] in EVENT_CLASSES:
            raise
        if state[:2] == SQL_STATE_SCHEMA:
            raise SchemaMismatch(f"{what}: {said(error)}") from error
        raise BackendUnavailable(f"{what}: {said(error)}") from error
    except (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        reason = str(error) or type(error).__name__
        raise BackendUnavailable(f"{what}: {reason}") from error


def said(error: asyncpg.PostgresError) -> str:
    """Return PostgreSQL's message and SQLSTATE, without the details: they quote rows."""
    message = error.args[0] if error.args else type(error).__name__
    return f"{message} (SQLSTATE {error.sqlstate})"


@asynccontextmanager
async def open_pool(
    url: str,
    *,
    connections: int,
    name: str,
    statement_timeout_ms: int = 0,
    command_seconds: float = 60,
    durable: bool = False,
) -> AsyncIterator[asyncpg.Pool]:
    """Yield a pool that connects when it is first used; `name` shows in `pg_stat_activity`.

    With `durable` a commit is on the server's disk, whatever the database's default.
    """
    pool = asyncpg.create_pool(
        url,
        min_size=0,
        max_size=connections,
        timeout=5,
        command_timeout=command_seconds,
        init=_prepare_durable if durable else _json_as_bytes,
        connection_class=_DurableConnection if durable else asyncpg.Connection,
        server_settings={
            "application_name": name,
            "timezone": "UTC",
            "statement_timeout": str(statement_timeout_ms),
        },
    )
    await pool
    try:
        yield pool
    finally:
        pool.terminate()


async def _json_as_bytes(connection: asyncpg.Connection) -> None:
    # `json` in its binary form is its text: what was sent is what is read, to the byte.
    await connection.set_type_codec(
        "json", schema="pg_catalog", encoder=bytes, decoder=bytes, format="binary"
    )


class _DurableConnection(asyncpg.Connection):  # type: ignore[misc]
    def get_reset_query(self) -> str:
        # The pool resets every setting when a connection comes back.
        return f"{super().get_reset_query()}\n{_DURABLE}"


async def _prepare_durable(connection: asyncpg.Connection) -> None:
    await _json_as_bytes(connection)
    await connection.execute(_DURABLE)


async def schema_revision(connection: asyncpg.Connection) -> str | None:
    """Return the revision of the schema, None in a database that has none."""
    if await connection.fetchval("SELECT to_regclass('alembic_version')") is None:
        return None
    revision: str | None = await connection.fetchval("SELECT version_num FROM alembic_version")
    return revision


def refuse_newer(found: str) -> None:
    """Raise SchemaTooNew for a revision that this release does not know."""
    if found > SCHEMA_REVISION:
        raise SchemaTooNew(
            f"the database's schema {found} is newer than this release, which knows "
            f"{SCHEMA_REVISION}: run the release that made it"
        )


async def check_schema(pool: asyncpg.Pool) -> None:
    """Raise SchemaMismatch for an empty or older schema, SchemaTooNew for a newer one."""
    with weather("schema"):
        # The time bounds the release too, which a server that hangs would hold up.
        async with pool.acquire(timeout=_CHECK_SECONDS) as connection:
            found = await schema_revision(connection)
    if found is None or found < SCHEMA_REVISION:
        raise SchemaMismatch(
            f"the database's schema is {found or 'empty'}, this release needs {SCHEMA_REVISION}: "
            "run `logging-service migrate`"
        )
    refuse_newer(found)
