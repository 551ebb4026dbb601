"""Senders who take too long are cut off; those who are idle are let go."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
from servers import unused_port

from logging_service import http_protocol
from logging_service.auth import Principal
from logging_service.client_address import ClientAddresses
from logging_service.http_protocol import WriteProtocol
from logging_service.server import FaceConfig
from logging_service.settings import Settings


class _NoWrites:
    """In the place of a WritePath whose queue never answers."""

    def admit(self, _headers: object, _address: str) -> Principal:
        return Principal("anyone", "anyone", frozenset({"write"}))

    def begin(self, _request: object, _respond: object) -> None:
        return None


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    monkeypatch.setattr(http_protocol, "_SWEEP_SECONDS", 0.05)
    limits = {"HEADER": 0.3, "BODY": 0.6, "LINGER": 0.1}
    for phase, seconds in limits.items():
        monkeypatch.setattr(http_protocol._Phase[phase], "_value_", seconds)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "lifespan"
        await receive()
        scope["state"]["write_path"] = _NoWrites()
        scope["state"]["client_addresses"] = ClientAddresses()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    chosen = unused_port()
    settings = Settings.model_validate({"producer_port": chosen})
    config = FaceConfig(app, "producer", settings, http=WriteProtocol, timeout_keep_alive=1)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield chosen
    for connection in list(server.server_state.connections):
        connection.transport.abort()
    server.should_exit = server.force_exit = True
    await task


async def answer_to(port: int, *parts: bytes, pause_seconds: float = 0) -> bytes:
    """Send `parts`, with pauses, until the other side has ended; return what came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    reading = asyncio.create_task(reader.read())
    try:
        for part in parts:
            if not reading.done():
                writer.write(part)
                await asyncio.sleep(pause_seconds)
        return await asyncio.wait_for(reading, 5)
    finally:
        reading.cancel()
        writer.close()


async def test_a_header_that_never_ends_is_cut_off(port: int) -> None:
    answer = await answer_to(port, b"POST /log HTTP/1.1\r\nHost: localhost\r\n")
    assert answer.startswith(b"HTTP/1.1 408 ")


async def test_a_header_that_drips_is_cut_off(port: int) -> None:
    drops = [b"GET / HTTP/1.1\r\n", *[b"X-A: b\r\n"] * 20]
    assert (await answer_to(port, *drops, pause_seconds=0.1)).startswith(b"HTTP/1.1 408 ")


async def test_a_body_that_drips_is_cut_off(port: int) -> None:
    head = b"POST /log HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
    answer = await answer_to(port, head, *[b"x"] * 20, pause_seconds=0.1)
    assert answer.startswith(b"HTTP/1.1 408 ")


async def test_a_connection_that_sends_nothing_is_closed(port: int) -> None:
    assert await answer_to(port) == b""


async def test_a_request_under_way_is_not_cut_off(port: int) -> None:
    request = b"POST /log HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.5):
            await answer_to(port, request)
