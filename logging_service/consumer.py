"""The consumer: takes deliveries from the queue and stores each in one transaction."""

if __name__ == "__main__" and not __package__:
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import structlog
import uvloop
from fastapi import FastAPI
from starlette.responses import Response

from logging_service.audit_trail import forwarding_audit
from logging_service.backends import open_queue, open_store
from logging_service.delivering import Consumer, Limits
from logging_service.errors import SchemaMismatch, SettingsError
from logging_service.health import Check, Health, Warn, health
from logging_service.http_protocol import LimitedProtocol
from logging_service.logs import configure_logs
from logging_service.ports import EventQueue, EventStore
from logging_service.retention_turns import removing_old
from logging_service.server import (
    FaceConfig,
    forward_library_logs,
    open_listener,
    refuse_to_start,
    serving,
    spare_the_collector,
)
from logging_service.settings import Settings, load_settings
from logging_service.storing import keeping_books, wait_for_schema
from logging_service.web import RequestContext, create_face, describe_types, endpoints_of, schema_of

_log = structlog.get_logger()

SERVICE = "consumer"
DESCRIPTION = "Stores what waits in the queue. Here it tells how it fares."
# Of the time for stopping: by then work that hangs is left, by then the process is gone.
_LEAVE_AT, _GONE_AT = 0.8, 0.95


def _health_face(settings: Settings, checks: tuple[Check, ...], warn: Warn) -> RequestContext:
    @asynccontextmanager
    async def lifespan(_face: FastAPI) -> AsyncIterator[None]:
        yield

    face = create_face(SERVICE, settings, description=DESCRIPTION, lifespan=lifespan)

    @face.get("/health", responses={200: schema_of(Health), 503: schema_of(Health)})
    async def consumer_health() -> Response:
        """Say how the queue and the database are, and whether events are stored."""
        return await health(SERVICE, checks, None, warn)

    describe_types(face, (Health,))
    return RequestContext(face, SERVICE, endpoints_of(face))


class _HealthProtocol(LimitedProtocol):
    service = SERVICE


async def _open_face(
    stack: AsyncExitStack, settings: Settings, checks: tuple[Check, ...], warn: Warn
) -> None:
    face = _health_face(settings, checks, warn)
    config = FaceConfig(
        face, "metrics", settings, http=_HealthProtocol, lifespan="off", timeout_graceful_shutdown=1
    )
    try:
        listener = open_listener(config.host, config.port)
    except OSError as error:
        _log.warning("metrics_port_taken", port=settings.metrics_port, reason=str(error))
        return
    await stack.enter_async_context(serving(config, listener))


def _checks(queue: EventQueue, store: EventStore, consumer: Consumer) -> tuple[Check, ...]:
    async def check_queue() -> str | None:
        return "; ".join(await queue.warnings()) or None

    return (
        Check("queue", check_queue),
        Check("database", store.check),
        Check("dead_letters", consumer.check),
    )


async def consume(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT; a second signal ends at once, which loses nothing either."""
    stopping = asyncio.Event()
    _on_signals(stopping, settings.shutdown_grace_seconds)
    async with AsyncExitStack() as stack:
        queue = await stack.enter_async_context(open_queue(settings))
        store = await stack.enter_async_context(open_store(settings))
        books = await stack.enter_async_context(keeping_books(settings, queue))
        await stack.enter_async_context(forwarding_audit(settings, queue))
        await stack.enter_async_context(removing_old(settings))
        consumer = Consumer(queue, store, books, stopping, Limits.of(settings))
        await _open_face(stack, settings, _checks(queue, store, consumer), store.warnings)
        await wait_for_schema(settings, store, stopping)
        spare_the_collector()
        _log.info("consuming", queue=settings.redis_queue_name)
        await _work(consumer, stopping, settings.shutdown_grace_seconds)
    _log.info("stopped")


async def _work(consumer: Consumer, stopping: asyncio.Event, grace_seconds: float) -> None:
    working = asyncio.create_task(consumer.run())
    # Its end, whatever the reason, sets `stopping` as well.
    await stopping.wait()
    done, _ = await asyncio.wait({working}, timeout=_LEAVE_AT * grace_seconds)
    if not done:
        # A server that hangs would hold up every orderly way out.
        await consumer.let_go()
        _log.warning("stopped_unfinished")
        os._exit(1)
    await working


def _on_signals(stopping: asyncio.Event, grace_seconds: float) -> None:
    loop = asyncio.get_running_loop()
    # Not the loop's clock: whatever holds up the loop must not hold up the end.
    last = threading.Timer(_GONE_AT * grace_seconds, os._exit, (1,))
    last.daemon = True

    def stop() -> None:
        if stopping.is_set():
            # Leases run out by themselves.
            os._exit(1)
        stopping.set()
        last.start()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
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
