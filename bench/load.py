"""Drives an HTTP server over plain sockets, cheaply enough that the server is what is measured.

Requests are rendered beforehand. Of an answer only the status and the length are looked at. Times
are by the monotonic clock, which all processes of a host share.
"""

import select
import socket
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain, repeat
from typing import Self

import msgspec

from bench.figures import percentile

LOOPBACK = "127.0.0.1"
_READ_BYTES = 1 << 18
# Longer than any answer may take: the producer gives up on its queue after two seconds.
_SILENCE_SECONDS = 20.0


class ServerSilent(Exception):
    """A server closed a connection under a request, or did not answer for 20 seconds."""


class Outcome(msgspec.Struct):
    """What a run saw; `cpu_seconds` is what the generator itself needed for it."""

    began: float
    ended: float
    cpu_seconds: float
    statuses: dict[str, int]
    p50_ms: float
    p99_ms: float
    answered_at: list[float] = []

    @property
    def seconds(self) -> float:
        """The time from the first request's first byte to the last answer's last."""
        return self.ended - self.began

    @property
    def answered(self) -> int:
        """How many requests were answered, whatever the answer."""
        return sum(self.statuses.values())

    @property
    def busy(self) -> float:
        """The share of the time in which the generator used a processor."""
        return self.cpu_seconds / self.seconds


def end_of_answer(data: bytes) -> int | None:
    """Return where the answer at the beginning of `data` ends, None when that is not known yet."""
    head = data.find(b"\r\n\r\n")
    if head < 0:
        return None
    place = data.find(b"content-length:", 0, head)
    if place < 0:
        place = data[:head].lower().find(b"content-length:")
        if place < 0:
            raise ValueError("an answer without Content-Length")
    place += len(b"content-length:")
    return head + 4 + int(data[place : data.find(b"\r\n", place)])


class _Connection:
    """A connection that stays open; at most one request is under way on it."""

    __slots__ = ("_answer", "_rest", "_socket", "began", "number")

    def __init__(self, address: tuple[str, int]) -> None:
        self._socket = socket.create_connection(address, timeout=5)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)  # noqa: FBT003 - that is its only argument
        self._answer = b""
        self._rest = memoryview(b"")
        self.began = 0.0
        self.number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """Return the descriptor to be watched."""
        return self._socket.fileno()

    def begin(self, request: bytes) -> bool:
        """Send `request`, and say whether all of it has gone out."""
        self.began = time.monotonic()
        sent = self._send(request)
        if sent == len(request):
            return True
        self._rest = memoryview(request)[sent:]
        return False

    def go_on(self) -> bool:
        """Send more of the request, and say whether all of it has gone out."""
        self._rest = self._rest[self._send(self._rest) :]
        return not self._rest

    def _send(self, data: bytes | memoryview) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0

    def status(self) -> bytes | None:
        """Read, and return the status of the answer once all of it has come in."""
        data = self._socket.recv(_READ_BYTES)
        if not data:
            raise ServerSilent("the server closed a connection")
        if self._answer:
            data = self._answer + data
        end = end_of_answer(data)
        if end is None or len(data) < end:
            self._answer = data
            return None
        self._answer = b""
        return data[9:12]


class _Tally:
    """Counts answers and keeps how long each took."""

    def __init__(self) -> None:
        self._cpu = time.process_time()
        self._began = time.monotonic()
        self._statuses: Counter[bytes] = Counter()
        self._took: list[float] = []

    def add(self, status: bytes, seconds: float) -> None:
        self._statuses[status] += 1
        self._took.append(seconds)

    def outcome(self, answered_at: Sequence[float] = ()) -> Outcome:
        ended, cpu = time.monotonic(), time.process_time()
        self._took.sort()
        return Outcome(
            self._began,
            ended,
            cpu - self._cpu,
            {status.decode(): count for status, count in self._statuses.items()},
            percentile(self._took, 50) * 1000,
            percentile(self._took, 99) * 1000,
            list(answered_at),
        )


def _connect(stack: ExitStack, address: tuple[str, int], number: int) -> list[_Connection]:
    return [stack.enter_context(_Connection(address)) for _ in range(number)]


def drive(
    port: int, connections: int, requests: Iterable[bytes], seconds: float, host: str = LOOPBACK
) -> Outcome:
    """Send the next request on each connection as soon as the last one is answered.

    Ends when the time or the requests are over, and everything that was sent is answered.
    """
    source = iter(requests)
    with ExitStack() as stack:
        opened = _connect(stack, (host, port), connections)
        poll = stack.enter_context(select.epoll())
        for connection in opened:
            poll.register(connection, select.EPOLLIN)
        tally = _Tally()
        _keep_busy(poll, opened, source, tally, time.monotonic() + seconds)
        return tally.outcome()


def _keep_busy(
    poll: select.epoll,
    opened: list[_Connection],
    source: Iterator[bytes],
    tally: _Tally,
    until: float,
) -> None:
    by_descriptor = {connection.fileno(): connection for connection in opened}
    under_way = sum(_next(poll, connection, source) for connection in opened)
    now = time.monotonic
    while under_way:
        ready = poll.poll(_SILENCE_SECONDS)
        if not ready:
            raise ServerSilent(f"no answer for {_SILENCE_SECONDS:.0f} s")
        for descriptor, events in ready:
            connection = by_descriptor[descriptor]
            if events & select.EPOLLOUT:
                if connection.go_on():
                    poll.modify(connection, select.EPOLLIN)
                continue
            status = connection.status()
            if status is None:
                continue
            answered = now()
            tally.add(status, answered - connection.began)
            if answered >= until or not _next(poll, connection, source):
                under_way -= 1


def _next(poll: select.epoll, connection: _Connection, source: Iterator[bytes]) -> bool:
    request = next(source, None)
    if request is None:
        return False
    if not connection.begin(request):
        poll.modify(connection, select.EPOLLIN | select.EPOLLOUT)
    return True


def around(requests: Sequence[bytes]) -> Iterator[bytes]:
    """Yield the requests again and again."""
    return chain.from_iterable(repeat(requests))


def pace(port: int, connections: int, requests: Sequence[bytes], per_second: float) -> Outcome:
    """Send each request when it is due, evenly, on whichever connection is free.

    `answered_at` has the time at which each was answered, in the order of `requests`.
    """
    answered_at = [0.0] * len(requests)
    with ExitStack() as stack:
        free = deque(_connect(stack, (LOOPBACK, port), connections))
        tally = _Tally()
        _keep_pace(free, requests, per_second, answered_at, tally)
        return tally.outcome(answered_at)


def _keep_pace(
    free: deque[_Connection],
    requests: Sequence[bytes],
    per_second: float,
    answered_at: list[float],
    tally: _Tally,
) -> None:
    began, sent, busy = time.monotonic(), 0, list[_Connection]()
    while sent < len(requests) or busy:
        due = began + sent / per_second - time.monotonic()
        if due <= 0 and free and sent < len(requests):
            connection = free.popleft()
            connection.number = sent
            # A single event is smaller than any socket's buffer.
            connection.begin(requests[sent])
            busy.append(connection)
            sent += 1
            continue
        wait = due if free and sent < len(requests) else _SILENCE_SECONDS
        # select, not epoll: its time-out is not rounded up to a whole millisecond.
        ready, _, _ = select.select(busy, (), (), max(0.0, wait))
        if not ready and wait == _SILENCE_SECONDS:
            raise ServerSilent(f"no answer for {_SILENCE_SECONDS:.0f} s")
        for connection in ready:
            status = connection.status()
            if status is not None:
                answered = answered_at[connection.number] = time.monotonic()
                tally.add(status, answered - connection.began)
                busy.remove(connection)
                free.append(connection)
