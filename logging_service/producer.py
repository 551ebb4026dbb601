"""The producer: takes events over HTTP and answers once the queue holds them."""

if __name__ == "__main__" and not __package__:
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from math import nan
from typing import Any, Literal

import msgspec
import structlog
from fastapi import FastAPI, Request, Security
from starlette.responses import Response

from logging_service import metrics
from logging_service.admission import WRITE_KEY, address_of
from logging_service.auth import Keyring
from logging_service.backends import (
    damaged_spool_files,
    open_reader,
    open_store,
    open_write_queue,
    redactor_of,
    refuse_newer_schema,
    telling_pii_key,
)
from logging_service.client_address import ClientAddresses
from logging_service.delivering import Consumer
from logging_service.errors import (
    BackendUnavailable,
    LoggingServiceError,
    SchemaTooNew,
    SettingsError,
)
from logging_service.event_rules import (
    MAX_PAYLOAD_BYTES,
    MAX_PAYLOAD_DEPTH,
    MAX_SESSION_ID,
    MAX_TRACE_ID,
)
from logging_service.group_commit import GroupCommit
from logging_service.health import Check, Health, KeyReport, health
from logging_service.http_protocol import WriteProtocol
from logging_service.intake import MAX_EVENTS
from logging_service.known_keys import keeping_keys
from logging_service.logs import configure_logs
from logging_service.ports import EventQueue, EventStore
from logging_service.rate_limit import RateLimiter, open_limiter
from logging_service.server import (
    forward_library_logs,
    refuse_to_start,
    serve,
    spare_the_collector,
)
from logging_service.settings import Settings, load_settings
from logging_service.stored_watch import StoredWatch
from logging_service.storing import keeping_books, storing_here
from logging_service.web import (
    RequestContext,
    create_face,
    describe_types,
    endpoints_of,
    json_answer,
    read_body,
    schema_of,
)
from logging_service.write_path import (
    BODY_LIMITS,
    SERVICE,
    Answer,
    BatchTaken,
    Encoders,
    EventTaken,
    WritePath,
    WriteRequest,
)

_log = structlog.get_logger()

DESCRIPTION = """\
Takes events and holds them durably before it answers.

`POST /log` takes one event, `POST /logs` up to 10,000. An answer of 202 means that the events are
held: `queued` in Redis, `spooled` on this host's disk while Redis is away or not used, `stored` in
the database when `?wait=stored` was asked for, `in_memory` where the operator chose that. Both need
a key with the scope `write`, as `X-API-Key` or `Authorization: Bearer`.
"""

_EVENT = {"session_id": 123, "event_type": "review_started", "payload": {"user_id": "user123"}}
_ID = "0193a5e2-7c1f-7b3a-9d53-3f2b8f1c6d10"


_EVENT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["event_type"],
    "additionalProperties": False,
    "properties": {
        "event_type": {"type": "string", "pattern": "^[A-Za-z0-9_.:-]{1,100}$"},
        "session_id": {
            "oneOf": [
                {"type": "integer", "format": "int64"},
                {"type": "string", "maxLength": MAX_SESSION_ID},
                {"type": "null"},
            ],
        },
        "payload": {
            "type": "object",
            "description": f"at most {MAX_PAYLOAD_BYTES} bytes and {MAX_PAYLOAD_DEPTH} levels",
        },
        "event_id": {
            "type": "string",
            "format": "uuid",
            "description": "makes a retry harmless; without a timestamp it has to be a UUIDv7",
        },
        "timestamp": {
            "type": "string",
            "format": "date-time",
            "description": "default: the time in event_id, else the time received",
        },
        "trace_id": {"type": "string", "maxLength": MAX_TRACE_ID},
        "request_id": {"type": "string", "maxLength": MAX_TRACE_ID},
    },
}


class Left(msgspec.Struct):
    """What is left of a key's limit; `limit` requests until `reset_seconds` are over."""

    limit: int
    remaining: int
    reset_seconds: int


class QueueReport(msgspec.Struct):
    """How much waits and how long it will take; ages and times in seconds, null is not known."""

    backend: Literal["redis", "spool", "memory"]
    size: int
    in_flight: int
    spooled: int
    dead_letters: int | None
    oldest_age_seconds: float | None
    stored_per_second: float
    drain_seconds: float | None


def create_app(workers: int = 1) -> RequestContext:
    """Return the producer as an ASGI application, with settings from the environment.

    It is one of `workers` that share the port.
    """
    settings = load_settings()
    configure_logs(SERVICE, settings.log_level)
    forward_library_logs()
    if settings.queue_is_memory:
        metrics.show_beside(SERVICE, metrics.CONSUMER)
    keyring, redactor = Keyring(settings), redactor_of(settings)

    @asynccontextmanager
    async def lifespan(_face: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with AsyncExitStack() as stack:
            queue = await stack.enter_async_context(open_write_queue(settings))
            store = await stack.enter_async_context(open_store(settings))
            reader = await stack.enter_async_context(open_reader(settings))
            consumer = None
            if settings.queue_is_memory:
                consumer = await stack.enter_async_context(storing_here(settings, queue, store))
            else:
                await stack.enter_async_context(keeping_books(settings, queue))
            await stack.enter_async_context(keeping_keys(settings, keyring))
            await stack.enter_async_context(telling_pii_key(settings))
            limiter = await stack.enter_async_context(
                open_limiter(settings, SERVICE, workers=workers)
            )
            commit, watch = GroupCommit(queue), StoredWatch(reader)
            stack.push_async_callback(watch.drain)
            stack.push_async_callback(commit.drain)
            encoders = Encoders.of(settings.event_ttls, redactor)
            spare_the_collector()
            yield {
                "write_path": WritePath(keyring, limiter, commit, watch, encoders),
                "limiter": limiter,
                "client_addresses": ClientAddresses(settings.trusted_proxies),
                "status": Status(settings, queue, store, consumer),
            }

    async def measure(request: Request) -> None:
        status: Status = request.state.status
        await status.measure()

    face = create_face(
        SERVICE, settings, description=DESCRIPTION, lifespan=lifespan, before_scrape=measure
    )
    _add_write_routes(face)
    _add_read_routes(face, keyring)
    describe_types(face, (EventTaken, BatchTaken, Left, QueueReport, Health))
    return RequestContext(face, SERVICE, endpoints_of(face))


class Status:
    """What the queue and the store say of themselves, for /health and /queue/status."""

    def __init__(
        self,
        settings: Settings,
        queue: EventQueue,
        store: EventStore,
        consumer: Consumer | None = None,
    ) -> None:
        self._settings = settings
        self._queue = queue
        self._store = store
        self._consumer = consumer

    @property
    def checks(self) -> tuple[Check, ...]:
        """The queue is essential; without the database events are taken all the same."""
        checks = [
            Check("queue", self._check_queue),
            Check("database", self._store.check, essential=False),
        ]
        if self._consumer:
            checks.append(Check("dead_letters", self._consumer.check, essential=False))
        return tuple(checks)

    async def warnings(self) -> list[str]:
        """Return what of the store works and is unsafe."""
        return await self._store.warnings()

    async def _check_queue(self) -> str | None:
        return "; ".join(await self._queue.warnings()) or None

    async def report(self) -> QueueReport:
        """Return the queue's state; raises BackendUnavailable when the queue is away."""
        status = await self._queue.status()
        dead_letters = await self._dead_letters()
        metrics.QUEUE_SIZE.set(status.size)
        metrics.QUEUE_IN_FLIGHT.set(status.in_flight)
        metrics.OLDEST_EVENT_AGE.set(status.oldest_age_seconds or 0)
        metrics.DEAD_LETTERS.set(nan if dead_letters is None else dead_letters)
        metrics.SPOOL_EVENTS.set(status.spooled)
        metrics.SPOOL_DAMAGED_EVENTS.set(status.damaged)
        metrics.SPOOL_DAMAGED_FILES.set(damaged_spool_files(self._settings))
        waiting = status.size + status.in_flight + status.spooled
        rate = status.stored_per_second
        drain = round(waiting / rate, 1) if rate else None
        return QueueReport(
            backend=status.backend,
            size=status.size,
            in_flight=status.in_flight,
            spooled=status.spooled,
            dead_letters=dead_letters,
            oldest_age_seconds=status.oldest_age_seconds,
            stored_per_second=rate,
            drain_seconds=drain if waiting else 0.0,
        )

    async def _dead_letters(self) -> int | None:
        try:
            async with asyncio.timeout(1):
                return await self._store.dead_letters()
        except (LoggingServiceError, TimeoutError):
            return None

    async def measure(self) -> None:
        """Bring the gauges up to date, as far as the queue answers."""
        try:
            await self.report()
        except BackendUnavailable:
            metrics.forget_queue()


async def _write(request: Request) -> Response:
    """Answer a write that `http_protocol` left to the framework, the same way as the others."""
    endpoint = request.scope["route"].path
    path: WritePath = request.state.write_path
    headers = dict(request.scope["headers"])
    principal = path.admit(headers, address_of(request))
    body = await read_body(request, BODY_LIMITS[endpoint])
    answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def respond(answer: Answer) -> None:
        if not answered.done():
            answered.set_result(answer)

    query = request.scope["query_string"]
    root_path = request.scope["root_path"]
    path.begin(WriteRequest(principal, endpoint, query, headers, body, root_path), respond)
    answer = await answered
    response = Response(answer.body, answer.status)
    response.raw_headers.extend(answer.headers)
    return response


_KEY = [Security(WRITE_KEY)]

_WAIT = {
    "name": "wait",
    "in": "query",
    "schema": {"type": "string", "enum": ["stored"]},
    "description": "answer when the event can be queried, after two seconds at the latest",
}

_BACKFILL = {
    "name": "backfill",
    "in": "query",
    "schema": {"type": "boolean", "default": False},
    "description": "take events up to five years old, whatever `LOG_TTL_DAYS`; needs the scope "
    "`admin`",
}


def _add_write_routes(face: FastAPI) -> None:
    one = _EVENT_SCHEMA
    many = {"type": "array", "items": one, "maxItems": MAX_EVENTS}
    envelope = {"type": "object", "properties": {"events": many}, "required": ["events"]}
    batch_example = {"status": "queued", "accepted": 1, "rejected": [], "event_ids": [_ID]}

    @face.post(
        "/log",
        status_code=202,
        dependencies=_KEY,
        responses={202: schema_of(EventTaken, {"status": "queued", "event_id": _ID})},
        openapi_extra={
            "parameters": [_WAIT],
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": one, "example": _EVENT}},
            },
        },
    )
    async def log_one(request: Request) -> Response:
        """Take one event."""
        return await _write(request)

    @face.post(
        "/logs",
        status_code=202,
        dependencies=_KEY,
        responses={
            202: schema_of(BatchTaken, batch_example),
            207: schema_of(BatchTaken, batch_example),
        },
        openapi_extra={
            "parameters": [_WAIT, _BACKFILL],
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": {"oneOf": [many, envelope]},
                        "example": [_EVENT],
                    },
                    "application/x-ndjson": {"schema": {"type": "string"}},
                },
            },
        },
    )
    async def log_many(request: Request) -> Response:
        """Take up to 10,000 events: an array, `{"events": […]}` or NDJSON; gzip and zstd too.

        Each event is judged on its own: 207 says which were refused, the others are held.
        """
        return await _write(request)


def _add_read_routes(face: FastAPI, keyring: Keyring) -> None:
    left_example = {"limit": 1000, "remaining": 999, "reset_seconds": 60}

    @face.get("/log", dependencies=_KEY, responses={200: schema_of(Left, left_example)})
    async def limit_of_key(request: Request) -> Response:
        """Say what is left of the key's limit, without counting this request."""
        headers = dict(request.scope["headers"])
        principal = keyring.authenticate(headers, "write", address_of(request))
        limiter: RateLimiter = request.state.limiter
        left = await limiter.allowance(principal, "/log")
        response = json_answer(Left(left.limit, left.remaining, left.reset_seconds))
        response.headers.update(left.headers())
        return response

    @face.get("/queue/status", responses={200: schema_of(QueueReport)})
    async def queue_status(request: Request) -> Response:
        """Say how much waits, how old it is and when it will be stored."""
        status: Status = request.state.status
        return json_answer(await status.report())

    @face.get("/health", responses={200: schema_of(Health), 503: schema_of(Health)})
    async def producer_health(request: Request) -> Response:
        """Say how the queue and the database are, and whether the key that was sent is good."""
        status: Status = request.state.status
        headers = dict(request.scope["headers"])
        key = keyring.principal_from_headers(headers, address_of(request))
        report = KeyReport(valid=True, name=key.name, scopes=sorted(key.scopes)) if key else None
        return await health(SERVICE, status.checks, report, status.warnings)


async def _check(settings: Settings) -> None:
    """Raise what would end the start, while that is one line and not a worker's last words."""
    await refuse_newer_schema(settings)
    redactor_of(settings)
    async with open_write_queue(settings):
        pass


def main(workers: int | None = None) -> None:
    """Serve until a signal; `workers` processes share the port."""
    try:
        settings = load_settings()
        configure_logs(SERVICE, settings.log_level)
        asyncio.run(_check(settings))
    except (SettingsError, SchemaTooNew) as error:
        refuse_to_start(str(error))
    if settings.queue_is_memory:
        if (workers or 1) > 1:
            refuse_to_start("SPOOL_PATH=:memory: is the memory of one process: --workers 1")
        _log.warning("queue_in_memory", consequence="a killed process loses what it acknowledged")
    if not (settings.api_key or settings.admin_api_key):
        _log.warning("no_key_is_set", consequence="only keys of `keys create` are good")
    serve(
        "logging_service.producer:create_app",
        SERVICE,
        settings,
        workers=workers or 1,
        http=WriteProtocol,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, choices=range(1, 65), metavar="1-64", default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main(_arguments().workers)
