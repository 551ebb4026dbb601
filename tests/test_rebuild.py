"""Roll-ups made anew from the events, while the service works."""

import asyncio
import os
import random
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from events_made import a_delivery, an_event
from recounted import counted, rolled_up
from servers import ROOT

from logging_service import postgres_rebuild
from logging_service.entries import Entries
from logging_service.errors import LoggingServiceError
from logging_service.ports import Sorted
from logging_service.postgres_ledger import entries_of, lock_folding
from logging_service.postgres_rebuild import PostgresRollUps, open_postgres_roll_ups
from logging_service.postgres_reprice import open_postgres_call_ledger
from logging_service.postgres_store import PostgresStore, open_postgres_store
from logging_service.price_file import read_price_file
from logging_service.pricing import Prices
from logging_service.rebuilding import Rebuilt
from logging_service.repricing import Wanted, reprice

DAY = date(2026, 11, 20)
MIDNIGHT = datetime(2026, 11, 20, tzinfo=UTC)
TYPES = ("llm_query_sent", "review_completed", "error_occurred", "review_started")


def some_events(number: int, *, seed: int = 1, days: int = 1) -> list[bytes]:
    """Events of every kind, over `days` days from DAY on and a few quarter hours of each."""
    choose = random.Random(seed)
    return [an_event_of(choose, days) for _ in range(number)]


def an_event_of(choose: random.Random, days: int) -> bytes:
    kind = choose.choice(TYPES)
    payload: dict[str, Any] = {"duration_ms": choose.choice((0, 1, 5_000, None))}
    if choose.random() < 0.8:
        payload["user_id"] = choose.choice(("ada", "tab\there", "back\\slash", "ü"))
    if choose.random() < 0.2:
        payload |= choose.choice(({"success": False}, {"error": "too slow"}))
    if kind == "llm_query_sent":
        model = choose.choice(("gpt-4o", "nobody knows it"))
        payload |= {"provider": "openai", "model": model, "input_tokens": choose.randrange(9_999)}
        payload |= {"output_tokens": choose.randrange(99), "cost": choose.choice((None, 0.25))}
    if kind == "review_completed":
        payload["counts"] = {"error": choose.randrange(3), "info": 1}
    moment = MIDNIGHT + timedelta(
        days=choose.randrange(days), minutes=choose.choice((0, 14, 15, 700, 1439)),
        microseconds=choose.randrange(60_000_000),
    )  # fmt: skip
    session = choose.choice((None, "s1", "s2", f"s{choose.randrange(50)}"))
    source = choose.choice(("tests", "others"))
    return an_event(
        kind, session, payload, event_id=uuid.UUID(int=choose.getrandbits(128)), timestamp=moment,
        source=source,
    )  # fmt: skip


@pytest.fixture
async def store(services_url: str) -> AsyncIterator[PostgresStore]:
    async with open_postgres_store(services_url, connections=2) as opened:
        yield opened


@pytest.fixture
async def roll_ups(services_url: str) -> AsyncIterator[PostgresRollUps]:
    async with open_postgres_roll_ups(services_url, Prices()) as opened:
        yield opened


async def stored(store: PostgresStore, *events: bytes) -> None:
    delivery = a_delivery(*events)
    await store.append(Sorted(delivery, delivery.events))


async def rebuilt(roll_ups: PostgresRollUps, *, keep: bool = True) -> dict[date, Rebuilt]:
    return {
        day: await roll_ups.rebuild(day, lambda _: None, keep=keep)
        for day in await roll_ups.days(None, None)
    }


async def damage(database: asyncpg.Connection) -> None:
    """Change, remove and invent rows of every roll-up, at both spans."""
    changed = {
        "usage": "events = events + 1, sessions = ''",
        "user": "cost_nanos = 7, durations = '{\"5\": 3}'",
        "llm": "queries = 0, max_us = 99",
    }
    invented = {
        "usage": "'x', 'y', 1, 0, 0, 0, 0, 0, '{}', '', ''",
        "user": f"'x', 'y', 1, 0, {'1, ' * 12} 0, 0, 0, 0, '{{}}', ''",
        "llm": f"'x', 'y', 'z', {'1, ' * 12} 0, 0, 0, 0, '{{}}'",
    }
    for subject, values in changed.items():
        some = f"ctid IN (SELECT ctid FROM {subject}_rollup ORDER BY random() LIMIT 4)"
        await database.execute(f"DELETE FROM {subject}_rollup WHERE {some}")
        await database.execute(f"UPDATE {subject}_rollup SET {values} WHERE {some}")
        for span, bucket in ((15, "02:00"), (15, "02:07"), (1440, "00:00")):
            row = f"({span}, '2026-11-20 {bucket}+00', {invented[subject]})"
            await database.execute(f"INSERT INTO {subject}_rollup VALUES {row}")


async def table(database: asyncpg.Connection, name: str) -> Counter[Any]:
    """The rows of a table, but for when they were recorded."""
    rows = await database.fetch(f"SELECT * FROM {name}")
    return Counter(
        tuple(value for column, value in row.items() if column != "recorded_at") for row in rows
    )


async def test_damaged_roll_ups_say_again_what_the_events_say(
    store: PostgresStore,
    roll_ups: PostgresRollUps,
    database: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(postgres_rebuild, "_ROWS_AT_ONCE", 7)
    await stored(store, *some_events(300, days=2))
    await store.fold()
    right = await rolled_up(database)
    assert right == await counted(database)
    await damage(database)
    assert await rolled_up(database) != right
    made = await rebuilt(roll_ups)
    assert await rolled_up(database) == right
    assert sum(day.events for day in made.values()) == 300
    assert sum(day.rows for day in made.values()) == sum(map(len, right.values()))
    # Four removed and four changed in each, and three invented.
    assert sum(day.differed for day in made.values()) == 33
    assert [day.differed for day in (await rebuilt(roll_ups)).values()] == [0, 0]


async def test_it_agrees_with_what_is_not_folded_yet(
    store: PostgresStore, roll_ups: PostgresRollUps, database: asyncpg.Connection
) -> None:
    await stored(store, *some_events(50))
    await store.fold()
    await stored(store, *some_events(50, seed=2))
    right = await rolled_up(database)
    [made] = (await rebuilt(roll_ups)).values()
    assert (made.events, made.differed) == (100, 0)
    assert await rolled_up(database) == right == await counted(database)


async def test_what_is_stored_and_folded_meanwhile_is_neither_lost_nor_counted_twice(
    store: PostgresStore,
    roll_ups: PostgresRollUps,
    database: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(postgres_rebuild, "_ROWS_AT_ONCE", 20)
    await stored(store, *some_events(200))
    await store.fold()
    await damage(database)

    async def consume() -> None:
        for seed in range(100, 110):
            await stored(store, *some_events(20, seed=seed))
            await store.fold()
            await asyncio.sleep(0.1)

    consuming, seen = asyncio.create_task(consume()), []
    while not consuming.done():
        seen += [made.events for made in (await rebuilt(roll_ups)).values()]
    await consuming
    assert seen == sorted(seen)
    assert any(200 < events < 400 for events in seen)
    assert await rolled_up(database) == await counted(database)
    assert sum((await table(database, "event_facts")).values()) == 400


async def test_a_day_is_seen_as_of_one_moment(
    store: PostgresStore,
    roll_ups: PostgresRollUps,
    database: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await stored(store, *some_events(100))

    async def entries_later(elements: Sequence[bytes], prices: Prices) -> Entries:
        monkeypatch.setattr(postgres_rebuild, "entries_of", entries_of)
        await stored(store, *some_events(100, seed=2))
        return await entries_of(elements, prices)

    monkeypatch.setattr(postgres_rebuild, "entries_of", entries_later)
    [made] = (await rebuilt(roll_ups)).values()
    assert made.events == 100
    assert await rolled_up(database) == await counted(database)
    assert sum((await table(database, "event_facts")).values()) == 200


async def test_days_whose_events_are_gone_stay_as_they_are(
    store: PostgresStore, roll_ups: PostgresRollUps, database: asyncpg.Connection
) -> None:
    await stored(store, *some_events(200, days=4))
    await store.fold()
    right = await rolled_up(database)
    await database.execute("DROP TABLE log_events_p20261120")
    await database.execute("ALTER TABLE log_events DETACH PARTITION log_events_p20261121")
    await database.execute("INSERT INTO thinned_days VALUES ('2026-11-22')")
    await database.execute("DELETE FROM log_events WHERE timestamp < '2026-11-23'")
    assert list(await rebuilt(roll_ups)) == [date(2026, 11, 23)]
    assert await rolled_up(database) == right


async def test_a_day_that_got_a_late_event_after_its_others_were_removed_stays(
    store: PostgresStore, database_url: str, database: asyncpg.Connection
) -> None:
    await stored(store, *some_events(30))
    await store.fold()
    await database.execute("DROP TABLE log_events_p20261120")
    async with open_postgres_store(database_url, connections=1) as other:
        await stored(other, *some_events(1, seed=2))
    before = await rolled_up(database)
    async with open_postgres_roll_ups(database_url, Prices()) as roll_ups:
        assert await roll_ups.days(None, None) == []
        await rebuilt(roll_ups)
    assert await rolled_up(database) == before


async def test_events_from_before_the_ledger_get_their_entries_facts_and_roll_ups(
    store: PostgresStore, roll_ups: PostgresRollUps, database: asyncpg.Connection
) -> None:
    await stored(store, *some_events(200))
    right = await rolled_up(database)
    tables = ("llm_calls", "event_facts", "review_facts")
    written = [await table(database, name) for name in tables]
    await database.execute("DROP TABLE llm_calls_p202611, event_facts_p20261120")
    await database.execute("TRUNCATE review_facts, usage_deltas, user_deltas, llm_deltas")
    [made] = (await rebuilt(roll_ups)).values()
    assert made.calls_added == sum(written[0].values()) > 0
    assert [await table(database, name) for name in tables] == written
    assert await rolled_up(database) == right


async def test_facts_that_were_damaged_are_made_whole_and_the_ledger_stays(
    store: PostgresStore, roll_ups: PostgresRollUps, database: asyncpg.Connection
) -> None:
    await stored(store, *some_events(100))
    facts = [await table(database, name) for name in ("event_facts", "review_facts")]
    await database.execute("UPDATE event_facts SET user_id = 'x' WHERE user_id = 'ada'")
    await database.execute("UPDATE review_facts SET errors = 9")
    await database.execute("UPDATE llm_calls SET cost_nanos = 5, best_nanos = 5")
    ledger = await table(database, "llm_calls")
    [made] = (await rebuilt(roll_ups)).values()
    assert [await table(database, name) for name in ("event_facts", "review_facts")] == facts
    assert await table(database, "llm_calls") == ledger
    assert made.calls_added == 0
    assert await rolled_up(database) == await counted(database)


async def test_calls_keep_what_they_cost_corrections_included(
    store: PostgresStore, database_url: str, database: asyncpg.Connection, tmp_path: Path
) -> None:
    file = tmp_path / "prices.toml"
    file.write_text('[[price]]\nprovider = "*"\nmodel = "*"\ninput = 7\noutput = 9\n')
    await stored(store, *some_events(100))
    own = Prices(read_price_file(file))
    wanted = Wanted(MIDNIGHT, MIDNIGHT + timedelta(hours=6))
    async with open_postgres_call_ledger(database_url) as ledger:
        steps = [step async for step in reprice(ledger, wanted, own, record=True)]
    assert sum(len(step.changes) for step in steps) > 0
    right = await rolled_up(database)
    async with open_postgres_roll_ups(database_url, Prices()) as roll_ups:
        [made] = (await rebuilt(roll_ups)).values()
    assert made.differed == 0
    assert await rolled_up(database) == right == await counted(database)


async def test_a_look_alone_changes_nothing_and_says_what_would_differ(
    store: PostgresStore, roll_ups: PostgresRollUps, database: asyncpg.Connection
) -> None:
    await stored(store, *some_events(100))
    await store.fold()
    await damage(database)
    names = ("event_facts", "llm_calls", "usage_rollup", "user_rollup", "llm_rollup")
    before = [await table(database, name) for name in names]
    seen = await rebuilt(roll_ups, keep=False)
    assert [await table(database, name) for name in names] == before
    assert seen == await rebuilt(roll_ups)
    assert seen[DAY].differed > 0


async def test_one_that_is_ended_half_way_changes_nothing(
    store: PostgresStore, database_url: str, database: asyncpg.Connection
) -> None:
    await stored(store, *some_events(100))
    await store.fold()
    await damage(database)
    names = ("event_facts", "usage_rollup", "user_rollup", "llm_rollup")
    before = [await table(database, name) for name in names]
    half_way = asyncio.Event()
    async with open_postgres_roll_ups(database_url, Prices()) as roll_ups:
        work = roll_ups.rebuild(DAY, lambda _: half_way.set(), keep=True)
        task = asyncio.create_task(work)
        await half_way.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert [await table(database, name) for name in names] == before


async def test_it_waits_for_another_who_folds(
    store: PostgresStore, roll_ups: PostgresRollUps, database: asyncpg.Connection
) -> None:
    await stored(store, *some_events(20))
    async with database.transaction():
        assert await lock_folding(database)
        task = asyncio.create_task(rebuilt(roll_ups))
        await asyncio.wait({task}, timeout=0.5)
        assert not task.done()
    [made] = (await task).values()
    assert made.events == 20


async def test_nobody_rebuilds_or_reprices_beside_a_rebuild(
    database_url: str, roll_ups: PostgresRollUps
) -> None:
    assert await roll_ups.days(None, None) == []
    for other in (
        open_postgres_roll_ups(database_url, Prices()),
        open_postgres_call_ledger(database_url),
    ):
        with pytest.raises(LoggingServiceError, match="another reprice or rebuild is at work"):
            await other.__aenter__()


async def test_who_keeps_an_answer_learns_that_it_may_have_changed(
    store: PostgresStore, roll_ups: PostgresRollUps, database: asyncpg.Connection
) -> None:
    await stored(store, *some_events(10, days=2))
    number = "SELECT number FROM ledger_changes"
    before = await database.fetchval(number)
    await rebuilt(roll_ups, keep=False)
    assert await database.fetchval(number) == before
    await rebuilt(roll_ups)
    assert await database.fetchval(number) == before + 2


async def test_days_with_a_partition_of_their_own_can_be_made_anew_the_newest_first(
    store: PostgresStore, roll_ups: PostgresRollUps, database: asyncpg.Connection
) -> None:
    await stored(store, *some_events(100, days=4))
    for name, since, until in (
        ("two_days", "2026-12-01 00:00+00", "2026-12-03 00:00+00"),
        ("noon_to_noon", "2026-12-03 12:00+00", "2026-12-04 12:00+00"),
    ):
        bounds = f"FROM ('{since}') TO ('{until}')"
        await database.execute(f"CREATE TABLE {name} PARTITION OF log_events FOR VALUES {bounds}")
    days = [DAY + timedelta(days=number) for number in (3, 2, 1, 0)]
    assert await roll_ups.days(None, None) == days
    assert await roll_ups.days(days[2], days[1]) == [days[1], days[2]]
    assert await roll_ups.days(days[0], None) == [days[0]]
    assert await roll_ups.count(days) == 100


Run = Callable[..., subprocess.CompletedProcess[str]]


class TestCommand:
    @pytest.fixture
    def run(self, environment: dict[str, str]) -> Run:
        def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
            done = subprocess.run(
                [sys.executable, "-m", "logging_service.cli", "rebuild", *arguments],
                cwd=ROOT, env={"PATH": os.environ["PATH"], **environment}, check=False,
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
            )  # fmt: skip
            assert done.returncode == code, done.stdout + done.stderr
            return done

        return run

    async def test_it_says_what_was_rebuilt(
        self, run: Run, store: PostgresStore, database: asyncpg.Connection
    ) -> None:
        await stored(store, *some_events(50, days=2))
        await store.fold()
        right = await rolled_up(database)
        rows = sum(map(len, right.values()))
        await database.execute("UPDATE llm_rollup SET queries = 7 WHERE span = 1440")
        differed = await database.fetchval("SELECT count(*) FROM llm_rollup WHERE span = 1440")
        said = f"2 days: 50 events, {rows} rows, of which {differed} differed\n"
        assert run("--dry-run").stdout == f"compared {said}"
        assert run().stdout == f"rebuilt {said}"
        assert await rolled_up(database) == right
        assert run("--since", "2026-11-21").stdout.startswith("rebuilt 1 day: ")

    async def test_without_a_day_to_rebuild_it_says_so(self, run: Run, database_url: str) -> None:
        assert database_url
        assert run().stdout == "there is no day whose events are all still there\n"

    @pytest.mark.parametrize("day", ["yesterday", "2026-11-20T12:00Z", ""])
    async def test_a_day_that_cannot_be_is_refused(self, run: Run, day: str) -> None:
        assert "--until" in run("--until", day, code=2).stderr

    def test_an_end_before_the_beginning_is_refused(self, run: Run) -> None:
        done = run("--since", "2026-11-10", "--until", "2026-11-09", code=2)
        assert done.stderr == "--until may not be before --since\n"

    async def test_a_database_that_is_away_is_one_line(
        self, run: Run, environment: dict[str, str], free_port: int
    ) -> None:
        environment["DATABASE_URL"] = f"postgresql://nobody@127.0.0.1:{free_port}/none"
        assert len(run(code=1).stderr.splitlines()) == 1
