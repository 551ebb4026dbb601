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
    """The files beside `file`, which is the local queue's.

    A file that nobody owns any more, and that of a local queue that is in use no longer, are
    orphans: whoever owns one may empty it.
    """

    def __init__(self, file: Path, max_bytes: int) -> None:
        self._file = file
        self._max_bytes = max_bytes
        self._claimed: Path | None = None

    async def claim(self, stack: AsyncExitStack) -> EventQueue:
        """Enter the first spool that nobody owns into `stack`, with what was left in it.

        Raises SettingsError when the folder cannot be used.
        """
        for file in self._slots():
            if queue := await self.own(file, stack):
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
        files = (self._file, *self._slots())
        return [file for file in files if file != self._claimed and file.exists()]

    async def count(self) -> Spooled:
        """Count what lies in files other than this process's own; an unreadable one counts 0."""
        counts = await asyncio.to_thread(lambda: [peek(file) for file in self.others()])
        return Spooled(sum(events for events, _ in counts), sum(damaged for _, damaged in counts))

    def _slots(self) -> Iterator[Path]:
        stem, suffix = self._file.stem, self._file.suffix
        return (self._file.with_name(f"{stem}-fallback-{n}{suffix}") for n in range(_SLOTS))
