"""What an event is: its fields, their rules, and the way into the bytes of `wire`."""

import json
import random
import re
from collections import Counter
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple
from uuid import UUID

import msgspec
import re2

from logging_service import audit
from logging_service.errors import EventRejected
from logging_service.event_ttls import EventTtls
from logging_service.redaction import Redactor
from logging_service.wire import (
    EPOCH_UNIX_MICROS,
    NULL,
    Decoded,
    column,
    encode,
    encode_fields,
    to_micros,
)

MAX_PAYLOAD_BYTES = 256 * 1024
MAX_PAYLOAD_DEPTH = 32
MAX_SESSION_ID = 200
MAX_TRACE_ID = 64
# What redaction may take of a worker's time for the events of one request.
MAX_REDACTION_MICROS = 1_000_000
# Five years: how old an event may be where nothing is removed by age, and in a backfill.
MAX_AGE_DAYS = 5 * 365 + 1
# Beyond this a double, and with it most JSON readers, cannot tell neighbouring integers apart.
MAX_INTEGER = 2**53 - 1


class SentEvent(msgspec.Struct, forbid_unknown_fields=True):
    """An event as an application sends it."""

    event_type: str
    session_id: int | str | None = None
    payload: msgspec.Raw = msgspec.Raw(b"{}")
    event_id: UUID | None = None
    timestamp: datetime | None = None
    trace_id: str | None = None
    request_id: str | None = None


class Origin:
    """What the events of one request have from it, and not from their sender's text."""

    __slots__ = (
        "columns",
        "effort_left",
        "found",
        "received_at",
        "request_id",
        "source",
        "trace_id",
    )

    def __init__(
        self,
        source: str,
        trace_id: str | None,
        request_id: str | None,
        received_at: int,
        found: Counter[str] | None = None,
    ) -> None:
        self.source = source
        self.trace_id = trace_id
        self.request_id = request_id
        self.received_at = received_at
        # What redaction found in the ids, and the microseconds that it may still take.
        self.found = found
        self.effort_left = MAX_REDACTION_MICROS
        self.columns = (
            _columns_of_source(source)
            if trace_id is None and request_id is None
            else _columns(source, trace_id, request_id)
        )

    def with_ids(self, trace_id: str | None, request_id: str | None) -> bytes:
        """Return the columns from source to redactions; an event's own ids win."""
        return _columns(
            self.source,
            self.trace_id if trace_id is None else trace_id,
            self.request_id if request_id is None else request_id,
        )


def _columns(source: str, trace_id: str | None, request_id: str | None) -> bytes:
    return b"".join((*map(_text_column, (source, trace_id, request_id)), NULL))


@lru_cache(maxsize=256)
def _columns_of_source(source: str) -> bytes:
    return _columns(source, None, None)


def _text_column(text: str | None) -> bytes:
    return NULL if text is None else column(text.encode())


class Encoded(NamedTuple):
    """An event ready for the queue."""

    event_id: int
    timestamp: int
    event_type: str
    element: bytes


class Uuid7Clock:
    """Mints UUIDv7 (RFC 9562, 5.7) that ascend within a millisecond, so a batch keeps its order."""

    def __init__(self) -> None:
        self._millis = 0
        self._tail = 0

    def next(self, micros: int) -> tuple[int, int]:
        """Return the id for a time in microseconds since 2000, as integer, and its own time."""
        millis = (micros + EPOCH_UNIX_MICROS) // 1000
        if millis == self._millis:
            self._tail += 1
        else:
            self._millis = millis
            self._tail = random.getrandbits(73)
        tail = self._tail
        value = millis << 80 | 7 << 76 | (tail >> 62) << 64 | 2 << 62 | tail & 0x3FFFFFFFFFFFFFFF
        return value, millis * 1000 - EPOCH_UNIX_MICROS


def uuid7_micros(event_id: UUID) -> int | None:
    """Return the time in a UUIDv7, in microseconds since 2000; None for any other UUID."""
    value = event_id.int
    if (value >> 76) & 0xF != 7 or (value >> 62) & 0b11 != 0b10:  # noqa: PLR2004 - version, variant
        return None
    return (value >> 80) * 1000 - EPOCH_UNIX_MICROS


_EVENT_TYPE = re.compile(r"[A-Za-z0-9_.:-]{1,100}")


@lru_cache(maxsize=4096)
def check_event_type(event_type: str) -> bytes:
    """Return the type as a column of the row; raises EventRejected for one that breaks the rule."""
    if _EVENT_TYPE.fullmatch(event_type) is None:
        raise EventRejected("event_type", "has to be 1 to 100 characters of A-Z a-z 0-9 _ . : -")
    return column(event_type.encode())


@lru_cache(maxsize=4096)
def check_sent_type(event_type: str) -> bytes:
    """Return the same for a type that a sender may use: the service alone makes the audit."""
    if event_type.startswith(audit.PREFIX):
        raise EventRejected("event_type", f"may not begin with {audit.PREFIX}")
    return check_event_type(event_type)


# Events of a session come together; a look-up costs a fifth of making the column.
@lru_cache(maxsize=16_384, typed=True)
def _session_column(session_id: int | str | None) -> bytes:
    if isinstance(session_id, int):
        if not -(2**63) <= session_id < 2**63:
            raise EventRejected("session_id", "an integer has to fit 64 bits")
        session_id = str(session_id)
    return _text_column(check_text("session_id", session_id, MAX_SESSION_ID))


def check_text(name: str, text: str | None, most: int) -> str | None:
    """Return `text`; raises EventRejected when it is too long or holds a NUL character."""
    if text is not None and len(text) > most:
        raise EventRejected(name, f"has to be at most {most} characters")
    if text is not None and "\x00" in text:
        raise EventRejected(name, "may not hold a NUL character")
    return text


# msgspec checks the syntax of a payload that it does not decode, and refuses half a surrogate
# pair. This finds what it lets through and a reader of the stored text could not represent: NUL,
# and numbers that a double cannot hold. A number counts only where one can begin.
_NUL = rb"\\u0000"
_NUMBER = rb"[\x00-\x20:,\[]-?[0-9](?:[0-9.]{15}|[0-9.]*[eE]\+?[0-9]{3})"
_SUSPICIOUS = re2.compile(_NUL + rb"|" + _NUMBER)
_HAS_NUL = re2.compile(rb"(?:^|[^\\])(?:\\\\)*" + _NUL)
_HAS_NUMBER = re2.compile(_NUMBER)
_TEXTS = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_ALL_BUT_BRACKETS = bytes(set(range(256)) - set(b"{}[]"))


def is_suspicious(body: bytes) -> bool:
    """Whether a payload in `body` may hold what cannot be represented."""
    return _SUSPICIOUS.search(body) is not None or not _is_utf8(body)


def _is_utf8(body: bytes) -> bool:
    if body.isascii():
        return True
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def check_payload(payload: bytes, *, suspicious: bool, most_bytes: int = MAX_PAYLOAD_BYTES) -> None:
    """Raise EventRejected unless `payload`, which is JSON, is an object within the bounds.

    `suspicious` is what `is_suspicious` says of it, or of the body that it is part of.
    """
    if payload[:1] != b"{":
        raise EventRejected("payload", "has to be a JSON object")
    if len(payload) > most_bytes:
        raise EventRejected("payload", f"has to be at most {most_bytes} bytes")
    opened = payload.count(b"{") + payload.count(b"[")
    if opened > MAX_PAYLOAD_DEPTH and _is_too_deep(payload):
        raise EventRejected("payload", f"may be {MAX_PAYLOAD_DEPTH} levels deep")
    if suspicious and is_suspicious(payload):
        _check_values(payload)


def _is_too_deep(payload: bytes) -> bool:
    brackets = _TEXTS.sub(b"", payload).translate(None, _ALL_BUT_BRACKETS)
    for _ in range(MAX_PAYLOAD_DEPTH):
        # What is innermost goes, level by level.
        brackets = brackets.replace(b"{}", b"").replace(b"[]", b"")
    return bool(brackets)


def _check_values(payload: bytes) -> None:
    if _HAS_NUL.search(payload):
        raise EventRejected("payload", "may not hold a NUL character")
    try:
        text = payload.decode()
        if _HAS_NUMBER.search(payload):
            _STRICT.decode(text)
    except UnicodeDecodeError:
        raise EventRejected("payload", "has to be UTF-8") from None
    except ValueError as error:
        raise EventRejected("payload", str(error)) from None


def _strict_integer(digits: str) -> int:
    # The length first: reading a long integer takes quadratic time.
    if len(digits) > len(f"-{MAX_INTEGER}") or abs(int(digits)) > MAX_INTEGER:
        raise ValueError("an integer beyond 2^53-1 has to be sent as a string")
    return int(digits)


def _strict_float(digits: str) -> float:
    number = float(digits)
    if number in {float("inf"), float("-inf")}:
        raise ValueError(f"the number {digits[:20]} is too large")
    return number


_STRICT = json.JSONDecoder(parse_int=_strict_integer, parse_float=_strict_float)


def redacted(event: Decoded, redactor: Redactor) -> tuple[Decoded, int]:
    """Return `event` without what is found in its payload, session and ids, and the effort of it.

    What was found is added to what its `redactions` count; raises msgspec.DecodeError for a count
    that is none.
    """
    found = Counter(_REDACTIONS.decode(event.redactions or b"{}"))
    effort = 0

    def clean(text: str | None) -> str | None:
        nonlocal effort
        if text is None:
            return None
        instead, counted, more = redactor.text(text.encode())
        effort += more
        if not counted:
            return text
        found.update(counted)
        return instead.decode()

    session_id, trace_id, request_id = map(
        clean, (event.session_id, event.trace_id, event.request_id)
    )
    payload, counted, more = redactor.payload(event.payload)
    found.update(counted)
    after = event._replace(
        session_id=session_id,
        trace_id=trace_id,
        request_id=request_id,
        redactions=_counted(found) if found else None,
        payload=payload,
    )
    return after, effort + more


_REDACTIONS = msgspec.json.Decoder(dict[str, int])


def _counted(found: Counter[str]) -> bytes:
    return msgspec.json.encode(found, order="sorted")


def _all_of(sent: SentEvent, payload: bytes) -> bytes:
    ids = f"{sent.session_id}\n{sent.event_type}\n{sent.trace_id}\n{sent.request_id}\n"
    return ids.encode() + payload


class EventEncoder:
    """Checks sent events, as old as `ttl_days` allow (0: five years), and makes the queue's bytes.

    What `redactor` finds is replaced in them; bounds are of what was sent.
    """

    def __init__(self, ttl_days: EventTtls, redactor: Redactor) -> None:
        self._ttl_days = ttl_days
        self._ids = Uuid7Clock()
        self._redactor = redactor
        suspects = () if redactor.suspects is None else (redactor.suspects,)
        # One search costs as much as either of two would.
        self._suspicious = re2.compile(b"|".join((_SUSPICIOUS.pattern, *suspects)))

    def is_suspicious(self, body: bytes) -> bool:
        """Whether events in `body` may hold what cannot be represented or is to be replaced."""
        return self._suspicious.search(body) is not None or not _is_utf8(body)

    def origin(
        self, source: str, trace_id: str | None, request_id: str | None, received_at: int
    ) -> Origin:
        """Return the origin of a request's events; its `trace_id` is of hexadecimal digits."""
        found = None
        if request_id is not None:
            text, counted, _ = self._redactor.text(request_id.encode())
            if counted:
                request_id, found = text.decode(), counted
        return Origin(source, trace_id, request_id, received_at, found)

    def encode(self, sent: SentEvent, origin: Origin, *, suspicious: bool) -> Encoded:
        """Return the event's bytes; raises EventRejected naming the first field at fault.

        `suspicious` is what `is_suspicious` says of the body that it is part of.
        """
        texts = _session_column(sent.session_id) + check_sent_type(sent.event_type)
        if sent.trace_id is None and sent.request_id is None:
            texts += origin.columns
        else:
            texts += origin.with_ids(
                check_text("trace_id", sent.trace_id, MAX_TRACE_ID),
                check_text("request_id", sent.request_id, MAX_TRACE_ID),
            )
        payload = bytes(sent.payload)
        suspicious = suspicious and self.is_suspicious(_all_of(sent, payload))
        check_payload(payload, suspicious=suspicious)
        if sent.event_id is None and sent.timestamp is None:
            event_id, timestamp = self._ids.next(origin.received_at)
        else:
            event_id, timestamp = self._identity(sent, origin.received_at)
        if suspicious or origin.found:
            identity = (UUID(int=event_id), timestamp, origin.received_at)
            element = encode_fields(self._redacted(identity, sent, origin, payload))
        else:
            element = encode(event_id, timestamp, origin.received_at, texts, payload)
        return Encoded(event_id, timestamp, sent.event_type, element)

    def _redacted(
        self, identity: tuple[UUID, int, int], sent: SentEvent, origin: Origin, payload: bytes
    ) -> Decoded:
        if origin.effort_left <= 0:
            raise EventRejected("payload", "is one of too many at once that have to be redacted")
        if self._redactor.text(sent.event_type.encode()).found:
            # Replaced it would be another type, of which there would be too many.
            raise EventRejected("event_type", "may hold no personal data and no secret")
        session, trace_id, request_id = sent.session_id, sent.trace_id, sent.request_id
        event = Decoded(
            *identity,
            session_id=None if session is None else str(session),
            event_type=sent.event_type,
            source=origin.source,
            trace_id=origin.trace_id if trace_id is None else trace_id,
            request_id=origin.request_id if request_id is None else request_id,
            redactions=_counted(origin.found) if request_id is None and origin.found else None,
            payload=payload,
        )
        after, effort = redacted(event, self._redactor)
        origin.effort_left -= effort
        return after

    def _identity(self, sent: SentEvent, received_at: int) -> tuple[int, int]:
        timestamp = None
        if sent.timestamp is not None:
            if sent.timestamp.tzinfo is None:
                raise EventRejected("timestamp", "needs an offset from UTC, such as Z or +02:00")
            timestamp = to_micros(sent.timestamp)
            self._check_time("timestamp", timestamp, sent, received_at)
        if sent.event_id is None:
            # An id of the event's own time is found by one look.
            moment = timestamp or 0
            return self._ids.next(moment)[0], moment
        if timestamp is None:
            timestamp = uuid7_micros(sent.event_id)
            if timestamp is None:
                raise EventRejected("event_id", "without a timestamp it has to be a UUIDv7")
            self._check_time("event_id", timestamp, sent, received_at)
        return sent.event_id.int, timestamp

    def _check_time(self, loc: str, timestamp: int, sent: SentEvent, received_at: int) -> None:
        days = self._ttl_days.of(sent.event_type) or MAX_AGE_DAYS
        if timestamp < max(received_at - days * 86_400_000_000, -EPOCH_UNIX_MICROS):
            raise EventRejected(loc, f"its time may be at most {days} days ago")
        if timestamp > received_at + 86_400_000_000:
            raise EventRejected(loc, "its time may be at most a day ahead")
