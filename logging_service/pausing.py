"""How long to wait before something that did not answer is asked again."""

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import structlog

from logging_service.errors import BackendUnavailable, LoggingServiceError

_log = structlog.get_logger()

LONGEST_PAUSE_SECONDS = 5.0


class Fault:
    """What may fail each time it is done: logged when that begins, and not while it goes on."""

    def __init__(self, what: str) -> None:
        self.holds = False
        self._what = what

    @contextmanager
    def told(self) -> Iterator[None]:
        """Do something that is done again later; its LoggingServiceError ends here."""
        try:
            yield
        except LoggingServiceError as error:
            if not self.holds:
                _log.warning(self._what, reason=str(error))
            self.holds = True
        else:
            self.holds = False


class Pause:
    """Waits longer after each failure, says so once, and says when it is over."""

    def __init__(self, what: str, stopping: asyncio.Event) -> None:
        self._failures = 0
        self._what = what
        self._stopping = stopping

    async def after(self, error: BackendUnavailable) -> None:
        """Wait with jitter, at most 5 s, until it is time to try again or to stop."""
        if not self._failures:
            _log.warning(self._what, reason=str(error))
        self._failures += 1
        longest = min(LONGEST_PAUSE_SECONDS, 0.1 * 2 ** min(self._failures, 10))
        with suppress(TimeoutError):
            async with asyncio.timeout(longest * random.uniform(0.5, 1.0)):  # noqa: S311 - jitter
                await self._stopping.wait()

    def over(self) -> None:
        """Begin anew: it answered."""
        if self._failures:
            _log.info("available_again", after=self._what, failures=self._failures)
        self._failures = 0
