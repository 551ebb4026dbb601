"""Queue, spool, consumer and store under any order of bad luck, with a model beside them.

The model is two sets of elements: those that were acknowledged, each of which has to be in the
table or among the dead letters in the end, and those that were ever sent, which is all that may
be there. The balance has to close each time. Somebody may delete the spool with what is in it: then
no more than that is lost, and the balance shows it.
"""

import asyncio
import os
import tempfile
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import asyncpg
import pytest
from events_made import an_event
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)
from redis.asyncio import Redis
from relay import before

from logging_service import wire
from logging_service.bookkeeper import read_balance
from logging_service.delivering import sort_events
from logging_service.errors import BackendUnavailable
from logging_service.failover_queue import FailoverQueue
from logging_service.fallback_spools import FallbackSpools
from logging_service.ports import Delivery
from logging_service.postgres_books import open_postgres_books
from logging_service.postgres_store import open_postgres_store
from logging_service.redis_queue import open_redis_queue

_TIMEOUT_MS = 40
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_WHICH = st.integers(0, 1000)
_FAULTS = st.sampled_from([None, "is_half_open", "loses_answers"])
_TABLES = "log_events, deliveries, epochs, moves, dead_letters, trials"
_Result = TypeVar("_Result")


class Held:
    """A delivery that a consumer has taken, and whether it knows that it is stored."""

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
        self.is_stored = False


class World:
    """Real servers behind relays, one producer with its spool, one consumer's hands."""

    async def open(self, redis_url: str, database_url: str, folder: Path) -> None:
        self.stack = AsyncExitStack()
        enter = self.stack.enter_async_context
        self.folder = folder
        self.spools = FallbackSpools(folder / "queue.sqlite", 1 << 24)
        self.redis = await enter(Redis.from_url(redis_url))
        await self.redis.flushall()
        self.database = await asyncpg.connect(database_url)
        self.stack.push_async_callback(self.database.close)
        await self.database.execute(f"TRUNCATE {_TABLES}")
        self.redis_relay, through = await enter(before(redis_url))
        self.database_relay, store_url = await enter(before(database_url))
        self.queue_in_redis = await enter(
            open_redis_queue(through, name="log_queue", ttl_seconds=600, timeout_ms=_TIMEOUT_MS)
        )
        self.store = await enter(open_postgres_store(store_url, connections=2))
        self.books = await enter(open_postgres_books(store_url, connections=2))
        await self.start_producer()

    async def close(self) -> None:
        await self.producer.aclose()
        await self.stack.aclose()

    async def start_producer(self) -> None:
        self.producer = AsyncExitStack()
        self.spool = await self.spools.claim(self.producer)
        self.queue = FailoverQueue(
            self.queue_in_redis, self.spools, self.spool, drain_per_second=1_000_000
        )

    async def restart_producer(self) -> None:
        await self.producer.aclose()
        await self.start_producer()

    async def lose_spool(self) -> list[bytes]:
        """Delete the spool once it is noted, and return what was in it."""
        await self.books.note_reserves(self.queue.reserves)
        held: list[bytes] = []
        while delivery := await self.spool.take(1000, 0):
            held += delivery.events
        await self.producer.aclose()
        for part in self.folder.glob("queue-fallback-0*"):
            part.unlink()
        await self.start_producer()
        return held

    async def mend_redis(self) -> None:
        await self.redis_relay.cut()
        await self.redis_relay.mend()

    async def move_leases(self, deadline_ms: int) -> None:
        leases: Any = await self.redis.zrange("{log_queue}:leases", 0, -1)
        for lease in leases:
            await self.redis.zadd("{log_queue}:leases", {lease: deadline_ms})

    async def append(self, held: Held) -> None:
        batch = sort_events(held.delivery, 600, wire.now_micros())
        # As the consumer does: whether the transaction was committed may not be known.
        held.delivery = replace(held.delivery, attempts=held.delivery.attempts + 1)
        await self.store.append(batch)
        held.is_stored = True

    async def finish(self) -> None:
        """Let everything be well again, and wait until all that waits is stored."""
        await self.mend_redis()
        self.database_relay.last_words = None
        async with asyncio.timeout(60):
            while True:
                with suppress(BackendUnavailable):
                    while await self.queue.drain_next(self.spool):
                        pass
                    await self.move_leases(1)
                    delivery = await self.queue.take(100, 0)
                    if delivery is None:
                        break
                    held = Held(delivery)
                    while not held.is_stored:
                        with suppress(BackendUnavailable):
                            await self.append(held)
                    await self.queue.done(held.delivery)

    async def settled(self) -> list[bytes]:
        """Return the content of every stored event and dead letter, as `content_of` tells it."""
        rows = await self.database.fetch("SELECT event_id, payload::text AS text FROM log_events")
        letters = await self.database.fetch("SELECT event FROM dead_letters")
        stored = [row["event_id"].bytes + row["text"].encode() for row in rows]
        return stored + [content_of(letter["event"]) for letter in letters]


def content_of(element: bytes) -> bytes:
    """Return what tells an event from any other; a damaged element is what it is."""
    try:
        columns = wire.decode(element)
    except ValueError:
        return element
    return columns.event_id.bytes + bytes(columns.payload)


def one_of(items: Sequence[_Result], which: int) -> _Result:
    """Return an item by any number: how many there are depends on what the servers did."""
    return items[which % len(items)]


class Pipeline(RuleBasedStateMachine):
    """What can happen, in any order; each step may fail, but nothing acknowledged is lost."""

    redis_url: str
    database_url: str

    @initialize()
    def begin(self) -> None:
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.world = World()
        self.run(self.world.open(self.redis_url, self.database_url, Path(self.folder.name)))
        self.statvfs = os.statvfs
        self.acknowledged: set[bytes] = set()
        self.sent: dict[bytes, bytes] = {}
        self.held: list[Held] = []
        self.deleted: list[bytes] = []

    def run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        return self.runner.run(work)

    def tried(self, work: Coroutine[Any, Any, _Result]) -> _Result | None:
        """Return what `work` returns; None where a backend was away."""
        try:
            return self.run(work)
        except BackendUnavailable:
            return None

    def send(self, events: Sequence[bytes], fault: str | None = None) -> None:
        self.sent.update({content_of(event): event for event in events})
        with self.misbehaving(fault):
            if self.tried(self.world.queue.put(events)) is not None:
                self.acknowledged.update(map(content_of, events))

    @contextmanager
    def misbehaving(self, fault: str | None) -> Iterator[None]:
        if fault:
            setattr(self.world.redis_relay, fault, True)
        yield
        if fault:
            setattr(self.world.redis_relay, fault, False)
            self.world.redis_relay.reset()

    @rule(events=st.integers(1, 5), fault=_FAULTS)
    def accept(self, events: int, fault: str | None) -> None:
        self.send([an_event(payload={"n": n}) for n in range(events)], fault)

    @rule(which=_WHICH)
    def send_again(self, which: int) -> None:
        if self.sent:
            self.send([one_of(list(self.sent.values()), which)])

    @rule(which=_WHICH)
    def send_the_same_id_with_other_content(self, which: int) -> None:
        first = one_of([*self.sent.values(), b""], which)
        with suppress(ValueError):
            known = wire.decode(first)
            moment = _EPOCH + timedelta(microseconds=known.timestamp)
            other = {"other": str(uuid4())}
            self.send([an_event(payload=other, event_id=known.event_id, timestamp=moment)])

    @rule()
    def send_garbage(self) -> None:
        self.send([b"\x01" + os.urandom(30)])

    @rule()
    def redis_goes_away(self) -> None:
        self.run(self.world.redis_relay.cut())

    @rule()
    def redis_comes_back(self) -> None:
        self.run(self.world.mend_redis())

    @rule()
    def the_disk_fills_up(self) -> None:
        def full(path: Any) -> os.statvfs_result:
            found = self.statvfs(path)
            return os.statvfs_result((*found[:4], 0, *found[5:]))

        os.statvfs = full

    @rule()
    def the_disk_has_room(self) -> None:
        os.statvfs = self.statvfs

    @rule()
    def the_producer_starts_anew(self) -> None:
        self.run(self.world.restart_producer())

    @rule()
    def somebody_deletes_the_spool(self) -> None:
        self.world.database_relay.last_words = None
        self.deleted += self.run(self.world.lose_spool())

    @rule(fault=_FAULTS)
    def the_spool_drains(self, fault: str | None) -> None:
        with self.misbehaving(fault):
            self.tried(self.world.queue.drain_next(self.world.spool))

    @rule(limit=st.integers(1, 6))
    def take(self, limit: int) -> None:
        delivery = self.tried(self.world.queue.take(limit, 0))
        if delivery is not None:
            self.held = [*self.held, Held(delivery)][-3:]

    @rule(which=_WHICH, answer_is_lost=st.booleans())
    def store(self, which: int, *, answer_is_lost: bool) -> None:
        if self.held:
            self.world.database_relay.last_words = b"COMMIT" if answer_is_lost else None
            self.tried(self.world.append(one_of(self.held, which)))

    @rule()
    def finish_what_is_stored(self) -> None:
        for held in [held for held in self.held if held.is_stored]:
            self.tried(self.world.queue.done(held.delivery))
            self.held.remove(held)

    @rule()
    def the_consumer_dies(self) -> None:
        self.held.clear()

    @rule()
    def leases_run_out(self) -> None:
        self.run(self.world.move_leases(1))

    @rule()
    def the_clock_of_redis_is_turned_back(self) -> None:
        in_an_hour = wire.to_unix_seconds(wire.now_micros()) + 3600
        self.run(self.world.move_leases(round(in_an_hour * 1000)))

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            os.statvfs = self.statvfs
            self.run(self.world.finish())
            self.judge()
        finally:
            self.run(self.world.close())
            self.runner.close()
            self.folder.cleanup()

    def judge(self) -> None:
        settled = self.run(self.world.settled())
        lost = self.acknowledged.difference(settled)
        assert lost <= set(map(content_of, self.deleted))
        assert set(settled) <= set(self.sent)
        assert len(settled) == len(set(settled)), "the same event twice"
        self.run(self.world.books.note_reserves(self.world.queue.reserves))
        balance = self.run(read_balance(self.world.queue_in_redis, self.world.books))
        assert balance.removed_outside is not None
        assert len(lost) <= balance.removed_outside <= len(self.deleted), balance
        assert balance.balanced == (not balance.removed_outside), balance
        assert (balance.waiting, balance.in_flight) == (0, 0)


@pytest.fixture
def servers(redis_url: str, database_url: str) -> Iterator[None]:
    Pipeline.redis_url, Pipeline.database_url = redis_url, database_url
    statvfs = os.statvfs
    yield
    os.statvfs = statvfs


@pytest.mark.usefixtures("servers")
def test_whatever_happens_in_whichever_order_nothing_acknowledged_is_lost() -> None:
    run_state_machine_as_test(
        Pipeline,
        settings=settings(
            max_examples=100,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
