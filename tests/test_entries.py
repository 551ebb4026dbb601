"""What counts of an event: facts, ledger entries and sums, whatever its payload holds."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from events_made import a_delivery, an_event, unchecked
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from oracle import KEYS, Rate, assert_days_are_sums, assert_ledger, prices_of
from truth_table import CALLS

from logging_service import wire
from logging_service.entries import Entries
from logging_service.facts import Facts, facts_of, findings_in
from logging_service.ports import Sorted
from logging_service.postgres_store import PostgresStore, open_postgres_store
from logging_service.pricing import Prices
from logging_service.rollups import CALL_SUMS, QUARTER_SPAN, Totals
from logging_service.sketches import bin_of, hash_of

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOBODY: Facts = (None, None, False)
RATES = {"zz-known": Rate(Decimal("2.5"), Decimal(10), cache_read=Decimal("1.25"))}
KINDS = ("llm_query_sent", "review_completed", "error_occurred", "custom.type")


def facts(**payload: Any) -> Facts:
    (found,) = facts_of([json.dumps(payload).encode()])
    return found


@pytest.mark.parametrize(
    ("told", "user"),
    [
        ("ada", "ada"),
        (7, "7"),
        (-7, "-7"),
        (0, "0"),
        (10**30, "1" + "0" * 30),
        ("é😀", "é😀"),
        ("u" * 10_000, "u" * 200),
        ("😀" * 10_000, "😀" * 200),
        (10**199, "1" + "0" * 199),
        ("a\0b\0", "ab"),
        (" ada ", " ada "),
        ("", None),
        ("\0", None),
        (10**200, None),
        (True, None),
        (7.5, None),
        ({"name": "ada"}, None),
        (["ada"], None),
        (None, None),
    ],
)
def test_the_user_is_a_text_or_a_whole_number(told: object, user: str | None) -> None:
    assert facts(user_id=told) == (user, None, False)
    assert facts(**{"user.id": told}) == (user, None, False)


def test_user_id_wins_and_null_is_as_if_it_were_not_there() -> None:
    assert facts(**{"user_id": "ada", "user.id": "bob"})[0] == "ada"
    assert facts(**{"user_id": None, "user.id": "bob"})[0] == "bob"


@pytest.mark.parametrize(
    ("told", "micros"),
    [
        ("12", 12_000),
        ("0", 0),
        ("-0.0", 0),
        ("12.3456", 12_346),
        ("0.0004", 0),
        ("1e3", 1_000_000),
        ("1000000000000", 10**15),
        ("1e12", 10**15),
        ("1000000000001", None),
        ("1.0000001e12", None),
        ("-1", None),
        ("-0.001", None),
        ("1" + "0" * 300, None),
        ('"12"', None),
        ("true", None),
        ("null", None),
        ("[12]", None),
    ],
)
def test_a_duration_is_a_number_of_milliseconds_up_to_thirty_years(
    told: str, micros: int | None
) -> None:
    assert facts_of([b'{"duration_ms":%b}' % told.encode()]) == [(None, micros, False)]


@pytest.mark.parametrize(
    ("payload", "is_failed"),
    [
        ({"success": False}, True),
        ({"success": True}, False),
        ({"success": None}, False),
        ({"success": "false"}, False),
        ({"success": 0}, False),
        ({"error": "timeout"}, True),
        ({"error": {"code": 7}}, True),
        ({"error": True}, True),
        ({"error": "false"}, True),
        ({"error": None}, False),
        ({"error": False}, False),
        ({"error": ""}, False),
        ({"error": {}}, False),
        ({"error": "timeout", "success": True}, True),
    ],
)
def test_what_says_no_success_or_an_error_has_failed(
    payload: dict[str, Any],
    is_failed: bool,  # noqa: FBT001 - a column of the table
) -> None:
    assert facts(**payload) == (None, None, is_failed)


@pytest.mark.parametrize(
    ("payload", "findings"),
    [
        ({"findings_by_severity": {"error": 3, "warning": 2, "info": 1}}, (3, 2, 1)),
        ({"counts": {"error": 1, "warning": 0, "info": 2}}, (1, 0, 2)),
        ({"findings_by_severity": {"error": 1}, "counts": {"info": 9}}, (1, 0, 0)),
        ({"findings_by_severity": {"critical": 1}, "counts": {"info": 9}}, (0, 0, 9)),
        ({"findings_by_severity": 3, "counts": {"warning": 0}}, (0, 0, 0)),
        ({"counts": {"error": -1, "warning": "3", "info": 10**12}}, (0, 0, 10**12)),
        ({"counts": {"error": True, "warning": 10**12 + 1, "info": [1]}}, (0, 0, 0)),
        ({"counts": {}}, (None, None, None)),
        ({"counts": [1, 2, 3]}, (None, None, None)),
        ({}, (None, None, None)),
    ],
)
def test_findings_are_told_by_severity_or_not_at_all(
    payload: dict[str, Any], findings: tuple[int | None, ...]
) -> None:
    found = findings_in(payload)
    assert (found.errors, found.warnings, found.infos) == findings


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff",
        b"{",
        b"null",
        b"[]",
        b'[{"user_id":"ada"}]',
        b'"ada"',
        b"[" * 100_000,
        b'{"user_id":' * 20_000,
        b'{"user_id":"ada","error":"\\ud800"}',
        b'{"user_id":"ada","duration_ms":1e400}',
        b'{"user_id":%d}' % 10**4000,
        b'{},{"user_id":"ada"}',
    ],
)
def test_an_unreadable_payload_says_nothing_and_its_neighbours_what_they_say(
    payload: bytes,
) -> None:
    ada = b'{"user_id":"ada","duration_ms":1,"error":"no"}'
    said = ("ada", 1_000, True)
    assert facts_of([ada, payload, ada]) == [said, NOBODY, said]


def test_no_payloads_say_nothing() -> None:
    assert facts_of([]) == []


# Names that somebody reads, and what should not stand behind them.
READ = (
    "user_id user.id duration_ms success error findings_by_severity counts warning info"
    " cost model provider usage prompt_tokens"
)
names = st.sampled_from([*sorted({name for call in CALLS for name in call.payload}), *READ.split()])
texts = st.text(st.characters(exclude_categories=()), max_size=300)
numbers = st.integers(-(10**25), 10**25) | st.sampled_from([10**12, 10**15, 10**300, -1])
hostile = st.recursive(
    st.none() | st.booleans() | numbers | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names | texts, inner, max_size=5),
    max_leaves=12,
)
texts_of_columns = st.text(max_size=300)
payloads = st.builds(
    lambda value: json.dumps(value).encode(), st.dictionaries(names, hostile) | hostile
)


@given(st.lists(payloads, max_size=8))
def test_payloads_say_together_what_each_says_alone(several: list[bytes]) -> None:
    assert facts_of(several) == [facts_of([payload])[0] for payload in several]


def of_totals(totals: Totals) -> dict[Any, list[str]]:
    return {key: sums.fields(totals.roll_up) for key, sums in totals.by_key.items()}


@given(st.lists(st.tuples(st.sampled_from(KINDS), payloads | st.binary()), max_size=8))
def test_no_payload_makes_it_raise_and_each_event_counts_once(
    several: list[tuple[str, bytes]],
) -> None:
    elements = [
        unchecked(payload, kind, timestamp=NOON + timedelta(minutes=7 * place))
        for place, (kind, payload) in enumerate(several)
    ]
    entries, bit_by_bit = Entries(Prices()), Entries(Prices())
    entries.add(elements)
    for element in elements:
        bit_by_bit.add([element])
    for one, other in zip(
        (entries.usage, entries.users, entries.calls.llm),
        (bit_by_bit.usage, bit_by_bit.users, bit_by_bit.calls.llm),
        strict=True,
    ):
        assert of_totals(one) == of_totals(other)
    calls = [kind for kind, _ in several].count("llm_query_sent")
    assert entries.fact_rows == bit_by_bit.fact_rows
    assert [len(rows) for rows in (entries.fact_rows, entries.calls.rows)] == [len(several), calls]
    assert sum(sums.events for key, sums in entries.usage.by_key.items() if key[2]) == len(several)
    assert sum(query.ok + query.failed for query in entries.calls.queries.values()) == calls


@given(
    st.none() | texts_of_columns,
    st.lists(st.none() | texts_of_columns, min_size=3, max_size=3),
    texts_of_columns,
    st.binary(max_size=40),
)
def test_what_is_counted_of_an_event_is_found_whatever_stands_beside_it(
    session: str | None, others: list[str | None], source: str, payload: bytes
) -> None:
    kind = wire.column(b"custom.type") + wire.column(source.encode())
    first = wire.NULL if session is None else wire.column(session.encode())
    beside = [wire.NULL if text is None else wire.column(text.encode()) for text in others]
    # No byte of UTF-8 is 255.
    payload = payload.replace(b"\xff", b"")
    element = wire.encode(7, 1234, 5678, b"".join((first, kind, *beside)), payload)
    told = None if session is None else session.encode()
    assert wire.narrow(element) == (1234, told, kind, first + kind, payload)
    key = wire.column((7).to_bytes(16, "big")) + wire.moment_column(element)
    assert wire.key_columns(element) == key
    assert wire.moment_column(element) == wire.column((1234).to_bytes(8, "big"))


def test_names_of_nothing_but_nul_are_none() -> None:
    entries = Entries(Prices())
    entries.add([unchecked(b'{"model":"\\u0000","input_tokens":5}', "llm_query_sent")])
    entries.add([unchecked(b'{"input_tokens":5}', "llm_query_sent")])
    assert entries.calls.rows[0][-60:] == entries.calls.rows[1][-60:]
    assert {key[1:] for key in entries.calls.llm.by_key} == {("tests", "", "")}


def test_sums_of_a_batch_are_those_of_its_events() -> None:
    entries = Entries(Prices())
    told = [("ada", 10, "a"), ("ada", 30, "b"), (None, 20, "a")]
    for user, milliseconds, session in told:
        payload = {"user_id": user, "duration_ms": milliseconds, "input_tokens": 5}
        entries.add([an_event("llm_query_sent", session, payload, timestamp=NOON)])
    start = 825_681_600_000_000
    (_, of_all), (_, of_type) = sorted(entries.usage.by_key.items())
    assert [key[1:] for key in sorted(entries.usage.by_key)] == [
        ("tests", ""),
        ("tests", "llm_query_sent"),
    ]
    for sums in (of_all, of_type):
        assert (sums.events, sums.timed, sums.total_us, sums.max_us) == (3, 3, 60_000, 30_000)
        assert sums.durations == {bin_of(micros): 1 for micros in (10_000, 20_000, 30_000)}
        assert sums.sessions == {hash_of(b"a"), hash_of(b"b")}
        assert sums.users == {hash_of(b"ada")}
    assert entries.users.by_key.keys() == {(start, "tests", "ada"), (start, "tests", "")}
    ada = entries.users.by_key[start, "tests", "ada"]
    assert (ada.events, ada.timed, ada.max_us) == (2, 2, 30_000)
    assert dict(zip(CALL_SUMS, ada.calls, strict=True))["uncached_input"] == 10
    assert entries.calls.llm.by_key.keys() == {(start, "tests", "", "")}
    days = entries.calls.llm.by_span(1440)
    assert len(days.by_key) == 1
    assert days.rows(QUARTER_SPAN).startswith(b"15\t2026-03-01 00:00:00+00:00\ttests\t\t\t3\t3\t15")


@pytest.fixture
async def store(database_url: str, tmp_path: Path) -> AsyncIterator[PostgresStore]:
    prices = prices_of(RATES, tmp_path)
    async with open_postgres_store(database_url, connections=2, prices=prices) as opened:
        yield opened


# A step of shrinking takes as long as an example: hundreds of them would take minutes.
_shared = settings(
    max_examples=25,
    deadline=None,
    phases=set(Phase) - {Phase.shrink, Phase.explain},
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@_shared
@given(st.lists(st.tuples(st.sampled_from(KINDS), payloads), min_size=20, max_size=40))
async def test_postgresql_takes_whatever_is_made_of_a_payload_that_it_took(
    store: PostgresStore, several: list[tuple[str, bytes]]
) -> None:
    delivery = a_delivery(*(unchecked(payload, kind, "s") for kind, payload in several))
    outcome = await store.append(Sorted(delivery, delivery.events))
    assert outcome.stored + outcome.dead_lettered == len(several)
    await store.fold()


async def test_names_are_kept_without_what_postgresql_has_no_character_for(
    store: PostgresStore, database: asyncpg.Connection
) -> None:
    named = {name: f"{name[:1]}\0\0" for name in ("user_id", "provider", "model")}
    counts = {"input_tokens": "7\0", "usage\0": "\0", "service_tier": "\0", "cost": "\0"}
    payload = json.dumps({**named, **counts}).encode()
    elements = [unchecked(payload, kind, "s") for kind in KINDS]
    delivery = a_delivery(*elements)
    assert (await store.append(Sorted(delivery, delivery.events))).stored == len(KINDS)
    await store.fold()
    row = await database.fetchrow("SELECT * FROM llm_calls")
    assert (row["user_id"], row["provider"], row["model"]) == ("u", "p", "m")
    for table, columns in (("llm", "provider, model"), ("user", "user_id")):
        rows = await database.fetch(f"SELECT DISTINCT {columns} FROM {table}_rollup")
        assert [tuple(row) for row in rows] == [("p", "m") if table == "llm" else ("u",)]


# What the oracle can read: our own names, with anything behind them.
odd = st.sampled_from("azÄ😀\t\n\r\\\"'N.{}, \u2028\x1f\x7f")
named = st.text(odd, max_size=30).map("zz-{}".format) | st.sampled_from(["zz-known", "ZZ-Known"])
odd_counts = st.sampled_from([10**12 + 1, 10**30, -1, True, "7", 1000.0, 2.5, [7], {"a": 7}])
counts = st.none() | st.integers(0, 2000) | st.integers(0, 10**12) | odd_counts
anything: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(odd) | st.just([]) | st.just({})
)
milliseconds = st.integers(0, 10**12) | st.integers(0, 10**6).map(lambda micros: micros / 1000)
PARTS = ("cached_tokens", "cache_write_tokens", "reasoning_tokens")
OTHERS: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("provider", "model", "user_id", "user.id"), named | anything),
    **dict.fromkeys(("success", "error"), anything),
    "duration_ms": milliseconds | milliseconds | anything,
    "cost": anything | st.decimals(0, 2_000_000, places=12).map(float),
    "counts": st.dictionaries(st.sampled_from(["error", "warning", "other"]), counts),
    "findings_by_severity": anything | st.dictionaries(st.just("info"), counts),
}
told = st.fixed_dictionaries(
    {"input_tokens": st.integers(1, 2000) | st.integers(1, 10**12) | odd_counts},
    optional={
        **dict.fromkeys(("output_tokens", "tokens_used", "total_tokens", *PARTS), counts),
        **OTHERS,
    },
) | st.fixed_dictionaries({}, optional={"tokens_used": counts, **OTHERS})
moments = st.integers(0, 3 * 86_400_000_000).map(
    lambda micros: NOON + timedelta(microseconds=micros)
)
drawn = st.builds(
    lambda kind, payload, session, source, moment: unchecked(
        json.dumps(payload).encode(), kind, session, source=source, timestamp=moment
    ),
    st.sampled_from(KINDS),
    told,
    st.none() | st.text(odd, max_size=200),
    st.sampled_from(["tests", "others", "a\tb\\c"]),
    moments,
)


@_shared
@given(st.lists(drawn, min_size=10, max_size=60))
async def test_the_ledger_says_what_the_documents_say_of_any_payload(
    store: PostgresStore, database: asyncpg.Connection, elements: list[bytes]
) -> None:
    sums = [f"{name}_{kind}" for name in KEYS for kind in ("rollup", "deltas")]
    for table in ("log_events", "event_facts", "llm_calls", "review_facts", *sums):
        await database.execute(f"DELETE FROM {table}")
    delivery = a_delivery(*elements)
    assert (await store.append(Sorted(delivery, delivery.events))).stored == len(elements)
    await assert_ledger(database, RATES)
    await store.fold()
    await assert_ledger(database, RATES)
    await assert_days_are_sums(database)


async def test_every_dialect_stands_in_the_ledger_with_the_cost_of_the_truth_table(
    database_url: str, database: asyncpg.Connection
) -> None:
    events = {
        call.name: unchecked(
            json.dumps(call.payload).encode(), "llm_query_sent", call.name, timestamp=call.at
        )
        for call in CALLS
    }
    assert len(events) == len(CALLS)
    async with open_postgres_store(database_url, connections=1) as opened:
        delivery = a_delivery(*events.values())
        await opened.append(Sorted(delivery, delivery.events))
    rows = {row["session_id"]: row for row in await database.fetch("SELECT * FROM llm_calls")}
    for call in CALLS:
        row = rows[call.name]
        assert tuple(row[name] for name in call.counts._fields) == call.counts, call.name
        nanos = None if call.dollars is None else round(call.dollars * 10**9)
        assert (row["unsplit"], row["cost_nanos"]) == (call.unsplit, nanos), call.name
        assert row["unpriced_reason"] == call.unpriced, call.name
    llm = await database.fetchrow(
        "SELECT sum(queries) AS queries, sum(cost_nanos) AS cost FROM llm_deltas"
    )
    costs = [round(call.dollars * 10**9) for call in CALLS if call.dollars is not None]
    assert (llm["queries"], llm["cost"]) == (len(CALLS), sum(costs))
