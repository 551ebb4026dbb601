"""The services' own log: static event names, data in fields, never an event's payload."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog


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


def _escape(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = _indented(value) if name == "exception" else escape_controls(value)
    return event


def configure_logs(service: str, level: str) -> None:
    """Write readable lines to a terminal, else one JSON object a line, to standard error."""
    readable = sys.stderr.isatty()
    renderer = structlog.dev.ConsoleRenderer() if readable else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _escape,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
