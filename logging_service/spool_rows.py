"""The bytes of a spool's row: some events of one put, behind a head by which they are known.

SQLite's pages carry no checksum, so a row carries its own, one for the head and one for the rest.
The head also makes a row known wherever its bytes lie, so that it can be found in the pages of a
file that SQLite cannot read any more (spool_pages.py).
"""

import struct
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple
from zlib import crc32

from logging_service import wire

# No text of an event holds it: the first two bytes are never part of UTF-8.
MAGIC = b"\xff\xfespool1"
# magic, row, number of events, bytes of what follows and its CRC-32, CRC-32 of all this
_HEAD = struct.Struct(">8sQIII")
_HEAD_CHECK = struct.Struct(">I")
HEAD_SIZE = _HEAD.size + _HEAD_CHECK.size
MAX_EVENTS = 1000
# of the file
PAGE_BYTES = 4096
_MAX_BYTES = 1024 * 1024
# An event is far smaller: the length that says that the event of this place is lost.
_LOST = 2**32 - 1

Events = list[bytes | None]


class FileDamaged(Exception):
    """The file does not hold what was written to it, in more than the bytes of events."""


class ForeignFile(Exception):
    """The file is a database of another program."""


class RowDamaged(Exception):
    """A row's bytes are not those that were written."""

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row} is damaged")
        self.row = row


class Head(NamedTuple):
    """What a row says of itself: its number, how many events and bytes follow, and their sum."""

    row: int
    events: int
    size: int
    checksum: int


def pieces(events: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Yield `events` in pieces that are rows: 1,000 events and about 1 MiB at the most."""
    start, size = 0, 0
    for place, event in enumerate(events):
        if place > start and (place - start >= MAX_EVENTS or size + len(event) > _MAX_BYTES):
            yield events[start:place]
            start, size = place, 0
        size += len(event)
    if events:
        yield events[start:]


def seal(row: int, events: Sequence[bytes | None]) -> bytes:
    """Return the bytes of a row; None stands for an event that is lost."""
    lengths = [_LOST if event is None else len(event) for event in events]
    rest = struct.pack(f">{len(events)}I", *lengths) + b"".join(filter(None, events))
    head = _HEAD.pack(MAGIC, row, len(events), len(rest), crc32(rest))
    return b"".join((head, _HEAD_CHECK.pack(crc32(head)), rest))


def head_at(sealed: bytes, place: int = 0) -> Head | None:
    """Return the head that begins at `place`, None when the bytes there are not one."""
    end = place + _HEAD.size
    if len(sealed) < place + HEAD_SIZE:
        return None
    if _HEAD_CHECK.unpack_from(sealed, end)[0] != crc32(sealed[place:end]):
        return None
    magic, *fields = _HEAD.unpack_from(sealed, place)
    return Head(*fields) if magic == MAGIC else None


def unseal(row: int, sealed: bytes) -> Events:
    """Return the events of a row, None for each that is lost.

    Raises RowDamaged when they cannot be trusted, FileDamaged when this is another row.
    """
    head = head_at(sealed)
    if head is None:
        raise RowDamaged(row)
    if (head.row, head.size) != (row, len(sealed) - HEAD_SIZE):
        raise FileDamaged(f"row {row} is not what was written")
    if crc32(memoryview(sealed)[HEAD_SIZE:]) != head.checksum:
        raise RowDamaged(row)
    lengths = _lengths(sealed, head.events)
    ends = accumulate(_kept(lengths), initial=HEAD_SIZE + 4 * head.events)
    events: Events = [sealed[start:end] for start, end in pairwise(ends)]
    if _LOST in lengths:
        return [None if n == _LOST else event for n, event in zip(lengths, events, strict=True)]
    return events


def mend(row: int, sealed: bytes) -> tuple[Events, list[int]]:
    """Return the events of a damaged row that are whole by their own checksums.

    None stands for each of the others; the places of those that were not lost before are returned
    as well. Where a length is damaged, its event is found between the ones before and behind it,
    and where the head is, the lengths tell how many they are. Raises FileDamaged when they do not.
    """
    head = head_at(sealed)
    number = _count(sealed) if head is None else head.events
    if not number or HEAD_SIZE + 4 * number > len(sealed):
        raise FileDamaged(f"row {row} is not what was written")
    lengths = _lengths(sealed, number)
    kept = _kept(lengths)
    first = HEAD_SIZE + 4 * number
    starts = list(accumulate(kept, initial=first))
    ends = [len(sealed) - behind for behind in accumulate(reversed(kept), initial=0)][::-1]
    events: Events = []
    for place, length in enumerate(kept):
        start, end = starts[place], ends[place + 1]
        places = ((start, start + length), (end - length, end), (start, end))
        whole = (sealed[a:b] for a, b in places if first <= a < b <= len(sealed))
        events.append(next(filter(_is_whole, whole), None))
    new = [n for n, event in enumerate(events) if event is None and lengths[n] != _LOST]
    return events, new


def _count(sealed: bytes) -> int | None:
    """Return how many lengths stand before as many bytes as they name."""
    named = 0
    for number in range(1, min(MAX_EVENTS, (len(sealed) - HEAD_SIZE) // 4) + 1):
        named += _kept(_lengths(sealed, 1, number - 1))[0]
        if HEAD_SIZE + 4 * number + named == len(sealed):
            return number
    return None


def _lengths(sealed: bytes, number: int, skipped: int = 0) -> tuple[int, ...]:
    return struct.unpack_from(f">{number}I", sealed, HEAD_SIZE + 4 * skipped)


def _kept(lengths: tuple[int, ...]) -> list[int]:
    return [0 if length == _LOST else length for length in lengths]


def _is_whole(event: bytes) -> bool:
    try:
        wire.check(event)
    except ValueError:
        return False
    return True
