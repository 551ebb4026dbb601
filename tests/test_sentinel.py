"""Sentinel: the queue is where the sentinels say that the master is, also after it died."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from urllib.parse import quote

import pytest
from events_made import a_delivery, an_event
from redis.asyncio import Redis
from sentinels import (
    PASSWORD,
    SENTINEL_PASSWORD,
    SERVICE,
    Guarded,
    a_guarded_server,
    a_sentinel,
    guarded_servers,
)
from servers import run_to_end, unused_port

from logging_service.errors import BackendUnavailable
from logging_service.ports import EventQueue
from logging_service.redis_queue import RedisQueue, open_redis_queue

# A failover takes about two seconds; the rest is for a machine that is busy.
FAILOVER_SECONDS = 30


@pytest.fixture(scope="module")
async def servers() -> AsyncIterator[Guarded]:
    async with guarded_servers() as servers:
        yield servers


@pytest.fixture
async def guarded(servers: Guarded) -> Guarded:
    async with servers.client(await servers.master()) as master:
        await master.flushall()
    return servers


def url_of(ports: list[int], service: str = SERVICE) -> str:
    places = ",".join(f"127.0.0.1:{port}" for port in ports)
    login = f":{quote(PASSWORD, safe='')}"
    return f"redis+sentinel://{login}@{places}/{service}/0?sentinel_password={SENTINEL_PASSWORD}"


def opened(url: str) -> AbstractAsyncContextManager[RedisQueue]:
    return open_redis_queue(url, name="log_queue", ttl_seconds=60, timeout_ms=250)


async def until_acknowledged(call: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(FAILOVER_SECONDS):
        while True:
            try:
                await call()
            except BackendUnavailable:
                await asyncio.sleep(0.05)
            else:
                return


async def until_on(server: Redis, queue: EventQueue) -> None:
    """Put events until that server, which is a master or becomes one, takes one of them."""
    async with asyncio.timeout(FAILOVER_SECONDS):
        while (await server.info("replication"))["role"] != "master":
            await asyncio.sleep(0.05)
        before = await server.llen("log_queue")
        while await server.llen("log_queue") == before:
            await until_acknowledged(lambda: queue.put([an_event()]))
            await asyncio.sleep(0.05)


async def everything(queue: EventQueue) -> list[bytes]:
    found: list[bytes] = []
    while delivery := await queue.take(1000, 0.1):
        found += delivery.events
        await queue.done(delivery)
    return found


async def test_events_go_to_the_master_and_come_from_it(guarded: Guarded) -> None:
    async with opened(url_of(list(guarded.sentinels))) as queue:
        event = an_event()
        assert await queue.put([event]) == "queued"
        async with guarded.client(await guarded.master()) as master:
            assert await master.llen("log_queue") == 1
        assert await everything(queue) == [event]
        assert (await queue.status()).size == 0
        assert await queue.warnings() == []


async def test_sentinels_that_are_away_or_hang_are_done_without(guarded: Guarded) -> None:
    ports = list(guarded.sentinels)
    hanging = guarded.sentinels[ports[0]].pid
    os.kill(hanging, signal.SIGSTOP)
    try:
        async with opened(url_of([unused_port(), *ports])) as queue:
            await until_acknowledged(lambda: queue.put([an_event()]))
    finally:
        os.kill(hanging, signal.SIGCONT)


async def test_without_a_sentinel_that_knows_the_service_it_is_said(guarded: Guarded) -> None:
    async with opened(url_of(list(guarded.sentinels), "another")) as queue:
        with pytest.raises(BackendUnavailable, match=r"another.*No such master"):
            await queue.status()
    async with opened(url_of([unused_port(), unused_port()])) as queue:
        with pytest.raises(BackendUnavailable, match=SERVICE):
            await queue.put([an_event()])
    no_sentinel = await guarded.master()
    async with opened(url_of([no_sentinel.port])) as queue:
        with pytest.raises(BackendUnavailable, match=SERVICE):
            await queue.put([an_event()])


async def test_a_master_that_was_replaced_in_order_is_left(guarded: Guarded) -> None:
    async with opened(url_of(list(guarded.sentinels))) as queue:
        await queue.put([an_event()])
        old = await guarded.master()
        (new,) = (server for server in guarded.servers.values() if server is not old)
        async with guarded.client(old) as client:
            assert await client.wait(1, 5000) == 1
        async with (
            Redis(port=next(iter(guarded.sentinels)), password=SENTINEL_PASSWORD) as sentinel,
            guarded.client(new) as client,
        ):
            await sentinel.sentinel_failover(SERVICE)
            await until_on(client, queue)
        after = [an_event(payload={"after": n}) for n in range(10)]
        for event in after:
            await until_acknowledged(lambda event=event: queue.put([event]))  # type: ignore[misc]
        assert set(after) <= set(await everything(queue))


async def test_after_the_masters_death_the_new_one_is_found_and_keeps_what_it_acknowledges() -> (
    None
):
    async with (
        guarded_servers() as guarded,
        opened(url_of(list(guarded.sentinels))) as queue,
    ):
        held = [an_event(payload={"n": n}) for n in range(10)]
        await queue.put(held)
        leased = await queue.take(1, 0)
        assert leased is not None
        old = await guarded.master()
        async with guarded.client(old) as client:
            assert await client.wait(1, 5000) == 1
        os.kill(old.pid, signal.SIGKILL)
        await old.wait()
        after = [an_event(payload={"after": n}) for n in range(10)]
        for event in after:
            await until_acknowledged(lambda event=event: queue.put([event]))  # type: ignore[misc]
        drained = a_delivery()
        await until_acknowledged(lambda: queue.put_once(drained))
        (new,) = (server for server in guarded.servers.values() if server is not old)
        async with guarded.client(new) as client:
            assert await client.llen("log_queue") == 20
        found: list[bytes] = []

        async def find() -> None:
            await queue.give_back(leased, 0)
            found.extend(await everything(queue))

        # Some sentinels learn of the new master only now.
        await until_acknowledged(find)
        assert {*held, *after, *drained.events} <= set(found)
        assert [tally.epoch for tally in await queue.tallies()] == [leased.epoch]


async def test_the_latest_configuration_counts_and_is_followed(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        old = await a_guarded_server(stack, tmp_path / "old")
        new = await a_guarded_server(stack, tmp_path / "new")
        first, _ = stack.enter_context(a_sentinel(tmp_path, old.port, configuration=4))
        later = unused_port()
        url = url_of([first, later])
        clients = (Redis(port=server.port, password=PASSWORD) for server in (old, new))
        on_old, on_new = [await stack.enter_async_context(client) for client in clients]
        queue = await stack.enter_async_context(opened(url))
        await until_on(on_old, queue)
        stack.enter_context(a_sentinel(tmp_path, new.port, port=later, configuration=5))
        await until_on(on_new, queue)
        async with opened(url) as another:
            await another.put([an_event()])
            assert (await another.status()).size == await on_new.llen("log_queue")


def test_an_address_that_cannot_be_used_stops_the_start_with_one_line(
    environment: dict[str, str],
) -> None:
    url = "redis+sentinel://:a-secret@one,two:port/mymaster"
    code, output = run_to_end("consumer", {**environment, "REDIS_URL": url})
    assert (code, output.count("\n")) == (2, 1)
    assert "REDIS_URL" in output
    assert "a-secret" not in output
