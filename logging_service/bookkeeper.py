"""Keeps the books up to date with the queue, and reads the balance of both."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Generic, TypeVar

import structlog

from logging_service.balance import Balance, Glance, Reading, without_queue
from logging_service.books import Books
from logging_service.errors import BackendUnavailable
from logging_service.ports import NO_EPOCH, EventQueue, Tally

_log = structlog.get_logger()
_Entry = TypeVar("_Entry")
_Read = Callable[[], Awaitable[list[_Entry]]]

_NOTE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
_READ_SECONDS = 2.0
# Below the second that a scrape waits for all of it.
_ANSWER_SECONDS = 0.7
_TRIES, _PAUSE_SECONDS = 5, 0.05


class Bookkeeper:
    """Notes what a queue has accepted, about once a second and only when that has changed.

    What spool files hold is noted by itself: it matters most while the queue is away.
    """

    def __init__(self, queue: EventQueue, books: Books) -> None:
        # What a spool has given away is to be found in the queue that is asked after it.
        self._columns = (
            _Column(queue.reserves, books.note_reserves),
            _Column(queue.tallies, books.note),
        )

    async def run(self) -> None:
        """Work until cancelled; whatever fails is logged once and tried again, ever more seldom."""
        await asyncio.gather(*(column.run() for column in self._columns))

    async def note(self) -> bool:
        """Note what has changed, and say whether that could be done."""
        return all([await column.note() for column in self._columns])


class _Column(Generic[_Entry]):
    """One kind of thing that is noted."""

    def __init__(
        self, read: _Read[_Entry], keep: Callable[[_Read[_Entry]], Awaitable[None]]
    ) -> None:
        self._read = read
        self._keep = keep
        self._noted: list[_Entry] = []
        self._is_failing = False

    async def run(self) -> None:
        pause = _NOTE_SECONDS
        while True:
            await asyncio.sleep(pause)
            is_noted = await self.note()
            pause = _NOTE_SECONDS if is_noted else min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def note(self) -> bool:
        try:
            async with asyncio.timeout(_READ_SECONDS):
                found = await self._read()
            if found != self._noted:
                # Read anew, since in the meantime another process may note a later state.
                await self._keep(self._read)
                self._noted = found
        except Exception as error:  # noqa: BLE001 - books that cannot be kept must not end a service
            if not self._is_failing:
                _log.warning("balance_not_noted", reason=str(error) or type(error).__name__)
            self._is_failing = True
            return False
        self._is_failing = False
        return True


async def read_balance(queue: EventQueue, books: Books) -> Balance:
    """Note what there is to note, and return the balance; raises as `balance_as_noted` does."""
    is_there = True
    try:
        await _answer(queue.tallies)
    except _QueueAway:
        is_there = False
    # Whichever of the two is away now says so again below.
    with suppress(BackendUnavailable):
        await books.note_reserves(queue.reserves)
        if is_there:
            await books.note(queue.tallies)
    if is_there:
        return await balance_as_noted(queue, books)
    return without_queue(await books.accounts())


async def balance_as_noted(queue: EventQueue, books: Books) -> Balance:
    """Return the balance, read anew up to five times until nothing moves meanwhile.

    Raises BackendUnavailable or SchemaMismatch when the books cannot be read; without the queue,
    or when it leaves a question unanswered for 0.7 seconds, they tell what they can.
    """
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
    glance = Glance(await _present(queue), await _answer(queue.status), await _present(queue))
    after = await books.accounts()
    return Reading(before, glance, after) if glance.before.epoch == glance.after.epoch else None


async def _present(queue: EventQueue) -> Tally:
    tallies = await _answer(queue.tallies)
    return tallies[-1] if tallies else Tally(NO_EPOCH, 0)


async def _answer(question: Callable[[], Awaitable[_Entry]]) -> _Entry:
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            return await question()
    except (BackendUnavailable, TimeoutError) as error:
        raise _QueueAway from error
