"""The query service: answers what was stored."""

if __name__ == "__main__" and not __package__:
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import cache, partial
from typing import Annotated, Any
from uuid import UUID

import msgspec
import structlog
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Security
from starlette.exceptions import HTTPException
from starlette.responses import Response

from logging_service import (
    analytics_openapi,
    analytics_routes,
    balance_routes,
    erasure_routes,
    key_routes,
)
from logging_service.admission import READ_KEY, address_of, admits, note_read, principal_of
from logging_service.analytics import AnalyticsReader
from logging_service.audit import EVENTS_READ
from logging_service.audit_trail import noting_reads
from logging_service.auth import Keyring, ReadingRule
from logging_service.backends import (
    open_analytics,
    open_books,
    open_dead_letters,
    open_keys,
    open_reader,
    open_seen_queue,
    redactor_of,
    refuse_newer_schema,
    telling_pii_key,
)
from logging_service.balance import Balance
from logging_service.client_address import ClientAddresses
from logging_service.dead_letter_routes import LetterPage, Replayed
from logging_service.dead_letter_routes import router as dead_letter_router
from logging_service.dead_letters import ShownLetter
from logging_service.errors import LoggingServiceError, SchemaTooNew, SettingsError
from logging_service.event_query import (
    EventQuery,
    Moment,
    Question,
    cursor_of,
    read_query,
    refuse_unknown,
)
from logging_service.health import Check, Health, KeyReport, health
from logging_service.http_protocol import LimitedProtocol
from logging_service.known_keys import keeping_keys
from logging_service.logs import configure_logs
from logging_service.ports import Event, EventQueue, EventReader, EventTypeCount, Page, Total
from logging_service.rate_limit import open_limiter
from logging_service.server import refuse_to_start, serve
from logging_service.settings import Settings, load_settings
from logging_service.web import (
    RequestContext,
    create_face,
    describe_types,
    endpoints_of,
    json_answer,
    schema_of,
)

_log = structlog.get_logger()

SERVICE = "query_service"
DESCRIPTION = """\
Answers what was stored.

Reading needs a key with the scope `read`, as `X-API-Key` or `Authorization: Bearer`. Bound to a
loopback address the service answers requests for that address without one, unless
`QUERY_REQUIRE_API_KEY=true` or the request came through a proxy.
"""
_WATCH_SECONDS = 5.0
_LET_GO_SECONDS = 0.2

OpenReader = Callable[[Settings], AbstractAsyncContextManager[EventReader]]
OpenAnalytics = Callable[[Settings], AbstractAsyncContextManager[AnalyticsReader]]


class Pagination(msgspec.Struct, omit_defaults=True):
    """Which page this is, of how many; with a cursor only what comes next is told."""

    page: int | None
    limit: int
    total: int | None
    total_pages: int | None
    next_cursor: str | None
    total_is_estimate: bool = False


class Events(msgspec.Struct, omit_defaults=True):
    """A page of events; `partial` when not all rows could be read in time."""

    events: list[Event]
    pagination: Pagination
    partial: bool = False


class EventTypes(msgspec.Struct):
    """Every event type that is stored, most frequent first."""

    types: list[EventTypeCount]


_EVENT_EXAMPLE = {
    "event_id": "0193a5e2-7c1f-7b3a-9d53-3f2b8f1c6d10",
    "timestamp": "2026-11-23T10:00:00.123456Z",
    "received_at": "2026-11-23T10:00:00.125Z",
    "event_type": "llm_query_sent",
    "session_id": "123",
    "source": "default",
    "trace_id": None,
    "request_id": None,
    "payload": {"model": "gpt-4o", "tokens_used": 812},
}
_EVENTS_EXAMPLE = {
    "events": [_EVENT_EXAMPLE],
    "pagination": {"page": 1, "limit": 50, "total": 1, "total_pages": 1, "next_cursor": None},
}
_TYPES_EXAMPLE = {
    "types": [
        {
            "event_type": "llm_query_sent",
            "count": 812,
            "first": "2026-11-16T09:00:00Z",
            "last": "2026-11-23T10:00:00.123456Z",
        }
    ]
}


router = APIRouter(dependencies=[Security(READ_KEY)])
_READING = [Depends(admits("read"))]


def _reader(request: Request) -> EventReader:
    reader: EventReader = request.state.reader
    return reader


@router.get("/events", dependencies=_READING, responses={200: schema_of(Events, _EVENTS_EXAMPLE)})
async def list_events(request: Request, query: Annotated[EventQuery, Query()]) -> Response:
    """Return events, newest first, a page at a time.

    All conditions have to hold. Beside the parameters below, `payload.<field>=value` compares a
    field of the payload as text (`payload.user.name=ada`, `payload.gen_ai.provider.name=openai`,
    `payload.cost=1.0` as it was sent) and `payload.<field>!=value` its opposite, for which a field
    that is absent counts as different.

    `page` counts pages; `cursor` takes `next_cursor` of the page before, which costs the same at
    any depth and meets every event once, also while new ones arrive. With a cursor, `page`,
    `total` and `total_pages` are null. `next_cursor` is null on the last page.

    `total` is exact up to 10,000; where it is larger, or counting takes long, it is an estimate
    and `total_is_estimate` is true. `source`, `trace_id`, `request_id`, `payload.<field>` and `q`
    read events one by one: after two seconds the answer has what was found, with `"partial": true`
    and a `next_cursor` to go on with.

    A key without the scope `admin` reads the events of its own project, which `source` may name.
    """
    project = principal_of(request).project
    question = read_query(query, request.query_params.multi_items(), project)
    reader = _reader(request)
    page = await reader.page(question.wanted, question.after, question.limit, question.skip)
    pagination = await _pagination(reader, question, page)
    note_read(request, EVENTS_READ, question.wanted.source, len(page.events))
    return json_answer(Events(page.events, pagination, page.partial))


async def _pagination(reader: EventReader, question: Question, page: Page) -> Pagination:
    following = cursor_of(page.after, question.wanted) if page.after else None
    if question.page is None:
        return Pagination(None, question.limit, None, None, following)
    total = await _total(reader, question, page)
    pages = -(-total.events // question.limit)
    return Pagination(
        question.page, question.limit, total.events, pages, following, total.is_estimate
    )


async def _total(reader: EventReader, question: Question, page: Page) -> Total:
    seen = question.skip + len(page.events)
    if page.after is None and (page.events or not question.skip):
        return Total(seen, is_estimate=False)
    total = await reader.total(question.wanted)
    if total.is_estimate and page.events:
        return Total(max(total.events, seen), is_estimate=True)
    return total


@router.get(
    "/events/types", dependencies=_READING, responses={200: schema_of(EventTypes, _TYPES_EXAMPLE)}
)
async def list_event_types(request: Request) -> Response:
    """Return every event type that is stored: how often, first and last.

    A key without the scope `admin` gets those of its own project. For others, where two seconds
    are not enough to count, counts are estimates and each type has `"count_is_estimate": true`.
    """
    refuse_unknown(request.query_params.multi_items(), ())
    project = principal_of(request).project
    return json_answer(EventTypes(await _reader(request).event_types(project)))


@router.get(
    "/events/{event_id}", dependencies=_READING, responses={200: schema_of(Event, _EVENT_EXAMPLE)}
)
async def show_event(
    request: Request,
    event_id: UUID,
    timestamp: Annotated[
        Moment | None,
        Query(description="the event's time, needed where the id is not a UUIDv7 of that time"),
    ] = None,
) -> Response:
    """Return one event.

    An id that is a UUIDv7 of its event's time, as those that the service makes are, is found at
    once; for any other give `timestamp`. Without it events are read for two seconds, newest
    first, and if that is not enough the answer is 422. Another project's event is not there for a
    key without the scope `admin`.
    """
    refuse_unknown(request.query_params.multi_items(), {"timestamp"})
    project = principal_of(request).project
    event = await _reader(request).find(event_id, timestamp, project)
    if event is None:
        raise HTTPException(404, f"There is no event {event_id}.")
    note_read(request, EVENTS_READ, event.source, 1)
    return json_answer(event)


@router.get("/health", responses={200: schema_of(Health), 503: schema_of(Health)})
async def show_health(request: Request) -> Response:
    """Say how the database and the queue are, and whether the key that was sent is good."""
    keyring: Keyring = request.state.keyring
    headers = dict(request.scope["headers"])
    key = keyring.principal_from_headers(headers, address_of(request))
    report = KeyReport(valid=True, name=key.name, scopes=sorted(key.scopes)) if key else None

    queue: EventQueue = request.state.queue

    async def check_database() -> None:
        await _reader(request).check()

    async def check_queue() -> None:
        await queue.tallies()

    checks = [Check("database", check_database), Check("queue", check_queue, essential=False)]
    return await health(SERVICE, checks, report, _reader(request).warnings)


def create_app(
    settings: Settings,
    opened: OpenReader = open_reader,
    analytics: OpenAnalytics = open_analytics,
) -> RequestContext:
    """Return the query service as an ASGI application.

    `opened` and `analytics` yield what it reads events from, and their sums.
    """
    keyring = Keyring(settings)
    rule = ReadingRule(
        keyring, settings.query_service_host, key_required=settings.query_require_api_key
    )

    @asynccontextmanager
    async def lifespan(_face: FastAPI) -> AsyncIterator[dict[str, Any]]:
        if rule.open_on_loopback:
            _log.warning("reading_without_key", host=settings.query_service_host)
        async with AsyncExitStack() as stack:
            reader = await stack.enter_async_context(opened(settings))
            await stack.enter_async_context(telling_pii_key(settings))
            state = {
                "reader": reader,
                "analytics": await stack.enter_async_context(analytics(settings)),
                "queue": await stack.enter_async_context(open_seen_queue(settings)),
                "books": await stack.enter_async_context(open_books(settings)),
                "dead_letters": await stack.enter_async_context(open_dead_letters(settings)),
                "key_store": await stack.enter_async_context(open_keys(settings)),
                "reads": await stack.enter_async_context(noting_reads(settings)),
                "limiter": await stack.enter_async_context(open_limiter(settings, SERVICE)),
                "keys": await stack.enter_async_context(keeping_keys(settings, keyring)),
                "client_addresses": ClientAddresses(settings.trusted_proxies),
                "settings": settings,
                "redactor": cache(partial(redactor_of, settings)),
            }
            watch = asyncio.create_task(_tell_outages(reader))
            yield {**state, "keyring": keyring, "rule": rule}
            # A database that fell silent keeps a cancelled statement waiting: leave it behind.
            watch.cancel()
            await asyncio.wait({watch}, timeout=_LET_GO_SECONDS)

    face = create_face(
        SERVICE,
        settings,
        description=DESCRIPTION,
        lifespan=lifespan,
        before_scrape=balance_routes.measure_balance,
    )
    face.include_router(router)
    face.include_router(balance_routes.router, dependencies=[Security(READ_KEY), *_READING])
    face.include_router(analytics_routes.router, dependencies=[Security(READ_KEY), *_READING])
    face.include_router(dead_letter_router)
    face.include_router(key_routes.router)
    face.include_router(erasure_routes.router)
    answers = (Events, Event, EventTypes, Balance, LetterPage, ShownLetter, Replayed, Health)
    describe_types(
        face, (*answers, *key_routes.TYPES, *erasure_routes.TYPES, *analytics_openapi.TYPES)
    )
    return RequestContext(face, SERVICE, endpoints_of(face))


async def _tell_outages(reader: EventReader) -> None:
    """Log when the database goes away and when it is back: one line each."""
    fault: str | None = None
    while True:
        before, fault = fault, await _fault_of(reader)
        if fault and not before:
            _log.warning("database_unavailable", reason=fault)
        elif before and not fault:
            _log.info("database_available")
        await asyncio.sleep(_WATCH_SECONDS)


async def _fault_of(reader: EventReader) -> str | None:
    try:
        await reader.check()
    except LoggingServiceError as error:
        return str(error)
    return None


def main() -> None:
    """Serve until a signal."""
    try:
        settings = load_settings()
        configure_logs(SERVICE, settings.log_level)
        asyncio.run(refuse_newer_schema(settings))
    except (SettingsError, SchemaTooNew) as error:
        refuse_to_start(str(error))
    serve(create_app(settings), SERVICE, settings, http=LimitedProtocol)


if __name__ == "__main__":
    main()
