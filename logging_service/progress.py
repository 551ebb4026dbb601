"""A bar for a person who waits, once that takes longer than two seconds."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_QUIET_SECONDS = 2.0


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield what is told of each so much more that is done, of `total`."""
    # Loaded with the command, not with its help.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress  # noqa: PLC0415

    console = Console(stderr=True)
    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task(what, total=total)
    began, shows = time.monotonic(), False

    def advance(more: int) -> None:
        nonlocal shows
        bar.advance(task, more)
        if not shows and time.monotonic() - began > _QUIET_SECONDS:
            bar.start()
            shows = True

    try:
        yield advance
    finally:
        if shows:
            bar.stop()
