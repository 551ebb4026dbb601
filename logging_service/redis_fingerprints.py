"""Which key each host replaces personal data with, as fingerprints beside the queue in Redis."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

from logging_service.errors import BackendUnavailable
from logging_service.redis_address import parse_redis_url
from logging_service.redis_pipe import Pipe
from logging_service.resp import pack, raise_first_error

_CALL_SECONDS = 1.0
_NOTE_SECONDS, _AGAIN_SECONDS = 3600.0, 60.0
# A host that noted nothing for a day is gone, or has the key of the others by now.
_KEPT_SECONDS = 86_400
_MOST_HOSTS = 1000
_MOST_NAME = 100


class HostFingerprint(NamedTuple):
    """The fingerprint that a host noted last."""

    host: str
    fingerprint: str


class Fingerprints:
    """The fingerprints of the last day; each call is answered within a second."""

    def __init__(self, pipe: Pipe, name: str) -> None:
        self._pipe = pipe
        self._key = f"{{{name}}}:pii_keys"

    async def note(self, noted: HostFingerprint) -> None:
        """Note what a host uses; raises BackendUnavailable."""
        now = int(time.time())
        member = f"{noted.fingerprint} {noted.host[:_MOST_NAME]}"
        commands: tuple[tuple[str | int, ...], ...] = (
            ("ZADD", self._key, now, member),
            ("ZREMRANGEBYSCORE", self._key, "-inf", now - _KEPT_SECONDS),
            ("ZREMRANGEBYRANK", self._key, 0, -_MOST_HOSTS - 1),
            ("EXPIRE", self._key, _KEPT_SECONDS),
        )
        packed = b"".join(pack(command) for command in commands)
        raise_first_error(await self._pipe.call(packed, len(commands)))

    async def noted(self) -> list[HostFingerprint]:
        """Return what each host noted last; raises BackendUnavailable."""
        asked = pack(("ZRANGE", self._key, 0, _MOST_HOSTS))
        replies = await self._pipe.call(asked, 1)
        raise_first_error(replies)
        # In the order of time: the later one of a host wins.
        latest: dict[str, str] = {}
        for member in replies[0]:
            fingerprint, _, host = member.decode("utf-8", "replace").partition(" ")
            latest[host] = fingerprint
        return [HostFingerprint(*pair) for pair in latest.items()]

    async def keep_noting(self, noted: HostFingerprint) -> None:
        """Note it now and every hour, while Redis is away every minute; until cancelled."""
        while True:
            pause = _AGAIN_SECONDS
            with suppress(BackendUnavailable):
                await self.note(noted)
                pause = _NOTE_SECONDS
            await asyncio.sleep(pause)


@asynccontextmanager
async def open_fingerprints(url: str, *, name: str) -> AsyncIterator[Fingerprints]:
    """Yield the fingerprints beside the queue `name`; they connect when first used."""
    pipe = Pipe(parse_redis_url(url), _CALL_SECONDS)
    try:
        yield Fingerprints(pipe, name)
    finally:
        pipe.close()
