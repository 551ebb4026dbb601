"""The queue in Redis or Valkey: a list, one element an event, and leases beside it."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from hiredis import ReplyError

from logging_service import wire
from logging_service.errors import BackendUnavailable, QueueFull
from logging_service.ledger import MOST_ORIGINS, Ledger, epoch_of
from logging_service.ports import Ack, Delivery, QueueStatus, Reserve, Tally
from logging_service.redis_address import parse_redis_url
from logging_service.redis_health import judge, questions
from logging_service.redis_pipe import Pipe
from logging_service.resp import pack

_LUA = Path(__file__).parent / "lua"
_SCRIPTS = {
    name: (_LUA / f"{name}.lua").read_text(encoding="utf-8")
    for name in ("put_once", "take", "done", "postpone", "status")
}
_CHUNK_EVENTS = 1000
_CHUNK_BYTES = 4 * 1024 * 1024
# One delivery fits a consumer's memory, however large its events are; over a slow line it is
# smaller, or its lease would end before it is here.
_LEAST_TAKE_BYTES, _FIRST_TAKE_BYTES, _MOST_TAKE_BYTES = 1 << 18, 1 << 22, 1 << 24
_FAST_SECONDS, _SLOW_SECONDS = 2.0, 5.0
_POLL_SECONDS = 0.02
_RATE_SECONDS = 30
_READ_SECONDS = 2.0
# A delivery may be large, and nobody's answer waits for it.
_ARRIVING_SECONDS = 60.0
_MOST_DELAY_SECONDS = 60.0
_MOST_DRAINED = 20_000
# Drains are noted in whole seconds, by the server's clock.
_DRAINED_SECONDS = 2
# Nobody's answer waits for a drain, and over a slow line it has to come to an end as well.
_DRAINED_BYTES_A_SECOND = 1024 * 1024
# A full queue is asked for its length this often, and takes events again below this share.
_FULL_SECONDS = 0.2
_ROOM = 0.95
_MULTI, _EXEC = pack(("MULTI",)), pack(("EXEC",))


class Pipes(NamedTuple):
    """A connection for each use: what is large holds up neither writes nor the leases."""

    writes: Pipe
    drains: Pipe
    takes: Pipe
    reads: Pipe


class Rules(NamedTuple):
    """How long an event may wait, how long a lease lasts, and how many events may wait."""

    ttl_seconds: int
    lease_seconds: float
    max_events: int


class RedisQueue:
    """An EventQueue in Redis; leases run by the server's clock."""

    def __init__(self, pipes: Pipes, ledger: Ledger, name: str, rules: Rules) -> None:
        self._pipes = pipes
        self._ledger = ledger
        self._limit = _Limit(rules.max_events)
        self._portion = _Portion()
        self._name = name
        self._lease_ms = round(rules.lease_seconds * 1000)
        # A net for a queue that everybody left; an event's own age is the consumer's to judge.
        self._kept_seconds = 2 * rules.ttl_seconds
        self._expire = pack(("EXPIRE", name, self._kept_seconds))
        # The hash tag keeps every key of a queue in one slot of a cluster.
        self._leases = f"{{{name}}}:leases"
        self._attempts = f"{{{name}}}:attempts"
        self._lease_prefix = f"{{{name}}}:lease:"
        self._done = f"{{{name}}}:done"
        self._drained = f"{{{name}}}:drained"
        self._origins = f"{{{name}}}:origins"

    async def put(self, events: Sequence[bytes]) -> Ack:
        """Hold `events` durably, all or none.

        Raises BackendUnavailable within the timeout, QueueFull once the limit is reached: the
        writes under way by then are still taken.
        """
        if not events:
            return "queued"
        pipe = self._pipes.writes
        until = pipe.deadline()
        await self._expect_room(pipe, until)
        pushes = [pack(("RPUSH", self._name, *chunk)) for chunk in _chunks(events)]
        commands = [*pushes, self._expire, *self._ledger.counting(len(events))]
        # MULTI, each command queued, and EXEC with what each has done.
        packed = b"".join((_MULTI, *commands, _EXEC))
        replies = await pipe.call(packed, len(commands) + 2, until)
        self._refuse_errors(replies)
        done = replies[-1]
        with self._understanding():
            if isinstance(done[0], ReplyError):
                await self._uncount(len(events), until)
            self._refuse_errors(done)
            self._limit.saw(done[len(pushes) - 1])
            self._ledger.told(done[-2], done[-1])
        return "queued"

    async def put_once(self, delivery: Delivery) -> Ack:
        """Hold the events of another queue's delivery like `put`; harmless when repeated.

        Large deliveries may take a second for each MiB beyond the timeout. A lease is known
        again for as long as the queue keeps events, as one of the 20,000 that were put last; the
        tallies tell how many events came from each of the 1,000 epochs that were put last.
        """
        pipe = self._pipes.drains
        until = pipe.deadline() + sum(map(len, delivery.events)) / _DRAINED_BYTES_A_SECOND
        await self._expect_room(pipe, until)
        keys = (self._name, self._ledger.key, self._drained, self._origins)
        lease, origin = str(delivery.lease_id), str(delivery.epoch)
        rules = (lease, str(uuid.uuid4()), self._kept_seconds, _MOST_DRAINED, origin, MOST_ORIGINS)
        packed = _script("put_once", keys, (*rules, *delivery.events))
        replies = await pipe.call(packed, 1, until)
        self._refuse_errors(replies)
        with self._understanding():
            epoch, accepted, length, moved = replies[0]
            self._limit.saw(length)
            self._ledger.told_of_moves(epoch, accepted, {origin.encode(): moved})
        return "queued"

    async def _expect_room(self, pipe: Pipe, until: float) -> None:
        if self._limit.is_due():
            replies = await pipe.call(pack(("LLEN", self._name)), 1, until)
            self._refuse_errors(replies)
            with self._understanding():
                self._limit.saw(replies[0])
        self._limit.refuse()

    async def _uncount(self, events: int, until: float) -> None:
        """Take events back that were counted but not pushed: the key is no list."""
        packed = pack(("HINCRBY", self._ledger.key, "accepted", -events))
        with suppress(BackendUnavailable):
            await self._pipes.writes.call(packed, 1, until)

    async def tallies(self) -> list[Tally]:
        """Return what was accepted in the last 16 epochs that this process saw, the present last.

        A server that forgot its last writes counts less in the present one than was acknowledged:
        then it is there twice. Raises BackendUnavailable when it cannot be read.
        """
        # What is acknowledged before the question is in the answer, unless the server forgot it.
        remembered = self._ledger.remembered()
        replies = await self._ask(self._ledger.question)
        with self._understanding():
            return self._ledger.tallies(remembered, replies[0])

    async def reserves(self) -> list[Reserve]:
        """Return nothing: what Redis holds is in no file of this host."""
        return []

    async def take(self, limit: int, wait_seconds: float) -> Delivery | None:
        """Lease up to `limit` of the oldest events, an expired lease first; None when idle.

        A delivery that is arriving may take a minute. Raises BackendUnavailable when nothing
        came for two seconds, or for the timeout if that is longer.
        """
        deadline = time.monotonic() + wait_seconds
        while True:
            if delivery := await self._take(limit):
                return delivery
            if time.monotonic() >= deadline:
                return None
            # No blocking pop: what it removed would be in no lease if we died now.
            await asyncio.sleep(_POLL_SECONDS)

    async def _take(self, limit: int) -> Delivery | None:
        lease, epoch = str(uuid.uuid4()), str(uuid.uuid4())
        furthest_ms = max(self._lease_ms, round(_MOST_DELAY_SECONDS * 1000))
        keys = (self._name, self._leases, self._attempts, self._ledger.key)
        sizes = (self._lease_ms, limit, self._portion.bytes)
        packed = _script("take", keys, (lease, *sizes, self._lease_prefix, epoch, furthest_ms))
        begun = time.monotonic()
        try:
            replies = await self._pipes.takes.call(packed, 1)
        except BackendUnavailable:
            self._portion.halve()
            raise
        self._refuse_errors(replies)
        with self._understanding():
            if not replies[0]:
                return None
            lease_id, attempts, events, present = replies[0]
            self._portion.came(sum(map(len, events)), time.monotonic() - begun)
            return Delivery(UUID(lease_id.decode()), events, attempts, epoch_of(present))

    async def done(self, delivery: Delivery) -> None:
        """Forget the events of `delivery`; harmless when repeated."""
        lease = self._lease_prefix + str(delivery.lease_id)
        keys = (self._leases, self._attempts, lease, self._done)
        await self._ask(_script("done", keys, (str(delivery.lease_id), 60 + _RATE_SECONDS)))

    async def extend(self, delivery: Delivery) -> None:
        """Begin the lease's time anew; nothing happens when it is gone."""
        await self._postpone(delivery, self._lease_ms)

    async def give_back(self, delivery: Delivery, delay_seconds: float) -> None:
        """Offer the events again after `delay_seconds`, at most 60, with one attempt more."""
        await self._postpone(delivery, round(min(delay_seconds, _MOST_DELAY_SECONDS) * 1000))

    async def _postpone(self, delivery: Delivery, delay_ms: int) -> None:
        lease = str(delivery.lease_id)
        await self._ask(_script("postpone", (self._leases,), (lease, delay_ms)))

    async def status(self) -> QueueStatus:
        """Count what waits and what is leased; the rate is that of the last half minute."""
        keys = (self._name, self._leases, self._done, self._drained)
        asked = _script("status", keys, (self._lease_prefix, wire.HEAD_SIZE))
        replies = await self._ask(asked)
        with self._understanding():
            waiting, in_flight, done, now, drained, heads = replies[0]
            received = _received(heads)
            oldest = min(received, default=None)
            return QueueStatus(
                backend="redis",
                size=waiting,
                in_flight=in_flight,
                oldest_age_seconds=None if oldest is None else _age(oldest, now),
                stored_per_second=round(done / _RATE_SECONDS, 1),
                held_since=_held_since(oldest, drained) if len(received) == len(heads) else None,
            )

    async def warnings(self) -> list[str]:
        """Say what can lose or refuse events, a sentence each.

        Raises BackendUnavailable when the server answers but takes no events.
        """
        asked = [*questions(self._name), pack(("LLEN", self._name))]
        *replies, length = await self._pipes.reads.call(b"".join(asked), len(asked))
        self._refuse_errors(replies[:1])
        with self._understanding():
            found = judge(self._name, replies)
            if length >= self._limit.max_events:
                found.append(f"the queue is full: {length} events wait")
        return found

    async def _ask(self, packed: bytes) -> list[Any]:
        replies = await self._pipes.reads.call(packed, 1)
        self._refuse_errors(replies)
        return replies

    def _refuse_errors(self, replies: Sequence[Any]) -> None:
        """Raise BackendUnavailable for the first error among replies."""
        for reply in replies:
            if isinstance(reply, ReplyError):
                if "READONLY" in str(reply):
                    self._drop_connections("this server is no master any more")
                raise BackendUnavailable(f"redis: {reply}")

    @contextmanager
    def _understanding(self) -> Iterator[None]:
        """Turn what only replies of another kind than Redis's lead to into BackendUnavailable."""
        try:
            yield
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            self._drop_connections("an answer makes no sense")
            raise BackendUnavailable(f"redis: an answer makes no sense ({error})") from error

    def _drop_connections(self, reason: str) -> None:
        for pipe in self._pipes:
            pipe.drop(reason)


class _Limit:
    """Knows from the queue's lengths whether it takes more; full, it has to fall below 95 %."""

    def __init__(self, max_events: int) -> None:
        self.max_events = max_events
        self._is_full = False
        self._asked = 0.0

    def saw(self, length: int) -> None:
        """Learn the queue's length."""
        self._asked = time.monotonic()
        if length >= self.max_events:
            self._is_full = True
        elif length < _ROOM * self.max_events:
            self._is_full = False

    def is_due(self) -> bool:
        """Whether the length has to be asked for, which is so for one caller at a time."""
        is_due = self._is_full and time.monotonic() - self._asked >= _FULL_SECONDS
        if is_due:
            self._asked = time.monotonic()
        return is_due

    def refuse(self) -> None:
        """Raise QueueFull if there is no room."""
        if self._is_full:
            raise QueueFull(f"the queue is full: {self.max_events} events wait")


class _Portion:
    """Knows how many bytes to take at once: as many as come in a few seconds."""

    def __init__(self) -> None:
        self.bytes = _FIRST_TAKE_BYTES

    def halve(self) -> None:
        """Ask for less, after a delivery that came late or not at all."""
        self.bytes = max(_LEAST_TAKE_BYTES, self.bytes // 2)

    def came(self, size: int, seconds: float) -> None:
        """Learn from a delivery of `size` bytes how fast the line is."""
        if seconds > _SLOW_SECONDS:
            self.halve()
        elif seconds < _FAST_SECONDS and size >= self.bytes // 2:
            self.bytes = min(_MOST_TAKE_BYTES, 2 * self.bytes)


def _script(name: str, keys: Sequence[str], arguments: Sequence[str | int | bytes]) -> bytes:
    # Its text, not its hash: nothing has to be mended when the server forgot the script.
    return pack(("EVAL", _SCRIPTS[name], len(keys), *keys, *arguments))


def _chunks(events: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    start, size = 0, 0
    for place, event in enumerate(events):
        if place > start and (place - start >= _CHUNK_EVENTS or size + len(event) > _CHUNK_BYTES):
            yield events[start:place]
            start, size = place, 0
        size += len(event)
    yield events[start:]


def _received(heads: Sequence[bytes]) -> list[int]:
    """Return when the events were received, without those whose bytes do not tell."""
    received = []
    for head in heads:
        with suppress(ValueError):
            received.append(wire.received_at(head))
    return received


def _age(received: int, now_unix_seconds: int) -> float:
    return max(0.0, round(now_unix_seconds - wire.to_unix_seconds(received), 3))


def _held_since(oldest: int | None, drained_unix_seconds: int) -> datetime | None:
    # Events leave in the order in which they were put. What comes from another queue was accepted
    # long before it was put here: it is gone when the oldest that are left were put later.
    if oldest is None or wire.to_unix_seconds(oldest) <= drained_unix_seconds + _DRAINED_SECONDS:
        return None
    with suppress(OverflowError):
        return wire.from_micros(oldest)
    return None


@asynccontextmanager
async def open_redis_queue(
    url: str,
    *,
    name: str,
    ttl_seconds: int,
    timeout_ms: int,
    lease_seconds: float = 30,
    max_events: int = 5_000_000,
) -> AsyncIterator[RedisQueue]:
    """Yield the queue `name` of the server that `url` leads to; it connects when first used.

    Writes are answered within `timeout_ms`, the rest within two seconds or that time; only a
    delivery that is arriving may take longer.
    """
    address, seconds = parse_redis_url(url), timeout_ms / 1000
    ledger = Ledger(f"{{{name}}}:ledger")
    pipes = Pipes(
        writes=Pipe(address, seconds),
        drains=Pipe(address, seconds),
        takes=Pipe(address, max(_READ_SECONDS, seconds), arriving_seconds=_ARRIVING_SECONDS),
        reads=Pipe(address, max(_READ_SECONDS, seconds)),
    )
    try:
        yield RedisQueue(pipes, ledger, name, Rules(ttl_seconds, lease_seconds, max_events))
    finally:
        for pipe in pipes:
            pipe.close()
