"""Tells those who asked for `?wait=stored` when their events can be queried."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Literal
from uuid import UUID

import structlog

from logging_service import wire
from logging_service.errors import LoggingServiceError
from logging_service.events import Encoded
from logging_service.ports import EventKey, EventReader

_log = structlog.get_logger()

WAIT_SECONDS = 2.0
_ASK_SECONDS = 0.01
_MAX_KEYS = 100_000

Told = Callable[[Literal["stored", "not yet"]], None]


class _Waiter:
    __slots__ = ("deadline", "missing", "told")

    def __init__(self, missing: dict[EventKey, str], deadline: float, told: Told) -> None:
        self.missing = missing
        self.deadline = deadline
        self.told = told


class StoredWatch:
    """Asks the store, for all who wait at once, which of their events it holds."""

    def __init__(self, reader: EventReader) -> None:
        self._reader = reader
        self._waiters: list[_Waiter] = []
        self._asker: asyncio.Task[None] | None = None
        self._is_failing = False

    def wait(self, events: Sequence[Encoded], told: Told) -> None:
        """Tell `stored` once all of `events` are, with their content, `not yet` after 2 s."""
        loop = asyncio.get_running_loop()
        if sum(len(waiter.missing) for waiter in self._waiters) + len(events) > _MAX_KEYS:
            told("not yet")
            return
        missing = {_key(event): wire.digest(event.element) for event in events}
        self._waiters.append(_Waiter(missing, loop.time() + WAIT_SECONDS, told))
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

    async def _stored(self) -> dict[EventKey, str]:
        wanted = {key for waiter in self._waiters for key in waiter.missing}
        until = min(waiter.deadline for waiter in self._waiters)
        try:
            async with asyncio.timeout_at(until):
                stored = await self._reader.stored(list(wanted))
        except (LoggingServiceError, TimeoutError) as error:
            if not self._is_failing:
                _log.warning("stored_not_known", reason=str(error) or "no answer in time")
            self._is_failing = True
            await asyncio.sleep(10 * _ASK_SECONDS)
            return {}
        self._is_failing = False
        return stored

    def _settle(self, stored: dict[EventKey, str]) -> None:
        now = asyncio.get_running_loop().time()
        over: list[_Waiter] = []
        for waiter in self._waiters:
            # Another event under the same id and time is not this one.
            for key in [
                key for key, content in waiter.missing.items() if stored.get(key) == content
            ]:
                del waiter.missing[key]
            if not waiter.missing or now >= waiter.deadline:
                over.append(waiter)
        self._waiters = [waiter for waiter in self._waiters if waiter not in over]
        for waiter in over:
            try:
                waiter.told("not yet" if waiter.missing else "stored")
            except Exception:  # noqa: BLE001 - one caller's fault must not keep the others waiting
                _log.exception("answer_failed")


def _key(event: Encoded) -> EventKey:
    return EventKey(wire.from_micros(event.timestamp), UUID(int=event.event_id))
