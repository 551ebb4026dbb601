"""The loop that moves deliveries from the queue to the store, whatever becomes of both."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import NamedTuple, Self, TypeVar
from uuid import UUID, uuid4

import structlog

from logging_service import metrics, wire
from logging_service.books import Books
from logging_service.burials import MOST_NAMED
from logging_service.errors import (
    BackendUnavailable,
    DeliveryTooWide,
    LoggingServiceError,
    SchemaMismatch,
    TooManyDead,
)
from logging_service.pausing import LONGEST_PAUSE_SECONDS, Fault, Pause
from logging_service.ports import (
    DeadLetter,
    Delivery,
    EventQueue,
    EventStore,
    NamedLetter,
    Outcome,
    Sorted,
)
from logging_service.recent_events import RecentEvents
from logging_service.settings import Settings
from logging_service.trials import Trials

_log = structlog.get_logger()
_Result = TypeVar("_Result")

# Two: one delivery is taken and decoded while the other's transaction commits.
_WORKERS = 2
_IDLE_WAIT_SECONDS = 0.25
_EXTEND_SECONDS = 10.0
# A lease lasts 30 s: what was not renewed for so long may be another's.
_RENEWED_SECONDS = 25.0
_PREPARE_SECONDS = 3600.0
# A delivery that more consumers began, and did not end, may have ended each of them.
_MOST_BEGUN = 5
_RELEASE_SECONDS = 1.0
_STOPPED_SECONDS = 30.0
_GIVEN_BACK_SECONDS = 1.0
_SETTLE_SECONDS = 5.0
_FOLD_SECONDS = 10.0
# By then no other consumer has the lease any more, and no server is about to take `done` back.
_SETTLED_AFTER_SECONDS = 60.0
_MOST_DONE = 50_000
_WHAT_TO_DO = (
    "nothing is stored: mend the release or the schema and restart, or set DEAD_LETTER_MAX_RATIO=1"
)


def sort_events(delivery: Delivery, ttl_seconds: int, now: int) -> Sorted:
    """Return what of a delivery is to be stored, is too old or cannot be read."""
    events: list[bytes] = []
    received: list[int] = []
    dead: list[DeadLetter] = []
    oldest = now - ttl_seconds * 1_000_000
    for event in delivery.events:
        try:
            moment = wire.check(event)
        except ValueError as error:
            dead.append(DeadLetter(event, "unreadable", str(error), delivery.attempts))
            continue
        if moment >= oldest:
            events.append(event)
            received.append(moment)
    expired = len(delivery.events) - len(events) - len(dead)
    return Sorted(delivery, events, received, expired, dead)


@contextmanager
def _lease_may_run_out(delivery: Delivery) -> Iterator[None]:
    """Let a lease that cannot be closed run out; the store knows one that it has committed."""
    try:
        yield
    except BackendUnavailable as error:
        _log.warning("lease_not_closed", lease_id=str(delivery.lease_id), reason=str(error))


class Limits(NamedTuple):
    """Events that a delivery has at the most, seconds that one may wait, share of bad ones."""

    batch_size: int
    ttl_seconds: int
    dead_letter_max_ratio: float

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the limits that the settings give."""
        return cls(
            settings.consumer_batch_size,
            settings.redis_queue_ttl,
            settings.dead_letter_max_ratio,
        )


class _NotHere(LoggingServiceError):
    """The delivery is not settled, and shall not be here and now."""


def _now() -> float:
    # Leases run out while this machine sleeps, and so has this clock to go on.
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class _Turn:
    """A delivery under work; nobody else can have it as long as its lease is renewed in time."""

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
        self.run = uuid4()
        self._renewed_at = _now()

    @property
    def is_lost(self) -> bool:
        """Whether the lease may have run out meanwhile; then it stays so."""
        return _now() - self._renewed_at > _RENEWED_SECONDS

    def confirm(self) -> None:
        """Raise _NotHere when the lease may be another's."""
        if self.is_lost:
            # Whoever has it now may have stored it so long ago that the store forgot the lease.
            _log.warning("lease_lost", lease_id=str(self.delivery.lease_id))
            raise _NotHere

    async def renew(self, queue: EventQueue) -> None:
        """Begin the lease's time anew, unless it is lost."""
        began = _now()
        if not self.is_lost:
            await queue.extend(self.delivery)
            self._renewed_at = began


class _NotStored:
    """What of a delivery was not stored, for one line that names some of it."""

    def __init__(self, delivery: Delivery) -> None:
        self._lease_id = str(delivery.lease_id)
        self._dead = self._expired = 0
        self._named: list[NamedLetter] = []

    def add(self, outcome: Outcome) -> Self:
        """Add what became of some of its events."""
        self._dead += outcome.dead_lettered
        self._expired += outcome.expired
        self._named += outcome.named[: MOST_NAMED - len(self._named)]
        return self

    def tell(self) -> None:
        """Log it, if there is any."""
        if self._dead or self._expired:
            _log.warning(
                "events_not_stored",
                lease_id=self._lease_id,
                dead_lettered=self._dead,
                expired=self._expired,
                reasons=sorted({one.reason for one in self._named}),
                event_ids=[str(one.event_id) for one in self._named if one.event_id],
                request_ids=[one.request_id for one in self._named if one.request_id],
            )


class Consumer:
    """Moves deliveries from a queue to a store until `stopping` is set.

    What was taken by then is stored, or given back where the database does not answer. Where most
    of the last events cannot be stored it stores nothing, says so and keeps what it has taken.
    """

    def __init__(
        self,
        queue: EventQueue,
        store: EventStore,
        books: Books,
        stopping: asyncio.Event,
        limits: Limits,
    ) -> None:
        self._queue = queue
        self._store = store
        self._books = books
        self._limits = limits
        self._taking = asyncio.Lock()
        self._is_trying = False
        self._stopping = stopping
        self._under_work: set[_Turn] = set()
        self._turn_ended = asyncio.Event()
        self._recent = RecentEvents(limits.dead_letter_max_ratio)
        self._refused: dict[_Turn, str] = {}
        self._done: deque[tuple[float, UUID]] = deque(maxlen=_MOST_DONE)

    async def run(self) -> None:
        """Work until told to stop; raises SchemaMismatch when the schema does not fit."""
        jobs = (self._extend_leases, self._prepare_days, self._settle_leases, self._fold)
        try:
            async with asyncio.TaskGroup() as tasks:
                housekeeping = [tasks.create_task(job()) for job in jobs]
                await asyncio.wait([tasks.create_task(self._work()) for _ in range(_WORKERS)])
                for task in housekeeping:
                    task.cancel()
        except* SchemaMismatch as group:
            raise group.exceptions[0] from None

    async def check(self) -> None:
        """Raise TooManyDead while nothing is stored because too much would be put aside."""
        if self._refused:
            reason = next(iter(self._refused.values()))
            raise TooManyDead(f"{reason}; {_WHAT_TO_DO}")

    async def let_go(self) -> None:
        """Give back what is under work, where the queue answers; the store knows what it has."""
        await asyncio.gather(*(self._give_back(turn) for turn in list(self._under_work)))

    async def _work(self) -> None:
        pause = Pause("queue_unavailable", self._stopping)
        try:
            while not self._stopping.is_set():
                try:
                    await self._take_and_deliver(pause)
                except BackendUnavailable as error:
                    await pause.after(error)
        finally:
            # One worker's end is the end of both.
            self._stopping.set()

    async def _take_and_deliver(self, pause: Pause) -> None:
        async with self._taking:
            delivery = await self._take(pause)
        if delivery is not None:
            await self._deliver(delivery)

    async def _take(self, pause: Pause) -> Delivery | None:
        if self._refused:
            await self._wait_for_stop(_IDLE_WAIT_SECONDS)
            return None
        if self._stopping.is_set():
            return None
        delivery = await self._queue.take(self._limits.batch_size, _IDLE_WAIT_SECONDS)
        pause.over()
        return delivery

    async def _deliver(self, delivery: Delivery) -> None:
        turn = _Turn(delivery)
        self._under_work.add(turn)
        try:
            await self._begin_and_store(turn)
        except _NotHere:
            await self._give_back(turn)
        except (SchemaMismatch, asyncio.CancelledError):
            # Not at once: the other worker would take it and be ended in the middle.
            await self._give_back(turn, _GIVEN_BACK_SECONDS)
            raise
        else:
            with _lease_may_run_out(delivery):
                await self._queue.done(delivery)
                self._done.append((time.monotonic(), delivery.lease_id))
        finally:
            self._under_work.remove(turn)
            self._accept(turn)
            self._turn_ended.set()

    async def _give_back(self, turn: _Turn, delay_seconds: float = 0) -> None:
        # What is lost is under work elsewhere, or free already.
        if not turn.is_lost:
            with _lease_may_run_out(turn.delivery):
                await self._queue.give_back(turn.delivery, delay_seconds)
        if turn.delivery.attempts > 1:
            # Not to hold up a stop: one death too many is no proof, six are.
            await asyncio.wait({asyncio.create_task(self._release(turn))}, timeout=_RELEASE_SECONDS)

    async def _release(self, turn: _Turn) -> None:
        with suppress(LoggingServiceError):
            await self._store.release_delivery(turn.delivery, turn.run)

    async def _begin_and_store(self, turn: _Turn) -> None:
        begun = 0
        if turn.delivery.attempts > 1:
            begun = await self._persist(
                turn, lambda: self._store.begin_delivery(turn.delivery, turn.run)
            )
        if begun <= _MOST_BEGUN:
            try:
                await self._store_at_once(turn)
            except DeliveryTooWide as error:
                lease_id = str(turn.delivery.lease_id)
                _log.warning("delivery_too_wide", lease_id=lease_id, reason=str(error))
            else:
                return
        if self._is_trying:
            raise _NotHere
        self._is_trying = True
        try:
            # Alone at the queue: whatever ends the process then is this delivery.
            async with self._taking:
                await self._store_one_by_one(turn)
        finally:
            self._is_trying = False

    async def _store_at_once(self, turn: _Turn) -> None:
        batch, number = self._decode(turn.delivery), len(turn.delivery.events)

        async def store() -> Outcome:
            nonlocal batch
            asked = batch
            # Whether that transaction was committed may not be known: ask before the next.
            again = replace(batch.delivery, attempts=batch.delivery.attempts + 1)
            batch = replace(batch, delivery=again)
            with metrics.CONSUMER_BATCH.time():
                return await self._store.append(asked, self._recent.most_dead(number), turn.confirm)

        outcome = await self._persist(turn, store)
        self._count(batch, outcome)
        _NotStored(turn.delivery).add(outcome).tell()

    async def _store_one_by_one(self, turn: _Turn) -> None:
        delivery = turn.delivery
        lease_id, number = str(delivery.lease_id), len(delivery.events)
        _log.warning("one_by_one", lease_id=lease_id, attempts=delivery.attempts, events=number)
        while len(self._under_work) > 1:
            self._turn_ended.clear()
            await self._turn_ended.wait()
        trials = Trials(self._store, delivery, self._decode, turn.confirm)
        not_stored = _NotStored(delivery)
        try:
            while settled := await self._persist(
                turn, lambda: trials.settle_next(self._recent.most_dead(1))
            ):
                self._count(*settled)
                not_stored.add(settled[1])
                if self._stopping.is_set():
                    raise _NotHere
        finally:
            not_stored.tell()

    def _decode(self, delivery: Delivery) -> Sorted:
        return sort_events(delivery, self._limits.ttl_seconds, wire.now_micros())

    async def _persist(self, turn: _Turn, store: Callable[[], Awaitable[_Result]]) -> _Result:
        """Return what `store` returns, in the end, or raise _NotHere; a stop lets it try once."""
        pause = Pause("database_unavailable", self._stopping)
        while True:
            turn.confirm()
            try:
                outcome = await store()
            except BackendUnavailable as error:
                await pause.after(error)
            except TooManyDead as error:
                await self._refuse(turn, error)
            else:
                pause.over()
                self._accept(turn)
                return outcome
            if self._stopping.is_set():
                raise _NotHere

    async def _refuse(self, turn: _Turn, error: TooManyDead) -> None:
        if not self._refused:
            _log.error("consumer_stopped", reason=str(error), what_to_do=_WHAT_TO_DO)
        self._refused[turn] = str(error)
        metrics.CONSUMER_STOPPED.set(1)
        await self._wait_for_stop(_STOPPED_SECONDS)

    def _accept(self, turn: _Turn) -> None:
        if self._refused.pop(turn, None) and not self._refused:
            metrics.CONSUMER_STOPPED.set(0)
            _log.info("consumer_goes_on")

    def _count(self, batch: Sorted, appended: Outcome) -> None:
        conflicts = appended.conflicts
        self._recent.note(sum(appended) - conflicts, appended.dead_lettered - conflicts)
        metrics.EVENTS_STORED.inc(appended.stored)
        metrics.EVENTS_DUPLICATE.inc(appended.duplicates)
        metrics.EVENTS_DEAD_LETTERED.inc(appended.dead_lettered)
        metrics.EVENTS_EXPIRED.inc(appended.expired)
        for model, queries in appended.queries.items():
            metrics.count_queries(model, queries.ok, queries.failed, queries.nanos)
        metrics.LAST_STORED.set_to_current_time()
        now = wire.now_micros()
        metrics.EVENT_DELAY.observe_many([(now - moment) / 1e6 for moment in batch.received])

    async def _wait_for_stop(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _extend_leases(self) -> None:
        fault = Fault("lease_not_extended")
        while True:
            await asyncio.sleep(_EXTEND_SECONDS)
            for turn in list(self._under_work):
                with fault.told():
                    await turn.renew(self._queue)

    async def _prepare_days(self) -> None:
        fault = Fault("partitions_not_made")
        while True:
            with fault.told():
                await self._store.prepare()
            await asyncio.sleep(LONGEST_PAUSE_SECONDS if fault.holds else _PREPARE_SECONDS)

    async def _fold(self) -> None:
        fault = Fault("roll_ups_not_folded")
        while True:
            await asyncio.sleep(_FOLD_SECONDS)
            with fault.told():
                await self._store.fold()

    async def _settle_leases(self) -> None:
        fault = Fault("leases_not_settled")
        while True:
            await asyncio.sleep(_SETTLE_SECONDS)
            oldest = time.monotonic() - _SETTLED_AFTER_SECONDS
            due = [lease_id for done_at, lease_id in self._done if done_at <= oldest]
            with fault.told():
                if due:
                    await self._books.settle(due)
                while self._done and self._done[0][0] <= oldest:
                    self._done.popleft()
