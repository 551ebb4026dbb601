"""What the EventStore promises, against a real PostgreSQL."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from events_made import an_event, unchecked

from logging_service import wire
from logging_service.delivering import sort_events
from logging_service.errors import BackendUnavailable, SchemaMismatch, TooManyDead
from logging_service.ports import Appended, DeadLetter, Delivery, Sorted, Trial
from logging_service.postgres_store import PostgresStore, open_postgres_store
from logging_service.trials import Trials

TABLES = ("log_events", "dead_letters", "deliveries")


@pytest.fixture
async def store(services_url: str) -> AsyncIterator[PostgresStore]:
    async with open_postgres_store(services_url, connections=4) as opened:
        yield opened


def a_batch(events: list[bytes], *, attempts: int = 1, expired: int = 0) -> Sorted:
    return Sorted(Delivery(uuid.uuid4(), events, attempts), events, expired=expired)


async def count(database: asyncpg.Connection, table: str = "log_events") -> int:
    number: int = await database.fetchval(f"SELECT count(*) FROM {table}")
    return number


async def test_an_event_is_stored_as_it_was_sent(
    store: PostgresStore, database: asyncpg.Connection
) -> None:
    payload = '{"b": 1.0, "a": [1e2, -0, "é", null], "text": "a\\"b"}'.encode()
    event = an_event("llm_query_sent", 42, payload)
    await store.append(a_batch([event]))
    row = await database.fetchrow("SELECT *, payload::text AS text FROM log_events")
    made = wire.decode(event)
    assert row["event_id"] == made.event_id
    assert row["timestamp"] == wire.from_micros(made.timestamp)
    assert row["received_at"] == wire.from_micros(made.received_at)
    assert (row["event_type"], row["session_id"]) == ("llm_query_sent", "42")
    assert (row["source"], row["trace_id"], row["request_id"]) == ("tests", None, None)
    assert row["text"].encode() == payload


async def test_days_are_made_when_the_first_event_of_a_day_comes(
    store: PostgresStore, database: asyncpg.Connection
) -> None:
    now = datetime.now(UTC)
    events = [an_event(timestamp=now - timedelta(days=days)) for days in (0, 3, 6)]
    assert await store.append(a_batch(events)) == Appended(3, 0, 0, 0)
    assert await count(database, "pg_inherits WHERE inhparent = 'log_events'::regclass") == 3


async def test_two_stores_make_the_same_day_once(
    database_url: str, database: asyncpg.Connection
) -> None:
    async with (
        open_postgres_store(database_url, connections=2) as one,
        open_postgres_store(database_url, connections=2) as other,
    ):
        await asyncio.gather(
            *(
                store.append(a_batch([an_event() for _ in range(50)]))
                for store in (one, other, one, other)
            )
        )
    assert await count(database) == 200


async def test_prepare_makes_the_week_ahead_and_nothing_twice(
    store: PostgresStore, database: asyncpg.Connection
) -> None:
    await store.prepare()
    await store.prepare()
    assert await count(database, "pg_inherits WHERE inhparent = 'log_events'::regclass") == 8


async def test_a_batch_that_repeats_stored_events_stores_only_the_new(
    store: PostgresStore, database: asyncpg.Connection
) -> None:
    old = [an_event(payload={"n": n}) for n in range(10)]
    new = [an_event(payload={"n": n}) for n in range(5)]
    await store.append(a_batch(old))
    assert await store.append(a_batch([*old[:4], *new])) == Appended(5, 4, 0, 0)
    assert await count(database) == 15


async def test_an_event_twice_in_one_batch_is_stored_once(
    store: PostgresStore, database: asyncpg.Connection
) -> None:
    event = an_event()
    assert await store.append(a_batch([event, event])) == Appended(1, 1, 0, 0)
    assert await count(database) == 1


async def test_the_same_lease_counts_once(
    store: PostgresStore, database: asyncpg.Connection
) -> None:
    batch = a_batch([an_event() for _ in range(3)])
    await store.append(batch)
    again = Sorted(Delivery(batch.delivery.lease_id, batch.events, 2), batch.events)
    assert await store.append(again) == Appended(0, 0, 0, 0)
    assert await database.fetchval("SELECT sum(stored) FROM deliveries") == 3


async def test_the_same_lease_at_the_same_time_counts_once(
    store: PostgresStore, database: asyncpg.Connection
) -> None:
    events = [an_event(payload={"n": n}) for n in range(2000)]
    lease = uuid.uuid4()
    outcomes = await asyncio.gather(
        *(
            store.append(Sorted(Delivery(lease, events, attempts), events))
            for attempts in (1, 2, 2)
        ),
        return_exceptions=True,
    )
    stored = [outcome.stored for outcome in outcomes if isinstance(outcome, Appended)]
    assert sum(stored) == 2000
    assert await count(database) == 2000
    assert await count(database, "deliveries") == 1


async def test_an_event_with_other_content_under_a_stored_key_is_a_conflict(
    store: PostgresStore, database: asyncpg.Connection
) -> None:
    event_id, now = uuid.uuid4(), datetime.now(UTC)
    first = an_event(payload={"n": 1}, event_id=event_id, timestamp=now)
    other = an_event(payload={"n": 2}, event_id=event_id, timestamp=now)
    await store.append(a_batch([first]))
    assert await store.append(a_batch([an_event(), other, first])) == Appended(1, 1, 1, 0)
    letter = await database.fetchrow("SELECT * FROM dead_letters")
    assert (letter["event"], letter["reason"], letter["attempts"]) == (other, "conflict", 1)
    assert (
        await database.fetchval(
            "SELECT payload::text FROM log_events WHERE event_id = $1", event_id
        )
        == '{"n": 1}'
    )


async def test_of_two_contents_under_one_key_in_a_batch_the_first_is_kept(
    store: PostgresStore, database: asyncpg.Connection
) -> None:
    event_id, now = uuid.uuid4(), datetime.now(UTC)
    one, two = (an_event(payload={"n": n}, event_id=event_id, timestamp=now) for n in (1, 2))
    assert await store.append(a_batch([one, two])) == Appended(1, 0, 1, 0)
    assert await database.fetchval("SELECT event FROM dead_letters") == two


async def test_the_same_id_at_another_time_is_another_event(store: PostgresStore) -> None:
    event_id, now = uuid.uuid4(), datetime.now(UTC)
    events = [
        an_event(event_id=event_id, timestamp=now - timedelta(seconds=seconds))
        for seconds in (0, 1)
    ]
    assert (await store.append(a_batch(events))).stored == 2


def damaged(payload: bytes) -> bytes:
    """An element that is whole, but whose payload PostgreSQL refuses."""
    return unchecked(payload)


@pytest.mark.parametrize("attempts", [1, 2])
async def test_events_that_cannot_be_stored_stand_alone_among_the_dead_letters(
    store: PostgresStore, database: asyncpg.Connection, attempts: int
) -> None:
    good = [an_event(payload={"n": n}) for n in range(97)]
    bad = [damaged(b'{"a": tru}'), damaged(b"\xff"), damaged(b"")]
    events = [*good[:10], bad[0], *good[10:60], bad[1], bad[2], *good[60:]]
    assert await store.append(a_batch(events, attempts=attempts)) == Appended(97, 0, 3, 0)
    letters = await database.fetch("SELECT * FROM dead_letters ORDER BY id")
    assert sorted(letter["event"] for letter in letters) == sorted(bad)
    assert {letter["sqlstate"] for letter in letters} == {"22P02", "22021"}
    assert await store.dead_letters() == 3


async def test_what_could_not_be_read_lies_among_the_dead_letters(
    store: PostgresStore, database: asyncpg.Connection
) -> None:
    letter = DeadLetter(b"garbage", "unreadable", "format 67 is not known", 1)
    batch = a_batch([an_event()])
    batch = Sorted(batch.delivery, batch.events, expired=2, dead=[letter])
    assert await store.append(batch) == Appended(1, 0, 1, 2)
    row = await database.fetchrow(
        "SELECT stored, duplicates, dead_lettered, expired FROM deliveries"
    )
    assert tuple(row) == (1, 0, 1, 2)


@pytest.mark.parametrize("attempts", [1, 2])
async def test_nothing_is_stored_where_too_many_would_be_put_aside(
    store: PostgresStore, database: asyncpg.Connection, attempts: int
) -> None:
    twice = uuid.uuid4()
    now = datetime.now(UTC)
    conflict = [an_event(session_id=name, event_id=twice, timestamp=now) for name in "ab"]
    events = [*(an_event() for _ in range(20)), damaged(b"nul"), damaged(b"tru"), *conflict]
    batch = a_batch(events, attempts=attempts)
    letter = DeadLetter(b"garbage", "unreadable", "format 67 is not known", attempts)
    batch = replace(batch, dead=[letter])
    with pytest.raises(TooManyDead, match="unreadable: format 67 is not known"):
        await store.append(batch, 2)
    assert [await count(database, table) for table in TABLES] == [0, 0, 0]
    # The conflict is its sender's fault, and stops nobody.
    appended = await store.append(batch, 3)
    assert appended == Appended(21, 0, 4, 0)
    assert appended.conflicts == 1


@pytest.mark.parametrize("attempts", [1, 2])
async def test_nothing_is_stored_that_is_not_confirmed_in_the_end(
    store: PostgresStore, database: asyncpg.Connection, attempts: int
) -> None:
    class NotOursError(Exception):
        pass

    def confirm() -> None:
        raise NotOursError

    batch = a_batch([an_event(), damaged(b"nul")], attempts=attempts)
    with pytest.raises(NotOursError):
        await store.append(batch, None, confirm)
    assert [await count(database, table) for table in TABLES] == [0, 0, 0]
    assert await store.append(batch) == Appended(1, 0, 1, 0)


async def test_a_lease_that_is_committed_is_known_before_its_dead_are_counted(
    store: PostgresStore, database: asyncpg.Connection
) -> None:
    batch = replace(a_batch([]), dead=[DeadLetter(b"", "unreadable", "format none", 1)])
    await store.append(batch)
    again = replace(batch, delivery=replace(batch.delivery, attempts=2))
    assert await store.append(again, 0) == Appended(0, 0, 0, 0)
    assert await count(database, "dead_letters") == 1


class TestDeliveriesThatComeAgain:
    async def test_a_run_counts_once_and_can_be_taken_back(self, store: PostgresStore) -> None:
        delivery = a_batch([an_event()], attempts=2).delivery
        one, other = uuid.uuid4(), uuid.uuid4()
        assert await store.begin_delivery(delivery, one) == 1
        assert await store.begin_delivery(delivery, one) == 1
        assert await store.begin_delivery(delivery, other) == 2
        for _ in range(2):
            await store.release_delivery(delivery, one)
        assert await store.begin_delivery(delivery, other) == 1
        # An event of it that is tried is another matter.
        assert await store.begin_trial(delivery, one) == Trial(0, 1)
        assert await store.begin_delivery(delivery, one) == 2

    async def test_so_many_runs_are_enough(self, store: PostgresStore) -> None:
        delivery = a_batch([an_event()], attempts=2).delivery
        counted = [await store.begin_delivery(delivery, uuid.uuid4()) for _ in range(20)]
        assert counted == [*range(1, 17), 16, 16, 16, 16]

    async def test_the_commit_ends_it_for_all(
        self, store: PostgresStore, database: asyncpg.Connection
    ) -> None:
        batch = a_batch([an_event()], attempts=2)
        for _ in range(3):
            await store.begin_delivery(batch.delivery, uuid.uuid4())
        assert await store.append(batch) == Appended(1, 0, 0, 0)
        assert await count(database, "trials") == 0
        assert await store.begin_delivery(batch.delivery, uuid.uuid4()) == 0
        assert await count(database, "trials") == 0

    async def test_who_comes_late_leaves_nothing(
        self, store: PostgresStore, database: asyncpg.Connection
    ) -> None:
        batch = a_batch([an_event()])
        again = replace(batch, delivery=replace(batch.delivery, attempts=2))
        await store.begin_delivery(again.delivery, uuid.uuid4())
        await store.append(batch)
        assert await store.append(again) == Appended(0, 0, 0, 0)
        assert await count(database, "trials") == 0


class TestTrials:
    async def test_an_event_after_the_other_is_stored_and_the_lease_counted_at_the_end(
        self, store: PostgresStore, database: asyncpg.Connection
    ) -> None:
        good = an_event()
        delivery = replace(a_batch([good, good, damaged(b"nul")]).delivery, epoch=uuid.uuid4())
        run = uuid.uuid4()
        for place, expected in enumerate([(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0)]):
            assert await store.begin_trial(delivery, run) == Trial(place, 1)
            alone = replace(delivery, events=[delivery.events[place]])
            assert await store.append(Sorted(alone, alone.events, place=place)) == expected
            assert await count(database, "deliveries") == 0
        assert await store.begin_trial(delivery, run) == Trial(3, 1)
        await store.end_trials(delivery)
        await store.end_trials(delivery)
        assert await store.begin_trial(delivery, run) is None
        row = await database.fetchrow(
            "SELECT lease_id, epoch, stored, duplicates, dead_lettered, expired FROM deliveries"
        )
        assert tuple(row) == (delivery.lease_id, delivery.epoch, 1, 1, 1, 0)
        assert await count(database, "trials") == 0

    async def test_a_run_counts_once_for_an_event_and_can_be_taken_back(
        self, store: PostgresStore
    ) -> None:
        delivery = a_batch([an_event()]).delivery
        one, other = uuid.uuid4(), uuid.uuid4()
        assert await store.begin_trial(delivery, one) == Trial(0, 1)
        assert await store.begin_trial(delivery, one) == Trial(0, 1)
        assert await store.begin_trial(delivery, other) == Trial(0, 2)
        assert await store.begin_trial(delivery, one) == Trial(0, 2)
        await store.release_trial(delivery, other)
        await store.release_trial(delivery, other)
        assert await store.begin_trial(delivery, one) == Trial(0, 1)

    async def test_two_consumers_of_one_lease_count_each_event_once(
        self, store: PostgresStore, database: asyncpg.Connection
    ) -> None:
        events = [an_event(payload={"n": n}) for n in range(40)]
        delivery = a_batch([*events, events[0], b"garbage"]).delivery

        async def settle() -> int:
            trials, done = Trials(store, delivery, lambda one: sort_events(one, 3600, 0)), 0
            while settled := await trials.settle_next(1):
                done += sum(settled[1])
            return done

        assert sum(await asyncio.gather(settle(), settle())) == 42
        row = await database.fetchrow("SELECT stored, duplicates, dead_lettered FROM deliveries")
        assert tuple(row) == (40, 1, 1)
        assert await count(database, "trials") == 0

    async def test_a_delivery_that_another_consumer_stored_as_a_whole_is_over(
        self, store: PostgresStore, database: asyncpg.Connection
    ) -> None:
        batch = a_batch([an_event(), an_event()])
        assert await store.begin_trial(batch.delivery, uuid.uuid4()) == Trial(0, 1)
        await store.append(batch)
        first = replace(batch.delivery, events=batch.events[:1])
        late = Sorted(first, first.events, place=0)
        assert await store.append(late) == Appended(0, 0, 0, 0)
        assert await store.begin_trial(batch.delivery, uuid.uuid4()) is None
        assert await database.fetchval("SELECT stored FROM deliveries") == 2
        assert await count(database, "trials") == 0

    async def test_what_nobody_ends_is_forgotten_after_more_than_a_year(
        self, store: PostgresStore, database: asyncpg.Connection
    ) -> None:
        for _ in range(2):
            await store.begin_trial(a_batch([an_event()]).delivery, uuid.uuid4())
        await database.execute(
            "UPDATE trials SET tried_at = now() - interval '500 days'"
            " WHERE lease_id = (SELECT min(lease_id::text)::uuid FROM trials)"
        )
        await store.prepare()
        assert await count(database, "trials") == 1


async def test_a_failed_transaction_leaves_nothing(
    store: PostgresStore, database: asyncpg.Connection
) -> None:
    await store.append(a_batch([an_event()]))
    await database.execute("ALTER TABLE deliveries ADD CONSTRAINT none CHECK (stored < 2)")
    with pytest.raises(BackendUnavailable):
        await store.append(a_batch([an_event(), an_event()]))
    assert (await count(database), await count(database, "deliveries")) == (1, 1)


async def test_a_rule_of_the_operators_stops_the_guilty_event_alone(
    store: PostgresStore, database: asyncpg.Connection
) -> None:
    await database.execute("ALTER TABLE log_events ADD CHECK (payload->>'sekret' IS NULL)")
    bad = an_event(payload={"sekret": "hunter2"})
    good = [an_event(payload={"n": n}) for n in range(20)]
    assert await store.append(a_batch([*good[:7], bad, *good[7:]])) == Appended(20, 0, 1, 0)
    letter = await database.fetchrow("SELECT event, detail, sqlstate FROM dead_letters")
    assert (letter["event"], letter["sqlstate"]) == (bad, "23514")
    assert "hunter2" not in letter["detail"]


async def test_a_trigger_of_the_operators_stops_the_guilty_event_alone(
    store: PostgresStore, database: asyncpg.Connection
) -> None:
    await database.execute(
        "CREATE FUNCTION judge() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF NEW.session_id = 'bad' THEN"
        " RAISE EXCEPTION 'not here' USING ERRCODE = 'check_violation'; END IF;"
        " RETURN NEW; END $$"
    )
    await database.execute(
        "CREATE TRIGGER judges BEFORE INSERT ON log_events FOR EACH ROW EXECUTE FUNCTION judge()"
    )
    events = [an_event(session_id=name) for name in ("a", "bad", "c")]
    assert await store.append(a_batch(events)) == Appended(2, 0, 1, 0)
    assert await database.fetchval("SELECT event FROM dead_letters") == events[1]


async def test_a_day_whose_partition_was_detached_is_made_under_another_name(
    store: PostgresStore, database: asyncpg.Connection
) -> None:
    name = f"log_events_p{datetime.now(UTC):%Y%m%d}"
    for number in (1, 2):
        assert (await store.append(a_batch([an_event()]))).stored == 1
        suffix = "" if number == 1 else f"_{number}"
        await database.execute(f"ALTER TABLE log_events DETACH PARTITION {name}{suffix}")
    await store.prepare()
    await store.append(a_batch([an_event(), an_event()]))
    assert [await count(database, name) for name in (name, f"{name}_2", f"{name}_3")] == [1, 1, 2]


async def test_the_first_of_two_contents_is_kept_whatever_their_sessions(
    store: PostgresStore, database: asyncpg.Connection
) -> None:
    event_id, now = uuid.uuid4(), datetime.now(UTC)
    first, second = (
        an_event(session_id=session, event_id=event_id, timestamp=now) for session in ("b", "a")
    )
    await store.append(a_batch([first, second]))
    assert await database.fetchval("SELECT session_id FROM log_events") == "b"
    assert await database.fetchval("SELECT event FROM dead_letters") == second


async def test_deliveries_of_days_ago_are_folded_into_their_epoch_and_the_sums_stay(
    store: PostgresStore, database: asyncpg.Connection
) -> None:
    for number in range(1, 5):
        await store.append(a_batch([an_event() for _ in range(number)]))
        if number in {2, 3}:
            await database.execute("UPDATE deliveries SET committed_at = now() - interval '3 days'")
            await store.prepare()
    assert await database.fetchval("SELECT sum(stored) FROM deliveries") == 4
    assert await database.fetchval("SELECT stored FROM epochs") == 6


async def test_a_session_that_was_read_only_does_not_stay_so(
    store: PostgresStore, database: asyncpg.Connection
) -> None:
    name = await database.fetchval("SELECT current_database()")
    await database.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with pytest.raises(BackendUnavailable, match="25006"):
        await store.append(a_batch([an_event()]))
    with pytest.raises(BackendUnavailable, match="read-only"):
        await store.check()
    await database.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    assert (await store.append(a_batch([an_event()]))).stored == 1


@pytest.mark.parametrize(
    ("default", "used"),
    [
        ("off", "on"),
        ("local", "on"),
        ("on", "on"),
        ("remote_write", "remote_write"),
        ("remote_apply", "remote_apply"),
    ],
)
async def test_what_is_stored_is_on_the_disk_whatever_the_databases_default(
    database_url: str, database: asyncpg.Connection, default: str, used: str
) -> None:
    name = await database.fetchval("SELECT current_database()")
    await database.execute(f"ALTER DATABASE {name} SET synchronous_commit = {default}")
    async with open_postgres_store(database_url, connections=1) as store:
        shown = [await store._pool.fetchval("SHOW synchronous_commit") for _ in range(3)]
        await store.append(a_batch([an_event()]))
        shown.append(await store._pool.fetchval("SHOW synchronous_commit"))
    await database.execute(f"ALTER DATABASE {name} RESET synchronous_commit")
    assert shown == [used] * 4


async def test_a_schema_that_does_not_fit_is_said(
    store: PostgresStore, database: asyncpg.Connection
) -> None:
    await store.check()
    await store.append(a_batch([an_event()]))
    await database.execute("ALTER TABLE deliveries RENAME COLUMN stored TO kept")
    with pytest.raises(SchemaMismatch, match="42703"):
        await store.append(a_batch([an_event()]))


@pytest.mark.parametrize(("revision", "said"), [("0000", "migrate"), ("9999", "newer")])
async def test_another_schema_revision_is_refused(
    store: PostgresStore, database: asyncpg.Connection, revision: str, said: str
) -> None:
    await database.execute("UPDATE alembic_version SET version_num = $1", revision)
    with pytest.raises(SchemaMismatch, match=said):
        await store.check()


async def test_a_database_that_is_away_is_weather(free_port: int) -> None:
    url = f"postgresql://nobody@127.0.0.1:{free_port}/none"
    async with open_postgres_store(url, connections=1) as store:
        for attempt in (store.check(), store.prepare(), store.append(a_batch([an_event()]))):
            with pytest.raises(BackendUnavailable):
                await attempt
