"""Brings the database's schema up to date; nothing else changes it."""

import asyncio
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from logging_service.errors import BackendUnavailable
from logging_service.postgres import SCHEMA_REVISION, refuse_newer

# Any number will do, as long as no other program in this database takes the same.
_LOCK = 7_260_411_530


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def known_revisions() -> list[str]:
    """Return every revision that this release knows, oldest first."""
    scripts = ScriptDirectory.from_config(_config())
    return [script.revision for script in reversed(list(scripts.walk_revisions()))]


def _upgrade(connection: Connection) -> tuple[str | None, str]:
    connection.execute(text("SET lock_timeout = '60s'"))
    connection.execute(text(f"SELECT pg_advisory_lock({_LOCK})"))
    connection.execute(text("SET lock_timeout = '4s'"))
    connection.execute(text("SET statement_timeout = '5s'"))
    exists = connection.execute(text("SELECT to_regclass('alembic_version')")).scalar()
    found = exists and connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    connection.commit()
    if found:
        refuse_newer(found)
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    connection.commit()
    return (found or None, SCHEMA_REVISION)


async def migrate(url: str) -> tuple[str | None, str]:
    """Return the revision found and the one that holds now; safe when several run it at once.

    Raises BackendUnavailable when the database does not answer, SchemaMismatch when its schema
    is newer than this release.
    """
    scheme, _, rest = url.partition("://")
    engine = create_async_engine(
        f"postgresql+asyncpg://{rest}" if scheme else url, poolclass=NullPool
    )
    try:
        async with asyncio.timeout(120), engine.connect() as connection:
            return await connection.run_sync(_upgrade)
    except (OSError, TimeoutError) as error:
        raise BackendUnavailable(f"database: {str(error) or 'no answer'}") from error
    finally:
        await engine.dispose()
