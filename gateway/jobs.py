"""Runs reviews: so many at once, each a task of its own that no client cuts off by leaving."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from hashlib import sha256
from typing import NamedTuple, Protocol, Self
from weakref import WeakValueDictionary

import msgspec
import structlog

from code_reviewer.findings import Review, Submission
from code_reviewer.review import Reviewed, Reviewer, ReviewIds, Stage
from gateway.journal import Journal
from gateway.measures import count_review
from gateway.progress import Progress
from gateway.stored_reviews import (
    INTERRUPTED,
    RUNNING,
    Begun,
    ReviewEnd,
    ReviewStart,
    Status,
    StoredReview,
    event_id_of,
    now,
)
from logging_service.errors import FieldRejected, ReviewRuns, Stopping, TooManyReviews

QUIET_SECONDS = 10.0
RETRY_AFTER_SECONDS = 5
_LAST_WRITES_SECONDS = 2.0

_log = structlog.get_logger()


class KeptReviews(Protocol):
    """Where reviews are kept; none of it fails because a database is away."""

    async def begin(self, started: ReviewStart) -> Begun:
        """Keep that a review begins, unless one came before with this idempotency key."""

    async def cached(self, content_key: str, project: str) -> StoredReview | None:
        """Return a completed review of the same content."""

    async def finish(self, review_id: str, finished: ReviewEnd) -> None:
        """Keep the result, and its `review_completed` to be sent."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """A review as it is asked for, checked; `project` is that of the key that asks."""

    submission: Submission
    project: str
    session_id: str
    request_id: str | None = None
    idempotency_key: str | None = None


class JobLimits(NamedTuple):
    """How many reviews run at once, how many wait for that, how long one may take with waiting.

    One project gets three quarters of the places at the most, so that others find some. A review of
    ten minutes is taken for one that a crash cut off.
    """

    at_once: int
    waiting: int
    seconds: float = 540.0

    @property
    def room(self) -> int:
        """How many there may be in all."""
        return self.at_once + self.waiting


def _share(places: int) -> int:
    return -(-places * 3 // 4)


class Job:
    """One review under way, or the earlier one that was asked for again."""

    def __init__(self, order: Order, gate: asyncio.Semaphore) -> None:
        self.order = order
        self.gate = gate
        self.ids = ReviewIds(str(event_id_of(now())), order.session_id)
        self.request_sha256 = sha256(msgspec.json.encode(order.submission)).hexdigest()
        self.progress = Progress()
        # Whether the result is being kept, which the end of the process must not cut off.
        self.is_ending = False
        user_id = order.submission.user_id
        self.journal = Journal(self.ids.review_id, order.session_id, order.request_id, user_id)
        loop = asyncio.get_running_loop()
        self.accepted: asyncio.Future[None] = loop.create_future()
        self._answer: asyncio.Future[Review] = loop.create_future()
        for future in (self.accepted, self._answer):
            future.add_done_callback(_look_at)

    async def result(self) -> Review:
        """Return the review when it has ended; who stops waiting does not stop it."""
        return await asyncio.shield(self._answer)

    def follow(self) -> AsyncIterator[Stage | None]:
        """Yield each stage as it comes, None after ten seconds without one; then ask `result`."""
        return self.progress.follow(QUIET_SECONDS)

    def answer(self, review: Review) -> None:
        """Give the review to all who wait."""
        self._answer.set_result(review)
        self.progress.end()

    def refuse(self, error: BaseException) -> None:
        """Raise the error for all who wait, unless there is a review."""
        for future in (self.accepted, self._answer):
            if not future.done():
                future.set_exception(error)
        self.progress.end()


def _look_at(future: asyncio.Future[None] | asyncio.Future[Review]) -> None:
    # Where the client has left, nobody else asks for the exception, and asyncio would complain.
    if not future.cancelled():
        future.exception()


class Jobs:
    """The reviews of this process; as a context it begins none any more at its end.

    `grace` is asked then how many seconds those under way still get.
    """

    def __init__(
        self, reviewer: Reviewer, kept: KeptReviews, limits: JobLimits, grace: Callable[[], float]
    ) -> None:
        self._reviewer = reviewer
        self._kept = kept
        self._limits = limits
        self._grace = grace
        self._places = asyncio.Semaphore(limits.at_once)
        self._gates = WeakValueDictionary[str, asyncio.Semaphore]()
        self._tasks: dict[asyncio.Task[None], Job] = {}
        self._by_key: dict[tuple[str, str], Job] = {}
        self._is_stopping = False
        self.running = 0

    @property
    def waiting(self) -> int:
        """How many reviews wait for others to end."""
        return len(self._tasks) - self.running

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Begin no more reviews, and end those under way when their grace is over."""
        self._is_stopping = True
        late = await _unfinished(self._tasks, self._grace())
        for task in late:
            if not self._tasks[task].is_ending:
                task.cancel()
        if lost := await _unfinished(late, _LAST_WRITES_SECONDS):
            _log.warning("reviews_cut_off", reviews=len(lost))

    async def submit(self, order: Order) -> Job:
        """Return the job of a review once it is kept that it was asked for.

        The same idempotency key and submission give the same job, or the review that it was. Raises
        TooManyReviews, Stopping, FieldRejected when that key came with another submission, and
        ReviewRuns when its review runs in another process.
        """
        if self._is_stopping:
            raise Stopping
        job = self._job_of_key(order) or self._start(order)
        await asyncio.shield(job.accepted)
        return job

    def _job_of_key(self, order: Order) -> Job | None:
        if order.idempotency_key is None:
            return None
        job = self._by_key.get((order.project, order.idempotency_key))
        if job is not None and job.order.submission != order.submission:
            raise _another_body()
        return job

    def _start(self, order: Order) -> Job:
        self._find_room(order.project)
        gate = self._gates.get(order.project) or asyncio.Semaphore(_share(self._limits.at_once))
        self._gates[order.project] = gate
        job = Job(order, gate)
        task = asyncio.create_task(self._run(job))
        self._tasks[task] = job
        if order.idempotency_key is not None:
            self._by_key[order.project, order.idempotency_key] = job
        task.add_done_callback(self._forget)
        return job

    def _find_room(self, project: str) -> None:
        of_project = sum(job.order.project == project for job in self._tasks.values())
        if of_project >= _share(self._limits.room) or len(self._tasks) >= self._limits.room:
            headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
            raise TooManyReviews(f"{of_project} reviews of yours run or wait already", headers)

    def _forget(self, task: asyncio.Task[None]) -> None:
        job = self._tasks.pop(task)
        if job.order.idempotency_key is not None:
            del self._by_key[job.order.project, job.order.idempotency_key]
        error = None if task.cancelled() else task.exception()
        job.refuse(error or Stopping())

    async def _run(self, job: Job) -> None:
        earlier = await self._begin(job)
        job.accepted.set_result(None)
        job.answer(earlier or await self._finished(job))

    async def _begin(self, job: Job) -> Review | None:
        """Keep that the review begins; return the earlier one that is asked for again."""
        order = job.order
        begun = await self._kept.begin(
            ReviewStart(
                review_id=job.ids.review_id,
                session_id=order.session_id,
                project=order.project,
                submission=order.submission,
                content_key=self._reviewer.content_key(order.submission),
                started_at=now(),
                request_id=order.request_id,
                idempotency_key=order.idempotency_key,
                request_sha256=job.request_sha256,
            )
        )
        if begun.stored is None:
            self._reviewer.begin(order.submission, job.journal.emit)
            return None
        if begun.kind == "different":
            raise _another_body()
        return self._earlier(job, begun.stored)

    def _earlier(self, job: Job, stored: StoredReview) -> Review:
        if stored.status == RUNNING:
            raise ReviewRuns(f"review {stored.review_id} with this Idempotency-Key is not over yet")
        job.ids = ReviewIds(stored.review_id, stored.session_id)
        reason = INTERRUPTED if stored.status == INTERRUPTED else "not_kept"
        unfinished = self._reviewer.unfinished(job.order.submission, job.ids, reason, seconds=0)
        return stored.review or unfinished.review

    async def _finished(self, job: Job) -> Review:
        """Return the review, or that there is none, when it is kept; whatever happens."""
        began = time.monotonic()
        status: Status | None = None
        try:
            async with asyncio.timeout(self._limits.seconds):
                reviewed = await self._reviewed(job)
        except TimeoutError:
            reviewed = self._given_up(job, "timeout", began)
        except asyncio.CancelledError:
            # Only the end of the process cancels a job, and what became of it has to be kept.
            status = INTERRUPTED
            reviewed = self._given_up(job, INTERRUPTED, began)
        except Exception:  # noqa: BLE001 - logged; a review always ends
            _log.exception("review_failed", review_id=job.ids.review_id)
            reviewed = self._given_up(job, "internal", began)
        await self._keep(job, reviewed, status)
        return reviewed.review

    async def _reviewed(self, job: Job) -> Reviewed:
        order = job.order
        content_key = self._reviewer.content_key(order.submission)
        stored = await self._kept.cached(content_key, order.project)
        if stored is not None and (earlier := stored.review) and earlier.status == "completed":
            return self._reviewer.repeat(earlier, job.ids)
        async with job.gate, self._places:
            self.running += 1
            try:
                emit, tell = job.journal.emit, job.progress.tell
                return await self._reviewer.review(order.submission, job.ids, emit, tell)
            finally:
                self.running -= 1

    def _given_up(self, job: Job, reason: str, began: float) -> Reviewed:
        told = f"The review was not finished: {reason}."
        error = {"error_type": f"review_{reason}", "error_message": told, "stage": "review"}
        job.journal.emit("error_occurred", error)
        seconds = time.monotonic() - began
        return self._reviewer.unfinished(job.order.submission, job.ids, reason, seconds)

    async def _keep(self, job: Job, reviewed: Reviewed, status: Status | None) -> None:
        job.is_ending = True
        review = reviewed.review
        end = ReviewEnd(
            status=status or msgspec.convert(review.status, Status),
            review=review,
            completed=job.journal.numbered(reviewed.completed),
            feedback=reviewed.feedback,
        )
        try:
            await self._kept.finish(review.review_id, end)
        except Exception:  # noqa: BLE001 - a mistake of ours; the caller gets the review
            _log.exception("review_not_kept", review_id=review.review_id)
        count_review(review)


def _another_body() -> FieldRejected:
    return FieldRejected("Idempotency-Key", "came with another body before")


async def _unfinished(
    tasks: "dict[asyncio.Task[None], Job] | set[asyncio.Task[None]]", seconds: float
) -> set[asyncio.Task[None]]:
    """Wait so long for tasks to end; return those that did not."""
    if not tasks:
        return set()
    _, late = await asyncio.wait(set(tasks), timeout=max(seconds, 0))
    return late
