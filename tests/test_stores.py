"""What the EventStore promises, against a real PostgreSQL."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from events_made import an_event

from logging_service import wire
from logging_service.errors import BackendUnavailable, SchemaMismatch
from logging_service.ports import Appended, DeadLetter, Delivery, Sorted
from logging_service.postgres_store import PostgresStore, open_postgres_store


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[PostgresStore]:
    async with open_postgres_store(database_url, connections=4) as opened:
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
    made = wire.decode(an_event())
    texts = b"".join(
        (
            wire.NULL,
            wire.column(b"review_started"),
            wire.column(b"tests"),
            wire.NULL,
            wire.NULL,
            wire.NULL,
        )
    )
    return wire.encode(made.event_id.int, made.timestamp, made.received_at, texts, payload)


@pytest.mark.parametrize("attempts", [1, 2])
async def test_events_that_cannot_be_stored_stand_alone_among_the_dead_letters(
    store: PostgresStore, database: asyncpg.Connection, attempts: int
) -> None:
    good = [an_event(payload={"n": n}) for n in range(97)]
    bad = [damaged(b'{"a": tru}'), damaged(b"\xff"), damaged(b"")]
    events = [*good[:10], bad[0], *good[10:60], bad[1], bad[2], *good[60:]]
    assert await store.append(a_batch(events, attempts=attempts)) == Appended(97, 0, 3, 0)
    letters = await database.fetch("SELECT * FROM dead_letters ORDER BY id")
    assert [letter["event"] for letter in letters] == bad
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


async def test_old_deliveries_are_folded_into_one_and_the_sums_stay(
    store: PostgresStore, database: asyncpg.Connection
) -> None:
    for number in range(1, 5):
        await store.append(a_batch([an_event() for _ in range(number)]))
        if number in {2, 3}:
            await database.execute("UPDATE deliveries SET committed_at = now() - interval '3 days'")
            await store.prepare()
    assert await count(database, "deliveries") == 2
    assert await database.fetchval("SELECT sum(stored) FROM deliveries") == 10


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
