"""Finds the rows of a spool in the bytes of its file and log, where SQLite cannot any more.

A row lies in one page from its head on, and goes on in a chain of pages when it is long. The log
holds later states of pages: those that were committed count, and what lies behind damage in the
log is looked at last.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from logging_service.spool_rows import (
    HEAD_SIZE,
    MAGIC,
    PAGE_BYTES,
    Events,
    FileDamaged,
    RowDamaged,
    head_at,
    mend,
    unseal,
)

# SQLite's file format, chapters 1.6 and 4: how much of a long entry stays in the page of its
# beginning, and what the log's header and frames consist of.
_MOST_LOCAL = PAGE_BYTES - 35
_LEAST_LOCAL = (PAGE_BYTES - 12) * 32 // 255 - 23
_CHAINED_BYTES = PAGE_BYTES - 4
_NEXT_PAGE = struct.Struct(">I")
_LOG_HEADER = struct.Struct(">8I")
_FRAME_HEADER = struct.Struct(">6I")
_LOG_MAGIC = 0x377F0682
_FRAME_BYTES = _FRAME_HEADER.size + PAGE_BYTES
_MASK = 2**32 - 1
# an entry's size, its number and the head of its record, at the least and at the most
_LEAST_BEFORE, _MOST_BEFORE = 2 + 3, 18 + 12


class FoundRow(NamedTuple):
    """A row's number, its events, None for each that is lost, and how many are damaged."""

    row: int
    events: Events
    damaged: int


class _Blocks:
    """A file's bytes; pages that the disk does not give are zeros, and counted."""

    def __init__(self, file: Path) -> None:
        try:
            self._descriptor: int | None = os.open(file, os.O_RDONLY)
        except FileNotFoundError:
            self._descriptor = None
        self.size = os.fstat(self._descriptor).st_size if self._descriptor is not None else 0
        self.unreadable: dict[int, int] = {}

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes, fewer at the end of the file."""
        if self._descriptor is None:
            return b""
        try:
            return os.pread(self._descriptor, size, offset)
        except OSError:
            self.unreadable[offset] = size
            return bytes(size)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


class _Place(NamedTuple):
    """Where a row begins: in which page of which file, and whether behind damage in the log."""

    blocks: _Blocks
    page: int
    offset: int
    is_beyond: bool


class SpoolPages:
    """The pages of a file and of the log beside it."""

    def __init__(self, file: Path) -> None:
        self._file = _Blocks(file)
        self._log = _Blocks(file.with_name(f"{file.name}-wal"))
        self._kept, beyond = _read_log(self._log)
        self._frames = [*((offset, False) for offset in self._kept.values())]
        self._frames += [(offset, True) for _, offset in beyond]
        self._beyond = dict(beyond)
        self.size = self._file.size + self._log.size
        self.lost_rows = 0
        self._whole: set[int] = set()
        self._damaged: dict[int, _Place] = {}

    @property
    def unreadable_bytes(self) -> int:
        """Bytes that the disk did not give."""
        return sum(sum(blocks.unreadable.values()) for blocks in (self._file, self._log))

    def close(self) -> None:
        """Let go of both files."""
        self._file.close()
        self._log.close()

    def rows(self) -> Iterator[tuple[int, list[FoundRow]]]:
        """Yield the bytes that were read and the rows in them, at the end the damaged rows.

        A row may have been delivered before: it is found as long as its bytes are there.
        """
        for offset in range(0, self._file.size, PAGE_BYTES):
            is_present = offset // PAGE_BYTES + 1 not in self._kept
            yield PAGE_BYTES, sorted(self._found(self._file, offset)) if is_present else []
        for offset, is_beyond in self._frames:
            yield PAGE_BYTES, sorted(self._found(self._log, offset, is_beyond=is_beyond))
        yield 0, [self._mended(row, place) for row, place in self._damaged.items()]

    def _found(self, blocks: _Blocks, start: int, *, is_beyond: bool = False) -> Iterator[FoundRow]:
        page = blocks.read(start, PAGE_BYTES)
        offset = page.find(MAGIC)
        while offset >= 0:
            head = head_at(page, offset)
            is_live = _is_pointed_to(page, offset)
            if head is None or head.size > self.size:
                self.lost_rows += is_live
            elif head.row not in self._whole:
                place = _Place(blocks, start, offset, is_beyond)
                try:
                    events = unseal(head.row, self._sealed(place))
                except RowDamaged:
                    if is_live:
                        self._damaged.setdefault(head.row, place)
                else:
                    self._whole.add(head.row)
                    self._damaged.pop(head.row, None)
                    yield FoundRow(head.row, events, 0)
            offset = page.find(MAGIC, offset + 1)

    def _mended(self, row: int, place: _Place) -> FoundRow:
        events, lost = mend(row, self._sealed(place))
        return FoundRow(row, events, len(lost))

    def _sealed(self, place: _Place) -> bytes:
        """Return all bytes of a row; those that cannot be found are zeros."""
        page = place.blocks.read(place.page, PAGE_BYTES)
        head = head_at(page, place.offset)
        if head is None:
            raise FileDamaged("no row begins here")
        size = HEAD_SIZE + head.size
        end = place.offset + _local_bytes(size)
        parts = [page[place.offset : end]]
        missing = size - len(parts[0])
        pointer = page[end : end + _NEXT_PAGE.size]
        while missing > 0 and len(pointer) == _NEXT_PAGE.size:
            (number,) = _NEXT_PAGE.unpack(pointer)
            content = self._page(number, is_beyond=place.is_beyond) if number else b""
            parts.append(content[_NEXT_PAGE.size :][:missing])
            missing -= len(parts[-1])
            pointer = content[: _NEXT_PAGE.size]
        return b"".join(parts).ljust(size, b"\0")

    def _page(self, number: int, *, is_beyond: bool) -> bytes:
        offset = self._beyond.get(number) if is_beyond else None
        offset = self._kept.get(number) if offset is None else offset
        if offset is not None:
            return self._log.read(offset, PAGE_BYTES)
        return self._file.read((number - 1) * PAGE_BYTES, PAGE_BYTES)


def _local_bytes(size: int) -> int:
    """Return how many of a row's bytes lie in the page of its beginning."""
    before = 2 + _varint_bytes(2 * size + 12)
    whole = before + size
    if whole <= _MOST_LOCAL:
        return size
    kept = _LEAST_LOCAL + (whole - _LEAST_LOCAL) % _CHAINED_BYTES
    return (kept if kept <= _MOST_LOCAL else _LEAST_LOCAL) - before


def _varint_bytes(number: int) -> int:
    return max(1, -(-number.bit_length() // 7))


def _is_pointed_to(page: bytes, offset: int) -> bool:
    """Whether the page has an entry whose content begins here, not only old bytes."""
    entries = int.from_bytes(page[3:5], "big")
    last = min(8 + 2 * entries, len(page) - 1)
    starts = (int.from_bytes(page[at : at + 2], "big") for at in range(8, last, 2))
    return any(_LEAST_BEFORE <= offset - start <= _MOST_BEFORE for start in starts)


def _read_log(log: _Blocks) -> tuple[dict[int, int], list[tuple[int, int]]]:
    """Return where the log keeps pages: as they were committed, and others behind damage."""
    kept: dict[int, int] = {}
    pending: list[tuple[int, int]] = []
    beyond: list[tuple[int, int]] = []
    header = log.read(0, _LOG_HEADER.size).ljust(_LOG_HEADER.size, b"\0")
    magic, _, _, _, *salts, first, second = _LOG_HEADER.unpack(header)
    order = ">" if magic & 1 else "<"
    sums = _sums(order, (0, 0), header[:24])
    is_sound = magic & ~1 == _LOG_MAGIC and sums == (first, second)
    for start in range(_LOG_HEADER.size, log.size, _FRAME_BYTES):
        frame = log.read(start, _FRAME_BYTES)
        if len(frame) < _FRAME_BYTES:
            break
        page, committed, *marks, first, second = _FRAME_HEADER.unpack_from(frame)
        here = (page, start + _FRAME_HEADER.size)
        if is_sound and marks == salts:
            sums = _sums(order, sums, frame[:8] + frame[_FRAME_HEADER.size :])
            is_sound = sums == (first, second)
        else:
            is_sound = False
        if is_sound:
            pending.append(here)
            if committed:
                kept.update(pending)
                pending.clear()
        elif set(marks) & set(salts):
            beyond.append(here)
    return kept, pending + beyond


def _sums(order: str, sums: tuple[int, int], content: bytes) -> tuple[int, int]:
    first, second = sums
    words = iter(struct.unpack(f"{order}{len(content) // 4}I", content))
    for one, two in zip(words, words, strict=True):
        first = (first + one + second) & _MASK
        second = (second + two + first) & _MASK
    return first, second
