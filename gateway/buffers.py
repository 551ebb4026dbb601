"""The buffers of this process: its own file, those that dead ones left, and memory in need."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from datetime import date
from itertools import chain
from pathlib import Path
from typing import Final, TypeVar
from uuid import uuid4

import apsw
import structlog

from gateway.local_buffer import BufferFull, Dropped, Held, LocalBuffer, Origin, held
from gateway.stored_reviews import Place, StoredReview, Wanted
from logging_service.health import answer_within

_log = structlog.get_logger()
_Result = TypeVar("_Result")

# As many gateways as may share a DATA_DIR, dead ones included.
_SLOTS: Final = 64
MAX_BYTES: Final = 64 * 1024 * 1024
MAX_REVIEWS: Final = 10_000
_MEMORY_BYTES: Final = 8 * 1024 * 1024
_MEMORY_REVIEWS: Final = 1_000
# A disk that hangs holds up nobody longer.
_WRITE_SECONDS: Final = 1.0
_READ_SECONDS: Final = 1.0
_OPEN_SECONDS: Final = 5.0
_MOST_PENDING: Final = 1_000
_TELL_SECONDS: Final = 60.0

Interrupted = Callable[[StoredReview], StoredReview]


class Buffers:
    """Reviews that wait for the database; nothing here raises for weather.

    `instance` is this run of the process, `fault` why the file cannot be used; then what comes is
    kept in memory.
    """

    def __init__(
        self, folder: Path, interrupted: Interrupted, *, max_bytes: int, max_reviews: int
    ) -> None:
        self.instance = str(uuid4())
        self.fault: str | None = None
        self._folder = folder
        self._interrupted = interrupted
        self._max_bytes = max_bytes
        self._max_reviews = max_reviews
        self._thread = ThreadPoolExecutor(1, "review-buffer")
        self._pending = 0
        self._lost = 0
        self._memory = LocalBuffer(None, max_bytes=_MEMORY_BYTES, max_reviews=_MEMORY_REVIEWS)
        self._files: dict[Path, tuple[LocalBuffer, ExitStack]] = {}
        self._own: Path | None = None
        self._dropped = Dropped()
        self._tell_due = 0.0

    def __len__(self) -> int:
        return sum(len(buffer.ids) for buffer in self._all())

    def __contains__(self, review_id: str) -> bool:
        return any(review_id in buffer.ids for buffer in self._all())

    @property
    def dropped(self) -> Dropped:
        """What could not be kept since this process began."""
        lost = Dropped(self._lost, self._lost)
        return _sum([lost, self._dropped, *(buffer.dropped for buffer in self._all())])

    async def open(self) -> None:
        """Claim a file with what was left in it: what ran there is interrupted."""
        await self._do(_OPEN_SECONDS, self._claim)
        if self._own is None:
            self.fault = self.fault or f"{self._folder}: no file could be opened"
            _log.error("review_buffer_not_opened", reason=self.fault, consequence="in memory only")

    async def adopt(self) -> None:
        """Take over the files of processes that have ended."""
        await self._do(_OPEN_SECONDS, self._adopt)

    async def close(self) -> None:
        """Let go of all files."""
        await self._do(_WRITE_SECONDS, self._close)
        self._thread.shutdown(wait=False)

    async def put(self, review: StoredReview, origin: Origin) -> None:
        """Keep a review: in the file, in memory when that cannot be."""
        if self._pending >= _MOST_PENDING:
            self._lose("too many wait for the disk")
            return
        await self._do(_WRITE_SECONDS, lambda: self._put(review, origin))

    async def find(self, review_id: str) -> StoredReview | None:
        """Return a review that waits here."""
        if review_id not in self:
            return None
        return await self._first(lambda buffer: buffer.find(review_id))

    async def same_key(self, project: str, digest: bytes | None) -> StoredReview | None:
        """Return the review of a project with an idempotency key of this digest."""
        if digest is None or not len(self):
            return None
        return await self._first(lambda buffer: buffer.same_key(project, digest))

    async def cached(self, content_key: str, project: str) -> StoredReview | None:
        """Return a review of this content that completed."""
        if not len(self):
            return None
        return await self._first(lambda buffer: buffer.cached(content_key, project))

    async def page(
        self, wanted: Wanted, after: Place | None, most: int
    ) -> tuple[list[StoredReview], set[str]]:
        """Return reviews, from each file the newest `most`, and the ids of all that wait here."""
        found = await self._each(
            lambda buffer: [(buffer.page(wanted, after, most), set(buffer.ids))]
        )
        reviews: dict[str, StoredReview] = {}
        ids: set[str] = set()
        for some, theirs in found:
            reviews |= {one.review_id: one for one in some if one.review_id not in ids}
            ids |= theirs
        return list(reviews.values()), ids

    async def ended(self, most: int) -> list[Held]:
        """Return reviews that have ended, of each file the oldest first."""
        return await self._each(lambda buffer: buffer.ended(most))

    async def unsent(self, most: int) -> list[Held]:
        """Return reviews whose event can be posted from here."""
        return await self._each(lambda buffer: buffer.unsent(most))

    async def forget(self, one: Held) -> None:
        """Remove a review that has ended, unless it has changed since."""

        def work(buffer: LocalBuffer) -> list[None]:
            # In a file that could not be written to it may still run.
            there = (
                buffer.find(one.review.review_id) if one.review.review_id in buffer.ids else None
            )
            if there and (there.version == one.version or there.review.status == "running"):
                buffer.forget(one.review.review_id, there.version)
            return []

        await self._each(work)

    async def settle(self, one: Held, review: StoredReview) -> None:
        """Put `review` in the place of one that was found, unless that has changed since."""

        def work(buffer: LocalBuffer) -> list[None]:
            if review.review_id in buffer.ids:
                buffer.settle(one, review)
            return []

        await self._each(work)

    async def spent_nanos(self, day: date) -> int:
        """Return what the reviews here cost that began on a UTC day."""
        return sum(await self._each(lambda buffer: [buffer.spent_nanos(day)]))

    async def over_instances(self) -> list[str]:
        """Return instances that are over and perhaps left reviews in the database."""
        return await self._each(lambda buffer: buffer.over_instances())

    async def forget_instances(self, instances: list[str]) -> None:
        """Forget instances of which nothing runs any more, and files that are done with."""

        def work(buffer: LocalBuffer) -> list[None]:
            buffer.forget_instances(instances)
            return []

        await self._each(work)
        await self._do(_WRITE_SECONDS, self._remove_empty)

    def _all(self) -> Iterator[LocalBuffer]:
        return chain([self._memory], (buffer for buffer, _ in list(self._files.values())))

    async def _do(self, seconds: float, work: Callable[[], _Result]) -> _Result | None:
        """Return what `work` returns in the thread; None where it fails or takes too long."""
        loop = asyncio.get_running_loop()
        self._pending += 1
        doing = loop.run_in_executor(self._thread, work)
        doing.add_done_callback(self._done)
        try:
            # What has begun goes on: it is only not waited for.
            return await answer_within(seconds, lambda: _shielded(doing))
        except (apsw.Error, OSError, TimeoutError) as error:
            self._tell(error)
            return None

    def _done(self, doing: "asyncio.Future[_Result]") -> None:
        self._pending -= 1
        if not doing.cancelled():
            doing.exception()

    async def _first(self, ask: Callable[[LocalBuffer], Held | None]) -> StoredReview | None:
        found = await self._each(lambda buffer: [one] if (one := ask(buffer)) else [])
        return found[0].review if found else None

    async def _each(self, ask: Callable[[LocalBuffer], list[_Result]]) -> list[_Result]:
        def work() -> list[_Result]:
            found: list[_Result] = []
            for buffer in self._all():
                try:
                    found += ask(buffer)
                except (apsw.Error, OSError) as error:
                    self._tell(error)
            return found

        return await self._do(_READ_SECONDS, work) or []

    def _put(self, review: StoredReview, origin: Origin) -> None:
        before = self.dropped
        places = [buffer for buffer in self._all() if review.review_id in buffer.ids]
        own = [self._files[self._own][0]] if self._own else []
        for buffer in dict.fromkeys((*places, *own, self._memory)):
            try:
                buffer.put(review, origin)
            except (apsw.Error, OSError, BufferFull) as error:
                self._tell(error)
                continue
            if buffer is not self._memory:
                self.fault = None
            self._tell_dropped(before)
            return
        self._lose("no buffer takes it")

    def _claim(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file in self._slots():
            if self._take(file, self.instance):
                self._own, self.fault = file, None
                return

    def _adopt(self) -> None:
        if self._own is None:
            self._claim()
        for file in self._slots():
            if file not in self._files and file.exists():
                self._take(file, None)

    def _slots(self) -> Iterator[Path]:
        return (self._folder / f"reviews-{slot}.sqlite" for slot in range(_SLOTS))

    def _take(self, file: Path, instance: str | None) -> bool:
        with ExitStack() as taken:
            if not taken.enter_context(held(file)):
                return False
            limits = {"max_bytes": self._max_bytes, "max_reviews": self._max_reviews}
            buffer = LocalBuffer(file, **limits)
            taken.callback(buffer.close)
            buffer.begin_instance(instance)
            for one in buffer.running():
                buffer.put(self._interrupted(one.review), one.origin)
            self._files[file] = buffer, taken.pop_all()
        if buffer.ids:
            _log.info("review_buffer_taken_over", file=file.name, reviews=len(buffer.ids))
        return True

    def _remove_empty(self) -> None:
        for file, (buffer, taken) in list(self._files.items()):
            if file == self._own or buffer.ids or buffer.over_instances():
                continue
            self._dropped = _sum([self._dropped, self._files.pop(file)[0].dropped])
            # Whoever comes next finds no file before the lock is let go.
            with taken:
                for ending in ("", "-wal", "-shm"):
                    file.with_name(file.name + ending).unlink(missing_ok=True)

    def _close(self) -> None:
        for _, taken in self._files.values():
            taken.close()
        self._files.clear()

    def _lose(self, reason: str) -> None:
        self._lost += 1
        _log.error("review_not_buffered", reason=reason, lost=self._lost)

    def _tell_dropped(self, before: Dropped) -> None:
        dropped = self.dropped
        if dropped != before and time.monotonic() >= self._tell_due:
            self._tell_due = time.monotonic() + _TELL_SECONDS
            _log.warning("review_buffer_full", **dropped._asdict())

    def _tell(self, error: Exception) -> None:
        reason = str(error) or type(error).__name__
        if reason != self.fault:
            _log.warning("review_buffer_fault", reason=reason)
        self.fault = reason


def _sum(every: Iterable[Dropped]) -> Dropped:
    results, events = (sum(part) for part in zip(*every, strict=True))
    return Dropped(results, events)


async def _shielded(doing: "asyncio.Future[_Result]") -> _Result:
    return await asyncio.shield(doing)


@asynccontextmanager
async def open_buffers(
    folder: Path,
    interrupted: Interrupted,
    *,
    max_bytes: int = MAX_BYTES,
    max_reviews: int = MAX_REVIEWS,
) -> AsyncIterator[Buffers]:
    """Yield the buffers in `folder`; where that cannot be used, what is buffered lies in memory."""
    buffers = Buffers(folder, interrupted, max_bytes=max_bytes, max_reviews=max_reviews)
    await buffers.open()
    try:
        yield buffers
    finally:
        await buffers.close()
