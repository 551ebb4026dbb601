"""The ledger and the roll-ups equal what `log_events` says, whatever happened to the events."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from consuming import consuming, count, log_queue, until
from events_made import a_delivery, an_event, unchecked
from oracle import (
    CALL_SUMS,
    KEYS,
    Rate,
    assert_days_are_sums,
    assert_ledger,
    prices_of,
    standing,
)

from logging_service import delivering, metrics, postgres_ledger, wire
from logging_service.delivering import sort_events
from logging_service.errors import BackendUnavailable, TooManyDead
from logging_service.ports import DeadLetter, Delivery, Outcome, Sorted
from logging_service.postgres_store import PostgresStore, open_postgres_store
from logging_service.pricing import Prices
from logging_service.rollups import LLM, ROLL_UPS, USER, Totals
from logging_service.sketches import hash_of, unpack
from logging_service.trials import Trials

RATES = {
    "zz-cheap": Rate(Decimal("0.15"), Decimal("0.6"), cache_read=Decimal("0.0753")),
    "zz-dear": Rate(Decimal("999.999"), Decimal(10_000), reasoning=Decimal("12345.678901")),
    "zz-dearest": Rate(Decimal("0.9"), Decimal("0.1")),
}
MICROSECOND = timedelta(microseconds=1)
DAYS = [datetime(*day, tzinfo=UTC) for day in (
    (2021, 12, 31), (2022, 1, 1), (2024, 2, 29), (2024, 3, 1), (2026, 10, 31), (2026, 11, 1),
)]  # fmt: skip
TIMES = [
    timedelta(),
    timedelta(minutes=15) - MICROSECOND,
    timedelta(minutes=15),
    timedelta(hours=11, minutes=52, seconds=7),
    timedelta(days=1) - MICROSECOND,
]
TABLES = ("log_events", "event_facts", "llm_calls", "review_facts", "usage_deltas", "user_deltas",
          "llm_deltas")  # fmt: skip


@pytest.fixture
def prices(tmp_path: Path) -> Prices:
    return prices_of(RATES, tmp_path)


@pytest.fixture
async def store(services_url: str, prices: Prices) -> AsyncIterator[PostgresStore]:
    async with open_postgres_store(services_url, connections=4, prices=prices) as opened:
        yield opened


def a_moment(dice: random.Random) -> datetime:
    return dice.choice(DAYS) + dice.choice(TIMES)


def a_call(moment: datetime, **payload: Any) -> bytes:
    told = {"model": "zz-cheap", "provider": "acme", "input_tokens": 1_000, **payload}
    return unchecked(json.dumps(told).encode(), "llm_query_sent", "s", timestamp=moment)


def any_event(dice: random.Random, moment: datetime | None = None) -> bytes:
    """An event of whatever kind, with whatever counts in it."""
    tokens = dice.randrange(1, 100_000)
    told = {
        "user_id": dice.choice(["ada", "bob\t\\.", 7, None, "", "é" * 250, {"no": "user"}]),
        "duration_ms": dice.choice([0, 0.001, 17, dice.randrange(10**6), 10**12, -1, None]),
        "success": dice.choice([True, False, None]),
        "error": dice.choice([None, None, "", "timeout"]),
        "model": dice.choice([*RATES, "zz-nobody's\n", None]),
        "provider": dice.choice(["acme", None]),
        "input_tokens": dice.choice([tokens, tokens, 10**12, None]),
        "cached_tokens": dice.choice([0, 1, None]),
        "output_tokens": dice.choice([dice.randrange(3_000), None]),
        "reasoning_tokens": dice.choice([0, 0, 50, None]),
        "cost": dice.choice([None, 0.000_000_000_5, 0.1, 1_000_000, -1]),
        "counts": dice.choice([None, {"error": dice.randrange(3)}]),
    }
    if told["input_tokens"] is None:
        # Parts of what was not told are not told either.
        del told["cached_tokens"], told["reasoning_tokens"], told["output_tokens"]
        told["tokens_used"] = dice.choice([None, 5])
    return unchecked(
        json.dumps(told).encode(),
        dice.choice(
            ["llm_query_sent", "llm_query_sent", "review_completed", "error_occurred", "x"]
        ),
        dice.choice([None, "", "s1", "s2", f"s{tokens}"]),
        source=dice.choice(["tests", "tests", "others"]),
        timestamp=moment or a_moment(dice),
    )


def conflict_with(event: bytes, dice: random.Random) -> bytes:
    """Another event with the id and the time of this one."""
    made = wire.decode(event)
    return unchecked(
        b'{"user_id":"the second","input_tokens":%d}' % dice.randrange(100),
        made.event_type,
        made.session_id,
        source=made.source,
        event_id=made.event_id,
        timestamp=wire.from_micros(made.timestamp),
    )


def batch_of(delivery: Delivery) -> Sorted:
    return sort_events(delivery, 3600, 0)


async def append(store: PostgresStore, *events: bytes) -> Outcome:
    return await store.append(batch_of(a_delivery(*events)))


class NotOurs(Exception):
    """The lease was lost while its events were stored."""


def not_confirmed() -> None:
    raise NotOurs


class Life:
    """What can happen to deliveries, drawn by lot."""

    def __init__(self, store: PostgresStore, database: asyncpg.Connection, seed: int) -> None:
        self.dice = random.Random(seed)
        self.store = store
        self.database = database
        self.events = [any_event(self.dice) for _ in range(12)]
        self.deliveries: list[Delivery] = []

    async def go_on(self, steps: int) -> None:
        happenings = (
            self.comes_first, self.comes_first, self.comes_again, self.is_aborted,
            self.is_tried_one_by_one, self.has_too_many_dead, self.is_replayed, self.is_folded,
        )  # fmt: skip
        for _ in range(steps):
            await self.dice.choice(happenings)()

    def a_delivery(self) -> Delivery:
        """New events, old ones, the same twice, conflicts, and such as cannot be stored."""
        dice = self.dice
        new = [any_event(dice) for _ in range(dice.randrange(1, 12))]
        old = dice.sample(self.events, dice.randrange(4))
        conflicts = [conflict_with(event, dice) for event in dice.sample(self.events, 2)]
        bad = [unchecked(b'{"input_tokens": tru}', "llm_query_sent", timestamp=a_moment(dice))]
        few = dice.choice([[], conflicts, bad, [b"garbage"], [new[0]], [*conflicts, *bad, *new]])
        events = [*new, *old, *few]
        dice.shuffle(events)
        self.events += new
        delivery = a_delivery(*events)
        self.deliveries.append(delivery)
        return delivery

    def an_old_one(self) -> Delivery:
        if not self.deliveries:
            return self.a_delivery()
        one = self.dice.choice(self.deliveries)
        return replace(one, attempts=one.attempts + self.dice.randrange(1, 3))

    async def comes_first(self) -> None:
        await self.store.append(batch_of(self.a_delivery()))

    async def comes_again(self) -> None:
        delivery = self.an_old_one()
        if await self.store.begin_delivery(delivery, uuid4()):
            await self.store.append(batch_of(delivery))

    async def is_aborted(self) -> None:
        batch = batch_of(self.dice.choice([self.a_delivery, self.an_old_one])())
        with suppress(NotOurs):
            # A lease that was committed before does not get so far.
            assert await self.store.append(batch, None, not_confirmed) == (0, 0, 0, 0)

    async def has_too_many_dead(self) -> None:
        delivery = self.a_delivery()
        letter = DeadLetter(b"garbage", "unreadable", "format 103 is not known", 1)
        batch = batch_of(delivery)
        with pytest.raises(TooManyDead):
            await self.store.append(replace(batch, dead=[*batch.dead, letter]), 0)

    async def is_tried_one_by_one(self) -> None:
        delivery = self.dice.choice([self.a_delivery, self.an_old_one])()
        trials = Trials(self.store, delivery, batch_of)
        # Some end in the middle, and go on at another time.
        for _ in range(self.dice.choice([2, 5, 100])):
            if await trials.settle_next(10) is None:
                break

    async def is_replayed(self) -> None:
        letters = await self.database.fetch("SELECT event FROM dead_letters")
        if letters:
            await append(self.store, *(letter["event"] for letter in letters))

    async def is_folded(self) -> None:
        before = answers(await standing(self.database))
        await self.store.fold()
        assert answers(await standing(self.database)) == before


def answers(found: Any) -> dict[Any, Any]:
    """What can be read under each key."""
    columns = {"usage": ("events",), "user": ("events", *CALL_SUMS), "llm": CALL_SUMS}
    return {
        (subject, *key): (
            [one.total(name) for name in (*columns[subject], "timed", "failed", "total_us")],
            one.max_us,
            one.bins,
            [one.hashes(name) for name in ("sessions", "users") if name in dict(one.rows[0])],
        )
        for subject, rows in found.items()
        for key, one in rows.items()
    }


async def assert_folded(store: PostgresStore, database: asyncpg.Connection) -> None:
    """Assert that all is right before a fold and behind it, when nothing waits any more."""
    await assert_ledger(database, RATES)
    await store.fold()
    assert [await count(database, f"{subject}_deltas") for subject in KEYS] == [0, 0, 0]
    await assert_ledger(database, RATES)
    await assert_days_are_sums(database)


@pytest.mark.parametrize("seed", range(6))
async def test_roll_ups_equal_the_events_after_duplicates_dead_letters_and_replays(
    store: PostgresStore, database: asyncpg.Connection, seed: int
) -> None:
    life = Life(store, database, seed)
    for _ in range(3):
        await life.go_on(12)
        await assert_ledger(database, RATES)
    assert await count(database) > 30
    assert await count(database, "dead_letters") > 0
    await assert_folded(store, database)


@pytest.mark.parametrize("attempts", [1, 2])
async def test_an_aborted_delivery_leaves_nothing_and_counts_once_when_it_comes_again(
    store: PostgresStore, database: asyncpg.Connection, attempts: int
) -> None:
    dice = random.Random(attempts)
    batch = batch_of(replace(a_delivery(*(any_event(dice) for _ in range(20))), attempts=attempts))
    for _ in range(2):
        with pytest.raises(NotOurs):
            await store.append(batch, None, not_confirmed)
        assert [await count(database, table) for table in TABLES] == [0] * len(TABLES)
    assert (await store.append(batch)).stored == 20
    again = replace(batch, delivery=replace(batch.delivery, attempts=attempts + 1))
    assert await store.append(again) == (0, 0, 0, 0)
    await assert_folded(store, database)


async def test_what_a_rule_of_the_operators_stopped_counts_when_it_is_replayed(
    store: PostgresStore, database: asyncpg.Connection
) -> None:
    await database.execute(
        "ALTER TABLE log_events ADD CONSTRAINT no_bob CHECK (payload->>'user_id' <> 'bob')"
    )
    moment = DAYS[2]
    events = [a_call(moment, user_id=user, cost=1) for user in ("ada", "bob", "ada", "bob")]
    assert await append(store, *events) == (2, 0, 2, 0)
    await assert_ledger(database, RATES)
    await store.fold()
    await database.execute("ALTER TABLE log_events DROP CONSTRAINT no_bob")
    for stored, duplicates in ((2, 0), (0, 2)):
        letters = await database.fetch("SELECT event FROM dead_letters")
        replayed = [letter["event"] for letter in letters]
        assert await append(store, *replayed) == (stored, duplicates, 0, 0)
        await assert_ledger(database, RATES)
    assert await database.fetchval("SELECT sum(queries) FROM llm_calls") == 4
    await assert_folded(store, database)


class TestFolding:
    async def test_what_waits_is_moved_in_as_many_pieces_as_it_takes(
        self,
        store: PostgresStore,
        database: asyncpg.Connection,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(postgres_ledger, "_FOLDED_AT_ONCE", dict.fromkeys(ROLL_UPS, 7))
        fold_some, pieces = postgres_ledger._fold_some, []

        async def fold_some_and_tell(*them: Any) -> int:
            pieces.append(await fold_some(*them))
            return pieces[-1]

        monkeypatch.setattr(postgres_ledger, "_fold_some", fold_some_and_tell)
        dice = random.Random(5)
        for _ in range(3):
            for _ in range(4):
                await append(store, *(any_event(dice) for _ in range(15)))
            await assert_folded(store, database)
        assert max(pieces) == 7

    async def test_nothing_is_folded_while_another_has_the_right_to(
        self, store: PostgresStore, database: asyncpg.Connection
    ) -> None:
        await append(store, a_call(DAYS[0]))
        async with database.transaction():
            assert await postgres_ledger.lock_folding(database)
            await store.fold()
            assert [await count(database, f"{subject}_rollup") for subject in KEYS] == [0, 0, 0]
        await assert_folded(store, database)

    @pytest.mark.parametrize("subject", KEYS)
    @pytest.mark.parametrize("is_first", [True, False])
    async def test_a_fold_that_is_killed_in_the_middle_changes_nothing(
        self,
        store: PostgresStore,
        database: asyncpg.Connection,
        database_url: str,
        subject: str,
        is_first: bool,  # noqa: FBT001 - pytest's
    ) -> None:
        dice = random.Random(6)
        await append(store, *(any_event(dice) for _ in range(20)))
        if not is_first:
            await store.fold()
            await append(store, *(any_event(dice) for _ in range(20)))
        async with held(database_url, f"{subject}_rollup") as holder:
            folding = asyncio.create_task(store.fold())
            # It has taken the deltas, and waits for the table that they belong into.
            await until(lambda: kill_the_waiting(holder))
            with pytest.raises(BackendUnavailable):
                await folding
        assert await count(database, f"{subject}_deltas") > 0
        await assert_folded(store, database)

    async def test_folds_go_on_while_two_stores_append_and_each_other(
        self, database_url: str, prices: Prices, database: asyncpg.Connection
    ) -> None:
        dice = random.Random(7)
        over = asyncio.Event()

        async def append_all(store: PostgresStore) -> None:
            for _ in range(12):
                await append(store, *(any_event(dice) for _ in range(30)))

        async def fold_on(store: PostgresStore) -> None:
            while not over.is_set():
                await store.fold()
                await asyncio.sleep(0.01)

        async def look_on() -> None:
            while not over.is_set():
                await assert_ledger(database, RATES)

        async with two_stores(database_url, prices) as (one, other), asyncio.timeout(30):
            others = [asyncio.create_task(each) for each in (fold_on(one), fold_on(other))]
            looking = asyncio.create_task(look_on())
            # Days are made on the way; nobody may fail, or wait for the other for good.
            await asyncio.gather(*(append_all(store) for store in (one, other, one, other)))
            over.set()
            await asyncio.gather(*others, looking)
            assert await count(database) == 4 * 12 * 30
            assert await count(database, "usage_rollup") > 0
            await assert_folded(one, database)

    async def test_two_stores_with_the_same_events_count_each_once(
        self, database_url: str, prices: Prices, database: asyncpg.Connection
    ) -> None:
        dice = random.Random(8)
        events = [any_event(dice) for _ in range(60)]

        async def append_shuffled(store: PostgresStore, seed: int) -> None:
            lots = random.Random(seed)
            for _ in range(6):
                batch = batch_of(a_delivery(*lots.sample(events, 30)))
                while True:
                    try:
                        await store.append(batch)
                        break
                    except BackendUnavailable:
                        # The server may end one of two that insert the same in turn.
                        batch = replace(batch, delivery=replace(batch.delivery, attempts=2))
                await store.fold()

        async with two_stores(database_url, prices) as (one, other), asyncio.timeout(30):
            stores = (one, other, one, other)
            await asyncio.gather(
                *(append_shuffled(*each) for each in zip(stores, range(4), strict=True))
            )
            await append(one, *events)
            assert await count(database) == 60
            await assert_folded(other, database)


@asynccontextmanager
async def two_stores(
    url: str, prices: Prices
) -> AsyncIterator[tuple[PostgresStore, PostgresStore]]:
    async with (
        open_postgres_store(url, connections=3, prices=prices) as one,
        open_postgres_store(url, connections=3, prices=prices) as other,
    ):
        yield one, other


@asynccontextmanager
async def held(url: str, table: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection that lets nobody else at a table."""
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            yield connection
    finally:
        await connection.close()


async def kill_the_waiting(database: asyncpg.Connection) -> int:
    """End the sessions that wait for this one; returns how many there were."""
    killed: int = await database.fetchval(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid))"
    )
    return killed


class TestDays:
    async def test_events_of_any_day_find_their_partitions_and_their_buckets(
        self, store: PostgresStore, database: asyncpg.Connection
    ) -> None:
        dice = random.Random(9)
        events = [any_event(dice, day + moment) for day in DAYS for moment in TIMES]
        assert (await append(store, *events)).stored == len(events)
        assert await partitions(database, "log_events") == len(DAYS)
        assert await partitions(database, "event_facts") == len(DAYS)
        assert await partitions(database, "llm_calls") == 6
        await assert_folded(store, database)
        buckets = await database.fetch("SELECT DISTINCT bucket FROM usage_rollup WHERE span = 15")
        assert len(buckets) == len(DAYS) * 4
        assert await thinned(database) == set()

    async def test_a_delivery_may_need_more_days_than_are_made_at_once(
        self, store: PostgresStore, database: asyncpg.Connection
    ) -> None:
        events = [a_call(DAYS[1] + timedelta(days=number)) for number in range(40)]
        assert (await append(store, *events)).stored == 40
        assert await partitions(database, "log_events") == 40
        await assert_folded(store, database)

    async def test_days_that_a_partition_of_the_operators_covers_are_stored_there(
        self, store: PostgresStore, database: asyncpg.Connection
    ) -> None:
        await database.execute(
            "CREATE TABLE spring PARTITION OF log_events"
            " FOR VALUES FROM ('2024-02-01 00:00+00') TO ('2024-05-01 00:00+00')"
        )
        assert (await append(store, *map(a_call, DAYS[2:5]))).stored == 3
        assert await count(database, "spring") == 2
        assert await partitions(database, "log_events") == 2
        await assert_folded(store, database)

    @pytest.mark.parametrize("table", ["event_facts_p20240229", "llm_calls_p202402"])
    async def test_a_partition_that_is_gone_is_made_again(
        self, store: PostgresStore, database: asyncpg.Connection, table: str
    ) -> None:
        await append(store, a_call(DAYS[2]))
        await database.execute(f"DROP TABLE {table}")
        assert (await append(store, a_call(DAYS[2]))).stored == 1
        assert await count(database, table) == 1
        assert await thinned(database) == set()

    @pytest.mark.parametrize("is_folded", [True, False])
    async def test_a_day_that_lost_its_events_is_thinned_once_it_has_others(
        self,
        store: PostgresStore,
        database: asyncpg.Connection,
        is_folded: bool,  # noqa: FBT001 - pytest's
    ) -> None:
        await append(store, *(a_call(day) for day in DAYS))
        if is_folded:
            await store.fold()
        for parent in ("log_events", "event_facts"):
            await database.execute(f"DROP TABLE {parent}_p20240229")
        assert await thinned(database) == set()
        late = DAYS[2] + TIMES[-1]
        await append(store, a_call(late))
        await append(store, a_call(DAYS[2] - timedelta(days=1)))
        await store.prepare()
        assert await thinned(database) == {DAYS[2].date()}
        await store.fold()
        assert await database.fetchval(
            "SELECT queries FROM llm_rollup WHERE span = 1440 AND bucket = $1", DAYS[2]
        ) == 2  # fmt: skip

    @pytest.mark.parametrize("attempts", [1, 2])
    async def test_calls_and_reviews_that_come_again_after_their_day_was_removed_count_once(
        self, store: PostgresStore, database: asyncpg.Connection, attempts: int
    ) -> None:
        day = DAYS[2]
        call = a_call(day, duration_ms=5)
        review = unchecked(b'{"counts":{"error":1}}', "review_completed", "s", timestamp=day)
        await append(store, call, review)
        await store.fold()
        before = answers(await standing(database))
        for parent in ("log_events", "event_facts"):
            await database.execute(f"DROP TABLE {parent}_p20240229")
        # Whatever an operator calls it.
        await database.execute("ALTER TABLE llm_calls_p202402 RENAME TO february")
        again = a_delivery(call, conflict_with(review, random.Random(1)), a_call(day), call)
        batch = batch_of(replace(again, attempts=attempts))
        outcome = await store.append(batch)
        assert outcome == (3, 1, 0, 0)
        assert told(outcome) == {"zz-cheap": (1, 0, 150_000)}
        assert await count(database, "event_facts") == 3
        assert await count(database, "llm_calls") == 2
        assert await database.fetchval("SELECT errors FROM review_facts") == 1
        key = ("llm", 1440, day, "tests", "acme", "zz-cheap")
        assert before[key][0][0] == 1
        assert answers(await standing(database))[key][0][0] == 2
        await store.fold()
        await assert_days_are_sums(database)

    async def test_a_day_that_was_made_but_never_had_events_is_not_thinned(
        self, store: PostgresStore, database: asyncpg.Connection
    ) -> None:
        await store.prepare()
        await append(store, any_event(random.Random(1), DAYS[3]))
        await database.execute("DROP TABLE log_events_p20240301, event_facts_p20240301")
        today = datetime.now(UTC).date()
        await database.execute(f"DROP TABLE log_events_p{today:%Y%m%d}")
        await append(store, an_event())
        assert await thinned(database) == set()


async def partitions(database: asyncpg.Connection, parent: str) -> int:
    return await count(database, f"pg_inherits WHERE inhparent = '{parent}'::regclass")


async def thinned(database: asyncpg.Connection) -> set[date]:
    return {row["day"] for row in await database.fetch("SELECT day FROM thinned_days")}


class TestExtremes:
    async def test_sums_beyond_64_bits_are_exact(
        self, store: PostgresStore, database: asyncpg.Connection
    ) -> None:
        # Ten thousand calls, of a million dollars and thirty years each.
        most = {"input_tokens": 10**12, "output_tokens": 10**12, "duration_ms": 10**12}
        told = json.dumps(
            {"model": "zz-dearest", "user_id": "ada", "cost": 1_000_000, "error": "x"} | most
        ).encode()
        for _ in range(2):
            events = [
                unchecked(told, "llm_query_sent", "s", timestamp=DAYS[0]) for _ in range(5_000)
            ]
            assert (await append(store, *events)).stored == 5_000
            await store.fold()
        for subject in ("user", "llm"):
            row = await database.fetchrow(f"SELECT * FROM {subject}_rollup WHERE span = 1440")
            assert [row[name] for name in CALL_SUMS] == [
                10**4, 0, 10**16, 0, 0, 0, 10**16, 0, 0, 10**19, 10**19, 10**19,
            ]  # fmt: skip
            times = (row["timed"], row["failed"], row["total_us"], row["max_us"])
            assert times == (10**4, 10**4, 10**19, 10**15)
        await assert_ledger(database, RATES)
        await assert_days_are_sums(database)

    async def test_sums_can_grow_past_any_number_of_calls(
        self, store: PostgresStore, database: asyncpg.Connection
    ) -> None:
        for _ in range(3):
            for roll_up in (LLM, USER):
                totals = Totals(roll_up)
                sums = totals.of((0, "tests", *(["x"] * (len(roll_up.keys) - 1))))
                sums.add_calls([[10**18, -(10**18), *[10**30] * 9, -(10**30)]])
                sums.total_us = 10**30
                async with database.transaction():
                    await postgres_ledger.copy_deltas(database, totals)
            await store.fold()
        for subject in ("user", "llm"):
            for row in await database.fetch(f"SELECT * FROM {subject}_rollup"):
                assert [row[name] for name in CALL_SUMS] == [
                    3 * 10**18, -3 * 10**18, *[3 * 10**30] * 9, -3 * 10**30,
                ]  # fmt: skip
                assert row["total_us"] == 3 * 10**30

    async def test_the_longest_names_that_can_come_are_keys(
        self, store: PostgresStore, database: asyncpg.Connection
    ) -> None:
        # Four bytes a character, and nothing that could be compressed.
        dice = random.Random(10)
        names = [
            "".join(chr(dice.randrange(0x10000, 0x10FFFF)) for _ in range(300)) for _ in range(3)
        ]
        told = dict(zip(("user_id", "provider", "model"), names, strict=True))
        source = "".join(chr(dice.randrange(0x10000, 0x10FFFF)) for _ in range(100))
        payload = json.dumps({**told, "input_tokens": 5}).encode()
        event = unchecked(payload, "llm_query_sent", "s" * 200, source=source, timestamp=DAYS[0])
        assert (await append(store, event)).stored == 1
        await assert_folded(store, database)

    async def test_thousands_of_sessions_and_users_in_one_quarter_hour_stay_bounded(
        self, store: PostgresStore, database: asyncpg.Connection
    ) -> None:
        for part in range(2):
            events = [
                unchecked(
                    b'{"user_id":%d}' % (part * 2_000 + n), "x", f"{part} {n}", timestamp=DAYS[0]
                )
                for n in range(4_000)
            ]
            await append(store, *events)
        await store.fold()
        rows = await database.fetch("SELECT sessions, users, events FROM usage_rollup")
        assert [row["events"] for row in rows] == [8_000] * 6
        sessions = sorted(hash_of(b"%d %d" % (part, n)) for part in range(2) for n in range(4_000))
        users = sorted(hash_of(b"%d" % n) for n in range(6_000))
        for row in rows:
            assert list(unpack(row["sessions"])) == sessions[:4097]
            assert list(unpack(row["users"])) == users[:4097]


class TestMetrics:
    async def test_an_outcome_tells_the_calls_that_were_stored_by_model(
        self, store: PostgresStore
    ) -> None:
        events = [
            a_call(DAYS[0]),
            a_call(DAYS[1], success=False),
            a_call(DAYS[1], model="zz-nobody's", cost=0.5, error="timeout"),
            a_call(DAYS[1], model="zz-nobody's"),
            a_call(DAYS[1], model=None),
            unchecked(b'{"model":"zz-cheap","input_tokens":9}', "x", timestamp=DAYS[1]),
            unchecked(b"{}", "llm_query_sent", timestamp=DAYS[1]),
            unchecked(b"{nul", "llm_query_sent", timestamp=DAYS[1]),
        ]
        outcome = await append(store, *events, events[0])
        assert told(outcome) == {
            "zz-cheap": (1, 1, 300_000),
            "zz-nobody's": (1, 1, 500_000_000),
            "": (2, 0, 0),
        }
        assert told(await append(store, *events)) == {}
        outcome = await append(store, *events, a_call(DAYS[2]))
        assert told(outcome) == {"zz-cheap": (1, 0, 150_000)}

    async def test_a_consumer_counts_calls_and_costs_once_and_folds(
        self,
        redis_url: str,
        database_url: str,
        database: asyncpg.Connection,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(delivering, "_FOLD_SECONDS", 0.05)
        fold, folded = PostgresStore.fold, []

        async def fold_or_fail(store: PostgresStore) -> None:
            folded.append(store)
            if len(folded) == 2:
                raise BackendUnavailable("store: away")
            await fold(store)

        monkeypatch.setattr(PostgresStore, "fold", fold_or_fail)
        payload = {"provider": "openai", "model": "gpt-4o", "input_tokens": 1_000_000}
        told = [payload, {**payload, "error": "late"}, {"model": "zz-mine", "cost": 0.25}]
        events = [an_event("llm_query_sent", payload=one) for one in told]
        before = counted()
        async with log_queue(redis_url) as queue, consuming(redis_url, database_url):
            await queue.put([*events, *events])
            await until(lambda: is_folded(database, "events", 3))
            await queue.put(events[:1])
            await queue.put([an_event()])
            await until(lambda: is_folded(database, "events", 4))
        after = counted()
        assert {key: after[key] - before.get(key, 0) for key in after if key[0] in {
            "gpt-4o", "zz-mine"
        }} == {
            ("gpt-4o", "ok"): 1,
            ("gpt-4o", "error"): 1,
            ("gpt-4o", "dollars"): 5,
            ("zz-mine", "ok"): 1,
            ("zz-mine", "error"): 0,
            ("zz-mine", "dollars"): 0.25,
        }  # fmt: skip
        assert len(folded) > 2

    def test_models_past_the_bound_are_counted_as_other(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(metrics, "_models", set())
        before = counted()
        for number in range(150):
            metrics.count_queries(f"many {number}", 1, 2, 1_000_000_000)
        metrics.count_queries("many 99", 1, 0, 0)
        metrics.count_queries("", 1, 0, 0)
        after = {key: value - before.get(key, 0) for key, value in counted().items()}
        assert after["many 99", "ok"] == 2
        assert ("many 100", "ok") not in after
        others = [after["other", kind] for kind in ("ok", "error", "dollars")]
        assert others == [51, 100, 50]
        assert sum(after[key] for key in after if key[1] == "error") == 300


def told(outcome: Outcome) -> dict[str, tuple[int, int, int]]:
    return {model: (one.ok, one.failed, one.nanos) for model, one in outcome.queries.items()}


def counted() -> dict[tuple[str, str], float]:
    """What the consumer's metrics say, by model, and status or `dollars`."""
    return {
        (sample.labels["model"], sample.labels.get("status", "dollars")): sample.value
        for family in (metrics.LLM_QUERIES, metrics.LLM_COST)
        for metric in family.collect()
        for sample in metric.samples
        if sample.name in {"llm_queries_total", "llm_cost_dollars_total"}
    }


async def is_folded(database: asyncpg.Connection, column: str, number: int) -> bool:
    rows = await database.fetch(
        f"SELECT {column} AS number FROM usage_rollup WHERE span = 1440 AND event_type = ''"
    )
    total: int = sum(row["number"] for row in rows)
    return total == number
