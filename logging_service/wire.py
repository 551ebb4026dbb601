"""The bytes that carry an event: a format number and the row that PostgreSQL's `COPY` takes.

The producer makes them once; the queue keeps them, the consumer concatenates them. Times are
microseconds since 2000-01-01 UTC, PostgreSQL's own count. A consumer reads the current format
and the one before, so that an upgrade can roll.
"""

import struct
import time
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from hashlib import md5
from operator import itemgetter
from typing import NamedTuple
from uuid import UUID
from zlib import crc32

FORMAT = 1
COLUMNS = (
    "event_id",
    "timestamp",
    "received_at",
    "session_id",
    "event_type",
    "source",
    "trace_id",
    "request_id",
    "redactions",
    "payload",
)

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
EPOCH_UNIX_MICROS = 946_684_800_000_000


def to_micros(moment: datetime) -> int:
    """Return microseconds since 2000-01-01 UTC, PostgreSQL's own count."""
    since = moment - EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def from_micros(micros: int) -> datetime:
    """Return the aware UTC time of a count of microseconds since 2000-01-01."""
    return EPOCH + timedelta(microseconds=micros)


def now_micros() -> int:
    """Return the present in microseconds since 2000-01-01 UTC."""
    return time.time_ns() // 1000 - EPOCH_UNIX_MICROS


def to_unix_seconds(micros: int) -> float:
    """Return seconds since 1970 for microseconds since 2000."""
    return (micros + EPOCH_UNIX_MICROS) / 1_000_000


# The session comes first of the texts, at a fixed place, so that rows sort by it at no cost.
# number of columns, then event_id, timestamp and received_at, each behind its length
_ROW = struct.Struct(">hiQQiqiq")
_SEAL = struct.Struct(">BI")  # the format's number and the CRC-32 of the row
_LENGTH = struct.Struct(">i")
_TIMESTAMP = struct.Struct(">q")
SEAL_SIZE = _SEAL.size
_TEXTS = SEAL_SIZE + _ROW.size
NULL = _LENGTH.pack(-1)
_EVENT_ID = slice(SEAL_SIZE + 6, SEAL_SIZE + 22)
# The id, the length of the timestamp, the timestamp.
_KEY = slice(_EVENT_ID.start, _EVENT_ID.stop + 12)
_MASK64 = 2**64 - 1


def column(value: bytes) -> bytes:
    """Return `value` as one column of a row, behind its length."""
    return _LENGTH.pack(len(value)) + value


def encode(event_id: int, timestamp: int, received_at: int, texts: bytes, payload: bytes) -> bytes:
    """Return an event's bytes; `texts` are the columns between `received_at` and `payload`."""
    high, low = event_id >> 64, event_id & _MASK64
    head = _ROW.pack(len(COLUMNS), 16, high, low, 8, timestamp, 8, received_at)
    row = b"".join((head, texts, _LENGTH.pack(len(payload)), payload))
    return _SEAL.pack(FORMAT, crc32(row)) + row


class Decoded(NamedTuple):
    """The fields of an event's bytes; times in microseconds since 2000-01-01 UTC."""

    event_id: UUID
    timestamp: int
    received_at: int
    session_id: str | None
    event_type: str
    source: str
    trace_id: str | None
    request_id: str | None
    redactions: bytes | None
    payload: bytes


def decode(element: bytes) -> Decoded:
    """Return the fields of an element; raises ValueError for bytes that are not one."""
    check(element)
    _, _, high, low, _, timestamp, _, received_at = _ROW.unpack_from(element, SEAL_SIZE)
    values: list[bytes | None] = []
    place = _TEXTS
    for _ in COLUMNS[3:]:
        (length,) = _LENGTH.unpack_from(element, place)
        place += 4
        values.append(None if length < 0 else element[place : place + length])
        place += max(length, 0)
    texts = [None if value is None else value.decode() for value in values[:5]]
    return Decoded(
        UUID(int=high << 64 | low),
        timestamp,
        received_at,
        texts[0],
        texts[1] or "",
        texts[2] or "",
        texts[3],
        texts[4],
        values[5],
        values[6] or b"",
    )


def encode_fields(event: Decoded) -> bytes:
    """Return the bytes of an event with these fields."""
    texts = (
        None if text is None else text.encode()
        for text in (
            event.session_id,
            event.event_type,
            event.source,
            event.trace_id,
            event.request_id,
        )
    )
    columns = (NULL if value is None else column(value) for value in (*texts, event.redactions))
    identity = (event.event_id.int, event.timestamp, event.received_at)
    return encode(*identity, b"".join(columns), event.payload)


key_of = itemgetter(_KEY)
"""The part of an element that makes it the same event: its id and its time."""


def key(event_id: UUID, timestamp: datetime) -> bytes:
    """Return what `key_of` gives for an element of this id and time."""
    return event_id.bytes + column(_TIMESTAMP.pack(to_micros(timestamp)))


# Its time in microseconds since 2000; the session's text; event type and source as columns of
# `COPY`; the session before them, likewise; the payload. Plain, since each is made per event.
Narrow = tuple[int, bytes | None, bytes, bytes, bytes]
_NARROW = struct.Struct(f">{_EVENT_ID.stop + 4}xq12xi")
_NO_IDS = NULL * 3


def narrow(element: bytes) -> Narrow:
    """Return the parts of an element that say what it was; it has passed `check`."""
    moment, length = _NARROW.unpack_from(element)
    session_at = _TEXTS + 4
    type_at = session_at + length if length > 0 else session_at
    # The bytes of no length and of no text.
    end = element.find(_NO_IDS, type_at)
    payload_at = end + 16
    if end < 0:
        end, payload_at = _ends(element, type_at)
    return (
        moment,
        element[session_at:type_at] if length >= 0 else None,
        element[type_at:end],
        element[_TEXTS:end],
        element[payload_at:],
    )


def _ends(element: bytes, type_at: int) -> tuple[int, int]:
    """Return where the source ends, and where the payload begins."""
    ends = []
    place = type_at
    for _ in range(5):
        place += 4 + max(_LENGTH.unpack_from(element, place)[0], 0)
        ends.append(place)
    return ends[1], place + 4


moment_column = itemgetter(slice(_EVENT_ID.stop, _EVENT_ID.stop + 12))
"""The time of an element as a column of `COPY`."""
key_columns = itemgetter(slice(_EVENT_ID.start - 4, _EVENT_ID.stop + 12))
"""The id and the time of an element, likewise."""


# Where `received_at` stands in a row: behind the head's other fields and its own length.
_RECEIVED = _ROW.size - 8


def received_anew(element: bytes, received_at: int) -> bytes:
    """Return the bytes of the same event, received at another time."""
    row = bytearray(element[SEAL_SIZE:])
    struct.pack_into(">q", row, _RECEIVED, received_at)
    return _SEAL.pack(FORMAT, crc32(row)) + row


def lasting(element: bytes) -> bytes:
    """Return what stays the same of an event however often it is received."""
    row = element[SEAL_SIZE:]
    return row[:_RECEIVED] + row[_RECEIVED + 8 :]


def digest(element: bytes) -> str:
    """Return what tells this event's content from another's under the same id and time."""
    event = decode(element)
    texts = (event.event_type, event.session_id or "", event.source)
    content = b"\x1f".join((*(text.encode() for text in texts), event.payload))
    return md5(content, usedforsecurity=False).hexdigest()


# format, checksum, timestamp and received_at; the rest of the head is passed over
_CHECKED = struct.Struct(">BI26xq4xq")
HEAD_SIZE = _CHECKED.size
# From 1970 to November 9999: what a producer takes, and a month can be made of.
_EARLIEST, _LATEST = -EPOCH_UNIX_MICROS, 252_452_937_600_000_000


def check(element: bytes) -> int:
    """Return when the producer received an element, in microseconds since 2000-01-01 UTC.

    Raises ValueError unless the element is, to the byte, one that a producer made.
    """
    if len(element) < _TEXTS or element[0] != FORMAT:
        raise ValueError(f"format {element[:1].hex() or 'none'} is not known")
    _, checksum, timestamp, received = _CHECKED.unpack_from(element)
    if not _EARLIEST <= timestamp < _LATEST:
        raise ValueError("the event's time is out of range")
    if crc32(element[SEAL_SIZE:]) != checksum:
        raise ValueError("the bytes are damaged: their checksum differs")
    return int(received)


def received_at(element: bytes) -> int:
    """Return the same without the checks of `check`; raises ValueError for too few bytes."""
    try:
        return int(_CHECKED.unpack_from(element)[3])
    except struct.error:
        raise ValueError("the bytes are no event") from None


def days_of(elements: Iterable[bytes]) -> list[date]:
    """Return the UTC days of the elements' timestamps, ascending."""
    days = {_ROW.unpack_from(element, SEAL_SIZE)[5] // 86_400_000_000 for element in elements}
    return [EPOCH.date() + timedelta(days=day) for day in sorted(days)]


# The session's length and its first bytes: elements that are alike in them are of one session,
# or of sessions that lie side by side in the index anyway.
session_of = itemgetter(slice(_TEXTS, _TEXTS + 24))
