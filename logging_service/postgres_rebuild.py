"""The roll-ups in PostgreSQL, made anew from the events and the ledger."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiosql
import asyncpg

from logging_service import wire
from logging_service.audit import COMMAND_LINE, REBUILT, Note
from logging_service.entries import FACT_COLUMNS, REVIEW_COLUMNS, Entries
from logging_service.errors import BackendUnavailable
from logging_service.model_calls import CALL_COLUMNS
from logging_service.postgres_ledger import (
    copy_roll_up,
    copy_rows,
    entries_of,
    lock_folding,
)
from logging_service.postgres_notes import note
from logging_service.postgres_partitions import make_days
from logging_service.postgres_sole import note_change, open_sole_connection
from logging_service.pricing import Prices
from logging_service.rebuilding import Rebuilt
from logging_service.rollups import (
    CALL_SUMS,
    DAY_SPAN,
    HOUR_SPAN,
    LLM,
    QUARTER,
    QUARTER_SPAN,
    ROLL_UPS,
    USAGE,
    USER,
    Key,
    RollUp,
    Sums,
    Totals,
    key_of,
)
from logging_service.sketches import smallest

_sql: Any = aiosql.from_path(Path(__file__).parent / "sql" / "rebuild.sql", "asyncpg")

_DAY: Final = timedelta(days=1)
_QUARTER: Final = timedelta(microseconds=QUARTER)
_ROWS_AT_ONCE: Final = 10_000
# Folding takes a second at the most, and goes on every few seconds.
_TRIES: Final = 600
_PAUSE_SECONDS: Final = 0.1


class _Period(NamedTuple):
    since: datetime
    until: datetime


def _period(day: date) -> _Period:
    since = datetime.combine(day, time(), UTC)
    return _Period(since, since + _DAY)


def _quarters(period: _Period) -> Iterable[_Period]:
    for number in range(_DAY // _QUARTER):
        since = period.since + number * _QUARTER
        yield _Period(since, since + _QUARTER)


class PostgresRollUps:
    """The RollUps on one connection, which holds the lock against others who rebuild."""

    def __init__(self, connection: asyncpg.Connection, prices: Prices) -> None:
        self._connection = connection
        self._prices = prices

    async def days(self, since: date | None, until: date | None) -> Sequence[date]:
        """Return the days from `since` to `until`, either included, that can be made anew."""
        rows = _sql.whole_days(self._connection, since=since, until=until)
        return [row["day"] async for row in rows]

    async def count(self, days: Sequence[date]) -> int:
        """Return how many events there are on these days."""
        number = 0
        for day in days:
            number += await _sql.count_events(self._connection, **_period(day)._asdict())
        return number

    async def rebuild(self, day: date, advance: Callable[[int], None], *, keep: bool) -> Rebuilt:
        """Make a day's roll-ups and facts anew, in one transaction, taken back unless `keep`.

        Raises BackendUnavailable when others rewrite roll-ups for a minute on end.
        """
        # Days of before the ledger have no place in it yet, and no partition of facts.
        await make_days(self._connection, [day])
        for _ in range(_TRIES):
            # One that folded between this snapshot and this lock; nothing of it was overwritten.
            with suppress(asyncpg.SerializationError, asyncpg.UniqueViolationError):
                rebuilt = await self._try(day, advance, keep=keep)
                if rebuilt is not None:
                    return rebuilt
            await asyncio.sleep(_PAUSE_SECONDS)
        raise BackendUnavailable(f"rebuild: {day} has to wait, others rewrite the roll-ups")

    async def _try(
        self, day: date, advance: Callable[[int], None], *, keep: bool
    ) -> Rebuilt | None:
        transaction = self._connection.transaction(isolation="repeatable_read")
        await transaction.start()
        rebuilt = None
        try:
            if await lock_folding(self._connection):
                # First of all: a note of another, later on, would end a day of work as a conflict.
                await note_change(self._connection)
                rebuilt = await _Day(self._connection, self._prices, advance).remake(day)
                done = {"day": day, **rebuilt._asdict()}
                await note(self._connection, Note(REBUILT, COMMAND_LINE, done))
        except BaseException:
            # Of a connection that is gone the cause matters.
            with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                await transaction.rollback()
            raise
        await (transaction.commit() if rebuilt and keep else transaction.rollback())
        return rebuilt


class _Day:
    """One day under work, in a transaction that sees all of it as of one moment."""

    def __init__(
        self, connection: asyncpg.Connection, prices: Prices, advance: Callable[[int], None]
    ) -> None:
        self._connection = connection
        self._prices = prices
        self._advance = advance
        self._events = self._calls_added = self._rows = self._differed = 0

    async def remake(self, day: date) -> Rebuilt:
        period = _period(day)
        connection, bounds = self._connection, period._asdict()
        await _sql.stage_calls(connection)
        await _sql.clear_facts(connection, **bounds)
        await _sql.clear_reviews(connection, **bounds)
        waited = {roll_up: await self._waiting(roll_up, period) for roll_up in ROLL_UPS}
        hours = {roll_up: Totals(roll_up) for roll_up in ROLL_UPS}
        for quarter in _quarters(period):
            for totals in await self._totals_of(quarter):
                roll_up = totals.roll_up
                await self._replace(QUARTER_SPAN, quarter, _part(waited[roll_up], quarter), totals)
                _merge(hours[roll_up], totals.by_span(HOUR_SPAN))
        for roll_up, totals in hours.items():
            for span in (HOUR_SPAN, DAY_SPAN):
                waiting = waited[roll_up].by_span(span)
                await self._replace(span, period, waiting, totals.by_span(span))
        return Rebuilt(self._events, self._calls_added, self._rows, self._differed)

    async def _totals_of(self, quarter: _Period) -> tuple[Totals, ...]:
        """Return what the events and the ledger say, with the facts and calls written."""
        usage, users, llm = Totals(USAGE), Totals(USER), Totals(LLM)
        async for rows in self._batches("events", quarter):
            entries = await entries_of([_element(row) for row in rows], self._prices)
            await self._write(entries)
            _merge(usage, entries.usage)
            # What calls cost stands in the ledger: by the prices of now it might be another sum.
            for key, told in entries.users.by_key.items():
                sums = users.of(key)
                sums.events += told.events
                sums.errors += told.errors
                sums.sessions |= told.sessions
            self._events += len(rows)
            self._advance(len(rows))
        start = wire.to_micros(quarter.since)
        async for rows in self._batches("entries", quarter):
            _add_groups(llm, start, rows, _model_of)
            _add_groups(users, start, rows, _user_of)
        return usage, users, llm

    async def _batches(self, name: str, period: _Period) -> AsyncIterator[list[asyncpg.Record]]:
        cursor = await self._connection.cursor(getattr(_sql, name).sql, *period)
        while rows := await cursor.fetch(_ROWS_AT_ONCE):
            yield rows

    async def _write(self, entries: Entries) -> None:
        await copy_rows(self._connection, "event_facts", FACT_COLUMNS, entries.fact_rows)
        await copy_rows(self._connection, "review_facts", REVIEW_COLUMNS, entries.review_rows)
        if entries.calls.rows:
            await copy_rows(self._connection, "found_calls", CALL_COLUMNS, entries.calls.rows)
            self._calls_added += len([row async for row in _sql.add_calls(self._connection)])
            await _sql.clear_calls(self._connection)

    async def _waiting(self, roll_up: RollUp, period: _Period) -> Totals:
        """Take what is yet to be folded."""
        statement = _sql.take_deltas.sql.format(deltas=roll_up.deltas)
        return _read(roll_up, await self._connection.fetch(statement, *period))

    async def _replace(self, span: int, period: _Period, waiting: Totals, totals: Totals) -> None:
        roll_up = totals.roll_up
        statement = _sql.take_rows.sql.format(rollup=roll_up.table)
        before = _read(roll_up, await self._connection.fetch(statement, span, *period))
        _merge(before, waiting)
        await copy_roll_up(self._connection, totals, span)
        self._rows += len(totals.by_key)
        self._differed += sum(
            _said(before, key) != _said(totals, key)
            for key in before.by_key.keys() | totals.by_key.keys()
        )


def _element(row: asyncpg.Record) -> bytes:
    session_id = row["session_id"]
    texts = (
        wire.NULL if session_id is None else wire.column(session_id.encode()),
        wire.column(row["event_type"].encode()),
        wire.column(row["source"].encode()),
        wire.NULL * 3,
    )
    moment = wire.to_micros(row["timestamp"])
    return wire.encode(row["event_id"].int, moment, moment, b"".join(texts), row["payload"])


def _model_of(row: asyncpg.Record) -> tuple[str, ...]:
    return row["source"], row["provider"] or "", row["model"] or ""


def _user_of(row: asyncpg.Record) -> tuple[str, ...]:
    return row["source"], row["user_id"] or ""


def _add_groups(
    totals: Totals,
    start: int,
    rows: Iterable[asyncpg.Record],
    texts_of: Callable[[asyncpg.Record], tuple[str, ...]],
) -> None:
    groups: defaultdict[Key, list[asyncpg.Record]] = defaultdict(list)
    for row in rows:
        groups[(start, *texts_of(row))].append(row)
    for key, group in groups.items():
        sums = totals.of(key)
        sums.add_calls([[row[column] or 0 for column in CALL_SUMS] for row in group])
        timed = [row for row in group if row["duration_us"] is not None]
        failed = sum(row["is_failed"] for row in timed)
        sums.add_times([row["duration_us"] for row in timed], failed)


def _read(roll_up: RollUp, rows: Iterable[asyncpg.Record]) -> Totals:
    totals = Totals(roll_up)
    for row in rows:
        sums = Sums.of(row, roll_up.columns)
        known = totals.by_key.setdefault(key_of(roll_up, row), sums)
        if known is not sums:
            known.add(sums)
    return totals


def _merge(into: Totals, totals: Totals) -> None:
    for key, sums in totals.by_key.items():
        into.of(key).add(sums)


def _part(totals: Totals, period: _Period) -> Totals:
    since, until = map(wire.to_micros, period)
    part = Totals(totals.roll_up)
    part.by_key = {key: sums for key, sums in totals.by_key.items() if since <= key[0] < until}
    return part


def _said(totals: Totals, key: Key) -> list[Any] | None:
    """Return what the row of a key says, the same for every order in which it was added up."""
    sums = totals.by_key.get(key)
    if sums is None:
        return None
    said: list[Any] = list(sums.calls)
    for column in totals.roll_up.columns:
        if column not in CALL_SUMS:
            value = getattr(sums, column)
            said.append(smallest(value) if isinstance(value, set) else value)
    return said


@asynccontextmanager
async def open_postgres_roll_ups(url: str, prices: Prices) -> AsyncIterator[PostgresRollUps]:
    """Yield the roll-ups in the database at `url`; calls that the ledger lacks get `prices`.

    Raises LoggingServiceError while another one corrects, BackendUnavailable and SchemaMismatch.
    """
    async with open_sole_connection(url, "rebuild") as connection:
        yield PostgresRollUps(connection, prices)
