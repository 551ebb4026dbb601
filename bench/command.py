"""What the benchmark's commands share: a bar, an end in order, one line where it went wrong."""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bench.load import ServerSilent
from bench.stored import Miscounted
from logging_service.errors import LoggingServiceError
from logging_service.logs import configure_logs

_INTERRUPTED = 130
_PLAIN_WIDTH = 120

T = TypeVar("T")


def carry_out(work: Callable[[Progress], Awaitable[T]]) -> T:
    """Return what `work` makes, while a bar on standard error shows how far it is.

    Ends the process with one line and code 130 after a signal, 1 after an error.
    """
    configure_logs("bench", "warning")
    try:
        return asyncio.run(_until_signalled(work))
    except (asyncio.CancelledError, KeyboardInterrupt):
        print("bench: stopped", file=sys.stderr)
        sys.exit(_INTERRUPTED)
    except (LoggingServiceError, Miscounted, ServerSilent, RuntimeError) as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(1)


async def _until_signalled(begin: Callable[[Progress], Awaitable[T]]) -> T:
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
        return await begin(progress)


def sheet_console() -> Console:
    """Return where a person reads the figures: a terminal as it is, else 120 columns."""
    return Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
