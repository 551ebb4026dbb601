"""What is too old goes, day by day, and holds up nobody."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import asyncpg
import pytest
from events_made import a_delivery, an_event
from structlog.testing import capture_logs

from logging_service import retention_turns
from logging_service.errors import BackendUnavailable
from logging_service.event_ttls import EventTtls
from logging_service.ports import Sorted
from logging_service.postgres_analytics import open_postgres_analytics
from logging_service.postgres_rebuild import open_postgres_roll_ups
from logging_service.postgres_retention import PostgresRetention, open_postgres_retention
from logging_service.postgres_store import PostgresStore, open_postgres_store
from logging_service.pricing import Prices
from logging_service.retention import Removed, Ttls, remove_old
from logging_service.retention_turns import removing_old, turn
from logging_service.schema import migrate
from logging_service.settings import Settings

TODAY = datetime.now(UTC).date()
TYPES = ("review_started", "llm_query_sent", "review_completed")


def ago(days: int) -> datetime:
    return datetime.combine(TODAY - timedelta(days=days), time(13, 5), UTC)


def ttls(events: int = 0, *, ledger: int = 0, sums: int = 0, **own: int) -> Ttls:
    return Ttls(EventTtls(events, own), ledger, sums)


@pytest.fixture
async def store(services_url: str, database: asyncpg.Connection) -> AsyncIterator[PostgresStore]:
    await database.execute("UPDATE retention_clock SET day = $1", TODAY)
    async with open_postgres_store(services_url, connections=2) as opened:
        yield opened


@pytest.fixture
async def retention(services_url: str) -> AsyncIterator[PostgresRetention]:
    async with open_postgres_retention(services_url) as opened:
        yield opened


async def add(store: PostgresStore, *days: int, types: Sequence[str] = TYPES) -> None:
    payload = {"user_id": "ada", "model": "gpt-4o", "input_tokens": 7, "duration_ms": 3}
    events = [an_event(kind, "s1", payload, timestamp=ago(day)) for day in days for kind in types]
    await store.append(Sorted(a_delivery(*events), events))
    await store.fold()


async def days_in(database: asyncpg.Connection, table: str = "log_events") -> Counter[int]:
    """How many rows there are of each day, by its age."""
    rows = await database.fetch(f"SELECT (timestamp AT TIME ZONE 'UTC')::date AS day FROM {table}")
    return Counter((TODAY - row["day"]).days for row in rows)


async def noted(database: asyncpg.Connection) -> list[dict[str, Any]]:
    rows = await database.fetch(
        "SELECT payload::text FROM audit_outbox WHERE event_type = 'audit.retention' ORDER BY 1"
    )
    return [json.loads(row["payload"]) for row in rows]


async def test_whole_days_that_are_over_since_so_many_days_are_dropped(
    store: PostgresStore, retention: PostgresRetention, database: asyncpg.Connection
) -> None:
    await add(store, 1, 7, 8, 9)
    removed = await remove_old(retention, ttls(7))
    assert (removed.partitions, removed.events, removed.complete) == (4, 0, True)
    for table in ("log_events", "event_facts"):
        assert await days_in(database, table) == {1: 3, 7: 3}
        parts = f"SELECT count(*) FROM pg_inherits WHERE inhparent = '{table}'::regclass"
        assert await database.fetchval(parts) == 2
    # What was counted of them stays, and so do the calls.
    assert await days_in(database, "llm_calls") == {1: 1, 7: 1, 8: 1, 9: 1}
    counted = "SELECT sum(events) FROM usage_rollup WHERE span = 1440 AND event_type = ''"
    assert await database.fetchval(counted) == 12
    assert {note["day"] for note in await noted(database)} == {str(ago(d).date()) for d in (8, 9)}
    assert (await remove_old(retention, ttls(7))).anything is False
    assert len(await noted(database)) == 2


async def test_nothing_goes_where_everything_is_kept(
    store: PostgresStore, retention: PostgresRetention, database: asyncpg.Connection
) -> None:
    await add(store, 1, 500)
    assert (await remove_old(retention, ttls())).anything is False
    assert await days_in(database) == {1: 3, 500: 3}


async def test_answers_are_known_to_have_changed_and_no_rebuild_touches_the_day(
    store: PostgresStore, services_url: str, retention: PostgresRetention
) -> None:
    await add(store, 9)
    async with (
        open_postgres_analytics(services_url, connections=1) as analytics,
        open_postgres_roll_ups(services_url, Prices()) as roll_ups,
    ):
        before = await analytics.version()
        await remove_old(retention, ttls(7))
        assert await analytics.version() != before
        assert ago(9).date() not in await roll_ups.days(None, None)


async def test_a_late_event_of_a_day_that_is_gone_is_stored_and_goes_too(
    store: PostgresStore, retention: PostgresRetention, database: asyncpg.Connection
) -> None:
    await add(store, 9)
    await remove_old(retention, ttls(7))
    await add(store, 9)
    assert await days_in(database) == {9: 3}
    assert (await remove_old(retention, ttls(7))).partitions == 2
    assert await days_in(database) == {}


async def test_types_with_a_time_of_their_own_stay_longer_or_go_earlier(
    store: PostgresStore, retention: PostgresRetention, database: asyncpg.Connection
) -> None:
    await add(store, 1, 4, 9, 40)
    wanted = ttls(7, LLM_QUERY_SENT=30, REVIEW_STARTED=3)
    removed = await remove_old(retention, wanted)
    assert (removed.partitions, removed.events) == (2, 3)
    for table in ("log_events", "event_facts"):
        assert await days_in(database, table) == {1: 3, 4: 2, 9: 1}
    rows = await database.fetch("SELECT event_type FROM log_events WHERE timestamp < $1", ago(8))
    assert [row["event_type"] for row in rows] == ["llm_query_sent"]
    assert (await remove_old(retention, wanted)).anything is False
    thinned = await database.fetch("SELECT day FROM thinned_days")
    assert {(TODAY - row["day"]).days for row in thinned} == {4, 9, 40}


async def test_a_type_that_is_kept_for_good_keeps_its_day(
    store: PostgresStore, retention: PostgresRetention, database: asyncpg.Connection
) -> None:
    await add(store, 900, 901, types=("review_started", "Signed-off"))
    await add(store, 902, types=("review_started",))
    await remove_old(retention, ttls(7, SIGNED_OFF=0))
    assert await days_in(database) == {900: 1, 901: 1}


async def test_a_day_that_got_an_event_that_is_kept_meanwhile_stays(
    store: PostgresStore, retention: PostgresRetention, database: asyncpg.Connection
) -> None:
    await add(store, 9, types=("review_started", "signed.off"))
    with pytest.raises(BackendUnavailable, match="kept"):
        await retention.drop_day(ago(9).date(), ["SIGNED_OFF"])
    assert await days_in(database) == {9: 2}
    assert not await database.fetchval("SELECT count(*) FROM thinned_days")


async def test_many_events_of_a_type_go_in_batches(
    store: PostgresStore, database: asyncpg.Connection, services_url: str
) -> None:
    moments = [ago(9) + timedelta(microseconds=place // 2) for place in range(10)]
    events = [an_event("a", timestamp=moment) for moment in moments]
    await store.append(Sorted(a_delivery(*events), events))
    services = await asyncpg.connect(services_url)
    delete = "SELECT delete_events($1, 'a', 3)"
    numbers = [await services.fetchval(delete, ago(9).date()) for _ in range(4)]
    await services.close()
    # Those of one moment go together.
    assert numbers == [4, 4, 2, 0]
    assert await days_in(database) == await days_in(database, "event_facts") == {}


async def test_months_of_the_ledger_and_old_sums_go_in_their_own_time(
    store: PostgresStore, retention: PostgresRetention, database: asyncpg.Connection
) -> None:
    await add(store, 1, 40, 399, 460)
    removed = await remove_old(retention, ttls(30, ledger=400, sums=100))
    assert await days_in(database, "llm_calls") == {1: 1, 40: 1, 399: 1}
    assert await days_in(database, "review_facts") == {1: 1, 40: 1}
    for subject in ("usage", "user", "llm"):
        found = await database.fetch(f"SELECT DISTINCT bucket::date AS day FROM {subject}_rollup")
        assert {(TODAY - row["day"]).days for row in found} == {1, 40}
    assert removed.sums > 0
    assert await database.fetchval("SELECT count(*) FROM thinned_days") == 1
    again = await remove_old(retention, ttls(30, ledger=400, sums=100))
    assert again.anything is False


async def test_sums_wait_for_another_who_folds(
    store: PostgresStore, retention: PostgresRetention, database: asyncpg.Connection
) -> None:
    await add(store, 9)
    async with database.transaction():
        await database.execute("SELECT pg_advisory_xact_lock(7260411533)")
        assert (await remove_old(retention, ttls(sums=7))).sums == 0
    assert (await remove_old(retention, ttls(sums=7))).sums > 0


async def test_who_reads_for_long_is_not_waited_for_and_writers_go_on(
    store: PostgresStore, retention: PostgresRetention, services_url: str
) -> None:
    await add(store, 1, 9)
    reader = await asyncpg.connect(services_url)
    async with reader.transaction():
        await reader.fetchval("SELECT count(*) FROM log_events")
        began = asyncio.get_running_loop().time()
        with capture_logs() as logs:
            dropping = asyncio.create_task(turn(retention, ttls(7)))
            await asyncio.sleep(0.05)
            await add(store, 1)
            assert await dropping is False
        assert asyncio.get_running_loop().time() - began < 2
    assert "retention_waits" in [line["event"] for line in logs]
    await reader.close()
    assert await turn(retention, ttls(7)) is True


async def test_it_goes_on_in_the_background(
    store: PostgresStore,
    settings: Settings,
    database: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retention_turns, "_AGAIN_SECONDS", 0.05)
    monkeypatch.setattr(retention_turns, "_TURN_SECONDS", 0.05)
    async with removing_old(settings), asyncio.timeout(20):
        for _ in range(2):
            await add(store, 1, 9)
            while await days_in(database) != {1: 3}:
                await asyncio.sleep(0.02)
            await database.execute("TRUNCATE log_events")


async def test_two_that_remove_at_once_are_harmless(
    store: PostgresStore, services_url: str, database: asyncpg.Connection
) -> None:
    await add(store, 1, *range(8, 20))

    async def one() -> None:
        async with open_postgres_retention(services_url) as retention:
            while not await turn(retention, ttls(7, REVIEW_STARTED=3, SIGNED_OFF=90)):
                await asyncio.sleep(0.01)

    async with asyncio.timeout(30):
        await asyncio.gather(one(), one())
    assert await days_in(database) == await days_in(database, "event_facts") == {1: 3}


class TestAWrongClock:
    async def test_days_pass_one_by_one(
        self, store: PostgresStore, retention: PostgresRetention, database: asyncpg.Connection
    ) -> None:
        # As if the clock had been set ahead by a year.
        await add(store, 1, 5)
        last_year = TODAY - timedelta(days=365)
        await database.execute("UPDATE retention_clock SET day = $1", last_year)
        for _ in range(3):
            assert await retention.today() == last_year + timedelta(days=1)
        with capture_logs() as logs:
            assert await turn(retention, ttls(1)) is True
        assert [line["event"] for line in logs] == ["retention_behind"]
        assert await days_in(database) == {1: 3, 5: 3}
        an_hour_ago = "UPDATE retention_clock SET passed_at = now() - interval '1 hour'"
        await database.execute(an_hour_ago)
        assert await retention.today() == last_year + timedelta(days=2)

    async def test_one_that_was_ahead_and_is_right_again_counts_at_once(
        self, retention: PostgresRetention, database: asyncpg.Connection
    ) -> None:
        ahead = "UPDATE retention_clock SET day = $1, passed_at = now() + interval '1 year'"
        await database.execute(ahead, TODAY + timedelta(days=365))
        assert await retention.today() == TODAY


class TestFunctions:
    @pytest.mark.parametrize("day", [TODAY, TODAY - timedelta(days=1), None])
    @pytest.mark.parametrize(
        "asked", ["drop_partitions('log_events', $1, '{}')", "delete_events($1, 'a', 10)"]
    )
    async def test_a_day_that_is_not_over_since_a_day_is_never_removed(
        self, store: PostgresStore, services_url: str, day: date | None, asked: str
    ) -> None:
        await add(store, 0, 1)
        services = await asyncpg.connect(services_url)
        with pytest.raises(asyncpg.InvalidParameterValueError):
            await services.fetchval(f"SELECT {asked}", day)
        await services.close()

    @pytest.mark.parametrize(
        "asked",
        [
            "drop_partitions('usage_rollup', '2024-01-01', '{}')",
            "drop_partitions('audit_outbox; DROP TABLE log_events', '2024-01-01', '{}')",
            "drop_partitions(NULL, '2024-01-01', '{}')",
            "delete_events('2024-01-01', 'a', 100001)",
            "delete_events('2024-01-01', 'a', NULL)",
            "erase_events('{}', array_fill(gen_random_uuid(), ARRAY[1001]), '{}', 'x')",
            "erase_calls('{}', array_fill(gen_random_uuid(), ARRAY[1001]), false, 'x')",
        ],
    )
    async def test_what_is_beyond_their_bounds_is_refused(
        self, services_url: str, asked: str
    ) -> None:
        services = await asyncpg.connect(services_url)
        with pytest.raises((asyncpg.InvalidParameterValueError, asyncpg.CaseNotFoundError)):
            await services.fetchval(f"SELECT {asked}")
        await services.close()


async def test_one_role_for_both_removes_as_well(empty_database_url: str) -> None:
    await migrate(empty_database_url)
    async with (
        open_postgres_store(empty_database_url, connections=1) as store,
        open_postgres_retention(empty_database_url) as retention,
    ):
        await add(store, 1, 9)
        assert (await remove_old(retention, ttls(7))).partitions == 2


class TestSettings:
    def test_types_have_their_own_time_by_their_name_in_capitals(self) -> None:
        settings = Settings(log_ttls_days={"LLM_QUERY_SENT": 30, "REVIEW_STARTED": 0})
        of = settings.event_ttls.of
        assert [of("llm_query_sent"), of("llm.query-sent"), of("review_started"), of("x")] == [
            30, 30, 0, 7,
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("log", "own", "ledger", "kept"),
        [(7, {}, 400, 400), (500, {}, 400, 500), (7, {"A": 450}, 400, 450), (0, {}, 400, 0),
         (7, {"A": 0}, 400, 0), (7, {}, 0, 0)],
    )  # fmt: skip
    def test_what_is_counted_is_kept_as_long_as_the_events(
        self, log: int, own: dict[str, int], ledger: int, kept: int
    ) -> None:
        settings = Settings(
            log_ttl_days=log, log_ttls_days=own, ledger_ttl_days=ledger, rollup_ttl_days=ledger
        )
        assert (settings.ledger_days, settings.sums_days) == (kept, kept)


def test_a_turn_has_an_end() -> None:
    removed = Removed(TODAY)
    assert sum(removed.goes_on() for _ in range(1_000)) == 200
    assert removed.complete is False


async def test_a_partition_of_a_time_before_the_calendar_holds_up_no_other(
    store: PostgresStore, retention: PostgresRetention, database: asyncpg.Connection
) -> None:
    await add(store, 9)
    await database.execute(
        "CREATE TABLE ancient PARTITION OF log_events"
        " FOR VALUES FROM ('0044-03-15 BC') TO ('0043-03-15 BC')"
    )
    try:
        assert (await remove_old(retention, ttls(7))).partitions == 2
    finally:
        await database.execute("DROP TABLE ancient")
