"""The queue where it is Redis: with a spool on this host's disk for when Redis is away."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec
import structlog

from logging_service import metrics
from logging_service.errors import BackendUnavailable, LoggingServiceError, QueueFull
from logging_service.fallback_spools import FallbackSpools
from logging_service.ports import Ack, Delivery, EventQueue, QueueStatus, Reserve, Tally

_log = structlog.get_logger()
_Answer = TypeVar("_Answer")

# A delivery of the spool has to go into Redis within REDIS_TIMEOUT_MS.
_DRAIN_EVENTS = 1_000
_IDLE_SECONDS = 0.5
_ADOPT_SECONDS = 15.0
# Below the second that /health waits for each answer.
_ANSWER_SECONDS = 0.7
_SAID_SECONDS = 10.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 2.0


class Drainable(EventQueue, Protocol):
    """A queue that a spool can be emptied into."""

    async def put_once(self, delivery: Delivery) -> Ack:
        """Hold a delivery's events, as `put` does; one that was put before is left alone."""


class FailoverQueue:
    """An EventQueue in Redis that puts into its spool what Redis does not take.

    Any error or silence of Redis opens the breaker: from then on events go to the spool at once,
    until Redis has taken a delivery of the spool. A full queue is no outage. Without a spool of
    its own it counts those of this host, and an outage is an outage.
    """

    def __init__(
        self,
        redis: Drainable,
        spools: FallbackSpools,
        spool: EventQueue | None = None,
        *,
        drain_per_second: int = 20_000,
    ) -> None:
        self._redis = redis
        self._spools = spools
        self._spool = spool
        self._drain_per_second = drain_per_second
        self._outage: BackendUnavailable | None = None
        self._spool_fails = False
        self._is_said = False
        self._said_at = -_SAID_SECONDS

    async def put(self, events: Sequence[bytes]) -> Ack:
        """Hold `events` durably, all or none, and say where.

        Raises QueueFull when Redis holds as many as it may, BackendUnavailable when neither Redis
        nor the spool can hold them.
        """
        if self._outage is None or self._spool is None:
            try:
                return await self._redis.put(events)
            except QueueFull:
                raise
            except BackendUnavailable as error:
                if self._spool is None:
                    raise
                self._open_breaker(error)
        outage = self._outage
        try:
            ack = await self._spool.put(events)
        except BackendUnavailable as error:
            raise BackendUnavailable(f"{outage}; {error}") from error
        metrics.EVENTS_SPOOLED.inc(len(events))
        return ack

    async def take(self, limit: int, wait_seconds: float) -> Delivery | None:
        """Lease events of Redis; what is spooled comes once it is drained."""
        return await self._redis.take(limit, wait_seconds)

    async def extend(self, delivery: Delivery) -> None:
        """Begin the lease's time anew."""
        await self._redis.extend(delivery)

    async def done(self, delivery: Delivery) -> None:
        """Forget the events of `delivery`."""
        await self._redis.done(delivery)

    async def give_back(self, delivery: Delivery, delay_seconds: float) -> None:
        """Offer the events again after `delay_seconds`."""
        await self._redis.give_back(delivery, delay_seconds)

    async def tallies(self) -> list[Tally]:
        """Return what Redis accepted; spooled events count there once they are drained."""
        return await self._asked(self._redis.tallies)

    async def reserves(self) -> list[Reserve]:
        """Return what its own spool accepted, and the files of this host that are at rest."""
        own = await self._spool.reserves() if self._spool else []
        return [*await self._spools.reserves(), *own]

    async def status(self) -> QueueStatus:
        """Count what waits in Redis and in this host's spools; a producer without Redis, these.

        Raises BackendUnavailable when Redis is away and there is no spool to put into.
        """
        others = await self._spools.count()
        own = await self._spool.status() if self._spool else None
        try:
            status = await self._asked(self._redis.status)
        except BackendUnavailable:
            if own is None:
                raise
            status = msgspec.structs.replace(own, size=0, in_flight=0)
        spooled = others.events + (own.size + own.in_flight if own else 0)
        return msgspec.structs.replace(
            status,
            spooled=spooled,
            damaged=others.damaged + (own.damaged if own else 0),
            held_since=None if spooled else status.held_since,
        )

    async def warnings(self) -> list[str]:
        """Say that events are spooled, and what can lose some, a sentence each.

        Raises BackendUnavailable when neither Redis nor the spool takes events.
        """
        try:
            found = await self._asked(self._redis.warnings)
        except BackendUnavailable as error:
            if self._spool is None:
                raise
            return [f"{error}: events are spooled on this host", *await self._spool.warnings()]
        return found if self._spool is None else [*found, *await _warnings_of(self._spool)]

    async def _asked(self, question: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """Return what Redis answers, where it is not known to be away and answers soon."""
        if self._outage and self._spool:
            raise self._outage
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await question()
        except TimeoutError:
            raise BackendUnavailable("redis: no answer in time") from None

    async def tend(self) -> None:
        """Empty the spool into Redis whenever it holds something; runs until cancelled."""
        pause = _FIRST_PAUSE_SECONDS
        while self._spool is not None:
            try:
                if not await self.drain_next(self._spool, _IDLE_SECONDS) and self._outage:
                    await self._probe()
            except BackendUnavailable:
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            else:
                pause = _FIRST_PAUSE_SECONDS

    async def adopt(self) -> None:
        """Empty the spools that nobody owns any more; runs until cancelled."""
        given_up: set[Path] = set()
        while True:
            for file in self._spools.others():
                try:
                    await self._empty(file)
                except LoggingServiceError as error:
                    if file not in given_up:
                        _log.warning("spool_not_adopted", file=file.name, reason=str(error))
                    given_up.add(file)
                else:
                    given_up.discard(file)
            await asyncio.sleep(_ADOPT_SECONDS)

    async def _empty(self, file: Path) -> None:
        async with AsyncExitStack() as stack:
            orphan = await self._spools.own(file, stack)
            moved = 0
            while orphan and (events := await self.drain_next(orphan)):
                moved += events
            if moved:
                _log.info("spool_adopted", file=file.name, events=moved)

    async def drain_next(self, spool: EventQueue, wait_seconds: float = 0) -> int:
        """Put the oldest events of `spool` into Redis and return how many; 0 when it has none.

        Raises BackendUnavailable when the spool cannot be read or Redis does not take them.
        """
        delivery = await self._take_of(spool, wait_seconds)
        if delivery is None:
            return 0
        try:
            await self._redis.put_once(delivery)
        except BackendUnavailable as error:
            self._open_breaker(error)
            await spool.give_back(delivery, 0)
            raise
        self._close_breaker()
        # A kill before this line repeats the delivery, which Redis then knows.
        await spool.done(delivery)
        await asyncio.sleep(len(delivery.events) / self._drain_per_second)
        return len(delivery.events)

    async def _take_of(self, spool: EventQueue, wait_seconds: float) -> Delivery | None:
        try:
            delivery = await spool.take(_DRAIN_EVENTS, wait_seconds)
        except BackendUnavailable as error:
            if not self._spool_fails:
                _log.warning("spool_unavailable", reason=str(error))
            self._spool_fails = True
            await self._probe()
            raise
        if self._spool_fails:
            _log.info("available_again", after="spool_unavailable")
        self._spool_fails = False
        return delivery

    async def _probe(self) -> None:
        """Ask Redis whether it is back, where no spooled delivery can tell."""
        try:
            await self._redis.warnings()
        except BackendUnavailable as error:
            self._open_breaker(error)
        else:
            self._close_breaker()

    def _open_breaker(self, error: BackendUnavailable) -> None:
        if isinstance(error, QueueFull):
            # It answers, and says itself what is to wait.
            self._close_breaker()
            return
        if self._outage is None:
            metrics.SPOOL_ACTIVE.set(1)
            now = time.monotonic()
            # A Redis at the edge of its time would fill the log with comings and goings.
            self._is_said = now >= self._said_at + _SAID_SECONDS
            if self._is_said:
                self._said_at = now
                _log.warning("redis_unavailable", reason=str(error), events_go_to="spool")
        self._outage = error

    def _close_breaker(self) -> None:
        if self._outage is not None:
            metrics.SPOOL_ACTIVE.set(0)
            if self._is_said:
                _log.info("available_again", after="redis_unavailable")
        self._outage = None


async def _warnings_of(spool: EventQueue) -> list[str]:
    try:
        return await spool.warnings()
    except BackendUnavailable as error:
        return [f"events would be refused if Redis were away: {error}"]


async def _keep(work: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await work()
        except Exception:  # noqa: BLE001 - a mistake here must not leave events in the spool
            _log.exception("spool_work_failed")
            await asyncio.sleep(_LONGEST_PAUSE_SECONDS)


@asynccontextmanager
async def open_failover_queue(
    redis: Drainable, spools: FallbackSpools, *, drain_per_second: int
) -> AsyncIterator[FailoverQueue]:
    """Yield a queue with a spool of its own, which it empties as long as the context is open."""
    async with AsyncExitStack() as stack:
        spool = await spools.claim(stack)
        queue = FailoverQueue(redis, spools, spool, drain_per_second=drain_per_second)
        tasks = [asyncio.create_task(_keep(work)) for work in (queue.tend, queue.adopt)]
        try:
            yield queue
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
