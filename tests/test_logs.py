"""The services' own log: a line each, whoever wrote what stands in it."""

import json
import logging
from collections.abc import Iterator
from contextlib import redirect_stderr
from io import StringIO

import pytest
import structlog

from logging_service.errors import BackendUnavailable
from logging_service.logs import configure_logs
from logging_service.server import forward_library_logs, refuse_to_start

# The end of a line, a screen that is cleared, text that runs backwards, marks that are not seen,
# half a character, and the ends of lines that only some know.
HOSTILE = (
    'a\r\n{"event": "forged"}\n2026-11-23T10:00:00Z [info] forged\x1b[2J\x1b]0;t\x07\x9b31m'
    "\u202e\u2066\u200f\u061c\u200b\ufeff\ud800\u2028\u2029\x85\x7f\x00\U000e0041\t"
)


class _Terminal(StringIO):
    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.fixture(params=[True, False], ids=["readable", "json"])
def written(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Terminal]:
    """What is written to standard error, as to a terminal and as to a file."""
    terminal = _Terminal(is_terminal=request.param)
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("NO_COLOR", "1")
    # A logger keeps the stream of its first line.
    monkeypatch.setattr("logging_service.server._log", structlog.get_logger())
    handlers = logging.root.handlers[:]
    configure_logs("producer", "info")
    yield terminal
    logging.root.handlers[:] = handlers
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


def the_only_line(written: _Terminal) -> str:
    """Return the line; nothing in it may be a sign that is not printable, beside our colours."""
    text = written.getvalue()
    assert text.endswith("\n")
    line = text[:-1]
    for colour in ("\x1b[0m", "\x1b[1m", "\x1b[2m", *(f"\x1b[3{n}m" for n in range(8))):
        line = line.replace(colour, "")
    assert line.isprintable(), repr(line)
    return line


@pytest.mark.parametrize(
    "value",
    [HOSTILE, [HOSTILE], {HOSTILE: HOSTILE}, OSError(HOSTILE), HOSTILE.encode("utf-8", "ignore")],
    ids=["text", "list", "mapping", "error", "bytes"],
)
def test_no_value_makes_a_line_of_its_own(written: _Terminal, value: object) -> None:
    structlog.get_logger().warning("request_refused", path=value)
    line = the_only_line(written)
    assert "request_refused" in line
    if not written.isatty():
        assert json.loads(line)["event"] == "request_refused"


def test_no_library_makes_a_line_of_its_own(written: _Terminal) -> None:
    forward_library_logs()
    logging.getLogger("asyncio").warning("%s went wrong", HOSTILE)
    assert "asyncio" in the_only_line(written)


def test_no_line_of_a_traceback_looks_like_one_of_the_log(written: _Terminal) -> None:
    error = BackendUnavailable(HOSTILE)
    structlog.get_logger().error("unhandled_error", exc_info=error)
    if written.isatty():
        _, *rest = written.getvalue().removesuffix("\n").split("\n")
        assert any("BackendUnavailable" in line for line in rest)
        assert all(line.startswith("  ") and line.isprintable() for line in rest)
    else:
        assert "BackendUnavailable" in json.loads(the_only_line(written))["exception"]


def test_a_start_that_is_refused_is_told_in_one_line(written: _Terminal) -> None:
    with pytest.raises(SystemExit), redirect_stderr(written):
        refuse_to_start(f"DATABASE_URL cannot be used: {HOSTILE}")
    assert the_only_line(written).startswith("DATABASE_URL cannot be used: a\\r\\n{")


def test_what_can_be_printed_stays_as_it_is(written: _Terminal) -> None:
    structlog.get_logger().info("listening", host="grüße 日本 😀")
    line = the_only_line(written)
    assert "grüße 日本 😀" in (line if written.isatty() else json.loads(line)["host"])
