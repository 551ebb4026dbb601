"""What is done for stored reviews beside requests: moved, interrupted, posted, deleted."""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Final

import asyncpg
import msgspec
import structlog

from gateway.buffers import Buffers
from gateway.local_buffer import Held
from gateway.reach import Reach
from gateway.stored_reviews import StoredReview, now
from logging_service.errors import BackendUnavailable, LoggingServiceError
from logging_service.postgres import said

_log = structlog.get_logger()

_STATEMENT_SECONDS: Final = 6.0
_MOVED_AT_ONCE: Final = 20
_INTERRUPTED_AT_ONCE: Final = 50
_DELETED_AT_ONCE: Final = 500
_MOST_STEPS: Final = 200
_AWAY_SECONDS: Final = 1.0
_IDLE_SECONDS: Final = 30.0
_SWEEP_SECONDS: Final = 60.0
_RETENTION_SECONDS: Final = 3600.0


class Upkeep:
    """Moves what is buffered into the database, and ends what nobody else will end.

    `interrupted` makes the record of a review that was cut off, `posts` is told of new events.
    Who sets `wake` has it look at once.
    """

    def __init__(
        self,
        reach: Reach,
        buffers: Buffers,
        interrupted: Callable[[StoredReview], StoredReview],
        posts: Callable[[], None],
        wake: asyncio.Event,
        ttl: timedelta | None,
    ) -> None:
        self._reach = reach
        self._buffers = buffers
        self._interrupted = interrupted
        self._posts = posts
        self._ttl = ttl
        self._wake = wake
        self._is_stopping = False
        self._swept_at = self._deleted_at = float("-inf")

    def stop(self) -> None:
        """Let `run` return after moving what there is once more."""
        self._is_stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Do what is due, until `stop`."""
        while True:
            was_stopping = self._is_stopping
            self._wake.clear()
            try:
                await self._turn(is_last=was_stopping)
            except BackendUnavailable:
                pass
            except Exception:  # noqa: BLE001 - whatever it was: what waits must go on being moved
                _log.exception("review_upkeep_failed")
            if was_stopping:
                return
            is_due = self._reach.fault is not None or len(self._buffers) > 0
            with suppress(TimeoutError):
                # So that gateways that lost one database do not come back to it as one.
                pause = (_AWAY_SECONDS if is_due else _IDLE_SECONDS) * random.uniform(0.5, 1)  # noqa: S311
                async with asyncio.timeout(pause):
                    await self._wake.wait()

    async def _turn(self, *, is_last: bool) -> None:
        if self._reach.fault is not None and not await self._reach.probe():
            self._posts()
            return
        await self._move()
        if is_last:
            return
        time = asyncio.get_running_loop().time()
        if time >= self._swept_at + _SWEEP_SECONDS:
            await self._sweep()
            self._swept_at = time
        if self._ttl and time >= self._deleted_at + _RETENTION_SECONDS:
            await self._delete_old(self._ttl)
            self._deleted_at = time

    async def _move(self) -> None:
        before = len(self._buffers) + 1
        # A file that cannot be written to gives the same ones again and again.
        while len(self._buffers) < before and (ended := await self._buffers.ended(_MOVED_AT_ONCE)):
            before = len(self._buffers)
            for one in ended:
                await self._move_one(one)
            self._posts()

    async def _move_one(self, one: Held) -> None:
        review = one.review
        try:
            if one.origin == "database":
                # It was there: if it is not any more, somebody erased it.
                await self._reach.ask(_STATEMENT_SECONDS, lambda store: store.finish(review))
            else:
                await self._reach.ask(_STATEMENT_SECONDS, lambda store: store.put(review))
        except asyncpg.PostgresError as error:
            _log.error("review_not_stored", review=review.review_id, reason=said(error))
        await self._buffers.forget(one)

    async def _sweep(self) -> None:
        """End reviews that were left running, by processes that are over or long ago."""
        await self._buffers.adopt()
        over = await self._buffers.over_instances()
        for _ in range(_MOST_STEPS):
            number = await self._reach.ask(
                _STATEMENT_SECONDS,
                lambda store: store.interrupt(over, self._interrupted, _INTERRUPTED_AT_ONCE),
            )
            if number:
                _log.warning("reviews_interrupted", reviews=number)
                self._posts()
            if number < _INTERRUPTED_AT_ONCE:
                await self._buffers.forget_instances(over)
                return

    async def _delete_old(self, ttl: timedelta) -> None:
        deleted = 0
        for _ in range(_MOST_STEPS):
            number = await self._reach.ask(
                _STATEMENT_SECONDS, lambda store: store.delete_old(ttl, _DELETED_AT_ONCE)
            )
            deleted += number
            if not number:
                break
        if deleted:
            _log.info("old_reviews_deleted", reviews=deleted)


class Outbox:
    """The events of reviews: those in the database or, while it is away, those in the buffers."""

    def __init__(self, reach: Reach, buffers: Buffers) -> None:
        self._reach = reach
        self._buffers = buffers
        self._leased: dict[str, Held] = {}

    async def lease_events(self, most: int) -> Mapping[str, bytes]:
        """Return events that are to be posted, by review."""
        if self._reach.fault is None:
            return await self._reach.ask(_STATEMENT_SECONDS, lambda store: store.lease_events(most))
        unsent = await self._buffers.unsent(most)
        self._leased = {one.review.review_id: one for one in unsent}
        return {name: one.review.event_json or b"" for name, one in self._leased.items()}

    async def release_events(self, review_ids: Sequence[str]) -> None:
        """Let events be leased again at once."""
        theirs = [review_id for review_id in review_ids if review_id not in self._leased]
        if theirs:
            with suppress(LoggingServiceError):
                await self._reach.ask(
                    _STATEMENT_SECONDS, lambda store: store.release_events(theirs)
                )

    async def settle_events(self, reasons: Mapping[str, str | None]) -> None:
        """Note which events were taken, and which were refused for which reason."""
        theirs = {name: reason for name, reason in reasons.items() if name not in self._leased}
        for name in reasons.keys() - theirs.keys():
            await self._settle(self._leased.pop(name), reasons[name], now())
        if theirs:
            await self._reach.ask(_STATEMENT_SECONDS, lambda store: store.settle_events(theirs))

    async def _settle(self, one: Held, reason: str | None, at: datetime) -> None:
        told = {"event_refused": reason} if reason else {"event_sent_at": at}
        await self._buffers.settle(one, msgspec.structs.replace(one.review, **told))
