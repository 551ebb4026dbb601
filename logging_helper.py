"""Send events to the logging service without waiting for it.

Every `log_…` call queues one event and returns at once: the `event_id`, a UUIDv7 whose time is the
event's, or None when nothing is sent (logging is off, the call is malformed, the queue is full). A
thread sends batches, and repeats them under the same ids until the service answers. A fault of
logging is a warning of the logger `logging_helper`, never an exception.

`LOGGING_ENABLED`, `LOGGING_SERVICE_URL` and `API_KEY` are read at the first call, from the
environment or `.env` beside this file. What waits at exit is sent within 3 seconds.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import multiprocessing.util
import os
import random
import re
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, ContextVar
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import urllib3

DEFAULT_URL = "http://localhost:8001/log"
BATCH_EVENTS, BATCH_BYTES = 500, 512 * 1024  # some proxies refuse a body of more than 1 MiB
MAX_WAITING_EVENTS, MAX_WAITING_BYTES = 50_000, 32 * 1024 * 1024
MAX_PAYLOAD_BYTES, MAX_SESSION_ID_CHARACTERS, MAX_WARNINGS = 256 * 1024, 200, 1000
LINGER_SECONDS, MAX_RETRY_SECONDS, MAX_RETRY_AFTER_SECONDS = 0.05, 5.0, 300
EXIT_SECONDS, TRIES_AT_EXIT = 3.0, 3  # no service there: the exit takes less than half a second

SessionId = int | str | None
_Payload = Mapping[str, object]
_Event = tuple[str, str, bytes]  # event_id, event_type, the event's JSON without its id
_session: ContextVar[dict[str, int | str]] = ContextVar("logging", default={})  # noqa: B039
_logger = logging.getLogger(__name__)
_is_event_type = re.compile(r"[A-Za-z0-9_.:-]{1,100}").fullmatch
_TEMPORARY = {0, 408, 425, 429, *range(500, 600)}  # 0: no answer came
_REMEDY = {
    401: "set API_KEY to a valid key of the service",
    403: "set API_KEY to a key with the scope 'write'",
    413: "send smaller payloads, or let the proxy before the service take larger bodies",
}


# As the contract writes them, not one parameter a line.
# fmt: off
def log_review_started(
    session_id: SessionId = None, *, user_id: int | str | None = None,
    language: str = "python", code_length: int | None = None, **more: object,
) -> str | None:
    """Log that a review begins; `code_length` in characters."""
    payload = {"user_id": user_id, "language": language, "code_length": code_length}
    return _log("review_started", session_id, payload, more)


def log_review_completed(
    session_id: SessionId = None, *, analysis_count: int, success: bool,
    duration_ms: float | None = None, **more: object,
) -> str | None:
    """Log that a review ended, well or not."""
    payload = {"analysis_count": analysis_count, "success": success, "duration_ms": duration_ms}
    return _log("review_completed", session_id, payload, more)


def log_analysis_started(
    session_id: SessionId = None, *, analysis_type: str = "syntax", **more: object
) -> str | None:
    """Log that one analysis of a review begins."""
    return _log("syntax_analysis_started", session_id, {"analysis_type": analysis_type}, more)


def log_analysis_completed(
    session_id: SessionId = None, *, analysis_type: str = "syntax",
    results: object = None, duration_ms: float | None = None, **more: object,
) -> str | None:
    """Log that one analysis of a review ended, and what it found."""
    payload = {"analysis_type": analysis_type, "results": results, "duration_ms": duration_ms}
    return _log("syntax_analysis_completed", session_id, payload, more)


def log_llm_query(
    session_id: SessionId = None, *, model: str, tokens_used: int | None = None,
    cost: float | Decimal | None = None, **more: object,
) -> str | None:
    """Log one attempt to call a model; `cost` in US dollars, `tokens_used` None if it failed.

    To have it priced and timed add `provider`, `input_tokens`, `output_tokens`, `duration_ms`.
    """
    payload = {"model": model, "tokens_used": tokens_used, "cost": cost}
    return _log("llm_query_sent", session_id, payload, more)


def log_llm_feedback(
    session_id: SessionId = None, *, model: str, feedback_length: int, **more: object
) -> str | None:
    """Log that a model answered; `feedback_length` in characters."""
    payload = {"model": model, "feedback_length": feedback_length}
    return _log("llm_feedback_received", session_id, payload, more)


def log_error(
    session_id: SessionId = None, *, error_type: str, error_message: str, **more: object
) -> str | None:
    """Log that anything failed."""
    payload = {"error_type": error_type, "error_message": error_message}
    return _log("error_occurred", session_id, payload, more)


def log_event(
    event_type: str, session_id: SessionId = None,
    payload: Mapping[str, object] | None = None, **more: object,
) -> str | None:
    """Log an event of any type: 1 to 100 characters of `A-Z a-z 0-9 _ . : -`.

    The payload is at most 256 KiB of JSON, 32 levels deep. A set is sent as a list, NaN and
    infinity as null, an integer beyond 2^53 and whatever JSON does not know as text.
    """
    return _log(event_type, session_id, {} if payload is None else payload, more)


# fmt: on


def flush(timeout_seconds: float = 5.0) -> bool:
    """Wait until all is sent; return whether it was in time. Call it before an `os._exit`."""
    return _Sender.current.flush(timeout_seconds)


def backlog() -> tuple[int, int]:
    """Return how many events of this process wait, and how many were lost so far."""
    return _Sender.current.pending, _Sender.current.lost


def reset() -> None:
    """For tests: forget what waits, and read the settings again at the next call."""
    _Sender.current.close(timeout_seconds=0)
    _start_afresh()


class session:  # noqa: N801 - a context manager that reads like those of contextlib
    """Give every call inside, by `with` or `async with`, one session_id: this one or a new UUID.

    It holds across `await`, in tasks, in a `threading.Thread` started inside, and in a job given to
    a `ThreadPoolExecutor` inside; a call's own `session_id` wins. A `request_id` holds likewise.
    """

    def __init__(self, session_id: SessionId = None, request_id: str | None = None) -> None:
        self._session_id = _Sender.current.new_id() if session_id is None else session_id
        self._ids = {} if request_id is None else {"request_id": request_id}

    def __enter__(self) -> int | str:
        _carry_sessions_into_threads()
        self._outside = _session.get()
        _session.set({**self._outside, **self._ids, "session_id": self._session_id})
        return self._session_id

    def __exit__(self, *_: object) -> None:
        # Not by a token: an asynchronous generator may be closed in another context.
        _session.set(self._outside)

    async def __aenter__(self) -> int | str:
        return self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        self.__exit__()


def _in_session(ids: dict[str, int | str], job: Any, /, *args: Any, **more: Any) -> Any:
    token = _session.set(ids)
    try:
        return job(*args, **more)
    finally:
        _session.reset(token)


@functools.cache
def _carry_sessions_into_threads() -> None:
    # A thread begins with an empty context (on 3.14 too, unless a flag is set) and only these two
    # methods know who starts it. They hand on our variable alone, not decimal's precision, and set
    # it in the thread's own context: jobs with another one (asyncio.to_thread) do not see it.
    start: Any = threading.Thread.start
    submit: Any = ThreadPoolExecutor.submit

    @functools.wraps(start)
    def start_in_session(thread: threading.Thread) -> None:
        if ids := _session.get():
            vars(thread)["run"] = functools.partial(_in_session, ids, thread.run)
        start(thread)

    @functools.wraps(submit)
    def submit_in_session(pool: Any, job: Any, /, *args: Any, **more: Any) -> Any:
        if not (ids := _session.get()):
            return submit(pool, job, *args, **more)
        # The ids go with the job: a worker that starts here will run the jobs of others as well.
        return _in_session({}, submit, pool, _in_session, ids, job, *args, **more)

    threading.Thread.start = start_in_session  # type: ignore[method-assign,assignment]
    ThreadPoolExecutor.submit = submit_in_session  # type: ignore[method-assign]


def _log(event_type: str, session_id: SessionId, payload: _Payload, more: _Payload) -> str | None:
    try:
        if not _target()[0]:
            return None
        ids = _session.get() if session_id is None else _session.get() | {"session_id": session_id}
        event: dict[str, Any] = {"event_type": event_type, "payload": {**payload, **more}, **ids}
        # Encoded in the caller's thread, at a few microseconds: the caller may change what it
        # passed as soon as the call returns, and only encoded events have a size to be bounded.
        line = _encoded(event)
        if not _is_event_type(event_type):
            fault = "event_type is not 1 to 100 characters of A-Z a-z 0-9 _ . : -"
        elif len(str(event.get("session_id", ""))) > MAX_SESSION_ID_CHARACTERS:
            fault = "session_id has more than 200 characters"
        elif len(line) > MAX_PAYLOAD_BYTES < len(_encoded(event["payload"])):
            fault = "payload has more than 256 KiB"
        else:
            return _Sender.current.add(event_type, line)
    except Exception as error:  # noqa: BLE001 - a fault of logging must not reach what is logged
        fault = f"{type(error).__name__}: {_text(error)[:200]}"
    _Sender.current.warn_once(f"an event {_text(event_type)[:100]!r} was not sent: {fault}")
    return None


def _encoded(value: dict[str, Any]) -> bytes:
    try:
        line = _encode(value).encode()
    except Exception:  # noqa: BLE001 - NaN, circles, odd keys, broken objects, half surrogates
        line = b""
    # JSON can say more than the service takes: NUL, and integers that a double cannot hold.
    if not line or b"\\u0000" in line or _LONG_INTEGER in line.translate(_TO_LONG_INTEGER):
        line = _encode(_plain(value)).encode()
    return line


def _plain(value: Any, inside: tuple[int, ...] = ()) -> object:
    """Return what is sent for `value`: a copy that JSON and the service can hold."""
    if isinstance(value, Mapping | list | tuple | set | frozenset) and id(value) not in inside:
        inside = (*inside, id(value))
        if isinstance(value, Mapping):
            return {_text(key): _plain(item, inside) for key, item in value.items()}
        return [_plain(item, inside) for item in value]
    if isinstance(value, float | Decimal):  # a float holds 15 digits: a cost to the nano-dollar
        return float(value) if math.isfinite(value) else None
    return value if isinstance(value, int | None) and abs(value or 0) < 2**53 else _text(value)


def _text(value: object) -> str:
    """Return `value` as text without what the store cannot hold: NUL and half surrogates."""
    try:
        text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    except Exception:  # noqa: BLE001 - an object whose __str__ is broken
        text = f"<{type(value).__name__}>"
    return text.encode(errors="replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


_encode = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain
).encode
_LONG_INTEGER = b":0000000000000000"  # in JSON whose digits were made 0, and what may precede :
_TO_LONG_INTEGER = bytes.maketrans(b"123456789,[-", b"000000000:::")


@functools.cache
def _target() -> tuple[str, dict[str, str]]:
    """Return where batches go, with which headers; "" when nothing is sent."""
    settings = {}
    with contextlib.suppress(OSError):
        for line in Path(__file__).with_name(".env").read_text("utf-8", "replace").splitlines():
            name, _, value = line.strip().removeprefix("export ").partition("=")
            settings[name.strip()] = value.partition(" #")[0].strip().strip("'\"")
    settings |= {name: value for name, value in os.environ.items() if value}
    if settings.get("LOGGING_ENABLED", "").lower() in ("0", "off", "f", "false", "n", "no"):
        return "", {}
    # http.client writes headers as Latin-1: this way the service gets the key in UTF-8.
    key = settings.get("API_KEY", "").strip().encode().decode("latin-1")
    with contextlib.suppress(urllib3.exceptions.LocationParseError):
        url = urllib3.util.parse_url(settings.get("LOGGING_SERVICE_URL") or DEFAULT_URL)
        if url.scheme in ("http", "https") and url.host:
            path = (url.path or "").rstrip("/").removesuffix("/logs").removesuffix("/log") + "/logs"
            address = url._replace(auth=None, path=path, fragment=None).url
            return address, {"Content-Type": "application/json", "X-API-Key": key}
    _logger.warning("nothing is logged: LOGGING_SERVICE_URL must be like %s", DEFAULT_URL)
    return "", {}


class _Sender:
    """The events of this process on their way to the service, sent in order by one thread."""

    current: ClassVar[_Sender]

    def __init__(self) -> None:
        # The lock of a condition is re-entrant: a signal handler may log in the middle of a call.
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="logging_helper", daemon=True)
        self._waiting: deque[_Event] = deque()
        self._waiting_bytes = self.pending = self.lost = self._last_id = 0
        self._closing = False
        self._warned: set[str] = set()

    def warn_once(self, message: str, about: str = "") -> None:
        if (about or message) not in self._warned and len(self._warned) < MAX_WARNINGS:
            self._warned.add(about or message)
            with contextlib.suppress(Exception):  # of a handler; a caller must not see it
                _logger.warning(message)

    def new_id(self) -> str:
        """Return a UUIDv7 that is greater than all before it."""
        noise = int.from_bytes(os.urandom(9))
        with self._changed:
            # Milliseconds, version, 12 random bits, variant, two bits of room, 60 random bits.
            new = time.time_ns() // 10**6 << 80 | 7 << 76 | noise >> 60 << 64 | 2 << 62
            self._last_id = max(self._last_id + 1, new | noise & (1 << 60) - 1)
            text = f"{self._last_id:032x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    def add(self, event_type: str, rest: bytes) -> str | None:
        """Queue an event and return its id, or None when there is no room for it."""
        with self._changed:
            size = self._waiting_bytes + len(rest)
            room = len(self._waiting) < MAX_WAITING_EVENTS and size <= MAX_WAITING_BYTES
            if room and not self._closing:
                if self._thread.ident is None:
                    Context().run(self._thread.start)  # it belongs to no session
                    # Not atexit: a child of multiprocessing leaves by os._exit, but runs these.
                    multiprocessing.util.Finalize(None, self.close, (EXIT_SECONDS,), exitpriority=0)
                event_id = self.new_id()  # under the lock, so that ids are in the queue's order
                self._waiting.append((event_id, event_type, rest))
                self._waiting_bytes = size
                self.pending += 1
                if len(self._waiting) in (1, BATCH_EVENTS):
                    self._changed.notify_all()
                return event_id
            self.lost += 1
        self.warn_once("events are dropped: too many wait for the logging service", "full")
        return None

    def flush(self, timeout_seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self.pending, timeout_seconds)

    def close(self, timeout_seconds: float) -> None:
        """Take no more events, send those that wait, and forget what is left then."""
        with self._changed:
            was_closed, self._closing = self._closing, True
            self._changed.notify_all()
        if not was_closed and (not self.flush(timeout_seconds) or self.lost):
            _logger.warning("%d events did not reach the logging service", self.lost + self.pending)
        self._waiting = deque()

    def _run(self) -> None:
        self._url, headers = _target()
        self._pool = urllib3.PoolManager(headers=headers, timeout=10, retries=False)
        while batch := self._next_batch():
            try:
                lost = self._deliver(batch)
            except Exception as error:  # noqa: BLE001 - the thread has to outlive a fault of ours
                lost = len(batch)
                self.warn_once(f"a batch of events was dropped: {type(error).__name__}")
            with self._changed:
                self.lost += lost
                self.pending -= len(batch)
                self._changed.notify_all()

    def _next_batch(self) -> list[_Event]:
        """Return what to send next, in order; nothing when the thread is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            self._changed.wait_for(self._need_not_linger, LINGER_SECONDS)
        batch, size = list[_Event](), 0
        # Taken without the lock, for which callers would wait; no other thread takes.
        while (waiting := self._waiting) and len(batch) < BATCH_EVENTS and size < BATCH_BYTES:
            batch.append(waiting.popleft())
            size += len(batch[-1][2])
        with self._changed:
            self._waiting_bytes -= size
            if not self._waiting:
                self._warned.discard("full")
        return batch

    def _need_not_linger(self) -> bool:
        full = len(self._waiting) >= BATCH_EVENTS or self._waiting_bytes >= BATCH_BYTES
        return full or self._closing

    def _deliver(self, batch: list[_Event]) -> int:
        """Send a batch until it is answered for; return how many of its events are lost."""
        lines = [b'{"event_id":"%b",%b' % (id_.encode(), rest[1:]) for id_, _, rest in batch]
        body, failures = b"[%b]" % b",".join(lines), 0
        while (answer := self._post(body)).status in _TEMPORARY:
            failures += 1
            if failures >= TRIES_AT_EXIT and self._closing:
                return len(batch)
            # One failure is no outage: a server may close an idle connection just when it is used.
            if failures > 1:
                self.warn_once(f"{self._url} does not take events: {answer.reason}", "away")
            seconds = min(MAX_RETRY_SECONDS, 0.1 * 2 ** min(failures, 10))
            seconds *= random.uniform(0.5, 1)  # noqa: S311 - or all clients come at once
            if (told := answer.headers.get("Retry-After", "")).isdecimal():
                seconds = min(max(int(told), 1), MAX_RETRY_AFTER_SECONDS)  # no day of silence
            with self._changed:
                self._changed.wait_for(lambda was=self._closing: was != self._closing, seconds)  # type: ignore[misc]
        if "away" in self._warned:
            self._warned.remove("away")
            _logger.warning("%s takes events again; %d were lost so far", self._url, self.lost)
        return self._lost_by(answer, batch)

    def _post(self, body: bytes) -> urllib3.BaseHTTPResponse:
        try:
            return self._pool.request("POST", self._url, body=body, redirect=False)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            return urllib3.HTTPResponse(status=0, reason=type(error).__name__)

    def _lost_by(self, answer: urllib3.BaseHTTPResponse, batch: list[_Event]) -> int:
        """Return how many events the answer refuses for good, and warn of each reason once."""
        match answer.status:
            case 200 | 202:
                return 0
            case 207:
                rejected = answer.json()["rejected"]
                for one in rejected:
                    kind, reason = batch[one["index"]][1], json.dumps(one["errors"])[:200]
                    self.warn_once(f"the logging service rejected {kind}: {reason}")
                return len(rejected)
            case 413 if len(batch) > 1:
                half = len(batch) // 2
                return self._deliver(batch[:half]) + self._deliver(batch[half:])
            case status:
                remedy = _REMEDY.get(status, f"is LOGGING_SERVICE_URL like {DEFAULT_URL}?")
                fault = f"{status}: {remedy} ({answer.data[:300].decode(errors='replace')})"
                self.warn_once(f"{self._url} refused {batch[0][1]} and others with {fault}", fault)
                return len(batch)


def _start_afresh() -> None:
    _target.cache_clear()
    _Sender.current = _Sender()


_start_afresh()
os.register_at_fork(after_in_child=_start_afresh)  # it must not share queue, locks or connection
