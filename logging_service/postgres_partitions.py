"""The partitions of what comes by time, made by the database's owner whoever asks for them."""

from collections.abc import Iterable
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import aiosql
import asyncpg
import structlog

_sql: Any = aiosql.from_path(Path(__file__).parent / "sql" / "partitions.sql", "asyncpg")
_log = structlog.get_logger()

# A transaction locks each table that it makes, and others wait for it.
_DAYS_AT_ONCE = 30


async def make_days(connection: asyncpg.Connection, days: Iterable[date]) -> None:
    """Make what these UTC days need, where it is not there; in transactions of its own.

    A day that had events before, and has lost them, is noted as thinned.
    """
    ascending = iter(sorted(set(days)))
    while some := list(islice(ascending, _DAYS_AT_ONCE)):
        if made := await _sql.make_partitions(connection, days=some):
            first, last = str(some[0]), str(some[-1])
            _log.info("partitions_made", partitions=len(made), first_day=first, last_day=last)
