"""Databases filled by the product's own way of storing, so that all it adds up is there too."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import uuid4

import asyncpg

from bench.query_events import Batch, Plan, batch_of
from bench.stored import Miscounted
from logging_service.ports import Delivery, Sorted
from logging_service.postgres_sessions import sum_sessions
from logging_service.postgres_store import PostgresStore, open_postgres_store
from logging_service.pricing import Prices
from logging_service.schema import migrate

# About as often as a consumer does it under full load.
_BATCHES_A_FOLD = 20


class Filled(NamedTuple):
    """A database, what is in it, how long that took and how large it is."""

    url: str
    plan: Plan
    seconds: float
    bytes: int


async def fill(url: str, plan: Plan, step: Callable[[int], None]) -> Filled:
    """Store the events of `plan` in an empty database and fold what was added up.

    `step` is told of each so many events. Raises Miscounted when not all are stored.
    """
    began = time.monotonic()
    await migrate(url)
    batches = stored = 0
    async with (
        open_postgres_store(url, connections=1, prices=Prices()) as store,
        aclosing(_batches(plan)) as coming,
    ):
        await store.prepare()
        async for batch in coming:
            stored += await _append(store, batch)
            step(len(batch.elements))
            batches += 1
            if batches % _BATCHES_A_FOLD == 0:
                await store.fold()
        await store.fold()
    if stored != plan.events:
        raise Miscounted(f"{stored} of {plan.events} events were stored")
    seconds = time.monotonic() - began
    return Filled(url, plan, seconds, await _settle(url))


async def _batches(plan: Plan) -> AsyncGenerator[Batch]:
    """Yield every batch; the next is made while the one before is stored."""
    coming = asyncio.create_task(asyncio.to_thread(batch_of, plan, 0))
    try:
        for number in range(plan.batches):
            batch = await coming
            coming = asyncio.create_task(asyncio.to_thread(batch_of, plan, number + 1))
            yield batch
    finally:
        await asyncio.wait({coming})


async def _append(store: PostgresStore, batch: Batch) -> int:
    delivery = Delivery(uuid4(), batch.elements, 1)
    outcome = await store.append(Sorted(delivery, batch.elements, batch.received))
    return outcome.stored


async def _settle(url: str) -> int:
    """Do what the server does by itself in a quiet hour, and return the database's bytes."""
    connection = await asyncpg.connect(url, ssl=False)
    try:
        while await sum_sessions(connection, datetime.now(UTC)):
            pass
        await connection.execute("VACUUM (ANALYZE)")
        size: int = await connection.fetchval("SELECT pg_database_size(current_database())")
    finally:
        await connection.close()
    return size
