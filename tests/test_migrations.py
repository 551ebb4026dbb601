"""The schema is brought up to date, once, and never down."""

import asyncio

import asyncpg
import pytest

from logging_service.errors import BackendUnavailable, SchemaMismatch
from logging_service.postgres import SCHEMA_REVISION
from logging_service.schema import known_revisions, migrate


def test_the_services_know_the_newest_revision() -> None:
    assert known_revisions()[-1] == SCHEMA_REVISION


async def test_an_empty_database_is_brought_up_to_date_by_several_at_once(
    empty_database_url: str,
) -> None:
    outcomes = await asyncio.gather(*(migrate(empty_database_url) for _ in range(3)))
    assert sorted(outcomes, key=str) == sorted(
        [(None, SCHEMA_REVISION), (SCHEMA_REVISION,) * 2, (SCHEMA_REVISION,) * 2], key=str
    )


async def test_the_well_known_index_statements_find_the_indexes(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        before = await connection.fetchval("SELECT count(*) FROM pg_indexes")
        for column in ("timestamp", "event_type", "session_id"):
            await connection.execute(
                f"CREATE INDEX IF NOT EXISTS idx_log_events_{column} ON log_events({column})"
            )
        assert await connection.fetchval("SELECT count(*) FROM pg_indexes") == before
    finally:
        await connection.close()


async def test_a_newer_schema_is_left_alone(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute("UPDATE alembic_version SET version_num = '9999'")
    await connection.close()
    with pytest.raises(SchemaMismatch, match="newer"):
        await migrate(database_url)


async def test_a_database_that_is_away_is_said(free_port: int) -> None:
    with pytest.raises(BackendUnavailable):
        await migrate(f"postgresql://nobody@127.0.0.1:{free_port}/none")
