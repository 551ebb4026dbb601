"""Puts what can still be read of a spool file that was set aside into the queue again."""

import asyncio
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from logging_service import wire
from logging_service.errors import QueueFull, SettingsError
from logging_service.ports import EventQueue
from logging_service.spool_folder import held_for_salvage, mark_salvaged, was_set_aside
from logging_service.spool_pages import SpoolPages

_PUT_EVENTS = 1000
# The smallest spool has room for several of these.
_PUT_BYTES = 128 * 1024
_FULL_PAUSE_SECONDS = 0.5
_FULL_SECONDS = 600.0


class Salvaged(NamedTuple):
    """What was found, and where the file is now.

    `damaged` events are lost, and so is what lay in `lost_rows` and in bytes that the disk did
    not give.
    """

    rows: int
    events: int
    damaged: int
    lost_rows: int
    unreadable_bytes: int
    file: Path


async def salvage(
    file: Path, queue: EventQueue, advance: Callable[[int], None], *, ttl_seconds: int
) -> Salvaged:
    """Put the events in `file` that are whole into `queue`, and rename the file.

    One that has waited for half of `ttl_seconds` counts as received now, or it would expire.

    `advance` is told of each so many bytes more that were read, `size_of(file)` in all. While the
    queue is full it waits, ten minutes at the most. To do it again, also after an error half-way,
    is harmless: an event that is there twice is stored once. Raises SpoolTaken when the file is in
    use, SettingsError when there is none or it is no spool, BackendUnavailable when the queue takes
    nothing.
    """
    with held_for_salvage(file), closing(SpoolPages(file)) as pages:
        rows = events = damaged = 0
        batch = _Batch(queue)
        now = wire.now_micros()
        oldest = now - ttl_seconds * 500_000
        for size, found in pages.rows():
            advance(size)
            for row in found:
                whole = [
                    event if wire.received_at(event) > oldest else wire.received_anew(event, now)
                    for event in row.events
                    if event is not None
                ]
                await batch.add(whole)
                rows, events, damaged = rows + 1, events + len(whole), damaged + row.damaged
        await batch.put()
        lost, unreadable = pages.lost_rows, pages.unreadable_bytes
        if not (rows or lost) and not was_set_aside(file):
            raise SettingsError(f"{file} has nothing of a spool in it: it is left as it is")
        return Salvaged(rows, events, damaged, lost, unreadable, mark_salvaged(file))


def size_of(file: Path) -> int:
    """Return how many bytes there are to be read of `file` and its log."""
    parts = (file, file.with_name(f"{file.name}-wal"))
    return sum(part.stat().st_size for part in parts if part.exists())


class _Batch:
    """Events that go into the queue together."""

    def __init__(self, queue: EventQueue) -> None:
        self._queue = queue
        self._events: list[bytes] = []
        self._size = 0

    async def add(self, events: list[bytes]) -> None:
        for event in events:
            self._events.append(event)
            self._size += len(event)
            if len(self._events) >= _PUT_EVENTS or self._size >= _PUT_BYTES:
                await self.put()

    async def put(self) -> None:
        until = time.monotonic() + _FULL_SECONDS
        while self._events:
            try:
                await self._queue.put(self._events)
            except QueueFull:
                if time.monotonic() > until:
                    raise
                # A consumer makes room.
                await asyncio.sleep(_FULL_PAUSE_SECONDS)
            else:
                self._events, self._size = [], 0
