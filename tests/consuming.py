"""A consumer in the test's own process, and what a test asks of the servers around it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import asyncpg
from redis.asyncio import Redis

from logging_service.delivering import Consumer, Limits
from logging_service.ports import EventQueue
from logging_service.postgres_books import open_postgres_books
from logging_service.postgres_store import open_postgres_store
from logging_service.redis_queue import RedisQueue, open_redis_queue

LIMITS = Limits(batch_size=100, ttl_seconds=3600, dead_letter_max_ratio=1)


def log_queue(
    redis_url: str, *, lease_seconds: float = 30
) -> AbstractAsyncContextManager[RedisQueue]:
    """The queue as the services open it, of a server that may take its time."""
    return open_redis_queue(
        redis_url,
        name="log_queue",
        ttl_seconds=3600,
        timeout_ms=2000,
        lease_seconds=lease_seconds,
    )


@asynccontextmanager
async def a_consumer(
    queue: EventQueue, database_url: str, stopping: asyncio.Event, limits: Limits = LIMITS
) -> AsyncIterator[Consumer]:
    """A consumer that does not run yet."""
    async with (
        open_postgres_store(database_url, connections=4) as store,
        open_postgres_books(database_url, connections=1) as books,
    ):
        yield Consumer(queue, store, books, stopping, limits)


@asynccontextmanager
async def consuming(
    redis_url: str, database_url: str, limits: Limits = LIMITS
) -> AsyncIterator[tuple[Consumer, asyncio.Task[None]]]:
    """A consumer that runs, with leases of two seconds, ended as a signal would end it."""
    stopping = asyncio.Event()
    async with (
        log_queue(redis_url, lease_seconds=2) as queue,
        a_consumer(queue, database_url, stopping, limits) as consumer,
    ):
        task = asyncio.create_task(consumer.run())
        try:
            yield consumer, task
        finally:
            stopping.set()
            await asyncio.wait_for(task, 20)


async def until(holds: Callable[[], object], seconds: float = 20) -> None:
    """Wait until `holds()`, awaited if need be, is true."""
    end = time.monotonic() + seconds
    while True:
        outcome = holds()
        if asyncio.iscoroutine(outcome):
            outcome = await outcome
        if outcome:
            return
        assert time.monotonic() < end, "it did not come about in time"
        await asyncio.sleep(0.05)


async def count(database: asyncpg.Connection, table: str = "log_events") -> int:
    number: int = await database.fetchval(f"SELECT count(*) FROM {table}")
    return number


async def told(database: asyncpg.Connection) -> tuple[int, ...]:
    """What the deliveries say was stored, duplicate, dead-lettered and expired, in all."""
    row = await database.fetchrow(
        "SELECT coalesce(sum(stored), 0), coalesce(sum(duplicates), 0),"
        " coalesce(sum(dead_lettered), 0), coalesce(sum(expired), 0) FROM deliveries"
    )
    return tuple(map(int, row))


async def is_empty(redis: Redis) -> bool:
    waiting: int = await redis.llen("log_queue")
    leased: int = await redis.zcard("{log_queue}:leases")
    return waiting == 0 and leased == 0


async def end_leases(redis: Redis) -> None:
    """Let every lease run out now."""
    leases: Any = await redis.zrange("{log_queue}:leases", 0, -1)
    for lease in leases:
        await redis.zadd("{log_queue}:leases", {lease: 1})
