"""`logging-service up`: starts everything on this machine, keeps it running, stops it in order."""

import asyncio
import os
import re
import secrets
import shlex
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, Self

import asyncpg
from rich.console import Console
from rich.table import Column, Table

from logging_service import data_folder, embedded
from logging_service.backends import open_queue
from logging_service.embedded import Postgres, Valkey
from logging_service.errors import BackendUnavailable, SettingsError
from logging_service.hosts import reached_at
from logging_service.settings import Settings
from logging_service.supervision import Runs, Service, keep_running

_STREAM = socket.SOCK_STREAM
_LOOPBACK = "127.0.0.1"
_READY_SECONDS = 30.0
_OWNER = "DATABASE_OWNER_URL"
_PLAIN_SECRET = re.compile(r"[A-Za-z0-9_-]{16,}")

# Seconds after the signal at which what has not stopped yet is killed; all of it is below ten.
_FRONT, _CONSUMER, _QUEUE, _STORE = 3.0, 5.0, 6.0, 7.5
_GRACE_SECONDS = 2.0


def say(line: str) -> None:
    """Tell the person at the terminal, who may have closed it."""
    with suppress(OSError):
        print(f"up: {line}", file=sys.stderr, flush=True)


async def up(settings: Settings, services: Path = Path(__file__).parent) -> None:
    """Run everything until a signal ends it; `services` holds the files of the processes.

    Raises SettingsError or BackendUnavailable, one line, when the start cannot succeed.
    """
    data_folder.create(settings.data_path)
    with data_folder.locked(settings.data_path):
        await end_left_over(settings.data_path)
        await _Up(settings, services).run()


async def end_left_over(data_dir: Path) -> None:
    """Stop what an `up` that was killed left running, services before servers."""
    services = data_folder.services_of(data_dir)
    if services:
        say(f"stopping {len(services)} processes that an earlier `up` left running")
    await data_folder.end(services, signal.SIGTERM, 5)
    await embedded.end_left_over(data_dir)


class _Part(NamedTuple):
    """One of what `up` runs; parts with the same `stopped_by` are stopped together."""

    runs: Runs
    url: str
    stopped_by: float
    answers: asyncio.Event


class _Address(NamedTuple):
    """Where one of our processes listens, and the variable that moves it."""

    variable: str
    host: str
    port: int
    scheme: str = "http"

    @classmethod
    def of(cls, face: str, settings: Settings) -> Self:
        scheme = "https" if settings.tls_files(face) else "http"
        host, port = getattr(settings, f"{face}_host"), getattr(settings, f"{face}_port")
        return cls(f"{face.upper()}_PORT", host, port, scheme)

    @property
    def asked_at(self) -> str:
        """Its URL by number: what else a name leads to is not asked."""
        return self._url(reached_at(self.host))

    @property
    def url(self) -> str:
        host = reached_at(self.host)
        return self._url("localhost" if host == _LOOPBACK else host)

    def _url(self, host: str) -> str:
        return f"{self.scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    def fault(self) -> str | None:
        """Say why nothing can listen there, None when something can."""
        try:
            kind, _, _, _, place = socket.getaddrinfo(self.host, self.port, type=_STREAM)[0]
            with socket.socket(kind, _STREAM) as probe:
                # Connections that a server before us left in TIME_WAIT do not count.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(place)
        except OSError as error:
            return f"{self.variable}={self.port} on {self.host}: {error.strerror}"
        return None


class _Up:
    def __init__(self, settings: Settings, services: Path) -> None:
        self._settings = settings
        self._services = services
        self._gateway = services.parent / "main.py"
        self._database = self._named("database_url", "database_host")
        self._redis = self._named("redis_url", "redis_host")
        self._starts_redis = settings.use_redis_queue and not self._redis
        self._producer = _Address.of("producer", settings)
        self._query = _Address.of("query_service", settings)
        self._front = _Address.of("gateway", settings)
        self._metrics = _Address.of("metrics", settings)
        self._consumer_is_asked = True
        self._store_url, self._owner_url = settings.store_url, settings.owner_url
        self._parts: list[_Part] = []
        self._stop = asyncio.Event()

    def _named(self, *fields: str) -> str | None:
        given = self._settings.model_fields_set
        return next((name.upper() for name in fields if name in given), None)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._signalled)
        work = asyncio.create_task(self._work())
        waiting = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({work, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await work
            say("stopping; Ctrl-C again to hurry")
        finally:
            self._stop.set()
            work.cancel()
            waiting.cancel()
            await asyncio.gather(work, waiting, return_exceptions=True)
            await self._stop_parts()
        say("everything is stopped")

    def _signalled(self) -> None:
        if self._stop.is_set():
            for part in self._parts:
                part.runs.hurry()
        self._stop.set()

    async def _stop_parts(self) -> None:
        began = time.monotonic()
        for stopped_by, parts in groupby(reversed(self._parts), lambda part: part.stopped_by):
            left = max(0.1, began + stopped_by - time.monotonic())
            await asyncio.gather(*(part.runs.stop(left) for part in parts))
        await data_folder.end(data_folder.services_of(self._settings.data_path), signal.SIGKILL, 1)

    async def _work(self) -> None:
        self._check_ports()
        await self._check_named_servers()
        password = database_password(self._settings)
        try:
            async with asyncio.TaskGroup() as keepers:
                for server in self._servers(password):
                    self._keep(keepers, server, patient=False)
                await self._all_answer()
                await self._migrate()
                key = api_key(self._settings)
                for process in self._processes(self._environment(key, password)):
                    self._keep(keepers, process, patient=True)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._all_answer(), _READY_SECONDS)
                self._show(key)
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    def _keep(self, keepers: asyncio.TaskGroup, part: _Part, *, patient: bool) -> None:
        self._parts.append(part)
        keepers.create_task(keep_running(part.runs, say, part.answers, patient=patient))

    async def _all_answer(self) -> None:
        for part in self._parts:
            await part.answers.wait()

    def _check_ports(self) -> None:
        settings = self._settings
        addresses = [self._producer, self._query]
        if self._gateway.exists():
            addresses.append(self._front)
        if not self._database:
            addresses.append(_Address("DATABASE_PORT", _LOOPBACK, settings.database_port))
        if self._starts_redis:
            addresses.append(_Address("REDIS_PORT", _LOOPBACK, settings.redis_port))
        owners: dict[int, str] = {}
        for address in addresses:
            if owner := owners.get(address.port):
                raise SettingsError(f"{owner} and {address.variable} are both {address.port}")
            owners[address.port] = address.variable
            if fault := address.fault():
                raise SettingsError(f"{fault}; stop what listens there, or set {address.variable}")
        if self._metrics.port in owners or self._metrics.fault():
            self._consumer_is_asked = False
            say(
                f"METRICS_PORT={self._metrics.port} is taken: the consumer works without its "
                "/metrics, and up watches its process instead"
            )

    async def _check_named_servers(self) -> None:
        for variable, ask in self._named_servers():
            try:
                await ask()
            except (OSError, TimeoutError, asyncpg.PostgresError, BackendUnavailable) as error:
                reason = str(error).splitlines()[0] if str(error) else "no answer"
                instead = "go on with one role" if variable == _OWNER else "use the bundled one"
                raise SettingsError(
                    f"the server that {variable} names cannot be used: {reason}; "
                    f"unset {variable} to {instead}"
                ) from None

    def _named_servers(self) -> Iterator[tuple[str, Callable[[], Awaitable[None]]]]:
        settings = self._settings
        if self._database:
            yield self._database, partial(_log_in, settings.store_url)
        if settings.database_owner_url:
            yield _OWNER, partial(_log_in, settings.database_owner_url)
        if settings.use_redis_queue and self._redis:
            yield self._redis, self._ask_queue

    async def _ask_queue(self) -> None:
        async with open_queue(self._settings) as queue:
            await queue.status()

    def _servers(self, password: str) -> list[_Part]:
        settings = self._settings
        parts = []
        if not self._database:
            database = Postgres(
                settings.data_path,
                port=settings.database_port,
                user=settings.database_user,
                password=password,
                database=settings.database_name,
                say=say,
            )
            self._store_url, self._owner_url = database.url, database.owner_url
            url = f"localhost:{settings.database_port}/{settings.database_name}"
            parts.append(_Part(database, url, _STORE, asyncio.Event()))
        if self._starts_redis:
            secret = settings.redis_password
            queue = Valkey(
                settings.data_path,
                port=settings.redis_port,
                password=secret.get_secret_value() if secret else None,
                database=settings.redis_db,
            )
            url = f"localhost:{settings.redis_port}/{settings.redis_db}"
            parts.append(_Part(queue, url, _QUEUE, asyncio.Event()))
        return parts

    async def _migrate(self) -> None:
        # Alembic takes longer to import than everything else here together.
        from logging_service.schema import migrate

        await migrate(self._owner_url, self._store_url)

    def _processes(self, environment: dict[str, str]) -> list[_Part]:
        def part(
            name: str,
            file: Path,
            address: _Address,
            stopped_by: float = _FRONT,
            *,
            ask: bool = True,
        ) -> _Part:
            service = Service(name, file, address.asked_at if ask else None, environment)
            return _Part(service, address.url if ask else "", stopped_by, asyncio.Event())

        folder, ask = self._services, self._consumer_is_asked
        parts = [
            part("producer", folder / "producer.py", self._producer),
            part("query service", folder / "query_service.py", self._query),
        ]
        if not self._settings.queue_is_memory:
            consumer = part("consumer", folder / "consumer.py", self._metrics, _CONSUMER, ask=ask)
            parts.insert(0, consumer)
        if self._gateway.exists():
            parts.append(part("gateway", self._gateway, self._front))
        return parts

    def _environment(self, key: str, password: str) -> dict[str, str]:
        settings = self._settings
        grace = min(_GRACE_SECONDS, settings.shutdown_grace_seconds)
        added = {
            data_folder.OWNER_VARIABLE: str(settings.data_path),
            "DATA_DIR": str(settings.data_path),
            "API_KEY": key,
            "SHUTDOWN_GRACE_SECONDS": str(grace),
        }
        if self._named("logging_service_url") is None:
            added["LOGGING_SERVICE_URL"] = f"{self._producer.url}/log"
        if self._named("query_service_url") is None:
            added["QUERY_SERVICE_URL"] = self._query.url
        if not self._database:
            added |= {"DATABASE_HOST": _LOOPBACK, "DATABASE_PASSWORD": password}
        if self._starts_redis:
            added |= {"REDIS_HOST": _LOOPBACK}
        # The services get by without the owner.
        kept = {name: value for name, value in os.environ.items() if name.upper() != _OWNER}
        return {**kept, **added}

    def _show(self, key: str) -> None:
        table = Table("what", Column("where", overflow="fold"), "state", box=None, pad_edge=False)
        redis = self._redis if self._settings.use_redis_queue else None
        for variable, what in ((self._database, "PostgreSQL"), (redis, "Redis")):
            if variable:
                table.add_row(what, f"named by {variable}", "answers")
        for part in self._parts:
            table.add_row(part.runs.name, part.url, _state(part))
        if not self._gateway.exists():
            table.add_row("gateway", "", "absent: there is no main.py")
        with suppress(OSError):
            Console().print(table)
            print(f"API key: {key}", flush=True)
            if self._gateway.exists():
                print(self._review_line(key), flush=True)
            if self._database != "DATABASE_URL":
                print(self._psql_line(), flush=True)

    def _review_line(self, key: str) -> str:
        headers = ("-H", f"X-API-Key: {key}", "-H", "Content-Type: application/json")
        body = '{"code": "def f(x): return eval(x)"}'
        return shlex.join(["curl", *headers, "-d", body, f"{self._front.url}/reviews"])

    def _psql_line(self) -> str:
        settings = self._settings
        host = settings.database_host if self._database else "localhost"
        line = ["psql", "-h", host, "-p", str(settings.database_port)]
        line += ["-U", settings.database_user, "-d", settings.database_name]
        file = "" if self._database else f"PGPASSFILE={shlex.quote(str(_password_file(settings)))} "
        return file + shlex.join(line)


async def _log_in(url: str) -> None:
    connection = await asyncpg.connect(url, timeout=5)
    await connection.close()


def _state(part: _Part) -> str:
    if not part.answers.is_set():
        return "does not answer yet"
    return "ready" if part.url else "runs"


def api_key(settings: Settings) -> str:
    """Return API_KEY, else the one that is generated once and kept in DATA_DIR."""
    if settings.api_key:
        return settings.api_key.get_secret_value()
    file = settings.data_path / "api_key"
    return data_folder.kept_secret(file, lambda: secrets.token_urlsafe(24))


def _password_file(settings: Settings) -> Path:
    return settings.data_path / "pgpass"


def database_password(settings: Settings) -> str:
    """Return DATABASE_PASSWORD, else the one generated once; keep it where `psql` finds it."""
    kept = settings.kept_secret("pgpass") or ""
    password = kept.rpartition(":")[2]
    if settings.database_password:
        password = settings.database_password.get_secret_value()
    elif not _PLAIN_SECRET.fullmatch(password):
        password = secrets.token_urlsafe(24)
    user, escaped = (
        text.replace("\\", "\\\\").replace(":", "\\:")
        for text in (settings.database_user, password)
    )
    if kept != (line := f"*:*:*:{user}:{escaped}"):
        data_folder.write_secret(_password_file(settings), line + "\n")
    return password
