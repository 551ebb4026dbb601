"""The consumer while it is killed, stopped, refused and lied to: nothing lost, nothing twice."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID, uuid4

import asyncpg
import psutil
import pytest
import requests
from consuming import (
    LIMITS,
    consuming,
    count,
    end_leases,
    is_empty,
    log_queue,
    told,
    until,
)
from events_made import an_event
from redis.asyncio import Redis
from relay import before
from servers import ROOT, RunningService, a_postgres, a_redis, run_service, run_to_end

from logging_service import delivering, postgres_store
from logging_service.data_folder import create
from logging_service.embedded import Postgres
from logging_service.entries import Entries
from logging_service.errors import TooManyDead
from logging_service.ports import Delivery, Trial
from logging_service.postgres_ledger import write
from logging_service.redis_queue import RedisQueue
from logging_service.rollups import DAY_SPAN
from logging_service.schema import migrate

LEASES = "{log_queue}:leases"


@pytest.fixture
def services_url(database_url: str) -> str:
    """What these tests put before the tables is the owner's: here it stores, too."""
    return database_url


@pytest.fixture
async def queue(redis_url: str, redis: Redis) -> AsyncIterator[RedisQueue]:
    assert await redis.dbsize() == 0
    async with log_queue(redis_url) as opened:
        yield opened


def some_events(number: int) -> list[bytes]:
    return [an_event(session_id=f"s{n % 7}", payload={"n": n}) for n in range(number)]


async def lease_tired(
    queue: RedisQueue, redis: Redis, database: asyncpg.Connection, events: Sequence[bytes]
) -> str:
    """Lease a delivery whose consumers have died again and again."""
    await queue.put(events)
    delivery = await queue.take(len(events), 0)
    assert delivery is not None
    await redis.hset("{log_queue}:attempts", str(delivery.lease_id), "6")
    await database.execute(
        "INSERT INTO trials (lease_id, tried_by, begun_by) VALUES ($1, '{}', $2)",
        delivery.lease_id,
        [uuid4() for _ in range(5)],
    )
    return str(delivery.lease_id)


async def put_tired(
    queue: RedisQueue, redis: Redis, database: asyncpg.Connection, *deliveries: Sequence[bytes]
) -> None:
    """Offer deliveries whose consumers have died again and again."""
    for events in deliveries:
        await lease_tired(queue, redis, database, events)
    await end_leases(redis)


# What follows a script's head is the consumer as it is; the head makes it mortal.
TO_THE_END = "\nfrom logging_service import consumer\nconsumer.main()\n"
DIES_DECODING = """
import os, signal
from logging_service import wire
check = wire.check
def mortal(element):
    if b"poison" in element:
        os.kill(os.getpid(), signal.SIGKILL)
    return check(element)
wire.check = mortal
"""
DIES_STORING = """
import os, signal
from logging_service import postgres_store
copy = postgres_store._copy
async def mortal(connection, table, events):
    await copy(connection, table, events)
    if any(b"poison" in event for event in events):
        os.kill(os.getpid(), signal.SIGKILL)
postgres_store._copy = mortal
"""
DIES_BEFORE_DONE = """
import os, signal
from logging_service.redis_queue import RedisQueue
async def mortal(self, delivery):
    os.kill(os.getpid(), signal.SIGKILL)
RedisQueue.done = mortal
"""
DIES_NOW_AND_THEN = """
import itertools, os, signal
from logging_service.postgres_store import PostgresStore
append, turn = PostgresStore.append, itertools.count(1)
async def mortal(self, *arguments):
    if next(turn) == 40:
        os.kill(os.getpid(), signal.SIGKILL)
    return await append(self, *arguments)
PostgresStore.append = mortal
"""


async def deaths_until_empty(
    head: str, environment: Mapping[str, str], redis: Redis, lives: int = 12
) -> int:
    """Run a mortal consumer until the queue is empty, anew after each death; count these."""
    for deaths in range(lives):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            head + TO_THE_END,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        ended = asyncio.ensure_future(process.wait())
        try:
            while not ended.done() and not await is_empty(redis):
                await asyncio.sleep(0.02)
            if not ended.done():
                process.terminate()
            code = await asyncio.wait_for(ended, 20)
        finally:
            if process.returncode is None:
                process.kill()
        if code == 0:
            return deaths
        assert code == -signal.SIGKILL
        await end_leases(redis)
    raise AssertionError("it does not come to an end")


class TestAnEventThatEndsItsConsumer:
    async def test_it_lies_among_the_dead_letters_in_the_end_and_all_others_are_stored(
        self,
        queue: RedisQueue,
        redis: Redis,
        environment: dict[str, str],
        database: asyncpg.Connection,
    ) -> None:
        good, poison = some_events(60), an_event(payload={"poison": 1})
        await queue.put([*good[:40], poison, *good[40:]])
        # The first delivery, which is not counted, five more, then twice alone.
        assert await deaths_until_empty(DIES_DECODING, environment, redis) == 8
        assert await count(database) == 60
        letter = await database.fetchrow("SELECT * FROM dead_letters")
        assert (letter["event"], letter["reason"]) == (poison, "crash")
        assert await told(database) == (60, 0, 1, 0)
        assert await count(database, "trials") == 0

    async def test_no_neighbour_is_taken_for_it(
        self,
        queue: RedisQueue,
        redis: Redis,
        environment: dict[str, str],
        database: asyncpg.Connection,
    ) -> None:
        poison = [an_event(payload={"poison": n}) for n in range(2)]
        bad = [poison[0], *some_events(20), poison[1]]
        await put_tired(queue, redis, database, some_events(50), bad, some_events(50))
        await queue.put(some_events(500))
        assert await deaths_until_empty(DIES_STORING, environment, redis) == 4
        letters = await database.fetch("SELECT event, reason FROM dead_letters")
        assert {letter["event"] for letter in letters} == set(poison)
        assert {letter["reason"] for letter in letters} == {"crash"}
        assert await told(database) == (620, 0, 2, 0)
        assert await count(database) == 620

    async def test_a_consumer_that_others_kill_leaves_no_event_under_suspicion(
        self,
        queue: RedisQueue,
        redis: Redis,
        environment: dict[str, str],
        database: asyncpg.Connection,
    ) -> None:
        await put_tired(queue, redis, database, some_events(150))
        assert await deaths_until_empty(DIES_NOW_AND_THEN, environment, redis) == 3
        assert await told(database) == (150, 0, 0, 0)
        assert await count(database) == 150


@pytest.mark.parametrize("is_tired", [False, True], ids=["at once", "one by one"])
async def test_what_a_consumer_killed_before_done_has_committed_counts_once(
    queue: RedisQueue,
    redis: Redis,
    environment: dict[str, str],
    database: asyncpg.Connection,
    *,
    is_tired: bool,
) -> None:
    events = [*some_events(30), b"garbage"]
    await (put_tired(queue, redis, database, events) if is_tired else queue.put(events))
    with pytest.raises(AssertionError, match="does not come to an end"):
        await deaths_until_empty(DIES_BEFORE_DONE, environment, redis, lives=3)
    assert await deaths_until_empty("", environment, redis) == 0
    assert await told(database) == (30, 0, 1, 0)
    assert await count(database, "trials") == 0


class TestOneByOne:
    async def test_each_event_is_counted_as_what_it_is(
        self,
        queue: RedisQueue,
        redis: Redis,
        redis_url: str,
        database_url: str,
        database: asyncpg.Connection,
    ) -> None:
        good = [*some_events(19), an_event(timestamp=datetime.now(UTC) - timedelta(days=3))]
        old = an_event(received_at=1)
        await put_tired(queue, redis, database, [*good, b"garbage", old, *good[:5]])
        async with consuming(redis_url, database_url):
            await until(lambda: is_empty(redis))
        assert await told(database) == (20, 5, 1, 1)
        assert await count(database, "deliveries") == 1
        assert await database.fetchval("SELECT reason FROM dead_letters") == "unreadable"

    async def test_more_days_than_the_database_has_locks_for_are_stored(
        self,
        queue: RedisQueue,
        redis: Redis,
        redis_url: str,
        database_url: str,
        database: asyncpg.Connection,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        refused: list[int] = []

        async def within_locks(connection: asyncpg.Connection, entries: Entries) -> None:
            # Each day has tables and indexes of its own to be locked.
            if (
                days := len({key[0] // (DAY_SPAN * 60_000_000) for key in entries.usage.by_key})
            ) > 5:
                refused.append(days)
                raise asyncpg.OutOfMemoryError("out of shared memory")
            await write(connection, entries)

        monkeypatch.setattr(postgres_store, "write", within_locks)
        noon = datetime.now(UTC)
        await queue.put([an_event(timestamp=noon - timedelta(days=days)) for days in range(20)])
        async with consuming(redis_url, database_url):
            await until(lambda: is_empty(redis))
        assert refused == [20]
        assert await told(database) == (20, 0, 0, 0)
        assert await count(database) == await count(database, "event_facts") == 20

    async def test_weather_puts_no_event_under_suspicion(
        self,
        queue: RedisQueue,
        redis: Redis,
        redis_url: str,
        database_url: str,
        database: asyncpg.Connection,
    ) -> None:
        await put_tired(queue, redis, database, some_events(300))
        async with before(database_url) as (relay, through), consuming(redis_url, through):
            for _ in range(6):
                stored = await count(database)
                await until(lambda stored=stored: more_than(database, stored))  # type: ignore[misc]
                relay.last_words = b"COMMIT"
                await asyncio.sleep(0.05)
                await relay.cut()
                await asyncio.sleep(0.05)
                await relay.mend()
            await until(lambda: is_empty(redis))
        assert await told(database) == (300, 0, 0, 0)

    async def test_a_stop_keeps_how_far_it_has_come(
        self,
        queue: RedisQueue,
        redis: Redis,
        redis_url: str,
        database_url: str,
        database: asyncpg.Connection,
    ) -> None:
        await put_tired(queue, redis, database, some_events(400))
        async with consuming(redis_url, database_url):
            await until(lambda: more_than(database, 5))
        kept = await count(database)
        assert await database.fetchval("SELECT place FROM trials") == kept < 400
        assert await database.fetchval("SELECT tried_by FROM trials") == []
        async with consuming(redis_url, database_url):
            await until(lambda: is_empty(redis))
        assert await told(database) == (400, 0, 0, 0)

    async def test_what_is_under_work_before_is_ended_first(
        self,
        queue: RedisQueue,
        redis: Redis,
        redis_url: str,
        database_url: str,
        database: asyncpg.Connection,
    ) -> None:
        tired = await lease_tired(queue, redis, database, some_events(50))
        async with consuming(redis_url, database_url) as (consumer, _):
            await queue.put(some_events(5))
            await until(lambda: count(database))
            async with database.transaction():
                await database.execute("LOCK TABLE log_events IN SHARE MODE")
                await queue.put(some_events(50))
                await until(lambda: waits_for_a_lock(database))
                await redis.zadd(LEASES, {tired: 1})
                await until(lambda: len(consumer._under_work) == 2)
                await asyncio.sleep(0.3)
                assert await database.fetchval("SELECT tried_by FROM trials") == []
            await until(lambda: is_empty(redis))
        assert await told(database) == (105, 0, 0, 0)

    async def test_nothing_else_is_taken_meanwhile(
        self,
        queue: RedisQueue,
        redis: Redis,
        redis_url: str,
        database_url: str,
        database: asyncpg.Connection,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        await put_tired(queue, redis, database, some_events(100), some_events(100))
        await queue.put(some_events(900))
        async with consuming(redis_url, database_url) as (consumer, _):
            begin_trial, at_work = consumer._store.begin_trial, set()

            async def watched(delivery: Delivery, run: UUID) -> Trial | None:
                at_work.add(len(consumer._under_work))
                return await begin_trial(delivery, run)

            monkeypatch.setattr(consumer._store, "begin_trial", watched)
            await until(lambda: is_empty(redis))
        assert at_work == {1}
        assert await told(database) == (1100, 0, 0, 0)

    async def test_a_bad_run_stops_it_here_too_and_no_event_is_under_suspicion(
        self,
        queue: RedisQueue,
        redis: Redis,
        redis_url: str,
        database_url: str,
        database: asyncpg.Connection,
    ) -> None:
        await put_tired(queue, redis, database, [b"garbage %d" % n for n in range(200)])
        limits = LIMITS._replace(dead_letter_max_ratio=0.5)
        async with consuming(redis_url, database_url, limits) as (consumer, _):
            await until(lambda: consumer._refused)
            row = await database.fetchrow("SELECT place, tried_by, dead_lettered FROM trials")
            assert tuple(row) == (99, [], 99)
        async with consuming(redis_url, database_url):
            await until(lambda: is_empty(redis))
        assert await told(database) == (0, 0, 200, 0)


async def more_than(database: asyncpg.Connection, stored: int) -> bool:
    return await count(database) > stored


def health(service: RunningService) -> tuple[int, dict[str, str]]:
    answer = requests.get(f"{service.url}/health", timeout=5)
    return answer.status_code, answer.json()["dependencies"]["dead_letters"]


class TestABadDeploy:
    async def test_the_consumer_stops_and_says_so(
        self,
        queue: RedisQueue,
        redis: Redis,
        environment: dict[str, str],
        database: asyncpg.Connection,
    ) -> None:
        await queue.put([*(b"garbage %d" % n for n in range(200)), *some_events(150)])
        with run_service("consumer", environment) as consumer:
            await until(lambda: health(consumer)[1]["status"] == "unavailable")
            status, said = health(consumer)
            assert status == 503
            assert "unreadable: format 67 is not known" in said["detail"]
            assert "restart, or set DEAD_LETTER_MAX_RATIO=1" in said["detail"]
            metrics = requests.get(f"{consumer.url}/metrics", timeout=5).text
            assert "consumer_stopped 1.0" in metrics
            assert consumer.log.count('"consumer_stopped"') == 1
            assert await redis.zcard(LEASES) == 1
            consumer.process.terminate()
            assert consumer.process.wait(15) == 0
        assert await count(database, "dead_letters") == 0
        given_back = await queue.take(1000, 0)
        assert given_back is not None
        assert len(given_back.events) == 350
        await end_leases(redis)
        with run_service("consumer", {**environment, "DEAD_LETTER_MAX_RATIO": "1"}):
            await until(lambda: is_empty(redis))
        assert await told(database) == (150, 0, 200, 0)

    async def test_a_mended_database_lets_it_go_on(
        self,
        queue: RedisQueue,
        redis: Redis,
        redis_url: str,
        database_url: str,
        database: asyncpg.Connection,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(delivering, "_STOPPED_SECONDS", 0.2)
        monkeypatch.setattr(delivering, "_EXTEND_SECONDS", 0.5)
        await database.execute(
            "ALTER TABLE log_events ADD CONSTRAINT odd CHECK (event_type <> 'odd')"
        )
        await queue.put([an_event("odd") for _ in range(100)])
        limits = LIMITS._replace(dead_letter_max_ratio=0.5)
        async with consuming(redis_url, database_url, limits) as (consumer, _):
            await until(lambda: consumer._refused)
            with pytest.raises(TooManyDead, match=r"23514.*DEAD_LETTER_MAX_RATIO=1"):
                await consumer.check()
            # The other worker may be asking for more at this moment.
            await asyncio.sleep(0.5)
            await queue.put(some_events(100))
            # Longer than a lease: it is kept, and nothing else is taken.
            await asyncio.sleep(2.5)
            assert await redis.llen("log_queue") == 100
            seconds, micros = await redis.time()
            assert await redis.zcount(LEASES, "-inf", seconds * 1000 + micros // 1000) == 0
            assert await redis.zcard(LEASES) == 1
            await database.execute("ALTER TABLE log_events DROP CONSTRAINT odd")
            await until(lambda: is_empty(redis))
            await consumer.check()
        assert await told(database) == (200, 0, 0, 0)

    async def test_it_buries_no_more_than_a_few_before(
        self,
        queue: RedisQueue,
        redis: Redis,
        redis_url: str,
        database_url: str,
        database: asyncpg.Connection,
    ) -> None:
        await database.execute(
            "ALTER TABLE log_events ADD CONSTRAINT odd CHECK (event_type <> 'odd')"
        )
        await queue.put(some_events(500))
        limits = LIMITS._replace(batch_size=10, dead_letter_max_ratio=0.05)
        async with consuming(redis_url, database_url, limits) as (consumer, _):
            await until(lambda: is_empty(redis))
            await queue.put([an_event("odd") for _ in range(500)])
            await until(lambda: consumer._refused)
        buried = await count(database, "dead_letters WHERE reason = 'rejected'")
        # Each of the two workers knows what the other has buried, not what it is about to.
        assert 80 <= buried <= 2 * 99
        assert await count(database) == 500

    @pytest.mark.parametrize("is_tired", [False, True], ids=["at once", "one by one"])
    async def test_a_sender_who_uses_one_id_again_and_again_does_not_stop_it(
        self,
        queue: RedisQueue,
        redis: Redis,
        environment: dict[str, str],
        database: asyncpg.Connection,
        *,
        is_tired: bool,
    ) -> None:
        one, now = uuid4(), datetime.now(UTC)
        same = [an_event(payload={"n": n}, event_id=one, timestamp=now) for n in range(1200)]
        await (put_tired(queue, redis, database, same) if is_tired else queue.put(same))
        with run_service("consumer", environment) as consumer:
            await until(lambda: is_empty(redis), seconds=60)
            # Nor does what they are stand in for good events.
            await queue.put([b"garbage %d" % n for n in range(100)])
            await until(lambda: health(consumer)[1]["status"] == "unavailable")
        assert await told(database) == (1, 0, 1199, 0)
        assert await count(database, "dead_letters WHERE reason = 'conflict'") == 1199


class TestADeliveryThatNobodyDiedOf:
    """It is stored at once, however often it came: one by one it would take minutes."""

    async def test_one_whose_takes_were_never_answered(
        self,
        queue: RedisQueue,
        redis: Redis,
        environment: dict[str, str],
        database: asyncpg.Connection,
    ) -> None:
        await queue.put(some_events(300))
        for _ in range(8):
            assert await queue.take(1000, 0)
            await end_leases(redis)
        await is_stored_at_once(redis, environment, database)

    async def test_one_that_was_given_back_while_the_database_was_away(
        self,
        queue: RedisQueue,
        redis: Redis,
        environment: dict[str, str],
        database: asyncpg.Connection,
    ) -> None:
        await queue.put(some_events(300))
        async with before(environment["DATABASE_URL"]) as (relay, through):
            await relay.cut()
            for _ in range(8):
                await is_given_back(redis, environment["REDIS_URL"], through)
        await is_stored_at_once(redis, environment, database)

    async def test_one_that_was_given_back_because_the_disk_was_full(
        self,
        queue: RedisQueue,
        redis: Redis,
        environment: dict[str, str],
        database: asyncpg.Connection,
    ) -> None:
        await database.execute(FAILS.format(state="53100", table="log_events"))
        await queue.put(some_events(300))
        for turn in range(8):
            redis_url, database_url = environment["REDIS_URL"], environment["DATABASE_URL"]
            async with consuming(redis_url, database_url):
                await until(lambda turn=turn: has_failed(database, times=2 * turn + 2))  # type: ignore[misc]
        assert await database.fetchval("SELECT begun_by FROM trials") == []
        await database.execute("DROP TRIGGER fails ON log_events")
        await is_stored_at_once(redis, environment, database)


async def is_given_back(redis: Redis, redis_url: str, database_url: str) -> None:
    async with consuming(redis_url, database_url, LIMITS._replace(batch_size=1000)):
        await until(lambda: redis.zcard(LEASES))
        await asyncio.sleep(0.1)


async def is_stored_at_once(
    redis: Redis, environment: dict[str, str], database: asyncpg.Connection
) -> None:
    with run_service("consumer", environment) as consumer:
        await until(lambda: is_empty(redis))
        assert "one_by_one" not in consumer.log
    assert await told(database) == (300, 0, 0, 0)
    assert await count(database, "trials") == 0


FAILS = """
CREATE SEQUENCE attempts;
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    PERFORM nextval('attempts');
    RAISE EXCEPTION 'a test''s weather' USING ERRCODE = '{state}';
END $$;
CREATE TRIGGER fails BEFORE INSERT ON {table} FOR EACH STATEMENT EXECUTE FUNCTION fail();
"""


class TestWeather:
    @pytest.mark.parametrize(
        ("table", "state"),
        [
            pytest.param("log_events", "53100", id="disk full"),
            pytest.param("deliveries", "53100", id="disk full at the end"),
            pytest.param("log_events", "53200", id="out of memory"),
            pytest.param("log_events", "40P01", id="deadlock"),
            pytest.param("deliveries", "40001", id="serialization failure"),
            pytest.param("log_events", "55P03", id="lock not available"),
            pytest.param("log_events", "57014", id="statement timeout"),
            pytest.param("log_events", "57P01", id="admin shutdown"),
            pytest.param("deliveries", "58030", id="io error"),
            pytest.param("dead_letters", "XX001", id="data corrupted"),
            # A fault of a row of ours is none of an event.
            pytest.param("deliveries", "23514", id="a check that no event breaks"),
        ],
    )
    async def test_it_passes_and_nothing_is_put_aside(
        self,
        queue: RedisQueue,
        redis: Redis,
        environment: dict[str, str],
        database: asyncpg.Connection,
        table: str,
        *,
        state: str,
    ) -> None:
        await database.execute(FAILS.format(state=state, table=table))
        await queue.put([*some_events(50), b"garbage"])
        async with consuming(environment["REDIS_URL"], environment["DATABASE_URL"]):
            await until(lambda: has_failed(database, times=3))
            assert await count(database, "dead_letters") == 0
            await database.execute(f"DROP TRIGGER fails ON {table}")
            await until(lambda: is_empty(redis))
        assert await told(database) == (50, 0, 1, 0)
        assert await count(database, "dead_letters") == 1

    async def test_a_read_only_database_is_waited_for(
        self,
        queue: RedisQueue,
        redis: Redis,
        environment: dict[str, str],
        database: asyncpg.Connection,
    ) -> None:
        name = await database.fetchval("SELECT current_database()")
        with run_service("consumer", environment) as consumer:
            await queue.put(some_events(50))
            await until(lambda: is_empty(redis))
            await database.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
            await sever(database)
            await queue.put(some_events(50))
            await until(lambda: "25006" in consumer.log)
            await database.execute("SET default_transaction_read_only = off")
            await database.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
            await until(lambda: is_empty(redis))
            assert "available_again" in consumer.log
        assert await told(database) == (100, 0, 0, 0)

    async def test_connections_that_an_operator_ends_cost_nothing(
        self,
        queue: RedisQueue,
        redis: Redis,
        redis_url: str,
        database_url: str,
        database: asyncpg.Connection,
    ) -> None:
        async with consuming(redis_url, database_url):
            for _ in range(10):
                await queue.put(some_events(500))
                await sever(database)
            await until(lambda: is_empty(redis))
        assert await told(database) == (5000, 0, 0, 0)

    async def test_a_commit_whose_answer_is_lost_counts_once(
        self,
        queue: RedisQueue,
        redis: Redis,
        redis_url: str,
        database_url: str,
        database: asyncpg.Connection,
    ) -> None:
        async with before(database_url) as (relay, through), consuming(redis_url, through):
            for _ in range(5):
                relay.last_words = b"COMMIT"
                await queue.put([*some_events(50), b"garbage"])
                await until(lambda: is_empty(redis))
                assert relay.last_words is None
        assert await told(database) == (250, 0, 5, 0)
        assert await count(database) == 250

    async def test_a_day_that_somebody_dropped_is_made_again(
        self,
        queue: RedisQueue,
        redis: Redis,
        redis_url: str,
        database_url: str,
        database: asyncpg.Connection,
    ) -> None:
        async with consuming(redis_url, database_url):
            await queue.put(some_events(10))
            await until(lambda: is_empty(redis))
            await database.execute(f"DROP TABLE log_events_p{datetime.now(UTC):%Y%m%d}")
            await queue.put(some_events(20))
            await until(lambda: is_empty(redis))
        assert await count(database) == 20
        assert await count(database, "dead_letters") == 0


async def has_failed(database: asyncpg.Connection, times: int) -> bool:
    attempts: int = await database.fetchval("SELECT last_value FROM attempts")
    return attempts >= times


async def sever(database: asyncpg.Connection) -> None:
    """End every other connection to the database."""
    await database.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


async def test_a_schema_that_does_not_fit_stops_it_with_one_line_and_its_lease_is_free(
    queue: RedisQueue, environment: dict[str, str], database: asyncpg.Connection
) -> None:
    await queue.put([*some_events(10), b"garbage"])
    await database.execute("ALTER TABLE log_events RENAME COLUMN trace_id TO trace")
    code, written = await asyncio.to_thread(run_to_end, "consumer", environment)
    assert code == 2
    assert "42703" in written.splitlines()[-1]
    assert "Traceback" not in written
    assert await count(database, "dead_letters") == 0
    # Of a lease that was not given back half a minute would be left.
    assert await queue.take(100, 5) is not None


class TestServersOfItsOwn:
    """What would disturb the suite's own servers."""

    @pytest.fixture
    async def own_postgres(self) -> AsyncIterator[Postgres]:
        with TemporaryDirectory(prefix="logging-service-tests-") as folder:
            create(Path(folder))
            server = a_postgres(Path(folder), durable=True)
            try:
                await server.start()
                await migrate(server.owner_url, server.url)
                yield server
            finally:
                await server.stop()

    async def test_a_database_killed_in_the_middle_of_batches_has_each_event_once(
        self, queue: RedisQueue, redis: Redis, redis_url: str, own_postgres: Postgres
    ) -> None:
        async with consuming(redis_url, own_postgres.url):
            for _ in range(3):
                await queue.put(some_events(5000))
                await asyncio.sleep(0.2)
                os.kill(own_postgres.pid, signal.SIGKILL)
                await own_postgres.wait()
                await own_postgres.start()
            await until(lambda: is_empty(redis), seconds=60)
        database = await asyncpg.connect(own_postgres.url)
        assert await told(database) == (15_000, 0, 0, 0)
        assert await count(database) == 15_000
        await database.close()

    async def test_a_stop_does_not_wait_for_a_database_that_hangs(
        self, queue: RedisQueue, redis: Redis, environment: dict[str, str], own_postgres: Postgres
    ) -> None:
        variables = {**environment, "DATABASE_URL": own_postgres.url, "SHUTDOWN_GRACE_SECONDS": "2"}
        database = await asyncpg.connect(own_postgres.owner_url)
        with run_service("consumer", variables) as consumer:
            await until(lambda: '"consuming"' in consumer.log)
            await database.execute("BEGIN; LOCK TABLE log_events IN SHARE MODE")
            await queue.put(some_events(500))
            await until(lambda: waits_for_a_lock(database))
            with hanging(own_postgres.pid):
                consumer.process.terminate()
                # A command is given half a minute.
                assert await asyncio.to_thread(consumer.process.wait, 10) == 1
        await database.execute("COMMIT")
        again = await queue.take(1000, 0)
        assert again is not None
        assert again.attempts == 2
        await end_leases(redis)
        with run_service("consumer", variables):
            await until(lambda: is_empty(redis))
        assert await told(database) == (500, 0, 0, 0)
        await database.close()

    async def test_a_stop_does_not_wait_for_a_redis_that_hangs(
        self, environment: dict[str, str], database: asyncpg.Connection
    ) -> None:
        with TemporaryDirectory(prefix="logging-service-tests-") as folder:
            create(Path(folder))
            server = a_redis(Path(folder))
            await server.start()
            variables = {**environment, "REDIS_URL": server.url, "REDIS_TIMEOUT_MS": "60000"}
            variables["SHUTDOWN_GRACE_SECONDS"] = "2"
            async with log_queue(server.url) as queue:
                await queue.put(some_events(100))
            with run_service("consumer", variables) as consumer:
                await until(lambda: count(database))
                with hanging(server.pid):
                    consumer.process.terminate()
                    assert await asyncio.to_thread(consumer.process.wait, 10) == 1
            await server.stop()
        assert await told(database) == (100, 0, 0, 0)


async def waits_for_a_lock(database: asyncpg.Connection) -> bool:
    return bool(await database.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))


@contextmanager
def hanging(pid: int) -> Iterator[None]:
    """A server that takes connections and bytes, and does nothing."""
    server = psutil.Process(pid)
    processes = [server, *server.children(recursive=True)]
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


async def test_a_second_signal_ends_it_at_once_and_loses_nothing(
    queue: RedisQueue, redis: Redis, environment: dict[str, str], database: asyncpg.Connection
) -> None:
    patient = {**environment, "SHUTDOWN_GRACE_SECONDS": "300"}
    with run_service("consumer", patient) as consumer:
        await until(lambda: '"consuming"' in consumer.log)
        async with database.transaction():
            await database.execute("LOCK TABLE log_events IN SHARE MODE")
            await queue.put(some_events(500))
            await until(lambda: waits_for_a_lock(database))
            consumer.process.send_signal(signal.SIGINT)
            await asyncio.sleep(0.3)
            assert consumer.process.poll() is None
            consumer.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(consumer.process.wait, 15) == 1
    await end_leases(redis)
    with run_service("consumer", environment):
        await until(lambda: is_empty(redis))
    assert await told(database) == (500, 0, 0, 0)


async def test_leases_that_are_done_are_settled_in_their_epochs(
    queue: RedisQueue,
    redis: Redis,
    redis_url: str,
    database_url: str,
    database: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(delivering, "_SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(delivering, "_SETTLED_AFTER_SECONDS", 0)
    async with before(database_url) as (relay, through), consuming(redis_url, through):
        await queue.put([*some_events(500), b"garbage"])
        await until(lambda: is_empty(redis))
        await relay.cut()
        await asyncio.sleep(0.3)
        await relay.mend()
        await until(lambda: nothing_in(database, "deliveries"))
    [present] = await queue.tallies()
    row = await database.fetchrow("SELECT epoch, stored, dead_lettered FROM epochs")
    assert tuple(row) == (present.epoch, 500, 1)


async def test_a_consumer_that_was_cut_off_does_not_count_what_another_has_stored(
    queue: RedisQueue,
    redis: Redis,
    environment: dict[str, str],
    database: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    redis_url, database_url = environment["REDIS_URL"], environment["DATABASE_URL"]
    for name, seconds in (
        ("_RENEWED_SECONDS", 1.5),
        ("_EXTEND_SECONDS", 0.5),
        ("_SETTLE_SECONDS", 0.1),
        ("_SETTLED_AFTER_SECONDS", 0),
    ):
        monkeypatch.setattr(delivering, name, seconds)
    async with before(redis_url) as (relay, through), before(database_url) as (wall, beyond):
        await wall.cut()
        await queue.put(some_events(50))
        async with consuming(through, beyond) as (cut_off, _):
            await until(lambda: cut_off._under_work)
            # As long as its lease is renewed it is nobody else's.
            await asyncio.sleep(3)
            assert await queue.take(100, 0) is None
            await relay.cut()
            async with consuming(redis_url, database_url):
                await until(lambda: is_empty(redis))
                await until(lambda: nothing_in(database, "deliveries"))
            await relay.mend()
            await asyncio.sleep(1)
            await wall.mend()
            await until(lambda: not cut_off._under_work)
            await queue.put(some_events(10))
            await until(lambda: is_empty(redis))
            await until(lambda: nothing_in(database, "deliveries"))
    row = await database.fetchrow("SELECT sum(stored)::int, sum(duplicates)::int FROM epochs")
    assert tuple(row) == (60, 0)


async def test_a_lease_that_ran_out_in_the_middle_of_its_transaction_is_rolled_back(
    queue: RedisQueue,
    redis: Redis,
    environment: dict[str, str],
    database: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(delivering, "_RENEWED_SECONDS", 0.5)
    redis_url, database_url = environment["REDIS_URL"], environment["DATABASE_URL"]
    async with before(redis_url) as (relay, through), consuming(through, database_url) as (held, _):
        async with database.transaction():
            await database.execute("LOCK TABLE log_events IN SHARE MODE")
            await queue.put(some_events(50))
            await until(lambda: held._under_work)
            await asyncio.sleep(0.2)
            await relay.cut()
            [turn] = held._under_work
            await until(lambda: turn.is_lost)
        await until(lambda: turn not in held._under_work)
        assert await count(database) == 0
        assert await count(database, "deliveries") == 0
        await relay.mend()
        await until(lambda: is_empty(redis))
    assert await told(database) == (50, 0, 0, 0)


async def nothing_in(database: asyncpg.Connection, table: str) -> bool:
    return await count(database, table) == 0
