"""From a write request to its answer: key, rate, decode, validate, encode, put.

Everything up to the queue is one synchronous pass, so that `http_protocol` can answer a request
without a task, a scope or a framework.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple, Self
from urllib.parse import parse_qs

import msgspec
import structlog
from starlette.responses import Response

from logging_service import metrics, wire
from logging_service.auth import Keyring, Principal, require
from logging_service.errors import (
    BackendUnavailable,
    LoggingServiceError,
    QueryRejected,
    RateLimited,
)
from logging_service.event_ttls import EventTtls
from logging_service.events import MAX_AGE_DAYS, Encoded, EventEncoder
from logging_service.group_commit import GroupCommit, Outcome
from logging_service.intake import (
    MAX_BODY_BYTES,
    MAX_SINGLE_BYTES,
    Batch,
    FieldError,
    Rejection,
    check_json,
    decompress,
    read_many,
    read_one,
)
from logging_service.ports import Ack
from logging_service.rate_limit import RateLimiter
from logging_service.redaction import Redactor
from logging_service.stored_watch import StoredWatch
from logging_service.web import problem, problem_for, request_id_from

_log = structlog.get_logger()

SERVICE = "producer"
BODY_LIMITS = {"/log": MAX_SINGLE_BYTES, "/logs": MAX_BODY_BYTES}
# As many faults as a problem document lists; the rest are alike.
_MOST_ERRORS = 100
_PARTLY_TAKEN = 207
_TAKEN = 202


class WriteRequest(NamedTuple):
    """A whole request to one of the write routes; header names are lower-case."""

    principal: Principal
    endpoint: str
    query: bytes
    headers: dict[bytes, bytes]
    body: bytes
    root_path: str = ""


class Answer(NamedTuple):
    """What goes back: status, headers without Content-Length, body."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes


Respond = Callable[[Answer], None]


Taken = Ack | Literal["stored"]


class EventTaken(msgspec.Struct):
    """What became of an event."""

    status: Taken
    event_id: str


class BatchTaken(msgspec.Struct):
    """What became of a batch: the ids of the accepted events in order, and the refused ones."""

    status: Taken
    accepted: int
    rejected: list[Rejection]
    event_ids: list[str]


class Encoders(NamedTuple):
    """What encodes new events, and what encodes those of a backfill, which may be older."""

    usual: EventEncoder
    backfill: EventEncoder

    @classmethod
    def of(cls, ttls: EventTtls, redactor: Redactor) -> Self:
        """Return those of a service that keeps events as long as `ttls` say."""
        backfill = EventEncoder(ttls.at_least(MAX_AGE_DAYS), redactor)
        return cls(EventEncoder(ttls, redactor), backfill)


class WritePath:
    """Answers `POST /log` and `POST /logs`."""

    def __init__(
        self,
        keyring: Keyring,
        limiter: RateLimiter,
        commit: GroupCommit,
        watch: StoredWatch,
        encoders: Encoders,
    ) -> None:
        self._keyring = keyring
        self._limiter = limiter
        self._commit = commit
        self._watch = watch
        self._encoders = encoders

    def admit(self, headers: dict[bytes, bytes], address: str) -> Principal:
        """Return who writes from `address`, before the body is read, and count the key's use.

        Raises what `Keyring.authenticate` raises.
        """
        principal = self._keyring.authenticate(headers, "write", address)
        self._keyring.note_use(principal)
        return principal

    def begin(self, request: WriteRequest, respond: Respond) -> None:
        """Judge `request` and call `respond` once with its answer, perhaps before returning."""
        try:
            if self._limiter.spend(request.principal, request.endpoint):
                self._take(request, respond)
            else:
                self._wait_for_permit(request, respond)
        except Exception as error:  # noqa: BLE001 - our mistake is this request's, not the worker's
            respond(_refusal_of(request, error))

    def _wait_for_permit(self, request: WriteRequest, respond: Respond) -> None:
        def go_on(refused: RateLimited | None) -> None:
            if refused is not None:
                respond(_refusal_of(request, refused))
                return
            try:
                self._take(request, respond)
            except Exception as error:  # noqa: BLE001 - as in `begin`
                respond(_refusal_of(request, error))

        self._limiter.when_known(request.principal, request.endpoint, go_on)

    def _take(self, request: WriteRequest, finish: Respond) -> None:
        headers = request.headers
        principal = request.principal
        options = _options(request) if request.query else _NO_OPTIONS
        encoder = self._encoders.usual
        if options.is_backfill:
            require(principal, "admin")
            encoder = self._encoders.backfill
        request_id = request_id_from(headers.items()) if b"x-request-id" in headers else None
        origin = encoder.origin(
            principal.source,
            _trace_id(headers.get(b"traceparent")),
            request_id.decode() if request_id else None,
            wire.now_micros(),
        )
        encoding = headers.get(b"content-encoding")
        body = request.body if encoding is None else _plain_body(request, encoding)
        media = headers.get(b"content-type", b"")
        if request.endpoint == "/log":
            if media != _JSON:
                check_json(media.decode("latin-1"))
            one = read_one(body, encoder, origin)
            self._put([one], lambda status: _single_answer(one, status), finish, request, options)
            return
        batch = read_many(body, media.decode("latin-1"), encoder, origin)
        if not batch.accepted:
            finish(_none_taken(batch, request.root_path))
            return
        events = batch.accepted
        self._put(events, lambda status: _batch_answer(batch, status), finish, request, options)

    def _put(
        self,
        events: Sequence[Encoded],
        answer: Callable[[Taken], Answer],
        finish: Respond,
        request: WriteRequest,
        options: "_Options",
    ) -> None:
        def settled(outcome: Outcome) -> None:
            if isinstance(outcome, BackendUnavailable):
                finish(refusal(outcome, request.root_path))
                return
            metrics.count_events([event.event_type for event in events])
            if not options.waits:
                finish(answer(outcome))
                return
            self._watch.wait(
                events,
                lambda told: finish(answer("stored" if told == "stored" else outcome)),
            )

        self._commit.put([event.element for event in events], settled)


def refusal(error: Exception, root_path: str = "") -> Answer:
    """Return the problem document of an error."""
    return _as_answer(problem_for(error, root_path))


def _refusal_of(request: WriteRequest, error: Exception) -> Answer:
    if not isinstance(error, LoggingServiceError):
        request_id = request_id_from(request.headers.items())
        told = request_id.decode() if request_id else None
        _log.error("unhandled_error", path=request.endpoint, request_id=told, exc_info=error)
    return refusal(error, request.root_path)


def _as_answer(response: Response) -> Answer:
    headers = [pair for pair in response.raw_headers if pair[0] != b"content-length"]
    return Answer(response.status_code, headers, bytes(response.body))


def _none_taken(batch: Batch, root_path: str) -> Answer:
    errors = [
        FieldError(f"{rejection.index}.{fault.loc}", fault.msg)
        for rejection in batch.rejected[:_MOST_ERRORS]
        for fault in rejection.errors
    ]
    errors = errors or [FieldError("body", "has to hold at least one event")]
    detail = "No event was taken."
    return _as_answer(problem(422, "validation", detail, errors=errors, root_path=root_path))


def _plain_body(request: WriteRequest, encoding: bytes) -> bytes:
    name = encoding.decode("latin-1").strip().lower()
    return decompress(request.body, name, BODY_LIMITS[request.endpoint])


class _Options(NamedTuple):
    waits: bool
    is_backfill: bool


_NO_OPTIONS = _Options(waits=False, is_backfill=False)
_PARAMETERS: dict[str, dict[str, tuple[str, ...]]] = {
    "/log": {"wait": ("stored",)},
    "/logs": {"wait": ("stored",), "backfill": ("true", "false")},
}


def _options(request: WriteRequest) -> _Options:
    known = _PARAMETERS[request.endpoint]
    sent = parse_qs(request.query.decode("latin-1"), keep_blank_values=True)
    unknown = sorted(set(sent) - set(known))
    if unknown:
        raise QueryRejected(unknown[0][:100], "is not a parameter of this route")
    for name, values in sent.items():
        if len(values) != 1 or values[0] not in known[name]:
            raise QueryRejected(name, f"has to be {' or '.join(known[name])}")
    return _Options(waits="wait" in sent, is_backfill=sent.get("backfill") == ["true"])


_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")


def _trace_id(traceparent: bytes | None) -> str | None:
    """Return the trace id of a W3C traceparent header, None when it is absent or malformed."""
    match = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    return match[1].decode() if match else None


_JSON = b"application/json"
_JSON_HEADERS = ((b"content-type", _JSON),)
_encode_json = msgspec.json.Encoder().encode


def _id_text(event_id: int) -> str:
    low = event_id & 0xFFFF_FFFF_FFFF_FFFF
    return f"{_first_half(event_id >> 64)}{low >> 48:04x}-{low & 0xFFFF_FFFF_FFFF:012x}"


# The ids of a millisecond share it.
@lru_cache(maxsize=64)
def _first_half(high: int) -> str:
    return f"{high >> 32:08x}-{high >> 16 & 0xFFFF:04x}-{high & 0xFFFF:04x}-"


def _single_answer(event: Encoded, status: Taken) -> Answer:
    body = _encode_json(EventTaken(status, _id_text(event.event_id)))
    return Answer(_TAKEN, _JSON_HEADERS, body)


def _batch_answer(batch: Batch, status: Taken) -> Answer:
    ids = [_id_text(event.event_id) for event in batch.accepted]
    body = _encode_json(BatchTaken(status, len(ids), batch.rejected, ids))
    return Answer(_PARTLY_TAKEN if batch.rejected else _TAKEN, _JSON_HEADERS, body)
