"""The queue in Redis or Valkey: a list, one element an event, and leases beside it."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from hiredis import ReplyError
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from logging_service import wire
from logging_service.errors import BackendUnavailable
from logging_service.ports import Ack, Delivery, QueueStatus
from logging_service.resp import Pipe, pack

_LUA = Path(__file__).parent / "lua"
_CHUNK_EVENTS = 1000
_CHUNK_BYTES = 4 * 1024 * 1024
# One delivery fits a consumer's memory, however large its events are.
_TAKE_BYTES = 16 * 1024 * 1024
_POLL_SECONDS = 0.02
_RATE_SECONDS = 30
_CONNECTIONS = 8
_MULTI, _EXEC = pack(("MULTI",)), pack(("EXEC",))


@contextmanager
def _weather() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        raise BackendUnavailable(f"redis: {str(error) or type(error).__name__}") from error


class RedisQueue:
    """An EventQueue in Redis; leases run by the server's clock."""

    def __init__(
        self, client: Redis, pipe: Pipe, name: str, ttl_seconds: int, lease_seconds: float
    ) -> None:
        self._client = client
        self._pipe = pipe
        self._name = name
        self._lease_ms = round(lease_seconds * 1000)
        # The hash tag keeps every key of a queue in one slot of a cluster.
        self._leases = f"{{{name}}}:leases"
        self._attempts = f"{{{name}}}:attempts"
        self._lease_prefix = f"{{{name}}}:lease:"
        self._done = f"{{{name}}}:done"
        self._accepted = f"{{{name}}}:accepted"
        # A net for a queue that everybody left; an event's own age is the consumer's to judge.
        self._expire = pack(("EXPIRE", name, 2 * ttl_seconds))
        self._scripts = {
            name: client.register_script((_LUA / f"{name}.lua").read_text(encoding="utf-8"))
            for name in ("take", "done", "postpone", "status")
        }

    async def put(self, events: Sequence[bytes]) -> Ack:
        """Hold `events` durably, all or none; raises BackendUnavailable."""
        commands = [pack(("RPUSH", self._name, *chunk)) for chunk in _chunks(events)]
        commands.append(pack(("INCRBY", self._accepted, len(events))))
        packed = b"".join((_MULTI, *commands, self._expire, _EXEC))
        # MULTI, each command queued, EXPIRE queued, EXEC with what each has done.
        replies = await self._pipe.call(packed, len(commands) + 3)
        for reply in (*replies[:-1], *(replies[-1] if isinstance(replies[-1], list) else replies)):
            if isinstance(reply, ReplyError):
                raise BackendUnavailable(f"redis: {reply}")
        return "queued"

    async def take(self, limit: int, wait_seconds: float) -> Delivery | None:
        """Lease up to `limit` of the oldest events, an expired lease first; None when idle."""
        deadline = time.monotonic() + wait_seconds
        while True:
            found = await self._run(
                "take",
                [self._name, self._leases, self._attempts],
                [str(uuid.uuid4()), self._lease_ms, limit, _TAKE_BYTES, self._lease_prefix],
            )
            if found:
                return Delivery(UUID(found[0].decode()), found[2], int(found[1]))
            if time.monotonic() >= deadline:
                return None
            # No blocking pop: what it removed would be in no lease if we died now.
            await asyncio.sleep(_POLL_SECONDS)

    async def done(self, delivery: Delivery) -> None:
        """Forget the events of `delivery`; harmless when repeated."""
        lease = self._lease_prefix + str(delivery.lease_id)
        keys = [self._leases, self._attempts, lease, self._done]
        await self._run("done", keys, [str(delivery.lease_id), 60 + _RATE_SECONDS])

    async def extend(self, delivery: Delivery) -> None:
        """Begin the lease's time anew; nothing happens when it is gone."""
        await self._run("postpone", [self._leases], [str(delivery.lease_id), self._lease_ms])

    async def give_back(self, delivery: Delivery, delay_seconds: float) -> None:
        """Offer the events again after `delay_seconds`, with one attempt more."""
        delay_ms = round(delay_seconds * 1000)
        await self._run("postpone", [self._leases], [str(delivery.lease_id), delay_ms])

    async def status(self) -> QueueStatus:
        """Count what waits and what is leased; the rate is that of the last half minute."""
        waiting, in_flight, done, now, oldest = await self._run(
            "status", [self._name, self._leases, self._done], [self._lease_prefix]
        )
        return QueueStatus(
            backend="redis",
            size=waiting,
            in_flight=in_flight,
            oldest_age_seconds=None if oldest is None else _age(oldest, now),
            stored_per_second=round(done / _RATE_SECONDS, 1),
        )

    async def warnings(self) -> list[str]:
        """Say what in the server's configuration can lose events, a sentence each.

        Raises BackendUnavailable when the server answers but takes no events.
        """
        with _weather():
            memory = await self._client.info("memory")
            persistence = await self._client.info("persistence")
            kind = await self._client.type(self._name)
        if kind not in {b"list", b"none"}:
            raise BackendUnavailable(f"redis: the key {self._name} is no list")
        if 0 < memory.get("maxmemory", 0) < memory["used_memory"]:
            raise BackendUnavailable("redis: it is out of memory (maxmemory)")
        found = []
        policy = memory.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            found.append(f"maxmemory-policy is {policy}: the server may evict the queue")
        if not persistence.get("aof_enabled"):
            found.append("appendonly is off: a killed server loses the queue")
        return found

    async def _run(self, script: str, keys: list[str], arguments: list[str | int]) -> Any:
        with _weather():
            return await self._scripts[script](keys=keys, args=arguments)


def _chunks(events: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    start, size = 0, 0
    for place, event in enumerate(events):
        if place > start and (place - start >= _CHUNK_EVENTS or size + len(event) > _CHUNK_BYTES):
            yield events[start:place]
            start, size = place, 0
        size += len(event)
    yield events[start:]


def _age(oldest: bytes, now_unix_seconds: int) -> float | None:
    try:
        received = wire.received_at(oldest)
    except ValueError:
        return None
    return max(0.0, round(now_unix_seconds - wire.to_unix_seconds(received), 3))


@asynccontextmanager
async def open_redis_queue(
    url: str, *, name: str, ttl_seconds: int, timeout_ms: int, lease_seconds: float = 30
) -> AsyncIterator[RedisQueue]:
    """Yield the queue `name` of the server at `url`; it connects when it is first used."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=_CONNECTIONS,
        timeout=timeout_ms / 1000,
        socket_timeout=timeout_ms / 1000,
        socket_connect_timeout=timeout_ms / 1000,
        # Whether a write that timed out was done is not known: the caller decides, not the client.
        retry=Retry(NoBackoff(), 0),
    )
    async with Redis.from_pool(pool) as client:
        pipe = Pipe(url, timeout_ms / 1000)
        try:
            yield RedisQueue(client, pipe, name, ttl_seconds, lease_seconds)
        finally:
            pipe.close()
