"""Events that could not be stored: told with the reason, replayed, dropped, never lost."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
import requests
from commanded import CommandHere
from conftest import ADMIN_API_KEY, API_KEY
from events_made import REDACTOR, an_event, unchecked
from served import ask, served

from logging_service import wire
from logging_service.audit import COMMAND_LINE
from logging_service.dead_letters import page_of, replay, shown
from logging_service.delivering import sort_events
from logging_service.errors import BackendUnavailable
from logging_service.ports import Appended, DeadLetter, Delivery, LetterFilter, LetterKey, Sorted
from logging_service.postgres_dead_letters import PostgresDeadLetters, open_postgres_dead_letters
from logging_service.postgres_store import PostgresStore, open_postgres_store
from logging_service.query_service import create_app
from logging_service.redis_queue import RedisQueue, open_redis_queue
from logging_service.settings import Settings

ADMIN = {"X-API-Key": ADMIN_API_KEY}
LONG_AGO = wire.now_micros() - 40 * 86_400 * 1_000_000


@pytest.fixture
async def store(services_url: str) -> AsyncIterator[PostgresStore]:
    async with open_postgres_store(services_url, connections=4) as opened:
        yield opened


@pytest.fixture
async def letters(services_url: str) -> AsyncIterator[PostgresDeadLetters]:
    async with open_postgres_dead_letters(services_url, connections=2) as opened:
        yield opened


@pytest.fixture
async def queue(redis_url: str) -> AsyncIterator[RedisQueue]:
    async with open_redis_queue(
        redis_url, name="log_queue", ttl_seconds=3600, timeout_ms=2000
    ) as opened:
        yield opened


async def bury(store: PostgresStore, *events: bytes, reason: str = "rejected") -> None:
    dead = [DeadLetter(event, reason, f"is {reason}", 1, "23514") for event in events]
    batch = Sorted(Delivery(uuid.uuid4(), list(events), 1), [], dead=dead)
    assert (await store.append(batch)).dead_lettered == len(events)


async def consume(queue: RedisQueue, store: PostgresStore) -> Appended:
    """Move one delivery into the store, as a consumer does."""
    delivery = await queue.take(1000, 0)
    assert delivery is not None
    appended = await store.append(sort_events(delivery, 3600, wire.now_micros()))
    await queue.done(delivery)
    return appended


async def replay_all(letters: PostgresDeadLetters, queue: RedisQueue) -> tuple[int, dict[int, str]]:
    replayed, refused = 0, dict[int, str]()
    keys = await letters.keys(LetterFilter(), 10_000)
    async for step in replay(letters, queue, keys, COMMAND_LINE, REDACTOR):
        replayed += step.replayed
        refused |= {refusal.id: refusal.detail for refusal in step.refused}
    return replayed, refused


def an_odd_event(
    payload: bytes = b"{}",
    *,
    event_type: bytes = b"review_started",
    session: bytes | None = None,
    trace_id: bytes | None = None,
) -> bytes:
    """Return an element with a good seal, whatever stands in it."""
    made = wire.decode(an_event())
    texts = (session, event_type, b"tests", trace_id, None, None)
    columns = b"".join(wire.NULL if text is None else wire.column(text) for text in texts)
    return wire.encode(made.event_id.int, made.timestamp, made.received_at, columns, payload)


class TestTheSameLetter:
    async def test_an_event_that_fails_again_for_the_same_reason_is_one_letter(
        self, store: PostgresStore, letters: PostgresDeadLetters
    ) -> None:
        event = an_event()
        for _ in range(3):
            await bury(store, event)
        (letter,) = (await letters.letters([1])).values()
        assert (letter.event, letter.attempts, letter.sqlstate) == (event, 3, "23514")
        assert letter.first_seen < letter.last_seen
        assert await store.dead_letters() == 1

    async def test_the_time_of_receipt_makes_no_other_letter(self, store: PostgresStore) -> None:
        event = an_event()
        await bury(store, event, wire.received_anew(event, LONG_AGO))
        assert await store.dead_letters() == 1

    async def test_another_reason_or_content_is_another_letter(self, store: PostgresStore) -> None:
        event_id, now = uuid.uuid4(), datetime.now(UTC)
        one, two = (an_event(payload={"n": n}, event_id=event_id, timestamp=now) for n in (1, 2))
        await bury(store, one, two)
        await bury(store, one, reason="conflict")
        assert await store.dead_letters() == 3

    async def test_bytes_that_are_no_event_are_the_same_only_when_all_are(
        self, store: PostgresStore
    ) -> None:
        garbage = bytearray(an_event())
        garbage[45] ^= 1
        await bury(store, b"", b"", b"garbage", bytes(garbage), reason="unreadable")
        assert await store.dead_letters() == 3

    async def test_attempts_end_at_what_the_column_holds(
        self, store: PostgresStore, database: asyncpg.Connection
    ) -> None:
        event = an_event()
        await bury(store, event)
        await database.execute("UPDATE dead_letters SET attempts = 2147483646")
        for _ in range(3):
            await bury(store, event)
        assert await database.fetchval("SELECT attempts FROM dead_letters") == 2**31 - 1

    async def test_two_consumers_that_bury_the_same_events_wait_for_each_other(
        self, store: PostgresStore, database: asyncpg.Connection
    ) -> None:
        events = [an_event(payload={"n": n}) for n in range(200)]
        await asyncio.gather(*(bury(store, *events[::step]) for step in (1, -1) * 3))
        assert await database.fetchval("SELECT sum(attempts) FROM dead_letters") == 1200
        assert await store.dead_letters() == 200

    async def test_letters_of_the_former_schema_stay_as_they_are(
        self, database: asyncpg.Connection, letters: PostgresDeadLetters
    ) -> None:
        event = an_event()
        for _ in range(2):
            await database.execute(
                "INSERT INTO dead_letters (event, reason, detail, attempts)"
                " VALUES ($1, 'rejected', 'because', 1)",
                event,
            )
        assert await letters.count(LetterFilter()) == 2


class TestReplay:
    async def test_an_event_is_redacted_as_a_new_one_is_and_then_stays_the_same(
        self, store: PostgresStore, letters: PostgresDeadLetters, queue: RedisQueue
    ) -> None:
        before = unchecked(b'{"email":["a","b"],"n":1e2}', session_id="of ada@example.org")
        await bury(store, before)
        assert (await replay_all(letters, queue))[0] == 1
        delivery = await queue.take(10, 0)
        assert delivery is not None
        once = wire.decode(delivery.events[0])
        assert once.redactions == b'{"email":3}'
        assert (once.session_id or "").startswith("of [email:")
        assert once.payload.endswith(b'],"n":1e2}')
        assert once.event_id == wire.decode(before).event_id
        await bury(store, delivery.events[0])
        assert (await replay_all(letters, queue))[0] == 1
        again = await queue.take(10, 0)
        assert again is not None
        assert wire.lasting(again.events[0]) == wire.lasting(delivery.events[0])

    async def test_a_replayed_event_is_stored_with_all_its_fields(
        self,
        store: PostgresStore,
        letters: PostgresDeadLetters,
        queue: RedisQueue,
        database: asyncpg.Connection,
    ) -> None:
        payload = '{"b": 1.0, "a": [1e2, "é"]}'.encode()
        event = an_event("llm_query_sent", 42, payload)
        await bury(store, event)
        assert await replay_all(letters, queue) == (1, {})
        assert await consume(queue, store) == Appended(1, 0, 0, 0)
        made = wire.decode(event)
        row = await database.fetchrow("SELECT *, payload::text AS text FROM log_events")
        assert (row["event_id"], row["text"].encode()) == (made.event_id, payload)
        assert row["timestamp"] == wire.from_micros(made.timestamp)
        assert (row["event_type"], row["session_id"], row["source"]) == (
            "llm_query_sent",
            "42",
            "tests",
        )

    async def test_an_event_of_long_ago_is_received_anew_and_does_not_expire(
        self, store: PostgresStore, letters: PostgresDeadLetters, queue: RedisQueue
    ) -> None:
        await bury(store, an_event(received_at=LONG_AGO))
        assert await replay_all(letters, queue) == (1, {})
        assert await consume(queue, store) == Appended(1, 0, 0, 0)

    async def test_a_replayed_letter_is_marked_and_counted_no_more(
        self, store: PostgresStore, letters: PostgresDeadLetters, queue: RedisQueue
    ) -> None:
        await bury(store, an_event())
        await replay_all(letters, queue)
        assert await store.dead_letters() == 0
        assert await letters.keys(LetterFilter(), 10) == []
        assert [key.id for key in await letters.keys(LetterFilter(replayed=True), 10)] == [1]
        assert await replay_all(letters, queue) == (0, {})
        assert (await queue.status()).size == 1

    async def test_one_that_fails_again_comes_back_with_an_attempt_more(
        self,
        store: PostgresStore,
        letters: PostgresDeadLetters,
        queue: RedisQueue,
        database: asyncpg.Connection,
    ) -> None:
        await database.execute("ALTER TABLE log_events ADD CONSTRAINT no CHECK (source <> 'bad')")
        await queue.put([an_event(source="bad")])
        await consume(queue, store)
        assert await replay_all(letters, queue) == (1, {})
        assert await store.dead_letters() == 0
        assert await consume(queue, store) == Appended(0, 0, 1, 0)
        (letter,) = (await letters.letters([1])).values()
        assert (letter.attempts, letter.replayed_at) == (2, None)
        assert (letter.sqlstate, await store.dead_letters()) == ("23514", 1)

    async def test_one_that_fails_before_it_is_marked_stays_open(
        self, store: PostgresStore, letters: PostgresDeadLetters
    ) -> None:
        event = an_event()
        await bury(store, event)
        keys = await letters.keys(LetterFilter(), 10)
        await bury(store, event)
        await letters.mark_replayed(keys, COMMAND_LINE)
        assert await store.dead_letters() == 1

    async def test_a_crash_before_the_mark_only_makes_a_duplicate(
        self, store: PostgresStore, letters: PostgresDeadLetters, queue: RedisQueue
    ) -> None:
        await bury(store, an_event())
        kept = (await letters.letters([1]))[1]
        await queue.put([kept.event])
        assert await replay_all(letters, queue) == (1, {})
        assert await consume(queue, store) == Appended(1, 1, 0, 0)

    @pytest.mark.parametrize(
        ("event", "said"),
        [
            (b"", "format none"),
            (b"garbage", "format 67"),
            (an_event()[:-1] + b"!", "checksum"),
            (an_odd_event(b'{"a": tru}'), "payload"),
            (an_odd_event(b'{"a": "\xff"}'), "UTF-8"),
            (an_odd_event(b"[1]"), "object"),
            (an_odd_event(b""), "object"),
            (an_odd_event(b'{"a": "\\u0000"}'), "NUL"),
            (an_odd_event(b'{"a": "\\ud800"}'), "payload"),
            (an_odd_event(b'{"a": 1e400}'), "too large"),
            (an_odd_event(b'{"a":' * 33 + b"1" + b"}" * 33), "levels"),
            (an_odd_event(b'{"a": "%s"}' % (b"x" * 262_144)), "bytes"),
            (an_odd_event(event_type=b""), "event_type"),
            (an_odd_event(event_type=b"a b"), "event_type"),
            (an_odd_event(session=b"x" * 201), "session_id"),
            (an_odd_event(session=b"a\x00b"), "session_id"),
            (an_odd_event(session=b"\xff"), ""),
            (an_odd_event(trace_id=b"x" * 65), "trace_id"),
        ],
        ids=range(18),
    )
    async def test_what_no_producer_would_take_is_refused_and_stays(
        self,
        store: PostgresStore,
        letters: PostgresDeadLetters,
        queue: RedisQueue,
        event: bytes,
        said: str,
    ) -> None:
        await bury(store, an_event(), event, an_event())
        keys = {kept.event: kept.id for kept in (await letters.letters([1, 2, 3])).values()}
        replayed, refused = await replay_all(letters, queue)
        assert (replayed, list(refused)) == (2, [keys[event]])
        assert said in refused[keys[event]]
        assert (await queue.status()).size == 2
        assert await store.dead_letters() == 1
        shown((await letters.letters([keys[event]]))[keys[event]])

    async def test_a_letter_that_is_gone_by_now_is_refused(
        self, store: PostgresStore, letters: PostgresDeadLetters, queue: RedisQueue
    ) -> None:
        await bury(store, an_event())
        keys = await letters.keys(LetterFilter(), 10)
        await letters.drop([1], COMMAND_LINE)
        steps = [step async for step in replay(letters, queue, keys, COMMAND_LINE, REDACTOR)]
        assert [(step.replayed, step.refused[0].id) for step in steps] == [(0, 1)]

    async def test_a_queue_that_is_away_leaves_the_letters_open(
        self, store: PostgresStore, letters: PostgresDeadLetters, free_port: int
    ) -> None:
        await bury(store, an_event())
        url = f"redis://127.0.0.1:{free_port}/0"
        async with open_redis_queue(url, name="q", ttl_seconds=60, timeout_ms=200) as away:
            with pytest.raises(BackendUnavailable):
                await replay_all(letters, away)
        assert await store.dead_letters() == 1

    async def test_replayed_letters_are_forgotten_after_a_week(
        self, store: PostgresStore, letters: PostgresDeadLetters, database: asyncpg.Connection
    ) -> None:
        await bury(store, an_event(), an_event(), an_event())
        for letter_id, days in ((1, 6), (2, 8)):
            await database.execute(
                "UPDATE dead_letters SET replayed_at = now() - make_interval(days => $2)"
                " WHERE id = $1",
                letter_id,
                days,
            )
        await store.prepare()
        assert set(await letters.letters([1, 2, 3])) == {1, 3}

    async def test_many_letters_are_replayed_in_the_order_of_their_coming(
        self, store: PostgresStore, letters: PostgresDeadLetters, queue: RedisQueue
    ) -> None:
        events = [an_event(payload={"n": n}) for n in range(1201)]
        for event in (events[:400], events[400:]):
            await bury(store, *event)
        assert await replay_all(letters, queue) == (1201, {})
        taken: list[bytes] = []
        while delivery := await queue.take(500, 0):
            taken += delivery.events
            await queue.done(delivery)
        kept = await letters.letters(range(1, 1202))
        ids = [wire.decode(event).event_id for event in taken]
        assert ids == [wire.decode(kept[n].event).event_id for n in range(1, 1202)]


class TestPages:
    async def test_pages_meet_every_letter_once_newest_first(
        self, store: PostgresStore, letters: PostgresDeadLetters
    ) -> None:
        await bury(store, *(an_event() for _ in range(7)))
        met: list[int] = []
        beyond: int | None = 0
        while beyond is not None:
            page, beyond = await page_of(letters, LetterFilter(), beyond, 3)
            met += [letter.id for letter in page]
        assert met == [7, 6, 5, 4, 3, 2, 1]

    async def test_a_page_of_large_letters_ends_early(
        self, store: PostgresStore, letters: PostgresDeadLetters
    ) -> None:
        large = [an_event(payload={"text": "x" * 250_000, "n": n}) for n in range(80)]
        await bury(store, *large)
        page, following = await page_of(letters, LetterFilter(), 0, 1000)
        assert sum(letter.size for letter in page) < 17 * 1024 * 1024
        assert following == page[-1].id
        rest, end = await page_of(letters, LetterFilter(), following, 1000)
        assert (len(page) + len(rest), end) == (80, None)


KEYS = {
    "none": {},
    "wrong": {"X-API-Key": "another_key_123"},
    "read and write": {"X-API-Key": API_KEY},
    "admin": ADMIN,
    "bearer": {"Authorization": f"Bearer {ADMIN_API_KEY}"},
}
ROUTES = [
    ("GET", "/dead-letters"),
    ("GET", "/dead-letters/1"),
    ("POST", "/dead-letters/replay"),
]


class Letters:
    """The routes of a service, asked with the key that may do everything."""

    def __init__(self, url: str) -> None:
        self.url = f"{url}/dead-letters"

    async def get(self, path: str = "", **parameters: Any) -> requests.Response:
        return await ask(f"{self.url}{path}", headers=ADMIN, params=parameters)

    async def ids(self, **parameters: Any) -> list[int]:
        answer = await self.get(**parameters)
        assert answer.status_code == 200, answer.text
        return [letter["id"] for letter in answer.json()["dead_letters"]]

    async def replay(self, order: Any, **more: Any) -> requests.Response:
        body = {"data": order} if isinstance(order, bytes) else {"json": order}
        return await ask(f"{self.url}/replay", "POST", headers=ADMIN, **body, **more)


@pytest.fixture
async def service(settings: Settings) -> AsyncIterator[Letters]:
    async with served(create_app(settings)) as url:
        yield Letters(url)


def faults(answer: requests.Response) -> list[str]:
    assert answer.headers["Content-Type"] == "application/problem+json"
    return [error["loc"] for error in answer.json()["errors"]]


class TestRoutes:
    @pytest.mark.parametrize(("method", "path"), ROUTES)
    @pytest.mark.parametrize(
        ("key", "refused"),
        [("none", 401), ("wrong", 401), ("read and write", 403), ("admin", 0), ("bearer", 0)],
    )
    async def test_only_an_admin_is_let_in(
        self, service: Letters, store: PostgresStore, method: str, path: str, key: str, refused: int
    ) -> None:
        await bury(store, an_event())
        url = service.url.removesuffix("/dead-letters") + path
        body = {"json": {"all": True}} if method == "POST" else {}
        answer = await ask(url, method, headers=KEYS[key], **body)
        assert answer.status_code == (refused or 200)
        assert await store.dead_letters() == (0 if method == "POST" and not refused else 1)

    async def test_a_letter_is_told_with_its_event(
        self, service: Letters, store: PostgresStore
    ) -> None:
        payload = b'{"b": 1.0,  "a": "\xc3\xa9"}'
        event = an_event("llm_query_sent", "s1", payload)
        await bury(store, event, reason="conflict")
        answer = await service.get("/1")
        assert f'"payload":{payload.decode()}' in answer.content.decode()
        letter = answer.json()
        made = wire.decode(event)
        assert (letter.pop("first_seen"), letter.pop("last_seen")) > ("2026", "2026")
        assert letter == {
            "id": 1,
            "reason": "conflict",
            "detail": "is conflict",
            "sqlstate": "23514",
            "attempts": 1,
            "replayed_at": None,
            "size": len(event),
            "event_id": str(made.event_id),
            "timestamp": wire.from_micros(made.timestamp).isoformat().replace("+00:00", "Z"),
            "event_type": "llm_query_sent",
            "session_id": "s1",
            "source": "tests",
            "payload": json.loads(payload),
        }

    @pytest.mark.parametrize(
        "event",
        [b"", b"garbage", an_event()[:-2], b"\x01" + bytes(300)],
        ids=["nothing", "garbage", "cut", "zeros"],
    )
    async def test_bytes_that_cannot_be_read_have_a_size_and_no_fields(
        self, service: Letters, store: PostgresStore, event: bytes
    ) -> None:
        await bury(store, event, reason="unreadable")
        letter = (await service.get("/1")).json()
        assert letter["size"] == len(event)
        for name in ("event_id", "timestamp", "event_type", "session_id", "source", "payload"):
            assert letter[name] is None

    @pytest.mark.parametrize("payload", [b'{"a": tru}', b"\xff", b"", b'{"a":' * 5000])
    async def test_a_payload_that_is_no_json_is_null_and_the_rest_is_told(
        self, service: Letters, store: PostgresStore, payload: bytes
    ) -> None:
        await bury(store, an_odd_event(payload, session=b"s1"))
        (letter,) = (await service.get()).json()["dead_letters"]
        assert (letter["payload"], letter["session_id"]) == (None, "s1")

    async def test_bytes_that_ended_a_consumer_are_not_read_to_show_them(
        self, service: Letters, store: PostgresStore
    ) -> None:
        await bury(store, an_event(), reason="crash")
        letter = (await service.get("/1")).json()
        assert (letter["event_type"], letter["payload"]) == (None, None)

    async def test_filters_choose_and_hold_at_the_same_time(
        self, service: Letters, store: PostgresStore, letters: PostgresDeadLetters
    ) -> None:
        await bury(store, an_event("a"))
        await bury(store, an_event("b"))
        await bury(store, an_event("a"), reason="conflict")
        await letters.mark_replayed([LetterKey(2, 1, 0)], COMMAND_LINE)
        assert await service.ids() == [3, 1]
        assert await service.ids(reason="rejected") == [1]
        assert await service.ids(reason="rejected", event_type="b") == []
        assert await service.ids(event_type="a") == [3, 1]
        assert await service.ids(replayed="true") == [2]
        assert await service.ids(reason="never") == []

    async def test_a_cursor_goes_on_and_serves_its_own_question_alone(
        self, service: Letters, store: PostgresStore
    ) -> None:
        await bury(store, *(an_event() for _ in range(5)))
        first = (await service.get(limit=2)).json()
        await bury(store, an_event())
        assert await service.ids(limit=3, cursor=first["next_cursor"]) == [3, 2, 1]
        last = (await service.get(limit=3, cursor=first["next_cursor"])).json()
        assert last["next_cursor"] is None
        other = await service.get(reason="rejected", cursor=first["next_cursor"])
        assert (other.status_code, faults(other)) == (422, ["cursor"])

    @pytest.mark.parametrize(
        ("parameters", "at_fault"),
        [
            ({"limit": 0}, ["limit"]),
            ({"limit": 1001}, ["limit"]),
            ({"limit": "many"}, ["limit"]),
            ({"limit": [1, 2]}, ["limit"]),
            ({"reason": ""}, ["reason"]),
            ({"reason": "x" * 101}, ["reason"]),
            ({"reason": "a\x00"}, ["reason"]),
            ({"event_type": "a b"}, ["event_type"]),
            ({"replayed": "perhaps"}, ["replayed"]),
            ({"cursor": ""}, ["cursor"]),
            ({"cursor": "é"}, ["cursor"]),
            ({"cursor": "AAAA"}, ["cursor"]),
            ({"sort": "asc"}, ["sort"]),
            ({"page": 1}, ["page"]),
        ],
        ids=str,
    )
    async def test_a_wrong_parameter_is_named(
        self, service: Letters, parameters: dict[str, Any], at_fault: list[str]
    ) -> None:
        answer = await service.get(**parameters)
        assert (answer.status_code, faults(answer)) == (422, at_fault)

    @pytest.mark.parametrize("letter_id", ["0", "-1", "x", str(2**63), "1.5", "%00"])
    async def test_an_id_that_cannot_be_is_named(self, service: Letters, letter_id: str) -> None:
        answer = await service.get(f"/{letter_id}")
        assert (answer.status_code, faults(answer)) == (422, ["letter_id"])

    @pytest.mark.parametrize("letter_id", [1, 2**63 - 1])
    async def test_an_unknown_id_is_not_found(self, service: Letters, letter_id: int) -> None:
        assert (await service.get(f"/{letter_id}")).status_code == 404

    @pytest.mark.parametrize("path", ["/1", "/replay"])
    async def test_no_route_takes_a_parameter_that_it_does_not_know(
        self, service: Letters, path: str
    ) -> None:
        answer = (
            await service.replay({"all": True}, params={"force": 1})
            if path == "/replay"
            else await service.get(path, force=1)
        )
        assert (answer.status_code, faults(answer)) == (422, ["force"])

    @pytest.mark.parametrize(
        ("order", "status", "at_fault"),
        [
            ({}, 422, ["body"]),
            ({"ids": [1], "all": True}, 422, ["body"]),
            ({"ids": [1], "reason": "x"}, 422, ["body"]),
            ({"after": 3}, 422, ["body"]),
            ([1], 422, ["body"]),
            ("all", 422, ["body"]),
            (b"null", 422, ["body"]),
            ({"ids": []}, 422, ["ids"]),
            ({"ids": [0]}, 422, ["ids"]),
            ({"ids": [2**63]}, 422, ["ids"]),
            ({"ids": ["1"]}, 422, ["ids"]),
            ({"ids": [1.0]}, 422, ["ids"]),
            ({"ids": [True]}, 422, ["ids"]),
            ({"ids": 1}, 422, ["ids"]),
            ({"ids": [*range(1, 10_002)]}, 422, ["ids"]),
            ({"all": False}, 422, ["body"]),
            ({"all": None}, 422, ["all"]),
            ({"all": 1}, 422, ["all"]),
            ({"reason": ""}, 422, ["reason"]),
            ({"reason": 1}, 422, ["reason"]),
            ({"reason": "a\x00"}, 422, ["reason"]),
            ({"all": True, "after": -1}, 422, ["after"]),
            ({"all": True, "force": True}, 422, ["force"]),
            (b"", 400, []),
            (b"{", 400, []),
            (b'{"all": true} x', 400, []),
            (b'{"reason": "\xff"}', 400, []),
            (b"[" * 100_000, 400, []),
            (b" " * 600_000, 413, []),
        ],
        ids=lambda value: repr(value)[:40],
    )
    async def test_a_wrong_order_is_named_and_replays_nothing(
        self, service: Letters, store: PostgresStore, order: Any, status: int, at_fault: list[str]
    ) -> None:
        await bury(store, an_event())
        answer = await service.replay(order)
        assert answer.status_code == status, answer.text
        if status == 422:
            assert faults(answer)[:1] == at_fault
        assert await store.dead_letters() == 1

    async def test_an_order_that_is_not_sent_as_json_is_refused(self, service: Letters) -> None:
        answer = await ask(f"{service.url}/replay", "POST", headers=ADMIN, data={"all": "true"})
        assert answer.status_code == 415

    @pytest.mark.parametrize(
        ("order", "left"),
        [
            ({"all": True}, []),
            ({"reason": "conflict"}, [2, 1]),
            ({"ids": [1, 3, 1]}, [2]),
            ({"all": True, "after": 1}, [1]),
        ],
    )
    async def test_an_order_says_which_letters(
        self,
        service: Letters,
        store: PostgresStore,
        queue: RedisQueue,
        order: dict[str, Any],
        left: list[int],
    ) -> None:
        await bury(store, an_event())
        await bury(store, an_event())
        await bury(store, an_event(), reason="conflict")
        answer = (await service.replay(order)).json()
        assert answer == {"replayed": 3 - len(left), "refused": [], "remaining": 0, "after": None}
        assert await service.ids() == left
        assert (await queue.status()).size == 3 - len(left)

    async def test_what_was_refused_is_told_with_the_reason(
        self, service: Letters, store: PostgresStore, letters: PostgresDeadLetters
    ) -> None:
        await bury(store, an_event())
        await bury(store, b"garbage", reason="unreadable")
        await bury(store, an_event())
        await letters.mark_replayed([LetterKey(3, 1, 0)], COMMAND_LINE)
        answer = (await service.replay({"ids": [99, 1, 2, 3]})).json()
        assert answer["replayed"] == 1
        assert [refusal["id"] for refusal in answer["refused"]] == [2, 3, 99]
        assert "format 67" in answer["refused"][0]["detail"]
        assert await service.ids() == [2]

    async def test_a_large_order_is_done_in_several_requests(
        self, service: Letters, store: PostgresStore
    ) -> None:
        large = [an_event(payload={"text": "x" * 260_000, "n": n}) for n in range(270)]
        for start in range(0, 270, 90):
            await bury(store, *large[start : start + 90])
        await bury(store, b"garbage", reason="unreadable")
        replayed, requests_made, refused, after = 0, 0, [], 0
        while after is not None:
            answer = (await service.replay({"all": True, "after": after})).json()
            replayed, requests_made = replayed + answer["replayed"], requests_made + 1
            refused += answer["refused"]
            assert (answer["remaining"] == 0) == (answer["after"] is None)
            after = answer["after"]
        assert (replayed, requests_made) == (270, 2)
        assert [refusal["id"] for refusal in refused] == [271]

    async def test_without_the_queue_nothing_is_replayed_and_letters_are_still_told(
        self, settings: Settings, store: PostgresStore, free_port: int
    ) -> None:
        await bury(store, an_event())
        away = settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{free_port}/0"})
        async with served(create_app(away)) as url:
            service = Letters(url)
            answer = await service.replay({"all": True})
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
            assert await service.ids() == [1]

    async def test_without_the_database_the_routes_are_unavailable(
        self, settings: Settings, free_port: int
    ) -> None:
        away = f"postgresql://nobody@127.0.0.1:{free_port}/none"
        async with served(create_app(settings.model_copy(update={"database_url": away}))) as url:
            service = Letters(url)
            answers = [await service.get(), await service.get("/1")]
            answers.append(await service.replay({"all": True}))
            assert [answer.status_code for answer in answers] == [503] * 3


@pytest.fixture
def command(environment: dict[str, str]) -> CommandHere:
    return CommandHere("dead-letters", environment)


def lines(text: str) -> Sequence[str]:
    return text.strip().splitlines()


class TestCommands:
    async def test_list_shows_letters_to_people_and_programs(
        self, command: CommandHere, store: PostgresStore
    ) -> None:
        assert (await command.run("list")).stdout == "no dead letters\n"
        await bury(store, an_event("llm_query_sent", "s1"))
        await bury(store, b"garbage", reason="unreadable")
        table = lines((await command.run("list")).stdout)
        assert [line.split()[0] for line in table] == ["id", "2", "1"]
        assert {"rejected", "llm_query_sent", "s1"} <= set(table[2].split())
        listed = json.loads((await command.run("list", "--json", "--limit", "1")).stdout)
        assert [letter["id"] for letter in listed["dead_letters"]] == [2]
        assert listed["before"] == 2
        rest = await command.run("list", "--json", "--before", "2", "--reason", "rejected")
        assert [letter["id"] for letter in json.loads(rest.stdout)["dead_letters"]] == [1]

    async def test_show_shows_one_letter_with_its_payload(
        self, command: CommandHere, store: PostgresStore
    ) -> None:
        await bury(store, an_event(payload={"user": "ada"}))
        shown_letter = await command.run("show", "1")
        assert "rejected" in shown_letter.stdout
        assert '"user": "ada"' in shown_letter.stdout
        as_json = json.loads((await command.run("show", "1", "--json")).stdout)
        assert as_json["payload"] == {"user": "ada"}
        gone = await command.run("show", "99", code=1)
        assert gone.stderr == "there is no dead letter 99\n"

    async def test_a_terminal_obeys_nothing_that_a_letter_says(
        self, command: CommandHere, store: PostgresStore
    ) -> None:
        hostile = "\x1b]0;owned\x07\x1b[2J[bold]\x9b"
        await bury(store, an_event(session_id=hostile, payload={"text": "\x9b2J"}))
        for arguments in (("list",), ("show", "1")):
            text = (await command.run(*arguments)).stdout
            assert "[bold]" in text
            assert all(line.isprintable() for line in text.splitlines())

    async def test_replay_puts_events_back_and_says_what_was_refused(
        self, command: CommandHere, store: PostgresStore, queue: RedisQueue
    ) -> None:
        await bury(store, *(an_event() for _ in range(3)))
        assert (await command.run("replay", "1", "2")).stdout == "replayed 2\n"
        await bury(store, b"garbage", reason="unreadable")
        done = await command.run("replay", "--all", code=1)
        assert done.stdout == "replayed 1\n"
        assert len(lines(done.stderr)) == 1
        assert "4: format 67" in done.stderr
        again = await command.run("replay", "1", code=1)
        assert "no such letter" in again.stderr
        assert (await queue.status()).size == 3

    async def test_replay_takes_one_reason_alone(
        self, command: CommandHere, store: PostgresStore
    ) -> None:
        await bury(store, an_event())
        await bury(store, an_event(), reason="conflict")
        await command.run("replay", "--reason", "conflict")
        assert await store.dead_letters() == 1

    async def test_drop_asks_and_forgets_for_good(
        self, command: CommandHere, store: PostgresStore, letters: PostgresDeadLetters
    ) -> None:
        await bury(store, *(an_event() for _ in range(4)))
        asked = await command.run("drop", "1", "2", answer="n\n", code=1)
        assert "Forget 2 dead letters for good?" in asked.stdout + asked.stderr
        assert await store.dead_letters() == 4
        await command.run("drop", "1", "2", answer="y\n")
        assert set(await letters.letters([1, 2, 3, 4])) == {3, 4}
        assert (await command.run("drop", "--all", "--yes")).stdout == "dropped 2\n"
        gone = await command.run("drop", "1", "--yes", code=1)
        assert gone.stderr == "1 of these 1 were not there, or are replayed\n"

    @pytest.mark.parametrize(
        "arguments",
        [
            ("replay",),
            ("drop", "--yes"),
            ("replay", "1", "--all"),
            ("drop", "1", "--reason", "x", "--yes"),
            ("replay", "0"),
            ("show", "-1"),
            ("show", "x"),
            ("list", "--limit", "0"),
        ],
        ids=" ".join,
    )
    async def test_a_wrong_choice_is_refused_before_anything_is_done(
        self, command: CommandHere, store: PostgresStore, arguments: tuple[str, ...]
    ) -> None:
        await bury(store, an_event())
        await command.run(*arguments, code=2)
        assert await store.dead_letters() == 1

    @pytest.mark.parametrize("name", ["list", "show", "replay", "drop"])
    async def test_each_explains_itself_with_an_example(
        self, command: CommandHere, name: str
    ) -> None:
        assert f"dead-letters {name}" in (await command.run(name, "--help")).stdout

    @pytest.mark.parametrize("variable", ["DATABASE_URL", "REDIS_URL"])
    async def test_what_is_away_is_one_line(
        self,
        environment: dict[str, str],
        store: PostgresStore,
        free_port: int,
        variable: str,
    ) -> None:
        await bury(store, an_event())
        scheme = environment[variable].partition(":")[0]
        away = {**environment, variable: f"{scheme}://nobody@127.0.0.1:{free_port}/0"}
        done = await CommandHere("dead-letters", away).run("replay", "--all", code=1)
        assert len(lines(done.stderr)) == 1
        assert await store.dead_letters() == 1
