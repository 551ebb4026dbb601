"""Everything accepted before the watermark is stored; what waits is counted."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from events_made import an_event
from redis.asyncio import Redis
from servers import unused_port

from logging_service import wire
from logging_service.failover_queue import FailoverQueue, open_failover_queue
from logging_service.fallback_spools import FallbackSpools
from logging_service.hidden_queue import HiddenQueue
from logging_service.ports import Delivery, QueueStatus
from logging_service.redis_queue import RedisQueue, open_redis_queue
from logging_service.watermark import Watermark, read_watermark

SECOND = timedelta(seconds=1)


def received(ago: timedelta) -> tuple[bytes, datetime]:
    """Return an event that was received some time ago, and when."""
    moment = datetime.now(UTC) - ago
    return an_event(received_at=wire.to_micros(moment)), moment


@pytest.fixture
async def queue(redis_url: str) -> AsyncIterator[RedisQueue]:
    async with open_redis_queue(
        redis_url, name="log_queue", ttl_seconds=60, timeout_ms=2000
    ) as opened:
        yield opened


async def test_with_an_empty_queue_it_is_just_before_now(queue: RedisQueue) -> None:
    before = datetime.now(UTC)
    watermark = await read_watermark(queue)
    assert watermark.complete_to is not None
    assert before - SECOND <= watermark.complete_to <= datetime.now(UTC) - SECOND
    assert watermark.queued == 0


async def test_it_lies_before_everything_that_waits_or_is_leased(queue: RedisQueue) -> None:
    moments = []
    for seconds in (50, 40, 30, 20):
        event, moment = received(timedelta(seconds=seconds))
        await queue.put([event])
        moments.append(moment)
    first = await queue.take(1, 0)
    second = await queue.take(1, 0)
    assert first
    assert second
    # The lease of the older event ends later now.
    await queue.give_back(first, 50)
    assert await read_watermark(queue) == Watermark(moments[0] - SECOND, 4)
    await queue.done(first)
    assert await read_watermark(queue) == Watermark(moments[1] - SECOND, 3)
    await queue.done(second)
    assert await read_watermark(queue) == Watermark(moments[2] - SECOND, 2)


async def test_behind_events_of_a_spool_it_is_not_known_until_they_are_gone(
    queue: RedisQueue,
) -> None:
    newer, _ = received(timedelta(seconds=30))
    older, _ = received(timedelta(hours=1))
    await queue.put([newer])
    await queue.put_once(Delivery(uuid4(), [older], 1))
    assert await read_watermark(queue) == Watermark(None, 2)
    for _ in range(2):
        delivery = await queue.take(1, 0)
        assert delivery
        await queue.done(delivery)
    assert (await read_watermark(queue)).complete_to is not None
    # As if it had come some seconds later.
    event, moment = received(timedelta(seconds=-10))
    await queue.put([event])
    assert await read_watermark(queue) == Watermark(moment - SECOND, 1)


@pytest.mark.parametrize("element", [b"junk", b"\x01" + b"\x7f" * 100, b"\x01" + b"\x80" * 100])
async def test_what_is_no_event_leaves_it_unknown(
    queue: RedisQueue, redis: Redis, element: bytes
) -> None:
    await redis.rpush("log_queue", element)
    assert await read_watermark(queue) == Watermark(None, 1)


async def test_while_events_are_spooled_on_this_host_it_is_not_known(
    queue: RedisQueue, tmp_path: Path
) -> None:
    file = tmp_path / "spool.sqlite"
    async with (
        open_redis_queue(
            f"redis://127.0.0.1:{unused_port()}", name="log_queue", ttl_seconds=60, timeout_ms=50
        ) as away,
        open_failover_queue(away, FallbackSpools(file, 1 << 30), drain_per_second=1) as producer,
    ):
        await producer.put([an_event(), an_event()])
        seen = FailoverQueue(queue, FallbackSpools(file, 1 << 30))
        await queue.put([an_event()])
        assert await read_watermark(seen) == Watermark(None, 3)


async def test_without_the_queue_nothing_is_known() -> None:
    assert await read_watermark(HiddenQueue()) == Watermark(None, None)


class Counted(HiddenQueue):
    async def status(self) -> QueueStatus:
        since = datetime(2026, 11, 23, 10, 0, 2, tzinfo=UTC)
        return QueueStatus("redis", 5, 3, 1.0, 0.0, spooled=2, held_since=since)


async def test_waiting_leased_and_spooled_events_are_counted() -> None:
    expected = datetime(2026, 11, 23, 10, 0, 1, tzinfo=UTC)
    assert await read_watermark(Counted()) == Watermark(expected, 10)
