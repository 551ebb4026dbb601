"""Keeps a process's keyring as the database has it, and notes there how much its keys are used."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import structlog

from logging_service.api_keys import KeyStore
from logging_service.auth import Keyring
from logging_service.backends import open_keys
from logging_service.errors import LoggingServiceError
from logging_service.health import answer_within
from logging_service.pepper import Pepper, pepper_of
from logging_service.settings import Settings

_log = structlog.get_logger()

# A turn and its limit together are less than the two seconds in which a change has to be known.
_ASK_SECONDS = 0.5
_ANSWER_SECONDS = 1.0
# All keys are loaded again: what was changed by hand, or with another database, shows as well.
_WHOLE_SECONDS = 300.0
_LOAD_SECONDS = 5.0
_NOTE_SECONDS = 10.0
_FORGET_SECONDS = 3600.0
_LET_GO_SECONDS = 0.2
_MAX_PENDING = 20_000


class KeyFollower:
    """Tells a keyring what changes in a store of keys, and the store how often they are used.

    `fault` is why the store did not answer when it was last asked for changes, None if it did.
    """

    def __init__(self, store: KeyStore, keyring: Keyring, settings: Settings) -> None:
        self._store = store
        self._keyring = keyring
        self._settings = settings
        self._number = -1
        self._whole_due = 0.0
        self._unusable = 0
        self._pepper: Pepper | None = None
        self.fault: str | None = None
        self._pending: dict[tuple[str, datetime], int] = {}

    async def refresh(self) -> None:
        """Tell the keyring what has changed, and now and then all that is good.

        While the store does not answer the keyring stays as it is.
        """
        now = time.monotonic()
        since = self._number
        if now >= self._whole_due:
            since, self._whole_due = -1, now + _WHOLE_SECONDS
        seconds = _ANSWER_SECONDS if since >= 0 else _LOAD_SECONDS
        try:
            changes = await answer_within(seconds, lambda: self._store.changes(since))
        except (LoggingServiceError, TimeoutError) as error:
            self._tell_fault(str(error))
            return
        self._tell_fault(None)
        if changes is None:
            return
        # A file that cannot be read for once must not make every key a wrong one.
        self._pepper = pepper_of(self._settings) or self._pepper
        unusable = self._keyring.hold(changes, self._pepper)
        self._number = changes.number
        if unusable and unusable != self._unusable:
            _log.warning("keys_cannot_be_used", keys=unusable, reason="made with another pepper")
        self._unusable = unusable

    async def note_uses(self) -> None:
        """Write down how often keys were used; what cannot be written waits, as far as it fits."""
        hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
        for key_id, requests in self._keyring.take_uses().items():
            self._pending[key_id, hour] = self._pending.get((key_id, hour), 0) + requests
        for old in list(itertools.islice(self._pending, max(0, len(self._pending) - _MAX_PENDING))):
            del self._pending[old]
        noted, self._pending = self._pending, {}
        if not noted:
            return
        try:
            await answer_within(_LOAD_SECONDS, lambda: self._store.note_uses(noted))
        except (LoggingServiceError, TimeoutError):
            self._pending = noted

    async def forget_old_uses(self) -> None:
        """Have the store drop what nobody asks for any more."""
        try:
            await answer_within(_LOAD_SECONDS, self._store.forget_old_uses)
        except (LoggingServiceError, TimeoutError) as error:
            _log.info("old_uses_not_forgotten", reason=str(error))

    def _tell_fault(self, fault: str | None) -> None:
        if fault and not self.fault:
            _log.warning("keys_not_refreshed", reason=fault, consequence="known ones stay good")
        elif self.fault and not fault:
            _log.info("keys_refreshed_again")
        self.fault = fault


async def _keep_doing(work: Callable[[], Awaitable[None]], every_seconds: float) -> None:
    while True:
        await asyncio.sleep(every_seconds)
        try:
            await work()
        except Exception:  # noqa: BLE001 - whatever it was: a revoked key must not stay good
            _log.exception("keys_not_kept")


@asynccontextmanager
async def keeping_keys(settings: Settings, keyring: Keyring) -> AsyncIterator[KeyStore]:
    """Keep `keyring` as the database has it: what changes there is known within two seconds.

    The keys are loaded before it yields where they lie, if the database answers within a second.
    """
    async with open_keys(settings) as store:
        follower = KeyFollower(store, keyring, settings)
        works = (
            follower.refresh(),
            _keep_doing(follower.refresh, _ASK_SECONDS),
            _keep_doing(follower.note_uses, _NOTE_SECONDS),
            _keep_doing(follower.forget_old_uses, _FORGET_SECONDS),
        )
        tasks = [asyncio.create_task(work) for work in works]
        await asyncio.wait({tasks[0]}, timeout=_ANSWER_SECONDS)
        try:
            yield store
        finally:
            for task in tasks:
                task.cancel()
            last = asyncio.create_task(follower.note_uses())
            # A database that fell silent keeps a cancelled statement waiting: leave it behind.
            patience = 0.0 if follower.fault else _LET_GO_SECONDS
            await asyncio.wait({*tasks, last}, timeout=patience)
            last.cancel()
