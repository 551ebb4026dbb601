"""Redis goes away and comes back; what was acknowledged meanwhile is all there, in order."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import pytest
from events_made import an_event
from redis.asyncio import Redis
from relay import Relay, before

from logging_service import metrics
from logging_service.errors import BackendUnavailable, QueueFull
from logging_service.failover_queue import FailoverQueue, open_failover_queue
from logging_service.fallback_spools import FallbackSpools
from logging_service.redis_queue import RedisQueue, open_redis_queue
from logging_service.spool_queue import open_spool_queue

MAX_BYTES = 64 * 1024 * 1024


class Pair(NamedTuple):
    """A queue whose Redis is behind a relay, and what else a test looks at."""

    queue: FailoverQueue
    redis: RedisQueue
    relay: Relay
    file: Path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "spool" / "queue.sqlite"


@pytest.fixture
async def pair(redis_url: str, file: Path) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        relay, url = await stack.enter_async_context(before(redis_url))
        redis = await stack.enter_async_context(
            open_redis_queue(url, name="log_queue", ttl_seconds=60, timeout_ms=250)
        )
        queue = await stack.enter_async_context(
            open_failover_queue(redis, FallbackSpools(file, MAX_BYTES), drain_per_second=1_000_000)
        )
        yield Pair(queue, redis, relay, file)


async def until(condition: Callable[[], bool], seconds: float = 15) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


async def all_of(redis: Redis, events: int) -> list[bytes]:
    """Return what waits in Redis, once it is `events` at the least."""
    async with asyncio.timeout(15):
        while await redis.llen("log_queue") < events:
            await asyncio.sleep(0.02)
    found: Any = await redis.lrange("log_queue", 0, -1)
    return list(found)


async def count_until_refused(queue: FailoverQueue, events: list[bytes]) -> int:
    for taken in range(50):
        try:
            await queue.put(events)
        except BackendUnavailable:
            return taken
    raise AssertionError("the spool has no bound")


def numbered(first: int, last: int) -> list[bytes]:
    return [an_event(payload={"n": n}) for n in range(first, last)]


async def test_with_redis_there_events_are_queued_and_the_spool_stays_empty(
    pair: Pair, redis: Redis
) -> None:
    events = numbered(0, 3)
    assert await pair.queue.put(events) == "queued"
    assert await redis.lrange("log_queue", 0, -1) == events
    status = await pair.queue.status()
    assert (status.backend, status.size, status.spooled) == ("redis", 3, 0)


async def test_without_redis_events_are_spooled_and_come_in_order_when_it_is_back(
    pair: Pair, redis: Redis
) -> None:
    await pair.relay.cut()
    events = numbered(0, 40)
    for start in range(0, 40, 4):
        assert await pair.queue.put(events[start : start + 4]) == "spooled"
    assert (await pair.queue.status()).spooled == 40
    await pair.relay.mend()
    assert await all_of(redis, 40) == events
    assert await pair.queue.put(numbered(40, 41)) == "queued"
    assert (await pair.queue.status()).spooled == 0


@pytest.mark.parametrize("fault", ["is_half_open", "loses_answers"])
async def test_a_redis_that_does_not_answer_is_as_good_as_away(
    pair: Pair, redis: Redis, fault: str
) -> None:
    before_it, meanwhile = numbered(0, 2)
    assert await pair.queue.put([before_it]) == "queued"
    setattr(pair.relay, fault, True)
    assert await pair.queue.put([meanwhile]) == "spooled"
    setattr(pair.relay, fault, False)
    pair.relay.reset()
    await until(lambda: metrics.SPOOL_ACTIVE.greatest() == 0)
    # An answer that was lost leaves the event in both places: the store keeps it once.
    copies = 2 if fault == "loses_answers" else 1
    assert await all_of(redis, 2) == [before_it, *[meanwhile] * copies]
    assert await pair.queue.put(numbered(2, 3)) == "queued"


async def test_a_dead_redis_is_not_asked_for_each_request(pair: Pair) -> None:
    pair.relay.is_half_open = True
    assert await pair.queue.put(numbered(0, 1)) == "spooled"
    asked = pair.relay.connections
    for n in range(200):
        assert await pair.queue.put(numbered(n, n + 1)) == "spooled"
    # The drain asks now and then; two hundred requests do not.
    assert pair.relay.connections - asked < 50


async def test_errors_of_a_live_redis_lead_to_the_spool_too(pair: Pair, redis: Redis) -> None:
    await redis.set("log_queue", "not a list")
    events = numbered(0, 2)
    assert await pair.queue.put(events) == "spooled"
    await redis.delete("log_queue")
    assert await all_of(redis, 2) == events


async def test_a_full_queue_is_refused_and_not_spooled(
    redis_url: str, redis: Redis, file: Path
) -> None:
    async with (
        open_redis_queue(
            redis_url, name="log_queue", ttl_seconds=60, timeout_ms=250, max_events=10
        ) as small,
        open_failover_queue(small, FallbackSpools(file, MAX_BYTES), drain_per_second=1000) as queue,
    ):
        await queue.put(numbered(0, 12))
        with pytest.raises(QueueFull):
            await queue.put(numbered(12, 13))
        assert (await queue.status()).spooled == 0
    assert await redis.llen("log_queue") == 12


async def test_without_redis_and_with_a_full_spool_events_are_refused(
    redis_url: str, file: Path
) -> None:
    async with (
        before(redis_url) as (relay, url),
        open_redis_queue(url, name="log_queue", ttl_seconds=60, timeout_ms=250) as redis,
        open_failover_queue(redis, FallbackSpools(file, 1 << 20), drain_per_second=1000) as queue,
    ):
        await relay.cut()
        large = [an_event(payload={"text": "x" * 100_000})]
        assert await queue.put(large) == "spooled"
        taken = 1 + await count_until_refused(queue, large)
        assert (await queue.status()).spooled == taken


async def test_what_a_dead_producer_left_is_adopted(pair: Pair, redis: Redis, file: Path) -> None:
    events = numbered(0, 5)
    left_behind = file.with_name("queue-fallback-7.sqlite")
    async with open_spool_queue(left_behind, max_bytes=MAX_BYTES, exclusive=True) as orphan:
        await orphan.put(events)
    assert (await pair.queue.status()).spooled == 5
    adopting = asyncio.create_task(pair.queue.adopt())
    assert await all_of(redis, 5) == events
    adopting.cancel()
    await asyncio.wait({adopting})


async def test_a_damaged_file_is_named_whoever_it_belonged_to(pair: Pair, file: Path) -> None:
    for name in ("queue-fallback-3.sqlite.damaged-1", "queue.sqlite.damaged-2-wal"):
        file.with_name(name).write_bytes(b"what is left")
    said = " ".join(await pair.queue.warnings())
    assert "queue-fallback-3.sqlite.damaged-1 was set aside" in said
    assert "queue.sqlite.damaged-2 was set aside" in said


async def test_a_producer_that_starts_again_goes_on_with_its_spool(
    redis_url: str, redis: Redis, file: Path
) -> None:
    async with (
        before(redis_url) as (relay, url),
        open_redis_queue(url, name="log_queue", ttl_seconds=60, timeout_ms=250) as queue,
    ):
        await relay.cut()
        events = numbered(0, 5)
        spools = FallbackSpools(file, MAX_BYTES)
        async with open_failover_queue(queue, spools, drain_per_second=1000) as first:
            await first.put(events)
        await relay.mend()
        spools = FallbackSpools(file, MAX_BYTES)
        async with open_failover_queue(queue, spools, drain_per_second=1000):
            assert await all_of(redis, 5) == events


async def test_a_drain_that_was_cut_off_before_its_end_pushes_once(
    pair: Pair, redis: Redis, file: Path
) -> None:
    other = file.with_name("other.sqlite")
    events = numbered(0, 5)
    async with open_spool_queue(other, max_bytes=MAX_BYTES, exclusive=True) as spool:
        await spool.put(events)
        delivery = await spool.take(100, 0)
        assert delivery is not None
        await pair.redis.put_once(delivery)
    # The process ended before `done`: its lease is free again.
    async with open_spool_queue(other, max_bytes=MAX_BYTES, exclusive=True) as spool:
        assert await pair.queue.drain_next(spool)
        assert not await pair.queue.drain_next(spool)
    assert await redis.lrange("log_queue", 0, -1) == events
    assert (await pair.queue.tallies())[-1].accepted == 5


async def test_another_programs_file_at_its_place_is_left_alone(file: Path, free_port: int) -> None:
    first = file.with_name("queue-fallback-0.sqlite")
    first.parent.mkdir()
    with closing(apsw.Connection(str(first))) as foreign:
        foreign.execute("CREATE TABLE theirs (x)")
    away = f"redis://127.0.0.1:{free_port}/0"
    async with (
        open_redis_queue(away, name="log_queue", ttl_seconds=60, timeout_ms=250) as redis,
        open_failover_queue(redis, FallbackSpools(file, MAX_BYTES), drain_per_second=1000) as queue,
    ):
        assert await queue.put(numbered(0, 1)) == "spooled"
    with closing(apsw.Connection(str(first))) as foreign:
        assert list(foreign.execute("SELECT name FROM sqlite_schema")) == [("theirs",)]


async def test_two_producers_of_a_host_use_two_files(pair: Pair, redis: Redis, file: Path) -> None:
    await pair.relay.cut()
    spools = FallbackSpools(file, MAX_BYTES)
    async with open_failover_queue(pair.redis, spools, drain_per_second=1000) as second:
        assert await pair.queue.put(numbered(0, 2)) == "spooled"
        assert await second.put(numbered(2, 5)) == "spooled"
        for queue in (pair.queue, second):
            assert (await queue.status()).spooled == 5
        await pair.relay.mend()
        assert len(await all_of(redis, 5)) == 5


async def test_a_redis_that_hangs_keeps_no_question_waiting(pair: Pair) -> None:
    pair.relay.is_half_open = True
    # As long as /health waits for an answer.
    async with asyncio.timeout(1.5):
        assert "events are spooled" in " ".join(await pair.queue.warnings())
    async with asyncio.timeout(1.5):
        assert (await pair.queue.status()).backend == "spool"


async def test_it_says_that_events_are_spooled(pair: Pair) -> None:
    await pair.relay.cut()
    await pair.queue.put(numbered(0, 1))
    assert "events are spooled" in " ".join(await pair.queue.warnings())
    assert metrics.SPOOL_ACTIVE.greatest() == 1
    status = await pair.queue.status()
    assert (status.backend, status.size, status.spooled) == ("spool", 0, 1)
