"""A master, a replica and three sentinels, on ports of their own and ended with the test."""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from redis.asyncio import Redis
from servers import a_redis, unused_port

from logging_service.data_folder import create
from logging_service.embedded import Valkey, valkey_binary

SERVICE = "mymaster"
PASSWORD = "a server's: @/ secret"
SENTINEL_PASSWORD = "a-sentinels-secret"
_WAIT_SECONDS = 30
_CONFIGURATION = """\
port {port}
bind 127.0.0.1
dir {folder}
requirepass {sentinel_password}
sentinel sentinel-pass {sentinel_password}
sentinel monitor {service} 127.0.0.1 {master} 2
sentinel auth-pass {service} "{password}"
sentinel down-after-milliseconds {service} 500
sentinel failover-timeout {service} 3000
sentinel config-epoch {service} {configuration}
"""


@dataclass
class Guarded:
    """Two servers of which one is the master, and the sentinels that watch them."""

    servers: dict[int, Valkey]
    sentinels: dict[int, subprocess.Popen[bytes]]

    async def master(self) -> Valkey:
        """Return the server that most sentinels say is the master."""
        answers: list[int] = []
        for port in self.sentinels:
            async with _sentinel(port) as client:
                told: Any = await client.sentinel_get_master_addr_by_name(SERVICE)
                answers.append(int(told[1]))
        return self.servers[max(answers, key=answers.count)]

    def client(self, server: Valkey) -> Redis:
        """Return a client of one server."""
        return Redis(port=server.port, password=PASSWORD)

    async def settle(self) -> None:
        """Return when the sentinels know each other and a replica that follows the master."""
        async with asyncio.timeout(_WAIT_SECONDS):
            for port in self.sentinels:
                async with _sentinel(port) as client:
                    while not await _is_complete(client):
                        await asyncio.sleep(0.1)
            async with self.client(await self.master()) as master:
                while not await _has_replica(master):
                    await asyncio.sleep(0.1)


def _sentinel(port: int) -> Redis:
    return Redis(port=port, password=SENTINEL_PASSWORD, socket_timeout=5)


async def _is_complete(sentinel: Redis) -> bool:
    told: Any = await sentinel.sentinel_master(SERVICE)
    return bool(
        told["num-other-sentinels"] == 2
        and told["num-slaves"] == 1
        and told["is_master"]
        and not told["is_sdown"]
    )


async def _has_replica(master: Redis) -> bool:
    told: Any = await master.info("replication")
    return bool(told["role"] == "master" and told.get("slave0", {}).get("state") == "online")


@contextmanager
def a_sentinel(
    folder: Path, master: int, *, port: int | None = None, configuration: int = 0
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Yield the port and the process of a sentinel that watches the master on a port."""
    port = port or unused_port()
    file = folder / f"sentinel-{port}.conf"
    file.write_text(
        _CONFIGURATION.format(
            port=port,
            folder=folder,
            service=SERVICE,
            master=master,
            configuration=configuration,
            password=PASSWORD,
            sentinel_password=SENTINEL_PASSWORD,
        )
    )
    installed = shutil.which("redis-server")
    process = subprocess.Popen(
        [installed or str(valkey_binary()), str(file), "--sentinel"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield port, process
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


async def a_guarded_server(stack: AsyncExitStack, folder: Path) -> Valkey:
    """Return a server that the sentinels of `a_sentinel` can enter, until the stack ends."""
    create(folder)
    server = a_redis(folder, password=PASSWORD)
    stack.push_async_callback(server.stop)
    await server.start()
    async with Redis(port=server.port, password=PASSWORD) as client:
        await client.config_set("masterauth", PASSWORD)
    return server


@asynccontextmanager
async def guarded_servers() -> AsyncIterator[Guarded]:
    """Yield the five once they know each other."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="logging-service-tests-")))
        master = await a_guarded_server(stack, folder / "one")
        replica = await a_guarded_server(stack, folder / "two")
        async with Redis(port=replica.port, password=PASSWORD) as client:
            await client.replicaof("127.0.0.1", str(master.port))
        sentinels = dict(stack.enter_context(a_sentinel(folder, master.port)) for _ in range(3))
        guarded = Guarded({server.port: server for server in (master, replica)}, sentinels)
        await asyncio.sleep(0.3)
        await guarded.settle()
        yield guarded
