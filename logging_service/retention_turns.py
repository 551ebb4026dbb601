"""Retention in the background of the process that stores: an hour after the other."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from logging_service.backends import open_retention
from logging_service.errors import LoggingServiceError
from logging_service.retention import Retention, Ttls, remove_old
from logging_service.settings import Settings

_log = structlog.get_logger()

# The next turn, and the next try where others held what has to go, or more was left.
_TURN_SECONDS: Final = 3600.0
_AGAIN_SECONDS: Final = 60.0
_LET_GO_SECONDS: Final = 0.2
_BEHIND: Final = timedelta(days=1)


@asynccontextmanager
async def removing_old(settings: Settings) -> AsyncIterator[None]:
    """Remove what is older than the settings allow, as long as the context is open.

    The first turn comes after a minute.
    """
    ttls = Ttls(settings.event_ttls, settings.ledger_days, settings.sums_days)
    async with open_retention(settings) as retention:
        removing = asyncio.create_task(_keep_removing(retention, ttls))
        try:
            yield
        finally:
            # A database that fell silent keeps a cancelled statement waiting: leave it behind.
            removing.cancel()
            await asyncio.wait({removing}, timeout=_LET_GO_SECONDS)


async def _keep_removing(retention: Retention, ttls: Ttls) -> None:
    wait_seconds = _AGAIN_SECONDS
    while True:
        await asyncio.sleep(wait_seconds)
        wait_seconds = _TURN_SECONDS if await turn(retention, ttls) else _AGAIN_SECONDS


async def turn(retention: Retention, ttls: Ttls) -> bool:
    """Remove once, say so in the log, and return whether that was all there is to remove."""
    try:
        removed = await remove_old(retention, ttls)
    except LoggingServiceError as error:
        _log.warning("retention_waits", reason=str(error))
        return False
    if removed.anything:
        counts = {"partitions": removed.partitions, "events": removed.events, "sums": removed.sums}
        _log.info("old_removed", **counts)
    if datetime.now(UTC).date() - removed.today > _BEHIND:
        _log.warning(
            "retention_behind",
            counts_from=str(removed.today),
            reason="it goes on by a day an hour, as if the clock had been set wrong",
        )
    return removed.complete
