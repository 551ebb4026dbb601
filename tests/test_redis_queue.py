"""What the queue in Redis keeps there, counts and refuses."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

import pytest
from events_made import a_delivery, an_event
from redis.asyncio import Redis

from logging_service.errors import BackendUnavailable, QueueFull
from logging_service.ports import NO_EPOCH, Delivery, EventQueue, Move, Tally
from logging_service.redis_queue import RedisQueue, open_redis_queue

LEDGER = "{log_queue}:ledger"
SPOOL, OTHER_SPOOL = uuid.UUID(int=1), uuid.UUID(int=2)


def opened(url: str, **changes: Any) -> AbstractAsyncContextManager[RedisQueue]:
    rules: dict[str, Any] = {"ttl_seconds": 60, "timeout_ms": 2000, "lease_seconds": 0.2}
    return open_redis_queue(url, name="log_queue", **{**rules, **changes})


@pytest.fixture
async def queue(redis_url: str) -> AsyncIterator[RedisQueue]:
    async with opened(redis_url) as queue:
        yield queue


async def take(queue: EventQueue, limit: int = 100, wait_seconds: float = 0) -> Delivery:
    delivery = await queue.take(limit, wait_seconds)
    assert delivery is not None
    return delivery


class TestRedisQueue:
    async def test_each_event_is_one_element_of_the_list(
        self, queue: EventQueue, redis: Redis
    ) -> None:
        await queue.put([an_event() for _ in range(3)])
        assert await redis.llen("log_queue") == 3

    async def test_the_list_lives_twice_as_long_as_an_event_may_wait(
        self, queue: EventQueue, redis: Redis
    ) -> None:
        await queue.put([an_event()])
        assert 100 < await redis.ttl("log_queue") <= 120

    async def test_a_lease_does_not_expire_with_the_list(
        self, queue: EventQueue, redis: Redis
    ) -> None:
        await queue.put([an_event()])
        delivery = await take(queue)
        assert await redis.ttl(f"{{log_queue}}:lease:{delivery.lease_id}") == -1

    async def test_a_lease_that_holds_nothing_is_passed_over(
        self, queue: EventQueue, redis: Redis
    ) -> None:
        await redis.zadd("{log_queue}:leases", {str(uuid.uuid4()): 1})
        event = an_event()
        await queue.put([event])
        assert (await take(queue)).events == [event]
        assert await redis.zcard("{log_queue}:leases") == 1

    async def test_a_flushed_queue_works_on(self, queue: EventQueue, redis: Redis) -> None:
        await queue.put([an_event()])
        lost = await take(queue)
        await redis.flushdb()
        await queue.extend(lost)
        await queue.done(lost)
        await redis.script_flush()
        event = an_event()
        await queue.put([event])
        assert (await take(queue)).events == [event]

    async def test_finished_events_make_the_rate(self, queue: EventQueue, redis: Redis) -> None:
        await queue.put([an_event() for _ in range(60)])
        await queue.done(await take(queue))
        slot, events = next(iter((await redis.hgetall("{log_queue}:done")).items()))
        assert events == b"60"
        await redis.hset("{log_queue}:done", str(int(slot) - 1), "30")
        assert (await queue.status()).stored_per_second >= 1.0

    async def test_old_counts_of_finished_events_are_forgotten(
        self, queue: EventQueue, redis: Redis
    ) -> None:
        await redis.hset("{log_queue}:done", mapping={str(n): "1" for n in range(50)})
        await queue.put([an_event()])
        await queue.done(await take(queue))
        assert await redis.hlen("{log_queue}:done") == 1

    async def test_a_server_that_is_away_is_said_in_time(self, free_port: int) -> None:
        async with opened(f"redis://127.0.0.1:{free_port}/0", timeout_ms=200) as queue:
            with pytest.raises(BackendUnavailable, match="redis"):
                await queue.put([an_event()])
            with pytest.raises(BackendUnavailable):
                await queue.status()

    async def test_putting_nothing_is_harmless(self, queue: EventQueue, redis: Redis) -> None:
        assert await queue.put([]) == "queued"
        assert await redis.dbsize() == 0


class TestEpochs:
    async def test_accepted_events_are_counted_with_the_events(self, queue: EventQueue) -> None:
        await queue.put([an_event() for _ in range(3)])
        await queue.put([an_event() for _ in range(2001)])
        assert [tally.accepted for tally in await queue.tallies()] == [2004]

    async def test_a_delivery_names_the_epoch_in_which_it_was_accepted(
        self, queue: EventQueue
    ) -> None:
        await queue.put([an_event()])
        (present,) = await queue.tallies()
        first = await take(queue)
        again = await take(queue, wait_seconds=2)
        assert present.epoch == first.epoch == again.epoch

    async def test_processes_share_the_epoch_and_its_count(
        self, queue: EventQueue, redis_url: str
    ) -> None:
        async with opened(redis_url) as other:
            await queue.put([an_event()])
            await other.put([an_event()])
            assert await queue.tallies() == await other.tallies()
            assert (await queue.tallies())[-1].accepted == 2

    async def test_an_emptied_queue_begins_an_epoch_and_the_last_keeps_its_count(
        self, queue: EventQueue, redis: Redis
    ) -> None:
        await queue.put([an_event() for _ in range(5)])
        before = (await queue.tallies())[-1]
        await redis.flushdb()
        assert await queue.tallies() == [before, Tally(NO_EPOCH, 0)]
        await queue.put([an_event()])
        ended, present = await queue.tallies()
        assert ended == before
        assert present.accepted == 1
        assert present.epoch != ended.epoch
        assert (await take(queue)).epoch == present.epoch

    async def test_elements_that_nobody_counted_are_delivered_in_an_epoch(
        self, queue: EventQueue, redis: Redis
    ) -> None:
        await redis.rpush("log_queue", an_event())
        delivery = await take(queue)
        (present,) = await queue.tallies()
        assert (present.epoch, present.accepted) == (delivery.epoch, 0)

    async def test_the_last_epochs_are_remembered_and_no_more(
        self, queue: EventQueue, redis: Redis
    ) -> None:
        seen = []
        for count in range(1, 20):
            await redis.flushdb()
            await queue.put([an_event()] * count)
            seen.append((await queue.tallies())[-1])
        assert await queue.tallies() == seen[-16:]

    async def test_a_server_that_forgot_its_last_writes_is_said_to_count_less_than_it_acknowledged(
        self, queue: EventQueue, redis: Redis
    ) -> None:
        await queue.put([an_event() for _ in range(10)])
        # As a restart does from a log that lacks its end, or a replica that lagged behind.
        await redis.hset(LEDGER, "accepted", "4")
        await redis.ltrim("log_queue", 0, 3)
        remembered, present = await queue.tallies()
        assert (remembered.accepted, present.accepted) == (10, 4)
        assert remembered.epoch == present.epoch

    async def test_events_that_are_put_while_tallies_are_read_are_not_taken_for_forgotten_ones(
        self, queue: EventQueue
    ) -> None:
        putting = asyncio.gather(*(queue.put([an_event()]) for _ in range(200)))
        while not putting.done():
            assert len(await queue.tallies()) == 1
        await putting

    async def test_a_count_that_somebody_emptied_is_not_restored(
        self, queue: EventQueue, redis: Redis
    ) -> None:
        await queue.put([an_event() for _ in range(10)])
        await redis.flushdb()
        await redis.client_kill_filter(_type="normal", skipme=True)
        await _until_it_works(queue)
        assert await redis.hget(LEDGER, "accepted") == b"1"

    async def test_an_epoch_that_somebody_overwrote_stops_nothing(
        self, queue: EventQueue, redis: Redis
    ) -> None:
        await redis.hset(LEDGER, "epoch", "not an id")
        assert await queue.put([an_event()]) == "queued"
        assert len((await take(queue)).events) == 1

    async def test_what_was_not_pushed_is_not_counted(
        self, queue: RedisQueue, redis: Redis
    ) -> None:
        await redis.set("log_queue", "not a list")
        with pytest.raises(BackendUnavailable, match="WRONGTYPE"):
            await queue.put([an_event() for _ in range(3)])
        with pytest.raises(BackendUnavailable, match="WRONGTYPE"):
            await queue.put_once(a_delivery())
        assert await redis.hget(LEDGER, "accepted") == b"0"
        with pytest.raises(BackendUnavailable, match="no list"):
            await queue.warnings()


async def _until_it_works(queue: EventQueue) -> None:
    """Put one event, over connections that the server may just have closed."""
    while True:
        try:
            await queue.put([an_event()])
        except BackendUnavailable:
            continue
        return


class TestPutOnce:
    async def test_a_delivery_is_pushed_and_counted_once(self, queue: RedisQueue) -> None:
        delivery = a_delivery(an_event(), an_event())
        for _ in range(3):
            assert await queue.put_once(delivery) == "queued"
        assert (await take(queue)).events == delivery.events
        assert [tally.accepted for tally in await queue.tallies()] == [2]

    async def test_two_that_put_the_same_delivery_push_it_once(
        self, queue: RedisQueue, redis_url: str
    ) -> None:
        delivery = a_delivery()
        async with opened(redis_url) as other:
            await asyncio.gather(*(one.put_once(delivery) for one in (queue, other) * 5))
        assert (await take(queue)).events == delivery.events

    async def test_a_delivery_may_have_more_events_than_lua_can_unpack(
        self, queue: RedisQueue
    ) -> None:
        delivery = a_delivery(*(an_event(payload={"n": n}) for n in range(20_500)))
        await queue.put_once(delivery)
        assert (await take(queue, limit=30_000)).events == delivery.events

    async def test_events_put_once_live_as_long_as_others(
        self, queue: RedisQueue, redis: Redis
    ) -> None:
        await queue.put_once(a_delivery())
        assert 100 < await redis.ttl("log_queue") <= 120
        assert 100 < await redis.ttl("{log_queue}:drained") <= 120

    async def test_leases_are_remembered_by_their_number_and_age(
        self, queue: RedisQueue, redis: Redis
    ) -> None:
        now, _ = await redis.time()
        many = {f"lease {n}": now - n / 1000 for n in range(20_000)}
        await redis.zadd("{log_queue}:drained", {**many, "old": now - 121})
        delivery = a_delivery()
        await queue.put_once(delivery)
        assert await redis.zcard("{log_queue}:drained") == 20_000
        assert await redis.zscore("{log_queue}:drained", "old") is None
        assert await redis.zscore("{log_queue}:drained", "lease 19999") is None
        await queue.put_once(delivery)
        assert (await queue.tallies())[-1].accepted == 1

    async def test_a_lease_that_is_put_again_is_remembered_anew(
        self, queue: RedisQueue, redis: Redis
    ) -> None:
        now, _ = await redis.time()
        delivery = a_delivery()
        await redis.zadd("{log_queue}:drained", {str(delivery.lease_id): now - 100})
        await queue.put_once(delivery)
        used = await redis.zscore("{log_queue}:drained", str(delivery.lease_id))
        assert used is not None
        assert used >= now

    async def test_what_an_emptied_queue_forgot_is_pushed_again(
        self, queue: RedisQueue, redis: Redis
    ) -> None:
        delivery = a_delivery()
        await queue.put_once(delivery)
        await redis.flushdb()
        await queue.put_once(delivery)
        assert (await take(queue)).events == delivery.events


class TestMoves:
    async def test_what_came_from_where_is_counted_once_with_its_events(
        self, queue: RedisQueue, redis_url: str
    ) -> None:
        await queue.put([an_event()])
        deliveries = [from_a_spool(SPOOL, 3), from_a_spool(SPOOL, 2), from_a_spool(OTHER_SPOOL, 4)]
        for delivery in (*deliveries, *deliveries):
            await queue.put_once(delivery)
        (present,) = await queue.tallies()
        assert (present.accepted, present.moves) == (10, (Move(SPOOL, 5), Move(OTHER_SPOOL, 4)))
        async with opened(redis_url) as other:
            assert await other.tallies() == [present]

    async def test_an_epoch_that_is_over_keeps_what_came_into_it(
        self, queue: RedisQueue, redis: Redis
    ) -> None:
        await queue.put_once(from_a_spool(SPOOL, 3))
        await redis.flushdb()
        await queue.put_once(from_a_spool(SPOOL, 2))
        ended, present = await queue.tallies()
        assert (ended.moves, present.moves) == ((Move(SPOOL, 3),), (Move(SPOOL, 2),))

    async def test_what_a_server_forgot_of_it_is_told_as_it_was_acknowledged(
        self, queue: RedisQueue, redis: Redis
    ) -> None:
        await queue.put_once(from_a_spool(SPOOL, 3))
        await redis.hset(LEDGER, str(SPOOL), "1")
        remembered, present = await queue.tallies()
        assert remembered.epoch == present.epoch
        assert (remembered.moves, present.moves) == ((Move(SPOOL, 3),), (Move(SPOOL, 1),))

    async def test_it_counts_for_the_thousand_origins_of_which_events_came_last(
        self, queue: RedisQueue, redis: Redis
    ) -> None:
        now, _ = await redis.time()
        many = {str(uuid.UUID(int=n)): now - n for n in range(1000, 2000)}
        await redis.zadd("{log_queue}:origins", many)
        await redis.hset(LEDGER, mapping=dict.fromkeys(many, 1))
        await queue.put_once(from_a_spool(SPOOL, 3))
        (present,) = await queue.tallies()
        assert len(present.moves) == 1000
        counted = dict(present.moves)
        assert counted[SPOOL] == 3
        assert uuid.UUID(int=1999) not in counted
        assert await redis.zcard("{log_queue}:origins") == 1000

    @pytest.mark.parametrize("origin", [NO_EPOCH, SPOOL])
    async def test_what_cannot_be_an_epoch_is_not_told(
        self, queue: RedisQueue, redis: Redis, origin: uuid.UUID
    ) -> None:
        await redis.hset(LEDGER, mapping={"somebody": "was here", "": "7"})
        await queue.put_once(from_a_spool(origin, 3))
        for _ in range(2):
            (present,) = await queue.tallies()
            assert present.moves == ((Move(origin, 3),) if origin != NO_EPOCH else ())

    @pytest.mark.parametrize("key", [LEDGER, "{log_queue}:origins"])
    async def test_a_count_that_somebody_spoilt_pushes_and_counts_nothing(
        self, queue: RedisQueue, redis: Redis, key: str
    ) -> None:
        if key == LEDGER:
            await redis.hset(LEDGER, str(SPOOL), "no number")
        else:
            await redis.set(key, "no set")
        with pytest.raises(BackendUnavailable):
            await queue.put_once(from_a_spool(SPOOL, 3))
        assert await redis.llen("log_queue") == 0
        assert await redis.hget(LEDGER, "accepted") is None


def from_a_spool(epoch: uuid.UUID, events: int) -> Delivery:
    return replace(a_delivery(*(an_event() for _ in range(events))), epoch=epoch)


class TestLimit:
    async def test_a_full_queue_refuses_until_there_is_room_again(self, redis_url: str) -> None:
        async with opened(redis_url, max_events=100) as queue:
            await queue.put([an_event() for _ in range(100)])
            with pytest.raises(QueueFull):
                await queue.put([an_event()])
            with pytest.raises(QueueFull):
                await queue.put_once(a_delivery())
            await queue.done(await take(queue, limit=4))
            await asyncio.sleep(0.25)
            with pytest.raises(QueueFull):
                await queue.put([an_event()])
            await queue.done(await take(queue, limit=4))
            await asyncio.sleep(0.25)
            assert await queue.put([an_event()]) == "queued"

    async def test_each_process_learns_of_it_by_its_own_next_write(self, redis_url: str) -> None:
        async with (
            opened(redis_url, max_events=100) as one,
            opened(redis_url, max_events=100) as other,
        ):
            await one.put([an_event() for _ in range(100)])
            await other.put_once(a_delivery())
            for queue in (one, other):
                with pytest.raises(QueueFull):
                    await queue.put([an_event()])
            assert (await one.status()).size == 101

    async def test_a_refused_event_is_neither_held_nor_counted(
        self, redis_url: str, redis: Redis
    ) -> None:
        async with opened(redis_url, max_events=10) as queue:
            await queue.put([an_event() for _ in range(12)])
            delivery = a_delivery()
            for refused in (queue.put([an_event()]), queue.put_once(delivery)):
                with pytest.raises(QueueFull):
                    await refused
            assert await redis.llen("log_queue") == 12
            assert [tally.accepted for tally in await queue.tallies()] == [12]
            assert not await redis.exists("{log_queue}:drained")

    async def test_a_full_queue_is_asked_rarely(self, redis_url: str, redis: Redis) -> None:
        async with opened(redis_url, max_events=1) as queue:
            await queue.put([an_event()])
            before = await redis.info("stats")
            for _ in range(500):
                with pytest.raises(QueueFull):
                    await queue.put([an_event()])
            after = await redis.info("stats")
        assert after["total_commands_processed"] - before["total_commands_processed"] < 100

    async def test_health_says_that_the_queue_is_full(self, redis_url: str) -> None:
        async with opened(redis_url, max_events=2) as queue:
            await queue.put([an_event(), an_event()])
            assert "full" in " ".join(await queue.warnings())

    async def test_a_server_that_died_while_full_is_unavailable_and_not_full(
        self, redis_url: str, redis: Redis
    ) -> None:
        async with opened(redis_url, max_events=1) as queue:
            await queue.put([an_event()])
            await redis.delete("log_queue")
            await redis.set("log_queue", "not a list")
            await asyncio.sleep(0.25)
            with pytest.raises(BackendUnavailable, match="WRONGTYPE"):
                await queue.put([an_event()])


class TestClock:
    async def test_a_lease_from_before_the_clock_was_turned_back_counts_as_expired(
        self, queue: EventQueue, redis: Redis
    ) -> None:
        event = an_event()
        await queue.put([event])
        first = await take(queue)
        now, _ = await redis.time()
        await redis.zadd("{log_queue}:leases", {str(first.lease_id): (now + 3600) * 1000})
        again = await take(queue)
        assert (again.events, again.attempts) == ([event], 2)
        assert await queue.take(10, 0) is None

    async def test_no_delay_is_longer_than_a_minute(self, queue: EventQueue, redis: Redis) -> None:
        await queue.put([an_event()])
        await queue.give_back(await take(queue), 3600)
        now, _ = await redis.time()
        assert await redis.zcount("{log_queue}:leases", (now + 62) * 1000, "+inf") == 0
        assert await queue.take(10, 0) is None

    async def test_counts_from_before_the_clock_was_turned_back_are_forgotten(
        self, queue: EventQueue, redis: Redis
    ) -> None:
        now, _ = await redis.time()
        for ahead in range(1, 30):
            await redis.hset("{log_queue}:done", str(now // 10 + ahead), "1")
        await queue.put([an_event()])
        await queue.done(await take(queue))
        assert await redis.hlen("{log_queue}:done") == 1


class TestWarnings:
    @pytest.fixture
    async def configured(self, redis: Redis) -> AsyncIterator[Redis]:
        names = ("maxmemory-policy", "appendfsync", "appendonly")
        kept = {name: (await redis.config_get(name))[name] for name in names}
        yield redis
        for name, value in kept.items():
            await redis.config_set(name, str(value))
        # A server that writes its first log does not hear a signal to end.
        async with asyncio.timeout(20):
            while (await redis.info("persistence"))["aof_rewrite_in_progress"]:
                await asyncio.sleep(0.02)

    async def test_a_server_that_keeps_what_it_answers_is_not_warned_of(
        self, queue: EventQueue
    ) -> None:
        assert await queue.warnings() == []

    @pytest.mark.parametrize(
        ("name", "value", "said"),
        [
            ("maxmemory-policy", "allkeys-lru", "allkeys-lru"),
            ("appendfsync", "everysec", "appendfsync is everysec"),
            ("appendfsync", "no", "appendfsync is no"),
            ("appendonly", "no", "appendonly is off"),
        ],
    )
    async def test_a_setting_that_can_lose_events_is_warned_of(
        self, queue: EventQueue, configured: Redis, name: str, value: str, said: str
    ) -> None:
        await configured.config_set(name, value)
        (warning,) = await queue.warnings()
        assert said in warning

    async def test_what_a_managed_server_does_not_tell_is_passed_over(
        self, redis_url: str, redis: Redis
    ) -> None:
        allowed = ["+@all", "-config", "-info"]
        await redis.acl_setuser(
            "tenant", enabled=True, passwords=["+secret"], keys=["*"], commands=allowed
        )
        try:
            url = redis_url.replace("redis://", "redis://tenant:secret@")
            async with opened(url) as queue:
                assert await queue.put([an_event()]) == "queued"
                assert await queue.warnings() == []
        finally:
            await redis.acl_deluser("tenant")
