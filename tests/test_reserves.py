"""What producers acknowledged into spools is in the balance, whatever becomes of the files."""

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest
from events_made import an_event
from projects import Project
from redis.asyncio import Redis
from relay import Relay, before
from served import ask, served
from spools import MAX_BYTES, a_spool, put, set_aside

from logging_service import wire
from logging_service.balance import TERMS
from logging_service.bookkeeper import Bookkeeper, read_balance
from logging_service.books import Account, Moved, Wreck
from logging_service.delivering import sort_events
from logging_service.errors import BackendUnavailable
from logging_service.failover_queue import FailoverQueue
from logging_service.fallback_spools import FallbackSpools
from logging_service.ports import (
    NO_EPOCH,
    Appended,
    Delivery,
    EventQueue,
    Move,
    Reserve,
    Tally,
)
from logging_service.postgres_books import PostgresBooks, open_postgres_books
from logging_service.postgres_store import PostgresStore, open_postgres_store
from logging_service.query_service import create_app
from logging_service.redis_queue import RedisQueue, open_redis_queue
from logging_service.settings import Settings
from logging_service.spool_folder import place_of
from logging_service.spool_queue import open_spool_queue

PLACE = "host:/spool/queue-fallback-0.sqlite"
NOTHING = Appended(0, 0, 0, 0)


def some(number: int) -> list[bytes]:
    return [an_event(payload={"n": n}) for n in range(number)]


def rest(file: Path) -> None:
    """Let a file look as if nobody had written to it for a minute."""
    past = time.time() - 60
    for part in (file, file.with_name(f"{file.name}-wal")):
        if part.exists():
            os.utime(part, (past, past))


def slot(folder: Path, number: int) -> Path:
    return folder / f"queue-fallback-{number}.sqlite"


class Producer:
    """A producer process with a spool of its own."""

    def __init__(self, queue: FailoverQueue, spool: EventQueue, books: PostgresBooks) -> None:
        self.queue = queue
        self.spool = spool
        self.keeper = Bookkeeper(queue, books)

    async def note(self) -> None:
        """Note what there is to note, with or without Redis."""
        await self.keeper.note()

    async def drain(self) -> None:
        while await self.queue.drain_next(self.spool):
            pass


class Deployment:
    """Redis behind a relay, a store and the books; hosts are folders."""

    def __init__(
        self, redis: RedisQueue, relay: Relay, store: PostgresStore, books: PostgresBooks
    ) -> None:
        self.redis = redis
        self.relay = relay
        self.store = store
        self.books = books

    @asynccontextmanager
    async def producer(self, folder: Path) -> AsyncIterator[Producer]:
        spools = FallbackSpools(folder / "queue.sqlite", MAX_BYTES)
        async with AsyncExitStack() as stack:
            spool = await spools.claim(stack)
            queue = FailoverQueue(self.redis, spools, spool, drain_per_second=1_000_000)
            yield Producer(queue, spool, self.books)

    async def spooled(self, producer: Producer, events: int) -> None:
        """Let events be acknowledged while Redis is away, and be noted."""
        await self.relay.cut()
        assert await producer.queue.put(some(events)) == "spooled"
        await producer.note()
        await self.relay.mend()

    async def left(self, folder: Path, events: int) -> None:
        """Let a producer die with events in its spool."""
        async with self.producer(folder) as producer:
            await self.spooled(producer, events)

    async def consume(self) -> None:
        while delivery := await self.redis.take(100, 0):
            await self.commit(delivery)
            await self.redis.done(delivery)

    async def commit(self, delivery: Delivery) -> None:
        await self.store.append(sort_events(delivery, 3600, wire.now_micros()))

    async def told(self) -> dict[str, int]:
        """Return the terms that are not 0, as told by a host that sees nobody's files."""
        balance = await read_balance(self.redis, self.books)
        assert balance.exact
        terms = {term: events for term in TERMS if (events := getattr(balance, term))}
        lost = ("removed_outside", "reappeared", "rolled_back")
        assert balance.balanced == (not any(terms.get(term) for term in lost))
        came = sum(terms.pop(term, 0) for term in ("accepted", "reappeared"))
        assert came == sum(terms.values()) - terms.get("rolled_back", 0)
        return {"accepted": came, **terms} if came else terms


@pytest.fixture
async def books(database_url: str) -> AsyncIterator[PostgresBooks]:
    async with open_postgres_books(database_url, connections=2) as opened:
        yield opened


@pytest.fixture
async def at(redis_url: str, database_url: str, books: PostgresBooks) -> AsyncIterator[Deployment]:
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        relay, through = await enter(before(redis_url))
        redis = await enter(
            open_redis_queue(through, name="log_queue", ttl_seconds=3600, timeout_ms=1000)
        )
        store = await enter(open_postgres_store(database_url, connections=2))
        yield Deployment(redis, relay, store, books)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


class TestDraining:
    async def test_it_closes_at_every_step_of_an_outage(self, at: Deployment, folder: Path) -> None:
        async with at.producer(folder) as producer:
            await producer.queue.put(some(2))
            await at.spooled(producer, 5)
            assert await at.told() == {"accepted": 7, "waiting": 7}
            await producer.drain()
            await producer.note()
            assert await at.told() == {"accepted": 7, "waiting": 7}
            await at.consume()
            assert await at.told() == {"accepted": 7, "stored": 7}
            await at.spooled(producer, 4)
            assert await at.told() == {"accepted": 11, "stored": 7, "waiting": 4}
            await producer.drain()
            await at.consume()
            await producer.note()
            assert await at.told() == {"accepted": 11, "stored": 11}

    async def test_a_drain_that_nobody_has_noted_looks_like_no_loss(
        self, at: Deployment, folder: Path
    ) -> None:
        async with at.producer(folder) as producer:
            await at.spooled(producer, 5)
            await producer.drain()
            # Too much on both sides, for the second until it is noted.
            assert await at.told() == {"accepted": 10, "waiting": 10}

    async def test_what_a_spool_gave_is_asked_of_redis_and_not_of_the_notes(
        self, at: Deployment, folder: Path
    ) -> None:
        async with at.producer(folder) as producer:
            await at.spooled(producer, 5)
            await producer.drain()
            await at.books.note_reserves(producer.queue.reserves)
            assert await at.told() == {"accepted": 5, "waiting": 5}

    async def test_a_kill_between_push_and_done_counts_nothing_twice(
        self, at: Deployment, folder: Path
    ) -> None:
        async with at.producer(folder) as producer:
            await at.spooled(producer, 5)
            delivery = await producer.spool.take(3, 0)
            assert delivery is not None
            await at.redis.put_once(delivery)
            await producer.note()
            assert (await at.told()).keys() == {"accepted", "waiting"}
        async with at.producer(folder) as again:
            await again.drain()
            await again.note()
            assert await at.told() == {"accepted": 5, "waiting": 5}
            await at.consume()
            assert await at.told() == {"accepted": 5, "stored": 5}

    async def test_what_was_put_in_the_second_before_a_kill_had_been_accepted(
        self, at: Deployment, folder: Path
    ) -> None:
        async with at.producer(folder) as producer:
            await at.spooled(producer, 2)
            await at.relay.cut()
            await producer.queue.put(some(3))
        await at.relay.mend()
        async with at.producer(folder) as again:
            await again.drain()
            await at.consume()
            await again.note()
        assert await at.told() == {"accepted": 5, "stored": 5}

    async def test_an_emptied_redis_is_told_from_a_lost_spool(
        self, at: Deployment, folder: Path, redis: Redis
    ) -> None:
        async with at.producer(folder) as producer:
            await at.spooled(producer, 5)
            await producer.drain()
            await redis.flushdb()
            await at.spooled(producer, 3)
            await producer.drain()
            await producer.note()
            assert await at.told() == {"accepted": 8, "waiting": 3, "removed_outside": 5}
            await at.consume()
            assert await at.told() == {"accepted": 8, "stored": 3, "removed_outside": 5}

    async def test_what_redis_forgot_of_a_drain_was_rolled_back_there(
        self, at: Deployment, folder: Path, redis: Redis
    ) -> None:
        async with at.producer(folder) as producer:
            await at.spooled(producer, 5)
            await producer.drain()
            await producer.note()
            # As it was after two of them.
            (epoch,) = {tally.epoch for tally in await producer.spool.tallies()}
            await redis.ltrim("log_queue", 0, 1)
            await redis.hset("{log_queue}:ledger", mapping={"accepted": "2", str(epoch): "2"})
            await producer.note()
            await at.spooled(producer, 4)
            await producer.drain()
            await producer.note()
            assert await at.told() == {
                "accepted": 9,
                "waiting": 6,
                "removed_outside": 3,
                "rolled_back": 3,
            }

    async def test_a_queue_in_a_file_that_redis_replaces_closes_and_so_it_does_when_it_is_back(
        self, at: Deployment, folder: Path
    ) -> None:
        file = folder / "queue.sqlite"
        local = open_spool_queue(file, max_bytes=MAX_BYTES, exclusive=False)
        async with local as queue:
            await queue.put(some(10))
            assert await Bookkeeper(queue, at.books).note()
            delivery = await queue.take(4, 0)
            assert delivery is not None
            await at.commit(delivery)
            await queue.done(delivery)
        rest(file)
        async with at.producer(folder) as producer:
            await producer.note()
            assert await at.told() == {"accepted": 10, "stored": 4, "waiting": 6}
            async with AsyncExitStack() as stack:
                orphan = await FallbackSpools(file, MAX_BYTES).own(file, stack)
                assert orphan is not None
                while await producer.queue.drain_next(orphan):
                    pass
            rest(file)
            await at.consume()
            await producer.note()
            assert await at.told() == {"accepted": 10, "stored": 10}
        async with open_spool_queue(file, max_bytes=MAX_BYTES, exclusive=False) as queue:
            await queue.put(some(2))
            balance = await read_balance(queue, at.books)
            assert (balance.accepted, balance.waiting, balance.balanced) == (12, 2, True)

    async def test_what_a_dead_producer_left_is_noted_by_another_one(
        self, at: Deployment, folder: Path
    ) -> None:
        file = slot(folder, 7)
        async with open_spool_queue(file, max_bytes=MAX_BYTES, exclusive=True) as spool:
            await spool.put(some(5))
        async with at.producer(folder) as producer:
            await producer.note()
            assert await at.told() == {}
            rest(file)
            await producer.note()
            assert await at.told() == {"accepted": 5, "waiting": 5}

    async def test_damaged_events_of_a_spool_stay_damaged_ones(
        self, at: Deployment, folder: Path
    ) -> None:
        async with at.producer(folder) as producer:
            await at.spooled(producer, 5)
        file = slot(folder, 0)
        whole = file.read_bytes()
        place = whole.index(b'"n"')
        file.write_bytes(whole[:place] + b"X" + whole[place + 1 :])
        async with at.producer(folder) as producer:
            await producer.drain()
            await at.consume()
            await producer.note()
            assert await at.told() == {"accepted": 5, "stored": 4, "damaged": 1}


def lose_file(folder: Path) -> None:
    for part in folder.glob("queue-fallback-0.sqlite*"):
        part.unlink()


def lose_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def spoil(folder: Path) -> None:
    with slot(folder, 0).open("r+b") as opened:
        opened.write(bytes(100))


class TestLosses:
    @pytest.mark.parametrize("lose", [lose_file, lose_folder, spoil])
    async def test_a_spool_that_is_gone_shows_what_it_held(
        self, at: Deployment, folder: Path, lose: Callable[[Path], None]
    ) -> None:
        await at.left(folder, 5)
        assert await at.told() == {"accepted": 5, "waiting": 5}
        lose(folder)
        async with at.producer(folder) as producer:
            await producer.note()
            assert await at.told() == {"accepted": 5, "removed_outside": 5}
            await at.spooled(producer, 2)
            assert await at.told() == {"accepted": 7, "waiting": 2, "removed_outside": 5}
            await producer.drain()
            await at.consume()
            await producer.note()
            assert await at.told() == {"accepted": 7, "stored": 2, "removed_outside": 5}

    async def test_a_spool_that_is_lost_under_its_producer_shows_what_it_held(
        self, at: Deployment, folder: Path
    ) -> None:
        async with at.producer(folder) as producer:
            await at.spooled(producer, 5)
            lose_file(folder)
            await at.spooled(producer, 2)
            assert await at.told() == {"accepted": 7, "waiting": 2, "removed_outside": 5}

    async def test_only_what_was_not_drained_yet_was_lost(
        self, at: Deployment, folder: Path
    ) -> None:
        async with at.producer(folder) as producer:
            await at.spooled(producer, 5)
            delivery = await producer.spool.take(2, 0)
            assert delivery is not None
            await at.redis.put_once(delivery)
            lose_file(folder)
            await producer.note()
        assert await at.told() == {"accepted": 5, "waiting": 2, "removed_outside": 3}

    async def test_a_file_that_nobody_owned_is_missed_by_who_lives_beside_it(
        self, at: Deployment, folder: Path
    ) -> None:
        file = slot(folder, 7)
        async with open_spool_queue(file, max_bytes=MAX_BYTES, exclusive=True) as spool:
            await spool.put(some(5))
        rest(file)
        async with at.producer(folder) as producer:
            await producer.note()
            assert await at.told() == {"accepted": 5, "waiting": 5}
            file.unlink()
            await producer.note()
            assert await at.told() == {"accepted": 5, "removed_outside": 5}

    async def test_who_owns_no_spool_misses_no_file(self, at: Deployment, folder: Path) -> None:
        await at.left(folder, 5)
        folder.rename(folder.with_name("elsewhere"))
        onlooker = FailoverQueue(at.redis, FallbackSpools(folder / "queue.sqlite", MAX_BYTES))
        assert await Bookkeeper(onlooker, at.books).note()
        assert await at.told() == {"accepted": 5, "waiting": 5}

    async def test_a_file_that_cannot_be_read_now_is_not_missed(
        self, at: Deployment, folder: Path
    ) -> None:
        file = slot(folder, 7)
        async with open_spool_queue(file, max_bytes=MAX_BYTES, exclusive=True) as spool:
            await spool.put(some(5))
        rest(file)
        async with at.producer(folder) as producer:
            await producer.note()
            file.write_bytes(bytes(100) + file.read_bytes()[100:])
            rest(file)
            await producer.note()
            assert await at.told() == {"accepted": 5, "waiting": 5}

    async def test_two_hosts_that_do_not_see_each_other_close_together(
        self, at: Deployment, folder: Path
    ) -> None:
        async with (
            at.producer(folder) as here,
            at.producer(folder.with_name("there")) as there,
        ):
            await at.spooled(here, 5)
            await at.spooled(there, 3)
            await there.drain()
            for producer in (there, here, there):
                await producer.note()
                assert await at.told() == {"accepted": 8, "waiting": 8}
            await here.drain()
            await at.consume()
            await here.note()
            assert await at.told() == {"accepted": 8, "stored": 8}

    async def test_without_redis_the_spools_are_noted_all_the_same(
        self, at: Deployment, folder: Path, database: asyncpg.Connection
    ) -> None:
        async with at.producer(folder) as producer:
            await at.relay.cut()
            await producer.queue.put(some(5))
            assert not await producer.keeper.note()
            row = await database.fetchrow("SELECT accepted, held, damaged, place FROM epochs")
            assert row == (5, 5, 0, place_of(slot(folder, 0)))
            balance = await read_balance(producer.queue, at.books)
            assert (balance.accepted, balance.removed_outside) == (5, None)

    async def test_its_keeper_goes_on_noting_a_spool_while_redis_is_away(
        self, at: Deployment, folder: Path, database: asyncpg.Connection
    ) -> None:
        async with at.producer(folder) as producer:
            keeping = asyncio.create_task(producer.keeper.run())
            await at.relay.cut()
            async with asyncio.timeout(20):
                for held in (2, 4):
                    await producer.queue.put(some(2))
                    while await database.fetchval("SELECT held FROM epochs") != held:
                        await asyncio.sleep(0.05)
            keeping.cancel()
            await asyncio.wait({keeping})

    async def test_a_spool_that_never_held_anything_leaves_no_note(
        self, at: Deployment, folder: Path, database: asyncpg.Connection
    ) -> None:
        async with at.producer(folder) as producer:
            await producer.note()
        assert await database.fetchval("SELECT count(*) FROM epochs") == 0


@pytest.fixture
def salvaging(project: Project, database_url: str, redis_url: str) -> Callable[..., str]:
    def run(file: Path, **more: str) -> str:
        servers = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
        done = project.run(f"spool salvage {file}", **{**servers, **more})
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


class TestSalvage:
    async def test_what_is_salvaged_is_removed_no_more(
        self, at: Deployment, folder: Path, salvaging: Callable[..., str]
    ) -> None:
        await at.left(folder, 5)
        spoil(folder)
        async with at.producer(folder) as producer:
            await producer.note()
            assert await at.told() == {"accepted": 5, "removed_outside": 5}
            await at.spooled(producer, 2)
            (aside,) = set_aside(slot(folder, 0))
            assert "recovered 5 events" in await asyncio.to_thread(salvaging, aside)
            assert await at.told() == {"accepted": 7, "waiting": 7}
            await producer.drain()
            await at.consume()
            await producer.note()
            assert await at.told() == {"accepted": 7, "stored": 7}

    async def test_an_orphan_that_is_salvaged_is_counted_once(
        self, at: Deployment, folder: Path, salvaging: Callable[..., str]
    ) -> None:
        await at.left(folder, 5)
        await asyncio.to_thread(salvaging, slot(folder, 0))
        assert await at.told() == {"accepted": 5, "waiting": 5}
        async with at.producer(folder) as producer:
            await producer.note()
        assert await at.told() == {"accepted": 5, "waiting": 5}

    async def test_a_file_that_was_carried_elsewhere_is_known_by_its_epoch(
        self, at: Deployment, folder: Path, salvaging: Callable[..., str]
    ) -> None:
        await at.left(folder, 5)
        carried = shutil.move(slot(folder, 0), folder.with_name("carried.sqlite"))
        async with at.producer(folder) as producer:
            await producer.note()
        assert await at.told() == {"accepted": 5, "removed_outside": 5}
        await asyncio.to_thread(salvaging, carried)
        assert await at.told() == {"accepted": 5, "waiting": 5}

    async def test_what_came_through_before_is_accepted_again_as_duplicates(
        self, at: Deployment, folder: Path, salvaging: Callable[..., str]
    ) -> None:
        async with at.producer(folder) as producer:
            await at.spooled(producer, 5)
            delivery = await producer.spool.take(2, 0)
            assert delivery is not None
            await at.redis.put_once(delivery)
            await producer.note()
        await asyncio.to_thread(salvaging, slot(folder, 0))
        await at.consume()
        assert await at.told() == {"accepted": 7, "stored": 5, "duplicates": 2}

    async def test_without_the_database_it_goes_on_and_says_what_the_balance_will_show(
        self,
        at: Deployment,
        folder: Path,
        salvaging: Callable[..., str],
        free_port: int,
    ) -> None:
        await at.left(folder, 5)
        spoil(folder)
        async with at.producer(folder) as producer:
            await producer.note()
        (aside,) = set_aside(slot(folder, 0))
        away = f"postgresql://nobody@127.0.0.1:{free_port}/none"
        said = await asyncio.to_thread(salvaging, aside, DATABASE_URL=away)
        assert "recovered 5 events" in said
        assert "removed_outside" in said
        await at.consume()
        assert await at.told() == {"accepted": 10, "stored": 5, "removed_outside": 5}
        (renamed,) = folder.glob("*.salvaged-*Z")
        await asyncio.to_thread(salvaging, renamed)
        await at.consume()
        assert await at.told() == {"accepted": 10, "stored": 5, "duplicates": 5}

    async def test_a_local_queue_that_is_salvaged_closes(
        self, at: Deployment, project: Project, salvaging: Callable[..., str]
    ) -> None:
        file = project.data_dir / "spool" / "queue.sqlite"
        with a_spool(file, exclusive=False) as spool:
            put(spool, some(5))
        async with open_spool_queue(file, max_bytes=MAX_BYTES, exclusive=False) as queue:
            assert await Bookkeeper(queue, at.books).note()
        file.write_bytes(bytes(100) + file.read_bytes()[100:])
        async with open_spool_queue(file, max_bytes=MAX_BYTES, exclusive=False) as queue:
            await queue.put(some(2))
            balance = await read_balance(queue, at.books)
            assert (balance.accepted, balance.removed_outside) == (7, 5)
            (aside,) = set_aside(file)
            await asyncio.to_thread(salvaging, aside, USE_REDIS_QUEUE="false")
            balance = await read_balance(queue, at.books)
            assert (balance.accepted, balance.waiting, balance.balanced) == (7, 7, True)


def telling(*entries: Reserve) -> Callable[[], "asyncio.Future[list[Reserve]]"]:
    def read() -> "asyncio.Future[list[Reserve]]":
        told: asyncio.Future[list[Reserve]] = asyncio.get_running_loop().create_future()
        told.set_result(list(entries))
        return told

    return read


async def account_of(books: PostgresBooks, epoch: UUID) -> Account:
    return {account.epoch: account for account in await books.accounts()}[epoch]


class TestBooks:
    async def test_the_last_word_on_a_file_counts_and_older_epochs_of_its_place_hold_nothing(
        self, books: PostgresBooks
    ) -> None:
        first, second, other = (uuid4() for _ in range(3))
        await books.note_reserves(telling(Reserve(first, 9, 9, 0, PLACE)))
        await books.note_reserves(telling(Reserve(first, 9, 4, 1, PLACE)))
        await books.note_reserves(telling(Reserve(other, 3, 3, 0, "another:/place")))
        assert await account_of(books, first) == Account(first, 9, 0, NOTHING, 0, 4, 1)
        await books.note_reserves(
            telling(Reserve(first, 10, 0, 0, PLACE), Reserve(second, 0, 0, 0, PLACE))
        )
        ended = await account_of(books, first)
        assert (ended.accepted, ended.held, ended.damaged, ended.missing) == (10, 0, 1, 9)
        assert (await account_of(books, other)).held == 3

    async def test_a_place_without_a_file_holds_nothing(self, books: PostgresBooks) -> None:
        epoch = uuid4()
        await books.note_reserves(telling(Reserve(epoch, 9, 9, 0, PLACE)))
        await books.note_reserves(telling(Reserve(NO_EPOCH, 0, 0, 0, "another:/place")))
        assert (await account_of(books, epoch)).held == 9
        await books.note_reserves(telling(Reserve(NO_EPOCH, 0, 0, 0, PLACE)))
        assert (await account_of(books, epoch)).held == 0

    async def test_a_file_that_was_carried_to_another_place_goes_on_there(
        self, books: PostgresBooks
    ) -> None:
        epoch = uuid4()
        await books.note_reserves(telling(Reserve(epoch, 9, 9, 0, PLACE)))
        await books.note_reserves(telling(Reserve(epoch, 9, 9, 0, "another:/place")))
        await books.note_reserves(telling(Reserve(NO_EPOCH, 0, 0, 0, PLACE)))
        assert (await account_of(books, epoch)).held == 9

    async def test_a_file_that_lost_its_last_writes_was_rolled_back(
        self, books: PostgresBooks
    ) -> None:
        epoch = uuid4()
        await books.note_reserves(telling(Reserve(epoch, 9, 9, 0, PLACE)))
        await books.note_reserves(telling(Reserve(epoch, 7, 7, 0, PLACE)))
        account = await account_of(books, epoch)
        assert (account.accepted, account.rolled_back, account.missing) == (7, 2, 2)

    async def test_moves_are_kept_by_the_epoch_that_took_them(self, books: PostgresBooks) -> None:
        spool, first, second = (uuid4() for _ in range(3))

        async def note(*tallies: Tally) -> tuple[Moved, ...]:
            async def read() -> list[Tally]:
                return list(tallies)

            await books.note(read)
            return (await account_of(books, spool)).moves

        def a_tally(epoch: UUID, events: int) -> Tally:
            return Tally(epoch, events, (Move(spool, events),))

        await books.note_reserves(telling(Reserve(spool, 50, 50, 0, PLACE)))
        assert await note(a_tally(first, 5)) == (Moved(first, 5),)
        assert await note(a_tally(first, 3)) == (Moved(first, 3, 2),)
        remembered = a_tally(first, 9)
        assert await note(remembered, a_tally(first, 4)) == (Moved(first, 4, 5),)
        # It does not count this origin any more, and then it does so from 0 on.
        assert await note(Tally(first, 9)) == (Moved(first, 0, 9),)
        assert await note(a_tally(first, 2)) == (Moved(first, 2, 9),)
        moves = await note(a_tally(first, 11), a_tally(second, 7))
        assert sorted(moves, key=lambda move: move.events) == [Moved(first, 2, 9), Moved(second, 7)]
        assert (await account_of(books, spool)).moved == 18

    async def test_a_salvage_is_credited_with_what_is_missing_and_no_more(
        self, books: PostgresBooks
    ) -> None:
        first, second, present = (uuid4() for _ in range(3))
        for epoch in (first, second, present):
            await books.note_reserves(telling(Reserve(epoch, 5, 5, 0, PLACE)))
        assert await books.credit(Wreck(first, PLACE, present), 3) == 3
        assert await books.credit(Wreck(first, PLACE, present), 3) == 2
        assert await books.credit(Wreck(first, PLACE, present), 3) == 0
        assert await books.credit(Wreck(uuid4(), PLACE, present), 3) == 0
        # Nobody can read its epoch: it is one of those that were at this place.
        assert await books.credit(Wreck(NO_EPOCH, PLACE, present), 100) == 5
        assert (await account_of(books, second)).missing == 0
        assert (await account_of(books, present)).held == 5
        assert await books.credit(Wreck(NO_EPOCH, "another:/place", NO_EPOCH), 100) == 0

    async def test_a_question_that_is_not_answered_soon_holds_nobody_up(
        self, books: PostgresBooks
    ) -> None:
        async def never() -> list[Reserve]:
            await asyncio.sleep(60)
            return []

        async with asyncio.timeout(5):
            with pytest.raises(BackendUnavailable):
                await books.note_reserves(never)
            with pytest.raises(BackendUnavailable):
                await books.note(never)  # type: ignore[arg-type]


class TestFolders:
    async def test_files_that_are_written_to_are_left_to_their_owners(self, folder: Path) -> None:
        spools = FallbackSpools(folder / "queue.sqlite", MAX_BYTES)
        assert await spools.reserves() == []
        async with open_spool_queue(slot(folder, 3), max_bytes=MAX_BYTES, exclusive=True) as spool:
            await spool.put(some(2))
            assert await spools.reserves() == []
            rest(slot(folder, 3))
            (reserve,) = await spools.reserves()
            assert (reserve.accepted, reserve.held) == (2, 2)
            assert reserve.place == place_of(slot(folder, 3))
            await spool.put(some(1))
            assert await spools.reserves() == []
            rest(slot(folder, 3))
            assert [reserve.held for reserve in await spools.reserves()] == [3]

    async def test_a_file_that_has_not_changed_is_not_opened_again(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spools = FallbackSpools(folder / "queue.sqlite", MAX_BYTES)
        async with open_spool_queue(slot(folder, 3), max_bytes=MAX_BYTES, exclusive=True) as spool:
            await spool.put(some(2))
        rest(slot(folder, 3))
        first = await spools.reserves()
        monkeypatch.setattr("logging_service.fallback_spools.peek", None)
        assert await spools.reserves() == first


class TestRedisThatHangs:
    async def test_the_balance_and_its_gauges_are_what_the_books_tell(
        self, settings: Settings, at: Deployment, redis_url: str, folder: Path
    ) -> None:
        async with at.producer(folder) as producer:
            await producer.queue.put(some(3))
            await producer.keeper.note()
        async with before(redis_url) as (relay, through):
            changed = settings.model_copy(update={"redis_url": through})
            async with served(create_app(changed)) as url:
                assert (await ask(f"{url}/balance")).json()["waiting"] == 3
                relay.is_half_open = True
                metrics = (await ask(f"{url}/metrics")).text
                assert 'balance_events{term="accepted"} 3.0' in metrics
                assert 'term="waiting"' not in metrics
                answer = await ask(f"{url}/balance")
                assert answer.status_code == 200
                assert (answer.json()["accepted"], answer.json()["waiting"]) == (3, None)
