"""Rows of `log_events` for tests, stored as they are, whatever a producer would say to them."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import asyncpg

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


class Row(NamedTuple):
    """What stands in the table; the defaults are what a test is not about."""

    event_id: UUID
    timestamp: datetime
    received_at: datetime = NOON
    event_type: str = "review_started"
    session_id: str | None = "s1"
    source: str = "tests"
    trace_id: str | None = None
    request_id: str | None = None
    payload: bytes = b"{}"


def uuid7_of(moment: datetime) -> UUID:
    """Return an id that is a UUIDv7 of `moment`."""
    millis = int(moment.timestamp() * 1000)
    return UUID(int=millis << 80 | 7 << 76 | (uuid4().int & (2**62 - 1)) | 2 << 62)


def a_row(seconds: float = 0, *, event_id: UUID | None = None, **fields: Any) -> Row:
    """Return a row `seconds` after NOON."""
    moment = NOON + timedelta(seconds=seconds)
    return Row(event_id or uuid7_of(moment), moment, **fields)


async def store_rows(url: str, rows: Sequence[Row]) -> None:
    """Store `rows`, with the partitions that they need."""
    connection = await asyncpg.connect(url)
    try:
        await connection.set_type_codec(
            "json", schema="pg_catalog", encoder=bytes, decoder=bytes, format="binary"
        )
        await _make_partitions(connection, {row.timestamp.date() for row in rows})
        await connection.copy_records_to_table("log_events", records=rows, columns=Row._fields)
    finally:
        await connection.close()


async def _make_partitions(connection: asyncpg.Connection, days: Iterable[Any]) -> None:
    for day in days:
        await connection.execute(
            f"CREATE TABLE IF NOT EXISTS log_events_p{day:%Y_%m_%d} PARTITION OF log_events"
            f" FOR VALUES FROM ('{day} 00:00+00') TO ('{day + timedelta(days=1)} 00:00+00')"
        )
