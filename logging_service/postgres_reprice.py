"""The ledger of calls in PostgreSQL, for the one who corrects it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import aiosql
import asyncpg

from logging_service.audit import COMMAND_LINE, REPRICED, Note
from logging_service.postgres_notes import note
from logging_service.postgres_sole import note_change, open_sole_connection
from logging_service.repricing import CallKey, Correction, KeptCall, Wanted
from logging_service.usage import Counts, Usage

_sql: Any = aiosql.from_path(Path(__file__).parent / "sql" / "reprice.sql", "asyncpg")

_CALLS_AT_ONCE = 5_000
_LAST_EVENT = UUID(int=2**128 - 1)
# The next calls are always the next of the key, and corrections few; what the planner knows of a
# table that grows may say otherwise, and then each step would sort all that is left.
_BY_KEY = """
SET enable_seqscan = off;
SET enable_bitmapscan = off;
SET enable_sort = off;
SET enable_hashagg = off;
SET enable_hashjoin = off;
SET enable_mergejoin = off;
"""


class PostgresCallLedger:
    """A CallLedger on one connection, which holds the lock against others who reprice."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def count(self, wanted: Wanted) -> int:
        """Return how many calls of any model there are in the time wanted."""
        number: int = await _sql.count_calls(
            self._connection, since=wanted.since, until=wanted.until
        )
        return number

    async def calls(self, wanted: Wanted, after: CallKey | None) -> Sequence[KeptCall]:
        """Return the next calls of any model behind `after`, 5,000 at the most, in order."""
        after = after or CallKey(wanted.since - timedelta(microseconds=1), _LAST_EVENT)
        rows = _sql.next_calls(
            self._connection, **after._asdict(), until=wanted.until, most=_CALLS_AT_ONCE
        )
        return [_call(row) async for row in rows]

    async def record(self, corrections: Sequence[Correction]) -> None:
        """Append entries, and what they change to what is yet to be folded into the roll-ups.

        With a note for the audit.
        """
        await _sql.record_corrections(
            self._connection,
            timestamp=[one.key.timestamp for one in corrections],
            event_id=[one.key.event_id for one in corrections],
            entry=[one.entry for one in corrections],
            unpriced=[one.unpriced for one in corrections],
            cost_nanos=[one.cost_nanos for one in corrections],
            best_nanos=[one.best_nanos for one in corrections],
            price_source=[one.price_source for one in corrections],
            unpriced_reason=[one.unpriced_reason for one in corrections],
        )
        await note_change(self._connection)
        await note(self._connection, _note_of(corrections))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """Yield in a transaction that is committed at the end, or taken back."""
        async with self._connection.transaction():
            yield


def _note_of(corrections: Sequence[Correction]) -> Note:
    difference = Decimal(sum(one.cost_nanos for one in corrections)).scaleb(-9)
    payload = {
        "corrections": len(corrections),
        "first": corrections[0].key.timestamp,
        "last": corrections[-1].key.timestamp,
        "difference_dollars": f"{difference:f}",
    }
    return Note(REPRICED, COMMAND_LINE, payload)


def _call(row: asyncpg.Record) -> KeptCall:
    return KeptCall(
        CallKey(row["timestamp"], row["event_id"]),
        row["entry"],
        Usage(
            provider=row["provider"],
            model=row["model"],
            counts=Counts(*(row[name] for name in Counts._fields)),
            unsplit=row["unsplit"],
            is_told=row["is_told"],
            fault=row["fault"],
            has_media=row["has_media"],
            service=row["service"],
            reported_nanos=row["reported_nanos"],
        ),
        row["cost_nanos"],
    )


@asynccontextmanager
async def open_postgres_call_ledger(url: str) -> AsyncIterator[PostgresCallLedger]:
    """Yield the ledger of calls in the database at `url`.

    Raises LoggingServiceError while another one corrects, BackendUnavailable and SchemaMismatch.
    """
    async with open_sole_connection(url, "reprice") as connection:
        await connection.execute(_BY_KEY)
        yield PostgresCallLedger(connection)
