"""The services' own log: static event names, data in fields, never an event's payload."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

# Terminals and log shippers take these as commands or line ends (CWE-117).
_FORGERY = {
    code: f"\\u{code:04x}"
    for code in (
        *range(32),
        127,
        *range(0x80, 0xA0),
        0x2028,
        0x2029,
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
    )
}


def escape_controls(text: str) -> str:
    """Return `text` with control, line-separator and bidirectional characters made visible."""
    return text.translate(_FORGERY)


def _escape(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    for name, value in event.items():
        if isinstance(value, str) and name != "exception":
            event[name] = escape_controls(value)
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
