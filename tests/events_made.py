"""Events for tests, as the producer makes them."""

import json
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import msgspec

from logging_service import wire
from logging_service.event_ttls import EventTtls
from logging_service.events import EventEncoder, Origin, SentEvent
from logging_service.ports import Delivery
from logging_service.redaction import Redactor
from logging_service.redaction_file import rules_for

REDACTOR = Redactor(rules_for(["email"]), b"the key of the tests")
_encoder = EventEncoder(EventTtls(0), REDACTOR)


def an_event(  # noqa: PLR0913 - each names what a test is about
    event_type: str = "review_started",
    session_id: str | int | None = "s1",
    payload: dict[str, Any] | bytes | None = None,
    *,
    event_id: UUID | None = None,
    timestamp: datetime | None = None,
    received_at: int | None = None,
    source: str = "tests",
) -> bytes:
    """Return an element of the queue."""
    text = payload if isinstance(payload, bytes) else json.dumps(payload or {}).encode()
    sent = SentEvent(event_type, session_id, msgspec.Raw(text), event_id, timestamp)
    origin = Origin(source, None, None, received_at or wire.now_micros())
    return _encoder.encode(sent, origin, suspicious=False).element


def unchecked(
    payload: bytes,
    event_type: str = "review_started",
    session_id: str | None = None,
    *,
    source: str = "tests",
    event_id: UUID | None = None,
    timestamp: datetime | None = None,
) -> bytes:
    """Return an element with a payload as it is, whatever a producer would say to it."""
    session = wire.NULL if session_id is None else wire.column(session_id.encode())
    named = [wire.column(text.encode()) for text in (event_type, source)]
    now = wire.now_micros()
    moment = now if timestamp is None else wire.to_micros(timestamp)
    texts = b"".join((session, *named, wire.NULL * 3))
    return wire.encode((event_id or uuid4()).int, moment, now, texts, payload)


def a_delivery(*events: bytes) -> Delivery:
    """Return a delivery of `events`, else of one, under a lease of its own."""
    return Delivery(uuid4(), list(events or [an_event()]), 1)
