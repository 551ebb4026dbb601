"""The services' own log: static event names, data in fields, never an event's payload."""

import logging
import sys
import threading
import traceback
from collections.abc import Iterator, MutableMapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, TextIO

import structlog

from logging_service.errors import LoggingServiceError

_log = structlog.get_logger()

_Fields = MutableMapping[str, Any]
# What others say of a value often repeats it, and it may be a payload's: of these the words are
# about types and names, or about files and hosts.
_SPEAKABLE = (LoggingServiceError, OSError, TypeError, AttributeError, NameError, ImportError)
_MOST_FRAMES, _MOST_CAUSES = 20, 5
_MOST_CHARACTERS: Final = 16_000


def escape_controls(text: str) -> str:
    """Return `text` with what a terminal or a log shipper may obey made visible (CWE-117).

    That is all that is not printable: controls, ends of lines, what turns or hides other signs.
    """
    if text.isprintable():
        return text
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text
    )


def _indented(traceback: str) -> str:
    # No line of it can be taken for one of the log: these begin at the margin.
    return "\n".join(f"  {escape_controls(line)}" for line in traceback.split("\n"))


def _escape(_logger: object, _method: str, event: _Fields) -> _Fields:
    for name, value in event.items():
        if isinstance(value, str):
            short = value[:_MOST_CHARACTERS]
            event[name] = _indented(short) if name == "exception" else escape_controls(short)
    return event


def _tell_exception(_logger: object, _method: str, event: _Fields) -> _Fields:
    given = event.pop("exc_info", None)
    error = given[1] if isinstance(given, tuple) else given
    if given and not isinstance(error, BaseException):
        error = sys.exc_info()[1]
    if isinstance(error, BaseException):
        event["exception"] = "\n".join(_lines_of(error))
    return event


def _lines_of(error: BaseException) -> Iterator[str]:
    """Yield where an error came from, and what it came from; its words only where they are safe."""
    told: BaseException | None = error
    for _ in range(_MOST_CAUSES):
        if told is None:
            return
        yield _named(told)
        for place in traceback.format_tb(told.__traceback__, -_MOST_FRAMES):
            yield place.rstrip("\n")
        context = None if told.__suppress_context__ else told.__context__
        told = told.__cause__ or context
        if told is not None:
            yield "because of"


def _named(error: BaseException) -> str:
    words = f": {error}" if isinstance(error, _SPEAKABLE) else ""
    if state := getattr(error, "sqlstate", None):
        words = f" (SQLSTATE {state})"
    return f"{type(error).__module__}.{type(error).__qualname__}{words}"


class _Unbreakable:
    """A stream whose disk may be full, or whose reader gone: then a line is lost, and no more."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write `text` where that can be done."""
        with suppress(OSError, ValueError):
            self._stream.write(text)

    def flush(self) -> None:
        """Let go of what waits, where that can be done."""
        with suppress(OSError, ValueError):
            self._stream.flush()


def log_what_nobody_catches() -> None:
    """Have errors that end the process or a thread logged as others are."""

    def in_process(
        _kind: type[BaseException], error: BaseException, _trace: TracebackType | None
    ) -> None:
        if not isinstance(error, KeyboardInterrupt):
            _log.critical("process_failed", exc_info=error)

    def in_thread(failed: threading.ExceptHookArgs) -> None:
        name = failed.thread.name if failed.thread else None
        _log.error("thread_failed", thread=name, exc_info=failed.exc_value)

    sys.excepthook = in_process
    threading.excepthook = in_thread


def configure_logs(service: str, level: str) -> None:
    """Write readable lines to a terminal, else one JSON object a line, to standard error."""
    readable = sys.stderr.isatty()

    def add_service(_logger: object, _method: str, event: _Fields) -> _Fields:
        event["service"] = service
        return event

    renderer = structlog.dev.ConsoleRenderer() if readable else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            add_service,
            _tell_exception,
            _escape,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.WriteLoggerFactory(file=_Unbreakable(sys.stderr)),  # type: ignore[arg-type] # it writes and flushes
        cache_logger_on_first_use=True,
    )
