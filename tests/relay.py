"""A TCP relay that stands before a server and misbehaves as a network does."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit


class Relay:
    """Passes bytes on to `target_port`; while it is cut, connections are refused or reset.

    These can be changed at any time:
    `delay_seconds`: what every piece waits on its way, in both directions.
    `bytes_a_second`: how much passes in each direction of each connection; None is no limit.
    `is_half_open`: nothing is passed on, nothing is closed.
    `loses_answers`: what the client sends arrives, what the server answers does not.
    `answer_bytes`: after so many bytes of answers all connections are reset; None is never.
    `last_words`: the first who says them is reset once the server has answered; then None again.
    """

    def __init__(self, target_port: int, tls: ssl.SSLContext | None = None) -> None:
        self.port = 0
        self.connections = 0
        self.delay_seconds = 0.0
        self.bytes_a_second: int | None = None
        self.is_half_open = False
        self.loses_answers = False
        self.answer_bytes: int | None = None
        self.last_words: bytes | None = None
        self._target_port = target_port
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def mend(self) -> None:
        """Listen, on the same port as before."""
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, ssl=self._tls
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Listen no more and reset what is open."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.reset()
        await asyncio.sleep(0)

    def reset(self) -> None:
        """Reset what is open; new connections are taken."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            server_reader, server_writer = await asyncio.open_connection(
                "127.0.0.1", self._target_port
            )
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, server_writer}
        doomed = asyncio.Event()
        try:
            await asyncio.gather(
                self._pump(reader, server_writer, doomed, is_answer=False),
                self._pump(server_reader, writer, doomed, is_answer=True),
            )
        finally:
            self._writers -= {writer, server_writer}

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        doomed: asyncio.Event,
        *,
        is_answer: bool,
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                await asyncio.sleep(self.delay_seconds)
                if self.bytes_a_second:
                    await asyncio.sleep(len(data) / self.bytes_a_second)
                if is_answer and doomed.is_set():
                    break
                if not is_answer and self.last_words and self.last_words in data:
                    self.last_words = None
                    doomed.set()
                if self.is_half_open or (is_answer and self.loses_answers):
                    continue
                if is_answer and self.answer_bytes is not None:
                    await self._answer_in_part(writer, data)
                    continue
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    async def _answer_in_part(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        assert self.answer_bytes is not None
        part = data[: self.answer_bytes]
        self.answer_bytes -= len(part)
        writer.write(part)
        await writer.drain()
        if self.answer_bytes == 0:
            # A reset overtakes what was sent just before.
            await asyncio.sleep(0.01)
            self.reset()


@asynccontextmanager
async def a_relay(target_port: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[Relay]:
    """Yield a relay that passes on and is cut in the end; with `tls`, clients have to speak it."""
    relay = Relay(target_port, tls)
    await relay.mend()
    try:
        yield relay
    finally:
        await relay.cut()


@asynccontextmanager
async def before(url: str) -> AsyncIterator[tuple[Relay, str]]:
    """Yield a relay before the server of `url`, and the URL that leads through it."""
    port = urlsplit(url).port
    assert port is not None
    async with a_relay(port) as relay:
        yield relay, url.replace(f":{port}", f":{relay.port}")
