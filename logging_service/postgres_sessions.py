"""What sessions did in each hour, in PostgreSQL: added up when the hour is over."""

import time
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Final

import asyncpg

from logging_service.postgres_ledger import lock_folding
from logging_service.statement_parts import parts_of

_SQL: Final = parts_of("sessions.sql")

HOURS: Final = _SQL["hours"]
"""The statement for the hours between two times, the newest first, and whether each `is_right`."""

_HOUR: Final = timedelta(hours=1)
# Most of what comes late has come by then.
_CLOSED_AFTER: Final = timedelta(minutes=15)
_LOOK_BACK: Final = timedelta(days=31)
# An hour with more of them is not worth the memory: who asks for its sessions waits.
_MOST_EVENTS: Final = 500_000
_FORGOTTEN_AT_ONCE: Final = 24
_TURN_SECONDS: Final = 1.0


async def sum_sessions(connection: asyncpg.Connection, now: datetime) -> int:
    """Add up hours that are over, for about a second, and return how many; 0 when none is left.

    Those of the last 31 days are made, the newest first; anew where events came late or what was
    counted has changed; and forgotten where the events are gone. Answers are the same before and
    afterwards: it makes them cheaper.
    """
    over = (now - _CLOSED_AFTER).replace(minute=0, second=0, microsecond=0)
    began, made = time.monotonic(), 0
    # Of one that folded, added up or noted a change meanwhile: the next turn has the rest.
    with suppress(
        asyncpg.SerializationError, asyncpg.UniqueViolationError, asyncpg.LockNotAvailableError
    ):
        await _forget_gone(connection)
        for hour, facts in await _due(connection, over - _LOOK_BACK, over):
            made += await _make(connection, hour, facts)
            if time.monotonic() - began > _TURN_SECONDS:
                break
    return made


async def _forget_gone(connection: asyncpg.Connection) -> None:
    async with connection.transaction():
        if await lock_folding(connection):
            rows = await connection.fetch(_SQL["gone_hours"], _FORGOTTEN_AT_ONCE)
            await connection.execute(_SQL["forget_hours"], [row["hour"] for row in rows])


async def _due(
    connection: asyncpg.Connection, since: datetime, until: datetime
) -> list[tuple[datetime, int]]:
    """Return the hours that are to be made, the newest first, each with its partition of facts."""
    facts = await connection.fetch(_SQL["facts"])
    return [
        (row["hour"], one["facts"])
        for row in await connection.fetch(HOURS, since, until)
        if not (row["is_right"] or row["is_thinned"]) and row["events"] <= _MOST_EVENTS
        for one in facts
        if one["since"] <= row["hour"] < one["until"]
    ]


async def _make(connection: asyncpg.Connection, hour: datetime, facts: int) -> int:
    """Add an hour up anew; return 0 when another folds at this moment, or has just done it."""
    async with connection.transaction(isolation="repeatable_read"):
        # Two who add up different hours at once would both find their sessions alone.
        await connection.execute(_SQL["lock_sums"])
        if not await lock_folding(connection):
            return 0
        row = await connection.fetchrow(HOURS, hour, hour + _HOUR)
        if row is None or row["is_right"]:
            return 0
        await connection.execute(_SQL["look_up"])
        await connection.execute(_SQL["forget_hours"], [hour])
        await connection.execute(_SQL["add_hour"], hour)
        await connection.execute(_SQL["note_hour"], hour, row["events"], facts)
    return 1
