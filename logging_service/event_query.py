"""What `GET /events` can be asked: its parameters, checked, and the cursor."""

import re
import struct
from base64 import b64decode, urlsafe_b64encode
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from hmac import compare_digest
from typing import Annotated, Literal, NamedTuple
from uuid import UUID

import msgspec
from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from logging_service import wire
from logging_service.errors import Forbidden, QueryRejected
from logging_service.ports import EventKey, Filter, PayloadMatch

MOST_PAGED = 100_000
_MOST_MATCHES = 20
_MOST_PATH = 200
_PAYLOAD = "payload."


# A plus sign that was not escaped arrives as a space: `2026-11-23T10:00:00 02:00`.
_LOST_PLUS = re.compile(r"(.+[T ].+) (\d\d:?\d\d)")


def _moment(text: object) -> datetime:
    sent = _LOST_PLUS.sub(r"\1+\2", str(text).upper())
    try:
        moment = datetime.fromisoformat(sent)
    except ValueError:
        raise ValueError("has to be a time such as 2026-11-23T10:00:00Z") from None
    if moment.tzinfo is None:
        raise ValueError("needs an offset from UTC, such as Z or +02:00")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("is too far away") from None


def _without_nul(text: str) -> str:
    if "\x00" in text:
        raise ValueError("may not hold a NUL character")
    return text


Moment = Annotated[datetime, BeforeValidator(_moment)]
Text = Annotated[str, AfterValidator(_without_nul)]
EventTypeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,100}$")]


class EventQuery(BaseModel):
    """The parameters of GET /events that have a fixed name."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    event_type: list[EventTypeName] = Field(
        default=[],
        max_length=50,
        description="one of these types; may be repeated",
        examples=[["llm_query_sent", "error_occurred"]],
    )
    session_id: Text | None = Field(default=None, max_length=200, description="of this session")
    source: Text | None = Field(
        default=None, max_length=200, description="of this project: the one whose key wrote it"
    )
    trace_id: Text | None = Field(default=None, max_length=64, description="of this trace")
    request_id: Text | None = Field(default=None, max_length=64, description="of this request")
    start_time: Moment | None = Field(
        default=None,
        description="at this time or later, RFC 3339 with an offset",
        examples=["2026-11-23T00:00:00Z"],
    )
    end_time: Moment | None = Field(
        default=None, description="before this time", examples=["2026-11-24T00:00:00Z"]
    )
    q: Text | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="with this text anywhere in the payload, in whatever case",
    )
    order: Literal["desc", "asc"] = Field(
        default="desc", description="newest first, or oldest first"
    )
    limit: int = Field(default=50, ge=1, le=1000, description="events on a page")
    page: int | None = Field(
        default=None,
        ge=1,
        description="number of the page, default 1; page times limit is 100,000 at the most",
    )
    cursor: str | None = Field(
        default=None,
        description="`next_cursor` of the page before, with the same filter; instead of `page`",
    )


class Question(NamedTuple):
    """Which events are wanted, and which page of them: behind a key, or by number."""

    wanted: Filter
    limit: int
    page: int | None
    after: EventKey | None

    @property
    def skip(self) -> int:
        """How many events the pages before this one hold."""
        return (self.page - 1) * self.limit if self.page else 0


def read_query(
    query: EventQuery, sent: Sequence[tuple[str, str]], project: str | None = None
) -> Question:
    """Return what is asked, from the checked parameters and all of those that were `sent`.

    Who may read one `project` alone asks of that one; raises Forbidden for any other, and
    QueryRejected or RequestValidationError naming the parameters at fault.
    """
    payload = [(name, value) for name, value in sent if name.startswith(_PAYLOAD)]
    others = [(name, value) for name, value in sent if not name.startswith(_PAYLOAD)]
    refuse_unknown(others, EventQuery.model_fields, repeatable={"event_type"})
    if query.start_time and query.end_time and query.end_time < query.start_time:
        raise QueryRejected("end_time", "has to be later than start_time")
    wanted = Filter(
        event_types=tuple(sorted(set(query.event_type))),
        session_id=query.session_id,
        source=_readable(query.source, project),
        trace_id=query.trace_id,
        request_id=query.request_id,
        start=query.start_time,
        end=query.end_time,
        payload=_matches(payload),
        text=query.q,
        newest_first=query.order == "desc",
    )
    return _on_page(query, wanted)


def _readable(source: str | None, project: str | None) -> str | None:
    if project is not None and source not in {None, project}:
        raise Forbidden(f"The key reads the project '{project}' alone, which source has to name.")
    return source if project is None else project


def _on_page(query: EventQuery, wanted: Filter) -> Question:
    if query.cursor is not None:
        if query.page is not None:
            raise QueryRejected("page", "cannot be used together with cursor")
        return Question(wanted, query.limit, None, _key_in(query.cursor, wanted))
    page = query.page or 1
    if page * query.limit > MOST_PAGED:
        raise QueryRejected(
            "page", f"times limit may be {MOST_PAGED} at the most: go on with next_cursor"
        )
    return Question(wanted, query.limit, page, None)


def refuse_unknown(
    sent: Iterable[tuple[str, str]],
    known: Collection[str],
    *,
    repeatable: Collection[str] = (),
) -> None:
    """Raise RequestValidationError naming the parameters that are unknown or came twice."""
    faults = [
        (name, "is not a parameter of this route" if name not in known else "may be sent once only")
        for name, times in Counter(name for name, _ in sent).items()
        if name not in known or (times > 1 and name not in repeatable)
    ]
    if faults:
        raise RequestValidationError(
            [{"type": "parameter", "loc": ("query", name), "msg": msg} for name, msg in faults]
        )


def _matches(sent: Sequence[tuple[str, str]]) -> tuple[PayloadMatch, ...]:
    if len(sent) > _MOST_MATCHES:
        raise QueryRejected(sent[_MOST_MATCHES][0], f"is one of more than {_MOST_MATCHES} fields")
    return tuple(sorted(_match(name, value) for name, value in sent))


def _match(name: str, value: str) -> PayloadMatch:
    # `payload.user!=ada` arrives as the parameter `payload.user!` with the value `ada`.
    path = name.removeprefix(_PAYLOAD)
    negated = path.endswith("!")
    path = path.removesuffix("!")
    if not 0 < len(path) <= _MOST_PATH:
        raise QueryRejected(
            name, f"has to name a field of the payload in 1 to {_MOST_PATH} characters"
        )
    if "\x00" in path + value:
        raise QueryRejected(name, "may not hold a NUL character")
    return PayloadMatch(path, value, negated)


_POSITION = struct.Struct(">q16s")
_SEAL_BYTES = 12


def cursor_of(key: EventKey, wanted: Filter) -> str:
    """Return an opaque text for the place behind `key` in the answer to `wanted`."""
    return sealed_cursor(_POSITION.pack(wire.to_micros(key.timestamp), key.event_id.bytes), wanted)


def _key_in(cursor: str, wanted: Filter) -> EventKey:
    micros, event_id = _POSITION.unpack(position_in(cursor, wanted, _POSITION.size))
    try:
        return EventKey(wire.from_micros(micros), UUID(bytes=event_id))
    except OverflowError:
        raise no_cursor() from None


def sealed_cursor(position: bytes, wanted: object) -> str:
    """Return a text for a position in the answer to `wanted`, and to no other question."""
    return urlsafe_b64encode(position + _seal(position, wanted)).decode()


def position_in(cursor: str, wanted: object, size: int) -> bytes:
    """Return the position of `size` bytes in a cursor; raises QueryRejected for any other text."""
    position = opened_cursor(cursor, wanted)
    if len(position) != size:
        raise no_cursor()
    return position


def opened_cursor(cursor: str, wanted: object) -> bytes:
    """Return the position in a cursor; raises QueryRejected for what `sealed_cursor` did not make.

    Its seal keeps mistakes out, and nobody who means to forge one: look at what it holds.
    """
    try:
        token = b64decode(cursor, altchars=b"-_", validate=True)
    except ValueError:
        token = b""
    position = token[:-_SEAL_BYTES]
    if not compare_digest(token[-_SEAL_BYTES:], _seal(position, wanted)):
        raise no_cursor()
    return position


def no_cursor() -> QueryRejected:
    """Return what to raise for a text that is no cursor here."""
    return QueryRejected("cursor", "is damaged, or comes from another filter or order")


def _seal(position: bytes, wanted: object) -> bytes:
    # Not a secret: a forged cursor shows nothing that its sender may not read anyway.
    return blake2b(position + msgspec.json.encode(wanted), digest_size=_SEAL_BYTES).digest()
