"""Tells those who asked for `?wait=stored` when their events can be queried."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Literal

import structlog

from logging_service.errors import LoggingServiceError
from logging_service.ports import EventKey, EventReader

_log = structlog.get_logger()

WAIT_SECONDS = 2.0
_ASK_SECONDS = 0.01
_MAX_KEYS = 100_000

Told = Callable[[Literal["stored", "not yet"]], None]


class _Waiter:
    __slots__ = ("deadline", "missing", "told")

    def __init__(self, missing: set[EventKey], deadline: float, told: Told) -> None:
        self.missing = missing
        self.deadline = deadline
        self.told = told


class StoredWatch:
    """Asks the store, for all who wait at once, which of their events it holds."""

    def __init__(self, reader: EventReader) -> None:
        self._reader = reader
        self._waiters: list[_Waiter] = []
        self._asker: asyncio.Task[None] | None = None

    def wait(self, keys: Sequence[EventKey], told: Told) -> None:
        """Tell `stored` once all of `keys` are, `not yet` after two seconds."""
        loop = asyncio.get_running_loop()
        if sum(len(waiter.missing) for waiter in self._waiters) + len(keys) > _MAX_KEYS:
            told("not yet")
            return
        self._waiters.append(_Waiter(set(keys), loop.time() + WAIT_SECONDS, told))
        if self._asker is None:
            self._asker = loop.create_task(self._ask())

    async def drain(self) -> None:
        """Return when nobody waits any more."""
        while self._asker is not None:
            await asyncio.wait({self._asker})

    async def _ask(self) -> None:
        try:
            while self._waiters:
                await asyncio.sleep(_ASK_SECONDS)
                self._settle(await self._stored())
        finally:
            self._asker = None

    async def _stored(self) -> set[EventKey]:
        wanted = {key for waiter in self._waiters for key in waiter.missing}
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                return await self._reader.stored(list(wanted))
        except (LoggingServiceError, TimeoutError) as error:
            _log.warning("stored_not_known", reason=str(error))
            await asyncio.sleep(10 * _ASK_SECONDS)
            return set()

    def _settle(self, stored: set[EventKey]) -> None:
        now = asyncio.get_running_loop().time()
        waiting: list[_Waiter] = []
        for waiter in self._waiters:
            waiter.missing -= stored
            if waiter.missing and now < waiter.deadline:
                waiting.append(waiter)
            else:
                waiter.told("not yet" if waiter.missing else "stored")
        self._waiters = waiting
