"""One connection to Redis for the write path: packed commands out, parsed replies in.

redis-py's pipeline costs a quarter of a millisecond of Python, which is more than all the work on
the requests that share a write. This speaks the same protocol with the same parser and no more:
commands go out as they are packed, their replies come back in order.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import hiredis
from redis.asyncio.connection import parse_url

from logging_service.errors import BackendUnavailable

_PORT = 6379


class Connection(asyncio.Protocol):
    """An open connection; replies are given to the calls in their order."""

    def __init__(self, lost: Callable[["Connection"], None]) -> None:
        self._lost = lost
        self._parser = hiredis.Reader()
        self._calls: deque[_Call] = deque()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way out."""
        self._transport = cast("asyncio.Transport", transport)

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
        self._parser.feed(data)
        while (reply := self._parser.gets()) is not False:
            if not self._calls:
                self.close()
                return
            call = self._calls[0]
            call.replies.append(reply)
            if len(call.replies) == call.wanted:
                self._calls.popleft()
                if not call.future.done():
                    call.future.set_result(call.replies)

    def connection_lost(self, error: Exception | None) -> None:
        """Tell all who wait; what became of their commands is not known."""
        self._lost(self)
        reason = BackendUnavailable(f"redis: {error or 'the connection was closed'}")
        while self._calls:
            future = self._calls.popleft().future
            if not future.done():
                future.set_exception(reason)

    def close(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()


class _Call:
    __slots__ = ("future", "replies", "wanted")

    def __init__(self, wanted: int, future: "asyncio.Future[list[Any]]") -> None:
        self.wanted = wanted
        self.future = future
        self.replies: list[Any] = []


class Pipe:
    """A connection that is opened when it is needed, and again after it was lost."""

    def __init__(self, url: str, timeout_seconds: float) -> None:
        self._target: dict[str, Any] = {**parse_url(url)}
        self._timeout_seconds = timeout_seconds
        self._open: Connection | None = None
        self._opening = asyncio.Lock()

    async def call(self, packed: bytes, replies: int) -> list[Any]:
        """Send commands and return their replies; raises BackendUnavailable within the timeout."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                connection = self._open or await self._connected()
                return await connection.call(packed, replies)
        except TimeoutError:
            # Later replies would be taken for those of later calls.
            self.close()
            raise BackendUnavailable("redis: no answer in time") from None
        except OSError as error:
            raise BackendUnavailable(f"redis: {error}") from error

    def close(self) -> None:
        """End the connection; the next call opens another."""
        if self._open is not None:
            self._open.close()
            self._open = None

    async def _connected(self) -> Connection:
        async with self._opening:
            if self._open is None:
                self._open = await self._connect()
            return self._open

    async def _connect(self) -> Connection:
        target = {**self._target}
        secured = target.pop("connection_class", None)
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(self._forget),
            target.get("host", "localhost"),
            target.get("port", _PORT),
            ssl=secured(**target).ssl_context.get() if secured else None,
        )
        await self._introduce(connection)
        return connection

    async def _introduce(self, connection: Connection) -> None:
        words: list[tuple[str, ...]] = []
        if password := self._target.get("password"):
            user = self._target.get("username")
            words.append(("AUTH", user, password) if user else ("AUTH", password))
        if database := self._target.get("db"):
            words.append(("SELECT", str(database)))
        if not words:
            return
        for reply in await connection.call(b"".join(map(pack, words)), len(words)):
            if isinstance(reply, hiredis.ReplyError):
                connection.close()
                raise BackendUnavailable(f"redis: {reply}")

    def _forget(self, connection: Connection) -> None:
        if self._open is connection:
            self._open = None


def pack(words: tuple[str | bytes | int, ...]) -> bytes:
    """Return a command in the protocol's form."""
    return cast("bytes", hiredis.pack_command(words))  # type: ignore[arg-type] # its stub asks for one
