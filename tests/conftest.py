"""One PostgreSQL and one Redis-protocol server for the whole run; every test finds them empty."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import asyncpg
import pytest
from projects import Project, a_project
from redis.asyncio import Redis
from servers import a_postgres, a_redis, unused_port

from gateway.settings import GatewaySettings
from logging_service.data_folder import create
from logging_service.embedded import Postgres, Valkey
from logging_service.schema import migrate
from logging_service.settings import Settings

API_KEY = "test_key_123"
ADMIN_API_KEY = "admin_key_123"
_TEMPLATE = "migrated"


@pytest.fixture(scope="session", autouse=True)
def _no_environment_of_the_developer() -> Iterator[None]:
    ours = {name.upper() for name in GatewaySettings.model_fields}
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.upper() in ours or name.startswith(("RATE_LIMIT_", "PG")):
                patch.delenv(name)
        for kind in (Settings, GatewaySettings):
            patch.setitem(kind.model_config, "env_file", None)
        yield


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    # Outside pytest's own temporary folder: that path can be too long for a socket.
    with TemporaryDirectory(prefix="logging-service-tests-") as folder:
        create(Path(folder))
        yield Path(folder)


@pytest.fixture(scope="session")
async def postgres(server_folder: Path) -> AsyncIterator[Postgres]:
    """The suite's PostgreSQL; `database_url` is what a test usually wants."""
    server = a_postgres(server_folder)
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


@pytest.fixture(scope="session")
async def redis_server(server_folder: Path) -> AsyncIterator[Valkey]:
    """The suite's Redis-protocol server; `redis_url` is what a test usually wants."""
    server = a_redis(server_folder)
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


def url_of(server: Postgres, database: str) -> str:
    return f"{server.url.rpartition('/')[0]}/{database}"


def owner_url_of(server: Postgres, database: str) -> str:
    return f"{server.owner_url.rpartition('/')[0]}/{database}"


async def _as_admin(server: Postgres, *statements: str) -> None:
    connection = await asyncpg.connect(server.admin_url, ssl=False)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture(scope="session")
async def migrated_template(postgres: Postgres) -> str:
    await _as_admin(
        postgres,
        f"CREATE DATABASE {_TEMPLATE} OWNER logging_service_owner",
        # Tests end the services' sessions.
        "GRANT pg_signal_backend TO logging_service_owner",
    )
    await migrate(owner_url_of(postgres, _TEMPLATE), url_of(postgres, _TEMPLATE))
    return _TEMPLATE


@pytest.fixture
async def database_url(postgres: Postgres, migrated_template: str) -> AsyncIterator[str]:
    """A migrated database that belongs to this test alone, as its owner reaches it."""
    name = f"test_{uuid4().hex}"
    made = f"CREATE DATABASE {name} TEMPLATE {migrated_template} OWNER logging_service_owner"
    await _as_admin(postgres, made)
    yield owner_url_of(postgres, name)
    await _as_admin(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def services_url(postgres: Postgres, database_url: str) -> str:
    """`database_url` as the services reach it, who own nothing in it."""
    return url_of(postgres, database_url.rpartition("/")[2])


@pytest.fixture
async def empty_database_url(postgres: Postgres) -> AsyncIterator[str]:
    """A database of this test's own that has no schema yet."""
    name = f"test_{uuid4().hex}"
    await _as_admin(postgres, f"CREATE DATABASE {name} OWNER logging_service_user")
    yield url_of(postgres, name)
    await _as_admin(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def redis_url(redis_server: Valkey) -> str:
    """A server of the Redis protocol that holds nothing."""
    client = Redis.from_url(redis_server.url)
    try:
        await client.flushall()
    finally:
        await client.aclose()
    return redis_server.url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to `database_url`."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client of the server at `redis_url`."""
    async with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def free_port() -> int:
    """A port that nothing listens on."""
    return unused_port()


@pytest.fixture
def environment(services_url: str, redis_url: str, tmp_path: Path) -> dict[str, str]:
    """The variables of a service that a test runs as a process."""
    return {
        "DATABASE_URL": services_url,
        "REDIS_URL": redis_url,
        "API_KEY": API_KEY,
        "ADMIN_API_KEY": ADMIN_API_KEY,
        "DATA_DIR": str(tmp_path / "data"),
        "PRODUCER_PORT": str(unused_port()),
        "QUERY_SERVICE_PORT": str(unused_port()),
        "GATEWAY_PORT": str(unused_port()),
        "METRICS_PORT": str(unused_port()),
    }


@pytest.fixture
def settings(environment: dict[str, str]) -> Settings:
    """The settings that `environment` gives, and nothing of the developer's."""
    return Settings.model_validate({name.lower(): value for name, value in environment.items()})


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """A folder in which a test runs `logging-service` as a process, on ports of its own."""
    with a_project(tmp_path) as project:
        yield project
