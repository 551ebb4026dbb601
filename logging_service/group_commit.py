"""One queue write for all the requests of a turn of the loop."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from logging_service.errors import BackendUnavailable
from logging_service.ports import Ack, EventQueue

Outcome = Ack | BackendUnavailable
Settled = Callable[[Outcome], None]
_MAX_WAITING_BYTES = 64 * 1024 * 1024
_MAX_WRITE_BYTES = 8 * 1024 * 1024


class _Waiting(NamedTuple):
    events: Sequence[bytes]
    size: int
    settled: Settled


class GroupCommit:
    """Puts events into the queue, those of many callers at once, in the order of the calls."""

    def __init__(self, queue: EventQueue) -> None:
        self._queue = queue
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._writer: asyncio.Task[None] | None = None

    def put(self, events: Sequence[bytes], settled: Settled) -> None:
        """Call `settled` once the queue holds all of `events`, or with why that is not known.

        Raises BackendUnavailable at once when 64 MiB wait already: the queue does not keep up.
        """
        size = sum(map(len, events))
        if self._waiting_bytes + size > _MAX_WAITING_BYTES:
            raise BackendUnavailable("the queue takes events more slowly than they come")
        self._waiting_bytes += size
        self._waiting.append(_Waiting(events, size, settled))
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def drain(self) -> None:
        """Return when nothing waits any more."""
        while self._writer is not None:
            await asyncio.wait({self._writer})

    async def _write(self) -> None:
        try:
            while self._waiting:
                await self._write_some()
        finally:
            self._writer = None

    async def _write_some(self) -> None:
        group: list[_Waiting] = []
        size = 0
        while self._waiting and (not group or size + self._waiting[0].size <= _MAX_WRITE_BYTES):
            group.append(self._waiting.popleft())
            size += group[-1].size
        self._waiting_bytes -= size
        outcome: Outcome
        try:
            outcome = await self._queue.put([event for one in group for event in one.events])
        except BackendUnavailable as error:
            outcome = error
        for one in group:
            one.settled(outcome)
