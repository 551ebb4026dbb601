"""A TCP proxy before a server, which misbehaves as networks do when it is told to."""

import asyncio
import struct
from asyncio import StreamReader, StreamWriter
from collections.abc import Sequence
from contextlib import suppress
from socket import SO_LINGER, SOL_SOCKET

_HOST = "127.0.0.1"
_CHUNK_BYTES = 64 * 1024
_LONGEST_WORD = 16
_NO_LINGER = struct.pack("ii", 1, 0)


class _Link:
    """A client's connection and the one that was opened to the server for it."""

    def __init__(self, client: StreamWriter, server: StreamWriter) -> None:
        self.loses_answer = False
        self.has_swallowed = False
        self.said = b""
        self._writers = (client, server)

    def reset(self) -> None:
        """End both connections so that both sides read ECONNRESET."""
        for writer in self._writers:
            with suppress(OSError):
                writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, _NO_LINGER)
            writer.transport.abort()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


class Proxy:
    """Passes bytes on from one port of this host to another; `mend` begins, and ends every fault.

    `delay_seconds`: what each piece waits on its way, in both directions.
    `is_half_open`: connections are taken and stay, and nothing that is sent arrives.
    `lost_answers`: how often an answer was lost since the beginning.
    """

    def __init__(self, port: int, server_port: int) -> None:
        self.port = port
        self.delay_seconds = 0.0
        self.is_half_open = False
        self.lost_answers = 0
        self._server_port = server_port
        self._last_words: Sequence[bytes] = ()
        self._listener: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._beginning = asyncio.Lock()

    async def mend(self) -> None:
        """Listen, and pass everything on."""
        self.delay_seconds = 0.0
        self.is_half_open = False
        self._last_words = ()
        for link in [link for link in self._links if link.has_swallowed]:
            link.reset()
        # Faults overlap, and then several end at once.
        async with self._beginning:
            if self._listener is None:
                self._listener = await asyncio.start_server(self._serve, _HOST, self.port)

    def refuse(self) -> None:
        """Reset every connection and take none."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self.reset()

    def reset(self) -> None:
        """Reset every connection; new ones are taken."""
        for link in list(self._links):
            link.reset()

    def lose_answer(self, words: Sequence[bytes]) -> None:
        """Reset instead of passing on the answer to what holds one of `words` next."""
        self._last_words = words

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection(_HOST, self._server_port)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, server_writer)
        self._links.add(link)
        try:
            await asyncio.gather(
                self._pass_on(link, reader, server_writer, is_answer=False),
                self._pass_on(link, server_reader, writer, is_answer=True),
            )
        finally:
            link.close()
            self._links.discard(link)

    async def _pass_on(
        self, link: _Link, reader: StreamReader, writer: StreamWriter, *, is_answer: bool
    ) -> None:
        with suppress(OSError):
            while piece := await reader.read(_CHUNK_BYTES):
                if self.delay_seconds:
                    await asyncio.sleep(self.delay_seconds)
                if self.is_half_open or link.has_swallowed:
                    link.has_swallowed = True
                elif is_answer and link.loses_answer:
                    self.lost_answers += 1
                    link.reset()
                else:
                    if not is_answer:
                        self._listen_for_last_words(link, piece)
                    writer.write(piece)
                    await writer.drain()
        link.close()

    def _listen_for_last_words(self, link: _Link, piece: bytes) -> None:
        # A word may come in two pieces.
        said = link.said + piece
        link.said = said[-_LONGEST_WORD:]
        if any(word in said for word in self._last_words):
            self._last_words = ()
            link.loses_answer = True
