"""What a review keeps, where and in which order, and what happens when the database is away.

A review is stored as `running` before the work begins, and once more when it has ended, together
with the `review_completed` that tells of it: whoever reads the one finds the other, and the event
is posted until the logging service took it. While the database is away both lie in a local buffer,
and are moved when it is back. Nothing that is kept holds personal data or secrets in clear.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Final

import asyncpg
import structlog

from gateway.buffers import Buffers, open_buffers
from gateway.completions import Completions, Poster
from gateway.local_buffer import Origin
from gateway.reach import NotAsked, Reach
from gateway.review_records import Records
from gateway.review_store import open_review_store
from gateway.review_upkeep import Outbox, Upkeep
from gateway.settings import GatewaySettings
from gateway.stored_reviews import (
    Begun,
    Place,
    ReviewEnd,
    ReviewPage,
    ReviewStart,
    StoredReview,
    Wanted,
    canonical,
    now,
)
from logging_service.backends import redaction_rules_of
from logging_service.errors import BackendUnavailable
from logging_service.pepper import kept_pii_key

_log = structlog.get_logger()

# What a review waits for the database at most, each time, before it goes on without.
_QUICK_SECONDS: Final = 0.25
_READ_SECONDS: Final = 3.0
_MOVE_SECONDS: Final = 0.7
_POST_SECONDS: Final = 0.7
_LET_GO_SECONDS: Final = 0.2
_LONG_AGO: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Storage:
    """Keeps reviews; what has begun has to be finished by this process."""

    def __init__(
        self,
        reach: Reach,
        buffers: Buffers,
        records: Records,
        completions: Completions,
        wake: asyncio.Event,
        ttl: timedelta | None,
    ) -> None:
        self._reach = reach
        self._buffers = buffers
        self._records = records
        self._wake = wake
        self._completions = completions
        self._ttl = ttl
        self._running: dict[str, tuple[StoredReview, Origin, str]] = {}

    async def begin(self, started: ReviewStart) -> Begun:
        """Store a review as running, unless one came before with its idempotency key.

        Database away: it is buffered, after a quarter of a second at most. Never raises for that.
        """
        review = self._records.started(started, self._buffers.instance)
        earlier = await self._buffers.same_key(review.project, review.idempotency_digest)
        origin: Origin = "database"
        if earlier is None:
            try:
                earlier = await self._reach.ask(_QUICK_SECONDS, lambda store: store.begin(review))
            except NotAsked:
                origin = "here"
            except (BackendUnavailable, asyncpg.PostgresError):
                origin = "doubt"
        if earlier is not None:
            is_same = earlier.request_sha256 == review.request_sha256
            return Begun("same" if is_same else "different", earlier)
        if origin != "database":
            await self._buffers.put(review, origin)
        self._running[review.review_id] = review, origin, started.submission.code
        return Begun("new")

    async def finish(self, review_id: str, finished: ReviewEnd) -> None:
        """Store how a review that began ended, and have its `review_completed` sent.

        One that was interrupted or erased meanwhile stays so. Never raises for weather.
        """
        begun = self._running.pop(review_id, None)
        if begun is None:
            _log.error("review_finished_twice", review=review_id)
            return
        review, origin, code = begun
        ended = self._records.ended(review, code, finished, now())
        if origin == "database":
            try:
                if not await self._reach.ask(_QUICK_SECONDS, lambda store: store.finish(ended)):
                    _log.warning("review_ended_before", review=review_id)
            except (BackendUnavailable, asyncpg.PostgresError):
                pass
            else:
                self._completions.wake()
                return
        await self._buffers.put(ended, origin)
        self._wake.set()

    async def find(self, review_id: str, project: str | None) -> StoredReview | None:
        """Return a review of a project, or of any with None; None when there is none.

        Raises BackendUnavailable when the database is away and it does not wait for it here.
        """
        wanted = canonical(review_id)
        if wanted is None:
            return None
        here = await self._buffers.find(wanted)
        if here is not None:
            return here if project in {None, here.project} else None
        return await self._reach.read(_READ_SECONDS, lambda store: store.find(wanted, project))

    async def cached(self, content_key: str, project: str) -> StoredReview | None:
        """Return a completed review of the same content and project; None when it is not known."""
        here = await self._buffers.cached(content_key, project)
        if here is not None:
            return here
        since = now() - self._ttl if self._ttl else _LONG_AGO
        try:
            return await self._reach.ask(
                _QUICK_SECONDS, lambda store: store.cached(content_key, project, since)
            )
        except (BackendUnavailable, asyncpg.PostgresError):
            return None

    async def page(self, wanted: Wanted, *, limit: int, after: Place | None = None) -> ReviewPage:
        """Return reviews, newest first, of those that began before `after`."""
        asked = wanted._replace(
            session_id=wanted.session_id and self._records.session(wanted.session_id),
            # An id of which nothing is stored is nobody's.
            user_id=wanted.user_id and (self._records.user(wanted.user_id) or ""),
        )
        here, waiting = await self._buffers.page(asked, after, limit + 1)
        stored: list[StoredReview] = []
        is_partial = False
        try:
            stored = await self._reach.read(
                _READ_SECONDS, lambda store: store.page(asked, after, limit + 1)
            )
        except BackendUnavailable:
            if not here:
                raise
            is_partial = True
        goes_on = len(stored) > limit
        end = _place(stored[-1]) if goes_on else None
        # What waits here is newer than what is stored of it.
        every = [*here, *(review for review in stored if review.review_id not in waiting)]
        return _page(every, end, limit, is_partial=is_partial)

    async def spent_nanos(self, day: date) -> int:
        """Return what the reviews that began on a UTC day cost, as far as it is known.

        Raises BackendUnavailable when the database cannot be asked.
        """
        stored = await self._reach.read(_READ_SECONDS, lambda store: store.spent_nanos(day))
        return stored + await self._buffers.spent_nanos(day)

    @property
    def buffered(self) -> int:
        """Reviews that wait for the database."""
        return len(self._buffers)

    @property
    def dropped(self) -> int:
        """Results that could not be kept since the start."""
        return self._buffers.dropped.results

    async def check(self) -> str | None:
        """Return what is not as it should be; raises BackendUnavailable: the database is away."""
        if not await self._reach.probe():
            raise BackendUnavailable(self._reach.fault)
        return self._buffers.fault

    async def warnings(self) -> list[str]:
        """Say what was lost and what waits, a sentence each."""
        found = [f"{self.buffered} reviews are buffered"] if self.buffered else []
        dropped = self._buffers.dropped
        if dropped.results:
            found.append(f"{dropped.results} results of reviews were dropped from a full buffer")
        if dropped.events:
            found.append(f"{dropped.events} review_completed events were dropped with them")
        if self._completions.fault:
            found.append(f"review_completed events wait: {self._completions.fault}")
        return found


def _page(
    every: list[StoredReview], end: Place | None, limit: int, *, is_partial: bool
) -> ReviewPage:
    """Return the first `limit` of reviews; what is older than `end` comes on a later page."""
    every.sort(key=_place, reverse=True)
    shown = [review for review in every if end is None or _place(review) >= end]
    after = _place(shown[limit - 1]) if len(shown) > limit else end
    return ReviewPage([review.outline for review in shown[:limit]], after, is_partial)


def _place(review: StoredReview) -> Place:
    return review.created_at, review.review_id


@asynccontextmanager
async def open_storage(settings: GatewaySettings) -> AsyncIterator[Storage]:
    """Yield the storage of reviews; it needs neither the database nor the logging service to start.

    What it leaves unsent or unmoved after two seconds is done at the next start.
    """
    key = kept_pii_key(settings)
    records = Records(
        redaction_rules_of(settings),
        key,
        stores_code=settings.store_code,
        tells=settings.logging_enabled,
    )

    def interrupted(review: StoredReview) -> StoredReview:
        return records.interrupted(review, now())

    api_key = settings.api_key.get_secret_value() if settings.api_key else None
    async with (
        open_review_store(settings.store_url) as store,
        open_buffers(settings.data_path / "gateway", interrupted) as buffers,
    ):
        wake = asyncio.Event()
        reach = Reach(store, wake)
        poster = Poster(settings.logging_service_url, api_key)
        completions = Completions(Outbox(reach, buffers), poster)
        upkeep = Upkeep(reach, buffers, interrupted, completions.wake, wake, settings.review_ttl)
        moving = asyncio.create_task(upkeep.run())
        posting = asyncio.create_task(completions.run())
        try:
            yield Storage(reach, buffers, records, completions, wake, settings.review_ttl)
        finally:
            upkeep.stop()
            await asyncio.wait({moving}, timeout=_MOVE_SECONDS)
            completions.stop()
            await asyncio.wait({posting}, timeout=_POST_SECONDS)
            moving.cancel()
            posting.cancel()
            await asyncio.wait({moving, posting}, timeout=_LET_GO_SECONDS)
            poster.close()
