"""The consumer: takes deliveries from the queue and stores each in one transaction."""

if __name__ == "__main__" and not __package__:
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import asyncio
import os
import random
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace

import structlog
import uvloop
from fastapi import FastAPI
from starlette.responses import Response

from logging_service import metrics, wire
from logging_service.backends import open_queue, open_store
from logging_service.errors import (
    BackendUnavailable,
    LoggingServiceError,
    SchemaMismatch,
    SettingsError,
)
from logging_service.logs import configure_logs
from logging_service.ports import Appended, DeadLetter, Delivery, EventQueue, EventStore, Sorted
from logging_service.server import (
    forward_library_logs,
    refuse_to_start,
    serving,
    spare_the_collector,
)
from logging_service.settings import Settings, load_settings
from logging_service.web import (
    Check,
    Health,
    RequestContext,
    create_face,
    describe_types,
    endpoints_of,
    health,
    schema_of,
)

_log = structlog.get_logger()

SERVICE = "consumer"
DESCRIPTION = "Stores what waits in the queue. Here it tells how it fares."
# Two: one delivery is taken and decoded while the other's transaction commits.
_WORKERS = 2
_IDLE_WAIT_SECONDS = 0.25
_EXTEND_SECONDS = 10.0
_PREPARE_SECONDS = 3600.0
_LONGEST_PAUSE_SECONDS = 5.0


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


class Consumer:
    """Moves deliveries from a queue to a store until `stopping` is set.

    What was taken by then is stored, or given back where the database does not answer.
    """

    def __init__(
        self,
        queue: EventQueue,
        store: EventStore,
        stopping: asyncio.Event,
        *,
        batch_size: int,
        ttl_seconds: int,
    ) -> None:
        self._queue = queue
        self._store = store
        self._batch_size = batch_size
        self._ttl_seconds = ttl_seconds
        self._taking = asyncio.Lock()
        self._stopping = stopping
        self._under_work: dict[object, Delivery] = {}

    async def run(self) -> None:
        """Work until told to stop; raises SchemaMismatch when the schema does not fit."""
        housekeeping = [
            asyncio.create_task(self._extend_leases()),
            asyncio.create_task(self._prepare_days()),
        ]
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(_WORKERS):
                    workers.create_task(self._work())
        except* SchemaMismatch as group:
            raise group.exceptions[0] from None
        finally:
            for task in housekeeping:
                task.cancel()
            await asyncio.gather(*housekeeping, return_exceptions=True)

    async def _work(self) -> None:
        try:
            await self._work_until_stopped()
        finally:
            # One worker's end is the end of both.
            self._stopping.set()

    async def _work_until_stopped(self) -> None:
        pause = _Pause("queue_unavailable", self._stopping)
        while not self._stopping.is_set():
            try:
                delivery = await self._take()
            except BackendUnavailable as error:
                await pause.after(error)
                continue
            pause.over()
            if delivery is not None:
                await self._deliver(delivery)

    async def _take(self) -> Delivery | None:
        async with self._taking:
            if self._stopping.is_set():
                return None
            return await self._queue.take(self._batch_size, _IDLE_WAIT_SECONDS)

    async def _deliver(self, delivery: Delivery) -> None:
        self._under_work[delivery.lease_id] = delivery
        try:
            if await self._store_until_done(delivery):
                await self._queue.done(delivery)
            else:
                await self._queue.give_back(delivery, 0)
        except BackendUnavailable as error:
            # The lease runs out by itself; the store knows a lease that it has committed.
            _log.warning("lease_not_closed", reason=str(error))
        finally:
            del self._under_work[delivery.lease_id]

    async def _store_until_done(self, delivery: Delivery) -> bool:
        pause = _Pause("database_unavailable", self._stopping)
        batch = sort_events(delivery, self._ttl_seconds, wire.now_micros())
        while not self._stopping.is_set() or not pause.failures:
            try:
                with metrics.CONSUMER_BATCH.time():
                    appended = await self._store.append(batch)
            except BackendUnavailable as error:
                await pause.after(error)
                # Whether that transaction was committed is not known: ask before the next.
                again = replace(batch.delivery, attempts=batch.delivery.attempts + 1)
                batch = replace(batch, delivery=again)
                continue
            pause.over()
            _count(batch, appended)
            return True
        return False

    async def _extend_leases(self) -> None:
        while True:
            await asyncio.sleep(_EXTEND_SECONDS)
            for delivery in list(self._under_work.values()):
                try:
                    await self._queue.extend(delivery)
                except BackendUnavailable as error:
                    _log.warning("lease_not_extended", reason=str(error))

    async def _prepare_days(self) -> None:
        while True:
            try:
                await self._store.prepare()
            except LoggingServiceError as error:
                _log.warning("partitions_not_made", reason=str(error))
                await asyncio.sleep(_LONGEST_PAUSE_SECONDS)
            else:
                await asyncio.sleep(_PREPARE_SECONDS)


class _Pause:
    """Waits longer after each failure, says so once, and says when it is over."""

    def __init__(self, what: str, stopping: asyncio.Event) -> None:
        self.failures = 0
        self._what = what
        self._stopping = stopping

    async def after(self, error: BackendUnavailable) -> None:
        if not self.failures:
            _log.warning(self._what, reason=str(error))
        self.failures += 1
        longest = min(_LONGEST_PAUSE_SECONDS, 0.1 * 2**self.failures)
        with suppress(TimeoutError):
            async with asyncio.timeout(longest * random.uniform(0.5, 1.0)):  # noqa: S311 - jitter
                await self._stopping.wait()

    def over(self) -> None:
        if self.failures:
            _log.info("available_again", after=self._what, failures=self.failures)
        self.failures = 0


def _count(batch: Sorted, appended: Appended) -> None:
    metrics.EVENTS_STORED.inc(appended.stored)
    metrics.EVENTS_DUPLICATE.inc(appended.duplicates)
    metrics.EVENTS_DEAD_LETTERED.inc(appended.dead_lettered)
    metrics.EVENTS_EXPIRED.inc(appended.expired)
    now = wire.now_micros()
    metrics.EVENT_DELAY.observe_many([(now - moment) / 1e6 for moment in batch.received])
    if appended.dead_lettered or appended.expired:
        _log.warning("events_not_stored", **appended._asdict())


def _health_face(settings: Settings, queue: EventQueue, store: EventStore) -> RequestContext:
    async def check_queue() -> str | None:
        return "; ".join(await queue.warnings()) or None

    checks = (Check("queue", check_queue), Check("database", store.check))

    @asynccontextmanager
    async def lifespan(_face: FastAPI) -> AsyncIterator[None]:
        yield

    face = create_face(SERVICE, settings, description=DESCRIPTION, lifespan=lifespan)

    @face.get("/health", responses={200: schema_of(Health), 503: schema_of(Health)})
    async def consumer_health() -> Response:
        """Say how the queue and the database are."""
        return await health(SERVICE, checks, None)

    describe_types(face, (Health,))
    return RequestContext(face, SERVICE, endpoints_of(face))


async def _open_face(
    stack: AsyncExitStack, settings: Settings, queue: EventQueue, store: EventStore
) -> None:
    try:
        listener = socket.create_server((settings.metrics_host, settings.metrics_port))
    except OSError as error:
        _log.warning("metrics_port_taken", port=settings.metrics_port, reason=str(error))
        return
    await stack.enter_async_context(serving(_health_face(settings, queue, store), listener))


async def _bring_schema_up_to_date(settings: Settings, store: EventStore) -> None:
    """Migrate an empty or older schema; raises SchemaMismatch for one that cannot be used."""
    try:
        await store.check()
    except SchemaMismatch:
        # Alembic and SQLAlchemy are needed once in the life of a schema, not of a consumer.
        from logging_service.schema import migrate  # noqa: PLC0415

        before, now = await migrate(settings.store_url)
        _log.info("schema_migrated", before=before, now=now)
        await store.check()


async def consume(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT; a second signal ends at once, which loses nothing either."""
    stopping = asyncio.Event()
    async with AsyncExitStack() as stack:
        queue = await stack.enter_async_context(open_queue(settings))
        store = await stack.enter_async_context(open_store(settings))
        await _open_face(stack, settings, queue, store)
        consumer = Consumer(
            queue,
            store,
            stopping,
            batch_size=settings.consumer_batch_size,
            ttl_seconds=settings.redis_queue_ttl,
        )
        _on_signals(stopping, settings.shutdown_grace_seconds)
        await _wait_for_schema(settings, store, stopping)
        spare_the_collector()
        _log.info("consuming", queue=settings.redis_queue_name)
        await consumer.run()
    _log.info("stopped")


async def _wait_for_schema(settings: Settings, store: EventStore, stopping: asyncio.Event) -> None:
    pause = _Pause("database_unavailable", stopping)
    while not stopping.is_set():
        try:
            await _bring_schema_up_to_date(settings, store)
        except BackendUnavailable as error:
            await pause.after(error)
        else:
            pause.over()
            return


def _on_signals(stopping: asyncio.Event, grace_seconds: float) -> None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if stopping.is_set():
            # Leases run out by themselves.
            os._exit(1)
        stopping.set()
        loop.call_later(grace_seconds, os._exit, 1)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)


def main() -> None:
    """Consume until a signal; a schema that does not fit ends it with one line and exit code 2."""
    try:
        settings = load_settings()
        configure_logs(SERVICE, settings.log_level)
        forward_library_logs()
        uvloop.run(consume(settings))
    except (SettingsError, SchemaMismatch) as error:
        refuse_to_start(str(error))


if __name__ == "__main__":
    main()
