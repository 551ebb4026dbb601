"""The bundled servers: what they promise to the one who starts them."""

import os
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg
import psutil
import pytest
from alembic import command
from events_made import a_delivery
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError
from servers import unused_port
from stored_rows import a_row, store_rows

from logging_service import data_folder
from logging_service.delivering import sort_events
from logging_service.embedded import Postgres, Valkey, postgres_binaries, run_as
from logging_service.errors import BackendUnavailable, SettingsError
from logging_service.postgres_store import open_postgres_store
from logging_service.schema import migrate


@dataclass
class Made:
    """Makes servers on one folder, and stops what a test left running."""

    data_dir: Path
    servers: list[Postgres | Valkey]

    def postgres(
        self, *, user: str = "services", password: str = "first", database: str = "logs"
    ) -> Postgres:
        server = Postgres(
            self.data_dir,
            port=unused_port(),
            user=user,
            password=password,
            database=database,
            settings={"fsync": "off", "shared_buffers": "16MB"},
        )
        self.servers.append(server)
        return server

    def valkey(self, *, password: str | None = None, database: int = 0) -> Valkey:
        server = Valkey(self.data_dir, port=unused_port(), password=password, database=database)
        self.servers.append(server)
        return server


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Made]:
    data_dir = tmp_path / "data"
    data_folder.create(data_dir)
    made = Made(data_dir, [])
    yield made
    for server in made.servers:
        await server.stop()
    assert not data_folder.servers_in(data_dir / "postgres")
    assert not data_folder.servers_in(data_dir / "valkey")


async def ask(server: Postgres, statement: str, *, url: str = "") -> object:
    """Ask as the owner, or at a URL."""
    connection = await asyncpg.connect(url or server.owner_url, ssl=False)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


def addresses(pid: int) -> set[tuple[str, int]]:
    found = psutil.Process(pid).net_connections(kind="inet")
    return {(one.laddr.ip, one.laddr.port) for one in found if one.status == psutil.CONN_LISTEN}


def client(server: Valkey) -> Redis:
    return Redis.from_url(server.url, retry=Retry(NoBackoff(), 0))


async def test_postgres_listens_on_loopback_alone(made: Made) -> None:
    server = made.postgres()
    await server.start()
    assert addresses(server.pid) == {("127.0.0.1", server.port)}


async def test_postgres_asks_for_the_password(made: Made) -> None:
    server = made.postgres()
    await server.start()
    for secret in ("wrong", None):
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(
                host="127.0.0.1",
                port=server.port,
                user="services",
                password=secret or "",
                database="logs",
                ssl=False,
            )


async def test_the_database_is_its_owners_who_is_no_administrator(made: Made) -> None:
    server = made.postgres()
    await server.start()
    await ask(server, "CREATE SCHEMA reviews")
    roles = "SELECT count(*) FROM pg_roles WHERE rolsuper AND rolname IN (current_user, 'services')"
    assert await ask(server, roles) == 0
    for statement in ("CREATE TABLE mine (n int)", "CREATE SCHEMA mine", "DROP SCHEMA reviews"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await ask(server, statement, url=server.url)
    assert await ask(server, "SHOW server_encoding") == "UTF8"
    assert await ask(server, "SELECT 'É' ILIKE 'é'") is True


async def test_postgres_waits_for_the_disk_unless_told_otherwise(made: Made) -> None:
    server = Postgres(
        made.data_dir, port=unused_port(), user="services", password="first", database="logs"
    )
    made.servers.append(server)
    await server.start()
    for name in ("fsync", "synchronous_commit", "full_page_writes"):
        assert await ask(server, f"SHOW {name}") == "on"
    assert await ask(server, "SHOW max_wal_size") == "8GB"


async def test_a_restart_keeps_what_was_stored(made: Made) -> None:
    server = made.postgres()
    await server.start()
    await ask(server, "CREATE TABLE kept (n int)")
    await server.stop()
    assert await server.wait() == 0
    await server.start()
    assert await ask(server, "SELECT count(*) FROM kept") == 0


async def test_a_killed_server_starts_again(made: Made) -> None:
    server = made.postgres()
    await server.start()
    await ask(server, "CREATE TABLE kept (n int)")
    os.kill(server.pid, signal.SIGKILL)
    assert await server.wait() == -signal.SIGKILL
    await server.start()
    assert await ask(server, "SELECT count(*) FROM kept") == 0


async def test_a_server_whose_owner_was_killed_is_taken_over(made: Made) -> None:
    left = made.postgres()
    await left.start()
    server = made.postgres()
    await server.start()
    assert await left.wait() == 0, "it was stopped in order"
    assert await ask(server, "SELECT 1") == 1


async def test_a_number_that_another_process_has_got_since_is_not_taken_for_a_server(
    made: Made,
) -> None:
    server = made.postgres()
    await server.start()
    await server.stop()
    stale = f"{os.getpid()}\n{made.data_dir}/postgres\n1\n{server.port}\n\n127.0.0.1\n"
    (made.data_dir / "postgres" / "postmaster.pid").write_text(stale)
    await server.start()
    assert await ask(server, "SELECT 1") == 1


async def test_a_changed_password_holds_from_the_next_start(made: Made) -> None:
    first = made.postgres(password="first")
    await first.start()
    await first.stop()
    second = made.postgres(password="with 'quotes', \\ and ü:@/")
    await second.start()
    assert await ask(second, "SELECT current_user", url=second.url) == "services"


async def test_an_owner_whose_password_was_lost_gets_another(made: Made) -> None:
    server = made.postgres()
    await server.start()
    await server.stop()
    (made.data_dir / "pgpass_owner").unlink()
    await server.start()
    assert await ask(server, "SELECT current_user") == "logging_service_owner"


@pytest.mark.parametrize("name", ["services", 'an "odd" name'])
async def test_a_folder_of_before_the_owner_is_handed_over_with_all_that_is_stored(
    made: Made, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = made.postgres()
    await before.start()
    await ask(before, "ALTER DATABASE logs OWNER TO services", url=before.admin_url)
    with monkeypatch.context() as patch:
        upgrade = command.upgrade
        patch.setattr(command, "upgrade", lambda config, _: upgrade(config, "0006"))
        await migrate(before.url)
    await store_rows(before.url, [a_row(number) for number in range(3)])
    await ask(before, "DROP ROLE logging_service_owner", url=before.admin_url)
    (made.data_dir / "pgpass_owner").unlink()
    await before.stop()

    after = made.postgres(user=name)
    await after.start()
    await migrate(after.owner_url, after.url)
    assert await ask(after, "SELECT count(*) FROM log_events", url=after.url) == 3
    owners = "SELECT array_agg(DISTINCT pg_get_userbyid(relowner)) FROM pg_class WHERE relnamespace"
    assert await ask(after, f"{owners} = 'public'::regnamespace") == ["logging_service_owner"]
    async with open_postgres_store(after.url, connections=1) as store:
        assert await store.warnings() == []
        assert (await store.append(sort_events(a_delivery(), 3600, 0))).stored == 1
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await ask(after, "DELETE FROM log_events", url=after.url)


@pytest.mark.parametrize("name", ["logging_service_owner", "logging_service_admin"])
async def test_a_user_with_the_name_of_a_role_of_the_servers_is_one_line(
    made: Made, name: str
) -> None:
    with pytest.raises(SettingsError, match=f"^DATABASE_USER={name} cannot be used: .*$"):
        await made.postgres(user=name).start()


async def test_a_name_that_postgres_does_not_take_is_one_line(made: Made) -> None:
    with pytest.raises(SettingsError, match=r"^DATABASE_USER=pg_mine, .*reserved.*$"):
        await made.postgres(user="pg_mine").start()


async def test_a_database_of_another_version_is_one_line(made: Made) -> None:
    server = made.postgres()
    await server.start()
    await server.stop()
    (made.data_dir / "postgres" / "PG_VERSION").write_text("17\n")
    with pytest.raises(SettingsError, match=r"^DATA_DIR=.* PostgreSQL 17, .* 18: .*$"):
        await server.start()


async def test_a_creation_that_was_cut_off_is_begun_anew(made: Made) -> None:
    half = made.data_dir / "postgres.new"
    (half / "base").mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    server = made.postgres()
    await server.start()
    assert not half.exists()


async def test_a_path_too_long_for_a_socket_does_without(made: Made) -> None:
    made.data_dir = made.data_dir / ("d" * 120)
    data_folder.create(made.data_dir)
    server = made.postgres()
    await server.start()
    assert not [*(made.data_dir / "postgres").glob(".s.PGSQL*")]


@pytest.mark.parametrize("kind", ["postgres", "valkey"])
async def test_a_port_that_is_taken_is_said(made: Made, kind: str) -> None:
    server: Postgres | Valkey = made.postgres() if kind == "postgres" else made.valkey()
    with (
        socket.create_server(("127.0.0.1", server.port)),
        pytest.raises(BackendUnavailable, match=f"^the bundled .* did not start: .*{kind}.log"),
    ):
        await server.start()


async def test_what_is_kept_is_the_owners_alone(made: Made) -> None:
    await made.postgres().start()
    await made.valkey().start()
    for name in (
        "pgpass_admin",
        "pgpass_owner",
        "postgres",
        "postgres.log",
        "valkey",
        "valkey.log",
    ):
        assert (made.data_dir / name).stat().st_mode & 0o077 == 0, name


root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def no_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that allows no user namespaces, as most containers."""
    monkeypatch.setattr(run_as.RunAs, "works", lambda *_: False)


@root_only
@pytest.mark.usefixtures("no_namespaces")
async def test_without_namespaces_root_runs_postgres_as_nobody(made: Made) -> None:
    if any(not place.stat().st_mode & 0o001 for place in postgres_binaries().parents):
        pytest.skip("nobody cannot enter the folder of the binaries")
    with TemporaryDirectory() as name:
        made.data_dir = Path(name) / "data"
        data_folder.create(made.data_dir)
        above = made.data_dir.parent
        above.chmod(0o701)
        server = made.postgres()
        await server.start()
        assert psutil.Process(server.pid).uids().effective == run_as.nobody()
        await ask(server, "CREATE TABLE kept (n int)")
        await server.stop()
        await server.start()
        assert await ask(server, "SELECT count(*) FROM kept") == 0
        assert above.stat().st_mode & 0o777 == 0o701
        await server.stop()


@root_only
@pytest.mark.usefixtures("no_namespaces")
async def test_a_folder_that_nobody_can_enter_is_one_line(made: Made) -> None:
    made.data_dir.parent.chmod(0o700)
    with pytest.raises(SettingsError, match=r"^PostgreSQL does not run as root, .* cannot enter /"):
        await made.postgres().start()


@root_only
async def test_root_runs_another_users_database_as_that_user(made: Made) -> None:
    server = made.postgres()
    await server.start()
    await server.stop()
    folder = made.data_dir / "postgres"
    os.chown(folder, run_as.nobody(), -1)
    assert run_as.owner_of(folder, Path("/bin/true")) == run_as.RunAs(run_as.nobody())


async def test_valkey_listens_on_loopback_alone(made: Made) -> None:
    server = made.valkey()
    await server.start()
    assert addresses(server.pid) == {("127.0.0.1", server.port)}


async def test_what_valkey_answered_survives_its_death(made: Made) -> None:
    server = made.valkey()
    await server.start()
    async with client(server) as redis:
        await redis.rpush("log_queue", "event")
    os.kill(server.pid, signal.SIGKILL)
    assert await server.wait() == -signal.SIGKILL
    await server.start()
    async with client(server) as redis:
        assert await redis.lrange("log_queue", 0, -1) == [b"event"]
        configuration = await redis.config_get("append*", "maxmemory-policy")
        assert configuration["appendonly"] == "yes"
        assert configuration["appendfsync"] == "always"
        assert configuration["maxmemory-policy"] == "noeviction"


async def test_a_valkey_whose_owner_was_killed_is_taken_over(made: Made) -> None:
    left = made.valkey()
    await left.start()
    server = made.valkey()
    await server.start()
    assert await left.wait() == 0, "it was stopped in order"


async def test_valkey_asks_for_a_password_only_when_there_is_one(made: Made) -> None:
    server = made.valkey(password='with "quotes", \\, # and ü', database=20)
    await server.start()
    async with client(server) as redis:
        assert await redis.ping()
    open_door = made.valkey()
    open_door.port = server.port
    async with client(open_door) as redis:
        with pytest.raises(AuthenticationError):
            await redis.ping()
    assert "quotes" not in " ".join(psutil.Process(server.pid).cmdline())
