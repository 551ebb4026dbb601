"""The pipeline as it runs, with a proxy before every server of every process, kept running."""

import asyncio
import os
import secrets
import shutil
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.servers import (
    ROOT,
    Service,
    environment_of,
    temporary_folder,
    unused_port,
    usual_servers,
)
from chaos.proxy import Proxy
from logging_service.data_folder import create
from logging_service.embedded import Postgres, Valkey
from logging_service.errors import BackendUnavailable
from logging_service.schema import migrate
from logging_service.supervision import keep_running

Say = Callable[[str], None]
PRODUCERS = ("producer-1", "producer-2")
CONSUMERS = ("consumer-1", "consumer-2")
QUERY_SERVICE = "query_service"
_LOAD_SECONDS = 60


class Part(Service):
    """A service that can be kept running, see `supervision.keep_running`."""

    def __init__(
        self, name: str, environment: Mapping[str, str], folder: Path, *arguments: str
    ) -> None:
        script = ROOT / "logging_service" / f"{name.partition('-')[0]}.py"
        port = unused_port()
        ports = dict.fromkeys(("PRODUCER_PORT", "METRICS_PORT", "QUERY_SERVICE_PORT"), str(port))
        super().__init__(script, port, {**environment, **ports}, folder / f"{name}.log", arguments)
        self.name = name
        self.endings: Counter[int] = Counter()

    async def start(self) -> None:
        """Return when the port is open; raises BackendUnavailable when it does not open."""
        try:
            await super().start()
        except (RuntimeError, TimeoutError) as error:
            self.hurry()
            reason = str(error).partition("\n")[0] or "its port does not open"
            raise BackendUnavailable(reason) from None

    async def wait(self) -> int:
        """Return its exit code once it has ended; workers that outlive it are ended too."""
        if self._process is None:
            return 0
        code = await self._process.wait()
        self.endings[code] += 1
        self.hurry()
        return code

    def hurry(self) -> None:
        """End its whole group at once."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def stop(self, seconds: float = 0) -> None:
        """End it in order, after `seconds` by force."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), seconds)
        self.hurry()


@dataclass(frozen=True)
class Pipeline:
    """Everything that runs: parts by their names, proxies by the server that they stand before."""

    folder: Path
    postgres: Postgres
    valkey: Valkey
    services: Mapping[str, Part]
    proxies: Mapping[str, Sequence[Proxy]]
    ledger: Path
    load: Process

    def processes(self, name: str) -> list[psutil.Process]:
        """Return a part's processes that run now, the first of them first."""
        parts: dict[str, Postgres | Valkey | Part] = {
            **self.services,
            "postgres": self.postgres,
            "valkey": self.valkey,
        }
        try:
            first = psutil.Process(parts[name].pid)
            found = [first, *first.children(recursive=True)]
        except (psutil.NoSuchProcess, BackendUnavailable, RuntimeError):
            return []
        return [one for one in found if _works(one)]

    def endings(self) -> dict[str, int]:
        """Return how often each service ended with each exit code, minus a signal's number."""
        return {
            f"{name} with {code}": times
            for name, service in self.services.items()
            for code, times in service.endings.items()
        }

    async def end_load(self) -> bytes:
        """Let the senders finish, and return what they printed; raises RuntimeError."""
        try:
            async with asyncio.timeout(_LOAD_SECONDS):
                printed, _ = await self.load.communicate(b"")
        except TimeoutError:
            raise RuntimeError("the senders do not end") from None
        if self.load.returncode:
            raise RuntimeError("the senders gave up, see load.log (--keep)")
        return printed


def _works(process: psutil.Process) -> bool:
    """Whether it runs, and is not the helper that multiprocessing starts beside its workers."""
    with suppress(psutil.NoSuchProcess):
        helps = any("resource_tracker" in word for word in process.cmdline())
        return not helps and process.status() != psutil.STATUS_ZOMBIE
    return False


class _Keepers:
    """Keeps parts running, for as long as the group of tasks does."""

    def __init__(self, group: asyncio.TaskGroup, say: Say) -> None:
        self._group = group
        self._say = say
        self._tasks: list[asyncio.Task[None]] = []

    async def keep(self, *parts: Postgres | Valkey | Part) -> None:
        """Return when each of `parts` has answered; they are started again whenever they end."""
        answers = []
        for part in parts:
            answers.append(asyncio.Event())
            keeping = keep_running(part, self._say, answers[-1], patient=True)
            self._tasks.append(self._group.create_task(keeping))
        for answer in answers:
            await answer.wait()

    def let_go(self) -> None:
        """Start nothing again."""
        for task in self._tasks:
            task.cancel()


class _Network:
    """Makes the proxies, one for each process and server."""

    def __init__(self, postgres: Postgres, valkey: Valkey) -> None:
        self.proxies: dict[str, list[Proxy]] = {"postgres": [], "valkey": []}
        self._servers: dict[str, Postgres | Valkey] = {"postgres": postgres, "valkey": valkey}

    async def urls(self) -> dict[str, str]:
        """Return the variables of one process that lead through proxies of its own."""
        return {
            "DATABASE_URL": await self._through_proxy("postgres"),
            "REDIS_URL": await self._through_proxy("valkey"),
        }

    async def _through_proxy(self, name: str) -> str:
        server = self._servers[name]
        proxy = Proxy(unused_port(), server.port)
        await proxy.mend()
        self.proxies[name].append(proxy)
        return server.url.replace(f":{server.port}/", f":{proxy.port}/")

    def close(self) -> None:
        """Take no more connections, and end those that are there."""
        for proxies in self.proxies.values():
            for proxy in proxies:
                proxy.refuse()


async def _services(network: _Network, folder: Path, api_key: str) -> dict[str, Part]:
    plain = environment_of(folder, api_key) | {"LOG_LEVEL": "info"}
    services = {}
    for name in (*PRODUCERS, *CONSUMERS, QUERY_SERVICE):
        arguments = ("--workers", "2") if name == PRODUCERS[-1] else ()
        services[name] = Part(name, plain | await network.urls(), folder, *arguments)
    return services


async def _start_load(
    folder: Path, seed: int, events_per_second: float, ports: Sequence[int], api_key: str
) -> Process:
    words = [folder / "ledger.txt", seed, events_per_second, *ports]
    with (folder / "load.log").open("wb") as log:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            str(ROOT / "chaos" / "load.py"),
            *map(str, words),
            env={"PATH": os.environ["PATH"], "API_KEY": api_key},
            stdin=PIPE,
            stdout=PIPE,
            stderr=log,
            start_new_session=True,
        )


async def _end(load: Process) -> None:
    if load.returncode is None:
        load.kill()
        await load.wait()


@asynccontextmanager
async def a_pipeline(
    folder: Path, seed: int, events_per_second: float, say: Say
) -> AsyncIterator[Pipeline]:
    """Yield servers, services and senders, of which each but the senders is kept running.

    What they keep and say lies in `folder`; nothing of them runs afterwards.
    """
    async with AsyncExitStack() as stack:
        postgres, valkey = usual_servers(folder)
        network = _Network(postgres, valkey)
        stack.callback(network.close)
        stack.push_async_callback(postgres.stop)
        stack.push_async_callback(valkey.stop)
        async with asyncio.TaskGroup() as group:
            keepers = _Keepers(group, say)
            await keepers.keep(postgres, valkey)
            await migrate(postgres.owner_url, postgres.url)
            api_key = secrets.token_urlsafe(24)
            services = await _services(network, folder, api_key)
            for service in services.values():
                stack.push_async_callback(service.stop)
            await keepers.keep(*services.values())
            ports = [services[name].port for name in PRODUCERS]
            load = await _start_load(folder, seed, events_per_second, ports, api_key)
            stack.push_async_callback(_end, load)
            ledger = folder / "ledger.txt"
            yield Pipeline(folder, postgres, valkey, services, network.proxies, ledger, load)
            keepers.let_go()


@contextmanager
def a_folder(*, keep: bool) -> Iterator[Path]:
    """Yield a new folder; it is removed in the end unless it is to be kept."""
    folder = temporary_folder("chaos")
    create(folder)
    try:
        yield folder
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
