"""One queue write for all the requests of a turn of the loop."""

import asyncio
import struct
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

import structlog

from logging_service import wire
from logging_service.errors import BackendUnavailable
from logging_service.ports import Ack, EventQueue

_log = structlog.get_logger()

Outcome = Ack | BackendUnavailable
Settled = Callable[[Outcome], None]
_MAX_WAITING_BYTES = 64 * 1024 * 1024
_MAX_WRITE_BYTES = 8 * 1024 * 1024
# While the server waits for its disk with one write, it can take in the next.
_MAX_WRITES = 4
_MOST_NAMED = 5


def _some_ids(events: Sequence[bytes]) -> list[str]:
    found: list[str] = []
    with suppress(ValueError, struct.error):
        found += (str(wire.decode(event).event_id) for event in events[:_MOST_NAMED])
    return found


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
        self._writes: set[asyncio.Task[None]] = set()
        self._is_due = False
        self._is_failing = False

    def put(self, events: Sequence[bytes], settled: Settled) -> None:
        """Call `settled` once the queue holds all of `events`, or with why that is not known.

        Raises BackendUnavailable at once when 64 MiB wait already: the queue does not keep up.
        """
        size = sum(map(len, events))
        if self._waiting_bytes + size > _MAX_WAITING_BYTES:
            raise BackendUnavailable("the queue takes events more slowly than they come")
        self._waiting_bytes += size
        self._waiting.append(_Waiting(events, size, settled))
        if not self._is_due and len(self._writes) < _MAX_WRITES:
            # At the end of this turn of the loop, with what comes until then.
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._begin)

    async def drain(self) -> None:
        """Return when nothing waits any more."""
        while self._waiting or self._writes:
            await asyncio.wait(self._writes) if self._writes else await asyncio.sleep(0)

    def _begin(self) -> None:
        self._is_due = False
        if self._waiting:
            task = asyncio.get_running_loop().create_task(self._write(self._group()))
            self._writes.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._writes.discard(task)
        self._begin()

    def _group(self) -> list[_Waiting]:
        group: list[_Waiting] = []
        size = 0
        while self._waiting and (not group or size + self._waiting[0].size <= _MAX_WRITE_BYTES):
            group.append(self._waiting.popleft())
            size += group[-1].size
        return group

    async def _write(self, group: list[_Waiting]) -> None:
        outcome: Outcome
        try:
            outcome = await self._queue.put([event for one in group for event in one.events])
        except BackendUnavailable as error:
            outcome = error
        except Exception as error:  # noqa: BLE001 - the callers have to be told all the same
            events = [event for one in group for event in one.events]
            _log.exception("queue_write_failed", events=len(events), event_ids=_some_ids(events))
            outcome = BackendUnavailable(f"the queue: {type(error).__name__}")
        self._waiting_bytes -= sum(one.size for one in group)
        self._say(outcome)
        for one in group:
            try:
                one.settled(outcome)
            except Exception:  # noqa: BLE001 - one caller's fault must not keep the others waiting
                _log.exception("answer_failed")

    def _say(self, outcome: Outcome) -> None:
        failed = isinstance(outcome, BackendUnavailable)
        if failed and not self._is_failing:
            _log.warning("queue_unavailable", reason=str(outcome))
        elif self._is_failing and not failed:
            _log.info("available_again", after="queue_unavailable")
        self._is_failing = failed
