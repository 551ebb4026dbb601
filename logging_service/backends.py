"""The only place that turns settings into adapters."""

import asyncio
from contextlib import AbstractAsyncContextManager, suppress

from logging_service.errors import LoggingServiceError, SchemaTooNew
from logging_service.ports import EventQueue, EventReader, EventStore
from logging_service.postgres_reader import READ_SECONDS, open_postgres_reader
from logging_service.postgres_store import open_postgres_store
from logging_service.redis_queue import open_redis_queue
from logging_service.settings import Settings

_START_SECONDS = 3.0


def open_queue(settings: Settings) -> AbstractAsyncContextManager[EventQueue]:
    """Return the queue that the settings name, to be entered; it connects when first used."""
    return open_redis_queue(
        settings.queue_url,
        name=settings.redis_queue_name,
        ttl_seconds=settings.redis_queue_ttl,
        timeout_ms=settings.redis_timeout_ms,
    )


def open_store(settings: Settings) -> AbstractAsyncContextManager[EventStore]:
    """Return the store that the settings name, to be entered; it connects when first used."""
    return open_postgres_store(settings.store_url, connections=4)


def open_reader(
    settings: Settings, *, read_seconds: float = READ_SECONDS
) -> AbstractAsyncContextManager[EventReader]:
    """Return the reader of the store that the settings name; it connects when first used.

    `read_seconds` bounds what one question may read where no index answers it.
    """
    return open_postgres_reader(settings.store_url, connections=8, read_seconds=read_seconds)


async def refuse_newer_schema(settings: Settings) -> None:
    """Raise SchemaTooNew if the database tells it now; one that does not answer may come later."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_START_SECONDS), open_reader(settings) as reader:
            try:
                await reader.check()
            except SchemaTooNew:
                raise
            except LoggingServiceError:
                return
