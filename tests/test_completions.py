"""What tells of the end of reviews is posted until it was taken, and refused only for good."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from consuming import until
from kept_reviews import (
    LogSink,
    a_sink,
    a_start,
    an_end,
    gateway_settings,
    rows,
    store_one,
    taken,
)
from redis.asyncio import Redis
from servers import run_service

from gateway.completions import Completions, NotTaken, Poster
from gateway.settings import GatewaySettings
from logging_service import wire
from storage import open_storage

Answers = Callable[[list[dict[str, Any]]], tuple[int, bytes]]


class MemoryOutbox:
    """Events in memory; those that are leased are not leased again until they are released."""

    def __init__(self, number: int) -> None:
        self.waiting = {str(n): an_event(n) for n in range(number)}
        self.leased: dict[str, bytes] = {}
        self.settled: dict[str, str | None] = {}

    async def lease_events(self, most: int) -> Mapping[str, bytes]:
        self.leased = {name: self.waiting.pop(name) for name in list(self.waiting)[:most]}
        return self.leased

    async def release_events(self, review_ids: Sequence[str]) -> None:
        self.waiting |= {name: self.leased[name] for name in review_ids}

    async def settle_events(self, reasons: Mapping[str, str | None]) -> None:
        self.settled |= reasons


def an_event(number: int, size: int = 0) -> bytes:
    payload = {"number": number, "padding": "x" * size}
    event = {"event_id": str(uuid.UUID(int=number)), "event_type": "e", "payload": payload}
    return json.dumps(event).encode()


@pytest.fixture
async def sink() -> AsyncIterator[LogSink]:
    async with a_sink() as opened:
        yield opened


@asynccontextmanager
async def posting(outbox: MemoryOutbox, sink: LogSink) -> AsyncIterator[Completions]:
    poster = Poster(sink.url, "key \N{EURO SIGN}")
    completions = Completions(outbox, poster)
    running = asyncio.create_task(completions.run())
    try:
        yield completions
    finally:
        completions.stop()
        await running
        poster.close()


async def post(sink: LogSink, *events: bytes) -> list[str | None]:
    poster = Poster(sink.url, None)
    try:
        return await poster.post(events)
    finally:
        poster.close()


async def test_all_that_waits_is_posted_in_batches(sink: LogSink) -> None:
    outbox = MemoryOutbox(250)
    async with posting(outbox, sink):
        await until(lambda: len(outbox.settled) == 250)
    assert [event["payload"]["number"] for event in sink.events] == list(range(250))
    assert set(outbox.settled.values()) == {None}
    assert len(sink.requests) == 3
    request = sink.requests[0]
    assert request["path"] == "/logs"
    assert request["x-api-key"].encode("latin-1").decode() == "key \N{EURO SIGN}"


async def test_large_events_go_in_more_requests(sink: LogSink) -> None:
    outbox = MemoryOutbox(0)
    outbox.waiting = {str(n): an_event(n, 1_500_000) for n in range(5)}
    async with posting(outbox, sink):
        await until(lambda: len(outbox.settled) == 5)
    assert len(sink.requests) == 3


@pytest.mark.parametrize(
    ("path", "expected"), [("", "/logs"), ("/log", "/logs"), ("/in/logs/", "/in/logs")]
)
async def test_events_go_where_the_client_sends_them(
    sink: LogSink, path: str, expected: str
) -> None:
    sink.url = sink.url.removesuffix("/log") + path
    assert await post(sink, an_event(1)) == [None]
    assert sink.requests[0]["path"] == expected


async def test_what_is_refused_is_told_from_what_is_taken(sink: LogSink) -> None:
    sink.answer = lambda sent: (207, taken(len(sent) - 2, 0, 2))
    first, second, third = await post(sink, *map(an_event, range(3)))
    assert (second, "too old" in str(first), "too old" in str(third)) == (None, True, True)


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_one_bad_event_takes_no_other_with_it(sink: LogSink, status: int) -> None:
    def answer(sent: list[dict[str, Any]]) -> tuple[int, bytes]:
        if any(event["payload"]["number"] == 5 for event in sent):
            return status, b'{"type": "/problems/validation"}'
        sink.events += sent
        return 202, taken(len(sent))

    sink.answer = answer
    reasons = await post(sink, *map(an_event, range(8)))
    assert [number for number, reason in enumerate(reasons) if reason] == [5]
    assert reasons[5] == f'{status}: {{"type": "/problems/validation"}}'
    assert len(sink.events) == 7


@pytest.mark.parametrize("body", [b"<h1>400 Bad Request</h1>", b'{"type": "about:blank"}', b"[]"])
async def test_what_a_proxy_refuses_is_posted_again(sink: LogSink, body: bytes) -> None:
    sink.answer = lambda _: (400, body)
    with pytest.raises(NotTaken):
        await post(sink, an_event(0))


def says(status: int, body: bytes) -> Answers:
    return lambda _sent: (status, body)


ODD = {
    "a fault": (500, b""),
    "a wrong key": (401, b"no key"),
    "another path": (404, b"<html>"),
    "a redirection": (302, b""),
    "the limit": (429, b""),
    "a page": (200, b"<html>welcome</html>"),
    "a page with our status": (202, b"<html>welcome</html>"),
    "nothing": (202, b"{}"),
    "too few": (202, taken(1)),
    "an index too high": (207, taken(1, 7)),
    "an index too low": (207, taken(1, -1)),
    "a deep one": (202, b"[" * 100_000),
    "no text": (202, b"\xff"),
    "without an end": (202, b" " * 5_000_000),
}


@pytest.mark.parametrize("odd", list(ODD))
async def test_what_the_logging_service_would_not_say_is_no_promise(
    sink: LogSink, odd: str
) -> None:
    sink.answer = says(*ODD[odd])
    with pytest.raises(NotTaken):
        await post(sink, an_event(1), an_event(2))


async def test_a_service_that_is_away_gets_the_same_events_when_it_is_back(sink: LogSink) -> None:
    outbox = MemoryOutbox(3)
    refused: list[list[dict[str, Any]]] = []

    def answer(sent: list[dict[str, Any]]) -> tuple[int, bytes]:
        refused.append(sent)
        return 503, b"later"

    sink.answer = answer
    async with posting(outbox, sink) as completions:
        await until(lambda: bool(completions.fault))
        assert completions.fault == "503: later"
        assert not outbox.settled
        # Events that come meanwhile do not make it try without a pause.
        for _ in range(20):
            completions.wake()
            await asyncio.sleep(0)
        assert len(refused) == 1
        sink.answer = None
        await until(lambda: len(outbox.settled) == 3)
        assert completions.fault is None
    assert sink.events == refused[0]


async def test_a_service_says_how_long_to_wait(sink: LogSink) -> None:
    sink.answer = says(429, b"")
    for told, expected in (("7", 7.0), ("999999999", 60.0), ("soon", 0.0), ("-5", 0.0)):
        sink.retry_after = told
        with pytest.raises(NotTaken) as refused:
            await post(sink, an_event(1))
        assert refused.value.pause_seconds == expected


async def test_a_connection_that_is_reset_or_refused_is_weather(
    sink: LogSink, free_port: int
) -> None:
    sink.url = f"http://127.0.0.1:{free_port}/log"
    with pytest.raises(NotTaken):
        await post(sink, an_event(1))


async def test_the_real_producer_takes_it_once_and_refuses_what_is_too_old(
    environment: dict[str, str],
    services_url: str,
    tmp_path: Path,
    database: asyncpg.Connection,
    redis: Redis,
) -> None:
    with run_service("producer", environment) as producer:
        settings = gateway_settings(services_url, tmp_path, f"{producer.url}/log")
        await told_to_the_producer(settings, database, redis)


async def told_to_the_producer(
    settings: GatewaySettings, database: asyncpg.Connection, redis: Redis
) -> None:
    async with open_storage(settings) as storage:
        good = await store_one(storage)
        # A refused event and one that is taken, in one batch and alone.
        old = datetime.now(UTC) - timedelta(days=30)
        for number in (1, 2):
            start = a_start()
            await storage.begin(start)
            await database.execute(
                "UPDATE reviews SET status = 'failed', event = $2, event_due_at = now()"
                " WHERE review_id = $1",
                start.review_id,
                json.dumps(
                    {
                        "event_id": str(uuid.uuid4()),
                        "timestamp": old.isoformat(),
                        "event_type": "review_completed",
                        "payload": {"number": number},
                    }
                ),
            )
            await storage.finish(start.review_id, an_end(start))
            storage._completions.wake()
            if number == 1:
                again = await store_one(storage)

        async def all_told() -> bool:
            kept = await rows(database)
            return all(row["event_due_at"] is None for row in kept.values())

        await until(all_told)
        kept = await rows(database)
        refused = [row["event_refused"] for row in kept.values() if row["event_refused"]]
        assert len(refused) == 2
        assert all("timestamp" in reason for reason in refused)
        held = [wire.decode(bytes(one)) for one in await redis.lrange("log_queue", 0, -1)]  # type: ignore[arg-type]
        assert {json.loads(one.payload)["review_id"] for one in held} == {
            good.review_id,
            again.review_id,
        }
        assert storage.buffered == 0
