"""Everything that a measurement needs, started in a folder of its own and gone afterwards."""

import asyncio
import os
import random
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import psutil
from redis.asyncio import Redis

from bench.machine import cpu_seconds
from logging_service.data_folder import create
from logging_service.embedded import Postgres, Valkey
from logging_service.postgres_store import open_postgres_store
from logging_service.rollups import ROLL_UPS
from logging_service.schema import migrate
from logging_service.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
_HOST = "127.0.0.1"
_START_SECONDS = 30
_STOP_SECONDS = 10
_REFERENCE = "reference"
_UNLIMITED = "999999999/second"
# What a delivery leaves, in the order in which it and a fold take them: no two wait for each other.
_TABLES = (
    "log_events",
    "event_facts",
    "llm_calls",
    "review_facts",
    *(table for roll_up in ROLL_UPS for table in (roll_up.deltas, roll_up.table)),
    "dead_letters",
    "deliveries",
    # Else a minute later some of these are stored beside what was sent.
    "audit_outbox",
)

_handed_out: set[int] = set()


def unused_port() -> int:
    """Return a port that nothing listens on and that was not returned before.

    It lies below the ports that the system gives to outgoing connections, or one of these would
    have it by the time a server starts.
    """
    while True:
        port = random.randrange(15_000, 32_000)  # noqa: S311 - not a secret
        with socket.socket() as probe, suppress(OSError):
            probe.bind((_HOST, port))
            if port not in _handed_out:
                _handed_out.add(port)
                return port


class Service:
    """A script that serves a port; what it writes goes into a file, however often it starts."""

    def __init__(
        self,
        script: Path,
        port: int,
        environment: Mapping[str, str],
        log: Path,
        arguments: Sequence[str] = (),
    ) -> None:
        self.port = port
        self._script = script
        self._arguments = arguments
        self._environment = environment
        self._log = log
        self._process: Process | None = None

    @property
    def pid(self) -> int:
        """The process; only after `start`."""
        if self._process is None:
            raise RuntimeError(f"{self._script.name} was not started")
        return self._process.pid

    async def start(self) -> None:
        """Return when the port is open."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                str(self._script),
                *self._arguments,
                env={"PATH": os.environ["PATH"], **self._environment},
                stdin=DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        async with asyncio.timeout(_START_SECONDS):
            while not await self._answers():
                if self._process.returncode is not None:
                    raise RuntimeError(f"{self._script.name} ended:\n{self._log.read_text()}")
                await asyncio.sleep(0.05)

    async def _answers(self) -> bool:
        try:
            _, writer = await asyncio.open_connection(_HOST, self.port)
        except OSError:
            return False
        writer.close()
        return True

    def pause(self) -> None:
        """Let it stand still, until `resume`."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    async def stop(self) -> None:
        """End it in order, else by force; harmless when it does not run."""
        if self._process is None or self._process.returncode is not None:
            return
        self.resume()
        self._process.terminate()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), _STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()


@dataclass(frozen=True)
class Pipeline:
    """The pipeline as it runs, an empty application beside it, and a database to compare with."""

    producer: Service
    consumer: Service
    empty_app: Service
    postgres: Postgres
    valkey: Valkey
    redis: "Redis"
    database: asyncpg.Connection
    reference: asyncpg.Connection
    admin: asyncpg.Connection
    api_key: str

    def cpu_seconds(self) -> dict[str, float]:
        """Return what each part has used of the processors so far."""
        parts = {
            "producer": self.producer.pid,
            "valkey": self.valkey.pid,
            "consumer": self.consumer.pid,
            "postgres": self.postgres.pid,
        }
        return {name: cpu_seconds(psutil.Process(pid)) for name, pid in parts.items()}

    async def waiting(self) -> int:
        """Return how many events lie in the queue's list."""
        return int(await self.redis.llen("log_queue"))

    async def unfinished(self) -> int:
        """Return how many events wait or are leased."""
        leases = [key async for key in self.redis.scan_iter("{log_queue}:lease:*")]
        return await self.waiting() + len(leases)

    async def stored(self) -> int:
        """Return how many events are committed, by the leases: one row a transaction."""
        count: int = await self.database.fetchval(
            "SELECT coalesce(sum(stored), 0)::bigint FROM deliveries"
        )
        return count

    async def rows(self) -> int:
        """Return how many events the table holds."""
        count: int = await self.database.fetchval("SELECT count(*) FROM log_events")
        return count

    async def dead_letters(self) -> int:
        """Return how many events were put aside."""
        count: int = await self.database.fetchval("SELECT count(*) FROM dead_letters")
        return count

    async def empty(self) -> None:
        """Begin anew: empty queue and tables, everything written out."""
        await self.redis.delete("log_queue")
        await self.database.execute(f"TRUNCATE {', '.join(_TABLES)}")
        await self.reference.execute("TRUNCATE log_events")
        await self.admin.execute("CHECKPOINT")


def temporary_folder(purpose: str) -> Path:
    """Return a new folder on a disk; who asked for it removes it."""
    # /tmp is memory on many systems, and this is about what lies on a disk.
    usual = None if "TMPDIR" in os.environ or not Path("/var/tmp").is_dir() else "/var/tmp"  # noqa: S108
    return Path(tempfile.mkdtemp(prefix=f"logging-service-{purpose}-", dir=usual))


def environment_of(folder: Path, api_key: str) -> dict[str, str]:
    """Return the variables of a service that keeps its files in `folder` and limits nobody."""
    # Every default is spelt out, so that no .env of the checkout has a say.
    plain = {
        name.upper(): str(field.default)
        for name, field in Settings.model_fields.items()
        if isinstance(field.default, int | float | str)
    }
    return plain | {
        "DATA_DIR": str(folder),
        "API_KEY": api_key,
        "RATE_LIMIT": _UNLIMITED,
        "RATE_LIMIT_LOG": _UNLIMITED,
        "RATE_LIMIT_LOGS": _UNLIMITED,
        "LOG_LEVEL": "warning",
    }


def usual_servers(folder: Path) -> tuple[Postgres, Valkey]:
    """Return the bundled servers with their usual settings, above all `fsync`; not started."""
    postgres = Postgres(
        folder,
        port=unused_port(),
        user="logging_service_user",
        password=secrets.token_urlsafe(24),
        database="code_reviewer_logs",
    )
    return postgres, Valkey(folder, port=unused_port())


@asynccontextmanager
async def a_pipeline() -> AsyncIterator[Pipeline]:
    """Yield the bundled servers with their usual settings, a producer, a consumer and the rest."""
    async with AsyncExitStack() as stack:
        folder = temporary_folder("bench")
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        create(folder)
        postgres, valkey = usual_servers(folder)
        for server in (postgres, valkey):
            stack.push_async_callback(server.stop)
        await asyncio.gather(postgres.start(), valkey.start())
        reference_url = await _make_databases(postgres)
        api_key = secrets.token_urlsafe(24)
        servers = {"DATABASE_URL": postgres.url, "REDIS_URL": valkey.url}
        environment = environment_of(folder, api_key) | servers
        services = _services(environment, folder)
        for service in services:
            stack.push_async_callback(service.stop)
        await asyncio.gather(*(service.start() for service in services))
        redis = await stack.enter_async_context(Redis.from_url(valkey.url))
        database = await _connect(stack, postgres.owner_url)
        reference = await _connect(stack, reference_url)
        admin = await _connect(stack, postgres.admin_url)
        yield Pipeline(*services, postgres, valkey, redis, database, reference, admin, api_key)


async def _connect(stack: AsyncExitStack, url: str) -> asyncpg.Connection:
    connection = await asyncpg.connect(url, ssl=False)
    stack.push_async_callback(connection.close)
    return connection


async def add_database(postgres: Postgres, name: str) -> str:
    """Make an empty database beside the server's own, and return its URL."""
    admin = await asyncpg.connect(postgres.admin_url, ssl=False)
    try:
        await admin.execute(f"CREATE DATABASE {name} OWNER logging_service_user")
    finally:
        await admin.close()
    return f"{postgres.url.rpartition('/')[0]}/{name}"


async def _make_databases(postgres: Postgres) -> str:
    reference_url = await add_database(postgres, _REFERENCE)
    for owner_url, url in ((postgres.owner_url, postgres.url), (reference_url, reference_url)):
        await migrate(owner_url, url)
        async with open_postgres_store(url, connections=1) as store:
            await store.prepare()
    return reference_url


def _services(environment: dict[str, str], folder: Path) -> tuple[Service, Service, Service]:
    def service(script: Path, variable: str) -> Service:
        port = unused_port()
        log = folder / f"{script.stem}.log"
        return Service(script, port, environment | {variable: str(port)}, log)

    return (
        service(ROOT / "logging_service" / "producer.py", "PRODUCER_PORT"),
        service(ROOT / "logging_service" / "consumer.py", "METRICS_PORT"),
        service(ROOT / "bench" / "empty_app.py", "PRODUCER_PORT"),
    )
