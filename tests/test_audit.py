"""What was done with the log is an event itself: noted with the deed, and forwarded."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import asyncpg
import pytest
from conftest import ADMIN_API_KEY, API_KEY
from consuming import consuming, count, log_queue, until
from events_made import REDACTOR, a_delivery, an_event, unchecked
from served import ask, served
from stored_rows import a_row, store_rows

from logging_service import audit_trail, wire
from logging_service.audit import (
    COMMAND_LINE,
    EVENTS_READ,
    Actor,
    AuditOutbox,
    KeptNote,
    Note,
    element_of,
)
from logging_service.audit_trail import Reads, forward, forwarding_audit, noting_reads
from logging_service.dead_letters import replay
from logging_service.delivering import sort_events
from logging_service.errors import BackendUnavailable, EventRejected
from logging_service.event_ttls import EventTtls
from logging_service.events import EventEncoder, Origin, SentEvent, uuid7_micros
from logging_service.pausing import Fault
from logging_service.ports import Appended, DeadLetter, LetterFilter, Sorted
from logging_service.postgres_audit import PostgresAuditOutbox, open_postgres_audit_outbox
from logging_service.postgres_dead_letters import PostgresDeadLetters, open_postgres_dead_letters
from logging_service.postgres_rebuild import open_postgres_roll_ups
from logging_service.postgres_reprice import open_postgres_call_ledger
from logging_service.postgres_store import PostgresStore, open_postgres_store
from logging_service.pricing import Prices
from logging_service.query_service import create_app
from logging_service.redis_queue import RedisQueue, open_redis_queue
from logging_service.repricing import Wanted, reprice
from logging_service.settings import Settings

ADA = Actor("ada", "k1")
A_NOTE = Note("audit.tested", ADA, {"n": 7})


@pytest.fixture
async def outbox(database_url: str) -> AsyncIterator[PostgresAuditOutbox]:
    async with open_postgres_audit_outbox(database_url, connections=2) as opened:
        yield opened


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[PostgresStore]:
    async with open_postgres_store(database_url, connections=2) as opened:
        yield opened


@pytest.fixture
async def queue(redis_url: str) -> AsyncIterator[RedisQueue]:
    async with log_queue(redis_url) as opened:
        yield opened


@pytest.fixture
async def letters(database_url: str) -> AsyncIterator[PostgresDeadLetters]:
    async with open_postgres_dead_letters(database_url, connections=2) as opened:
        yield opened


async def consume(queue: RedisQueue, store: PostgresStore) -> Appended:
    delivery = await queue.take(2_000, 0)
    assert delivery is not None
    appended = await store.append(sort_events(delivery, 3600, wire.now_micros()))
    await queue.done(delivery)
    return appended


class Noted(NamedTuple):
    """A note that waits, as it stands in the database."""

    event_type: str
    payload: dict[str, Any]


async def noted(database: asyncpg.Connection) -> list[Noted]:
    rows = await database.fetch(
        "SELECT event_type, payload FROM audit_outbox"
        " WHERE event_type <> 'audit.partitions_made' ORDER BY number"
    )
    return [Noted(row["event_type"], json.loads(row["payload"])) for row in rows]


async def bury(store: PostgresStore, *events: bytes) -> None:
    dead = [DeadLetter(event, "rejected", "is bad", 1) for event in events]
    await store.append(Sorted(a_delivery(*events), [], dead=dead))


class TestForwarding:
    async def test_a_note_is_stored_as_an_event_like_any_other(
        self,
        outbox: AuditOutbox,
        queue: RedisQueue,
        store: PostgresStore,
        database: asyncpg.Connection,
    ) -> None:
        await outbox.add([A_NOTE])
        assert await forward(outbox, queue) == 1
        assert await count(database, "audit_outbox") == 0
        assert await consume(queue, store) == Appended(1, 0, 0, 0)
        row = await database.fetchrow("SELECT * FROM log_events")
        assert (row["event_type"], row["source"]) == ("audit.tested", "audit")
        assert json.loads(row["payload"]) == {"by": "ada", "key_id": "k1", "n": 7}
        assert row["session_id"] is row["trace_id"] is row["request_id"] is None
        # Its id tells its time, so that it is found by one look.
        micros = uuid7_micros(row["event_id"])
        assert micros is not None
        since = row["timestamp"] - wire.from_micros(micros)
        assert timedelta() <= since < timedelta(milliseconds=1)
        counted = "SELECT sum(events) FROM usage_deltas WHERE source = 'audit' AND event_type = ''"
        assert await database.fetchval(counted) == 1

    async def test_what_is_forwarded_twice_is_one_event(
        self,
        outbox: AuditOutbox,
        queue: RedisQueue,
        store: PostgresStore,
        database: asyncpg.Connection,
    ) -> None:
        await outbox.add([A_NOTE, A_NOTE])

        async def end_in_the_middle() -> None:
            async with outbox.taking(10) as notes:
                await queue.put([element_of(note, wire.now_micros()) for note in notes])
                raise BackendUnavailable

        with pytest.raises(BackendUnavailable):
            await end_in_the_middle()
        assert await count(database, "audit_outbox") == 2
        assert await forward(outbox, queue) == 2
        assert await consume(queue, store) == Appended(2, 2, 0, 0)

    async def test_a_queue_that_is_away_leaves_the_notes_where_they_are(
        self, outbox: AuditOutbox, database: asyncpg.Connection, free_port: int
    ) -> None:
        await outbox.add([A_NOTE])
        url = f"redis://127.0.0.1:{free_port}/0"
        async with open_redis_queue(url, name="q", ttl_seconds=60, timeout_ms=200) as away:
            with pytest.raises(BackendUnavailable):
                await forward(outbox, away)
        assert await noted(database) == [
            Noted("audit.tested", {"by": "ada", "key_id": "k1", "n": 7})
        ]

    async def test_a_turn_takes_the_oldest_thousand(
        self, outbox: AuditOutbox, queue: RedisQueue, database: asyncpg.Connection
    ) -> None:
        await database.execute(
            "INSERT INTO audit_outbox (event_type, payload)"
            " SELECT 'audit.tested', json_build_object('n', n) FROM generate_series(1, 1001) AS n"
        )
        assert await forward(outbox, queue) == 1_000
        assert [note.payload for note in await noted(database)] == [{"n": 1_001}]
        assert (await queue.status()).size == 1_000
        assert await forward(outbox, queue) == 1
        assert await forward(outbox, queue) == 0

    async def test_a_note_that_no_service_wrote_keeps_no_other_waiting(
        self, outbox: AuditOutbox, queue: RedisQueue, database: asyncpg.Connection
    ) -> None:
        await database.execute(
            "INSERT INTO audit_outbox (event_type, payload, timestamp)"
            " VALUES ('audit.tested', '{}', 'infinity')"
        )
        await outbox.add([A_NOTE])
        await forward(outbox, queue)
        assert (await queue.status()).size == 1
        assert await noted(database) == []

    async def test_a_turn_that_fails_is_not_the_last(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(audit_trail, "_TURN_SECONDS", 0.0)
        turns = 0

        async def turn() -> None:
            nonlocal turns
            turns += 1
            raise LookupError

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(audit_trail._every_minute(turn, Fault("a_turn")), 0.02)
        assert turns > 1

    async def test_two_do_not_forward_the_same(
        self, outbox: AuditOutbox, queue: RedisQueue
    ) -> None:
        await outbox.add([A_NOTE])
        async with outbox.taking(10) as notes:
            assert len(notes) == 1
            assert await forward(outbox, queue) == 0
        assert await forward(outbox, queue) == 0
        assert (await queue.status()).size == 0

    async def test_a_process_that_stores_forwards_by_itself(
        self,
        settings: Settings,
        outbox: AuditOutbox,
        queue: RedisQueue,
        database: asyncpg.Connection,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(audit_trail, "_TURN_SECONDS", 0.02)
        await outbox.add([A_NOTE])
        async with forwarding_audit(settings, queue):
            await until(lambda: _is_forwarded(database))
        async with consuming(settings.queue_url, settings.store_url):
            await until(lambda: _is_stored(database))

    async def test_an_event_of_the_audit_can_be_replayed_from_the_dead_letters(
        self, store: PostgresStore, letters: PostgresDeadLetters, queue: RedisQueue
    ) -> None:
        now = wire.now_micros()
        note = KeptNote(uuid4(), datetime.now(UTC), "audit.tested", b"{}")
        await bury(store, element_of(note, now), unchecked(b"{}", "audit.forged", source="tests"))
        keys = await letters.keys(LetterFilter(), 10)
        (step,) = [step async for step in replay(letters, queue, keys, COMMAND_LINE, REDACTOR)]
        assert step.replayed == 1
        assert [refusal.detail for refusal in step.refused] == [
            "event_type: may not begin with audit."
        ]


async def _is_forwarded(database: asyncpg.Connection) -> bool:
    return not await noted(database)


async def _is_stored(database: asyncpg.Connection) -> bool:
    stored = "SELECT count(*) FROM log_events WHERE event_type = 'audit.tested'"
    return bool(await database.fetchval(stored))


def test_no_key_can_forge_an_event_of_the_audit() -> None:
    encoder, origin = (
        EventEncoder(EventTtls(7), REDACTOR),
        Origin("tests", None, None, wire.now_micros()),
    )
    for event_type in ("audit.", "audit.key_revoked"):
        for _ in range(2):
            with pytest.raises(EventRejected) as refused:
                encoder.encode(SentEvent(event_type), origin, suspicious=False)
            assert (refused.value.loc, refused.value.message) == (
                "event_type",
                "may not begin with audit.",
            )
    for event_type in ("audit", "auditing.done", "my.audit.x"):
        encoder.encode(SentEvent(event_type), origin, suspicious=False)


def test_the_id_of_an_event_is_made_of_the_notes_own() -> None:
    moment = datetime(2026, 11, 23, 10, 0, 0, 123_456, UTC)
    note = KeptNote(
        UUID("11112222-3333-4abc-8def-0123456789ab"), moment, "audit.tested", b'{"n":1}'
    )
    made = [wire.decode(element_of(note, received)) for received in (5, 6)]
    assert [one.event_id for one in made] == [UUID("01a207d9-217b-7abc-8def-0123456789ab")] * 2
    assert [(one.timestamp, one.received_at) for one in made] == [
        (wire.to_micros(moment), 5),
        (wire.to_micros(moment), 6),
    ]


class Kept:
    """An outbox that keeps what it is given, or fails."""

    def __init__(self) -> None:
        self.notes: list[Note] = []
        self.waiting: list[KeptNote] = []
        self.is_away = False

    async def add(self, notes: Sequence[Note]) -> None:
        if self.is_away:
            raise BackendUnavailable
        self.notes += notes

    def taking(self, most: int) -> AbstractAsyncContextManager[Sequence[KeptNote]]:
        return nullcontext(self.waiting[:most])


class TestReads:
    async def test_all_that_one_read_of_a_project_is_one_note(self) -> None:
        kept = Kept()
        reads = Reads(kept)
        before = datetime.now(UTC)
        for number in (50, 0, 1):
            reads.note(EVENTS_READ, ADA, "web", number)
        reads.note(EVENTS_READ, ADA, None, 3)
        await reads.write()
        await reads.write()
        first, second = kept.notes
        assert (first.event_type, first.actor) == ("audit.events_read", ADA)
        times = (first.payload.pop("first"), first.payload.pop("last"))
        assert before <= times[0] <= times[1] <= datetime.now(UTC)
        assert first.payload == {"project": "web", "requests": 3, "events": 51}
        assert second.payload["project"] is None

    async def test_of_very_many_readers_the_rest_is_one_note(self) -> None:
        kept = Kept()
        reads = Reads(kept)
        for number in range(1_000):
            reads.note(EVENTS_READ, Actor(f"reader {number}", None), None, 1)
        await reads.write()
        assert len(kept.notes) == 201
        assert kept.notes[-1].actor == Actor("other", None)
        assert sum(note.payload["events"] for note in kept.notes) == 1_000

    async def test_what_could_not_be_written_is_written_later(self) -> None:
        kept = Kept()
        reads = Reads(kept)
        reads.note(EVENTS_READ, ADA, None, 2)
        kept.is_away = True
        with pytest.raises(BackendUnavailable):
            await reads.write()
        reads.note(EVENTS_READ, ADA, None, 3)
        kept.is_away = False
        await reads.write()
        (note,) = kept.notes
        assert (note.payload["requests"], note.payload["events"]) == (2, 5)

    async def test_they_are_written_again_and_again_and_at_the_end(
        self, settings: Settings, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(audit_trail, "_TURN_SECONDS", 0.02)
        async with noting_reads(settings) as reads:
            reads.note(EVENTS_READ, ADA, "first", 1)
            await until(lambda: noted(database))
            monkeypatch.setattr(audit_trail, "_TURN_SECONDS", 60)
            await asyncio.sleep(0.05)
            reads.note(EVENTS_READ, ADA, "last", 1)
        assert [note.payload["project"] for note in await noted(database)] == ["first", "last"]


class TestDeeds:
    async def test_reading_events_letters_and_csv_is_noted_with_who_and_how_much(
        self,
        settings: Settings,
        store: PostgresStore,
        database: asyncpg.Connection,
        database_url: str,
    ) -> None:
        rows = [a_row(number, source="default") for number in range(3)]
        await store_rows(database_url, rows)
        await bury(store, an_event())
        key, admin = {"X-API-Key": API_KEY}, {"X-API-Key": ADMIN_API_KEY}
        csv = {"Accept": "text/csv"}
        async with served(create_app(settings)) as url:
            for path, headers, status in (
                ("/events", key, 200),
                ("/events?limit=2", key, 200),
                (f"/events/{rows[0].event_id}", key, 200),
                (f"/events/{uuid4()}", key, 404),
                ("/events?limit=1001", key, 422),
                ("/events?source=default", {}, 200),
                ("/events/types", admin, 200),
                ("/dead-letters", admin, 200),
                ("/dead-letters/1", admin, 200),
                ("/dead-letters/1", key, 403),
                ("/analytics/usage", key, 200),
                ("/analytics/usage?days=3", key | csv, 200),
            ):
                assert (await ask(f"{url}{path}", headers=headers)).status_code == status, path
            head = await ask(f"{url}/analytics/usage?days=3", "HEAD", headers=key | csv)
            assert head.status_code == 200
        told = await noted(database)
        for note in told:
            times = [datetime.fromisoformat(note.payload.pop(name)) for name in ("first", "last")]
            assert times[0] <= times[1]
        default = {"by": "default", "key_id": "API_KEY", "project": "default"}
        loopback = {"by": "loopback", "key_id": None, "project": "default"}
        assert told == [
            Noted("audit.events_read", {**default, "requests": 3, "events": 6}),
            Noted("audit.events_read", {**loopback, "requests": 1, "events": 3}),
            Noted(
                "audit.dead_letters_read",
                {"by": "admin", "key_id": "ADMIN_API_KEY", "project": None, "requests": 2}
                | {"dead_letters": 2},
            ),
            Noted("audit.exported", {**default, "requests": 1, "rows": 4}),
        ]

    async def test_a_replay_is_noted_with_who_asked_for_it(
        self, settings: Settings, store: PostgresStore, database: asyncpg.Connection
    ) -> None:
        await bury(store, an_event(), an_event())
        await bury(store, b"unreadable")
        async with served(create_app(settings)) as url:
            answer = await ask(
                f"{url}/dead-letters/replay",
                "POST",
                headers={"X-API-Key": ADMIN_API_KEY},
                json={"all": True},
            )
        assert answer.json()["replayed"] == 2
        assert await noted(database) == [
            Noted(
                "audit.replayed",
                {"by": "admin", "key_id": "ADMIN_API_KEY", "dead_letters": 2, "ids": [1, 2]},
            )
        ]

    async def test_dropped_letters_are_noted_and_nothing_where_there_were_none(
        self, store: PostgresStore, letters: PostgresDeadLetters, database: asyncpg.Connection
    ) -> None:
        await bury(store, an_event(), an_event())
        assert await letters.drop([2, 7], COMMAND_LINE) == 1
        assert await letters.drop([2], COMMAND_LINE) == 0
        assert await noted(database) == [
            Noted(
                "audit.dead_letters_dropped",
                {"by": "command line", "key_id": None, "dead_letters": 1, "ids": [2]},
            )
        ]

    async def test_corrected_costs_are_noted_with_the_difference(
        self, store: PostgresStore, database: asyncpg.Connection, database_url: str
    ) -> None:
        calls = [
            an_event("llm_query_sent", payload={"model": "gpt-4o", "input_tokens": 1_000})
            for _ in range(2)
        ]
        await store.append(Sorted(a_delivery(*calls), calls))
        await database.execute("UPDATE llm_calls SET cost_nanos = 0, best_nanos = 0")
        wanted = Wanted(datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))
        for record in (False, True):
            async with open_postgres_call_ledger(database_url) as ledger:
                async for _ in reprice(ledger, wanted, Prices(None), record=record):
                    pass
        times = [wire.from_micros(wire.decode(call).timestamp) for call in calls]
        ((event_type, payload),) = await noted(database)
        assert event_type == "audit.repriced"
        assert [datetime.fromisoformat(payload.pop(end)) for end in ("first", "last")] == times
        spent = await database.fetchval("SELECT sum(cost_nanos) FROM llm_calls")
        assert spent
        assert payload == {
            "by": "command line",
            "key_id": None,
            "corrections": 2,
            "difference_dollars": f"{Decimal(int(spent)).scaleb(-9):f}",
        }

    async def test_a_day_made_anew_is_noted_unless_it_was_a_look_alone(
        self, store: PostgresStore, database: asyncpg.Connection, database_url: str
    ) -> None:
        noon = datetime(2026, 11, 20, 12, tzinfo=UTC)
        event = an_event(timestamp=noon)
        await store.append(Sorted(a_delivery(event), [event]))
        async with open_postgres_roll_ups(database_url, Prices(None)) as roll_ups:
            for keep in (False, True):
                await roll_ups.rebuild(date(2026, 11, 20), lambda _: None, keep=keep)
        ((event_type, payload),) = await noted(database)
        assert (event_type, payload["by"], payload["day"]) == (
            "audit.rebuilt",
            "command line",
            "2026-11-20",
        )
        assert (payload["events"], payload["differed"]) == (1, 0)
