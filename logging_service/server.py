"""Runs an application on uvicorn with our limits, our log and our way to say no."""

import asyncio
import gc
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Literal, NoReturn

import structlog
import uvicorn
from starlette.types import ASGIApp

from logging_service.settings import Settings
from logging_service.workers import Server, Workers, exit_on

_log = structlog.get_logger()


class _ToStructlog(logging.Handler):
    """What libraries log goes the way of our own lines."""

    def emit(self, record: logging.LogRecord) -> None:
        _log.log(
            record.levelno,
            "library_message",
            library=record.name,
            message=record.getMessage(),
            exc_info=record.exc_info,
        )


def forward_library_logs() -> None:
    """Send the warnings of uvicorn, asyncio and the rest through structlog."""
    logging.basicConfig(handlers=[_ToStructlog()], level=logging.WARNING, force=True)


def spare_the_collector() -> None:
    """Let the garbage collector pass over what lives as long as the process, and run seldom.

    Requests make no cycles, and looking for some took a tenth of the producer's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def refuse_to_start(message: str) -> NoReturn:
    """End the process with one line and the exit code 2."""
    sys.stderr.write(f"{message}\n")
    raise SystemExit(2)


def serve(
    app: ASGIApp | str,
    service: str,
    settings: Settings,
    *,
    workers: int = 1,
    http: type[asyncio.Protocol] | Literal["auto"] = "auto",
) -> None:
    """Serve `app` on <SERVICE>_HOST and <SERVICE>_PORT until a signal; an exit code of 0 follows.

    Several workers need the import path of a factory without arguments, `module:function`. SIGHUP
    replaces them one by one; one alone it ends in order, like SIGTERM.
    """
    host, port = getattr(settings, f"{service}_host"), getattr(settings, f"{service}_port")
    listener = _listen(service.upper(), host, port)
    forward_library_logs()
    config = uvicorn.Config(
        app,
        factory=isinstance(app, str),
        host=host,
        port=port,
        http=http,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )
    exit_on(signal.SIGINT, signal.SIGTERM)
    _log.info("listening", host=host, port=port, workers=workers)
    grace = settings.shutdown_grace_seconds
    if workers > 1:
        sys.exit(Workers(config, listener, workers, grace).run())
    signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    Server(config, grace).run([listener])


class _Guest(uvicorn.Server):
    """A server inside another program, which keeps its own signal handlers."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


@asynccontextmanager
async def serving(app: ASGIApp, listener: socket.socket) -> AsyncIterator[None]:
    """Serve `app` on `listener` in this loop for as long as the context is open."""
    config = uvicorn.Config(
        app,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    server = _Guest(config)
    task = asyncio.create_task(server.serve([listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await task


def _listen(name: str, host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = error.strerror or str(error)
        refuse_to_start(f"{name}_HOST={host} and {name}_PORT={port} cannot be used: {reason}")
