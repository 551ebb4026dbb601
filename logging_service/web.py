"""What every HTTP face shares: problem documents, request ids, metrics."""

import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar
from uuid import uuid4

import msgspec
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Lifespan, Message, Receive, Scope, Send

from logging_service import metrics
from logging_service.browsers import admit_browsers, missing_headers
from logging_service.errors import (
    BackendUnavailable,
    BodyNotSupported,
    BodyRejected,
    BodyTooLarge,
    EventsWait,
    FieldRejected,
    Forbidden,
    HeaderTooLarge,
    KeyConflict,
    Misdirected,
    NotHttp,
    QueueFull,
    RateLimited,
    ReviewRuns,
    SchemaMismatch,
    Stopping,
    TooManyReviews,
    TooSlow,
    Unauthenticated,
)
from logging_service.intake import FieldError, check_json
from logging_service.settings import Settings

_log = structlog.get_logger()

RETRY_AFTER_SECONDS = 5

_Model = TypeVar("_Model", bound=BaseModel)


class Problem(msgspec.Struct, omit_defaults=True):
    """A problem document (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError] = []


# The type of a problem document: its title, and what /problems/<type> says.
PROBLEMS = {
    "validation": (
        "A field cannot be used",
        "The errors name each field at fault and what it may hold. Change it and send again.",
    ),
    "body": (
        "The body cannot be read",
        "Nothing in it was taken. Send JSON, or one JSON object a line as application/x-ndjson.",
    ),
    "body-too-large": (
        "The body is too large",
        "Nothing in it was taken. Send smaller batches.",
    ),
    "body-not-supported": (
        "The body's form is not supported",
        "Nothing in it was taken. The detail says which types and encodings are read.",
    ),
    "unauthenticated": (
        "A good key is needed",
        "Send one as `X-API-Key: …` or `Authorization: Bearer …`.",
    ),
    "forbidden": (
        "The key may not do this",
        "The key is good but not for this; the detail says what it lacks.",
    ),
    "rate-limited": (
        "Too many requests",
        "The key's limit is used up. Retry-After says in how many seconds it begins anew.",
    ),
    "header-too-large": (
        "The header is too large",
        "The request line and all headers may have 16 KiB together.",
    ),
    "misdirected": (
        "This service does not go by that name",
        "The Host header names none of its hosts. ALLOWED_HOSTS lists further ones.",
    ),
    "not-http": (
        "The request cannot be read",
        "It is not HTTP, or ambiguous: two lengths, a length and chunks, control characters.",
    ),
    "too-slow": (
        "The request came too slowly",
        "A header has to arrive within 10 seconds, a body within 30.",
    ),
    "not-found": (
        "There is nothing here",
        "The path, or what it names, does not exist. /docs lists what does.",
    ),
    "conflict": (
        "What it names is not as this needs it",
        "The detail says what has ended or is full. Sending it again does not help.",
    ),
    "events-wait": (
        "Events still wait in the queue",
        "What was accepted before has to be stored first; /queue/status tells how much it is.",
    ),
    "method-not-allowed": (
        "The method is not allowed here",
        "The header Allow lists those that are.",
    ),
    "unavailable": (
        "A backend does not answer",
        "The queue or the database is away, /health says which. Send it again after Retry-After.",
    ),
    "queue-full": (
        "The queue is full",
        "Events come in faster than they are stored. Nothing was taken; send it again later.",
    ),
    "too-many-reviews": (
        "Too many reviews",
        "As many run and wait as may. Nothing was taken; send it again after Retry-After.",
    ),
    "review-runs": (
        "The review is not over yet",
        "The same Idempotency-Key began it. GET /reviews/{id} tells when it has ended.",
    ),
    "stopping": (
        "The service is being stopped",
        "It begins nothing new. Send it again after Retry-After.",
    ),
    "schema": (
        "The database's schema does not fit",
        "`logging-service migrate` brings it up to date; /health says which revision was found.",
    ),
    "internal": (
        "The service made a mistake",
        "It is in the service's log under the X-Request-ID of the answer.",
    ),
}

# The nearest class counts; what is not listed is our own mistake.
STATUS: dict[type[Exception], tuple[int, str]] = {
    FieldRejected: (422, "validation"),
    BodyRejected: (400, "body"),
    BodyTooLarge: (413, "body-too-large"),
    BodyNotSupported: (415, "body-not-supported"),
    Unauthenticated: (401, "unauthenticated"),
    Forbidden: (403, "forbidden"),
    KeyConflict: (409, "conflict"),
    EventsWait: (409, "events-wait"),
    RateLimited: (429, "rate-limited"),
    HeaderTooLarge: (431, "header-too-large"),
    Misdirected: (421, "misdirected"),
    NotHttp: (400, "not-http"),
    TooSlow: (408, "too-slow"),
    BackendUnavailable: (503, "unavailable"),
    QueueFull: (503, "queue-full"),
    TooManyReviews: (429, "too-many-reviews"),
    ReviewRuns: (409, "review-runs"),
    Stopping: (503, "stopping"),
    SchemaMismatch: (503, "schema"),
    Exception: (500, "internal"),
}
_HTTP_SLUGS = {404: "not-found", 405: "method-not-allowed", 409: "conflict"}
_HEADERS = {
    401: {"WWW-Authenticate": "Bearer"},
    503: {"Retry-After": str(RETRY_AFTER_SECONDS)},
}


def problem(
    status: int,
    slug: str,
    detail: str,
    *,
    errors: Sequence[FieldError] = (),
    headers: Mapping[str, str] | None = None,
    root_path: str = "",
) -> Response:
    """Return a problem document of the type `/problems/<slug>`, one of PROBLEMS.

    `root_path` is what a proxy takes away before it passes requests on.
    """
    title, _ = PROBLEMS[slug]
    document = Problem(f"{root_path}/problems/{slug}", title, status, detail, list(errors))
    return Response(
        msgspec.json.encode(document),
        status,
        {**_HEADERS.get(status, {}), **(headers or {})},
        "application/problem+json",
    )


def problem_for(error: Exception, root_path: str = "") -> Response:
    """Return the problem document of an error; one that is not the sender's tells no internals."""
    status, slug = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    # Up to 499 the sender can mend it.
    detail = str(error) if status < 500 else PROBLEMS[slug][1]  # noqa: PLR2004
    errors = [FieldError(error.loc, error.message)] if isinstance(error, FieldRejected) else []
    headers = error.headers if isinstance(error, RateLimited) else None
    return problem(status, slug, detail, errors=errors, headers=headers, root_path=root_path)


async def _answer_error(request: Request, error: Exception) -> Response:
    root_path = request.scope.get("root_path", "")
    if isinstance(error, RequestValidationError):
        return _invalid(error, root_path)
    if isinstance(error, HTTPException):
        status, slug = error.status_code, _HTTP_SLUGS.get(error.status_code, "validation")
        detail, headers = str(error.detail), error.headers
        return problem(status, slug, detail, headers=headers, root_path=root_path)
    return problem_for(error, root_path)


def _invalid(error: RequestValidationError, root_path: str) -> Response:
    errors = [
        FieldError(_plain_name(fault["loc"]), fault["msg"].removeprefix("Value error, "))
        for fault in error.errors()
    ]
    detail = "; ".join(f"{fault.loc}: {fault.msg}" for fault in errors)
    return problem(422, "validation", detail, errors=errors, root_path=root_path)


def _plain_name(loc: Sequence[str | int]) -> str:
    """Return `limit` for ("query", "limit"), `payload.user` for ("body", "payload", "user")."""
    return ".".join(part for part in loc[1:] if isinstance(part, str))


def create_face(
    service: str,
    settings: Settings,
    *,
    description: str,
    lifespan: Lifespan[FastAPI],
    before_scrape: Callable[[Request], Awaitable[None]] | None = None,
) -> FastAPI:
    """Return an application that answers errors as problem documents and has /metrics and /docs.

    Its routes come from the caller, and around all of it goes RequestContext. `before_scrape`
    brings gauges up to date that are read when /metrics is.
    """

    async def expose_metrics(request: Request) -> Response:
        """Return all metrics in Prometheus's text format."""
        if before_scrape is not None:
            await before_scrape(request)
        metrics.measure_disk(settings.data_path)
        body, content_type = metrics.exposition(service)
        return Response(body, headers={"Content-Type": content_type})

    face = FastAPI(
        title=f"logging-service: {service.replace('_', ' ')}",
        version=release(),
        description=description,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses={"default": _PROBLEM_RESPONSE},
    )
    for kind in (*STATUS, HTTPException, RequestValidationError):
        face.add_exception_handler(kind, _answer_error)
    face.add_api_route("/problems/{slug}", describe_problem, response_class=PlainTextResponse)
    if settings.enable_metrics:
        face.add_api_route("/metrics", expose_metrics, response_class=PlainTextResponse)
    metrics.switch(on=settings.enable_metrics)
    admit_browsers(face, settings)
    return face


_PROBLEM_RESPONSE = {
    "description": "A problem document (RFC 9457).",
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
}


async def describe_problem(slug: str) -> Response:
    """Say what a type of problem means, as text."""
    if slug not in PROBLEMS:
        raise HTTPException(404, "This type of problem is not known.")
    title, text = PROBLEMS[slug]
    return PlainTextResponse(f"{title}.\n\n{text}\n")


def describe_types(face: FastAPI, types: Iterable[Any]) -> None:
    """Put the schemas of msgspec types into the OpenAPI document, for `schema_of` to point to."""

    def openapi() -> dict[str, Any]:
        if not face.openapi_schema:
            face.openapi_schema = get_openapi(
                title=face.title,
                version=face.version,
                description=face.description,
                routes=face.routes,
            )
            components = face.openapi_schema.setdefault("components", {})
            components.setdefault("schemas", {}).update(schemas)
        return face.openapi_schema

    _, components = msgspec.json.schema_components(
        (*types, Problem), ref_template="#/components/schemas/{name}"
    )
    schemas = _with_numbers(components)
    face.openapi = openapi  # type: ignore[method-assign] # FastAPI's own way to extend it


def _with_numbers(schemas: dict[str, Any]) -> dict[str, Any]:
    """Return `schemas` with decimals as what they are in answers: JSON numbers."""
    encoded = msgspec.json.encode(schemas)
    as_text, as_number = b'"type":"string","format":"decimal"', b'"type":"number"'
    changed: dict[str, Any] = msgspec.json.decode(encoded.replace(as_text, as_number))
    return changed


def schema_of(kind: type, example: object = None) -> dict[str, Any]:
    """Return the entry in `responses` for JSON of a type that `describe_types` knows."""
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    content = {"schema": schema} if example is None else {"schema": schema, "example": example}
    return {
        "description": (kind.__doc__ or "").partition("\n")[0],
        "content": {"application/json": content},
    }


async def read_body(request: Request, most_bytes: int) -> bytes:
    """Return a request's body; raises BodyTooLarge as soon as it is known to be too large."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > most_bytes:
            raise BodyTooLarge(f"the body has to be at most {most_bytes} bytes")
        parts.append(part)
    return b"".join(parts)


async def body_as(request: Request, kind: type[_Model], most_bytes: int) -> _Model:
    """Return a request's JSON as `kind`, checked.

    Raises BodyRejected, or RequestValidationError naming the fields at fault.
    """
    check_json(request.headers.get("content-type", ""))
    try:
        return kind.model_validate_json(await read_body(request, most_bytes))
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        if faults[0]["type"] == "json_invalid":
            raise BodyRejected(f"the body is not JSON: {faults[0]['msg']}") from None
        raise RequestValidationError(
            [{**fault, "loc": ("body", *(fault["loc"] or ("body",)))} for fault in faults]
        ) from None


def json_answer(
    answer: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return `answer` as JSON."""
    return Response(msgspec.json.encode(answer), status, headers, "application/json")


def release() -> str:
    """Return the version of the installed package, in a bare checkout `unknown`."""
    try:
        return version("logging-service")
    except PackageNotFoundError:
        return "unknown"


def request_id_from(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """Return the X-Request-ID that was sent, None unless it is 1 to 64 printable characters."""
    for name, value in headers:
        if name == b"x-request-id":
            printable = value.isascii() and value.decode("ascii").isprintable()
            return value if printable and 0 < len(value) <= 64 else None  # noqa: PLR2004
    return None


class RequestContext:
    """The outermost layer: gives every answer what all have, counts it, logs our mistakes.

    That is its X-Request-ID, which routes find in `request.state.request_id`, and the headers for
    browsers that depend on the answer.
    """

    def __init__(self, app: ASGIApp, service: str, endpoints: Collection[tuple[str, str]]) -> None:
        self._app = app
        self._service = service
        self._paths = {path for _, path in endpoints}
        metrics.declare_endpoints(service, endpoints)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        request_id = request_id_from(scope["headers"]) or uuid4().hex.encode()
        scope.setdefault("state", {})["request_id"] = request_id.decode("ascii")
        status = 0

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = missing_headers(scope, message["headers"])
                message["headers"] = [*message["headers"], *added, (b"x-request-id", request_id)]
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        except Exception as error:  # noqa: BLE001 - the last one to answer, and it logs
            _log.exception(
                "unhandled_error", path=scope["path"], request_id=request_id.decode("ascii")
            )
            if not status:
                answer = problem_for(error, scope.get("root_path", ""))
                await answer(scope, receive, send_on)
        if status:
            endpoint, seconds = self._endpoint(scope), time.perf_counter() - began
            metrics.observe_request(self._service, endpoint, scope["method"], status, seconds)

    def _endpoint(self, scope: Scope) -> str:
        asked = scope["path"].removeprefix(scope.get("root_path", ""))
        template = getattr(scope.get("route"), "path", asked)
        return template if template in self._paths else "other"


def endpoints_of(face: FastAPI) -> list[tuple[str, str]]:
    """Return (method, template) of every route in the OpenAPI document."""
    paths = face.openapi()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() for method in methods]
