"""The events of one project among those of others, read without reading the others' days."""

import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from events_made import a_delivery, an_event
from stored_rows import NOON, a_row, store_rows

from logging_service import postgres_projects, postgres_reader, wire
from logging_service.ports import EventTypeCount, Filter, PayloadMatch, Sorted, Total
from logging_service.postgres_reader import PostgresReader, open_postgres_reader
from logging_service.postgres_store import PostgresStore, open_postgres_store

START = datetime(2026, 10, 1, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[PostgresStore]:
    async with open_postgres_store(database_url, connections=2) as opened:
        yield opened


@pytest.fixture
async def reader(database_url: str) -> AsyncIterator[PostgresReader]:
    async with open_postgres_reader(database_url, connections=2) as opened:
        yield opened


async def add(store: PostgresStore, events: Sequence[bytes]) -> None:
    await store.append(Sorted(a_delivery(*events), list(events)))


def events_of(source: str, times: Sequence[datetime], event_type: str = "a") -> list[bytes]:
    return [an_event(event_type, timestamp=moment, source=source) for moment in times]


def ids_of(events: Sequence[bytes], *, newest_first: bool) -> list[UUID]:
    made = [wire.decode(event) for event in events]
    ordered = sorted(made, key=lambda one: (one.timestamp, one.event_id), reverse=newest_first)
    return [one.event_id for one in ordered]


async def read_all(reader: PostgresReader, wanted: Filter, limit: int = 3) -> list[UUID]:
    page = await reader.page(wanted, None, limit)
    found = [event.event_id for event in page.events]
    while page.after is not None:
        page = await reader.page(wanted, page.after, limit)
        found += [event.event_id for event in page.events]
        assert len(found) < 1_000
    return found


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    for bound in ("_FIRST_CHUNK", "_SMALLEST_CHUNK", "_LARGEST_CHUNK"):
        monkeypatch.setattr(postgres_reader, bound, 2)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("newest_first", [True, False])
@pytest.mark.parametrize("seed", range(3))
async def test_pages_of_a_project_meet_each_of_its_events_once(
    store: PostgresStore, reader: PostgresReader, seed: int, *, newest_first: bool
) -> None:
    choose = random.Random(seed)
    # Windows of a week, days without any event, quarter hours with several and at their edges.
    times = [
        START
        + choose.randrange(40) * DAY
        + choose.randrange(3) * timedelta(minutes=15)
        + choose.choice((timedelta(), timedelta(microseconds=1), timedelta(seconds=899)))
        for _ in range(150)
    ]
    ours = events_of("ours", times[:12]) + events_of("ours", times[12:20], "b")
    others = events_of("others", times[20:])
    await add(store, others + ours[::2])
    await store.fold()
    await add(store, ours[1::2])
    for event_types in ((), ("a",), ("b", "a"), ("never",)):
        wanted = Filter(event_types, source="ours", newest_first=newest_first)
        meant = [event for event in ours if not event_types or type_of(event) in event_types]
        assert await read_all(reader, wanted) == ids_of(meant, newest_first=newest_first)
    since, until = START + 8 * DAY, START + 23 * DAY + timedelta(minutes=20)
    wanted = Filter(source="ours", start=since, end=until, newest_first=newest_first)
    meant = [event for event in ours if since <= time_of(event) < until]
    assert await read_all(reader, wanted) == ids_of(meant, newest_first=newest_first)


def type_of(event: bytes) -> str:
    return wire.decode(event).event_type


def time_of(event: bytes) -> datetime:
    return wire.from_micros(wire.decode(event).timestamp)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("newest_first", [True, False])
async def test_days_of_which_nothing_is_counted_are_read(
    store: PostgresStore, reader: PostgresReader, database_url: str, *, newest_first: bool
) -> None:
    # As they are in a database of before the roll-ups, until `rebuild` has counted them.
    days = [a_row(-86_400 * day + number) for day in (9, 5, 4) for number in range(4)]
    ours = [row._replace(source="ours") for row in days[4:8]]
    await store_rows(database_url, days[:4] + ours + days[8:])
    around = [NOON - day * DAY + number * HOUR for day in (7, 6, 2) for number in range(3)]
    await add(store, events_of("others", around))
    wanted = Filter(source="ours", newest_first=newest_first)
    ordered = sorted(ours, key=lambda row: row.timestamp, reverse=newest_first)
    assert await read_all(reader, wanted) == [row.event_id for row in ordered]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("newest_first", [True, False])
async def test_what_lies_between_its_events_is_not_read(
    store: PostgresStore,
    reader: PostgresReader,
    monkeypatch: pytest.MonkeyPatch,
    *,
    newest_first: bool,
) -> None:
    others = events_of("others", [START + number * HOUR for number in range(24 * 30)])
    ours = events_of("ours", [START + 3 * DAY, START + 20 * DAY])
    await add(store, others)
    await store.fold()
    await add(store, ours)
    chunks, read = 0, postgres_reader._Search._read

    async def counting(*arguments: Any) -> Any:
        nonlocal chunks
        chunks += 1
        return await read(*arguments)

    monkeypatch.setattr(postgres_reader._Search, "_read", counting)
    wanted = Filter(source="ours", newest_first=newest_first)
    assert await read_all(reader, wanted, 10) == ids_of(ours, newest_first=newest_first)
    assert chunks < 12
    chunks = 0
    assert await read_all(reader, Filter(source="nobody", newest_first=newest_first), 10) == []
    assert chunks == 1


@pytest.mark.usefixtures("small_chunks")
async def test_a_search_that_leaps_ends_in_time_and_goes_on_from_there(
    store: PostgresStore, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_projects, "_WINDOW", DAY)
    ours = events_of("ours", [START])
    others = events_of("others", [START + number * DAY for number in range(1, 9)])
    await add(store, ours + others)
    async with open_postgres_reader(database_url, connections=2, read_seconds=0) as reader:
        page = await reader.page(Filter(source="ours"), None, 5)
        assert (page.events, page.partial) == ([], True)
        assert await read_all(reader, Filter(source="ours")) == ids_of(ours, newest_first=True)


async def test_the_types_of_a_project_are_counted_from_its_events_alone(
    store: PostgresStore, reader: PostgresReader
) -> None:
    choose = random.Random(1)
    sources, types = ("ours", "others"), ("a", "b", "c")
    events = [
        an_event(
            choose.choice(types[: 2 + (source == "others")]),
            timestamp=START + choose.random() * 9 * DAY,
            source=source,
        )
        for source in choose.choices(sources, k=90)
    ]
    assert await reader.event_types("ours") == []
    await add(store, events[:60])
    await store.fold()
    await add(store, events[60:])
    for source in sources:
        made = [wire.decode(event) for event in events]
        mine = [one for one in made if one.source == source]
        expected = [
            EventTypeCount(
                event_type,
                number,
                *(
                    wire.from_micros(
                        end(one.timestamp for one in mine if one.event_type == event_type)
                    )
                    for end in (min, max)
                ),
            )
            for event_type, number in Counter(one.event_type for one in mine).items()
        ]
        expected.sort(key=lambda one: (-one.count, one.event_type))
        assert await reader.event_types(source) == expected
    assert await reader.event_types("nobody") == []


async def test_types_of_days_that_were_removed_are_not_told(
    store: PostgresStore, reader: PostgresReader, database: asyncpg.Connection
) -> None:
    await add(store, events_of("ours", [START, START + DAY]))
    assert [one.count for one in await reader.event_types("ours")] == [2]
    await database.execute("DROP TABLE log_events_p20261001")
    assert [(one.count, one.first) for one in await reader.event_types("ours")] == [
        (1, START + DAY)
    ]


async def test_an_estimate_for_a_project_comes_from_its_own_events(
    store: PostgresStore, reader: PostgresReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_reader, "MOST_COUNTED", 2)
    await add(store, events_of("others", [START + number * HOUR for number in range(500)]))
    hours = [START + number * HOUR for number in range(100)]
    await add(store, events_of("ours", hours[:70]) + events_of("ours", hours[70:], "b"))
    for wanted, events in (
        (Filter(source="ours"), 100),
        (Filter(("b",), source="ours"), 30),
        (Filter(("a", "b"), source="ours"), 100),
        # Days are counted whole, and quarter hours where it is less than two days.
        (Filter(source="ours", start=START + DAY + HOUR, end=START + 4 * DAY), 72),
        (Filter(source="ours", start=START + timedelta(minutes=10), end=START + 5 * HOUR), 5),
        (Filter(source="ours", payload=(PayloadMatch("n", "1", negated=True),)), 100),
    ):
        assert await reader.total(wanted) == Total(events, is_estimate=True)
    assert await reader.total(Filter(source="nobody")) == Total(0, is_estimate=False)


async def test_the_same_id_in_two_projects_is_found_in_each(
    reader: PostgresReader, database_url: str
) -> None:
    ours, theirs = a_row(source="ours"), a_row(0.0001, source="theirs")
    theirs = theirs._replace(event_id=ours.event_id)
    await store_rows(database_url, [ours, theirs])
    for row in (ours, theirs):
        found = await reader.find(row.event_id, None, row.source)
        assert found
        assert (found.timestamp, found.source) == (row.timestamp, row.source)
    assert await reader.find(ours.event_id, None, "nobody") is None
    assert await reader.find(ours.event_id, theirs.timestamp, "ours") is None
