"""What the EventReader promises, against a real PostgreSQL."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest
from servers import unused_port
from stored_rows import NOON, Row, a_row, store_rows

from logging_service import postgres_reader
from logging_service.errors import (
    BackendUnavailable,
    QueryRejected,
    SchemaMismatch,
    SchemaTooNew,
)
from logging_service.ports import Event, EventKey, Filter, Page, PayloadMatch, Total
from logging_service.postgres_reader import PostgresReader, open_postgres_reader

DAY = 86_400


@pytest.fixture
async def reader(services_url: str) -> AsyncIterator[PostgresReader]:
    async with open_postgres_reader(services_url, connections=2) as opened:
        yield opened


async def every_page(reader: PostgresReader, wanted: Filter, limit: int) -> list[Page]:
    pages = [await reader.page(wanted, None, limit)]
    while (after := pages[-1].after) is not None:
        pages.append(await reader.page(wanted, after, limit))
        assert len(pages) < 1000
    return pages


async def every_id(reader: PostgresReader, wanted: Filter, limit: int = 7) -> list[UUID]:
    pages = await every_page(reader, wanted, limit)
    return [event.event_id for page in pages for event in page.events]


def in_order(rows: list[Row], *, newest_first: bool = True) -> list[UUID]:
    ordered = sorted(rows, key=lambda row: (row.timestamp, row.event_id), reverse=newest_first)
    return [row.event_id for row in ordered]


def some_rows() -> list[Row]:
    # Three days, and many events at the same time: keys, not times, have to tell them apart.
    kinds = ("review_started", "llm_query_sent", "error_occurred")
    return [
        a_row(
            DAY * (number % 3) + number // 10,
            event_type=kinds[number % 7 % 3],
            session_id=f"s{number % 4}",
            source="a" if number % 5 else "b",
            trace_id="t1" if number % 6 == 0 else None,
            request_id="r1" if number % 8 == 0 else None,
            payload=b'{"n": %d}' % (number % 3),
        )
        for number in range(100)
    ]


@pytest.mark.parametrize("newest_first", [True, False])
@pytest.mark.parametrize(
    "wanted",
    [
        Filter(),
        Filter(event_types=("llm_query_sent",)),
        Filter(event_types=("llm_query_sent", "error_occurred", "never_seen")),
        Filter(event_types=("llm_query_sent", "error_occurred"), session_id="s1"),
        Filter(session_id="s2"),
        Filter(source="b"),
        Filter(trace_id="t1"),
        Filter(request_id="r1"),
        Filter(start=NOON + timedelta(seconds=3), end=NOON + timedelta(days=1, seconds=5)),
        Filter(payload=(PayloadMatch("n", "1", negated=False),)),
        Filter(payload=(PayloadMatch("n", "1", negated=True),), event_types=("llm_query_sent",)),
        Filter(text="2", event_types=("error_occurred", "review_started")),
    ],
)
async def test_pages_meet_every_wanted_event_once_and_in_order(
    reader: PostgresReader, database_url: str, wanted: Filter, *, newest_first: bool
) -> None:
    rows = some_rows()
    await store_rows(database_url, rows)
    asked = replace(wanted, newest_first=newest_first)
    expected = in_order([row for row in rows if is_wanted(row, wanted)], newest_first=newest_first)
    assert expected
    assert await every_id(reader, asked) == expected


def is_wanted(row: Row, wanted: Filter) -> bool:
    same = all(
        getattr(wanted, name) in {None, getattr(row, name)}
        for name in ("session_id", "source", "trace_id", "request_id")
    )
    return (
        same
        and (not wanted.event_types or row.event_type in wanted.event_types)
        and (wanted.start is None or wanted.start <= row.timestamp)
        and (wanted.end is None or row.timestamp < wanted.end)
        and all((match.value in row.payload.decode()) != match.negated for match in wanted.payload)
        and (wanted.text is None or wanted.text in row.payload.decode())
    )


async def test_a_page_after_skipping_is_the_page_that_following_leads_to(
    reader: PostgresReader, database_url: str
) -> None:
    rows = some_rows()
    await store_rows(database_url, rows)
    for wanted in (Filter(), Filter(source="a"), Filter(event_types=("llm_query_sent", "b"))):
        pages = await every_page(reader, wanted, 10)
        for number, page in enumerate(pages):
            assert await reader.page(wanted, None, 10, skip=number * 10) == page
        beyond = await reader.page(wanted, None, 10, skip=200)
        assert (beyond.events, beyond.after) == ([], None)


async def test_an_event_comes_back_as_it_is_stored(
    reader: PostgresReader, database_url: str
) -> None:
    payload = '{"b": 1.0, "a": [1e2, -0,  "é\\u00e9", null], "b2":{} }'.encode()
    row = a_row(0.000001, trace_id="t", request_id="r", session_id=None, payload=payload)
    await store_rows(database_url, [row])
    (event,) = (await reader.page(Filter(), None, 1)).events
    assert bytes(event.payload) == payload
    names = [name for name in Event.__struct_fields__ if name not in {"payload", "redactions"}]
    assert [getattr(event, name) for name in names] == [getattr(row, name) for name in names]
    assert event.redactions is msgspec.UNSET


@pytest.mark.parametrize(
    ("payload", "path", "value", "matches"),
    [
        ('{"user": "ada"}', "user", "ada", True),
        ('{"user": "ada"}', "user", "Ada", False),
        ('{"user": {"name": "ada"}}', "user.name", "ada", True),
        ('{"gen_ai.provider.name": "openai"}', "gen_ai.provider.name", "openai", True),
        ('{"items": [{"id": 7}]}', "items.0.id", "7", True),
        ('{"cost": 1.0}', "cost", "1.0", True),
        ('{"cost": 1.0}', "cost", "1", False),
        ('{"success": true}', "success", "true", True),
        ('{"user": null}', "user", "null", False),
        ('{"user": {"a": [1,  2]}}', "user", '{"a": [1,  2]}', True),
        ('{"user": "a\\u0064a"}', "user", "ada", True),
        ("{}", "user", "", False),
        ('{"user": ""}', "user", "", True),
        ('{"%": "_"}', "%", "_", True),
        ('{"user": "ada"}', "user.name", "ada", False),
        ('{"it\'s": "$1 {x}"}', "it's", "$1 {x}", True),
    ],
)
async def test_a_field_of_the_payload_is_compared_as_text(
    reader: PostgresReader, database_url: str, payload: str, path: str, value: str, *, matches: bool
) -> None:
    await store_rows(database_url, [a_row(payload=payload.encode())])
    found = await reader.page(Filter(payload=(PayloadMatch(path, value, negated=False),)), None, 5)
    others = await reader.page(Filter(payload=(PayloadMatch(path, value, negated=True),)), None, 5)
    assert (len(found.events), len(others.events)) == ((1, 0) if matches else (0, 1))


@pytest.mark.parametrize(
    ("payload", "text", "matches"),
    [
        ('{"note": "The QUICK fox"}', "quick", True),
        ('{"note": "slow"}', "quick", False),
        ('{"note": "Grüße"}', "grüße", True),
        ('{"note": "Gr\\u00fc\\u00dfe"}', "Grüße", True),
        ('{"note": "\\u00C4rger"}', "ärger", True),
        ('{"note": "\\ud83d\\ude00"}', "😀", True),
        ('{"note": "😀"}', "😀", True),
        ('{"note": "100%"}', "0%", True),
        ('{"note": "100 "}', "0%", False),
        ('{"note": "a_b"}', "a_b", True),
        ('{"note": "axb"}', "a_b", False),
        ('{"note": "say \\"hi\\""}', 'say "hi"', True),
        ('{"note": "C:\\\\temp"}', "C:\\temp", True),
        ('{"note": "two\\nlines"}', "two\nlines", True),
        ('{"key": 1}', "key", True),
    ],
)
async def test_text_is_found_in_the_payload_however_it_was_written(
    reader: PostgresReader, database_url: str, payload: str, text: str, *, matches: bool
) -> None:
    await store_rows(database_url, [a_row(payload=payload.encode())])
    assert len((await reader.page(Filter(text=text), None, 5)).events) == matches


@pytest.mark.parametrize("unreadable", [rb'{"user": "\u0000"}', rb'{"user": "\ud800"}'])
async def test_a_payload_that_has_no_text_hides_no_other_event(
    reader: PostgresReader, database_url: str, unreadable: bytes
) -> None:
    rows = [a_row(number, payload=b'{"user": "ada"}') for number in range(5)]
    await store_rows(database_url, [*rows, a_row(2.5, payload=unreadable)])
    for negated, number in ((False, 5), (True, 1)):
        wanted = Filter(payload=(PayloadMatch("user", "ada", negated=negated),))
        assert len(await every_id(reader, wanted, 2)) == number
        assert (await reader.total(wanted)).is_estimate


@pytest.mark.parametrize("wanted", [Filter(), Filter(source="tests")])
async def test_a_page_of_large_events_ends_early_and_following_it_meets_every_event_once(
    database_url: str, wanted: Filter
) -> None:
    large = b'{"text":"' + b"x" * 250_000 + b'"}'
    rows = [a_row(seconds, payload=large) for seconds in range(150)]
    await store_rows(database_url, rows)
    async with open_postgres_reader(database_url, connections=1) as reader:
        met, after, pages = [], None, 0
        while pages == 0 or after is not None:
            page = await reader.page(wanted, after, 1000)
            assert sum(len(bytes(event.payload)) for event in page.events) < 32 * 1024 * 1024
            assert page.partial == (page.after is not None)
            met += [event.event_id for event in page.events]
            after, pages = page.after, pages + 1
    assert met == [row.event_id for row in reversed(rows)]
    assert pages > 1


async def test_without_time_a_page_is_partial_and_following_it_meets_every_event_once(
    database_url: str,
) -> None:
    rows = [
        a_row(number // 3, payload=b'{"n": %d}' % (number % 400 == 1), event_type=f"t{number % 2}")
        for number in range(2000)
    ]
    await store_rows(database_url, rows)
    expected = in_order([row for row in rows if row.payload == b'{"n": 1}'])
    wanted = Filter(payload=(PayloadMatch("n", "1", negated=False),), event_types=("t0", "t1"))
    async with open_postgres_reader(database_url, connections=2, read_seconds=0) as hurried:
        pages = await every_page(hurried, wanted, 3)
        assert [event.event_id for page in pages for event in page.events] == expected
        assert pages[0].partial
        assert not pages[-1].partial
        assert all(page.partial for page in pages[:-1] if len(page.events) < 3)
        skipping = await hurried.page(wanted, None, 3, skip=2)
        assert (skipping.events, skipping.partial) == ([], True)


async def test_a_total_is_exact_up_to_ten_thousand_and_never_less_above(
    reader: PostgresReader, database_url: str
) -> None:
    many = [a_row(number, event_type="many" if number else "one") for number in range(10_001)]
    await store_rows(database_url, many)
    assert await reader.total(Filter(event_types=("many",))) == Total(10_000, is_estimate=False)
    assert await reader.total(Filter(event_types=("one", "none"))) == Total(1, is_estimate=False)
    assert await reader.total(Filter(text="nowhere")) == Total(0, is_estimate=False)
    total = await reader.total(Filter())
    assert total.is_estimate
    assert total.events >= 10_001


async def test_a_count_that_takes_long_becomes_an_estimate(
    reader: PostgresReader, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store_rows(database_url, some_rows())
    monkeypatch.setattr(postgres_reader, "_COUNT_SECONDS", 0)
    assert (await reader.total(Filter())).is_estimate
    assert len((await reader.page(Filter(), None, 1)).events) == 1


async def test_an_event_is_found_by_its_id(reader: PostgresReader, database_url: str) -> None:
    rows = [a_row(-9 * DAY, event_id=uuid4()), a_row(-DAY), a_row(0.1234, event_id=uuid4())]
    await store_rows(database_url, rows)
    for row in rows:
        found = await reader.find(row.event_id, None)
        assert found is not None
        assert (found.event_id, found.timestamp) == (row.event_id, row.timestamp)
        assert await reader.find(row.event_id, row.timestamp) == found
        assert await reader.find(row.event_id, NOON) is None
    assert await reader.find(uuid4(), None) is None
    assert await reader.find(UUID("ffffffff-ffff-7fff-bfff-ffffffffffff"), None) is None


async def test_a_look_up_that_would_read_too_long_asks_for_the_time(database_url: str) -> None:
    row = a_row(event_id=uuid4())
    await store_rows(database_url, [row, a_row()])
    async with open_postgres_reader(database_url, connections=1, read_seconds=0) as hurried:
        with pytest.raises(QueryRejected) as caught:
            await hurried.find(row.event_id, None)
        assert caught.value.loc == "timestamp"
        assert await hurried.find(row.event_id, row.timestamp) is not None


async def test_event_types_come_with_number_first_and_last(
    reader: PostgresReader, database_url: str
) -> None:
    await store_rows(database_url, [*some_rows(), a_row(-DAY, event_type="once")])
    types = await reader.event_types()
    assert [(one.event_type, one.count) for one in types] == [
        ("review_started", 43),
        ("llm_query_sent", 29),
        ("error_occurred", 28),
        ("once", 1),
    ]
    assert (types[3].first, types[3].last) == (NOON - timedelta(days=1), NOON - timedelta(days=1))
    async with open_postgres_reader(database_url, connections=1, read_seconds=0) as hurried:
        estimated = await hurried.event_types()
    assert {one.event_type: (one.first, one.last) for one in estimated} == {
        one.event_type: (one.first, one.last) for one in types
    }
    assert all(getattr(one, "count_is_estimate", False) for one in estimated)


async def test_an_empty_database_has_no_events(reader: PostgresReader) -> None:
    assert await reader.page(Filter(), None, 5, skip=5) == Page([], None)
    assert await reader.total(Filter()) == Total(0, is_estimate=False)
    assert await reader.event_types() == []
    assert await reader.find(uuid4(), None) is None
    assert await reader.stored([EventKey(NOON, uuid4())]) == {}


async def test_of_many_keys_those_that_are_stored_come_back(
    reader: PostgresReader, database_url: str
) -> None:
    rows = some_rows()
    await store_rows(database_url, rows)
    stored = {EventKey(row.timestamp, row.event_id) for row in rows}
    others = [EventKey(key.timestamp + timedelta(microseconds=1), key.event_id) for key in stored]
    assert set(await reader.stored([*stored, *others, EventKey(NOON, uuid4())])) == stored


async def test_plans_are_made_for_the_values_asked_for(reader: PostgresReader) -> None:
    async with reader._connection() as connection:
        assert await connection.fetchval("SHOW plan_cache_mode") == "force_custom_plan"


async def test_check_tells_what_is_wrong(empty_database_url: str) -> None:
    async with open_postgres_reader(empty_database_url, connections=1) as reader:
        with pytest.raises(SchemaMismatch, match="logging-service migrate"):
            await reader.check()
        with pytest.raises(SchemaMismatch):
            await reader.page(Filter(), None, 1)
        connection = await asyncpg.connect(empty_database_url)
        await connection.execute("CREATE TABLE alembic_version (version_num text)")
        await connection.execute("INSERT INTO alembic_version VALUES ('9999')")
        await connection.close()
        with pytest.raises(SchemaTooNew):
            await reader.check()
    away = f"postgresql://nobody@127.0.0.1:{unused_port()}/nothing"
    async with open_postgres_reader(away, connections=1) as reader:
        with pytest.raises(BackendUnavailable):
            await reader.check()
        with pytest.raises(BackendUnavailable):
            await reader.total(Filter())
