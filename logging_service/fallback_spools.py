"""The spool files that producers of this host fall back to: one for each of their processes."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

from logging_service.errors import SettingsError
from logging_service.ports import EventQueue
from logging_service.spool_queue import SpoolTaken, open_spool_queue, peek

# As many as a producer may have workers, and as many again that were left behind.
_SLOTS = 128


class Spooled(NamedTuple):
    """Events in the spools of this host: those that wait, and those set aside as damaged."""

    events: int
    damaged: int


class FallbackSpools:
    """The files beside `file`, which is the local queue's; None: events stay in memory.

    A file that nobody owns any more, and that of a local queue that is in use no longer, are
    orphans: whoever owns one may empty it.
    """

    def __init__(self, file: Path | None, max_bytes: int) -> None:
        self._file = file
        self._max_bytes = max_bytes
        self._claimed: Path | None = None

    async def claim(self, stack: AsyncExitStack) -> EventQueue:
        """Enter the first spool that nobody owns into `stack`, with what was left in it.

        Raises SettingsError when the folder cannot be used.
        """
        if self._file is None:
            return await self._enter(None, stack)
        for file in self._slots(self._file):
            if queue := await self.own(file, stack):
                self._claimed = file
                return queue
        raise SettingsError(f"SPOOL_PATH={self._file}: {_SLOTS} producers use spools beside it")

    async def own(self, file: Path, stack: AsyncExitStack) -> EventQueue | None:
        """Enter a spool into `stack`; None when another process owns it."""
        try:
            return await self._enter(file, stack)
        except SpoolTaken:
            return None

    async def _enter(self, file: Path | None, stack: AsyncExitStack) -> EventQueue:
        opened = open_spool_queue(file, max_bytes=self._max_bytes, exclusive=True)
        return await stack.enter_async_context(opened)

    def others(self) -> list[Path]:
        """Return the files that are there and not this process's own."""
        if self._file is None:
            return []
        files = (self._file, *self._slots(self._file))
        return [file for file in files if file != self._claimed and file.exists()]

    async def count(self) -> Spooled:
        """Count what lies in files other than this process's own; an unreadable one counts 0."""
        counts = await asyncio.to_thread(lambda: [peek(file) for file in self.others()])
        return Spooled(sum(events for events, _ in counts), sum(damaged for _, damaged in counts))

    def damaged_files(self) -> int:
        """Count the files that were set aside and wait to be salvaged."""
        if self._file is None:
            return 0
        found = self._file.parent.glob(f"{self._file.stem}*.damaged-*")
        return sum(not file.name.endswith("-wal") for file in found)

    @staticmethod
    def _slots(file: Path) -> Iterator[Path]:
        return (file.with_name(f"{file.stem}-fallback-{n}{file.suffix}") for n in range(_SLOTS))
