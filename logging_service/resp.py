"""A connection that speaks the Redis protocol: packed commands out, parsed replies in.

redis-py's pipeline costs a quarter of a millisecond of Python, which is more than all the work on
the requests that share a write. This speaks the same protocol with the same parser and no more:
commands go out as they are packed, their replies come back in order.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

import hiredis

from logging_service.errors import BackendUnavailable
from logging_service.redis_address import Place

# The largest reply is a delivery: 16 MiB and one event more.
_MAX_REPLY_BYTES = 64 * 1024 * 1024
_NOT_YET = object()


class Connection(asyncio.Protocol):
    """An open connection; replies are given to the calls in their order.

    What is no reply, answers no call or is larger than 64 MiB ends it.
    """

    def __init__(self) -> None:
        self._parser = hiredis.Reader(notEnoughData=_NOT_YET)
        self._unparsed = 0
        self._calls: deque[_Call] = deque()
        self._transport: asyncio.Transport | None = None
        # When the last bytes came, by the loop's time.
        self.heard_at = 0.0

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._transport is None or self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way out."""
        self._transport = cast("asyncio.Transport", transport)
        self.heard_at = asyncio.get_running_loop().time()

    def call(self, packed: bytes, replies: int) -> "asyncio.Future[list[Any]]":
        """Send commands and return their replies, errors among them as they are.

        The future raises BackendUnavailable when the connection ends before.
        """
        future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        if self._transport is None or self._transport.is_closing():
            future.set_exception(BackendUnavailable("redis: the connection is closed"))
            return future
        self._calls.append(_Call(replies, future))
        self._transport.write(packed)
        return future

    def data_received(self, data: bytes) -> None:
        """Give each reply to the call that waits for it."""
        if self.is_closed:
            return
        self.heard_at = asyncio.get_running_loop().time()
        try:
            self._parser.feed(data)
            self._unparsed += len(data)
            while (reply := self._parser.gets()) is not _NOT_YET:
                self._unparsed = 0
                if not self._calls:
                    self.end("an answer came that nobody asked for")
                    return
                call = self._calls[0]
                call.replies.append(reply)
                if len(call.replies) == call.wanted:
                    self._calls.popleft()
                    if not call.future.done():
                        call.future.set_result(call.replies)
        except hiredis.ProtocolError as error:
            self.end(f"what came is no answer: {error}")
        if self._unparsed > _MAX_REPLY_BYTES:
            self.end("an answer is too large")

    def connection_lost(self, error: Exception | None) -> None:
        """Tell all who wait; what became of their commands is not known."""
        self._fail(str(error or "the connection was closed"))

    def end(self, reason: str) -> None:
        """Close at once and tell all who wait."""
        if self._transport is not None:
            self._transport.abort()
        self._fail(reason)

    def _fail(self, reason: str) -> None:
        while self._calls:
            future = self._calls.popleft().future
            if not future.done():
                future.set_exception(BackendUnavailable(f"redis: {reason}"))


class _Call:
    __slots__ = ("future", "replies", "wanted")

    def __init__(self, wanted: int, future: "asyncio.Future[list[Any]]") -> None:
        self.wanted = wanted
        self.future = future
        self.replies: list[Any] = []


async def connect(
    place: Place, tls: ssl.SSLContext | None, introduction: Sequence[bytes]
) -> Connection:
    """Return a connection on which the packed commands of `introduction` were answered well.

    Raises BackendUnavailable; how long it takes is the caller's to bound.
    """
    try:
        _, connection = await asyncio.get_running_loop().create_connection(
            Connection, place.host, place.port, ssl=tls
        )
    except ssl.SSLCertVerificationError as error:
        reason = f"the certificate of {place.host} is not accepted: {error.verify_message}"
        raise BackendUnavailable(f"redis: {reason}") from error
    except OSError as error:
        raise BackendUnavailable(f"redis: {str(error) or type(error).__name__}") from error
    try:
        if introduction:
            raise_first_error(await connection.call(b"".join(introduction), len(introduction)))
    except BaseException:
        connection.end("the introduction failed")
        raise
    return connection


def raise_first_error(replies: Sequence[Any]) -> None:
    """Raise BackendUnavailable with the first error reply, if there is one."""
    for reply in replies:
        if isinstance(reply, hiredis.ReplyError):
            raise BackendUnavailable(f"redis: {reply}")


def pack(words: Sequence[str | bytes | int]) -> bytes:
    """Return a command in the protocol's form."""
    return cast("bytes", hiredis.pack_command(tuple(words)))  # type: ignore[arg-type] # its stub asks for one
