"""What was done with the log itself: noted with the deed, then forwarded as events like others."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, Final, NamedTuple, Protocol
from uuid import UUID

from logging_service import wire

PROJECT: Final = "audit"
"""The `source` of these events; no key writes to it."""
PREFIX: Final = "audit."
"""What their types begin with, and those of no others."""

EVENTS_READ: Final = "audit.events_read"
DEAD_LETTERS_READ: Final = "audit.dead_letters_read"
REVIEWS_READ: Final = "audit.reviews_read"
EXPORTED: Final = "audit.exported"
REPLAYED: Final = "audit.replayed"
DROPPED: Final = "audit.dead_letters_dropped"
REPRICED: Final = "audit.repriced"
REBUILT: Final = "audit.rebuilt"
REDACTION_SCANNED: Final = "audit.redaction_scanned"
KEY_CREATED: Final = "audit.key_created"
KEY_ROTATED: Final = "audit.key_rotated"
KEY_REVOKED: Final = "audit.key_revoked"
RETENTION: Final = "audit.retention"
ERASED: Final = "audit.erased"


class Actor(NamedTuple):
    """Who did it: the name of a key with its id, None for who needs no key."""

    by: str
    key_id: str | None


COMMAND_LINE: Final = Actor("command line", None)
"""Whoever runs `logging-service` on the database."""


class Note(NamedTuple):
    """What was done: `payload`, behind who did it, becomes the event's payload.

    It never holds a secret, nor a field that analytics count, such as `user_id` or `error`.
    """

    event_type: str
    actor: Actor
    payload: dict[str, Any]


class KeptNote(NamedTuple):
    """A note as it waits: its event's id is made of `event_id` and `timestamp`."""

    event_id: UUID
    timestamp: datetime
    event_type: str
    payload: bytes


class AuditOutbox(Protocol):
    """Notes that wait to be forwarded; raises BackendUnavailable or SchemaMismatch."""

    async def add(self, notes: Sequence[Note]) -> None:
        """Keep notes, all or none."""

    def taking(self, most: int) -> AbstractAsyncContextManager[Sequence[KeptNote]]:
        """Yield up to `most` of the oldest notes, which are forgotten unless that fails.

        There are none for one who takes while another does.
        """


def element_of(note: KeptNote, received_at: int) -> bytes:
    """Return the queue's bytes for a note: however often it is made, the same event."""
    moment = wire.to_micros(note.timestamp)
    texts = (
        wire.NULL,
        wire.column(note.event_type.encode()),
        wire.column(PROJECT.encode()),
        wire.NULL * 3,
    )
    event_id = _uuid7(moment, note.event_id)
    return wire.encode(event_id, moment, received_at, b"".join(texts), note.payload)


def _uuid7(moment: int, random: UUID) -> int:
    """Return the UUIDv7 of a time that has its random bits from a random UUID."""
    millis = (moment + wire.EPOCH_UNIX_MICROS) // 1000
    return millis << 80 | 7 << 76 | random.int & (1 << 76) - 1
