"""Permits in Redis or Valkey: a counter for each key and endpoint, gone with its window."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from hiredis import ReplyError

from logging_service.errors import BackendUnavailable
from logging_service.permits import Claim, Grant
from logging_service.redis_address import parse_redis_url
from logging_service.redis_pipe import Pipe
from logging_service.resp import pack, raise_first_error

_LUA = Path(__file__).parent / "lua"
_SCRIPTS = {name: (_LUA / f"{name}.lua").read_text(encoding="utf-8") for name in ("claim", "live")}
# Three times as long as a worker that lives is silent.
_SILENT_SECONDS = 10
# A request waits for it: what Redis may take to hold an event, divided by five, within bounds.
_SHARE_OF_TIMEOUT = 5
_LEAST_SECONDS, _MOST_SECONDS = 0.05, 1.0


class RedisPermits:
    """SharedPermits in Redis; windows run by the server's clock."""

    def __init__(self, pipe: Pipe, name: str, service: str) -> None:
        self._pipe = pipe
        self._worker = uuid4().hex
        # The hash tag keeps all keys of a script in one slot of a cluster.
        self._counter_prefix = f"{{{name}}}:rate:"
        self._workers = f"{{{name}}}:workers:{service}"

    async def claim(self, claims: Sequence[Claim]) -> list[Grant]:
        """Return what each claim gets, all in one round trip.

        Raises BackendUnavailable; what was granted then is lost until the windows end.
        """
        keys = [f"{self._counter_prefix}{claim.key_id}:{claim.endpoint}" for claim in claims]
        terms = [
            term
            for claim in claims
            for term in (claim.rate[0], claim.rate[1] * 1000, claim.wanted, claim.spent)
        ]
        told = await self._run("claim", keys, terms)
        try:
            return [
                Grant(told[at], told[at + 1], told[at + 2] / 1000)
                for at in range(0, 3 * len(claims), 3)
            ]
        except (IndexError, TypeError) as error:
            raise BackendUnavailable(f"redis: an answer makes no sense ({error})") from error

    async def workers(self) -> int:
        """Note that this worker lives; return how many of its service were seen in 10 s."""
        count = await self._run("live", [self._workers], [self._worker, _SILENT_SECONDS])
        if not isinstance(count, int):
            raise BackendUnavailable("redis: an answer makes no sense")
        return count

    async def leave(self) -> None:
        """Count no longer as a worker, as far as Redis can be told."""
        with suppress(BackendUnavailable):
            await self._pipe.call(pack(("ZREM", self._workers, self._worker)), 1)

    async def _run(self, script: str, keys: Sequence[str], arguments: Sequence[str | int]) -> Any:
        packed = pack(("EVAL", _SCRIPTS[script], len(keys), *keys, *arguments))
        replies = await self._pipe.call(packed, 1)
        if isinstance(replies[0], ReplyError) and "READONLY" in str(replies[0]):
            self._pipe.drop("this server is no master any more")
        raise_first_error(replies)
        return replies[0]


@asynccontextmanager
async def open_redis_permits(
    url: str, *, name: str, service: str, timeout_ms: int
) -> AsyncIterator[RedisPermits]:
    """Yield the permits beside the queue `name`, for a worker of `service`.

    Every call ends within a fifth of `timeout_ms`, at least 50 ms and at most a second.
    """
    seconds = timeout_ms / 1000 / _SHARE_OF_TIMEOUT
    pipe = Pipe(parse_redis_url(url), min(max(seconds, _LEAST_SECONDS), _MOST_SECONDS))
    permits = RedisPermits(pipe, name, service)
    # The first request does not have to wait for a connection.
    with suppress(BackendUnavailable):
        await pipe.call(pack(("PING",)), 1, asyncio.get_running_loop().time() + _MOST_SECONDS)
    try:
        yield permits
    finally:
        await permits.leave()
        pipe.close()
