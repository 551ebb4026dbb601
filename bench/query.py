"""Measures how long queries take on small and large data: a table, then one line of JSON."""

if __name__ == "__main__" and not __package__:
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import asyncio
import json
import secrets
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

import asyncpg
from rich.progress import Progress

from bench.command import carry_out, sheet_console
from bench.machine import Others
from bench.query_events import DAYS, Plan
from bench.query_figures import figures_of, show
from bench.query_fill import Filled, fill
from bench.query_questions import Answers, Asker, Question, ask_in_turn, questions_about
from bench.servers import (
    ROOT,
    Service,
    add_database,
    environment_of,
    temporary_folder,
    unused_port,
    usual_servers,
)
from bench.stored import Miscounted
from logging_service import wire
from logging_service.data_folder import create
from logging_service.embedded import Postgres, Valkey

_SIZES = (1_000_000, 10_000_000)
_LARGEST = 1_000_000_000
_REQUESTS = 60
# What an event takes on the disk, with indexes, roll-ups and the log of the last few minutes.
_BYTES_AN_EVENT = 1_800

Asked = list[tuple[Question, list[Answers]]]


async def measure(
    sizes: Sequence[int], requests: int, progress: Progress
) -> tuple[list[Filled], Asked]:
    """Fill a database of each size, and ask the questions of all of them by turns."""
    async with AsyncExitStack() as stack:
        folder = temporary_folder("bench")
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        _refuse_without_room(folder, sizes)
        create(folder)
        postgres, valkey = usual_servers(folder)
        for server in (postgres, valkey):
            stack.push_async_callback(server.stop)
        await asyncio.gather(postgres.start(), valkey.start())
        filled = [await _fill(postgres, size, progress) for size in sorted(sizes)]
        await _write_out(postgres)
        api_key = secrets.token_urlsafe(24)
        askers = []
        for one in filled:
            port = await stack.enter_async_context(_a_query_service(one, valkey, folder, api_key))
            askers.append(stack.enter_context(closing(Asker(port, api_key))))
            _check_count(askers[-1], one.plan)
        return filled, await _ask(askers, filled, requests, progress)


def _refuse_without_room(folder: Path, sizes: Sequence[int]) -> None:
    wanted, free = sum(sizes) * _BYTES_AN_EVENT, shutil.disk_usage(folder).free
    if free < wanted:
        raise RuntimeError(
            f"{wanted / 1e9:.0f} GB are needed, {free / 1e9:.0f} GB are free in {folder.parent}: "
            "set TMPDIR to another disk, or ask for fewer --events"
        )


async def _fill(postgres: Postgres, size: int, progress: Progress) -> Filled:
    plan = Plan.of(size, wire.now_micros())
    task = progress.add_task(f"storing {plan.events:,} events", total=plan.events)
    url = await add_database(postgres, f"events_{size}")

    def step(events: int) -> None:
        progress.advance(task, events)

    return await fill(url, plan, step)


async def _write_out(postgres: Postgres) -> None:
    admin = await asyncpg.connect(postgres.admin_url, ssl=False)
    try:
        await admin.execute("CHECKPOINT")
    finally:
        await admin.close()


@asynccontextmanager
async def _a_query_service(
    of: Filled, valkey: Valkey, folder: Path, api_key: str
) -> AsyncIterator[int]:
    port = unused_port()
    # A key with every scope reads the events of every project.
    environment = environment_of(folder, secrets.token_urlsafe(24)) | {
        "ADMIN_API_KEY": api_key,
        "DATABASE_URL": of.url,
        "REDIS_URL": valkey.url,
        "QUERY_SERVICE_PORT": str(port),
    }
    script, log = ROOT / "logging_service" / "query_service.py", folder / f"query_{port}.log"
    service = Service(script, port, environment, log)
    try:
        await service.start()
        yield port
    finally:
        await service.stop()


def _check_count(asker: Asker, plan: Plan) -> None:
    """Raise Miscounted unless the analytics count every event: else the figures mean nothing."""
    everything = {
        "start_time": wire.from_micros(plan.until - (DAYS + 1) * 86_400_000_000).isoformat(),
        "end_time": wire.from_micros(plan.until).isoformat(),
    }
    status, body, _ = asker.read(f"/analytics/usage?{urlencode(everything)}")
    if status != 200:  # noqa: PLR2004 - a good answer
        raise Miscounted(f"/analytics/usage answered {status}: {body[:200].decode()}")
    counted = json.loads(body)["metrics"]["total_events"]
    if counted != plan.events:
        raise Miscounted(f"{counted} of {plan.events} events are counted")


async def _ask(
    askers: Sequence[Asker], filled: Sequence[Filled], requests: int, progress: Progress
) -> Asked:
    by_plan = [questions_about(one.plan) for one in filled]
    task = progress.add_task("", total=len(by_plan[0]))
    asked = []
    for questions in zip(*by_plan, strict=True):
        progress.update(task, description=questions[0].name)
        asked.append((questions[0], await ask_in_turn(askers, questions, requests)))
        progress.advance(task)
    return asked


def _arguments() -> argparse.Namespace:
    def count(text: str) -> int:
        number = int(text)
        if not 0 < number <= _LARGEST:
            raise ValueError
        return number

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--events",
        type=count,
        nargs="+",
        default=_SIZES,
        metavar="N",
        help="how many events each database gets (default 1000000 10000000, the published ones)",
    )
    parser.add_argument(
        "--requests",
        type=count,
        default=_REQUESTS,
        metavar="N",
        help=f"how often each question is asked (default {_REQUESTS})",
    )
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    others = Others()
    sizes = sorted(set(arguments.events))
    filled, asked = carry_out(partial(measure, sizes, arguments.requests))
    figures = figures_of(filled, asked)
    show(sheet_console(), figures, filled, others)
    print(figures.line())


if __name__ == "__main__":
    main()
