"""Runs an application on uvicorn with our limits, our log and our way to say no."""

import asyncio
import gc
import logging
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Literal, NoReturn

import structlog
import uvicorn
from starlette.types import ASGIApp
from uvicorn.importer import import_from_string

from logging_service.browsers import ALWAYS, ONLY_TLS, POLICY
from logging_service.errors import SettingsError
from logging_service.hosts import AllowedHosts, is_loopback, read_host_names
from logging_service.logs import escape_controls, log_what_nobody_catches
from logging_service.settings import Settings
from logging_service.tls import TlsFiles
from logging_service.workers import Server, Workers, exit_on

_log = structlog.get_logger()


class _ToStructlog(logging.Handler):
    """What libraries log goes the way of our own lines."""

    def emit(self, record: logging.LogRecord) -> None:
        _log.log(
            record.levelno,
            "library_message",
            library=record.name,
            # What follows repeats values: an exception's words, a warning's line of code.
            message=record.getMessage().partition("\n")[0],
            exc_info=record.exc_info,
        )


def forward_library_logs() -> None:
    """Send the warnings of uvicorn, asyncio and the rest, and what nobody catches, that way."""
    logging.basicConfig(handlers=[_ToStructlog()], level=logging.WARNING, force=True)
    logging.captureWarnings(capture=True)
    log_what_nobody_catches()


def spare_the_collector() -> None:
    """Let the garbage collector pass over what lives as long as the process, and run seldom.

    Requests make no cycles, and looking for some took a tenth of the producer's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def refuse_to_start(message: str) -> NoReturn:
    """End the process with one line and the exit code 2."""
    sys.stderr.write(f"{escape_controls(message)}\n")
    raise SystemExit(2)


class FaceConfig(uvicorn.Config):
    """The server of one of our HTTP faces: where it listens, for which hosts, with which TLS.

    `options` are uvicorn's. Raises SettingsError when certificate and key cannot be used.
    """

    def __init__(
        self,
        app: ASGIApp | Callable[[], ASGIApp] | str,
        face: str,
        settings: Settings,
        **options: Any,
    ) -> None:
        host = getattr(settings, f"{face}_host")
        self.allowed_hosts = AllowedHosts(host, read_host_names(settings.allowed_hosts))
        self.answers_other_origins = bool(settings.cors_origins)
        tls = settings.tls_files(face)
        if tls:
            _check(face, tls)
            options["ssl_context_factory"] = partial(_tls_context, tls)
        self._standing = (POLICY, ONLY_TLS) if tls and not is_loopback(host) else (POLICY,)
        self._lines: tuple[object, bytes] = (None, b"")
        super().__init__(
            app,
            host=host,
            port=getattr(settings, f"{face}_port"),
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            headers=list(ALWAYS),
            **options,
        )

    def header_lines(self, standing: Sequence[tuple[bytes, bytes]]) -> bytes:
        """Return the lines of what uvicorn adds to every answer, and what we do.

        The list `standing` is another one once a second, with the time in it.
        """
        made_of, lines = self._lines
        if made_of is not standing:
            lines = b"".join(b"%b: %b\r\n" % pair for pair in (*standing, *self._standing))
            self._lines = (standing, lines)
        return lines


def _made(path: str, workers: int) -> ASGIApp:
    app: ASGIApp = import_from_string(path)(workers)
    return app


def _check(face: str, files: TlsFiles) -> None:
    try:
        files.context()
    except ValueError as error:
        names = f"{face}_TLS_CERT and {face}_TLS_KEY".upper().replace(" AND ", " and ")
        raise SettingsError(f"{names} cannot be used: {error}") from None


def _tls_context(
    files: TlsFiles, _config: uvicorn.Config, _default: Callable[[], ssl.SSLContext]
) -> ssl.SSLContext:
    return files.context()


def serve(
    app: ASGIApp | str,
    service: str,
    settings: Settings,
    *,
    workers: int = 1,
    http: type[asyncio.Protocol] | Literal["auto"] = "auto",
) -> None:
    """Serve `app` on <SERVICE>_HOST and <SERVICE>_PORT until a signal; an exit code of 0 follows.

    Several workers need the import path `module:function` of a factory, which is told how many
    they are. SIGHUP replaces them one by one; one alone it ends in order, like SIGTERM.
    """
    try:
        config = FaceConfig(
            partial(_made, app, workers) if isinstance(app, str) else app,
            service,
            settings,
            factory=isinstance(app, str),
            http=http,
            lifespan="on",
            log_level="error",
            root_path=settings.root_path,
        )
    except SettingsError as error:
        refuse_to_start(str(error))
    host, port = config.host, config.port
    listener = _listen(service.upper(), host, port)
    forward_library_logs()
    exit_on(signal.SIGINT, signal.SIGTERM)
    _log.info("listening", host=host, port=port, workers=workers, tls=config.is_ssl)
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
async def serving(config: uvicorn.Config, listener: socket.socket) -> AsyncIterator[None]:
    """Serve on `listener` in this loop for as long as the context is open."""
    server = _Guest(config)
    task = asyncio.create_task(server.serve([listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await task


def open_listener(host: str, port: int) -> socket.socket:
    """Return a socket that listens there; raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)


def _listen(name: str, host: str, port: int) -> socket.socket:
    try:
        return open_listener(host, port)
    except OSError as error:
        reason = error.strerror or str(error)
        refuse_to_start(f"{name}_HOST={host} and {name}_PORT={port} cannot be used: {reason}")
