"""Whether the database answers; who finds that it does not spares the others the wait."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import asyncpg
import structlog

from gateway.review_store import ReviewStore
from logging_service.errors import BackendUnavailable, LoggingServiceError
from logging_service.health import answer_within
from logging_service.postgres import said

_log = structlog.get_logger()
_Answer = TypeVar("_Answer")

_PROBE_SECONDS: Final = 1.0


class NotAsked(BackendUnavailable):
    """The database is away: it was not even asked."""


class Reach:
    """Asks a store; `fault` is why it does not answer, None while it does; then `lost` is set."""

    def __init__(self, store: ReviewStore, lost: asyncio.Event) -> None:
        self.fault: str | None = None
        self._store = store
        self._lost = lost

    async def ask(
        self, seconds: float, run: Callable[[ReviewStore], Awaitable[_Answer]]
    ) -> _Answer:
        """Return what `run` returns; raises BackendUnavailable, after `seconds` at the latest.

        That is NotAsked where nothing can have been done. Raises PostgresError when what was asked
        is wrong.
        """
        if self.fault is not None:
            raise NotAsked(self.fault)
        try:
            return await answer_within(seconds, lambda: run(self._store))
        except (LoggingServiceError, TimeoutError) as error:
            self._note(str(error))
            if isinstance(error.__cause__, ConnectionRefusedError):
                raise NotAsked(str(error)) from error
            raise BackendUnavailable(str(error)) from error

    async def read(
        self, seconds: float, run: Callable[[ReviewStore], Awaitable[_Answer]]
    ) -> _Answer:
        """Return what `run` returns; that it takes long is no sign that the database is away."""
        if self.fault is not None:
            raise NotAsked(self.fault)
        try:
            return await answer_within(seconds, lambda: run(self._store))
        except (LoggingServiceError, TimeoutError) as error:
            raise BackendUnavailable(str(error)) from error
        except asyncpg.PostgresError as error:
            raise BackendUnavailable(said(error)) from error

    async def probe(self) -> bool:
        """Say whether the database answers, with a schema that fits."""
        try:
            await answer_within(_PROBE_SECONDS, self._store.check)
        except (LoggingServiceError, TimeoutError) as error:
            self._note(str(error))
            return False
        if self.fault is not None:
            _log.info("reviews_database_back")
        self.fault = None
        return True

    def _note(self, fault: str) -> None:
        if self.fault is None:
            _log.warning("reviews_database_away", reason=fault, consequence="reviews are buffered")
            self._lost.set()
        self.fault = fault
