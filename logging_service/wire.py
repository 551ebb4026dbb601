"""The bytes that carry an event: a format number and the row that PostgreSQL's `COPY` takes.

The producer makes them once; the queue keeps them, the consumer concatenates them. Times are
microseconds since 2000-01-01 UTC, PostgreSQL's own count. A consumer reads the current format
and the one before, so that an upgrade can roll.
"""

import struct
import time
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple
from uuid import UUID
from zlib import crc32

FORMAT = 1
_FORMAT_BYTE = bytes([FORMAT])
COLUMNS = (
    "event_id",
    "timestamp",
    "received_at",
    "event_type",
    "session_id",
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


# number of columns, then event_id, timestamp and received_at, each behind its length
_ROW = struct.Struct(">hiQQiqiq")
_SEAL = struct.Struct(">BI")  # the format's number and the CRC-32 of the row
_LENGTH = struct.Struct(">i")
SEAL_SIZE = _SEAL.size
_TEXTS = SEAL_SIZE + _ROW.size
NULL = _LENGTH.pack(-1)
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
    event_type: str
    session_id: str | None
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
        texts[0] or "",
        texts[1],
        texts[2] or "",
        texts[3],
        texts[4],
        values[5],
        values[6] or b"",
    )


def check(element: bytes) -> None:
    """Raise ValueError unless `element` is, to the byte, one that a producer made."""
    if element[:1] != _FORMAT_BYTE:
        raise ValueError(f"format {element[:1].hex() or 'none'} is not known")
    if len(element) < _TEXTS or crc32(element[SEAL_SIZE:]) != _SEAL.unpack_from(element)[1]:
        raise ValueError("the bytes are damaged: their checksum differs")


def received_at(element: bytes) -> int:
    """Return when the producer received an element, in microseconds since 2000-01-01 UTC."""
    try:
        moment: int = _ROW.unpack_from(element, SEAL_SIZE)[7]
    except struct.error:
        raise ValueError("the bytes are no event") from None
    return moment


def days_of(elements: Iterable[bytes]) -> list[date]:
    """Return the UTC days of the elements' timestamps, ascending."""
    days = {_ROW.unpack_from(element, SEAL_SIZE)[5] // 86_400_000_000 for element in elements}
    return [EPOCH.date() + timedelta(days=day) for day in sorted(days)]


def session_of(element: bytes) -> bytes:
    """Return the session's column, length first: rows of one session sort together."""
    place = _TEXTS + 4 + _LENGTH.unpack_from(element, _TEXTS)[0]
    size = max(_LENGTH.unpack_from(element, place)[0], 0)
    return element[place : place + 4 + size]
