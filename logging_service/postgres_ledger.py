"""Facts, ledger and roll-ups in PostgreSQL: written with the events, folded afterwards."""

import asyncio
import time
from collections.abc import Sequence

import asyncpg

from logging_service import wire
from logging_service.entries import FACT_COLUMNS, REVIEW_COLUMNS, Entries
from logging_service.model_calls import CALL_COLUMNS
from logging_service.pricing import Prices
from logging_service.rollups import (
    LLM,
    ROLL_UPS,
    SPANS,
    USAGE,
    USER,
    Key,
    RollUp,
    Sums,
    Totals,
    added_up,
    columns_of,
    key_of,
)
from logging_service.statement_parts import parts_of

_SQL = parts_of("roll_ups.sql")

_COPY_BEGIN = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
_COPY_END = b"\xff\xff"
# They keep what an event said longer than the event itself is kept.
_BY_EVENT = ("llm_calls", "review_facts")
# Adding up is work for the processor: others have a turn in between.
_AT_ONCE, _LEAST_AT_ONCE = 5_000, 100
_TURN_SECONDS = 0.1
# A row by event type may have 64 KiB of hashes.
_MOST_TURNS = 50
_FOLDED_AT_ONCE = {USAGE: 500, USER: 20_000, LLM: 20_000}

# Names that all who fold or rebuild agree on; any number will do.
_FOLD_LOCK = 7_260_411_533


async def entries_of(elements: Sequence[bytes], prices: Prices) -> Entries:
    """Return the entries of elements that passed `wire.check`, letting others work meanwhile."""
    entries, start, number = Entries(prices), 0, _AT_ONCE
    while start < len(elements):
        began = time.monotonic()
        entries.add(elements[start : start + number])
        start += number
        # A model that nobody has seen before is looked for a while.
        is_slow = time.monotonic() - began > _TURN_SECONDS
        number = max(number // 4, _LEAST_AT_ONCE) if is_slow else min(number * 2, _AT_ONCE)
        await asyncio.sleep(0)
    return entries


class CountedBefore(Exception):
    """An entry is there already: its event was removed by age, and has come again."""


async def write(connection: asyncpg.Connection, entries: Entries) -> None:
    """Write the entries of events, in the transaction in which these are inserted.

    Raises CountedBefore when some are there already.
    """
    await copy_rows(connection, "event_facts", FACT_COLUMNS, entries.fact_rows)
    try:
        await copy_rows(connection, "llm_calls", CALL_COLUMNS, entries.calls.rows)
        await copy_rows(connection, "review_facts", REVIEW_COLUMNS, entries.review_rows)
    except asyncpg.UniqueViolationError as error:
        raise CountedBefore from error
    for totals in (entries.usage, entries.users, entries.calls.llm):
        await copy_deltas(connection, totals)


async def counted_before(connection: asyncpg.Connection, elements: Sequence[bytes]) -> set[bytes]:
    """Return the `wire.key_of` of those that have their entries already, whatever these say."""
    made = [wire.decode(element) for element in elements]
    moments = [wire.from_micros(event.timestamp) for event in made]
    ids = [event.event_id for event in made]
    return {
        wire.key(*row)
        for table in _BY_EVENT
        for row in await connection.fetch(_SQL["keys_in"].format(table=table), moments, ids)
    }


async def copy_rows(
    connection: asyncpg.Connection, table: str, columns: Sequence[str], rows: Sequence[bytes]
) -> None:
    """Copy rows in PostgreSQL's binary form, without a header, into a table."""
    if rows:
        await _copy(connection, table, columns, b"".join((_COPY_BEGIN, *rows, _COPY_END)), "binary")


async def copy_deltas(connection: asyncpg.Connection, totals: Totals) -> None:
    """Add sums to what waits to be folded; they count from the commit on."""
    if totals.by_key:
        roll_up = totals.roll_up
        await _copy(connection, roll_up.deltas, columns_of(roll_up), totals.rows(), "text")


async def copy_roll_up(connection: asyncpg.Connection, totals: Totals, span: int) -> None:
    """Put rows of a span in minutes into a roll-up that has none of their keys."""
    if totals.by_key:
        roll_up = totals.roll_up
        columns = ("span", *columns_of(roll_up))
        await _copy(connection, roll_up.table, columns, totals.rows(span), "text")


async def _copy(
    connection: asyncpg.Connection, table: str, columns: Sequence[str], rows: bytes, form: str
) -> None:
    # asyncpg takes plain bytes for a file's name.
    await connection.copy_to_table(table, source=memoryview(rows), columns=columns, format=form)


async def lock_folding(connection: asyncpg.Connection) -> bool:
    """Take the right to rewrite roll-ups until the transaction ends; False when another has it."""
    taken: bool = await connection.fetchval(_SQL["lock_folding"], _FOLD_LOCK)
    return taken


async def fold(connection: asyncpg.Connection) -> None:
    """Move what waits into the roll-ups, unless another does so at this moment.

    Answers are the same before and afterwards: it makes them cheaper.
    """
    # By turns: users without number hold up none of the others.
    waiting = list(ROLL_UPS)
    for _ in range(_MOST_TURNS):
        for roll_up in list(waiting):
            most = _FOLDED_AT_ONCE[roll_up]
            async with connection.transaction():
                if not await lock_folding(connection):
                    return
                moved = await _fold_some(connection, roll_up, most)
            if moved:
                # The next ones write where these were.
                await connection.execute(f"VACUUM (SKIP_LOCKED) {roll_up.deltas}")
            if moved < most:
                waiting.remove(roll_up)


async def _fold_some(connection: asyncpg.Connection, roll_up: RollUp, most: int) -> int:
    deltas, moved = Totals(roll_up), 0
    keys = ", ".join(("bucket", *roll_up.keys))
    take = _SQL["take_deltas"].format(deltas=roll_up.deltas, keys=keys, sums=added_up(roll_up))
    for row in await connection.fetch(take, most):
        deltas.by_key[key_of(roll_up, row)] = Sums.of(row, roll_up.columns)
        moved += row["rows"]
    await asyncio.sleep(0)
    for span in SPANS:
        totals = deltas.by_span(span)
        if totals.by_key:
            for row in await take_rows(connection, roll_up, span, list(totals.by_key)):
                totals.of(key_of(roll_up, row)).add(Sums.of(row, roll_up.columns))
            await copy_roll_up(connection, totals, span)
    return moved


async def take_rows(
    connection: asyncpg.Connection, roll_up: RollUp, span: int, keys: Sequence[Key]
) -> list[asyncpg.Record]:
    """Take the rows of a span that are there under these keys out of a roll-up."""
    await connection.execute(_SQL["look_up"])
    keyed = ("bucket", *roll_up.keys)
    types = ("timestamptz[]", *("text[]" for _ in roll_up.keys))
    buckets, *texts = (list(values) for values in zip(*keys, strict=True))
    take = _SQL["take_rows"].format(
        table=roll_up.table,
        columns=", ".join(keyed),
        values=", ".join(f"${number}::{each}" for number, each in enumerate(types, 2)),
        same=" AND ".join(f"kept.{column} = wanted.{column}" for column in keyed),
    )
    rows: list[asyncpg.Record] = await connection.fetch(
        take, span, list(map(wire.from_micros, buckets)), *texts
    )
    return rows
