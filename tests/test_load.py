"""A load run: events through `POST /logs`, each of which has to be stored once.

As a script it prints a report: of services that it starts for itself or, with `--url` or
LOGGING_SERVICE_URL, of the ones that run there (with the database that the settings name).
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg
import pytest
from rich.console import Console
from rich.progress import Progress

from bench.load import Outcome, ServerSilent, drive
from bench.rows import EventMaker, http_request
from bench.servers import a_pipeline
from logging_service.errors import LoggingServiceError
from logging_service.logs import configure_logs
from logging_service.settings import Settings, load_settings

BATCH = 500
CONNECTIONS = 4
_MOST_SECONDS = 600.0


@dataclass(frozen=True)
class Target:
    """A producer, and the database that its events end up in."""

    host: str
    port: int
    api_key: str
    database_url: str


class Load:
    """Makes the requests of a run while they are sent, and knows the ids of their events."""

    def __init__(self, target: Target, events: int) -> None:
        self.ids: list[UUID] = []
        self._target = target
        self._batches = events // BATCH
        self._maker = EventMaker(seed=time.time_ns())

    def requests(self, told: Callable[[int], None]) -> Iterator[bytes]:
        """Yield the batches, the first of them a second time at the end."""
        first = b""
        for _ in range(self._batches):
            millis = time.time_ns() // 1_000_000
            ids = [self._maker.event_id(millis) for _ in range(BATCH)]
            body = b"[" + b",".join(map(self._maker.event, ids)) + b"]"
            self.ids += ids
            first = first or body
            yield http_request("/logs", body, self._target.api_key)
            told(BATCH)
        # A client that did not hear the answer sends the same again.
        yield http_request("/logs", first, self._target.api_key)

    def send(self, told: Callable[[int], None] = lambda _: None) -> Outcome:
        """Send everything and return what was answered."""
        target, requests = self._target, self.requests(told)
        return drive(target.port, CONNECTIONS, requests, _MOST_SECONDS, target.host)

    async def stored(self) -> tuple[int, int]:
        """Return how many rows the events of this run have, and how many events have one."""
        connection = await asyncpg.connect(self._target.database_url)
        try:
            row = await connection.fetchrow(
                "SELECT count(*), count(DISTINCT event_id) FROM log_events"
                " WHERE timestamp > now() - interval '1 hour' AND event_id = ANY ($1::uuid[])",
                self.ids,
            )
            return row[0], row[1]
        finally:
            await connection.close()

    async def until_stored(self, seconds: float) -> tuple[int, int]:
        """Wait up to `seconds` for the last event, and return what `stored` says then."""
        until = time.monotonic() + seconds
        rows, events = await self.stored()
        while events < len(self.ids) and time.monotonic() < until:
            await asyncio.sleep(0.2)
            rows, events = await self.stored()
        return rows, events


@dataclass(frozen=True)
class Report:
    """What a run found."""

    sent: int
    outcome: Outcome
    rows: int
    events: int
    stored_seconds: float

    @property
    def good(self) -> bool:
        return set(self.outcome.statuses) == {"202"} and self.rows == self.events == self.sent

    def __str__(self) -> str:
        seconds = self.outcome.seconds
        return "\n".join(
            (
                f"sent       {self.sent:,} events in batches of {BATCH}, the first batch twice",
                f"answers    {self.outcome.statuses}",
                f"accepted   {self.sent / seconds:,.0f} events/s",
                f"a batch    p50 {self.outcome.p50_ms:.1f} ms, p99 {self.outcome.p99_ms:.1f} ms",
                f"stored     {self.sent / self.stored_seconds:,.0f} events/s, to the last row",
                f"missing    {self.sent - self.events}",
                f"doubled    {self.rows - self.events}",
            )
        )


async def report_of(target: Target, events: int) -> Report:
    load = Load(target, events)
    with Progress(console=Console(stderr=True), transient=True, refresh_per_second=2) as progress:
        task = progress.add_task("sending", total=events)
        began = time.monotonic()
        outcome = await asyncio.to_thread(load.send, lambda number: progress.advance(task, number))
        progress.update(task, description="storing", total=None)
        rows, stored = await load.until_stored(60)
    return Report(len(load.ids), outcome, rows, stored, time.monotonic() - began)


def a_target(environment: Mapping[str, str]) -> Target:
    port, key = int(environment["PRODUCER_PORT"]), environment["API_KEY"]
    return Target("127.0.0.1", port, key, environment["DATABASE_URL"])


async def test_every_accepted_event_is_stored_once(environment: dict[str, str]) -> None:
    from servers import run_service  # noqa: PLC0415 - not there when this file is a script

    with run_service("consumer", environment), run_service("producer", environment):
        load = Load(a_target(environment), 5_000)
        outcome = await asyncio.to_thread(load.send)
        assert outcome.statuses == {"202": 11}
        assert await load.until_stored(30) == (5_000, 5_000)


@pytest.mark.load
async def test_a_million_events_survive_killed_consumers(
    environment: dict[str, str], request: pytest.FixtureRequest
) -> None:
    from servers import run_service  # noqa: PLC0415 - not there when this file is a script

    if "load" not in request.config.getoption("markexpr"):
        pytest.skip("takes minutes: run with -m load")
    load = Load(a_target(environment), 1_000_000)
    with run_service("producer", environment | {"RATE_LIMIT": "1000000/minute"}):
        sending = asyncio.create_task(asyncio.to_thread(load.send))
        for _ in range(2):
            with run_service("consumer", environment) as consumer:
                await asyncio.sleep(3)
                consumer.process.kill()
        with run_service("consumer", environment):
            outcome = await sending
            assert outcome.statuses == {"202": 2_001}
            assert await load.until_stored(120) == (1_000_000, 1_000_000)


def running_at(url: str, settings: Settings) -> Target:
    parts = urlsplit(url)
    key = settings.api_key.get_secret_value() if settings.api_key else None
    key = key or settings.kept_secret("api_key") or ""
    return Target(parts.hostname or "127.0.0.1", parts.port or 80, key, settings.store_url)


async def _run(url: str | None, events: int) -> Report:
    if url:
        return await report_of(running_at(url, load_settings()), events)
    async with a_pipeline() as pipeline:
        port, database_url = pipeline.producer.port, pipeline.postgres.url
        return await report_of(Target("127.0.0.1", port, pipeline.api_key, database_url), events)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000, help="how many (default 100,000)")
    parser.add_argument(
        "--url",
        default=os.environ.get("LOGGING_SERVICE_URL"),
        help="a producer that runs; its trail keeps the events (default: one started for this)",
    )
    arguments = parser.parse_args()
    configure_logs("load", "warning")
    try:
        report = asyncio.run(_run(arguments.url, arguments.events))
    except (LoggingServiceError, ServerSilent, OSError) as error:
        print(f"test_load: {error}", file=sys.stderr)
        return 1
    print(report)
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
