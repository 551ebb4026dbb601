"""Notes for the audit, written in the transaction of what they tell of."""

from pathlib import Path
from typing import Any

import aiosql
import asyncpg
import msgspec

from logging_service.audit import Note

_sql: Any = aiosql.from_path(Path(__file__).parent / "sql" / "audit.sql", "asyncpg")


async def note(connection: asyncpg.Connection, *notes: Note) -> None:
    """Keep notes until they are forwarded, in the connection's transaction."""
    for one in notes:
        payload = msgspec.json.encode({**one.actor._asdict(), **one.payload})
        await _sql.add_note(connection, event_type=one.event_type, payload=payload)
