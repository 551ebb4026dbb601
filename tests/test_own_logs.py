"""The services' own logs: a few lines of JSON on good and bad days, explained, without payloads."""

import asyncio
import json
import logging
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
import requests
import structlog
from consuming import consuming, count, end_leases, is_empty, log_queue, until
from events_made import an_event
from log_lines import documented, event_names
from redis.asyncio import Redis
from relay import Relay, before
from servers import RunningService, run_service
from structlog.testing import capture_logs

from logging_service import wire
from logging_service.auth import Principal
from logging_service.errors import BackendUnavailable
from logging_service.group_commit import GroupCommit, Outcome
from logging_service.hidden_queue import HiddenQueue
from logging_service.logs import configure_logs
from logging_service.pausing import Fault
from logging_service.ports import Ack
from logging_service.postgres_store import open_postgres_store
from logging_service.server import forward_library_logs
from logging_service.write_path import WriteRequest, _refusal_of

CANARY = "canary-7f3a"
NAMES = documented()


def test_every_line_is_explained_and_every_explained_line_is_there() -> None:
    found = event_names()
    missing = {name: place for name, place in found.items() if name not in NAMES}
    assert not missing, f"docs/logs.md explains none of {missing}"
    assert not set(NAMES) - set(found), "docs/logs.md explains what no code logs"


def test_names_are_static_and_in_snake_case() -> None:
    for name, place in event_names().items():
        assert name.isidentifier(), place
        assert name == name.lower(), place


def lines_of(service: RunningService) -> list[dict[str, Any]]:
    """Return what a service logged, each line checked as far as all are alike."""
    lines = []
    for text in service.log.splitlines():
        line = json.loads(text)
        assert {"event", "level", "timestamp", "service"} <= set(line), text
        assert line["event"] in NAMES, text
        assert line["service"] in NAMES[line["event"]], text
        assert line["timestamp"].endswith("Z"), text
        assert len(text) < 20_000, text
        lines.append(line)
    return lines


class _System:
    """Producer, consumer and query service behind relays, and those who send."""

    def __init__(
        self, services: dict[str, RunningService], redis: Relay, database: Relay, key: str
    ) -> None:
        self.services = services
        self.redis = redis
        self.database = database
        self._headers = {"X-API-Key": key, "X-Request-ID": "request-of-the-test"}

    async def send(self, *events: dict[str, Any], **headers: str) -> requests.Response:
        return await self._ask("post", "producer", "/logs", json=list(events), headers=headers)

    async def post(self, body: bytes, **headers: str) -> requests.Response:
        return await self._ask("post", "producer", "/logs", data=body, headers=headers)

    async def read(self, path: str) -> requests.Response:
        return await self._ask("get", "query_service", path)

    async def _ask(
        self,
        method: str,
        service: str,
        path: str,
        headers: Any = (),
        **more: Any,
    ) -> requests.Response:
        url = f"{self.services[service].url}{path}"
        ask: Callable[..., requests.Response] = getattr(requests, method)
        sent = {**self._headers, **dict(headers)}
        return await asyncio.to_thread(ask, url, headers=sent, timeout=10, **more)

    def lines(self) -> int:
        return sum(len(service.log.splitlines()) for service in self.services.values())

    def has(self, service: str, name: str) -> bool:
        return any(line["event"] == name for line in lines_of(self.services[service]))


@asynccontextmanager
async def a_system(environment: dict[str, str]) -> AsyncIterator[_System]:
    async with AsyncExitStack() as stack:
        redis, redis_url = await stack.enter_async_context(before(environment["REDIS_URL"]))
        database, url = await stack.enter_async_context(before(environment["DATABASE_URL"]))
        behind = {**environment, "REDIS_URL": redis_url, "DATABASE_URL": url}
        services = {}
        for name in ("producer", "consumer", "query_service"):
            running = await asyncio.to_thread(
                lambda name=name: stack.enter_context(run_service(name, behind))  # type: ignore[misc]
            )
            services[name] = running
        yield _System(services, redis, database, environment["API_KEY"])


def an_entry(**more: Any) -> dict[str, Any]:
    payload = {"code": CANARY, "email": f"{CANARY}@example.com", "n": str(uuid4())}
    return {"event_type": "review_started", "session_id": CANARY, "payload": payload, **more}


async def test_on_good_and_bad_days_each_line_is_json_known_and_without_payload(
    environment: dict[str, str], database: asyncpg.Connection, redis: Redis, redis_url: str
) -> None:
    environment |= {"API_KEY": f"{CANARY}-key", "RATE_LIMIT": "100000/minute"}
    async with a_system(environment) as system:
        await system.send(*[an_entry() for _ in range(10)])
        await until(lambda: is_empty(redis))
        few = system.lines()
        for _ in range(5):
            await system.send(*[an_entry() for _ in range(1000)])
        await until(lambda: is_empty(redis))
        assert await count(database) == 5010
        assert system.lines() == few, "good events make no lines"

        await _send_what_is_refused(system)
        assert system.lines() == few, "neither do refused requests"

        await _send_conflicts(system)
        await _wait_with_what_is_too_old(redis_url)
        await until(lambda: is_empty(redis))
        assert few < system.lines() < few + 10, "one line a batch"

        await system.redis.cut()
        await until(lambda: _is_spooled(system))
        await system.redis.mend()
        await until(lambda: system.has("producer", "available_again"))
        await system.database.cut()
        assert (await system.read("/events")).status_code == 503
        await system.send(an_entry())
        await until(lambda: system.has("consumer", "database_unavailable"))
        await system.database.mend()
        await until(lambda: is_empty(redis))
        assert system.lines() < few + 60
        for service in system.services.values():
            assert lines_of(service)
            assert CANARY not in service.log


async def _is_spooled(system: _System) -> bool:
    answer = await system.send(an_entry())
    return bool(answer.json().get("status") == "spooled")


async def _send_what_is_refused(system: _System) -> None:
    bodies = [b"{", b"[]", f'[{{"event_type": "{CANARY} {CANARY}"}}]'.encode(), b"\xff" * 100]
    for body in bodies:
        assert (await system.post(body)).status_code in {400, 415, 422}
    wrong = await system.send(an_entry(), **{"X-API-Key": f"{CANARY}-wrong"})
    assert wrong.status_code == 401
    mixed = await system.send(an_entry(), {"event_type": CANARY * 100})
    assert mixed.status_code == 207


async def _send_conflicts(system: _System) -> None:
    now = wire.from_micros(wire.now_micros()).isoformat()
    first = an_entry(event_id=str(uuid4()), timestamp=now)
    await system.send(first)
    again = [{**first, "payload": {"code": CANARY, "n": n}} for n in range(200)]
    await system.send(*again)
    await until(lambda: system.has("consumer", "events_not_stored"))
    lines = lines_of(system.services["consumer"])
    line = next(line for line in lines if line["event"] == "events_not_stored")
    assert line["reasons"] == ["conflict"]
    assert set(line["event_ids"]) == {first["event_id"]}
    assert line["request_ids"] == ["request-of-the-test"] * 5


async def _wait_with_what_is_too_old(redis_url: str) -> None:
    old = wire.now_micros() - 700_000 * 1_000_000
    async with log_queue(redis_url) as queue:
        await queue.put([an_event(received_at=old, payload={"a": CANARY}) for _ in range(500)])
        await queue.put([b"garbage", CANARY.encode()])


async def test_a_delivery_that_is_tried_one_by_one_makes_one_line_of_what_is_not_stored(
    redis_url: str, database_url: str, redis: Redis
) -> None:
    old = wire.now_micros() - 3_700_000_000
    async with log_queue(redis_url) as queue:
        await queue.put([an_event(received_at=old) for _ in range(30)])
        delivery = await queue.take(100, 0)
        assert delivery
    async with open_postgres_store(database_url, connections=1) as store:
        for _ in range(6):
            await store.begin_delivery(delivery, uuid4())
    await end_leases(redis)
    with capture_logs() as lines:
        async with consuming(redis_url, database_url):
            await until(lambda: is_empty(redis))
    told = [line for line in lines if line["event"] == "events_not_stored"]
    assert any(line["event"] == "one_by_one" for line in lines)
    assert [line["expired"] for line in told] == [30]


async def test_a_write_that_fails_by_our_mistake_names_some_of_its_events() -> None:
    class Broken(HiddenQueue):
        async def put(self, events: Sequence[bytes]) -> Ack:
            raise TypeError(len(events))

    commit, told = GroupCommit(Broken()), list[Outcome]()
    events = [an_event(payload={"code": CANARY}) for _ in range(20)]
    with capture_logs() as lines:
        commit.put(events, told.append)
        commit.put([b"no event"], told.append)
        await commit.drain()
    assert [type(outcome) for outcome in told] == [BackendUnavailable] * 2
    line = next(line for line in lines if line["event"] == "queue_write_failed")
    assert line["events"] == 21
    assert line["event_ids"] == [str(wire.decode(event).event_id) for event in events[:5]]


def test_our_mistake_in_a_request_names_the_request() -> None:
    writer = Principal("default", "default", frozenset({"write"}), "API_KEY")
    request = WriteRequest(writer, "/log", b"", {b"x-request-id": b"r-17"}, CANARY.encode())
    with capture_logs() as lines:
        answer = _refusal_of(request, TypeError())
    assert answer.status == 500
    assert (lines[0]["event"], lines[0]["request_id"]) == ("unhandled_error", "r-17")
    assert CANARY not in str(lines)


def test_what_fails_each_time_is_told_when_that_begins() -> None:
    fault = Fault("roll_ups_not_folded")
    with capture_logs() as lines:
        for is_away in (True, True, True, False, False, True):
            with fault.told():
                if is_away:
                    raise BackendUnavailable("store: away")
    assert [line["event"] for line in lines] == ["roll_ups_not_folded"] * 2


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is written to standard error by a service that is set up in this process."""
    stream = StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    # A logger keeps the stream of its first line.
    for module in ("server", "logs"):
        monkeypatch.setattr(f"logging_service.{module}._log", structlog.get_logger())
    handlers = logging.root.handlers[:]
    configure_logs("producer", "info")
    forward_library_logs()
    yield stream
    logging.captureWarnings(capture=False)
    logging.root.handlers[:] = handlers
    structlog.reset_defaults()


def the_line(stream: StringIO) -> dict[str, Any]:
    (text,) = stream.getvalue().splitlines()
    line: dict[str, Any] = json.loads(text)
    return line


def test_what_an_error_says_of_a_value_is_left_out(written: StringIO) -> None:
    refused = asyncpg.UniqueViolationError(f"duplicate key {CANARY}")
    refused.detail = f"Key (payload)=({CANARY}) already exists."
    try:
        try:
            raise refused
        except asyncpg.PostgresError as error:
            raise ValueError(f"not JSON: {CANARY}") from error
    except ValueError:
        structlog.get_logger().exception("unhandled_error")
    line = the_line(written)
    assert CANARY not in str(line)
    assert "builtins.ValueError" in line["exception"]
    assert "UniqueViolationError (SQLSTATE 23505)" in line["exception"]
    assert "test_what_an_error_says_of_a_value_is_left_out" in line["exception"]


def test_what_a_program_does_wrong_is_told_in_words(written: StringIO) -> None:
    structlog.get_logger().error("unhandled_error", exc_info=TypeError("one argument too many"))
    assert the_line(written)["exception"].strip() == "builtins.TypeError: one argument too many"


def test_of_what_libraries_say_the_first_line_is_told(written: StringIO) -> None:
    logging.getLogger("asyncio").error("Task failed\nfuture: %s", CANARY)
    line = the_line(written)
    assert (line["library"], line["message"]) == ("asyncio", "Task failed")


def test_a_warning_of_python_is_a_line(written: StringIO) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("it is old", DeprecationWarning, stacklevel=1)
    assert the_line(written)["library"] == "py.warnings"


def test_what_nobody_catches_is_a_line(written: StringIO) -> None:
    def fail() -> None:
        raise RuntimeError(CANARY)

    thread = threading.Thread(target=fail, name="spool")
    thread.start()
    thread.join()
    line = the_line(written)
    assert (line["event"], line["thread"]) == ("thread_failed", "spool")
    assert CANARY not in str(line)
    written.truncate(0)
    written.seek(0)
    sys.excepthook(RuntimeError, RuntimeError(CANARY), None)
    assert the_line(written)["level"] == "critical"


def test_a_line_from_any_thread_says_which_service_it_is_of(written: StringIO) -> None:
    thread = threading.Thread(target=lambda: structlog.get_logger().error("spool_work_failed"))
    thread.start()
    thread.join()
    assert the_line(written)["service"] == "producer"


def test_a_log_that_cannot_be_written_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    full = Path("/dev/full").open("w", buffering=1)  # noqa: SIM115 - it cannot be closed either
    monkeypatch.setattr("sys.stderr", full)
    configure_logs("producer", "info")
    try:
        structlog.get_logger().error("queue_unavailable", reason="x" * 10_000)
    finally:
        structlog.reset_defaults()
        monkeypatch.undo()
        with suppress(OSError):
            full.close()
