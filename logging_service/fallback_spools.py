"""The spool files that producers of this host fall back to: one for each of their processes."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import structlog

from logging_service.errors import SettingsError
from logging_service.ports import NO_EPOCH, EventQueue, Reserve
from logging_service.spool_book import Holding
from logging_service.spool_folder import place_of
from logging_service.spool_queue import SpoolTaken, open_spool_queue, peek

_log = structlog.get_logger()


# As many as a producer may have workers, and as many again that were left behind.
_SLOTS = 128
_REST_SECONDS = 2.0


class Spooled(NamedTuple):
    """Events in the spools of this host: those that wait, and those set aside as damaged."""

    events: int
    damaged: int


class FallbackSpools:
    """The files beside `file`, which is the local queue's.

    A file that nobody owns any more, and that of a local queue that is in use no longer, are
    orphans: whoever owns one may empty it.
    """

    def __init__(self, file: Path, max_bytes: int) -> None:
        self._file = file
        self._max_bytes = max_bytes
        self._claimed: Path | None = None
        self._peeked: dict[Path, tuple[object, Holding]] = {}

    async def claim(self, stack: AsyncExitStack) -> EventQueue:
        """Enter the first spool that nobody owns into `stack`, with what was left in it.

        Raises SettingsError when the folder cannot be used.
        """
        for file in self._slots():
            try:
                queue = await self.own(file, stack)
            except SettingsError as error:
                if not file.exists():
                    raise
                # Another program's file under this name is no reason not to start.
                _log.warning("spool_not_usable", file=file.name, reason=str(error))
                continue
            if queue is not None:
                self._claimed = file
                return queue
        raise SettingsError(f"SPOOL_PATH={self._file}: {_SLOTS} producers use spools beside it")

    async def own(self, file: Path, stack: AsyncExitStack) -> EventQueue | None:
        """Enter a spool into `stack`; None when another process owns it."""
        opened = open_spool_queue(file, max_bytes=self._max_bytes, exclusive=True)
        try:
            return await stack.enter_async_context(opened)
        except SpoolTaken:
            return None

    def others(self) -> list[Path]:
        """Return the files that are there and not this process's own."""
        return [file for file in self._not_mine() if file.exists()]

    async def count(self) -> Spooled:
        """Count what lies in files other than this process's own; an unreadable one counts 0."""
        peeked = await asyncio.to_thread(lambda: [peek(file) for file in self.others()])
        found = [holding for holding in peeked if holding is not None]
        return Spooled(sum(one.held for one in found), sum(one.damaged for one in found))

    async def reserves(self) -> list[Reserve]:
        """Return what lies in files other than this process's own that nobody writes to.

        Who has claimed a spool here also tells which places are without a file.
        """
        return await asyncio.to_thread(lambda: list(self._reserves()))

    def _reserves(self) -> Iterator[Reserve]:
        for file in self._not_mine():
            if file.exists():
                if holding := self._at_rest(file):
                    yield Reserve(*holding, place_of(file))
            elif self._claimed:
                yield Reserve(NO_EPOCH, 0, 0, 0, place_of(file))

    def _at_rest(self, file: Path) -> Holding | None:
        """Return what a file holds; None where somebody writes to it, or it cannot be read.

        Each is opened once after it was written to: many producers share a folder.
        """
        found = []
        for part in (file, file.with_name(f"{file.name}-wal")):
            with suppress(FileNotFoundError):
                found.append(part.stat())
        # Who only looks at a file may leave an empty log behind.
        written = [part for part in found if part.st_size]
        if any(abs(time.time() - part.st_mtime) < _REST_SECONDS for part in written):
            return None
        state = [(part.st_ino, part.st_size, part.st_mtime_ns) for part in written]
        known, holding = self._peeked.get(file, (None, None))
        if known != state and (holding := peek(file)):
            self._peeked[file] = (state, holding)
        return holding

    def _not_mine(self) -> Iterator[Path]:
        return (file for file in (self._file, *self._slots()) if file != self._claimed)

    def _slots(self) -> Iterator[Path]:
        stem, suffix = self._file.stem, self._file.suffix
        return (self._file.with_name(f"{stem}-fallback-{n}{suffix}") for n in range(_SLOTS))
