"""What an event is: its fields, their rules, and the way into the bytes of `wire`."""

import random
from collections import Counter
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple
from uuid import UUID

import msgspec
import re2

from logging_service.errors import EventRejected
from logging_service.event_rules import (
    MAX_SESSION_ID,
    MAX_TRACE_ID,
    SUSPICIOUS,
    check_payload,
    check_sent_type,
    check_text,
    is_utf8,
)
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

# What redaction may take of a worker's time for the events of one request.
MAX_REDACTION_MICROS = 1_000_000
# Five years: how old an event may be where nothing is removed by age, and in a backfill.
MAX_AGE_DAYS = 5 * 365 + 1


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


# Events of a session come together; a look-up costs a fifth of making the column.
@lru_cache(maxsize=16_384, typed=True)
def _session_column(session_id: int | str | None) -> bytes:
    if isinstance(session_id, int):
        if not -(2**63) <= session_id < 2**63:
            raise EventRejected("session_id", "an integer has to fit 64 bits")
        session_id = str(session_id)
    return _text_column(check_text("session_id", session_id, MAX_SESSION_ID))


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
        self._suspicious = re2.compile(b"|".join((SUSPICIOUS, *suspects)))

    def is_suspicious(self, body: bytes) -> bool:
        """Whether events in `body` may hold what cannot be represented or is to be replaced."""
        return self._suspicious.search(body) is not None or not is_utf8(body)

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
