"""Who has the services' database password can neither change nor remove what is stored."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
import requests
from conftest import owner_url_of, url_of
from events_made import a_delivery, an_event, unchecked
from servers import run_service

from logging_service.delivering import sort_events
from logging_service.embedded import Postgres
from logging_service.errors import SchemaMismatch, SettingsError
from logging_service.postgres_partitions import make_days
from logging_service.postgres_roles import RIGHTS, role_warnings
from logging_service.postgres_store import open_postgres_store
from logging_service.schema import migrate
from logging_service.settings import Settings

DAY = date(2024, 2, 29)
MOMENT = datetime(2024, 2, 29, 12, tzinfo=UTC)
OWNER, SERVICES = "logging_service_owner", "logging_service_user"
KEPT = ("log_events", "log_events_p20240229", "llm_calls", "llm_calls_p202402")
FINGERPRINT = """
SELECT (SELECT md5(string_agg(log_events::text, '' ORDER BY event_id)) FROM log_events),
       (SELECT md5(string_agg(llm_calls::text, '' ORDER BY event_id)) FROM llm_calls),
       (SELECT md5(string_agg(pg_class::text, '' ORDER BY oid)) FROM pg_class
         WHERE relnamespace = 'public'::regnamespace AND relname ~ '^(log_events|llm_calls)')
"""


def a_call(moment: datetime = MOMENT) -> bytes:
    payload = b'{"model":"gpt-4o","provider":"openai","input_tokens":10}'
    return unchecked(payload, "llm_query_sent", "s1", timestamp=moment)


async def append(url: str, *events: bytes) -> int:
    async with open_postgres_store(url, connections=1) as store:
        return (await store.append(sort_events(a_delivery(*events), 3600, 0))).stored


async def connect(url: str) -> asyncpg.Connection:
    return await asyncpg.connect(url, ssl=False)


async def as_admin(postgres: Postgres, *statements: str, database: str = "postgres") -> None:
    connection = await connect(f"{postgres.admin_url.rpartition('/')[0]}/{database}")
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture(scope="module")
async def kept(postgres: Postgres, migrated_template: str) -> AsyncIterator[str]:
    """The name of a database in which there are events and calls."""
    made = f"CREATE DATABASE kept TEMPLATE {migrated_template} OWNER {OWNER}"
    await as_admin(postgres, made)
    url = url_of(postgres, "kept")
    assert await append(url, a_call(), a_call(), unchecked(b"{}", timestamp=MOMENT)) == 3
    yield "kept"
    await as_admin(postgres, "DROP DATABASE kept WITH (FORCE)")


@pytest.fixture
async def attacker(postgres: Postgres, kept: str) -> AsyncIterator[asyncpg.Connection]:
    """Who has the services' password; afterwards everything is as it was."""
    owner, services = (
        await connect(owner_url_of(postgres, kept)),
        await connect(url_of(postgres, kept)),
    )
    try:
        before = await owner.fetchrow(FINGERPRINT)
        assert None not in before
        yield services
        assert await owner.fetchrow(FINGERPRINT) == before
    finally:
        await services.close()
        await owner.close()


@pytest.fixture
async def services(services_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await connect(services_url)
    yield connection
    await connection.close()


@pytest.mark.parametrize("table", KEPT)
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE {} SET source = 'another'",
        "UPDATE {} SET source = source WHERE false",
        "DELETE FROM {}",
        "WITH gone AS (DELETE FROM {} RETURNING 1) SELECT count(*) FROM gone",
        "MERGE INTO {} USING (SELECT 1) AS one ON true WHEN MATCHED THEN DELETE",
        "MERGE INTO {} USING (SELECT 1) AS one ON true WHEN MATCHED THEN UPDATE SET source = 'x'",
        "SELECT * FROM {} FOR UPDATE",
        "TRUNCATE {}",
        "TRUNCATE {} CASCADE",
        "DROP TABLE {}",
        "DROP TABLE {} CASCADE",
        "ALTER TABLE {} RENAME TO another",
        "ALTER TABLE {} OWNER TO CURRENT_USER",
        "ALTER TABLE {} DROP COLUMN source",
        "ALTER TABLE {} ADD COLUMN more int",
        "ALTER TABLE {} ALTER COLUMN source SET DEFAULT 'x'",
        "ALTER TABLE {} ALTER COLUMN source TYPE char(1)",
        "ALTER TABLE {} DISABLE TRIGGER ALL",
        "ALTER TABLE {} DISABLE TRIGGER USER",
        "ALTER TABLE {} ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY hides ON {} USING (false)",
        "CREATE RULE nothing AS ON INSERT TO {} DO INSTEAD NOTHING",
        (
            "CREATE TRIGGER spoils BEFORE INSERT ON {} FOR EACH ROW"
            " EXECUTE FUNCTION suppress_redundant_updates_trigger()"
        ),
        "CREATE INDEX ON {} (source)",
        "CREATE TEMPORARY VIEW mine AS SELECT * FROM {}; DELETE FROM mine",
        "CREATE TEMPORARY VIEW mine AS SELECT * FROM {}; UPDATE mine SET source = 'another'",
        (
            "CREATE FUNCTION pg_temp.mine() RETURNS void LANGUAGE sql SECURITY DEFINER"
            " AS 'DELETE FROM {}'; SELECT pg_temp.mine()"
        ),
        "DO $$ BEGIN EXECUTE 'DELETE FROM {}'; END $$",
        "BEGIN; LOCK TABLE {} IN SHARE MODE",
        "BEGIN; LOCK TABLE {} IN ACCESS EXCLUSIVE MODE",
        "REINDEX TABLE {}",
        "COMMENT ON TABLE {} IS 'mine'",
        "COPY {} TO PROGRAM 'true'",
        "COPY {} FROM PROGRAM 'true'",
        "COPY {} TO '/tmp/mine'",
    ],
)
async def test_what_is_stored_cannot_be_altered(
    attacker: asyncpg.Connection, statement: str, table: str
) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await attacker.execute(statement.replace("{}", table))


@pytest.mark.parametrize(
    "statement",
    [
        (
            "INSERT INTO log_events SELECT * FROM log_events"
            " ON CONFLICT (timestamp, event_id) DO UPDATE SET source = 'another'"
        ),
        "ALTER TABLE log_events DETACH PARTITION log_events_p20240229",
        "INSERT INTO log_events_p20240229 SELECT * FROM log_events",
        "SELECT * FROM log_events_p20240229",
        "SET ROLE logging_service_owner",
        "SET SESSION AUTHORIZATION logging_service_owner",
        "SET session_replication_role = replica",
        "GRANT logging_service_owner TO CURRENT_USER",
        "REASSIGN OWNED BY logging_service_owner TO CURRENT_USER",
        "DROP OWNED BY logging_service_owner",
        "ALTER ROLE logging_service_owner PASSWORD 'mine'",
        "CREATE ROLE mine",
        "ALTER DEFAULT PRIVILEGES FOR ROLE logging_service_owner GRANT ALL ON TABLES TO PUBLIC",
        "DROP DATABASE kept",
        "ALTER DATABASE kept OWNER TO CURRENT_USER",
        "ALTER DATABASE kept SET search_path = pg_temp",
        "DROP SCHEMA public CASCADE",
        "ALTER SCHEMA public RENAME TO another",
        "CREATE SCHEMA mine",
        "CREATE TABLE mine (n int)",
        "CREATE TABLE mine AS SELECT * FROM log_events",
        "CREATE VIEW public.mine AS SELECT 1",
        "CREATE FUNCTION public.format(text, text) RETURNS text LANGUAGE sql AS 'SELECT $1'",
        (
            "CREATE OR REPLACE FUNCTION make_partitions(days date[]) RETURNS text[]"
            " LANGUAGE sql AS 'SELECT NULL::text[]'"
        ),
        "ALTER FUNCTION make_partitions(date[]) RESET ALL",
        "ALTER FUNCTION make_partitions(date[]) SECURITY INVOKER",
        "DROP FUNCTION make_partitions(date[])",
        "INSERT INTO thinned_days VALUES ('2024-02-28')",
        "UPDATE alembic_version SET version_num = '0001'",
        "DELETE FROM api_keys",
        "UPDATE audit_outbox SET event_type = 'another'",
        "SELECT pg_read_file('postgresql.conf')",
    ],
)
async def test_there_is_no_way_around(attacker: asyncpg.Connection, statement: str) -> None:
    with pytest.raises((asyncpg.InsufficientPrivilegeError, asyncpg.ObjectInUseError)):
        await attacker.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        # These warn, and do nothing.
        "GRANT ALL ON log_events TO CURRENT_USER",
        "GRANT UPDATE, DELETE ON log_events TO PUBLIC",
        "VACUUM FULL llm_calls",
        "ANALYZE log_events",
        "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC",
    ],
)
async def test_what_is_not_refused_changes_nothing(
    attacker: asyncpg.Connection, statement: str
) -> None:
    await attacker.execute(statement)
    for table in KEPT:
        can = "SELECT has_table_privilege($1, 'UPDATE, DELETE, TRUNCATE')"
        assert not await attacker.fetchval(can, table)


class TestPartitions:
    async def test_they_are_the_owners_and_nobody_else_has_a_right_on_them(
        self, services: asyncpg.Connection, database: asyncpg.Connection
    ) -> None:
        await make_days(services, [DAY, DAY + timedelta(days=1)])
        made = "SELECT relname, relowner::regrole::text, relacl FROM pg_class WHERE relispartition"
        rows = await database.fetch(f"{made} AND relkind = 'r' ORDER BY relname")
        assert [tuple(row) for row in rows] == [
            ("event_facts_p20240229", OWNER, None),
            ("event_facts_p20240301", OWNER, None),
            ("llm_calls_p202402", OWNER, None),
            ("llm_calls_p202403", OWNER, None),
            ("log_events_p20240229", OWNER, None),
            ("log_events_p20240301", OWNER, None),
        ]

    async def test_who_had_some_made_is_noted_once(self, services: asyncpg.Connection) -> None:
        for _ in range(2):
            await make_days(services, [DAY, DAY + timedelta(days=1)])
        [note] = await services.fetch("SELECT event_type, payload::jsonb::text FROM audit_outbox")
        assert note["event_type"] == "audit.partitions_made"
        assert note["payload"] == (
            '{"by": "database role logging_service_user", "key_id": null, "last_day": "2024-03-01",'
            ' "first_day": "2024-02-29", "partitions": 6}'
        )

    async def test_what_the_caller_puts_in_the_way_is_not_taken(
        self, services: asyncpg.Connection, database: asyncpg.Connection
    ) -> None:
        await services.execute(
            """
            CREATE TEMPORARY TABLE pg_inherits (LIKE pg_catalog.pg_inherits);
            CREATE TEMPORARY TABLE pg_class (oid oid, relpartbound pg_node_tree);
            CREATE TEMPORARY TABLE log_events (mine int) ;
            CREATE TEMPORARY TABLE log_events_p20240229 (mine int);
            CREATE TEMPORARY TABLE thinned_days (day date);
            CREATE TEMPORARY TABLE usage_rollup AS
            SELECT 1440 AS span, '2024-02-29 00:00+00'::timestamptz AS bucket;
            CREATE TEMPORARY TABLE audit_outbox (event_type text, payload json);
            CREATE FUNCTION pg_temp.format(text, text) RETURNS text LANGUAGE sql AS 'SELECT $1';
            CREATE FUNCTION pg_temp.cardinality(date[]) RETURNS int LANGUAGE sql AS 'SELECT 0';
            SET search_path = pg_temp, public;
            SET standard_conforming_strings = off;
            SET datestyle = 'SQL, DMY';
            SET timezone = 'Asia/Tokyo';
            """
        )
        made = await services.fetchval("SELECT public.make_partitions($1)", [DAY])
        assert made == ["log_events_p20240229", "event_facts_p20240229", "llm_calls_p202402"]
        for table in ("thinned_days", "audit_outbox"):
            assert not await services.fetchval(f"SELECT count(*) FROM pg_temp.{table}")
        assert not await database.fetchval("SELECT count(*) FROM thinned_days")
        assert await database.fetchval("SELECT count(*) FROM audit_outbox") == 1
        bound = "SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE relname = $1"
        assert await database.fetchval(bound, made[0]) == (
            "FOR VALUES FROM ('2024-02-29 00:00:00+00') TO ('2024-03-01 00:00:00+00')"
        )

    @pytest.mark.parametrize(
        "days",
        [
            [DAY] * 4001,
            [DAY, None],
            [date(1969, 12, 31)],
        ],
    )
    async def test_days_without_bound_are_refused(
        self, services: asyncpg.Connection, days: Sequence[date | None]
    ) -> None:
        with pytest.raises(asyncpg.InvalidParameterValueError):
            await services.fetchval("SELECT make_partitions($1::date[])", days)
        with pytest.raises(asyncpg.InvalidParameterValueError):
            await services.fetchval("SELECT make_partitions('{infinity}')")
        assert not await services.fetchval("SELECT count(*) FROM audit_outbox")

    async def test_the_function_is_for_owner_and_services_alone(
        self, database: asyncpg.Connection
    ) -> None:
        functions = await database.fetch(
            "SELECT oid, prosecdef, proconfig FROM pg_proc"
            " WHERE pronamespace = 'public'::regnamespace"
        )
        assert functions
        for function in functions:
            may = "SELECT has_function_privilege('public', $1::oid, 'EXECUTE')"
            assert not await database.fetchval(may, function["oid"])
            assert function["prosecdef"]
            assert "search_path=pg_catalog, pg_temp" in function["proconfig"]


class TestRights:
    async def test_the_services_have_these_on_every_table_and_no_others(
        self, database: asyncpg.Connection
    ) -> None:
        rows = await database.fetch(
            """
            SELECT relname, array_remove(array_agg(privilege_type), 'MAINTAIN') AS rights
              FROM pg_class
              LEFT JOIN aclexplode(relacl) ON grantee = $1::text::regrole
             WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm')
               AND NOT relispartition
             GROUP BY relname
            """,
            SERVICES,
        )
        expected = {table: set(rights.split(", ")) for table, rights in RIGHTS.items()}
        assert {row["relname"]: set(row["rights"]) for row in rows} == expected

    async def test_what_was_given_beyond_them_is_taken_back(
        self, database: asyncpg.Connection, database_url: str, services_url: str
    ) -> None:
        await append(services_url, a_call())
        services = await connect(services_url)
        assert await role_warnings(services) == []
        await database.execute(
            """
            GRANT ALL ON log_events, log_events_p20240229 TO logging_service_user;
            GRANT DELETE ON llm_calls_p202402 TO logging_service_user;
            GRANT UPDATE (payload) ON log_events TO logging_service_user;
            GRANT CREATE ON SCHEMA public TO PUBLIC;
            ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO logging_service_user;
            """
        )
        assert len(await role_warnings(services)) == 1
        await migrate(database_url, services_url)
        assert await role_warnings(services) == []
        await make_days(services, [DAY + timedelta(days=1)])
        assert await role_warnings(services) == []
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await services.execute("CREATE TABLE mine (n int)")
        assert await append(services_url, a_call()) == 1
        await services.close()

    @pytest.mark.parametrize(
        "given",
        [
            "GRANT UPDATE ON log_events TO logging_service_user",
            "GRANT UPDATE (payload) ON log_events TO logging_service_user",
            "GRANT DELETE ON llm_calls TO PUBLIC",
            "GRANT TRIGGER ON llm_calls TO logging_service_user",
            "GRANT TRUNCATE ON log_events_p20240229 TO logging_service_user",
            "ALTER SCHEMA public OWNER TO logging_service_user",
            "ALTER TABLE llm_calls_p202402 OWNER TO logging_service_user",
        ],
    )
    async def test_rights_beyond_them_are_warned_of(
        self, postgres: Postgres, services: asyncpg.Connection, services_url: str, given: str
    ) -> None:
        await append(services_url, a_call())
        await as_admin(postgres, given, database=services_url.rpartition("/")[2])
        [warning] = await role_warnings(services)
        assert "DATABASE_OWNER_URL" in warning

    async def test_a_role_that_may_become_another_is_warned_of(
        self, postgres: Postgres, services_url: str
    ) -> None:
        name = f"member_{uuid4().hex}"
        await as_admin(
            postgres,
            f"CREATE ROLE {name} LOGIN NOINHERIT PASSWORD 'plain'",
            f"GRANT {OWNER} TO {name} WITH INHERIT false",
        )
        try:
            member = await asyncpg.connect(services_url, user=name, password="plain")
            assert len(await role_warnings(member)) == 1
            await member.close()
        finally:
            await as_admin(postgres, f"DROP ROLE {name}")

    async def test_what_was_emptied_is_vacuumed_by_the_services(
        self, services: asyncpg.Connection
    ) -> None:
        told: list[Any] = []
        services.add_log_listener(lambda _, message: told.append(message))
        for subject in ("usage", "user", "llm"):
            await services.execute(f"VACUUM (SKIP_LOCKED) {subject}_deltas")
        assert told == []


class TestOneRole:
    async def test_it_works_and_is_warned_of(self, empty_database_url: str) -> None:
        await migrate(empty_database_url, f"{empty_database_url}?application_name=services")
        assert await append(empty_database_url, a_call()) == 1
        async with open_postgres_store(empty_database_url, connections=1) as store:
            assert len(await store.warnings()) == 1

    @pytest.mark.parametrize("service", ["producer", "consumer"])
    async def test_the_services_say_so_and_are_well(
        self, environment: dict[str, str], database_url: str, service: str
    ) -> None:
        with run_service(service, {**environment, "DATABASE_URL": database_url}) as running:
            answer = await asyncio.to_thread(requests.get, f"{running.url}/health", timeout=5)
        assert answer.status_code == 200
        [warning] = answer.json()["warnings"]
        assert "DATABASE_OWNER_URL" in warning

    async def test_it_becomes_two_with_what_is_stored(self, postgres: Postgres) -> None:
        name = f"two_{uuid4().hex}"
        one, two = f"{name}_services", f"{name}_owner"
        place = f"127.0.0.1:{postgres.port}/{name}"
        services_url, owner_url = f"postgresql://{one}:p@{place}", f"postgresql://{two}:p@{place}"
        try:
            await as_admin(
                postgres,
                *(f"CREATE ROLE {role} LOGIN PASSWORD 'p'" for role in (one, two)),
                f"CREATE DATABASE {name} OWNER {one}",
            )
            await migrate(services_url)
            assert await append(services_url, a_call(), a_call()) == 2
            with pytest.raises(SchemaMismatch) as refused:
                await migrate(owner_url, services_url)
            said = str(refused.value)
            hand_over = said[said.index("ALTER DATABASE") : said.rindex(" (docs/")]
            await as_admin(postgres, *hand_over.split("; "), database=name)
            await migrate(owner_url, services_url)
            async with open_postgres_store(services_url, connections=1) as store:
                assert await store.warnings() == []
            assert await append(services_url, a_call(), an_event()) == 2
            connection = await connect(services_url)
            assert await connection.fetchval("SELECT count(*) FROM log_events") == 4
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute("DELETE FROM log_events")
            await connection.close()
        finally:
            await as_admin(
                postgres,
                f"DROP DATABASE IF EXISTS {name} WITH (FORCE)",
                f"DROP ROLE IF EXISTS {one}, {two}",
            )

    async def test_one_that_owns_nothing_is_told_who_migrates(self, services_url: str) -> None:
        with pytest.raises(SchemaMismatch, match="run `logging-service migrate` with the DATABASE"):
            await migrate(services_url)

    async def test_two_urls_of_different_databases_are_refused(
        self, database_url: str, postgres: Postgres
    ) -> None:
        with pytest.raises(SettingsError, match="both have to be the same"):
            await migrate(database_url, url_of(postgres, "postgres"))

    async def test_several_may_migrate_at_once(self, postgres: Postgres) -> None:
        name = f"test_{uuid4().hex}"
        await as_admin(postgres, f"CREATE DATABASE {name} OWNER {OWNER}")
        urls = owner_url_of(postgres, name), url_of(postgres, name)
        try:
            await asyncio.gather(*(migrate(*urls) for _ in range(3)))
            assert await append(urls[1], a_call()) == 1
        finally:
            await as_admin(postgres, f"DROP DATABASE {name} WITH (FORCE)")


class TestSettings:
    def test_an_owner_needs_a_database_that_is_named(self) -> None:
        with pytest.raises(ValueError, match="DATABASE_OWNER_URL cannot be used"):
            Settings(database_owner_url="postgresql://owner:secret@host/logs")

    def test_without_an_owner_there_is_one_role(self, settings: Settings) -> None:
        assert settings.owner_url == settings.store_url

    def test_a_named_owner_migrates(self, settings: Settings) -> None:
        url = "postgresql://owner:secret@host/logs"
        named = settings.model_copy(update={"database_owner_url": url})
        assert (named.owner_url, named.store_url) == (url, settings.store_url)
