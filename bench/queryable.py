"""Milliseconds from an event's 202 to the first SELECT that sees it, at a steady rate."""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import asyncpg

from bench.figures import Queryable, percentile
from bench.generator import Generator, Pace, Render, a_generator
from bench.servers import Pipeline
from bench.sheet import Sheet
from bench.stored import Miscounted, accepted_of

PER_SECOND = 1_000
CONNECTIONS = 8
TIMES = 3.0
_SEED = 3
_WARM_UP_SECONDS = 1.0
_ASK_SECONDS = 0.001
_LATEST_SECONDS = 10.0
_MILLISECOND = timedelta(milliseconds=1)


async def measure_queryable(
    pipeline: Pipeline, seconds: float, sheet: Sheet, step: Callable[[float], None]
) -> Queryable:
    """Post events evenly, and watch the table for each from a connection of its own."""
    await pipeline.empty()
    async with a_generator() as generator:
        await _delays(pipeline, generator, _WARM_UP_SECONDS, sheet)
        step(_WARM_UP_SECONDS)
        delays = await _delays(pipeline, generator, seconds, sheet)
        step(seconds)
    delays.sort()
    p50, p99 = (round(percentile(delays, percent) * 1000, 1) for percent in (50, 99))
    return Queryable(p50, p99)


async def _delays(
    pipeline: Pipeline, generator: Generator, seconds: float, sheet: Sheet
) -> list[float]:
    number = round(seconds * PER_SECOND)
    # Each event is of its own millisecond: by that the watcher knows it again.
    first_millis = time.time_ns() // 1_000_000
    await generator.render(Render(pipeline.api_key, number, _SEED, first_millis=first_millis))
    first = datetime.fromtimestamp(0, UTC) + first_millis * _MILLISECOND
    pacing = asyncio.create_task(
        generator.send(Pace(pipeline.producer.port, CONNECTIONS, PER_SECOND))
    )
    try:
        seen = await _watch(pipeline.database, first, number, seconds + _LATEST_SECONDS)
        outcome = await pacing
    finally:
        pacing.cancel()
    if accepted_of(outcome) != number:
        raise Miscounted(f"{number} events were sent, {outcome.statuses} answered")
    sheet.add_rounds("events/s while watching", [number / outcome.seconds])
    return between(outcome.answered_at, seen)


def between(answered_at: Sequence[float], seen_at: Sequence[float]) -> list[float]:
    """Return the seconds from each answer to each sight, never less than none."""
    pairs = zip(answered_at, seen_at, strict=True)
    return [max(0.0, seen - answered) for answered, seen in pairs]


async def _watch(
    database: asyncpg.Connection, first: datetime, number: int, seconds: float
) -> list[float]:
    """Return when each of `number` events was first seen, one a millisecond from `first` on.

    Asks from the oldest event on that is missing, so that a look reads a few rows of the index.
    """
    look = await database.prepare(
        "SELECT timestamp FROM log_events WHERE timestamp >= $1 AND timestamp < $2"
    )
    seen, oldest, end = [0.0] * number, 0, first + number * _MILLISECOND
    until = time.monotonic() + seconds
    while oldest < number:
        rows = await look.fetch(first + oldest * _MILLISECOND, end)
        now = time.monotonic()
        if now > until:
            raise Miscounted(f"of {number} events some were not stored {_LATEST_SECONDS:.0f} s on")
        for row in rows:
            place = round((row[0] - first) / _MILLISECOND)
            seen[place] = seen[place] or now
        while oldest < number and seen[oldest]:
            oldest += 1
        await asyncio.sleep(_ASK_SECONDS)
    return seen
