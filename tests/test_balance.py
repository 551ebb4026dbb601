"""What was accepted is accounted for: by the arithmetic, in the books, and over HTTP."""

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from conftest import ADMIN_API_KEY, API_KEY
from events_made import REDACTOR, an_event
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis
from relay import a_relay
from served import ask, served

from logging_service import wire
from logging_service.audit import COMMAND_LINE
from logging_service.balance import TERMS, Balance, Glance, Reading
from logging_service.bookkeeper import Bookkeeper, read_balance
from logging_service.books import Account, Moved
from logging_service.dead_letters import replay
from logging_service.delivering import sort_events
from logging_service.errors import BackendUnavailable
from logging_service.ports import (
    NO_EPOCH,
    Appended,
    Delivery,
    LetterFilter,
    Move,
    QueueStatus,
    Sorted,
    Tally,
)
from logging_service.postgres_books import PostgresBooks, open_postgres_books
from logging_service.postgres_dead_letters import open_postgres_dead_letters
from logging_service.postgres_store import PostgresStore, open_postgres_store
from logging_service.query_service import create_app
from logging_service.redis_queue import RedisQueue, open_redis_queue
from logging_service.settings import Settings

EPOCH, OTHER, SPOOL = UUID(int=1), UUID(int=2), UUID(int=3)
NOTHING = Appended(0, 0, 0, 0)
LEASE_SECONDS = 0.2
WHERE_THEY_ARE = {
    "stored",
    "duplicates",
    "dead_lettered",
    "expired",
    "waiting",
    "in_flight",
    "damaged",
    "removed_outside",
}


def adds_up(balance: Balance) -> bool:
    accounted: int = sum(getattr(balance, term) for term in WHERE_THEY_ARE)
    return balance.accepted + (balance.reappeared or 0) == accounted


@dataclass
class Model:
    """A queue and a store, as numbers of events; `committed` leases are not done yet."""

    accepted: int = 0
    waiting: int = 0
    leased: list[int] = field(default_factory=list)
    committed: list[int] = field(default_factory=list)
    stored: int = 0
    settled: int = 0

    def act(self, action: str, events: int) -> None:
        if action == "put":
            self.accepted += events
            self.waiting += events
        elif action == "take" and self.waiting:
            taken = min(events, self.waiting)
            self.waiting -= taken
            self.leased.append(taken)
        elif action == "commit" and self.leased:
            self.stored += self.leased[0]
            self.committed.append(self.leased.pop(0))
        elif action == "done" and self.committed:
            self.committed.pop(0)
        elif action == "settle":
            self.settled = self.stored - sum(self.committed)

    def remove_what_waits(self) -> int:
        removed, self.waiting = self.waiting, 0
        return removed

    @property
    def tally(self) -> Tally:
        return Tally(EPOCH, self.accepted)

    @property
    def account(self) -> Account:
        settled = Appended(self.stored, 0, 0, 0)
        return Account(EPOCH, 0, 0, settled, self.stored - self.settled)

    @property
    def status(self) -> QueueStatus:
        in_flight = sum(self.leased) + sum(self.committed)
        return QueueStatus("redis", self.waiting, in_flight, None, 0.0)


actions = st.lists(
    st.tuples(st.sampled_from(["put", "take", "commit", "done", "settle"]), st.integers(1, 9)),
    max_size=6,
)


def read_while(model: Model, moves: Sequence[Sequence[tuple[str, int]]]) -> Reading:
    """Read the five parts of a reading, with `moves` before each."""
    parts: list[Any] = []
    names = ("account", "tally", "status", "tally", "account")
    for name, move in zip(names, moves, strict=True):
        for action in move:
            model.act(*action)
        parts.append(getattr(model, name))
    before, *glance, after = parts
    return Reading([before], Glance(*glance), [after])


draining = st.lists(st.tuples(st.sampled_from(["put", "push", "done"]), st.integers(1, 9)))


class Draining:
    """A spool that is emptied into a queue, as numbers of events; `under_way` are in both."""

    def __init__(self) -> None:
        self.accepted = self.held = self.under_way = self.moved = 0

    def act(self, action: str, events: int) -> None:
        if action == "put":
            self.accepted += events
            self.held += events
        elif action == "push" and not self.under_way:
            self.under_way = min(events, self.held)
            self.moved += self.under_way
        elif action == "done":
            self.held -= self.under_way
            self.under_way = 0

    @property
    def account(self) -> Account:
        return Account(SPOOL, self.accepted, 0, NOTHING, 0, self.held)

    @property
    def tally(self) -> Tally:
        return Tally(EPOCH, self.moved, (Move(SPOOL, self.moved),))


def at_rest(accounts: Sequence[Account], tally: Tally, size: int) -> Balance:
    """Return the balance of a queue in Redis where `size` events wait."""
    glance = Glance(tally, QueueStatus("redis", size, 0, None, 0.0), tally)
    return Reading(accounts, glance, accounts).balance()


class TestArithmetic:
    @given(st.lists(actions, min_size=5, max_size=5))
    def test_whatever_moves_while_it_is_read_nothing_seems_to_be_missing(
        self, moves: list[list[tuple[str, int]]]
    ) -> None:
        balance = read_while(Model(), moves).balance()
        assert (balance.removed_outside, balance.reappeared) == (0, 0)
        assert balance.balanced
        assert balance.in_flight is not None
        assert balance.in_flight >= 0
        assert adds_up(balance)

    @given(actions, st.lists(actions, min_size=4, max_size=4))
    def test_what_was_removed_is_told_at_most_and_exactly_when_nothing_moves(
        self, before: list[tuple[str, int]], moves: list[list[tuple[str, int]]]
    ) -> None:
        model = Model()
        for action in before:
            model.act(*action)
        removed = model.remove_what_waits()
        at_rest = read_while(model, [[]] * 5)
        assert at_rest.uncertain <= sum(model.committed)
        if not model.committed:
            assert at_rest.balance().removed_outside == removed
        balance = read_while(model, [[], *moves]).balance()
        assert balance.removed_outside is not None
        assert balance.removed_outside <= removed
        assert balance.reappeared == 0
        assert adds_up(balance)

    def test_a_delivery_that_is_committed_and_not_done_is_counted_once(self) -> None:
        model = Model()
        for action in (("put", 8), ("take", 5), ("commit", 1)):
            model.act(*action)
        balance = read_while(model, [[]] * 5).balance()
        assert (balance.stored, balance.waiting, balance.in_flight) == (5, 3, 0)
        assert balance.balanced

    def test_a_lease_that_nobody_works_on_is_in_flight(self) -> None:
        model = Model()
        for action in (("put", 8), ("take", 5)):
            model.act(*action)
        balance = read_while(model, [[]] * 5).balance()
        assert (balance.in_flight, balance.exact, balance.balanced) == (5, True, True)

    def test_an_epoch_that_is_over_lost_what_was_not_settled(self) -> None:
        over = Account(OTHER, 10, 0, Appended(4, 1, 1, 1), 0)
        present = Account(EPOCH, 0, 0, Appended(2, 0, 0, 0), 0)
        status = QueueStatus("redis", 3, 0, None, 0.0)
        glance = Glance(Tally(EPOCH, 5), status, Tally(EPOCH, 5))
        balance = Reading([over, present], glance, [over, present]).balance()
        assert (balance.accepted, balance.removed_outside, balance.epochs) == (15, 3, 2)
        assert balance.balanced is False
        assert adds_up(balance)

    def test_what_was_settled_in_an_epoch_that_is_over_had_been_accepted(self) -> None:
        over = Account(OTHER, 3, 0, Appended(5, 0, 0, 0), 0)
        status = QueueStatus("redis", 0, 0, None, 0.0)
        glance = Glance(Tally(EPOCH, 0), status, Tally(EPOCH, 0))
        balance = Reading([over], glance, [over]).balance()
        assert (balance.accepted, balance.removed_outside, balance.balanced) == (5, 0, True)

    def test_what_a_spool_beside_redis_holds_waits_and_what_it_gave_is_accepted_once(self) -> None:
        noted = (Moved(OTHER, 3, 1), Moved(EPOCH, 5))
        spool = Account(SPOOL, 20, 1, NOTHING, 0, held=7, damaged=4, moves=noted)
        balance = at_rest([spool], Tally(EPOCH, 2, (Move(SPOOL, 6),)), size=2)
        assert (balance.accepted, balance.waiting, balance.damaged) == (13, 9, 4)
        assert balance.removed_outside == 0
        assert adds_up(balance)

    def test_what_a_spool_lacks_was_removed(self) -> None:
        spool = Account(SPOOL, 20, 0, Appended(1, 1, 1, 1), 0, 7, 4, (Moved(EPOCH, 2),))
        balance = at_rest([spool], Tally(EPOCH, 2, (Move(SPOOL, 2),)), size=2)
        assert (balance.accepted, balance.waiting, balance.removed_outside) == (20, 9, 3)
        assert balance.balanced is False
        assert adds_up(balance)

    def test_more_than_a_spool_was_noted_to_have_accepted_had_been_accepted(self) -> None:
        spool = Account(SPOOL, 3, 0, NOTHING, 0, held=7)
        balance = at_rest([spool], Tally(EPOCH, 2, (Move(SPOOL, 2),)), size=2)
        assert (balance.accepted, balance.waiting, balance.removed_outside) == (9, 9, 0)
        assert balance.balanced
        assert adds_up(balance)

    @given(draining, draining)
    def test_however_a_spool_drains_while_it_is_noted_and_read_nothing_seems_to_be_missing(
        self, before: list[tuple[str, int]], meanwhile: list[tuple[str, int]]
    ) -> None:
        spool = Draining()
        for action in before:
            spool.act(*action)
        noted = spool.account
        for action in meanwhile:
            spool.act(*action)
        balance = at_rest([noted], spool.tally, size=spool.tally.accepted)
        assert balance.balanced
        assert adds_up(balance)
        spool.act("done", 0)
        balance = at_rest([spool.account], spool.tally, size=spool.tally.accepted)
        assert (balance.accepted, balance.balanced) == (spool.accepted, True)

    def test_damaged_events_of_the_local_queue_are_among_those_that_it_counted(self) -> None:
        status = QueueStatus("spool", 2, 0, None, 0.0, damaged=4)
        glance = Glance(Tally(EPOCH, 6), status, Tally(EPOCH, 6))
        balance = Reading([], glance, []).balance()
        assert (balance.accepted, balance.waiting, balance.damaged) == (6, 2, 4)
        assert balance.balanced
        assert adds_up(balance)

    def test_events_of_a_queue_that_counts_nothing_are_accepted_ones(self) -> None:
        status = QueueStatus("redis", 2, 1, None, 0.0)
        glance = Glance(Tally(NO_EPOCH, 0), status, Tally(NO_EPOCH, 0))
        accounts = [Account(NO_EPOCH, 0, 0, Appended(3, 0, 0, 0), 0)]
        balance = Reading(accounts, glance, accounts).balance()
        assert (balance.accepted, balance.waiting, balance.in_flight) == (6, 2, 1)
        assert (balance.balanced, balance.epochs) == (True, 0)

    def test_what_was_rolled_back_was_accepted_and_nothing_is_balanced(self) -> None:
        account = Account(EPOCH, 6, 4, Appended(10, 0, 0, 0), 0)
        status = QueueStatus("redis", 0, 0, None, 0.0)
        glance = Glance(Tally(EPOCH, 6), status, Tally(EPOCH, 6))
        balance = Reading([account], glance, [account]).balance()
        assert (balance.accepted, balance.removed_outside, balance.rolled_back) == (10, 0, 4)
        assert balance.balanced is False


@pytest.fixture
async def books(services_url: str) -> AsyncIterator[PostgresBooks]:
    async with open_postgres_books(services_url, connections=4) as opened:
        yield opened


@pytest.fixture
async def store(services_url: str) -> AsyncIterator[PostgresStore]:
    async with open_postgres_store(services_url, connections=4) as opened:
        yield opened


def telling(*tallies: Tally) -> Any:
    async def read() -> list[Tally]:
        return list(tallies)

    return read


def a_batch(events: int, epoch: UUID = EPOCH) -> Sorted:
    made = [an_event(payload={"n": n}) for n in range(events)]
    return Sorted(Delivery(uuid.uuid4(), made, 1, epoch), made)


async def account_of(books: PostgresBooks, epoch: UUID = EPOCH) -> Account:
    return {account.epoch: account for account in await books.accounts()}[epoch]


class TestBooks:
    async def test_the_last_count_is_kept(self, books: PostgresBooks) -> None:
        for accepted in (3, 7, 7):
            await books.note(telling(Tally(EPOCH, accepted)))
        assert await books.accounts() == [Account(EPOCH, 7, 0, Appended(0, 0, 0, 0), 0)]

    async def test_a_count_that_is_lower_than_before_was_rolled_back(
        self, books: PostgresBooks
    ) -> None:
        for accepted in (10, 6, 8, 5):
            await books.note(telling(Tally(EPOCH, accepted)))
        account = await account_of(books)
        assert (account.accepted, account.rolled_back) == (5, 4 + 3)

    async def test_an_epoch_that_is_over_keeps_the_highest_count_that_anybody_saw(
        self, books: PostgresBooks
    ) -> None:
        await books.note(telling(Tally(EPOCH, 10)))
        for seen in (8, 12, 9):
            await books.note(telling(Tally(EPOCH, seen), Tally(OTHER, 1)))
        account = await account_of(books)
        assert (account.accepted, account.rolled_back) == (12, 0)

    async def test_what_a_process_remembers_is_rolled_back_once_however_often_it_says_so(
        self, books: PostgresBooks
    ) -> None:
        await books.note(telling(Tally(EPOCH, 104)))
        await books.note(telling(Tally(EPOCH, 100)))
        for _ in range(2):
            await books.note(telling(Tally(EPOCH, 110), Tally(EPOCH, 100)))
            await books.note(telling(Tally(EPOCH, 105), Tally(EPOCH, 100)))
        account = await account_of(books)
        assert (account.accepted, account.rolled_back) == (100, 10)

    @pytest.mark.parametrize("tallies", [[], [Tally(NO_EPOCH, 0)], [Tally(NO_EPOCH, 5)]])
    async def test_a_queue_without_an_epoch_leaves_no_note(
        self, books: PostgresBooks, tallies: list[Tally]
    ) -> None:
        await books.note(telling(*tallies))
        assert await books.accounts() == []

    async def test_notes_at_the_same_time_never_look_like_a_rollback(
        self, books: PostgresBooks
    ) -> None:
        accepted = 0

        async def read() -> list[Tally]:
            nonlocal accepted
            accepted += 1
            seen = accepted
            await asyncio.sleep(0.001 * (seen % 5))
            return [Tally(EPOCH, seen)]

        await asyncio.gather(*(books.note(read) for _ in range(40)))
        account = await account_of(books)
        assert (account.accepted, account.rolled_back) == (40, 0)

    async def test_a_queue_that_is_away_leaves_the_books_as_they_were(
        self, books: PostgresBooks
    ) -> None:
        async def read() -> list[Tally]:
            raise BackendUnavailable("redis: away")

        with pytest.raises(BackendUnavailable, match="away"):
            await books.note(read)
        assert await books.accounts() == []

    async def test_counts_that_somebody_made_up_are_refused_as_weather(
        self, books: PostgresBooks
    ) -> None:
        await books.note(telling(Tally(EPOCH, 2**63 - 1)))
        with pytest.raises(BackendUnavailable):
            await books.note(telling(Tally(EPOCH, -(2**63))))

    async def test_settled_deliveries_keep_their_place_in_the_sums(
        self, books: PostgresBooks, store: PostgresStore, database: asyncpg.Connection
    ) -> None:
        batches = [a_batch(2), a_batch(3), a_batch(5, OTHER), a_batch(7)]
        for batch in batches:
            await store.append(batch)
        unknown = uuid.uuid4()
        await books.settle([unknown, *(batch.delivery.lease_id for batch in batches[:3])])
        await books.settle([batches[0].delivery.lease_id])
        account, other = await account_of(books), await account_of(books, OTHER)
        assert (account.settled, account.unsettled) == (Appended(12, 0, 0, 0), 7)
        assert (other.settled, other.unsettled) == (Appended(5, 0, 0, 0), 0)
        assert await database.fetchval("SELECT count(*) FROM deliveries") == 1

    async def test_settling_at_the_same_time_counts_each_delivery_once(
        self, books: PostgresBooks, store: PostgresStore
    ) -> None:
        batches = [a_batch(2, epoch) for epoch in (EPOCH, OTHER) * 10]
        for batch in batches:
            await store.append(batch)
        leases = [batch.delivery.lease_id for batch in batches]
        orders = (leases, leases[::-1], leases[5:], leases[:9])
        await asyncio.gather(*(books.settle(order) for order in orders))
        await books.settle(leases)
        for epoch in (EPOCH, OTHER):
            account = await account_of(books, epoch)
            assert (account.settled.stored, account.unsettled) == (20, 0)

    async def test_epochs_of_long_ago_become_one_and_their_differences_stay(
        self, books: PostgresBooks, store: PostgresStore, database: asyncpg.Connection
    ) -> None:
        await database.execute(
            "INSERT INTO epochs (epoch, accepted, stored, last_seen)"
            " SELECT gen_random_uuid(), 10, 7, now() - interval '4 days'"
            " FROM generate_series(1, 1100)"
        )
        await database.execute(
            "WITH given AS (UPDATE epochs SET held = 1, damaged = 1 WHERE epoch IN"
            " (SELECT epoch FROM epochs ORDER BY epoch LIMIT 600) RETURNING epoch)"
            " INSERT INTO moves SELECT epoch, $1, 3, 2 FROM given",
            OTHER,
        )
        await books.note(telling(Tally(EPOCH, 5)))
        glance = Glance(Tally(EPOCH, 5), QueueStatus("redis", 5, 0, None, 0.0), Tally(EPOCH, 5))
        before = await books.accounts()
        await store.prepare()
        await store.prepare()
        after = await books.accounts()
        assert (len(before), len(after)) == (1101, 1001)
        told = [Reading(accounts, glance, accounts).balance() for accounts in (before, after)]
        terms = [{term: getattr(balance, term) for term in TERMS} for balance in told]
        assert terms[0] == terms[1]
        assert terms[0]["removed_outside"] == 3 * 500

    async def test_a_database_that_is_away_is_weather(self, free_port: int) -> None:
        url = f"postgresql://nobody@127.0.0.1:{free_port}/none"
        async with open_postgres_books(url, connections=1) as books:
            for attempt in (books.accounts(), books.settle([]), books.note(telling())):
                with pytest.raises(BackendUnavailable):
                    await attempt


class Pipeline:
    """A queue, a store and the books, moved by the test."""

    def __init__(self, queue: RedisQueue, store: PostgresStore, books: PostgresBooks) -> None:
        self.queue = queue
        self.store = store
        self.books = books

    async def put(self, *events: bytes) -> None:
        await self.queue.put(events)

    async def take(self) -> Delivery:
        delivery = await self.queue.take(100, 2)
        assert delivery is not None
        return delivery

    async def commit(self, delivery: Delivery) -> None:
        await self.store.append(sort_events(delivery, 3600, wire.now_micros()))

    async def consume(self) -> Delivery:
        delivery = await self.take()
        await self.commit(delivery)
        await self.queue.done(delivery)
        return delivery

    async def told(self) -> dict[str, int]:
        """Return the terms that are not 0, of a balance that adds up."""
        balance = await read_balance(self.queue, self.books)
        assert balance.exact
        assert adds_up(balance)
        differences = (balance.removed_outside, balance.reappeared, balance.rolled_back)
        assert balance.balanced == (not any(differences))
        return {term: events for term in TERMS if (events := getattr(balance, term))}


@asynccontextmanager
async def a_queue(url: str) -> AsyncIterator[RedisQueue]:
    async with open_redis_queue(
        url, name="log_queue", ttl_seconds=3600, timeout_ms=2000, lease_seconds=LEASE_SECONDS
    ) as queue:
        yield queue


@pytest.fixture
async def pipeline(
    redis_url: str, store: PostgresStore, books: PostgresBooks
) -> AsyncIterator[Pipeline]:
    async with a_queue(redis_url) as queue:
        yield Pipeline(queue, store, books)


def some(number: int) -> list[bytes]:
    return [an_event(payload={"n": n}) for n in range(number)]


class TestPipeline:
    async def test_nothing_accepted_is_balanced(self, pipeline: Pipeline) -> None:
        assert await pipeline.told() == {}

    async def test_it_closes_at_every_step_of_ordinary_traffic(self, pipeline: Pipeline) -> None:
        await pipeline.put(*some(5))
        assert await pipeline.told() == {"accepted": 5, "waiting": 5}
        delivery = await pipeline.take()
        assert await pipeline.told() == {"accepted": 5, "in_flight": 5}
        await pipeline.commit(delivery)
        balance = await read_balance(pipeline.queue, pipeline.books)
        assert (balance.stored, balance.balanced) == (5, True)
        await pipeline.queue.done(delivery)
        assert await pipeline.told() == {"accepted": 5, "stored": 5}
        await pipeline.books.settle([delivery.lease_id])
        assert await pipeline.told() == {"accepted": 5, "stored": 5}

    async def test_duplicates_dead_letters_and_expired_events_have_their_terms(
        self, pipeline: Pipeline
    ) -> None:
        event = an_event()
        old = an_event(received_at=wire.now_micros() - 3601 * 1_000_000)
        await pipeline.put(event, event, old, old, old, b"garbage", *some(4))
        await pipeline.consume()
        assert await pipeline.told() == {
            "accepted": 10,
            "stored": 5,
            "duplicates": 1,
            "dead_lettered": 1,
            "expired": 3,
        }

    async def test_a_dead_letter_that_fails_again_counts_again(self, pipeline: Pipeline) -> None:
        await pipeline.put(b"garbage", b"garbage")
        await pipeline.consume()
        await pipeline.put(b"garbage")
        await pipeline.consume()
        assert await pipeline.told() == {"accepted": 3, "dead_lettered": 3}

    async def test_a_replay_is_accepted_anew(
        self, pipeline: Pipeline, database: asyncpg.Connection, database_url: str
    ) -> None:
        await database.execute("ALTER TABLE log_events ADD CONSTRAINT no CHECK (source <> 'bad')")
        await pipeline.put(*some(2), an_event(source="bad"))
        await pipeline.consume()
        assert await pipeline.told() == {"accepted": 3, "stored": 2, "dead_lettered": 1}
        await database.execute("ALTER TABLE log_events DROP CONSTRAINT no")
        async with open_postgres_dead_letters(database_url, connections=1) as letters:
            keys = await letters.keys(LetterFilter(), 10)
            steps = replay(letters, pipeline.queue, keys, COMMAND_LINE, REDACTOR)
            assert [step.replayed async for step in steps] == [1]
        assert await pipeline.told() == {
            "accepted": 4,
            "stored": 2,
            "dead_lettered": 1,
            "waiting": 1,
        }
        await pipeline.consume()
        assert await pipeline.told() == {"accepted": 4, "stored": 3, "dead_lettered": 1}

    async def test_a_redelivery_after_the_commit_counts_nothing_twice(
        self, pipeline: Pipeline
    ) -> None:
        await pipeline.put(*some(6))
        await pipeline.commit(await pipeline.take())
        again = await pipeline.consume()
        assert again.attempts == 2
        assert await pipeline.told() == {"accepted": 6, "stored": 6}

    async def test_a_redelivery_before_the_commit_counts_nothing_twice(
        self, pipeline: Pipeline
    ) -> None:
        await pipeline.put(*some(6))
        await pipeline.take()
        assert (await pipeline.consume()).attempts == 2
        assert await pipeline.told() == {"accepted": 6, "stored": 6}

    async def test_a_deleted_list_shows_as_removed_outside(
        self, pipeline: Pipeline, redis: Redis
    ) -> None:
        await pipeline.put(*some(4))
        await pipeline.consume()
        await pipeline.put(*some(3))
        await redis.delete("log_queue")
        assert await pipeline.told() == {"accepted": 7, "stored": 4, "removed_outside": 3}
        await pipeline.put(*some(2))
        await pipeline.consume()
        assert await pipeline.told() == {"accepted": 9, "stored": 6, "removed_outside": 3}

    async def test_a_flushed_database_shows_as_removed_outside_before_and_after_it_is_used_again(
        self, pipeline: Pipeline, redis: Redis
    ) -> None:
        await pipeline.put(*some(4))
        await pipeline.consume()
        await pipeline.put(*some(3))
        await Bookkeeper(pipeline.queue, pipeline.books).note()
        await redis.flushdb()
        assert await pipeline.told() == {"accepted": 7, "stored": 4, "removed_outside": 3}
        await pipeline.put(*some(2))
        assert await pipeline.told() == {
            "accepted": 9,
            "stored": 4,
            "waiting": 2,
            "removed_outside": 3,
        }
        await pipeline.consume()
        assert await pipeline.told() == {"accepted": 9, "stored": 6, "removed_outside": 3}

    async def test_what_was_put_since_the_last_note_counts_although_the_queue_was_flushed(
        self, pipeline: Pipeline, redis: Redis
    ) -> None:
        keeper = Bookkeeper(pipeline.queue, pipeline.books)
        await pipeline.put(*some(1))
        assert await keeper.note()
        await pipeline.put(*some(3))
        await redis.flushdb()
        await pipeline.put(*some(2))
        assert await keeper.note()
        assert await pipeline.told() == {"accepted": 6, "waiting": 2, "removed_outside": 4}

    async def test_a_delivery_that_outlives_a_flush_belongs_to_its_own_epoch(
        self, pipeline: Pipeline, redis: Redis
    ) -> None:
        await pipeline.put(*some(3))
        delivery = await pipeline.take()
        assert await pipeline.told() == {"accepted": 3, "in_flight": 3}
        await redis.flushdb()
        await pipeline.put(*some(2))
        assert (await pipeline.told())["removed_outside"] == 3
        await pipeline.commit(delivery)
        assert await pipeline.told() == {"accepted": 5, "stored": 3, "waiting": 2}

    async def test_a_server_that_came_back_without_its_last_second_is_shown(
        self, pipeline: Pipeline, redis: Redis, redis_url: str
    ) -> None:
        await pipeline.put(*some(3))
        kept = await redis.lrange("log_queue", 0, -1)
        await pipeline.put(*some(4))
        assert await Bookkeeper(pipeline.queue, pipeline.books).note()
        # As it was after the first put.
        await redis.delete("log_queue")
        await redis.rpush("log_queue", *kept)
        await redis.hset("{log_queue}:ledger", "accepted", "3")
        lost = {"removed_outside": 4, "rolled_back": 4}
        assert await pipeline.told() == {"accepted": 7, "waiting": 3, **lost}
        async with a_queue(redis_url) as other_process:
            reader = Pipeline(other_process, pipeline.store, pipeline.books)
            await pipeline.put(*some(5))
            for whoever in (reader, pipeline, reader, pipeline):
                assert await whoever.told() == {"accepted": 12, "waiting": 8, **lost}

    async def test_a_note_that_cannot_be_made_keeps_nobody_from_reading(
        self, pipeline: Pipeline, database: asyncpg.Connection
    ) -> None:
        await pipeline.put(*some(3))
        async with database.transaction():
            await database.execute("SELECT pg_advisory_xact_lock(7260411532)")
            with pytest.raises(BackendUnavailable, match="55P03"):
                await pipeline.books.note(pipeline.queue.tallies)
            assert await pipeline.told() == {"accepted": 3, "waiting": 3}

    async def test_a_process_that_is_stopped_while_it_notes_holds_the_others_up_for_seconds_only(
        self, pipeline: Pipeline, database_url: str
    ) -> None:
        began, may_end = threading.Event(), threading.Event()

        async def stopped() -> None:
            async def read() -> list[Tally]:
                began.set()
                may_end.wait(30)
                return []

            async with open_postgres_books(database_url, connections=1) as books:
                with suppress(BackendUnavailable):
                    await books.note(read)

        other_process = asyncio.create_task(asyncio.to_thread(asyncio.run, stopped()))
        assert await asyncio.to_thread(began.wait, 10)
        keeper = Bookkeeper(pipeline.queue, pipeline.books)
        await pipeline.put(*some(3))
        notes = [await keeper.note() for _ in range(3)]
        may_end.set()
        await other_process
        assert notes[-1]
        assert await pipeline.told() == {"accepted": 3, "waiting": 3}

    async def test_what_a_server_delivers_again_after_it_was_done_reappears(
        self, pipeline: Pipeline, redis: Redis
    ) -> None:
        await pipeline.put(*some(3))
        kept = await redis.lrange("log_queue", 0, -1)
        await pipeline.consume()
        await redis.rpush("log_queue", *kept)
        told = {"accepted": 3, "stored": 3, "reappeared": 3}
        assert await pipeline.told() == {**told, "waiting": 3}
        await pipeline.consume()
        assert await pipeline.told() == {**told, "duplicates": 3}

    async def test_while_events_stream_nothing_seems_to_be_missing(
        self, pipeline: Pipeline
    ) -> None:
        is_over = False

        async def send() -> None:
            while not is_over:
                await pipeline.put(*some(3))

        async def receive() -> None:
            while not is_over or (await pipeline.queue.status()).size:
                if delivery := await pipeline.queue.take(7, 0.01):
                    await pipeline.commit(delivery)
                    await pipeline.queue.done(delivery)

        traffic = asyncio.gather(send(), send(), receive(), receive())
        for _ in range(10):
            balance = await read_balance(pipeline.queue, pipeline.books)
            assert (balance.removed_outside, balance.reappeared) == (0, 0)
            assert balance.balanced
            assert adds_up(balance)
        is_over = True
        await traffic
        told = await pipeline.told()
        assert told == {"accepted": told["accepted"], "stored": told["accepted"]}


class TestBookkeeper:
    async def test_it_notes_what_changed_and_nothing_else(
        self, pipeline: Pipeline, database: asyncpg.Connection
    ) -> None:
        keeper = Bookkeeper(pipeline.queue, pipeline.books)
        await pipeline.put(*some(2))
        assert await keeper.note()
        assert await database.fetchval("SELECT accepted FROM epochs") == 2
        await database.execute("UPDATE epochs SET accepted = 1")
        assert await keeper.note()
        assert await database.fetchval("SELECT accepted FROM epochs") == 1

    async def test_it_works_on_when_the_database_is_back(
        self, redis_url: str, database_url: str, database: asyncpg.Connection
    ) -> None:
        async with AsyncExitStack() as stack:
            queue = await stack.enter_async_context(a_queue(redis_url))
            books = await stack.enter_async_context(
                open_postgres_books(database_url, connections=1)
            )
            keeper = Bookkeeper(queue, books)
            await queue.put(some(2))
            await database.execute("ALTER TABLE epochs RENAME TO elsewhere")
            assert not await keeper.note()
            await database.execute("ALTER TABLE elsewhere RENAME TO epochs")
            assert await keeper.note()
            assert await database.fetchval("SELECT accepted FROM epochs") == 2


KEYS = {
    "none": {},
    "wrong": {"X-API-Key": "another_key_123"},
    "read and write": {"X-API-Key": API_KEY},
    "admin": {"X-API-Key": ADMIN_API_KEY},
    "forwarded": {"X-Forwarded-For": "10.0.0.1"},
}


@pytest.fixture
async def service(settings: Settings) -> AsyncIterator[str]:
    async with served(create_app(settings)) as url:
        yield url


class TestRoute:
    @pytest.mark.parametrize(
        ("key", "status"),
        [
            ("none", 200),
            ("wrong", 401),
            ("read and write", 403),
            ("admin", 200),
            ("forwarded", 401),
        ],
    )
    async def test_who_reads_all_projects_is_let_in(
        self, service: str, key: str, status: int
    ) -> None:
        assert (await ask(f"{service}/balance", headers=KEYS[key])).status_code == status

    async def test_it_tells_every_term(self, service: str, pipeline: Pipeline) -> None:
        await pipeline.put(*some(3))
        await pipeline.consume()
        await pipeline.put(*some(2))
        answer = (await ask(f"{service}/balance")).json()
        assert answer == {
            "accepted": 5,
            "stored": 3,
            "duplicates": 0,
            "dead_lettered": 0,
            "expired": 0,
            "waiting": 2,
            "in_flight": 0,
            "damaged": 0,
            "removed_outside": 0,
            "reappeared": 0,
            "rolled_back": 0,
            "balanced": True,
            "exact": True,
            "queue": "redis",
            "epochs": 1,
        }

    async def test_a_parameter_is_refused_by_its_name(self, service: str) -> None:
        answer = await ask(f"{service}/balance", params={"days": 7})
        assert answer.status_code == 422
        assert [error["loc"] for error in answer.json()["errors"]] == ["days"]

    async def test_there_is_a_gauge_for_each_term(self, service: str, pipeline: Pipeline) -> None:
        await pipeline.put(*some(2))
        text = (await ask(f"{service}/metrics")).text
        for term in TERMS:
            expected = 2.0 if term in {"accepted", "waiting"} else 0.0
            assert f'balance_events{{term="{term}"}} {expected}' in text

    async def test_without_the_queue_the_books_tell_what_they_can(
        self, settings: Settings, pipeline: Pipeline, redis_url: str
    ) -> None:
        await pipeline.put(*some(3))
        await pipeline.consume()
        await Bookkeeper(pipeline.queue, pipeline.books).note()
        async with a_relay(int(redis_url.rpartition(":")[2].partition("/")[0])) as relay:
            through = settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{relay.port}/0"})
            async with served(create_app(through)) as url:
                assert (await ask(f"{url}/health")).json()["status"] == "ok"
                await relay.cut()
                answer = await ask(f"{url}/balance")
                assert answer.status_code == 200
                told = answer.json()
                assert {name for name, value in told.items() if value is None} == {
                    "waiting",
                    "in_flight",
                    "damaged",
                    "removed_outside",
                    "reappeared",
                    "balanced",
                    "exact",
                    "queue",
                }
                assert (told["accepted"], told["stored"]) == (3, 3)
                assert (await ask(f"{url}/events")).status_code == 200
                health = await ask(f"{url}/health")
                assert (health.status_code, health.json()["status"]) == (200, "degraded")
                metrics = (await ask(f"{url}/metrics")).text
                assert 'balance_events{term="stored"} 3.0' in metrics
                assert 'term="waiting"' not in metrics

    async def test_without_the_database_it_is_unavailable_and_has_no_gauges(
        self, settings: Settings, free_port: int
    ) -> None:
        away = f"postgresql://nobody@127.0.0.1:{free_port}/none"
        async with served(create_app(settings.model_copy(update={"database_url": away}))) as url:
            answer = await ask(f"{url}/balance")
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
            metrics = await ask(f"{url}/metrics")
            assert metrics.status_code == 200
            assert "term=" not in metrics.text
