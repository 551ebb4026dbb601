"""The API gateway: takes code over HTTP, has it reviewed, and tells of the reviews."""

import asyncio
import signal
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import structlog
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Security
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response, StreamingResponse

from code_reviewer.review import Reviewer
from code_reviewer.ruff_check import RuffMissing
from code_reviewer.static_analysis import StaticAnalyzer
from gateway import openapi
from gateway.answers import STREAM, Form, answer, form_of, stages_of, wants_stream
from gateway.bodies import (
    MOST_BODY_BYTES,
    ReviewBody,
    idempotency_key_of,
    prefers_async,
    session_of,
)
from gateway.event_source import EventSource, ReviewTrace, ServiceClient
from gateway.jobs import Job, JobLimits, Jobs, Order
from gateway.measures import measure
from gateway.model_stage import check_model, open_llm_stage
from gateway.settings import GatewaySettings
from gateway.stored_reviews import RUNNING, Place, StoredReview, Wanted
from logging_service import wire
from logging_service.admission import (
    READ_KEY,
    WRITE_KEY,
    address_of,
    admits,
    note_read,
    principal_of,
)
from logging_service.audit import REVIEWS_READ
from logging_service.audit_trail import noting_reads
from logging_service.auth import Keyring, ReadingRule
from logging_service.backends import refuse_newer_schema
from logging_service.client_address import ClientAddresses
from logging_service.errors import (
    BackendUnavailable,
    FieldRejected,
    SchemaTooNew,
    SettingsError,
)
from logging_service.event_query import Text, no_cursor, position_in, refuse_unknown, sealed_cursor
from logging_service.health import Check, Health, KeyReport, health
from logging_service.http_protocol import LimitedProtocol
from logging_service.known_keys import keeping_keys
from logging_service.logs import configure_logs
from logging_service.rate_limit import open_limiter
from logging_service.server import refuse_to_start, serve
from logging_service.settings import load_settings
from logging_service.web import (
    RequestContext,
    body_as,
    create_face,
    describe_types,
    endpoints_of,
    json_answer,
    schema_of,
)
from storage import Storage, open_storage

_log = structlog.get_logger()

SERVICE = "gateway"
DESCRIPTION = """\
Reviews Python code, which is read and never run.

`POST /reviews` needs a key with the scope `write`, as `X-API-Key` or `Authorization: Bearer`,
reading one with `read`. Bound to a loopback address the gateway answers requests for that address
that read without one, unless `QUERY_REQUIRE_API_KEY=true` or the request came through a proxy.
"""
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FORM = {
    "/": ("form.html", "text/html"),
    "/form.js": ("form.js", "text/javascript"),
    "/form.css": ("form.css", "text/css"),
}
_PAGES = Path(__file__).resolve().parent / "gateway"
_POLL_SECONDS = 1
_LAST_WRITES_SECONDS, _LOOK_SECONDS = 3.0, 0.1
_POSITION = struct.Struct(">q16s")

router = APIRouter()
_WRITING = [Security(WRITE_KEY), Depends(admits("write"))]
_READING = [Security(READ_KEY), Depends(admits("read"))]


def _storage(request: Request) -> Storage:
    storage: Storage = request.state.storage
    return storage


@router.post(
    "/reviews", dependencies=_WRITING, responses=openapi.POSTED, openapi_extra=openapi.REQUEST
)
async def create_review(
    request: Request,
    format_: Annotated[Form | None, Query(alias="format", description=openapi.FORMAT)] = None,
) -> Response:
    """Review code, which is read and never run.

    The answer is the finished review, by the Accept header or `format` as JSON, SARIF or Markdown.
    With `Accept: text/event-stream` the stages come as they are, as events named `stage`, then
    `result` with the review, or `problem`. With `Prefer: respond-async` the answer is 202, and the
    review lies under `Location`.

    Broken Python is a review with a finding of the category `syntax`. The verdict comes from static
    findings alone: a model can add findings and nothing else. What was reviewed before, with the
    same options, is answered from what is stored, as `cached`.
    """
    refuse_unknown(request.query_params.multi_items(), {"format"})
    body = await body_as(request, ReviewBody, MOST_BODY_BYTES)
    _refuse_unknown_rules(request, body)
    job = await request.state.jobs.submit(_order(request, body))
    headers = {
        "X-Session-ID": job.ids.session_id,
        "Location": f"{request.scope.get('root_path', '')}/reviews/{job.ids.review_id}",
    }
    if prefers_async(request.headers):
        accepted = openapi.Accepted(job.ids.review_id, job.ids.session_id, RUNNING)
        applied = {**headers, "Preference-Applied": "respond-async"}
        return json_answer(accepted, 202, applied)
    if format_ is None and wants_stream(request.headers.get("accept", "")):
        return _streamed(request, job, headers)
    form = form_of(request.headers.get("accept", ""), format_)
    return answer(await job.result(), form, body.filename, body.code, headers)


def _order(request: Request, body: ReviewBody) -> Order:
    return Order(
        submission=body.submission(),
        project=principal_of(request).source,
        session_id=session_of(request.headers),
        request_id=request.state.request_id,
        idempotency_key=idempotency_key_of(request.headers),
    )


def _refuse_unknown_rules(request: Request, body: ReviewBody) -> None:
    static: StaticAnalyzer = request.state.static
    unknown = static.unknown_rules(body.options.select or ())
    if unknown:
        raise FieldRejected("options.select", f"ruff knows no rule that begins with {unknown[0]}")


def _streamed(request: Request, job: Job, headers: dict[str, str]) -> Response:
    # A proxy that collects the answer would make a stream of it that comes at once.
    headers = {**headers, "X-Accel-Buffering": "no"}
    stages = stages_of(job, request.scope.get("root_path", ""))
    return StreamingResponse(stages, headers=headers, media_type=STREAM)


class ReviewsQuery(BaseModel):
    """The parameters of GET /reviews."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    status: Literal["running", "completed", "degraded", "failed", "interrupted"] | None = None
    verdict: Literal["pass", "warn", "fail"] | None = None
    session_id: Text | None = Field(default=None, max_length=200, description="of this session")
    user_id: Text | None = Field(default=None, max_length=200, description="of this user")
    limit: int = Field(default=50, ge=1, le=200, description="reviews on a page")
    cursor: str | None = Field(
        default=None, description="`next_cursor` of the page before, with the same filter"
    )


@router.get("/reviews", dependencies=_READING, responses=openapi.LISTED)
async def list_reviews(request: Request, query: Annotated[ReviewsQuery, Query()]) -> Response:
    """Return reviews, newest first, a page at a time, without their findings.

    A key without the scope `admin` gets those of its own project. `next_cursor` is null on the last
    page. While the database is away the answer has what waits for it, and is `partial`.
    """
    refuse_unknown(request.query_params.multi_items(), ReviewsQuery.model_fields)
    project = principal_of(request).project
    wanted = Wanted(project, query.status, query.verdict, query.session_id, query.user_id)
    after = _place_in(query.cursor, wanted) if query.cursor is not None else None
    page = await _storage(request).page(wanted, limit=query.limit, after=after)
    note_read(request, REVIEWS_READ, project, len(page.reviews))
    cursor = page.next_after and sealed_cursor(_position_of(page.next_after), wanted)
    return json_answer(openapi.Reviews(page.reviews, cursor, page.partial))


def _position_of(place: Place) -> bytes:
    return _POSITION.pack(wire.to_micros(place[0]), UUID(place[1]).bytes)


def _place_in(cursor: str, wanted: Wanted) -> Place:
    micros, review_id = _POSITION.unpack(position_in(cursor, wanted, _POSITION.size))
    try:
        return wire.from_micros(micros), str(UUID(bytes=review_id))
    except OverflowError:
        raise no_cursor() from None


async def _found(request: Request, review_id: UUID) -> StoredReview:
    stored = await _storage(request).find(str(review_id), principal_of(request).project)
    if stored is None:
        raise HTTPException(404, f"There is no review {review_id}.")
    note_read(request, REVIEWS_READ, stored.project, 1)
    return stored


@router.get("/reviews/{review_id}", dependencies=_READING, responses=openapi.SHOWN)
async def show_review(
    request: Request,
    review_id: UUID,
    format_: Annotated[Form | None, Query(alias="format", description=openapi.FORMAT)] = None,
) -> Response:
    """Return a review, by the Accept header or `format` as JSON, SARIF 2.1.0 or Markdown.

    202 with `Retry-After` while it runs. One that a crash cut off is `interrupted` and has no
    findings; what is told of it is what the list tells. Another project's review is not there for a
    key without the scope `admin`.
    """
    refuse_unknown(request.query_params.multi_items(), {"format"})
    stored = await _found(request, review_id)
    if stored.status == RUNNING:
        running = openapi.Accepted(stored.review_id, stored.session_id, RUNNING)
        return json_answer(running, 202, {"Retry-After": str(_POLL_SECONDS)})
    form = form_of(request.headers.get("accept", ""), format_)
    review, told = stored.review, stored.submission
    if review is not None:
        return answer(review, form, told["filename"], told.get("code"))
    if form != "json":
        raise HTTPException(409, f"The review is {stored.status}: there is no result.")
    return json_answer(stored.outline)


@router.get("/reviews/{review_id}/events", dependencies=_READING, responses=openapi.TRACED)
async def list_review_events(
    request: Request,
    review_id: UUID,
    limit: Annotated[int, Query(ge=1, le=200, description="events on a page")] = 100,
    cursor: Annotated[
        str | None, Query(description="`next_cursor` of the page before, with the same limit")
    ] = None,
) -> Response:
    """Return the events of a review, the first ones first, as the query service has them.

    They are there a moment after they happened. 503 while the query service does not answer.
    """
    refuse_unknown(request.query_params.multi_items(), {"limit", "cursor"})
    stored = await _found(request, review_id)
    source: EventSource = request.state.event_source
    trace = ReviewTrace(stored.review_id, stored.session_id, stored.created_at, stored.finished_at)
    return Response(await source.page(trace, limit, cursor), media_type="application/json")


@router.get("/health", responses={200: schema_of(Health), 503: schema_of(Health)})
async def show_health(request: Request) -> Response:
    """Say how what the gateway needs is, and whether the key that was sent is good.

    Without ruff it is `unavailable`. Without the database, the services or the model reviews are
    made all the same, and it is `degraded`.
    """
    keyring: Keyring = request.state.keyring
    headers = dict(request.scope["headers"])
    key = keyring.principal_from_headers(headers, address_of(request))
    report = KeyReport(valid=True, name=key.name, scopes=sorted(key.scopes)) if key else None
    return await health(SERVICE, request.state.checks, report, _storage(request).warnings)


def _checks(state: dict[str, Any], *, tells: bool) -> list[Check]:
    """Return what /health looks at; the logging service is no part of it where nothing is told."""

    async def check_ruff() -> str | None:
        fault: str | None = state["static"].fault()
        if fault:
            raise BackendUnavailable(fault)
        return None

    async def check_model() -> str | None:
        fault: str | None = state["llm"].fault
        return fault

    asked = [Check("model", check_model, essential=False)] if state["llm"].version else []
    told = [Check("logging_service", state["logging_service"].check, essential=False)]
    return [
        Check("ruff", check_ruff),
        *asked,
        Check("database", state["storage"].check, essential=False),
        *(told if tells else []),
        Check("query_service", state["query_service"].check, essential=False),
    ]


async def _show_form(request: Request) -> Response:
    """Return the page on which a person pastes code, its script or its style."""
    name, media_type = _FORM[request.scope["route"].path]
    headers = {"Content-Security-Policy": _POLICY}
    return FileResponse(_PAGES / name, headers=headers, media_type=media_type)


def _service(url: str, settings: GatewaySettings) -> ServiceClient:
    key = settings.api_key.get_secret_value() if settings.api_key else None
    return ServiceClient(url.rstrip("/").removesuffix("/logs").removesuffix("/log"), key)


def _seconds_left(settings: GatewaySettings) -> float:
    """Return how long what is under way may take when the process is being stopped."""
    return (_last_moment() or settings.shutdown_grace_seconds) - _LAST_WRITES_SECONDS


def _last_moment() -> float:
    """Return in how many seconds the server ends by force; 0 until it is told to stop."""
    return signal.getitimer(signal.ITIMER_REAL)[0]


async def _stop_in_time(jobs: Jobs) -> None:
    """End the reviews as soon as the server is told to stop: it waits for their answers first."""
    while not _last_moment():  # noqa: ASYNC110 - a timer of the process wakes nobody
        await asyncio.sleep(_LOOK_SECONDS)
    await jobs.stop()


def create_app(settings: GatewaySettings) -> RequestContext:
    """Return the gateway as an ASGI application.

    Raises SettingsError when there is no ruff to review with.
    """
    keyring = Keyring(settings)
    required = settings.query_require_api_key
    rule = ReadingRule(keyring, settings.gateway_host, key_required=required)
    try:
        static = StaticAnalyzer()
    except RuffMissing as error:
        raise SettingsError(str(error)) from None

    @asynccontextmanager
    async def lifespan(_face: FastAPI) -> AsyncIterator[dict[str, Any]]:
        if rule.open_on_loopback:
            _log.warning("reading_without_key", host=settings.gateway_host)
        async with AsyncExitStack() as stack:
            storage = await stack.enter_async_context(open_storage(settings))
            llm = await stack.enter_async_context(open_llm_stage(settings, storage.spent_nanos))
            limits = JobLimits(settings.reviews_at_once, settings.reviews_waiting)
            query_service = _service(settings.query_service_url, settings)
            state = {
                "storage": storage,
                "static": static,
                "llm": llm,
                "logging_service": _service(settings.logging_service_url, settings),
                "query_service": query_service,
                "event_source": EventSource(query_service),
                "reads": await stack.enter_async_context(noting_reads(settings)),
                "limiter": await stack.enter_async_context(open_limiter(settings, SERVICE)),
                "keys": await stack.enter_async_context(keeping_keys(settings, keyring)),
                "client_addresses": ClientAddresses(settings.trusted_proxies),
            }
            grace = partial(_seconds_left, settings)
            jobs = Jobs(Reviewer(static, llm), storage, limits, grace)
            await stack.enter_async_context(jobs)
            stack.callback(asyncio.create_task(_stop_in_time(jobs)).cancel)
            shared = {"jobs": jobs, "keyring": keyring, "rule": rule}
            yield {**state, **shared, "checks": _checks(state, tells=settings.logging_enabled)}

    face = create_face(
        SERVICE, settings, description=DESCRIPTION, lifespan=lifespan, before_scrape=measure
    )
    face.include_router(router)
    for path in _FORM:
        face.add_api_route(path, _show_form, include_in_schema=False)
    describe_types(face, (*openapi.TYPES, Health))
    return RequestContext(face, SERVICE, [*endpoints_of(face), *(("GET", path) for path in _FORM)])


def main() -> None:
    """Serve until a signal."""
    try:
        settings = load_settings(GatewaySettings)
        settings.hand_on_to_client()
        configure_logs(SERVICE, settings.log_level)
        asyncio.run(_refuse_unusable(settings))
        app = create_app(settings)
    except (SettingsError, SchemaTooNew) as error:
        refuse_to_start(str(error))
    serve(app, SERVICE, settings, http=LimitedProtocol)


async def _refuse_unusable(settings: GatewaySettings) -> None:
    await check_model(settings)
    await refuse_newer_schema(settings)


if __name__ == "__main__":
    main()
