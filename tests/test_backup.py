"""A dump that is restored is the same database: rows, sums, rights, and it goes on."""

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from conftest import owner_url_of, url_of
from events_made import a_delivery, an_event

from logging_service.embedded.postgres import Postgres, postgres_binaries
from logging_service.ports import Sorted
from logging_service.postgres import SCHEMA_REVISION
from logging_service.postgres_store import open_postgres_store
from logging_service.schema import migrate


def run(program: str, *arguments: str) -> None:
    # As in docs/operations.md, by the programs of the server's own version.
    subprocess.run([postgres_binaries() / program, *arguments], check=True, timeout=60)


@pytest.fixture
async def new_database(postgres: Postgres) -> AsyncIterator[str]:
    """The name of an empty database of the owner."""
    name = f"restored_{uuid4().hex}"
    admin = await asyncpg.connect(postgres.admin_url, ssl=False)
    await admin.execute(f"CREATE DATABASE {name} OWNER logging_service_owner")
    yield name
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


async def contents_of(url: str) -> dict[str, tuple[int, str]]:
    """Return how many rows each table has, and a digest of them."""
    connection = await asyncpg.connect(url)
    tables = await connection.fetch(
        "SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'p')"
        " AND relnamespace = 'public'::regnamespace ORDER BY 1"
    )
    contents = {}
    for (table,) in tables:
        rows = f'SELECT t::text COLLATE "C" AS row FROM {table} t ORDER BY 1'
        digest = f"SELECT count(*), coalesce(md5(string_agg(row, E'\\n')), '') FROM ({rows}) AS r"
        contents[table] = tuple(await connection.fetchrow(digest))
    await connection.close()
    return contents


async def store(url: str, *events: bytes) -> None:
    async with open_postgres_store(url, connections=1) as opened:
        await opened.prepare()
        await opened.append(Sorted(a_delivery(*events), list(events), [], 0))
        await opened.fold()


async def test_a_restored_dump_is_the_same_and_the_service_goes_on_with_it(
    postgres: Postgres, database_url: str, services_url: str, new_database: str, tmp_path: Path
) -> None:
    call = b'{"model": "gpt-4o", "provider": "openai", "input_tokens": 10, "output_tokens": 5}'
    await store(services_url, an_event(), an_event(event_type="llm_query_sent", payload=call))
    dump = str(tmp_path / "dump")
    run("pg_dump", "--format=custom", f"--file={dump}", database_url)
    restored = owner_url_of(postgres, new_database)
    run("pg_restore", "--exit-on-error", f"--dbname={restored}", dump)

    before = await contents_of(database_url)
    assert before["log_events"][0] == 2
    assert before["llm_calls"][0] == 1
    assert await contents_of(restored) == before

    services = url_of(postgres, new_database)
    assert await migrate(restored, services) == (SCHEMA_REVISION, SCHEMA_REVISION)
    await store(services, an_event())
    assert (await contents_of(restored))["log_events"][0] == 3
    connection = await asyncpg.connect(services)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.execute("DELETE FROM log_events")
    await connection.close()
