"""What the consumer promises: every event of the queue is stored once, whatever happens."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import asyncpg
import pytest
import requests
from consuming import consuming, count, end_leases, is_empty, log_queue, until
from events_made import an_event
from redis.asyncio import Redis
from relay import before
from servers import run_service, run_to_end

from logging_service import wire
from logging_service.errors import BackendUnavailable, SchemaMismatch
from logging_service.pausing import Pause
from logging_service.ports import EventQueue


@pytest.fixture
async def queue(redis_url: str, redis: Redis) -> AsyncIterator[EventQueue]:
    assert await redis.dbsize() == 0
    async with log_queue(redis_url) as opened:
        yield opened


async def test_what_waits_is_stored_and_leaves_the_queue(
    queue: EventQueue, redis: Redis, redis_url: str, database_url: str, database: asyncpg.Connection
) -> None:
    events = [an_event(payload={"n": n}) for n in range(1234)]
    await queue.put(events)
    async with consuming(redis_url, database_url):
        await until(lambda: is_empty(redis))
    rows = await database.fetch("SELECT event_id FROM log_events")
    assert {row["event_id"] for row in rows} == {wire.decode(event).event_id for event in events}
    assert await database.fetchval("SELECT sum(stored) FROM deliveries") == 1234


async def test_several_consumers_share_the_work_and_store_everything_once(
    queue: EventQueue, redis: Redis, redis_url: str, database_url: str, database: asyncpg.Connection
) -> None:
    await queue.put([an_event(payload={"n": n}) for n in range(3000)])
    async with consuming(redis_url, database_url), consuming(redis_url, database_url):
        await until(lambda: is_empty(redis))
    assert await count(database) == 3000
    assert await database.fetchval("SELECT sum(duplicates) FROM deliveries") == 0


async def test_events_that_waited_too_long_are_counted_and_not_stored(
    queue: EventQueue, redis: Redis, redis_url: str, database_url: str, database: asyncpg.Connection
) -> None:
    long_ago = wire.now_micros() - 3_700_000_000
    await queue.put([an_event(received_at=long_ago), an_event(), an_event(received_at=long_ago)])
    async with consuming(redis_url, database_url):
        await until(lambda: is_empty(redis))
    assert await count(database) == 1
    assert await database.fetchval("SELECT sum(expired) FROM deliveries") == 2


async def test_what_cannot_be_read_is_put_aside_and_holds_nothing_up(
    queue: EventQueue, redis: Redis, redis_url: str, database_url: str, database: asyncpg.Connection
) -> None:
    flipped = bytearray(an_event(payload={"n": 1}))
    flipped[-3] ^= 1
    bad = [b"", b"garbage", b"\x07" + an_event()[1:], bytes(flipped)]
    await queue.put([an_event(), *bad, an_event()])
    async with consuming(redis_url, database_url):
        await until(lambda: is_empty(redis))
    assert await count(database) == 2
    letters = await database.fetch("SELECT event, reason FROM dead_letters")
    assert sorted(letter["event"] for letter in letters) == sorted(bad)
    assert {letter["reason"] for letter in letters} == {"unreadable"}


async def test_a_database_that_goes_away_and_comes_back_costs_nothing(
    queue: EventQueue, redis: Redis, redis_url: str, database_url: str, database: asyncpg.Connection
) -> None:
    async with before(database_url) as (relay, through), consuming(redis_url, through):
        await queue.put([an_event(payload={"n": n}) for n in range(500)])
        await until(lambda: is_empty(redis))
        await relay.cut()
        await queue.put([an_event(payload={"n": n}) for n in range(500)])
        await asyncio.sleep(0.5)
        assert await count(database) == 500
        await relay.mend()
        await until(lambda: is_empty(redis))
    assert await count(database) == 1000
    assert await count(database, "dead_letters") == 0


async def test_a_queue_that_goes_away_and_comes_back_costs_nothing(
    queue: EventQueue, redis: Redis, redis_url: str, database_url: str, database: asyncpg.Connection
) -> None:
    async with before(redis_url) as (relay, through), consuming(through, database_url):
        await queue.put([an_event(payload={"n": n}) for n in range(500)])
        await until(lambda: count(database))
        await relay.cut()
        await queue.put([an_event(payload={"n": n}) for n in range(500)])
        await asyncio.sleep(0.5)
        await relay.mend()
        # A lease that could not be closed when the relay was cut has to run out.
        await until(lambda: is_empty(redis))
    assert await count(database) == 1000


async def test_a_consumer_without_a_database_stops_and_gives_back(
    queue: EventQueue, redis: Redis, redis_url: str, free_port: int
) -> None:
    await queue.put([an_event()])
    async with consuming(redis_url, f"postgresql://nobody@127.0.0.1:{free_port}/none"):
        await until(lambda: redis.zcard("{log_queue}:leases"))
    delivery = await queue.take(10, 1)
    assert delivery is not None
    assert len(delivery.events) == 1


async def test_a_schema_that_does_not_fit_ends_the_consumer(
    queue: EventQueue, redis_url: str, database_url: str, database: asyncpg.Connection
) -> None:
    await database.execute("ALTER TABLE deliveries RENAME COLUMN stored TO kept")
    await queue.put([an_event()])
    with pytest.raises(SchemaMismatch, match="42703"):
        async with consuming(redis_url, database_url) as (_, task):
            await asyncio.wait({task}, timeout=10)
    assert await count(database, "dead_letters") == 0


async def test_a_consumer_killed_again_and_again_stores_everything_once(
    queue: EventQueue, redis: Redis, environment: dict[str, str], database: asyncpg.Connection
) -> None:
    small_batches = {**environment, "CONSUMER_BATCH_SIZE": "200"}
    total = 0
    for _ in range(3):
        with run_service("consumer", small_batches) as consumer:
            await queue.put([an_event(payload={"n": n}) for n in range(20_000)])
            total += 20_000
            stored = await count(database)
            await until(lambda stored=stored: more_than(database, stored))  # type: ignore[misc]
            os.kill(consumer.pid, signal.SIGKILL)
            consumer.process.wait()
    await end_leases(redis)
    with run_service("consumer", small_batches):
        await until(lambda: is_empty(redis), seconds=60)
    assert await count(database) == total
    assert await database.fetchval("SELECT sum(stored) FROM deliveries") == total
    assert await database.fetchval("SELECT sum(duplicates) FROM deliveries") == 0


async def more_than(database: asyncpg.Connection, stored: int) -> bool:
    return await count(database) > stored


async def test_sigterm_finishes_what_was_taken(
    queue: EventQueue, redis: Redis, environment: dict[str, str], database: asyncpg.Connection
) -> None:
    await queue.put([an_event(payload={"n": n}) for n in range(50_000)])
    with run_service("consumer", {**environment, "CONSUMER_BATCH_SIZE": "500"}) as consumer:
        await until(lambda: count(database))
        consumer.process.terminate()
        assert consumer.process.wait(15) == 0
        assert '"stopped"' in consumer.log
    assert await redis.zcard("{log_queue}:leases") == 0
    assert await count(database) + await redis.llen("log_queue") == 50_000


async def test_an_empty_database_is_migrated_at_the_start(
    environment: dict[str, str], empty_database_url: str
) -> None:
    with run_service("consumer", {**environment, "DATABASE_URL": empty_database_url}) as consumer:
        await until(lambda: '"consuming"' in consumer.log)
        answer = health(consumer.url).json()
        assert answer["status"] == "ok"
        # One role made it, and owns it.
        assert ["DATABASE_OWNER_URL" in warning for warning in answer["warnings"]] == [True]


async def test_a_newer_schema_ends_the_start_with_one_line(
    environment: dict[str, str], database: asyncpg.Connection
) -> None:
    await database.execute("UPDATE alembic_version SET version_num = '9999'")
    code, written = run_to_end("consumer", environment)
    assert code == 2
    assert "9999 is newer than this release" in written.splitlines()[-1]


def health(url: str) -> requests.Response:
    return requests.get(f"{url}/health", timeout=5)


async def test_servers_that_are_not_there_yet_are_waited_for(
    queue: EventQueue, redis_url: str, environment: dict[str, str], database: asyncpg.Connection
) -> None:
    async with (
        before(redis_url) as (redis_relay, redis_through),
        before(environment["DATABASE_URL"]) as (relay, through),
    ):
        await relay.cut()
        await redis_relay.cut()
        variables = {**environment, "REDIS_URL": redis_through, "DATABASE_URL": through}
        with run_service("consumer", variables) as consumer:
            answer = await asyncio.to_thread(health, consumer.url)
            assert answer.status_code == 503
            assert set(answer.json()["dependencies"]) == {"queue", "database", "dead_letters"}
            await queue.put([an_event()])
            await relay.mend()
            await redis_relay.mend()
            await until(lambda: count(database), seconds=30)
            answer = await asyncio.to_thread(health, consumer.url)
            assert answer.status_code == 200
            assert "database_unavailable" in consumer.log


@pytest.mark.parametrize("service", ["consumer", "producer"])
async def test_a_server_that_may_lose_events_is_named_in_the_log_and_in_health(
    environment: dict[str, str], redis: Redis, service: str
) -> None:
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with run_service(service, environment) as running:
            answer = await asyncio.to_thread(health, running.url)
            assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
            assert "allkeys-lru" in answer.text
            await until(lambda: asyncio.to_thread(lambda: "queue_at_risk" in running.log))
    finally:
        await redis.config_set("maxmemory-policy", "noeviction")


async def test_a_pause_has_an_end_however_long_the_outage() -> None:
    stopping = asyncio.Event()
    stopping.set()
    pause = Pause("database_unavailable", stopping)
    for _ in range(2000):
        await pause.after(BackendUnavailable("it is away"))


async def test_a_metrics_port_that_is_taken_is_warned_of(
    environment: dict[str, str],
) -> None:
    with run_service("consumer", environment), run_service("consumer", environment) as second:
        await until(lambda: "metrics_port_taken" in second.log)
        await until(lambda: '"consuming"' in second.log)
