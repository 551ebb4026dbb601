"""Dead letters: which are the same, how one is shown, and the way back into the queue."""

import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import datetime
from hashlib import sha256
from typing import NamedTuple
from uuid import UUID

import msgspec

from logging_service import audit, wire
from logging_service.audit import Actor
from logging_service.errors import EventRejected
from logging_service.event_rules import (
    MAX_PAYLOAD_BYTES,
    MAX_SESSION_ID,
    MAX_TRACE_ID,
    check_event_type,
    check_payload,
    check_sent_type,
    check_text,
)
from logging_service.events import (
    redacted,
)
from logging_service.ports import DeadLetters, EventQueue, KeptLetter, LetterFilter, LetterKey
from logging_service.redaction import Redactor
from logging_service.repeated_keys import repeats_a_key

# One step holds this much in memory, and one put into the queue.
_STEP_EVENTS, _STEP_BYTES = 500, 1024 * 1024
_PAGE_BYTES = 16 * 1024 * 1024

# The reason of an event that ended its consumer.
CRASH = "crash"


class ShownLetter(msgspec.Struct, frozen=True):
    """A dead letter; the event's fields are null where its bytes cannot be read.

    `reason` is the rule that it broke, with the database's own code in `sqlstate`; `attempts` says
    how often it was tried, from `first_seen` to `last_seen`; `size` is in bytes.
    """

    id: int
    reason: str
    detail: str
    sqlstate: str | None
    attempts: int
    first_seen: datetime
    last_seen: datetime
    replayed_at: datetime | None
    size: int
    event_id: UUID | None
    timestamp: datetime | None
    event_type: str | None
    session_id: str | None
    source: str | None
    payload: msgspec.Raw | None


def _decoded(event: bytes) -> wire.Decoded | None:
    try:
        return wire.decode(event)
    except (ValueError, struct.error):
        return None


def letter_digest(event: bytes) -> bytes:
    """Return what is the same for the same event, whenever it was received."""
    try:
        wire.check(event)
    except ValueError:
        return sha256(event).digest()
    return sha256(wire.lasting(event)).digest()


def event_type_of(event: bytes) -> str | None:
    """Return an event's type, None where it cannot be read or is none."""
    decoded = _decoded(event)
    try:
        check_event_type(decoded.event_type if decoded else "")
    except EventRejected:
        return None
    return decoded.event_type if decoded else None


def _json(payload: bytes) -> msgspec.Raw | None:
    try:
        msgspec.json.decode(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return msgspec.Raw(payload)


def shown(letter: KeptLetter) -> ShownLetter:
    """Return a letter as it is told to people and programs."""
    # Bytes that ended those who read them are not read to show them.
    event = None if letter.reason == CRASH else _decoded(letter.event)
    return ShownLetter(
        id=letter.id,
        reason=letter.reason,
        detail=letter.detail,
        sqlstate=letter.sqlstate,
        attempts=letter.attempts,
        first_seen=letter.first_seen,
        last_seen=letter.last_seen,
        replayed_at=letter.replayed_at,
        size=len(letter.event),
        event_id=event.event_id if event else None,
        timestamp=wire.from_micros(event.timestamp) if event else None,
        event_type=event.event_type if event else None,
        session_id=event.session_id if event else None,
        source=event.source if event else None,
        payload=_json(event.payload) if event else None,
    )


async def page_of(
    letters: DeadLetters, wanted: LetterFilter, beyond: int, limit: int
) -> tuple[list[ShownLetter], int | None]:
    """Return the newest letters with ids below `beyond` (0: any), and where to go on, if at all.

    There are `limit` of them at the most, and about 16 MiB.
    """
    keys = await letters.keys(wanted, limit + 1, beyond=beyond, newest_first=True)
    on_page = next(_portions(keys[:limit], limit, _PAGE_BYTES), [])
    kept = await letters.letters([key.id for key in on_page])
    page = [shown(kept[key.id]) for key in on_page if key.id in kept]
    return page, on_page[-1].id if len(on_page) < len(keys) else None


def _portions(
    keys: Sequence[LetterKey], most: int, most_bytes: int
) -> Iterator[Sequence[LetterKey]]:
    start, size = 0, 0
    for place, key in enumerate(keys):
        if place > start and (place - start >= most or size + key.size > most_bytes):
            yield keys[start:place]
            start, size = place, 0
        size += key.size
    if keys:
        yield keys[start:]


class Refusal(msgspec.Struct, frozen=True):
    """A letter that was not replayed, and why."""

    id: int
    detail: str


class Step(NamedTuple):
    """What became of some letters: how many are in the queue again, and which were refused."""

    replayed: int
    refused: list[Refusal]
    reached: int


async def replay(
    letters: DeadLetters,
    queue: EventQueue,
    keys: Sequence[LetterKey],
    actor: Actor,
    redactor: Redactor,
) -> AsyncIterator[Step]:
    """Put the events of letters into the queue again for `actor`, a few hundred at a time.

    An event is checked and redacted as a new one is, and received anew. Raises BackendUnavailable
    when the queue or the database is away; what was told of before is done.
    """
    for portion in _portions(keys, _STEP_EVENTS, _STEP_BYTES):
        step, events, replayed = await _received_anew(letters, portion, redactor)
        if events:
            await queue.put(events)
            # After the queue holds them: a crash in between leaves the letters open, and whoever
            # replays them again has the events queued twice, of which the store keeps one.
            await letters.mark_replayed(replayed, actor)
        yield step


async def _received_anew(
    letters: DeadLetters, portion: Sequence[LetterKey], redactor: Redactor
) -> tuple[Step, list[bytes], list[LetterKey]]:
    kept = await letters.letters([key.id for key in portion])
    events: list[bytes] = []
    replayed: list[LetterKey] = []
    refused: list[Refusal] = []
    for key in portion:
        try:
            events.append(_received_again(kept.get(key.id), redactor))
            replayed.append(key)
        except ValueError as error:
            refused.append(Refusal(key.id, str(error)))
    return Step(len(replayed), refused, portion[-1].id), events, replayed


def _received_again(letter: KeptLetter | None, redactor: Redactor) -> bytes:
    """Return the bytes of an event for the queue; raises ValueError for one that it may not have.

    An event is received anew: what it waited among the letters is no time in the queue.
    """
    if letter is None:
        raise ValueError("the letter is gone")
    try:
        event = wire.decode(letter.event)
        _check(event)
    except struct.error:
        raise ValueError("the bytes are no event") from None
    except EventRejected as error:
        raise ValueError(str(error)) from None
    if event.source != audit.PROJECT:
        try:
            event, _ = redacted(event, redactor)
        except msgspec.DecodeError:
            raise ValueError("redactions: is no count of what was replaced") from None
    return wire.encode_fields(event._replace(received_at=wire.now_micros()))


def _check(event: wire.Decoded) -> None:
    check_type = check_event_type if event.source == audit.PROJECT else check_sent_type
    check_type(event.event_type)
    for name, text, most in (
        ("session_id", event.session_id, MAX_SESSION_ID),
        ("trace_id", event.trace_id, MAX_TRACE_ID),
        ("request_id", event.request_id, MAX_TRACE_ID),
    ):
        # What was replaced may be longer: the bounds are of what was sent.
        check_text(name, text, len(text or "") if event.redactions else most)
    most = len(event.payload) if event.redactions else MAX_PAYLOAD_BYTES
    check_payload(event.payload, suspicious=True, most_bytes=most)
    if _json(event.payload) is None:
        raise EventRejected("payload", "is not JSON")
    if repeats_a_key(event.payload):
        raise EventRejected("payload", "may not have a key twice in an object")
