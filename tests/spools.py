"""Spool files for tests that need no loop: opened, emptied, read by pages, copied."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from logging_service.spool_book import Book
from logging_service.spool_file import SpoolFile
from logging_service.spool_folder import SpoolFolder
from logging_service.spool_pages import SpoolPages

MAX_BYTES = 1 << 30


@contextmanager
def a_spool(
    file: Path | None, *, exclusive: bool = True, max_bytes: int = MAX_BYTES
) -> Iterator[SpoolFile]:
    """Yield a spool file as the thread of a queue has it."""
    if file is None:
        yield SpoolFile(None, max_bytes=max_bytes, lease_seconds=30, exclusive=exclusive)
        return
    folder = SpoolFolder(file, max_bytes=max_bytes, exclusive=exclusive)
    with folder.held():
        spool = SpoolFile(folder, max_bytes=max_bytes, lease_seconds=30, exclusive=exclusive)
        try:
            yield spool
        finally:
            spool.close()


def put(spool: SpoolFile, *puts: Sequence[bytes]) -> None:
    """Put each of `puts` in a transaction of its own."""
    for events in puts:
        assert spool.put([events]) == [None]


def emptied(spool: SpoolFile) -> list[bytes]:
    """Take and finish everything that the spool gives."""
    events: list[bytes] = []
    while delivery := spool.write(lambda book: book.take(10_000)):
        events += delivery.events
        lease = str(delivery.lease_id)
        spool.write(lambda book, lease=lease: Book.done(book, lease))  # type: ignore[misc]
    return events


def readable(file: Path) -> tuple[list[bytes], int]:
    """Return the whole events that salvage finds in a file, and how many it calls damaged."""
    with closing(SpoolPages(file)) as pages:
        rows = [row for _, found in pages.rows() for row in found]
        damaged = sum(row.damaged for row in rows) + pages.lost_rows
    return [event for row in rows for event in row.events if event is not None], damaged


def set_aside(file: Path) -> list[Path]:
    """Return the files that were set aside beside `file`, without their logs."""
    found = file.parent.glob(f"{file.name}.damaged-*")
    return sorted(path for path in found if not path.name.endswith("-wal"))


def copied(file: Path, folder: Path) -> Path:
    """Copy a file and its log into an empty folder, as they are at this moment."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for part in (file, file.with_name(f"{file.name}-wal")):
        if part.exists():
            shutil.copyfile(part, folder / part.name)
    return folder / file.name
