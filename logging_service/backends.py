"""The only place that turns settings into adapters."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from functools import partial

from logging_service.analytics import AnalyticsReader
from logging_service.api_keys import KeyStore
from logging_service.audit import AuditOutbox
from logging_service.books import Books
from logging_service.erasure import Erasure
from logging_service.errors import LoggingServiceError, SchemaTooNew, SettingsError
from logging_service.failover_queue import FailoverQueue, open_failover_queue
from logging_service.fallback_spools import FallbackSpools
from logging_service.hidden_queue import HiddenQueue
from logging_service.pepper import kept_pepper, kept_pii_key, pepper_of, pii_fingerprint_of
from logging_service.permits import SharedPermits
from logging_service.ports import DeadLetters, EventQueue, EventReader, EventStore
from logging_service.postgres_analytics import open_postgres_analytics
from logging_service.postgres_audit import open_postgres_audit_outbox
from logging_service.postgres_books import open_postgres_books
from logging_service.postgres_dead_letters import open_postgres_dead_letters
from logging_service.postgres_erasure import open_postgres_erasure
from logging_service.postgres_keys import Peppers, open_postgres_keys
from logging_service.postgres_reader import READ_SECONDS, open_postgres_reader
from logging_service.postgres_rebuild import open_postgres_roll_ups
from logging_service.postgres_reprice import open_postgres_call_ledger
from logging_service.postgres_retention import open_postgres_retention
from logging_service.postgres_store import open_postgres_store
from logging_service.price_file import read_price_file
from logging_service.pricing import Prices
from logging_service.rebuilding import RollUps
from logging_service.redaction import Redactor, Rules
from logging_service.redaction_file import read_redaction_file, rules_for
from logging_service.redis_fingerprints import Fingerprints, HostFingerprint, open_fingerprints
from logging_service.redis_permits import open_redis_permits
from logging_service.redis_queue import RedisQueue, open_redis_queue
from logging_service.repricing import CallLedger
from logging_service.retention import Retention
from logging_service.settings import Settings
from logging_service.spool_folder import set_aside_in
from logging_service.spool_queue import open_spool_queue

_START_SECONDS = 3.0


@asynccontextmanager
async def open_queue(settings: Settings) -> AsyncIterator[EventQueue]:
    """Yield the queue that the settings name; it connects when it is first used.

    Raises SettingsError for a queue in the memory of a producer, which no other process can see.
    """
    if settings.queue_is_memory:
        raise SettingsError(
            "SPOOL_PATH=:memory: cannot be used here: that queue lives inside the producer, which "
            "stores its events itself; a file, the default, is shared by all processes of a host"
        )
    if not settings.use_redis_queue:
        async with _open_local_queue(settings) as queue:
            yield queue
        return
    async with _open_redis_queue(settings) as redis:
        yield FailoverQueue(redis, _spools(settings))


def open_seen_queue(settings: Settings) -> AbstractAsyncContextManager[EventQueue]:
    """Return the queue for who can do without: one that cannot be seen is as good as away."""
    return nullcontext(HiddenQueue()) if settings.queue_is_memory else open_queue(settings)


@asynccontextmanager
async def open_write_queue(settings: Settings) -> AsyncIterator[EventQueue]:
    """Yield the queue that a producer writes to, which falls back to a spool of its own."""
    if not settings.use_redis_queue:
        async with _open_local_queue(settings) as queue:
            yield queue
        return
    drain = settings.spool_drain_per_second
    async with (
        _open_redis_queue(settings) as redis,
        open_failover_queue(redis, _spools(settings), drain_per_second=drain) as failover,
    ):
        yield failover


def damaged_spool_files(settings: Settings) -> int:
    """Count the spool files of this host that were set aside and wait to be salvaged."""
    return len(set_aside_in(settings.spool_file.parent)) if settings.spool_file else 0


def _open_redis_queue(settings: Settings) -> AbstractAsyncContextManager[RedisQueue]:
    return open_redis_queue(
        settings.queue_url,
        name=settings.redis_queue_name,
        ttl_seconds=settings.redis_queue_ttl,
        timeout_ms=settings.redis_timeout_ms,
        max_events=settings.queue_max_events,
    )


def open_permits(
    settings: Settings, service: str
) -> AbstractAsyncContextManager[SharedPermits | None]:
    """Return the permits that all workers of `service` share, to be entered; None without Redis."""
    if not settings.use_redis_queue:
        return nullcontext()
    return open_redis_permits(
        settings.queue_url,
        name=settings.redis_queue_name,
        service=service,
        timeout_ms=settings.redis_timeout_ms,
    )


def open_pii_fingerprints(
    settings: Settings,
) -> AbstractAsyncContextManager[Fingerprints | None]:
    """Return which key each host replaces with, to be entered; None without Redis: one host."""
    if not settings.use_redis_queue:
        return nullcontext()
    return open_fingerprints(settings.queue_url, name=settings.redis_queue_name)


@asynccontextmanager
async def telling_pii_key(settings: Settings) -> AsyncIterator[None]:
    """Let other hosts know which key this one replaces personal data with, by its fingerprint."""
    fingerprint = pii_fingerprint_of(settings)
    async with open_pii_fingerprints(settings) as fingerprints:
        if fingerprints is None or fingerprint is None:
            yield
            return
        noted = HostFingerprint(socket.gethostname(), fingerprint)
        noting = asyncio.create_task(fingerprints.keep_noting(noted))
        try:
            yield
        finally:
            noting.cancel()


def _open_local_queue(settings: Settings) -> AbstractAsyncContextManager[EventQueue]:
    file, max_bytes = settings.spool_file, settings.spool_max_bytes
    return open_spool_queue(file, max_bytes=max_bytes, exclusive=False)


def _spools(settings: Settings) -> FallbackSpools:
    assert settings.spool_file, "the settings refuse memory beside Redis"
    return FallbackSpools(settings.spool_file, settings.spool_max_bytes)


def open_store(settings: Settings) -> AbstractAsyncContextManager[EventStore]:
    """Return the store that the settings name, to be entered; it connects when first used."""
    prices = open_prices(settings)
    return open_postgres_store(settings.store_url, connections=4, prices=prices)


def open_prices(settings: Settings) -> Prices:
    """Return the prices of model calls; raises SettingsError for a file that cannot be used."""
    own = settings.prices_file and read_price_file(settings.prices_file)
    return Prices(own or None)


def redactor_of(settings: Settings) -> Redactor:
    """Return what replaces personal data; its key is made and kept in `DATA_DIR` if need be.

    Raises SettingsError when the key can be neither read nor kept, and for a wrong REDACTION_FILE.
    """
    return Redactor(redaction_rules_of(settings), kept_pii_key(settings))


def redaction_rules_of(settings: Settings) -> Rules:
    """Return what is replaced and how; raises SettingsError for a wrong REDACTION_FILE."""
    fields, file = settings.pii_field_names, settings.redaction_file
    return read_redaction_file(file, fields) if file else rules_for(fields)


def open_call_ledger(settings: Settings) -> AbstractAsyncContextManager[CallLedger]:
    """Return the ledger of model calls, to be entered by one at a time, who corrects it."""
    return open_postgres_call_ledger(settings.store_url)


def open_roll_ups(settings: Settings) -> AbstractAsyncContextManager[RollUps]:
    """Return the roll-ups, to be entered by one at a time, who makes them anew."""
    return open_postgres_roll_ups(settings.store_url, open_prices(settings))


def open_erasure(settings: Settings) -> AbstractAsyncContextManager[Erasure]:
    """Return what erases, to be entered by one at a time, beside whom nobody corrects."""
    return open_postgres_erasure(settings.store_url)


def open_books(settings: Settings) -> AbstractAsyncContextManager[Books]:
    """Return the books beside the store; to be entered, they connect when first used."""
    return open_postgres_books(settings.store_url, connections=2)


def open_dead_letters(settings: Settings) -> AbstractAsyncContextManager[DeadLetters]:
    """Return the dead letters of the store; to be entered, they connect when first used."""
    return open_postgres_dead_letters(settings.store_url, connections=2)


def open_keys(settings: Settings) -> AbstractAsyncContextManager[KeyStore]:
    """Return the keys beside the store; to be entered, they connect when first used."""
    peppers = Peppers(partial(pepper_of, settings), partial(kept_pepper, settings))
    return open_postgres_keys(settings.store_url, connections=2, peppers=peppers)


def open_audit_outbox(settings: Settings) -> AbstractAsyncContextManager[AuditOutbox]:
    """Return the notes for the audit; to be entered, they connect when first used."""
    return open_postgres_audit_outbox(settings.store_url, connections=2)


def open_retention(settings: Settings) -> AbstractAsyncContextManager[Retention]:
    """Return what removes old events and sums; to be entered, it connects when first used."""
    return open_postgres_retention(settings.store_url)


def open_reader(
    settings: Settings, *, read_seconds: float = READ_SECONDS
) -> AbstractAsyncContextManager[EventReader]:
    """Return the reader of the store that the settings name; it connects when first used.

    `read_seconds` bounds what one question may read where no index answers it.
    """
    return open_postgres_reader(settings.store_url, connections=8, read_seconds=read_seconds)


def open_analytics(settings: Settings) -> AbstractAsyncContextManager[AnalyticsReader]:
    """Return what adds up the events of the store; it connects when first used."""
    return open_postgres_analytics(settings.store_url, connections=4)


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
