"""Sums of sessions make answers cheaper and change none, whatever happens to what they sum up."""

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from events_made import a_delivery, an_event

from logging_service import postgres_sessions
from logging_service.analytics import Answer, Question
from logging_service.ports import Sorted
from logging_service.postgres_analytics import PostgresAnalytics, open_postgres_analytics
from logging_service.postgres_ledger import lock_folding
from logging_service.postgres_sessions import sum_sessions
from logging_service.postgres_sole import note_change
from logging_service.postgres_store import PostgresStore, open_postgres_store

START = datetime(2026, 10, 31, 21, 7, 13, 5, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
END = START + 7 * HOUR
LATER = START + 2 * DAY
MORNING = datetime(2026, 11, 2, 6, tzinfo=UTC)


@pytest.fixture
async def reader(database_url: str) -> AsyncIterator[PostgresAnalytics]:
    async with open_postgres_analytics(database_url, connections=2) as opened:
        yield opened


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[PostgresStore]:
    async with open_postgres_store(database_url, connections=2) as opened:
        yield opened


async def add(store: PostgresStore, *events: bytes) -> None:
    await store.append(Sorted(a_delivery(*events), list(events)))


def some_events(number: int, seed: int) -> Iterator[bytes]:
    """Short sessions, some across an hour, a long one, and what has none, of two sources."""
    choose = random.Random(seed)
    for _ in range(number):
        begins = START - HOUR + choose.random() * 9 * HOUR
        session: str | None = f"s{choose.randrange(999)}"
        if choose.random() < 0.2:
            session = choose.choice(("long", None, "", "s1"))
        source = choose.choice(("one", "two"))
        user = choose.choice(("ada", "ben", "eve", None))
        for _ in range(choose.randrange(1, 5)):
            payload: dict[str, Any] = {"duration_ms": choose.choice((None, 17, 1_900))}
            payload |= {"user_id": user, "model": "gpt-4o", "provider": "openai"}
            payload |= {"input_tokens": choose.randrange(99), "cost": choose.choice((None, 0.25))}
            kind = choose.choice(("llm_query_sent", "custom", "error_occurred"))
            begins += choose.random() * timedelta(minutes=4)
            yield an_event(kind, session, payload, timestamp=begins, source=source)


async def sum_all(database: asyncpg.Connection, now: datetime = LATER) -> int:
    made = 0
    while more := await sum_sessions(database, now):
        made += more
    return made


QUESTIONS = [
    Question("usage", (START, START + 3 * HOUR, END), ("session_id",), limit=7),
    Question("usage", (START, END), ("session_id",), limit=1_000, source="one"),
    Question("llm", (START, END), ("session_id",), limit=11),
    Question("llm", (START, END), ("session_id",), limit=11, cost="reported", source="two"),
    Question("llm", (START, END), ("session_id",), limit=1_000, cost="computed"),
    Question("llm", (START + HOUR, START + timedelta(minutes=100)), ("session_id",)),
    Question("usage", (START - DAY, END + DAY), ("session_id",), limit=40),
    Question("usage", (START, END), ("session_id", "event_type")),
    Question("usage", (START, START + HOUR, END), ("session_id",), series_of_groups=True, limit=9),
]


async def pages(reader: PostgresAnalytics, question: Question) -> list[Answer]:
    found = [await reader.answer(question)]
    while found[-1].after is not None:
        found.append(await reader.answer(replace(question, after=found[-1].after)))
    return found


async def answers(reader: PostgresAnalytics) -> list[list[Answer]]:
    return [await pages(reader, question) for question in QUESTIONS]


async def unsummed(reader: PostgresAnalytics, database: asyncpg.Connection) -> list[list[Answer]]:
    """The answers that single events give."""
    noted = await database.fetch("SELECT * FROM session_hours")
    await database.execute("DELETE FROM session_hours")
    found = await answers(reader)
    await database.copy_records_to_table("session_hours", records=[tuple(row) for row in noted])
    return found


async def total_of(database: asyncpg.Connection, what: str) -> int:
    number: int = await database.fetchval(f"SELECT count(*) FROM {what}")
    return number


@pytest.mark.parametrize("seed", [1, 2])
async def test_sums_change_no_answer(
    reader: PostgresAnalytics, store: PostgresStore, database: asyncpg.Connection, seed: int
) -> None:
    await add(store, *some_events(150, seed))
    before = await answers(reader)
    assert sum(len(page.groups) for page in before[0]) > 50
    # The hours of half of it, then all of them: some sessions are summed up in part.
    assert await sum_all(database, START + 5 * HOUR) > 2
    assert await answers(reader) == before
    assert await sum_all(database) > 2
    assert await answers(reader) == before
    assert await sum_all(database) == 0
    alone = await total_of(database, "session_sums WHERE is_alone")
    assert 0 < alone < await total_of(database, "session_sums")


async def test_sums_are_what_is_read(
    reader: PostgresAnalytics, store: PostgresStore, database: asyncpg.Connection
) -> None:
    times = [MORNING + timedelta(minutes=10 * number) for number in range(12)]
    await add(store, *(an_event("custom", f"s{at.hour}", timestamp=at) for at in times))
    await sum_all(database)
    await database.execute("UPDATE session_sums SET events = events + 10 WHERE session_id = 's7'")
    question = Question("usage", (MORNING, MORNING + 2 * HOUR), ("session_id",))
    groups: Any = (await reader.answer(question)).groups
    assert [(names, one.total_events) for names, one in groups] == [(("s7",), 16), (("s6",), 6)]


async def test_what_comes_late_counts_at_once_and_is_summed_up_later(
    reader: PostgresAnalytics, store: PostgresStore, database: asyncpg.Connection
) -> None:
    await add(store, *some_events(60, 1))
    await sum_all(database)
    await add(store, *some_events(40, 2))
    late = await answers(reader)
    assert late == await unsummed(reader, database)
    assert await sum_all(database) > 2
    assert await answers(reader) == late
    await store.fold()
    assert await answers(reader) == late
    assert await sum_all(database) == 0


async def test_a_correction_counts_at_once(
    reader: PostgresAnalytics, store: PostgresStore, database: asyncpg.Connection
) -> None:
    await add(store, *some_events(60, 1))
    await sum_all(database)
    before = await answers(reader)
    async with database.transaction():
        # The sums of all of an hour stay the same.
        await database.execute(
            """
            INSERT INTO llm_calls (timestamp, event_id, entry, session_id, source, provider, model,
                   queries, unpriced, uncached_input, cache_read, cache_write, cache_write_1h,
                   output, reasoning, unsplit, cost_nanos, best_nanos, has_media, is_told,
                   is_failed)
            SELECT timestamp, event_id, 1, session_id, source, provider, model, 0, 0, 0, 0, 0, 0,
                   0, 0, 0, change, change, false, true, false
              FROM (SELECT *, CASE row_number() OVER (PARTITION BY date_trunc('hour', timestamp)
                                                      ORDER BY timestamp)
                              WHEN 1 THEN 7000 WHEN 2 THEN -7000 END AS change
                      FROM llm_calls) AS calls
             WHERE change IS NOT NULL
            """
        )
        await note_change(database)
    corrected = await answers(reader)
    assert corrected != before
    assert corrected == await unsummed(reader, database)
    assert await sum_all(database) > 2
    assert await answers(reader) == corrected


@pytest.mark.parametrize(
    "gone",
    [
        "DROP TABLE event_facts_p20261031",
        """
        DELETE FROM event_facts WHERE timestamp < '2026-11-01 00:00Z' AND session_id LIKE 's%';
        INSERT INTO thinned_days VALUES ('2026-10-31')
        """,
    ],
)
async def test_sums_go_with_the_events(
    reader: PostgresAnalytics, store: PostgresStore, database: asyncpg.Connection, gone: str
) -> None:
    await add(store, *some_events(60, 1))
    await sum_all(database)
    hours = await total_of(database, "session_hours")
    await database.execute(gone)
    left = await answers(reader)
    assert left == await unsummed(reader, database)
    await sum_sessions(database, LATER)
    assert 0 < await total_of(database, "session_hours") < hours
    assert await total_of(database, "session_sums WHERE hour < '2026-11-01 00:00Z'") == 0
    assert await total_of(database, "session_sums") > 0
    assert await answers(reader) == left
    assert await sum_all(database) == 0


async def test_an_hour_is_summed_up_a_quarter_of_an_hour_after_it_is_over(
    store: PostgresStore, database: asyncpg.Connection
) -> None:
    await add(store, an_event("custom", "s", timestamp=MORNING))
    assert await sum_sessions(database, MORNING + HOUR + timedelta(minutes=14)) == 0
    assert await sum_sessions(database, MORNING + HOUR + timedelta(minutes=15)) == 1


async def test_hours_of_more_events_than_memory_is_worth_are_left_alone(
    reader: PostgresAnalytics,
    store: PostgresStore,
    database: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(postgres_sessions, "_MOST_EVENTS", 20)
    await add(store, *(an_event("custom", n, timestamp=MORNING) for n in range(21)))
    await add(store, *(an_event("custom", n, timestamp=MORNING + HOUR) for n in range(20)))
    assert await sum_all(database) == 1
    question = Question("usage", (MORNING, MORNING + 2 * HOUR), ("session_id",))
    assert len((await reader.answer(question)).groups) == 21


async def test_who_sums_up_does_not_wait_for_one_who_folds(
    store: PostgresStore, database: asyncpg.Connection, database_url: str
) -> None:
    await add(store, an_event("custom", "s", timestamp=MORNING))
    other = await asyncpg.connect(database_url)
    try:
        async with other.transaction():
            assert await lock_folding(other)
            assert await sum_sessions(database, LATER) == 0
        assert await sum_sessions(database, LATER + DAY) == 1
    finally:
        await other.close()


async def test_folding_sums_up_the_hours_that_are_over(
    store: PostgresStore, database: asyncpg.Connection
) -> None:
    await add(store, an_event("custom", "s", timestamp=datetime.now(UTC) - 3 * HOUR))
    await store.fold()
    assert await total_of(database, "session_sums WHERE is_alone AND events = 1") == 1


async def test_two_who_add_up_different_hours_at_once_leave_no_session_out(
    store: PostgresStore,
    reader: PostgresAnalytics,
    database: asyncpg.Connection,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = START.replace(minute=0, second=0, microsecond=0)
    sessions = [("both", first, 5), ("both", first + HOUR, 5), ("a", first, 6), ("b", first, 6)]
    for session, hour, times in sessions:
        await add(store, *(an_event("custom", session, timestamp=hour) for _ in range(times)))
    other = await asyncpg.connect(database_url)
    made: list[int] = []

    async def lock_late(connection: asyncpg.Connection) -> bool:
        if connection is database and not made and connection.is_in_transaction():
            await connection.fetchval("SELECT 1")
            made.append(await postgres_sessions._make(other, *due[1]))
        return await lock_folding(connection)

    due = await postgres_sessions._due(database, first, first + 2 * HOUR)
    monkeypatch.setattr(postgres_sessions, "lock_folding", lock_late)
    try:
        with suppress(asyncpg.LockNotAvailableError):
            await postgres_sessions._make(database, *due[0])
        await sum_all(database)
    finally:
        await other.close()
    question = Question("usage", (first, first + 2 * HOUR), ("session_id",), limit=1)
    assert [group.names for group in (await reader.answer(question)).groups] == [("both",)]
