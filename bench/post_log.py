"""Answers a second of `POST /log`, against an empty application on the same server."""

import asyncio
import statistics
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.figures import PostLog, ratio_of
from bench.generator import Drive, Generator, Render, a_generator
from bench.load import Outcome
from bench.servers import Pipeline, unused_port
from bench.sheet import Sheet
from bench.stored import Miscounted, accepted_of, until_stored

CONNECTIONS = 64
ROUNDS = 5
_REQUESTS = 20_000
_SEED = 2
_WARM_UP_SECONDS = 1.0
_CEILING_SECONDS = 1.5
_DRAIN_SECONDS = 60.0


async def measure_post_log(
    pipeline: Pipeline, seconds: float, sheet: Sheet, step: Callable[[float], None]
) -> PostLog:
    """Take turns: the empty application, the producer alone, the producer beside its consumer.

    The figure is the producer alone; the last is on the sheet. Where every processor is taken, a
    running consumer tells how the processors are shared out, not what the route costs.
    """
    empty: list[Outcome] = []
    ours: list[Outcome] = []
    beside: list[Outcome] = []
    async with a_generator() as generator:
        await generator.render(Render(pipeline.api_key, _REQUESTS, _SEED))
        for port in (pipeline.empty_app.port, pipeline.producer.port):
            await generator.send(Drive(port, CONNECTIONS, min(seconds, _WARM_UP_SECONDS)))
            step(_WARM_UP_SECONDS)
        for _ in range(ROUNDS):
            await _drained(pipeline)
            order = Drive(pipeline.empty_app.port, CONNECTIONS, seconds)
            empty.append(await generator.send(order))
            step(seconds)
            ours.append(await _drive_alone(pipeline, generator, seconds, sheet))
            step(seconds)
            beside.append(await _drive_beside(pipeline, generator, seconds))
            step(seconds)
        ceiling = await _ceiling(generator, min(seconds, _CEILING_SECONDS))
        step(_CEILING_SECONDS)
    sheet.add_generator("POST /log", [outcome.busy for outcome in ours])
    sheet.add_generator("the empty application", [outcome.busy for outcome in empty])
    sheet.ceiling = round(ceiling)
    sheet.add_rounds("POST /log, requests/s", _rates(ours))
    sheet.add_rounds("the empty application, requests/s", _rates(empty))
    sheet.add_rounds("POST /log beside its consumer, requests/s", _rates(beside))
    return PostLog(
        *ratio_of(_rates(ours), _rates(empty)),
        p50_ms=round(statistics.median(outcome.p50_ms for outcome in ours), 2),
        p99_ms=round(statistics.median(outcome.p99_ms for outcome in ours), 2),
    )


def _rates(outcomes: Sequence[Outcome]) -> list[float]:
    return [accepted_of(outcome) / outcome.seconds for outcome in outcomes]


async def _drive_alone(
    pipeline: Pipeline, generator: Generator, seconds: float, sheet: Sheet
) -> Outcome:
    """Let the consumer stand still meanwhile; every accepted event has to be in the queue."""
    pipeline.consumer.pause()
    try:
        cpu = pipeline.cpu_seconds()
        outcome = await generator.send(Drive(pipeline.producer.port, CONNECTIONS, seconds))
        accepted = accepted_of(outcome)
        sheet.add_cpu("POST /log", cpu, pipeline.cpu_seconds(), accepted)
        waiting = await pipeline.waiting()
        if waiting != accepted:
            raise Miscounted(f"{accepted} events were accepted, {waiting} wait in the queue")
        await pipeline.empty()
    finally:
        pipeline.consumer.resume()
    return outcome


async def _drive_beside(pipeline: Pipeline, generator: Generator, seconds: float) -> Outcome:
    outcome = await generator.send(Drive(pipeline.producer.port, CONNECTIONS, seconds))
    await until_stored(pipeline, accepted_of(outcome))
    return outcome


async def _drained(pipeline: Pipeline) -> None:
    until = time.monotonic() + _DRAIN_SECONDS
    while left := await pipeline.unfinished():
        if time.monotonic() > until:
            raise Miscounted(f"{left} events still wait")
        await asyncio.sleep(0.05)
    await pipeline.empty()


async def _ceiling(generator: Generator, seconds: float) -> float:
    """Return how many answers a second the generator gets from a server that does nothing."""
    port = unused_port()
    script = str(Path(__file__).with_name("echo_server.py"))
    server = await asyncio.create_subprocess_exec(
        sys.executable, script, str(port), stdin=PIPE, start_new_session=True
    )
    try:
        await _opened(port)
        outcome = await generator.send(Drive(port, CONNECTIONS, seconds))
    finally:
        server.kill()
        await server.wait()
    return outcome.answered / outcome.seconds


async def _opened(port: int) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return
