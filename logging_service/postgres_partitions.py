"""The partitions of what comes by time: days for events and their facts, months for the ledger."""

from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import aiosql
import asyncpg
import structlog

_sql: Any = aiosql.from_path(Path(__file__).parent / "sql" / "partitions.sql", "asyncpg")
_log = structlog.get_logger()

# Names that all makers of partitions agree on; any number will do.
_PARTITION_LOCK = 7_260_411_531
# A transaction locks each table that it makes, and others wait for it.
_DAYS_AT_ONCE = 30


async def make_days(connection: asyncpg.Connection, days: Iterable[date]) -> None:
    """Make what these UTC days need, where it is not there; in transactions of its own.

    A day that had events before, and has lost them, is noted as thinned.
    """
    ascending = iter(sorted(set(days)))
    while some := list(islice(ascending, _DAYS_AT_ONCE)):
        async with connection.transaction():
            await connection.execute("SET LOCAL lock_timeout = '4s'")
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _PARTITION_LOCK)
            await _make_some(connection, some)


async def _make_some(connection: asyncpg.Connection, days: list[date]) -> None:
    for day in await _uncovered(connection, "log_events", days):
        await _make(connection, "log_events", f"log_events_p{day:%Y%m%d}", day, _next(day))
        await _sql.mark_thinned(connection, day=day)
    for day in await _uncovered(connection, "event_facts", days):
        await _make(connection, "event_facts", f"event_facts_p{day:%Y%m%d}", day, _next(day))
    for day in await _uncovered(connection, "llm_calls", sorted({d.replace(day=1) for d in days})):
        following = (day + timedelta(days=31)).replace(day=1)
        await _make(connection, "llm_calls", f"llm_calls_p{day:%Y%m}", day, following)


def _next(day: date) -> date:
    return day + timedelta(days=1)


async def _uncovered(
    connection: asyncpg.Connection, parent: str, days: Iterable[date]
) -> list[date]:
    """Return the days whose beginning lies in no partition, whatever the partitions' names."""
    bounds = [
        (row["since"], row["until"]) async for row in _sql.bounds_of(connection, parent=parent)
    ]
    return [day for day in days if not any(s <= _midnight(day) < u for s, u in bounds)]


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


async def _make(
    connection: asyncpg.Connection, parent: str, name: str, since: date, until: date
) -> None:
    free = await _free_name(connection, name)
    # Attaching takes a weaker lock on the parent than CREATE TABLE … PARTITION OF, which would
    # wait for every reader and writer.
    await connection.execute(f"CREATE TABLE {free} (LIKE {parent} INCLUDING ALL)")
    await connection.execute(
        f"ALTER TABLE {parent} ATTACH PARTITION {free} "
        f"FOR VALUES FROM ('{since} 00:00+00') TO ('{until} 00:00+00')"
    )
    _log.info("partition_made", partition=free)


async def _free_name(connection: asyncpg.Connection, name: str) -> str:
    # A table that somebody detached keeps its name.
    for candidate in (name, *(f"{name}_{number}" for number in range(2, 10))):
        if await connection.fetchval("SELECT to_regclass($1)", candidate) is None:
            return candidate
    return name
