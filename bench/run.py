"""Measures what the project publishes: a table, then one line of JSON on standard output."""

if __name__ == "__main__" and not __package__:
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bench import post_log, queryable, stored
from bench.figures import Figures
from bench.load import ServerSilent
from bench.servers import a_pipeline
from bench.sheet import Sheet
from bench.stored import Miscounted
from logging_service.errors import LoggingServiceError
from logging_service.logs import configure_logs

PARTS = ("stored", "post_log", "queryable")
_START_SECONDS = 8.0
_INTERRUPTED = 130
_PLAIN_WIDTH = 120


async def measure(parts: set[str], seconds: float, progress: Progress) -> tuple[Figures, Sheet]:
    """Run the parts, each measured run of about `seconds`, on servers of their own."""
    task = progress.add_task("starting the servers", total=_expected(parts, seconds))

    def step(of: float) -> None:
        progress.advance(task, of)

    figures, sheet = Figures(), Sheet()
    async with a_pipeline() as pipeline:
        step(_START_SECONDS)
        if "stored" in parts:
            progress.update(task, description="events stored a second")
            long = seconds * stored.TIMES
            figures.stored = await stored.measure_stored(pipeline, long, sheet, step)
        if "post_log" in parts:
            progress.update(task, description="POST /log requests a second")
            figures.post_log = await post_log.measure_post_log(pipeline, seconds, sheet, step)
        if "queryable" in parts:
            progress.update(task, description="accepted to queryable")
            long = seconds * queryable.TIMES
            figures.queryable_ms = await queryable.measure_queryable(pipeline, long, sheet, step)
        progress.update(task, description="stopping")
    return figures, sheet


def _expected(parts: set[str], seconds: float) -> float:
    units = {
        "stored": seconds * stored.TIMES * 2 * (stored.ROUNDS + 1),
        "post_log": 3.5 + seconds * 3 * post_log.ROUNDS,
        "queryable": 1 + seconds * queryable.TIMES,
    }
    return _START_SECONDS + sum(units[part] for part in parts)


async def _until_signalled(parts: set[str], seconds: float) -> tuple[Figures, Sheet]:
    """Stop in order at the first signal; further ones change nothing, it takes seconds."""
    loop = asyncio.get_running_loop()
    work: Callable[[], object] | None = asyncio.current_task().cancel  # type: ignore[union-attr]

    def stop() -> None:
        nonlocal work
        if work is not None:
            work()
            work = None

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    # Drawn seldom: what is measured needs the processors.
    bar = Progress(
        *columns,
        console=Console(stderr=True),
        refresh_per_second=2,
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with bar as progress:
        return await measure(parts, seconds, progress)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS, help="measure this part alone")
    parser.add_argument(
        "--seconds",
        type=float,
        default=4.0,
        metavar="N",
        help="the length of each measured run (default 4; the published figures are of that)",
    )
    return parser.parse_args()


def main() -> int:
    """Measure, print and return the exit code."""
    arguments = _arguments()
    configure_logs("bench", "warning")
    parts = {arguments.only} if arguments.only else set(PARTS)
    try:
        figures, sheet = asyncio.run(_until_signalled(parts, arguments.seconds))
    except (asyncio.CancelledError, KeyboardInterrupt):
        print("bench: stopped", file=sys.stderr)
        return _INTERRUPTED
    except (LoggingServiceError, Miscounted, ServerSilent, RuntimeError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    sheet.show(Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH), figures)
    print(figures.line())
    return 0


if __name__ == "__main__":
    sys.exit(main())
