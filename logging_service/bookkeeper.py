"""Keeps the books up to date with the queue, and reads the balance of both."""

import asyncio
from contextlib import suppress

import structlog

from logging_service.balance import Balance, Glance, Reading, without_queue
from logging_service.errors import BackendUnavailable
from logging_service.ports import NO_EPOCH, Books, EventQueue, Tally

_log = structlog.get_logger()

_NOTE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
_QUEUE_SECONDS = 2.0
_TRIES, _PAUSE_SECONDS = 5, 0.05


class Bookkeeper:
    """Notes what a queue has accepted, about once a second and only when that has changed."""

    def __init__(self, queue: EventQueue, books: Books) -> None:
        self._queue = queue
        self._books = books
        self._noted: list[Tally] = []
        self._is_failing = False

    async def run(self) -> None:
        """Work until cancelled; whatever fails is logged once and tried again, ever more seldom."""
        pause = _NOTE_SECONDS
        while True:
            await asyncio.sleep(pause)
            is_noted = await self.note()
            pause = _NOTE_SECONDS if is_noted else min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def note(self) -> bool:
        """Note what has changed, and say whether that could be done."""
        try:
            async with asyncio.timeout(_QUEUE_SECONDS):
                tallies = await self._queue.tallies()
            if tallies != self._noted:
                await self._books.note(self._queue.tallies)
                self._noted = tallies
        except Exception as error:  # noqa: BLE001 - books that cannot be kept must not end a service
            if not self._is_failing:
                _log.warning("balance_not_noted", reason=str(error) or type(error).__name__)
            self._is_failing = True
            return False
        self._is_failing = False
        return True


async def read_balance(queue: EventQueue, books: Books) -> Balance:
    """Return the balance, read anew up to five times until nothing moves meanwhile.

    Raises BackendUnavailable or SchemaMismatch when the books cannot be read; without the queue
    they tell what they can.
    """
    # Whichever of the two is away says so again below.
    with suppress(BackendUnavailable):
        await books.note(queue.tallies)
    best: Reading | None = None
    for attempt in range(_TRIES):
        if attempt:
            await asyncio.sleep(_PAUSE_SECONDS)
        try:
            reading = await _read(queue, books)
        except _QueueAway:
            break
        if reading is not None and (best is None or reading.uncertain <= best.uncertain):
            best = reading
        if best is not None and not best.uncertain:
            break
    return without_queue(await books.accounts()) if best is None else best.balance()


class _QueueAway(Exception):
    """The queue does not answer."""


async def _read(queue: EventQueue, books: Books) -> Reading | None:
    before = await books.accounts()
    try:
        async with asyncio.timeout(_QUEUE_SECONDS):
            glance = Glance(await _present(queue), await queue.status(), await _present(queue))
    except (BackendUnavailable, TimeoutError) as error:
        raise _QueueAway from error
    after = await books.accounts()
    return Reading(before, glance, after) if glance.before.epoch == glance.after.epoch else None


async def _present(queue: EventQueue) -> Tally:
    tallies = await queue.tallies()
    return tallies[-1] if tallies else Tally(NO_EPOCH, 0)
