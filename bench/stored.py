"""Events a second from HTTP into the table, against `COPY` of the same rows by one client."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import asyncpg

from bench.figures import Stored, ratio_of
from bench.generator import Drive, Generator, Render, a_generator
from bench.load import Outcome, around
from bench.rows import bodies, copy_buffer
from bench.servers import Pipeline
from bench.sheet import Sheet
from logging_service import wire

BATCH = 500
CONNECTIONS = 8
ROUNDS = 3
# A round fills the table with what a busy hour brings: an index that fits no cache is slower.
TIMES = 2.0
_BATCHES_A_COPY = 10
_BATCHES = 440
_SEED = 1
_ASK_SECONDS = 0.01
_DRAIN_SECONDS = 60.0


class Miscounted(Exception):
    """What is stored is not what was accepted: the figures mean nothing."""


async def measure_stored(
    pipeline: Pipeline, seconds: float, sheet: Sheet, step: Callable[[float], None]
) -> Stored:
    """Take turns: post for `seconds` and wait for the last row, `COPY` as many rows."""
    async with a_generator() as generator:
        texts, _ = await asyncio.gather(
            asyncio.to_thread(bodies, _SEED, _BATCHES, BATCH),
            generator.render(Render(pipeline.api_key, _BATCHES, _SEED, size=BATCH)),
        )
        reference = Reference(pipeline.reference, texts)
        # The first round makes the files of the log that the others find made: it does not count.
        rounds = [
            await _round(pipeline, generator, reference, seconds, step) for _ in range(ROUNDS + 1)
        ][1:]
    for one in rounds:
        one.tell(sheet)
    ours, theirs = [one.ours for one in rounds], [one.theirs for one in rounds]
    sheet.add_generator("stored", [one.busy for one in rounds])
    sheet.add_rounds("stored, events/s", ours)
    sheet.add_rounds("COPY, rows/s", theirs)
    return Stored(*ratio_of(ours, theirs))


@dataclass(frozen=True)
class _Round:
    events: int
    ours: float
    theirs: float
    busy: float
    cpu_seconds: Sequence[Mapping[str, float]]

    def tell(self, sheet: Sheet) -> None:
        before, between, after = self.cpu_seconds
        sheet.add_cpu("stored", before, between, self.events)
        sheet.add_cpu("COPY", between, after, self.events)


async def _round(
    pipeline: Pipeline,
    generator: Generator,
    reference: "Reference",
    seconds: float,
    step: Callable[[float], None],
) -> _Round:
    await pipeline.empty()
    before = pipeline.cpu_seconds()
    events, ours, outcome = await _post(pipeline, generator, seconds)
    between = pipeline.cpu_seconds()
    step(seconds)
    theirs = await reference.copy(events)
    step(seconds)
    cpu_seconds = (before, between, pipeline.cpu_seconds())
    return _Round(events, ours, theirs, outcome.busy, cpu_seconds)


class Reference:
    """A table like ours, and the one client that copies into it."""

    def __init__(self, connection: asyncpg.Connection, texts: Sequence[bytes]) -> None:
        self._connection = connection
        self._texts = texts

    async def copy(self, events: int) -> float:
        """Copy about as many rows, a transaction per 5,000, and return how many a second.

        What is copied is made between the transactions, while the clock stands still.
        """
        source, seconds = around(self._texts), 0.0
        for place in range(max(1, events // (BATCH * _BATCHES_A_COPY))):
            texts = list(islice(source, _BATCHES_A_COPY))
            buffer = memoryview(copy_buffer(texts, wire.now_micros() + place))
            began = time.monotonic()
            await self._connection.copy_to_table(
                "log_events", source=buffer, columns=wire.COLUMNS, format="binary"
            )
            seconds += time.monotonic() - began
        rows: int = await self._connection.fetchval("SELECT count(*) FROM log_events")
        await self._connection.execute("TRUNCATE log_events")
        return rows / seconds


async def _post(
    pipeline: Pipeline, generator: Generator, seconds: float
) -> tuple[int, float, Outcome]:
    """Return how many events were stored, how many a second, and what the generator saw."""
    outcome = await generator.send(Drive(pipeline.producer.port, CONNECTIONS, seconds))
    accepted = BATCH * accepted_of(outcome)
    ended = await until_stored(pipeline, accepted)
    rows = await pipeline.rows()
    if rows != accepted:
        raise Miscounted(f"{accepted} events were accepted, {rows} are stored")
    return accepted, accepted / (ended - outcome.began), outcome


def accepted_of(outcome: Outcome) -> int:
    """Return how many requests were answered 202; raises Miscounted if any was not."""
    if set(outcome.statuses) != {"202"}:
        raise Miscounted(f"answers other than 202: {outcome.statuses}")
    return outcome.statuses["202"]


async def until_stored(pipeline: Pipeline, expected: int) -> float:
    """Return the time at which `expected` events could be queried."""
    until = time.monotonic() + _DRAIN_SECONDS
    while True:
        stored = await pipeline.stored()
        now = time.monotonic()
        if stored >= expected:
            return now
        if now > until:
            raise Miscounted(f"{expected} events were accepted, {stored} stored a minute later")
        await asyncio.sleep(_ASK_SECONDS)
