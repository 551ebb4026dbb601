"""The schema is brought up to date, once, and never down."""

import asyncio
import re

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


async def test_the_url_is_read_as_the_services_read_it(empty_database_url: str) -> None:
    assert (await migrate(f"{empty_database_url}?sslmode=disable"))[1] == SCHEMA_REVISION


async def test_a_wrong_password_is_one_line(empty_database_url: str) -> None:
    wrong = re.sub(r":[^:@/]*@", ":wrong@", empty_database_url)
    with pytest.raises(BackendUnavailable, match="28P01") as refused:
        await migrate(wrong)
    assert len(str(refused.value).splitlines()) == 1


async def test_a_role_that_may_not_create_is_told_so(empty_database_url: str) -> None:
    connection = await asyncpg.connect(empty_database_url)
    await connection.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC, CURRENT_USER")
    await connection.execute("ALTER SCHEMA public OWNER TO pg_database_owner")
    await connection.close()
    with pytest.raises((BackendUnavailable, SchemaMismatch), match="42501"):
        await migrate(f"{empty_database_url}?options=-crole%3Dpg_monitor")
