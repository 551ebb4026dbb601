"""Brings the database's schema up to date; nothing else changes it."""

import asyncio
from pathlib import Path

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from logging_service.errors import BackendUnavailable
from logging_service.postgres import SCHEMA_REVISION, refuse_newer, said, weather
from logging_service.postgres_roles import grant_rights, services_role

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


async def migrate(url: str, services_url: str | None = None) -> tuple[str | None, str]:
    """Return the revision found and the one that holds now; safe when several run it at once.

    What is made belongs to the role of `url`. Where `services_url` connects as another, that one
    gets the rights that the services need, and no others. Raises BackendUnavailable when the
    database does not answer, SchemaMismatch when its schema is newer than this release or belongs
    to a third role, SettingsError for URLs of two databases.
    """
    try:
        with weather("migration"):
            async with asyncio.timeout(120):
                role = await services_role(url, services_url or url)
                revisions = await _migrate(url)
                if role is not None:
                    await _grant(url, role)
                return revisions
    except (SQLAlchemyError, asyncpg.PostgresError) as error:
        raise BackendUnavailable(f"migration: {_cause(error)}") from error


async def _migrate(url: str) -> tuple[str | None, str]:
    # asyncpg reads the URL itself, as it does for the services: with all that may stand in it.
    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(url), poolclass=NullPool
    )
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(_upgrade)
    finally:
        await engine.dispose()


async def _grant(url: str, role: str) -> None:
    owner = await asyncpg.connect(url)
    try:
        async with owner.transaction():
            await owner.execute("SET LOCAL lock_timeout = '60s'")
            await owner.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
            await owner.execute("SET LOCAL lock_timeout = '4s'")
            await grant_rights(owner, role)
    finally:
        await owner.close()


def _cause(error: BaseException) -> str:
    found: BaseException | None = error
    while found is not None and not isinstance(found, asyncpg.PostgresError):
        found = found.__cause__ or getattr(found, "orig", None)
    return said(found) if found is not None else str(error).splitlines()[0]
