"""The audit in each process: what is read is added up, and notes are forwarded to the queue."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Final, NamedTuple

import structlog

from logging_service import wire
from logging_service.audit import (
    DEAD_LETTERS_READ,
    EVENTS_READ,
    EXPORTED,
    REVIEWS_READ,
    Actor,
    AuditOutbox,
    KeptNote,
    Note,
    element_of,
)
from logging_service.backends import open_audit_outbox
from logging_service.pausing import Fault
from logging_service.ports import EventQueue
from logging_service.settings import Settings

_log = structlog.get_logger()

_TURN_SECONDS = 60.0
_LAST_TURN_SECONDS = 0.2
_MOST_FORWARDED = 1_000
_MOST_READERS = 200
_OTHERS: Final = Actor("other", None)
# What is counted of each kind.
_COUNTED: Final = {
    EVENTS_READ: "events",
    DEAD_LETTERS_READ: "dead_letters",
    REVIEWS_READ: "reviews",
    EXPORTED: "rows",
}


class _Read(NamedTuple):
    """What somebody read of a project, None: of all of them."""

    event_type: str
    actor: Actor
    project: str | None


class _Sum:
    """How many requests there were, how much they got, and when the first and the last were."""

    __slots__ = ("first", "last", "number", "requests")

    def __init__(self, requests: int, number: int, first: datetime, last: datetime) -> None:
        self.requests = requests
        self.number = number
        self.first = first
        self.last = last

    def add(self, other: "_Sum") -> None:
        """Add another sum."""
        self.requests += other.requests
        self.number += other.number
        self.first, self.last = min(self.first, other.first), max(self.last, other.last)


class Reads:
    """What was read, added up by kind, reader and project; of 200 of these, the rest together."""

    def __init__(self, outbox: AuditOutbox) -> None:
        self._outbox = outbox
        self._sums: dict[_Read, _Sum] = {}

    def note(self, event_type: str, actor: Actor, project: str | None, number: int) -> None:
        """Count a request that got `number` of what this type of event counts."""
        now = datetime.now(UTC)
        self._add(_Read(event_type, actor, project), _Sum(1, number, now, now))

    def _add(self, read: _Read, one: _Sum) -> None:
        if read not in self._sums and len(self._sums) >= _MOST_READERS:
            read = _Read(read.event_type, _OTHERS, None)
        if read in self._sums:
            self._sums[read].add(one)
        else:
            self._sums[read] = one

    async def write(self) -> None:
        """Put what was added up into the outbox; where that fails, it is kept for the next time."""
        sums, self._sums = self._sums, {}
        if not sums:
            return
        try:
            await self._outbox.add([_note_of(read, one) for read, one in sums.items()])
        except BaseException:
            for read, one in sums.items():
                self._add(read, one)
            raise


def _note_of(read: _Read, one: _Sum) -> Note:
    payload = {
        "project": read.project,
        "requests": one.requests,
        _COUNTED[read.event_type]: one.number,
        "first": one.first,
        "last": one.last,
    }
    return Note(read.event_type, read.actor, payload)


async def forward(outbox: AuditOutbox, queue: EventQueue) -> int:
    """Put up to 1,000 of the oldest notes into the queue as events, and return how many.

    A crash in between forwards them again: as the same events, of which the store keeps one.
    """
    async with outbox.taking(_MOST_FORWARDED) as notes:
        elements = [element for note in notes if (element := _element_of(note))]
        if elements:
            await queue.put(elements)
    return len(notes)


def _element_of(note: KeptNote) -> bytes | None:
    """Return the queue's bytes for a note, None for one that no service has written so."""
    try:
        return element_of(note, wire.now_micros())
    except Exception:  # noqa: BLE001 - whatever somebody put there must not keep the rest waiting
        _log.exception("audit_note_dropped", event_id=str(note.event_id))
        return None


@asynccontextmanager
async def forwarding_audit(settings: Settings, queue: EventQueue) -> AsyncIterator[None]:
    """Forward what was noted as long as the context is open, once a minute."""
    async with open_audit_outbox(settings) as outbox:

        async def turn() -> None:
            await forward(outbox, queue)

        forwarding = asyncio.create_task(_every_minute(turn, Fault("audit_not_forwarded")))
        try:
            yield
        finally:
            # A database that fell silent keeps a cancelled statement waiting: leave it behind.
            forwarding.cancel()
            await asyncio.wait({forwarding}, timeout=_LAST_TURN_SECONDS)


@asynccontextmanager
async def noting_reads(settings: Settings) -> AsyncIterator[Reads]:
    """Yield what counts reads, and writes them down once a minute and at the end."""
    async with open_audit_outbox(settings) as outbox:
        reads = Reads(outbox)
        fault = Fault("reads_not_noted")
        writing = asyncio.create_task(_every_minute(reads.write, fault))

        async def end() -> None:
            writing.cancel()
            await asyncio.wait({writing})
            await _try(reads.write, fault)

        try:
            yield reads
        finally:
            ending = asyncio.create_task(end())
            await asyncio.wait({ending}, timeout=_LAST_TURN_SECONDS)
            ending.cancel()


async def _every_minute(turn: Callable[[], Awaitable[None]], fault: Fault) -> None:
    while True:
        await asyncio.sleep(_TURN_SECONDS)
        await _try(turn, fault)


async def _try(turn: Callable[[], Awaitable[None]], fault: Fault) -> None:
    try:
        with fault.told():
            await turn()
    except Exception:  # noqa: BLE001 - whatever it was: the next turn has another try
        _log.exception("audit_turn_failed")
