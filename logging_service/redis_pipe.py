"""One connection to the Redis server that takes writes, opened when it is needed."""

import asyncio
from typing import Any

from logging_service.errors import BackendUnavailable
from logging_service.redis_address import RedisAddress
from logging_service.resp import Connection, connect, pack
from logging_service.sentinel import Master, find_master, until_replaced

_OPENING_SECONDS = 2.0
_MOMENT_SECONDS = 0.005


class Pipe:
    """A connection that is opened when it is needed, and again after it was lost.

    An answer that is arriving when the timeout ends is waited for, for `arriving_seconds` since
    the call at the most, until no byte of it has come for the timeout.
    """

    def __init__(
        self, address: RedisAddress, timeout_seconds: float, *, arriving_seconds: float = 0.0
    ) -> None:
        self._address = address
        self._timeout_seconds = timeout_seconds
        self._arriving_seconds = arriving_seconds
        self._open: Connection | None = None
        self._opening: asyncio.Task[Connection] | None = None
        self._watching: asyncio.Task[None] | None = None

    def deadline(self) -> float:
        """Return the time of the loop at which a call that begins now has to end."""
        return asyncio.get_running_loop().time() + self._timeout_seconds

    async def call(self, packed: bytes, replies: int, until: float | None = None) -> list[Any]:
        """Send commands and return their replies, errors among them as they are.

        Raises BackendUnavailable at `until`, by default within the timeout, connecting included,
        unless the answer is arriving; what became of the commands is not known then.
        """
        until = until or self.deadline()
        connection = self._open
        if connection is None or connection.is_closed:
            connection = await self._connected(until)
        answered = connection.call(packed, replies)
        loop = asyncio.get_running_loop()
        # Not `asyncio.timeout`: after a busy moment it cancels a call whose answer is there.
        last = max(until, loop.time() + self._arriving_seconds)
        watch = loop.call_at(until, self._grant_a_moment, connection, answered, last)
        try:
            return await answered
        finally:
            watch.cancel()

    def _grant_a_moment(
        self, connection: Connection, answered: asyncio.Future[Any], last: float
    ) -> None:
        """End the connection of a call that is late, once what has come meanwhile is read."""
        loop = asyncio.get_running_loop()
        loop.call_later(_MOMENT_SECONDS, self._give_up, connection, answered, last)

    def _give_up(self, connection: Connection, answered: asyncio.Future[Any], last: float) -> None:
        if answered.done():
            return
        loop = asyncio.get_running_loop()
        until = min(connection.heard_at + self._timeout_seconds, last)
        if until > loop.time():
            loop.call_at(until, self._grant_a_moment, connection, answered, last)
        else:
            # Later replies would be taken for those of later calls.
            connection.end("no answer in time")

    def drop(self, reason: str) -> None:
        """End the connection; the next call opens another, to the server that is master then."""
        if self._open is not None:
            self._open.end(reason)

    def close(self) -> None:
        """End the connection, and the opening of one."""
        for task in (self._opening, self._watching):
            if task is not None:
                task.cancel()
        self.drop("closed")

    async def _connected(self, until: float) -> Connection:
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._reopen())
            self._opening.add_done_callback(_look_at)
        # A call that cannot wait leaves the connection in the making to those after it.
        opening = self._opening
        seconds = until - asyncio.get_running_loop().time()
        await asyncio.wait((opening,), timeout=max(0.0, seconds))
        if not opening.done() or opening.cancelled():
            raise BackendUnavailable("redis: no connection in time")
        return opening.result()

    async def _reopen(self) -> Connection:
        try:
            async with asyncio.timeout(max(_OPENING_SECONDS, self._timeout_seconds)):
                self._open = await self._connect()
        except TimeoutError:
            raise BackendUnavailable("redis: no connection in time") from None
        return self._open

    async def _connect(self) -> Connection:
        address = self._address
        if address.service is None:
            return await connect(address.places[0], address.tls, self._introduction())
        master = await find_master(address)
        connection = await connect(master.place, address.tls, self._introduction())
        if self._watching is not None:
            self._watching.cancel()
        self._watching = asyncio.create_task(self._leave(connection, master))
        return connection

    async def _leave(self, connection: Connection, master: Master) -> None:
        await until_replaced(master, self._address)
        connection.end("another server is the master now")

    def _introduction(self) -> list[bytes]:
        address = self._address
        commands = []
        if address.username:
            commands.append(pack(("AUTH", address.username, address.password or "")))
        elif address.password:
            commands.append(pack(("AUTH", address.password)))
        if address.database:
            commands.append(pack(("SELECT", address.database)))
        return commands


def _look_at(opening: asyncio.Task[Connection]) -> None:
    # Those who waited may all have given up; asyncio would complain of an error that nobody saw.
    if not opening.cancelled():
        opening.exception()
