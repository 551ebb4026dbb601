"""What every EventQueue promises, on every adapter."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from events_made import an_event
from redis.asyncio import Redis
from servers import unused_port

from logging_service import wire
from logging_service.data_folder import create
from logging_service.embedded import Valkey
from logging_service.ports import Delivery, EventQueue, Tally
from logging_service.redis_queue import open_redis_queue
from logging_service.spool_queue import open_spool_queue

LEASE_SECONDS = 0.2


def opened_at(url: str) -> AbstractAsyncContextManager[EventQueue]:
    return open_redis_queue(
        url, name="log_queue", ttl_seconds=60, timeout_ms=2000, lease_seconds=LEASE_SECONDS
    )


@pytest.fixture
async def redis_queue(redis_url: str, redis: Redis) -> AsyncIterator[EventQueue]:
    assert await redis.dbsize() == 0
    async with opened_at(redis_url) as opened:
        yield opened


@pytest.fixture(scope="module")
async def bundled_server() -> AsyncIterator[Valkey]:
    with TemporaryDirectory(prefix="logging-service-tests-") as folder:
        create(Path(folder))
        server = Valkey(Path(folder), port=unused_port())
        try:
            await server.start()
            yield server
        finally:
            await server.stop()


@pytest.fixture
async def bundled_queue(bundled_server: Valkey) -> AsyncIterator[EventQueue]:
    async with Redis.from_url(bundled_server.url) as client:
        await client.flushall()
    async with opened_at(bundled_server.url) as opened:
        yield opened


@pytest.fixture
async def spool_queue(tmp_path: Path) -> AsyncIterator[EventQueue]:
    async with open_spool_queue(
        tmp_path / "queue.sqlite", max_bytes=1 << 30, exclusive=False, lease_seconds=LEASE_SECONDS
    ) as opened:
        yield opened


@pytest.fixture
async def memory_queue() -> AsyncIterator[EventQueue]:
    async with open_spool_queue(
        None, max_bytes=1 << 30, exclusive=True, lease_seconds=LEASE_SECONDS
    ) as opened:
        yield opened


ACKS = {"redis_queue": "queued", "spool_queue": "spooled", "memory_queue": "in_memory"}
if shutil.which("redis-server"):
    # Then that is the suite's server, and the bundled one has to keep the same promises.
    ACKS["bundled_queue"] = "queued"


@pytest.fixture(params=ACKS)
def queue(request: pytest.FixtureRequest) -> EventQueue:
    adapter: EventQueue = request.getfixturevalue(request.param)
    return adapter


async def take(queue: EventQueue, limit: int = 100, wait_seconds: float = 0) -> Delivery:
    delivery = await queue.take(limit, wait_seconds)
    assert delivery is not None
    return delivery


class TestEveryQueue:
    async def test_an_acknowledgement_says_where_the_events_are(
        self, queue: EventQueue, request: pytest.FixtureRequest
    ) -> None:
        adapter = request.node.callspec.params["queue"]
        assert await queue.put([an_event()]) == ACKS[adapter]

    async def test_events_come_in_the_order_in_which_they_were_put(self, queue: EventQueue) -> None:
        events = [an_event(payload={"n": n}) for n in range(5)]
        await queue.put(events[:3])
        await queue.put(events[3:])
        assert (await take(queue)).events == events

    async def test_an_empty_queue_gives_nothing(self, queue: EventQueue) -> None:
        assert await queue.take(10, 0) is None

    async def test_a_delivery_has_at_most_the_events_asked_for(self, queue: EventQueue) -> None:
        await queue.put([an_event() for _ in range(5)])
        assert len((await take(queue, limit=2)).events) == 2
        assert len((await take(queue, limit=9)).events) == 3

    async def test_a_delivery_of_large_events_stays_below_its_bytes(
        self, queue: EventQueue
    ) -> None:
        large = [an_event(payload={"text": "x" * 250_000}) for _ in range(100)]
        await queue.put(large)
        taken = 0
        while delivery := await queue.take(1000, 0):
            assert sum(map(len, delivery.events)) < 17 * 1024 * 1024
            taken += len(delivery.events)
            await queue.done(delivery)
        assert taken == len(large)

    async def test_taking_waits_for_the_first_event(self, queue: EventQueue) -> None:
        taking = asyncio.create_task(queue.take(10, 5))
        await asyncio.sleep(0.05)
        event = an_event()
        await queue.put([event])
        delivery = await taking
        assert delivery is not None
        assert delivery.events == [event]

    async def test_what_is_leased_is_nobody_elses(self, queue: EventQueue) -> None:
        await queue.put([an_event()])
        await take(queue)
        assert await queue.take(10, 0) is None

    async def test_an_unfinished_delivery_comes_back(self, queue: EventQueue) -> None:
        await queue.put([an_event()])
        first = await take(queue, limit=1)
        again = await take(queue, limit=1, wait_seconds=2)
        assert (again.events, again.attempts) == (first.events, 2)
        assert again.lease_id == first.lease_id

    async def test_each_redelivery_counts_one_attempt_more(self, queue: EventQueue) -> None:
        await queue.put([an_event()])
        attempts = [(await take(queue, wait_seconds=2)).attempts for _ in range(3)]
        assert attempts == [1, 2, 3]

    async def test_what_came_back_is_taken_before_what_waits(self, queue: EventQueue) -> None:
        old, new = an_event(), an_event()
        await queue.put([old])
        await take(queue)
        await queue.put([new])
        await asyncio.sleep(LEASE_SECONDS * 1.5)
        assert (await take(queue)).events == [old]

    async def test_a_finished_delivery_never_comes_back(self, queue: EventQueue) -> None:
        await queue.put([an_event()])
        await queue.done(await take(queue))
        await asyncio.sleep(LEASE_SECONDS * 1.5)
        assert await queue.take(10, 0) is None

    async def test_finishing_twice_is_harmless(self, queue: EventQueue) -> None:
        await queue.put([an_event()])
        delivery = await take(queue)
        await queue.done(delivery)
        await queue.done(delivery)
        assert (await queue.status()).in_flight == 0

    async def test_an_extended_lease_outlives_its_first_deadline(self, queue: EventQueue) -> None:
        await queue.put([an_event()])
        delivery = await take(queue)
        for _ in range(4):
            await asyncio.sleep(LEASE_SECONDS / 2)
            await queue.extend(delivery)
            assert await queue.take(10, 0) is None

    async def test_extending_a_finished_lease_does_not_bring_it_back(
        self, queue: EventQueue
    ) -> None:
        await queue.put([an_event()])
        delivery = await take(queue)
        await queue.done(delivery)
        await queue.extend(delivery)
        await asyncio.sleep(LEASE_SECONDS * 1.5)
        assert await queue.take(10, 0) is None

    async def test_what_is_given_back_comes_at_once_or_after_the_delay(
        self, queue: EventQueue
    ) -> None:
        await queue.put([an_event()])
        delivery = await take(queue)
        await queue.give_back(delivery, 0)
        again = await take(queue)
        assert (again.events, again.attempts) == (delivery.events, 2)
        await queue.give_back(again, 30)
        await asyncio.sleep(LEASE_SECONDS * 1.5)
        assert await queue.take(10, 0) is None

    async def test_a_large_put_is_whole_and_in_order(self, queue: EventQueue) -> None:
        events = [an_event(payload={"n": n}) for n in range(2500)]
        await queue.put(events)
        taken = []
        while delivery := await queue.take(1000, 0):
            taken += delivery.events
            await queue.done(delivery)
        assert taken == events

    async def test_concurrent_takers_share_the_events_without_overlap(
        self, queue: EventQueue
    ) -> None:
        events = [an_event(payload={"n": n}) for n in range(300)]
        await queue.put(events)

        async def take_all() -> list[bytes]:
            mine: list[bytes] = []
            while delivery := await queue.take(7, 0):
                mine += delivery.events
                await queue.done(delivery)
            return mine

        shares = await asyncio.gather(*(take_all() for _ in range(4)))
        assert sorted(event for share in shares for event in share) == sorted(events)

    async def test_status_counts_what_waits_and_what_is_leased(self, queue: EventQueue) -> None:
        empty = await queue.status()
        assert (empty.size, empty.in_flight, empty.oldest_age_seconds) == (0, 0, None)
        await queue.put([an_event() for _ in range(5)])
        await take(queue, limit=2)
        status = await queue.status()
        assert (status.size, status.in_flight) == (3, 2)

    async def test_status_knows_the_age_of_the_oldest_event_also_while_it_is_leased(
        self, queue: EventQueue
    ) -> None:
        an_hour_ago = wire.now_micros() - 3_600_000_000
        await queue.put([an_event(received_at=an_hour_ago), an_event()])
        while_waiting = (await queue.status()).oldest_age_seconds
        await take(queue, limit=1)
        while_leased = (await queue.status()).oldest_age_seconds
        for age in (while_waiting, while_leased):
            assert age is not None
            assert 3598 < age < 3660

    async def test_status_knows_since_when_events_are_held(self, queue: EventQueue) -> None:
        assert (await queue.status()).held_since is None
        ago = [wire.now_micros() - seconds * 1_000_000 for seconds in (40, 30, 20)]
        await queue.put([an_event(received_at=received) for received in ago])
        first, _ = await take(queue, limit=1), await take(queue, limit=1)
        assert (await queue.status()).held_since == wire.from_micros(ago[0])
        await queue.done(first)
        assert (await queue.status()).held_since == wire.from_micros(ago[1])

    async def test_accepted_events_are_counted_under_the_epoch_of_their_deliveries(
        self, queue: EventQueue
    ) -> None:
        await queue.put([an_event() for _ in range(3)])
        await queue.put([an_event()])
        delivery = await take(queue, limit=2)
        await queue.done(delivery)
        assert await queue.tallies() == [Tally(delivery.epoch, 4)]
        assert (await take(queue)).epoch == delivery.epoch
