"""The queue in a SQLite file, or in memory: what waits is committed together by one thread.

Producers and a consumer of one host can share the file; a producer that cannot reach Redis has one
for itself.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import apsw
import structlog

from logging_service import wire
from logging_service.errors import BackendUnavailable, LoggingServiceError, SettingsError
from logging_service.ports import Ack, Delivery, QueueStatus, Reserve, Tally
from logging_service.spool_book import Book
from logging_service.spool_file import SpoolFile, peek
from logging_service.spool_folder import SpoolFolder, SpoolTaken

__all__ = ["SpoolQueue", "SpoolTaken", "open_spool_queue", "peek"]

_log = structlog.get_logger()
_Result = TypeVar("_Result")

# Older ones can damage a file to which several processes write: the bug of resetting its log.
_OLDEST_SQLITE = (3, 51, 3)
_POLL_SECONDS = 0.02
_REST_SECONDS = 1.0
_MAX_WAITING_BYTES = 64 * 1024 * 1024
_MAX_GROUP_BYTES = 16 * 1024 * 1024


class _Job:
    """Something to be done with the file, and who waits for it; without `work` it is a put."""

    __slots__ = ("events", "future", "size", "work")

    def __init__(
        self, work: Callable[[SpoolFile], Any] | None = None, events: Sequence[bytes] = ()
    ) -> None:
        self.work = work
        self.events = events
        self.size = sum(map(len, events))
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def settle(self, outcome: object) -> None:
        """Tell the one who waits, if somebody still does."""
        if self.future.done():
            return
        if isinstance(outcome, Exception):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


class SpoolQueue:
    """An EventQueue in SQLite; leases run by a clock that nobody turns."""

    def __init__(self, spool: SpoolFile, ack: Ack, backend: Literal["spool", "memory"]) -> None:
        self._spool = spool
        self._ack = ack
        self._backend = backend
        self._loop = asyncio.get_running_loop()
        self._jobs: deque[_Job] = deque()
        self._waiting_bytes = 0
        self._wakes = threading.Condition()
        self._is_ending = False

    async def put(self, events: Sequence[bytes]) -> Ack:
        """Hold `events` durably, all or none, with whatever else waits to be put.

        Raises QueueFull when the spool or its disk is full, BackendUnavailable when it is not
        known that it holds them, or 64 MiB wait for it already.
        """
        if not events:
            return self._ack
        job = _Job(events=events)
        if self._waiting_bytes + job.size > _MAX_WAITING_BYTES:
            raise BackendUnavailable(f"spool {self._spool.name}: it is slower than events come")
        self._waiting_bytes += job.size
        job.future.add_done_callback(lambda _: self._forget_waiting(job.size))
        await self._submit(job)
        return self._ack

    async def take(self, limit: int, wait_seconds: float) -> Delivery | None:
        """Lease up to `limit` of the oldest events, an expired lease first; None when idle."""
        deadline = time.monotonic() + wait_seconds
        while True:
            delivery = await self._do(lambda spool: _take(spool, limit))
            if delivery or time.monotonic() >= deadline:
                return delivery
            # Another process may put into the file, and nothing tells when.
            await asyncio.sleep(_POLL_SECONDS)

    async def done(self, delivery: Delivery) -> None:
        """Forget the events of `delivery`; harmless when repeated."""
        await self._write(lambda book: book.done(str(delivery.lease_id)))

    async def extend(self, delivery: Delivery) -> None:
        """Begin the lease's time anew; nothing happens when it is gone."""
        await self._write(lambda book: book.postpone(str(delivery.lease_id)))

    async def give_back(self, delivery: Delivery, delay_seconds: float) -> None:
        """Offer the events again after `delay_seconds`, with one attempt more."""
        delay_ms = round(delay_seconds * 1000)
        await self._write(lambda book: book.postpone(str(delivery.lease_id), delay_ms))

    async def status(self) -> QueueStatus:
        """Count what waits and what is leased; the rate is that of the last half minute."""
        counts = await self._do(lambda spool: spool.read(Book.counts))
        received = _received(counts.oldest)
        return QueueStatus(
            backend=self._backend,
            size=counts.waiting,
            in_flight=counts.in_flight,
            oldest_age_seconds=None if received is None else _age(received),
            stored_per_second=counts.finished_per_second,
            damaged=counts.damaged,
            held_since=None if received is None else wire.from_micros(received),
        )

    async def tallies(self) -> list[Tally]:
        """Return what was accepted in each epoch that this process has seen, the present last."""
        return await self._do(SpoolFile.tallies)

    async def reserves(self) -> list[Reserve]:
        """Return what each epoch that this process has seen has accepted, the present last."""
        return await self._do(SpoolFile.reserves)

    async def warnings(self) -> list[str]:
        """Say what is damaged and whether the spool is nearly full, a sentence each.

        Raises BackendUnavailable when it takes no events.
        """
        return await self._do(SpoolFile.warnings)

    async def _write(self, work: Callable[[Book], None]) -> None:
        await self._do(lambda spool: spool.write(work))

    async def _do(self, work: Callable[[SpoolFile], _Result]) -> _Result:
        return cast("_Result", await self._submit(_Job(work)))

    def _submit(self, job: _Job) -> "asyncio.Future[Any]":
        with self._wakes:
            if self._is_ending:
                raise BackendUnavailable(f"spool {self._spool.name}: it is closed")
            self._jobs.append(job)
            self._wakes.notify()
        return job.future

    def _forget_waiting(self, size: int) -> None:
        self._waiting_bytes -= size

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Have a thread do what is asked for; at the end it does what was, and closes the file."""
        thread = threading.Thread(target=self._work, name="spool", daemon=True)
        thread.start()
        try:
            yield
        finally:
            with self._wakes:
                self._is_ending = True
                self._wakes.notify()
            await asyncio.to_thread(thread.join)

    def _work(self) -> None:
        while (jobs := self._next_jobs()) is not None:
            if puts := [job for job in jobs if job.work is None]:
                self._put(puts)
            for job in jobs:
                if job.work is not None:
                    self._settle([job], [self._outcome(job.work)])
            self._outcome(SpoolFile.rest)
        self._outcome(SpoolFile.close)

    def _next_jobs(self) -> list[_Job] | None:
        """Wait for something to do, at the most a second; None at the end of it all."""
        jobs: list[_Job] = []
        size = 0
        with self._wakes:
            self._wakes.wait_for(lambda: self._jobs or self._is_ending, _REST_SECONDS)
            if self._is_ending and not self._jobs:
                return None
            while self._jobs and (not jobs or size + self._jobs[0].size <= _MAX_GROUP_BYTES):
                jobs.append(self._jobs.popleft())
                size += jobs[-1].size
        return jobs

    def _put(self, puts: list[_Job]) -> None:
        outcome = self._outcome(lambda spool: spool.put([job.events for job in puts]))
        each = [outcome] * len(puts) if isinstance(outcome, Exception) else outcome
        self._settle(puts, cast("list[object]", each))

    def _outcome(self, work: Callable[[SpoolFile], Any]) -> object:
        try:
            return work(self._spool)
        except LoggingServiceError as error:
            return error
        except Exception as error:  # noqa: BLE001 - the one who waits has to be told all the same
            _log.exception("spool_work_failed")
            return BackendUnavailable(f"spool {self._spool.name}: {type(error).__name__}")

    def _settle(self, jobs: list[_Job], outcomes: list[object]) -> None:
        def settle() -> None:
            for job, outcome in zip(jobs, outcomes, strict=True):
                job.settle(outcome)

        self._loop.call_soon_threadsafe(settle)


def _take(spool: SpoolFile, limit: int) -> Delivery | None:
    # A look costs no write: most of an idle consumer's questions end here.
    if not spool.read(Book.has_work):
        return None
    return spool.write(lambda book: book.take(limit))


def _received(oldest: bytes | None) -> int | None:
    try:
        return None if oldest is None else wire.received_at(oldest)
    except ValueError:
        return None


def _age(received: int) -> float:
    return max(0.0, round((wire.now_micros() - received) / 1e6, 3))


@asynccontextmanager
async def open_spool_queue(
    file: Path | None, *, max_bytes: int, exclusive: bool, lease_seconds: float = 30
) -> AsyncIterator[SpoolQueue]:
    """Yield the queue in `file`, which is made where there is none; None: a queue in memory.

    An exclusive file belongs to this process, and the leases left in it are free at once; else
    others may share it. Raises SpoolTaken when somebody uses it otherwise, SettingsError when it
    cannot be a spool, or SQLite is too old. A disk that fails does not keep it from opening.
    """
    if tuple(map(int, apsw.sqlite_lib_version().split("."))) < _OLDEST_SQLITE:
        oldest = ".".join(map(str, _OLDEST_SQLITE))
        raise SettingsError(
            f"SQLite {apsw.sqlite_lib_version()} can damage a spool: {oldest} or newer is needed"
        )
    folder = SpoolFolder(file, max_bytes=max_bytes, exclusive=exclusive) if file else None
    spool = SpoolFile(folder, max_bytes=max_bytes, lease_seconds=lease_seconds, exclusive=exclusive)
    queue = SpoolQueue(spool, "spooled" if file else "in_memory", "spool" if file else "memory")
    with folder.held() if folder else nullcontext():
        async with queue.working():
            try:
                await queue.status()
            except BackendUnavailable as error:
                _log.warning("spool_unavailable", reason=str(error))
            yield queue
