"""What an event is: its fields, their rules, and the way into the bytes of `wire`."""

import json
import random
import re
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple
from uuid import UUID

import msgspec
import re2

from logging_service import audit
from logging_service.errors import EventRejected
from logging_service.wire import EPOCH_UNIX_MICROS, NULL, column, encode, to_micros

MAX_PAYLOAD_BYTES = 256 * 1024
MAX_PAYLOAD_DEPTH = 32
MAX_SESSION_ID = 200
MAX_TRACE_ID = 64
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

    __slots__ = ("columns", "received_at", "request_id", "source", "trace_id")

    def __init__(
        self, source: str, trace_id: str | None, request_id: str | None, received_at: int
    ) -> None:
        self.source = source
        self.trace_id = trace_id
        self.request_id = request_id
        self.received_at = received_at
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


def check_payload(payload: bytes, *, suspicious: bool) -> None:
    """Raise EventRejected unless `payload`, which is JSON, is an object within the bounds.

    `suspicious` is what `is_suspicious` says of it, or of the body that it is part of.
    """
    if payload[:1] != b"{":
        raise EventRejected("payload", "has to be a JSON object")
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise EventRejected("payload", f"has to be at most {MAX_PAYLOAD_BYTES} bytes")
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


class EventEncoder:
    """Checks sent events, at most `ttl_days` old (0: five years), and makes the queue's bytes."""

    def __init__(self, ttl_days: int) -> None:
        self._oldest = (ttl_days or MAX_AGE_DAYS) * 86_400_000_000
        self._ids = Uuid7Clock()

    def encode(self, sent: SentEvent, origin: Origin, *, suspicious: bool) -> Encoded:
        """Return the event's bytes; raises EventRejected naming the first field at fault."""
        texts = _session_column(sent.session_id) + check_sent_type(sent.event_type)
        if sent.trace_id is None and sent.request_id is None:
            texts += origin.columns
        else:
            texts += origin.with_ids(
                check_text("trace_id", sent.trace_id, MAX_TRACE_ID),
                check_text("request_id", sent.request_id, MAX_TRACE_ID),
            )
        payload = bytes(sent.payload)
        check_payload(payload, suspicious=suspicious)
        if sent.event_id is None and sent.timestamp is None:
            event_id, timestamp = self._ids.next(origin.received_at)
        else:
            event_id, timestamp = self._identity(sent, origin.received_at)
        element = encode(event_id, timestamp, origin.received_at, texts, payload)
        return Encoded(event_id, timestamp, sent.event_type, element)

    def _identity(self, sent: SentEvent, received_at: int) -> tuple[int, int]:
        timestamp = None
        if sent.timestamp is not None:
            if sent.timestamp.tzinfo is None:
                raise EventRejected("timestamp", "needs an offset from UTC, such as Z or +02:00")
            timestamp = to_micros(sent.timestamp)
            self._check_time("timestamp", timestamp, received_at)
        if sent.event_id is None:
            # An id of the event's own time is found by one look.
            moment = timestamp or 0
            return self._ids.next(moment)[0], moment
        if timestamp is None:
            timestamp = uuid7_micros(sent.event_id)
            if timestamp is None:
                raise EventRejected("event_id", "without a timestamp it has to be a UUIDv7")
            self._check_time("event_id", timestamp, received_at)
        return sent.event_id.int, timestamp

    def _check_time(self, loc: str, timestamp: int, received_at: int) -> None:
        if timestamp < max(received_at - self._oldest, -EPOCH_UNIX_MICROS):
            days = self._oldest // 86_400_000_000
            raise EventRejected(loc, f"its time may be at most {days} days ago")
        if timestamp > received_at + 86_400_000_000:
            raise EventRejected(loc, "its time may be at most a day ahead")
