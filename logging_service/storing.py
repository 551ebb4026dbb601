"""Stores what waits in a queue, in whichever process: the schema first, then the loop."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog

from logging_service.audit_trail import forwarding_audit
from logging_service.backends import open_books
from logging_service.bookkeeper import Bookkeeper
from logging_service.books import Books
from logging_service.delivering import Consumer, Limits
from logging_service.errors import BackendUnavailable, SchemaMismatch, SchemaTooNew
from logging_service.pausing import Pause
from logging_service.ports import EventQueue, EventStore
from logging_service.retention_turns import removing_old
from logging_service.settings import Settings

_log = structlog.get_logger()

_POLL_SECONDS = 0.05
_LAST_NOTE_SECONDS = 0.5


async def wait_for_schema(settings: Settings, store: EventStore, stopping: asyncio.Event) -> None:
    """Return once the schema is up to date or `stopping` is set.

    Raises SchemaMismatch for one that cannot be used.
    """
    pause = Pause("database_unavailable", stopping)
    while not stopping.is_set():
        try:
            await _bring_schema_up_to_date(settings, store)
        except BackendUnavailable as error:
            await pause.after(error)
        else:
            pause.over()
            return


async def _bring_schema_up_to_date(settings: Settings, store: EventStore) -> None:
    try:
        await store.check()
    except SchemaTooNew:
        raise
    except SchemaMismatch:
        # Alembic and SQLAlchemy are needed once in the life of a schema, not of a consumer.
        from logging_service.schema import migrate  # noqa: PLC0415

        before, now = await migrate(settings.owner_url, settings.store_url)
        _log.info("schema_migrated", before=before, now=now)
        await store.check()


@asynccontextmanager
async def keeping_books(settings: Settings, queue: EventQueue) -> AsyncIterator[Books]:
    """Yield the books, which are told what `queue` accepts as long as the context is open."""
    async with open_books(settings) as books:
        keeper = Bookkeeper(queue, books)
        keeping = asyncio.create_task(keeper.run())
        telling = asyncio.create_task(_tell_risks(queue))
        try:
            yield books
        finally:
            telling.cancel()
            # A database that fell silent keeps a cancelled statement waiting: leave it behind.
            keeping.cancel()
            await asyncio.wait({keeping}, timeout=_LAST_NOTE_SECONDS)
            last = asyncio.create_task(keeper.note())
            await asyncio.wait({last}, timeout=_LAST_NOTE_SECONDS)
            last.cancel()


async def _tell_risks(queue: EventQueue) -> None:
    with suppress(BackendUnavailable):
        for reason in await queue.warnings():
            _log.warning("queue_at_risk", reason=reason)


@asynccontextmanager
async def storing_here(
    settings: Settings, queue: EventQueue, store: EventStore
) -> AsyncIterator[Consumer]:
    """Store what waits as long as the context is open, for a queue that only this process sees.

    At the end that goes on until the queue is empty, for half of SHUTDOWN_GRACE_SECONDS.
    """
    stopping = asyncio.Event()
    async with (
        keeping_books(settings, queue) as books,
        forwarding_audit(settings, queue),
        removing_old(settings),
    ):
        consumer = Consumer(queue, store, books, stopping, Limits.of(settings))
        task = asyncio.create_task(_store(settings, store, consumer, stopping))
        try:
            yield consumer
            await _until_empty(queue, settings.shutdown_grace_seconds / 2)
        finally:
            stopping.set()
            await asyncio.wait({task})


async def _store(
    settings: Settings, store: EventStore, consumer: Consumer, stopping: asyncio.Event
) -> None:
    try:
        await wait_for_schema(settings, store, stopping)
        await consumer.run()
    except SchemaMismatch as error:
        _log.error("nothing_is_stored", reason=str(error))


async def _until_empty(queue: EventQueue, seconds: float) -> None:
    left = await _left(queue)
    for _ in range(round(seconds / _POLL_SECONDS)):
        if not left:
            return
        await asyncio.sleep(_POLL_SECONDS)
        left = await _left(queue)
    _log.error("events_lost_with_memory", events=left)


async def _left(queue: EventQueue) -> int:
    status = await queue.status()
    return status.size + status.in_flight
