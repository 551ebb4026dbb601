"""What the AnalyticsReader promises, against a real PostgreSQL and a recount by hand."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import asyncpg
import msgspec
import pytest
from counted_facts import Oracle, in_order, names_of
from events_made import a_delivery, an_event
from servers import unused_port

from logging_service.analytics import Answer, Group, Question, Subject
from logging_service.errors import BackendUnavailable, QueryRejected, SchemaMismatch
from logging_service.ports import Sorted
from logging_service.postgres_analytics import PostgresAnalytics, open_postgres_analytics
from logging_service.postgres_store import PostgresStore, open_postgres_store
from logging_service.sketches import RELATIVE_ERROR

START = datetime(2026, 10, 31, 22, 7, 13, 5, tzinfo=UTC)
"""Off the quarter hour; clocks change in New York in the first night."""
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
TYPES = (
    "llm_query_sent", "llm_query_sent", "review_completed", "syntax_analysis_completed",
    "error_occurred", "custom", "review",
)  # fmt: skip
MODELS = (("openai", "gpt-4o"), ("openai", "nobody-knows-it"), (None, "gpt-4o"), (None, None))
GROUPINGS: dict[Subject, tuple[tuple[str, ...], ...]] = {
    "usage": (
        (), ("event_type",), ("user_id",), ("session_id",), ("event_type", "user_id"),
        ("user_id", "session_id", "event_type"),
    ),
    "llm": (
        (), ("model",), ("provider",), ("source",), ("provider", "model", "source"), ("user_id",),
        ("source", "user_id"), ("session_id",), ("user_id", "model"),
    ),
    "performance": ((),),
    "reviews": ((), ("user_id",), ("source",), ("user_id", "source")),
}  # fmt: skip


@pytest.fixture
async def reader(services_url: str) -> AsyncIterator[PostgresAnalytics]:
    async with open_postgres_analytics(services_url, connections=2) as opened:
        yield opened


@pytest.fixture
async def store(services_url: str) -> AsyncIterator[PostgresStore]:
    async with open_postgres_store(services_url, connections=2) as opened:
        yield opened


async def add(store: PostgresStore, *events: bytes) -> None:
    await store.append(Sorted(a_delivery(*events), list(events)))


def some_events(number: int, *, seed: int = 1, days: float = 3) -> list[bytes]:
    choose = random.Random(seed)
    return [some_event(choose, days) for _ in range(number)]


def some_event(choose: random.Random, days: float) -> bytes:
    event_type = choose.choice(TYPES)
    payload: dict[str, Any] = {"duration_ms": choose.choice((0, 0.25, 17, 1_900, 86_400_000, None))}
    if choose.random() < 0.8:
        payload["user_id"] = f"user {choose.randrange(9)}"
    if choose.random() < 0.2:
        payload["success"] = False
    if event_type == "llm_query_sent":
        payload["provider"], payload["model"] = choose.choice(MODELS)
        payload |= {"input_tokens": choose.randrange(9_999), "cached_tokens": choose.randrange(99)}
        payload |= {"output_tokens": choose.randrange(99), "cost": choose.choice((None, 0.25))}
    if event_type == "review_completed":
        payload["counts"] = choose.choice((None, {"error": choose.randrange(3), "info": 1}))
    return an_event(
        event_type,
        choose.choice((None, *(f"session {number}" for number in range(40)))),
        payload,
        timestamp=START - HOUR + choose.random() * (days * DAY + 2 * HOUR),
        source=choose.choice(("one", "two")),
    )


async def fill(store: PostgresStore, *, folds: int = 1, days: float = 3) -> None:
    """Store events of which some are folded and some are not."""
    for seed in range(3):
        await add(store, *some_events(150, seed=seed, days=days))
        if seed < folds:
            await store.fold()


def points(zone: str = "UTC", step: str = "day", *, days: float = 3) -> tuple[datetime, ...]:
    """Return the local days or hours of the days from START on, whose ends are off the hour."""
    end = START + days * DAY + timedelta(minutes=21)
    here = ZoneInfo(zone)
    found, at = [START], START.astimezone(here).replace(minute=0, second=0, microsecond=0)
    moment = at.astimezone(UTC)
    while moment < end:
        local = moment.astimezone(here)
        # Every quarter hour is looked at: no rule of time zones is used twice.
        is_start = local.minute == 0 and (step == "hour" or local.hour == 0)
        if moment > START and is_start:
            found.append(moment)
        moment += timedelta(minutes=15)
    return (*found, end)


def same(found: Any, expected: Any) -> None:
    """Compare metrics: percentiles within what is promised, all else exactly."""
    told = msgspec.to_builtins(found, builtin_types=(Decimal,))
    told = {name: value for name, value in told.items() if not name.endswith("_is_estimate")}
    assert told.keys() == expected.keys()
    for name, value in expected.items():
        if value is not None and name.startswith("p") and name.endswith("_ms"):
            assert told[name] == pytest.approx(value, rel=RELATIVE_ERROR), name
        elif isinstance(value, float):
            assert told[name] == pytest.approx(value, rel=1e-12), name
        else:
            assert told[name] == value, name


@pytest.mark.parametrize("source", [None, "one"])
@pytest.mark.parametrize("subject", GROUPINGS)
async def test_answers_are_what_the_facts_add_up_to(
    reader: PostgresAnalytics,
    store: PostgresStore,
    database: asyncpg.Connection,
    subject: Subject,
    source: str | None,
) -> None:
    await fill(store)
    oracle = await Oracle.of(database)
    for group_by in GROUPINGS[subject]:
        question = Question(subject, points("Asia/Kolkata"), group_by, source=source, limit=1_000)
        compare(await reader.answer(question), question, oracle)


def compare(answer: Answer, question: Question, oracle: Oracle) -> None:
    period = question.points[0], question.points[-1]
    assert (answer.start, answer.end) == period
    same(answer.metrics, oracle.metrics(question, oracle.rows(question, *period), *period))
    assert [part[:3] for part in answer.series] == [(*p, None) for p in pairwise(question.points)]
    for part, expected in zip(answer.series, oracle.series(question, question.points), strict=True):
        same(part.metrics, expected)
    if question.group_by or question.subject == "performance":
        groups = oracle.groups(question, *period)
        assert [group.names for group in answer.groups] == in_order(question, groups)
        for group in answer.groups:
            same(group.metrics, groups[group.names])
    else:
        assert answer.groups == []


@pytest.mark.parametrize("cost", ["computed", "reported", "best"])
async def test_costs_are_of_the_kind_asked_for(
    reader: PostgresAnalytics, store: PostgresStore, database: asyncpg.Connection, cost: Any
) -> None:
    await fill(store)
    oracle = await Oracle.of(database)
    for subject in ("llm", "reviews"):
        question = Question(subject, points(), ("user_id",), cost=cost)
        answer = await reader.answer(question)
        period = question.points[0], question.points[-1]
        same(answer.metrics, oracle.metrics(question, oracle.rows(question, *period), *period))
        groups = oracle.groups(question, *period)
        for group in answer.groups:
            same(group.metrics, groups[group.names])


ADDED = {
    "usage": ("total_events",),
    "llm": ("total_queries", "total_tokens", "total_cost", "unpriced_queries"),
    "performance": ("count",),
    "reviews": ("total_reviews", "total_cost", "total_tokens"),
}


def added(metrics: Sequence[Any], subject: Subject) -> list[Any]:
    return [sum(getattr(one, name) for one in metrics) for name in ADDED[subject]]


@pytest.mark.parametrize("subject", ADDED)
@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "America/New_York", "Australia/Lord_Howe"])
async def test_hours_sum_to_days_days_to_the_period_and_groups_to_the_total(
    reader: PostgresAnalytics, store: PostgresStore, subject: Subject, zone: str
) -> None:
    await fill(store, days=5)
    days = await reader.answer(Question(subject, points(zone, days=5), ("user_id",)))
    total = added([days.metrics], subject)
    assert total[0] > 0
    assert added([part.metrics for part in days.series], subject) == total
    assert added([group.metrics for group in days.groups], subject) == total
    hours = await reader.answer(Question(subject, points(zone, "hour", days=5)))
    assert added([hours.metrics], subject) == total
    for day in days.series:
        of_day = [one.metrics for one in hours.series if day.start <= one.start < day.end]
        assert len(of_day) in {int((day.end - day.start) / HOUR) + more for more in (0, 1, 2)}
        assert added(of_day, subject) == added([day.metrics], subject)


async def test_a_day_on_which_clocks_change_is_as_long_as_it_is(
    reader: PostgresAnalytics, store: PostgresStore
) -> None:
    await add(store, *(an_event(timestamp=START + number * HOUR) for number in range(48)))
    answer = await reader.answer(Question("usage", points("America/New_York")))
    lengths = {part.end - part.start: part.metrics for part in answer.series}
    assert getattr(lengths[25 * HOUR], "total_events", 0) == 25


@pytest.mark.parametrize("subject", GROUPINGS)
async def test_pages_of_groups_meet_every_group_once_and_in_order(
    reader: PostgresAnalytics, store: PostgresStore, subject: Subject
) -> None:
    await fill(store)
    for group_by in GROUPINGS[subject]:
        await page_through(reader, Question(subject, points(), group_by, limit=1_000))


async def page_through(reader: PostgresAnalytics, question: Question) -> None:
    whole = await reader.answer(question)
    assert whole.after is None
    found: list[Group] = []
    limit = len(whole.groups) // 4 or 1
    page = await reader.answer(replace(question, limit=limit))
    found += page.groups
    while page.after is not None:
        assert len(page.groups) == limit
        page = await reader.answer(replace(question, limit=limit, after=page.after))
        found += page.groups
        assert len(found) <= len(whole.groups)
    assert found == whole.groups


@pytest.mark.parametrize("subject", GROUPINGS)
async def test_folding_changes_no_answer(
    reader: PostgresAnalytics,
    store: PostgresStore,
    database: asyncpg.Connection,
    subject: Subject,
) -> None:
    await fill(store, folds=0)
    questions = [
        Question(subject, points("America/New_York"), group_by, limit=1_000)
        for group_by in GROUPINGS[subject]
    ]
    before, version = [await reader.answer(one) for one in questions], await reader.version()
    await store.fold()
    assert await database.fetchval("SELECT count(*) FROM usage_deltas") == 0
    assert [await reader.answer(one) for one in questions] == before
    assert await reader.version() == version


@pytest.mark.parametrize("subject", GROUPINGS)
async def test_a_series_of_groups_has_one_part_for_each_group_and_part(
    reader: PostgresAnalytics,
    store: PostgresStore,
    database: asyncpg.Connection,
    subject: Subject,
) -> None:
    await fill(store)
    oracle = await Oracle.of(database)
    zone = "Australia/Lord_Howe"
    for group_by in GROUPINGS[subject]:
        question = Question(subject, points(zone), group_by, series_of_groups=True, limit=4)
        compare_parts(await reader.answer(question), question, oracle)


def compare_parts(answer: Answer, question: Question, oracle: Oracle) -> None:
    assert bool(answer.groups) == bool(question.group_by or question.subject == "performance")
    page = [group.names for group in answer.groups]
    parts = list(pairwise(question.points))
    assert [part[:3] for part in answer.series] == [(*part, n) for part in parts for n in page]
    for part in answer.series:
        rows = [
            row
            for row in oracle.rows(question, part.start, part.end)
            if names_of(question, row) == part.names
        ]
        same(part.metrics, oracle.metrics(question, rows, part.start, part.end))


async def test_an_empty_database_has_a_series_of_zeros(reader: PostgresAnalytics) -> None:
    for subject in GROUPINGS:
        answer = await reader.answer(Question(subject, points("Asia/Kolkata")))
        assert len(answer.series) == len(points("Asia/Kolkata")) - 1
        for metrics in (answer.metrics, *(part.metrics for part in answer.series)):
            assert added([metrics], subject) == [0] * len(ADDED[subject])
        assert (answer.groups, answer.after) == ([], None)


async def total(reader: PostgresAnalytics, *period: datetime) -> Answer:
    return await reader.answer(Question("usage", period))


async def drop_facts(database: asyncpg.Connection, day: datetime) -> None:
    await database.execute(f"DROP TABLE event_facts_p{day:%Y%m%d}")


MORNING = datetime(2026, 11, 2, 6, tzinfo=UTC)


def minutes(number: float) -> datetime:
    return MORNING + timedelta(minutes=number)


@pytest.mark.parametrize("subject", ["usage", "performance"])
async def test_a_period_is_widened_to_the_quarter_hour_where_its_events_are_gone(
    reader: PostgresAnalytics, store: PostgresStore, database: asyncpg.Connection, subject: Subject
) -> None:
    await add(
        store,
        *(an_event(timestamp=minutes(n), payload={"duration_ms": 1}) for n in range(60)),
        *(an_event(timestamp=minutes(n) + DAY, payload={"duration_ms": 1}) for n in range(60)),
    )
    await store.fold()
    question = Question(subject, (minutes(7), minutes(30), minutes(7) + DAY))
    answer = await reader.answer(question)
    assert (answer.start, answer.end) == (minutes(7), minutes(7) + DAY)
    assert added([answer.metrics], subject) == [60]
    await drop_facts(database, MORNING)
    answer = await reader.answer(question)
    assert (answer.start, answer.end) == (minutes(0), minutes(7) + DAY)
    assert added([answer.metrics], subject) == [67]
    assert [part[:2] for part in answer.series] == [
        (minutes(0), minutes(30)), (minutes(30), minutes(7) + DAY),
    ]  # fmt: skip
    await drop_facts(database, MORNING + DAY)
    answer = await reader.answer(question)
    assert (answer.start, answer.end) == (minutes(0), minutes(15) + DAY)
    assert added([answer.metrics], subject) == [75]
    within = await reader.answer(Question(subject, (minutes(16), minutes(17))))
    assert (within.start, within.end) == (minutes(15), minutes(30))


async def test_a_period_is_widened_where_some_events_of_its_day_were_removed(
    reader: PostgresAnalytics, store: PostgresStore, database: asyncpg.Connection
) -> None:
    await add(store, *(an_event(timestamp=minutes(number)) for number in range(60)))
    await store.fold()
    await database.execute("INSERT INTO thinned_days VALUES ($1)", MORNING.date())
    answer = await total(reader, minutes(1), minutes(31))
    assert (answer.start, answer.end) == (minutes(0), minutes(45))


async def test_a_period_without_events_is_not_widened(
    reader: PostgresAnalytics, store: PostgresStore
) -> None:
    await add(store, an_event(timestamp=minutes(20)))
    await store.fold()
    answer = await total(reader, minutes(1), minutes(31))
    assert (answer.start, answer.end) == (minutes(1), minutes(31))


async def test_model_calls_are_counted_to_the_moment_after_their_events_are_gone(
    reader: PostgresAnalytics, store: PostgresStore, database: asyncpg.Connection
) -> None:
    calls = (an_event("llm_query_sent", timestamp=minutes(number)) for number in range(60))
    await add(store, *calls)
    await store.fold()
    await drop_facts(database, MORNING)
    answer = await reader.answer(Question("llm", (minutes(7), minutes(38))))
    assert (answer.start, answer.end) == (minutes(7), minutes(38))
    assert getattr(answer.metrics, "total_queries", 0) == 31


@pytest.mark.parametrize("number", [4_096, 4_097, 12_000])
async def test_different_sessions_are_exact_up_to_4096_and_marked_estimates_past_that(
    reader: PostgresAnalytics, store: PostgresStore, number: int
) -> None:
    for day in range(3):
        sessions = range(day * number // 3, (day + 1) * number // 3 + (30 if day < 2 else 0))
        events = [an_event("custom", n, timestamp=MORNING + day * DAY) for n in sessions]
        await add(store, *events)
        if day == 1:
            await store.fold()
    whole = await total(reader, MORNING - DAY, MORNING + 4 * DAY)
    metrics: Any = whole.metrics
    assert metrics.unique_sessions_is_estimate == (number > 4_096)
    allowed = 0.06 if number > 4_096 else 0
    assert metrics.unique_sessions == pytest.approx(number, rel=allowed)
    assert metrics.unique_sessions <= metrics.total_events
    await store.fold()
    assert (await total(reader, MORNING - DAY, MORNING + 4 * DAY)).metrics == metrics


async def test_a_correction_changes_the_cost_and_nothing_else(
    reader: PostgresAnalytics, store: PostgresStore, database: asyncpg.Connection
) -> None:
    payload = {"model": "gpt-4o", "provider": "openai", "input_tokens": 10, "duration_ms": 5}
    await add(store, an_event("llm_query_sent", "s", payload, timestamp=minutes(1)))
    await database.execute(
        """
        INSERT INTO llm_calls (timestamp, event_id, entry, session_id, source, provider, model,
               queries, unpriced, uncached_input, cache_read, cache_write, cache_write_1h, output,
               reasoning, unsplit, cost_nanos, best_nanos, has_media, is_told, is_failed)
        SELECT timestamp, event_id, 1, session_id, source, provider, model,
               0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 7, false, true, false
          FROM llm_calls
        """
    )
    for group_by in ((), ("session_id",)):
        question = Question("llm", (minutes(0), minutes(14)), group_by)
        answer = await reader.answer(question)
        for metrics in (answer.metrics, *(group.metrics for group in answer.groups)):
            told: Any = metrics
            assert told.total_cost == Decimal("0.000025007")
            assert (told.total_queries, told.input_tokens, told.avg_latency_ms) == (1, 10, 5)


async def test_groups_of_unpriced_models_come_by_their_queries(
    reader: PostgresAnalytics, store: PostgresStore
) -> None:
    names = ["rare"] * 1 + ["often"] * 3 + ["b"] * 2 + ["a"] * 2 + [None] * 2
    calls = [
        an_event("llm_query_sent", payload={"model": name} if name else {}, timestamp=minutes(1))
        for name in names
    ]
    await add(store, *calls)
    answer = await reader.answer(Question("llm", (MORNING, MORNING + HOUR), ("model",)))
    assert [group.names[0] for group in answer.groups] == ["often", "a", "b", None, "rare"]


async def test_a_session_with_two_reviews_costs_once_and_what_has_no_session_costs_nothing(
    reader: PostgresAnalytics, store: PostgresStore
) -> None:
    def call(session: str | None, minute: int) -> bytes:
        payload = {"cost": 0.5, "tokens_used": 10}
        return an_event("llm_query_sent", session, payload, timestamp=minutes(minute))

    def review(session: str | None, minute: int) -> bytes:
        return an_event("review_completed", session, {}, timestamp=minutes(minute))

    await add(
        store,
        *(review("twice", 1), review("twice", 31), call("twice", 2), call("twice", 59)),
        *(review(None, 3), call(None, 4), call("unfinished", 5)),
    )
    answer = await reader.answer(Question("reviews", (minutes(0), minutes(30), minutes(45))))
    metrics: Any = answer.metrics
    assert (metrics.total_reviews, metrics.total_cost, metrics.total_tokens) == (3, 1, 20)
    assert (metrics.p50_cost, metrics.p95_cost, metrics.unpriced_queries) == (0, 1, 2)
    costs = [getattr(part.metrics, "total_cost", None) for part in answer.series]
    assert costs == [0, 1]


@pytest.mark.parametrize("subject", ["usage", "llm"])
@pytest.mark.parametrize("by_group", [False, True])
async def test_short_sessions_are_answered_as_all_others(
    reader: PostgresAnalytics,
    store: PostgresStore,
    database: asyncpg.Connection,
    subject: Subject,
    *,
    by_group: bool,
) -> None:
    # Two at a time, some across a part's end, and one that lasts for days on the last page.
    moments = [START + number * timedelta(minutes=17, microseconds=1) for number in range(200)]
    events = [
        an_event("llm_query_sent", f"s{number // 10}{number % 2}", payload, timestamp=moment)
        for payload in ({"input_tokens": 7, "model": "gpt-4o"}, {"user_id": "u", "duration_ms": 3})
        for number, moment in enumerate(moments)
    ]
    await add(store, *events, *(an_event("custom", "zz", timestamp=moments[n]) for n in (0, -1)))
    oracle = await Oracle.of(database)
    question = Question(subject, points("Asia/Kolkata"), ("session_id",), by_group, limit=9)
    period = question.points[0], question.points[-1]
    while True:
        answer = await reader.answer(question)
        for group in answer.groups:
            rows = oracle.rows(question, *period)
            rows = [row for row in rows if names_of(question, row) == group.names]
            same(group.metrics, oracle.metrics(question, rows, *period))
        if by_group:
            compare_parts(answer, question, oracle)
        if answer.after is None:
            break
        question = replace(question, after=answer.after)


async def test_no_percentile_is_beyond_the_longest_duration(
    reader: PostgresAnalytics, store: PostgresStore
) -> None:
    lasted = [1.001, 17, 333.3, 1_900, 86_400]
    await add(
        store,
        *(an_event(f"t{ms}", payload={"duration_ms": ms}, timestamp=minutes(1)) for ms in lasted),
    )
    answer = await reader.answer(Question("performance", (MORNING, MORNING + HOUR)))
    for group in answer.groups:
        told: Any = group.metrics
        assert told.p50_duration_ms <= told.p99_duration_ms <= told.max_duration_ms
        assert told.p50_duration_ms == pytest.approx(told.max_duration_ms, rel=RELATIVE_ERROR)


async def test_a_cost_that_no_whole_number_holds_is_added_up_all_the_same(
    reader: PostgresAnalytics, store: PostgresStore, database: asyncpg.Connection
) -> None:
    calls = [an_event("llm_query_sent", "s", timestamp=minutes(n)) for n in (1, 2)]
    await add(store, *calls, an_event("review_completed", "s", timestamp=minutes(3)))
    await database.execute("UPDATE llm_calls SET best_nanos = 9000000000000000000")
    answer = await reader.answer(Question("reviews", (MORNING, MORNING + HOUR)))
    metrics: Any = answer.metrics
    assert metrics.total_cost == metrics.avg_cost == 18 * 10**9
    assert metrics.p50_cost == metrics.p95_cost == Decimal(2**63 - 1) / 10**9


async def test_the_version_changes_with_what_is_stored_or_changed(
    reader: PostgresAnalytics, store: PostgresStore, database: asyncpg.Connection
) -> None:
    versions = [await reader.version()]
    await add(store, an_event(timestamp=minutes(1)))
    versions.append(await reader.version())
    await add(store, an_event(timestamp=minutes(1)))
    versions.append(await reader.version())
    await database.execute("UPDATE ledger_changes SET number = number + 1")
    versions.append(await reader.version())
    assert len(set(versions)) == len(versions)
    # Let go of by the books: nothing is counted anew.
    version = await reader.version()
    await store.prepare()
    await store.fold()
    assert await reader.version() == version


async def test_an_answer_that_takes_too_long_is_refused(
    database_url: str, database: asyncpg.Connection
) -> None:
    async with (
        open_postgres_analytics(database_url, connections=1, answer_seconds=0.2) as reader,
        database.transaction(),
    ):
        await database.execute("LOCK TABLE usage_rollup IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(QueryRejected, match=r"period: .* 0\.2 s"):
            await total(reader, minutes(0), minutes(60))


async def test_who_asks_for_the_version_does_not_wait_for_slow_answers(
    database_url: str, database: asyncpg.Connection
) -> None:
    async with open_postgres_analytics(database_url, connections=2) as reader:
        async with database.transaction():
            await database.execute("LOCK TABLE usage_rollup IN ACCESS EXCLUSIVE MODE")
            slow = [asyncio.create_task(total(reader, minutes(0), minutes(60))) for _ in range(3)]
            await asyncio.sleep(0.1)
            async with asyncio.timeout(2):
                assert await reader.version() == "0-0-0"
            assert not any(task.done() for task in slow)
        assert {(await task).metrics.total_events for task in slow} == {0}  # type: ignore[union-attr]


async def test_a_database_that_is_away_or_has_no_schema_is_told(empty_database_url: str) -> None:
    nobody = f"postgresql://nobody@127.0.0.1:{unused_port()}/none"
    async with open_postgres_analytics(nobody, connections=1) as reader:
        with pytest.raises(BackendUnavailable):
            await total(reader, minutes(0), minutes(60))
        with pytest.raises(BackendUnavailable):
            await reader.version()
    async with open_postgres_analytics(empty_database_url, connections=1) as reader:
        with pytest.raises(SchemaMismatch):
            await total(reader, minutes(0), minutes(60))
        with pytest.raises(SchemaMismatch):
            await reader.version()
