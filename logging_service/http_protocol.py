"""uvicorn's HTTP protocol with the limits it lacks, and the write routes answered inside it.

An ASGI cycle (scope, task, receive, two sends, a future to wake) costs more than all of the work
on an event, so a plain write request never becomes one. Any other request goes uvicorn's way, and
so do the few writes that are out of the ordinary (`Expect`, HTTP/1.0, pipelined).
"""

import asyncio
import time
from enum import Enum
from itertools import count
from typing import Any
from uuid import uuid4

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from logging_service import metrics
from logging_service.auth import Principal
from logging_service.client_address import ClientAddresses
from logging_service.errors import (
    BodyTooLarge,
    HeaderTooLarge,
    LoggingServiceError,
    Misdirected,
    NotHttp,
    TooSlow,
)
from logging_service.header_fields import are_ambiguous, declared_size, host_in_target
from logging_service.server import FaceConfig
from logging_service.web import request_id_from
from logging_service.write_path import (
    BODY_LIMITS,
    SERVICE,
    Answer,
    WritePath,
    WriteRequest,
    refusal,
)

MAX_HEADER_BYTES = 16 * 1024
HEADER_SECONDS = 10.0
BODY_SECONDS = 30.0
_LINGER_SECONDS = 1.0
# At the stop: how long a request may still come on a new connection, and on one that was used.
_NEW_SECONDS, _USED_SECONDS = 2.0, 0.1
_SWEEP_SECONDS = 1.0
# No host is named so: what two Host headers amount to.
_TWO_HOSTS = b" "
_ENDPOINTS = {path.encode(): path for path in BODY_LIMITS}
# An id for those who sent none: which process answered, and its how-manieth request that was.
_process = uuid4().hex[:16].encode()
_answers = count(1)


class _Phase(Enum):
    HEADER = HEADER_SECONDS
    BODY = BODY_SECONDS
    ANSWER = float("inf")
    # The keep-alive time of the server's configuration holds instead.
    IDLE = -1.0
    # What still comes is thrown away, so that the refusal is not lost in a reset.
    LINGER = _LINGER_SECONDS


_BETWEEN = frozenset({_Phase.HEADER, _Phase.IDLE})


class _Nothing:
    def set(self) -> None:
        """Take the place of the event that an ASGI cycle waits on."""


class _Write:
    """A write request under way; it has what uvicorn asks of the cycle of a connection."""

    message_event = _Nothing()
    response_started = False

    def __init__(
        self, endpoint: str, query: bytes, headers: dict[bytes, bytes], *, keep_alive: bool
    ) -> None:
        self.endpoint = endpoint
        self.query = query
        self.headers = headers
        self.principal: Principal | None = None
        self.keep_alive = keep_alive
        self.limit = BODY_LIMITS[endpoint]
        self.began = time.monotonic()
        self.body: list[bytes] = []
        self.size = 0
        self.disconnected = False
        self.response_complete = False


class LimitedProtocol(HttpToolsProtocol):
    """Refuses headers over 16 KiB, and senders who need over 10 s for a header, 30 s for a body.

    It refuses, too, who asks for a host that is not this one; a browser always names one.
    """

    service = "query_service"
    config: FaceConfig
    cycle: Any
    phase = _Phase.HEADER
    fields: dict[bytes, bytes]
    # How many requests have begun: with the phase it tells the sweeper whether anything moved.
    begun = 0
    _seen: tuple[_Phase, int] | None = None
    _seen_at = 0.0
    _chunk = 0
    _owes_answer = False
    _header_fed = 0
    _host: bytes | None = None
    is_ending = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the time in which the first header has to come."""
        super().connection_made(transport)  # type: ignore[arg-type]
        if "sweeper" not in self.app_state:
            self.app_state["sweeper"] = self.loop.call_later(_SWEEP_SECONDS, self._sweep_all)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, as long as the sender is within the limits."""
        if self.phase is _Phase.LINGER:
            return
        between, begun = self.phase in _BETWEEN, self.begun
        if between:
            self.phase = _Phase.HEADER
        self._chunk = len(data)
        super().data_received(data)
        if self.phase is _Phase.HEADER:
            # Of a chunk that holds the end of another request it is not known how much is header.
            if between and self.begun <= begun + 1:
                self._header_fed += len(data)
            if self._header_fed > MAX_HEADER_BYTES:
                self.refuse(HeaderTooLarge())

    def on_message_begin(self) -> None:
        """Collect the header; uvicorn's own beginning waits until it is known to be needed."""
        if self.phase is _Phase.LINGER:
            return
        self.phase = _Phase.HEADER
        self.begun += 1
        self._header_fed = 0
        self.url = b""
        self.headers = []
        self._host = None
        self.expect_100_continue = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect one header line; trailers, which come behind the body, only count."""
        if self.phase is _Phase.HEADER:
            name = name.lower()
            if name == b"host":
                self._host = value if self._host is None else _TWO_HOSTS
            elif name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))
            return
        self._header_fed += len(name) + len(value)
        if self._header_fed > MAX_HEADER_BYTES and self.phase is _Phase.BODY:
            self.refuse(HeaderTooLarge())

    def on_headers_complete(self) -> None:
        """Hand the request to uvicorn."""
        if not self.header_is_good(self.parser.get_http_version()):
            return
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)
        super().on_headers_complete()
        if self.is_ending or self.parser.should_upgrade():
            self.cycle.keep_alive = False

    def header_is_good(self, http_version: str) -> bool:
        """Whether the complete header is within bounds, for us, and clear; refuse it if not."""
        if self.phase is _Phase.LINGER:
            return False
        # A header that came in one small chunk fits; any other is measured.
        is_small = self._chunk <= MAX_HEADER_BYTES and not self._header_fed
        self.fields = dict(self.headers)
        # A target that begins so names no host.
        host = self._host if self.url[:1] == b"/" else host_in_target(self.url) or self._host
        if not is_small and self._header_bytes() > MAX_HEADER_BYTES:
            self.refuse(HeaderTooLarge())
            return False
        if host is not None and not self.config.allowed_hosts.admit(host):
            self.refuse(Misdirected())
            return False
        if are_ambiguous(self.headers, self.fields, http_version):
            self.refuse(NotHttp("The header can be taken in more than one way."))
            return False
        self.phase = _Phase.BODY
        return True

    def _header_bytes(self) -> int:
        lines = sum(len(name) + len(value) + 4 for name, value in self.headers)
        return len(self.url) + lines

    def on_body(self, body: bytes) -> None:
        """Collect a part of the body."""
        if self.phase is not _Phase.LINGER:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Leave the sender's time: from here on it is ours."""
        if self.phase is not _Phase.LINGER:
            self.phase = _Phase.ANSWER
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Begin what is pipelined, else the time in which the connection may be idle."""
        if self.pipeline:
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        if not self.transport.is_closing():
            if not self.flow.write_paused:
                self.flow.resume_reading()
            if self.phase is _Phase.ANSWER:
                self.phase = _Phase.IDLE

    def send_400_response(self, msg: str) -> None:
        """Refuse what the parser could not read."""
        if self.phase is not _Phase.LINGER:
            self.refuse(NotHttp(msg))

    def eof_received(self) -> bool:  # type: ignore[override] # uvicorn always closes
        """Answer what came before the sender ended its half; then the connection is closed."""
        if self.is_free():
            return False
        self.cycle.keep_alive = False
        # TLS has no half-closed connections.
        return self.scheme != "https"

    def shutdown(self) -> None:
        """Answer the request that is under way or on its way, and then close.

        One that has not come in whole when nine tenths of the time for it are over is refused.
        """
        self.is_ending = True
        if not self.is_free():
            self.cycle.keep_alive = False
        most = 0.9 * (self.config.timeout_graceful_shutdown or 0)
        patience = min(most, _USED_SECONDS if self.begun else _NEW_SECONDS)
        self.loop.call_later(patience, self._close_if_idle)
        self.loop.call_later(most, self._refuse_if_incomplete)

    def _close_if_idle(self) -> None:
        if self.phase in _BETWEEN and not self._header_fed:
            self.transport.close()

    def _refuse_if_incomplete(self) -> None:
        if self.phase in {_Phase.HEADER, _Phase.BODY} and not self.transport.is_closing():
            self.refuse(TooSlow())

    def pause_writing(self) -> None:
        """Read no more from who does not read: the answers would pile up."""
        super().pause_writing()
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        """Go on with who reads again."""
        super().resume_writing()
        if self.is_free():
            self.flow.resume_reading()

    def refuse(self, error: LoggingServiceError, endpoint: str = "other") -> None:
        """Answer with a problem document, read no further and close soon.

        Behind a request that is still being answered there is no place for another answer: the
        connection is closed after that one.
        """
        answering = not self.is_free() and (
            self.phase is not _Phase.BODY or self.cycle.response_started
        )
        self.phase = _Phase.LINGER
        if answering or self.pipeline:
            self._owes_answer = answering
            self.cycle.keep_alive = False
            return
        if not self.is_free():
            # What the application says now to the half of a request would be a second answer.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        request_id = request_id_from(self.headers or ())
        answer = refusal(error, self.root_path)
        self.send_answer(answer, endpoint, time.monotonic(), request_id, keep_alive=False)
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()

    def is_free(self) -> bool:
        """Whether no request of this connection is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def send_answer(
        self,
        answer: Answer,
        endpoint: str,
        began: float,
        request_id: bytes | None,
        *,
        keep_alive: bool,
    ) -> None:
        """Count an answer, then write it; `began` is by the monotonic clock."""
        request_id = request_id or b"%b-%x" % (_process, next(_answers))
        standing = self.config.header_lines(self.server_state.default_headers)
        parts = [STATUS_LINE[answer.status], standing]
        for name, value in answer.headers:
            parts += (name, b": ", value, b"\r\n")
        if not keep_alive:
            parts.append(b"connection: close\r\n")
        parts += (
            b"x-request-id: %b\r\ncontent-length: %d\r\n\r\n" % (request_id, len(answer.body)),
            answer.body,
        )
        method, seconds = "other" if endpoint == "other" else "POST", time.monotonic() - began
        metrics.observe_request(self.service, endpoint, method, answer.status, seconds)
        self.transport.write(b"".join(parts))

    def sweep(self, now: float) -> None:
        """Close the connection when its time is over."""
        seen = (self.phase, self.begun)
        if seen != self._seen:
            self._seen, self._seen_at = seen, now
            return
        most = self.phase.value if self.phase is not _Phase.IDLE else self.timeout_keep_alive
        if now - self._seen_at < most or self.transport.is_closing():
            return
        if self._owes_answer and not self.is_free():
            return
        if self.phase is _Phase.BODY or (self.phase is _Phase.HEADER and self._header_fed):
            self.refuse(TooSlow())
        else:
            self.transport.close()

    def _sweep_all(self) -> None:
        # One timer for all connections: a timer each costs more than the request's key look-up.
        now = self.loop.time()
        for connection in list(self.connections):
            if isinstance(connection, LimitedProtocol):
                connection.sweep(now)
        if self.connections:
            self.app_state["sweeper"] = self.loop.call_later(_SWEEP_SECONDS, self._sweep_all)
        else:
            del self.app_state["sweeper"]


class WriteProtocol(LimitedProtocol):
    """Answers plain `POST /log` and `POST /logs` itself, with the WritePath of the app's state."""

    service = SERVICE

    def on_headers_complete(self) -> None:
        """Begin a write request, or hand any other to uvicorn."""
        path, _, query = self.url.partition(b"?")
        endpoint = _ENDPOINTS.get(path)
        http_version = self.parser.get_http_version()
        if endpoint is None or http_version != "1.1" or not self._is_plain():
            super().on_headers_complete()
            return
        if not self.header_is_good(http_version):
            return
        headers = self.fields
        keep_alive = self.parser.should_keep_alive() and not self.is_ending
        self.cycle = write = _Write(endpoint, query, headers, keep_alive=keep_alive)
        writes: WritePath = self.app_state["write_path"]
        try:
            if declared_size(headers) > write.limit:
                raise _too_large(write.limit)
            write.principal = writes.admit(headers, self._address())
        except LoggingServiceError as error:
            # Before the body: it is not worth the memory.
            self._refuse_write(write, error)

    def _refuse_write(self, write: _Write, error: LoggingServiceError) -> None:
        write.response_complete = True
        self.refuse(error, write.endpoint)

    def _is_plain(self) -> bool:
        return (
            self.parser.get_method() == b"POST"
            and not self.parser.should_upgrade()
            and not self.expect_100_continue
            and self.is_free()
            and not (self.config.answers_other_origins and self._names_origin())
        )

    def _address(self) -> str:
        addresses: ClientAddresses = self.app_state["client_addresses"]
        return addresses.of(self.client[0] if self.client else None, self.headers)

    def _names_origin(self) -> bool:
        return any(name == b"origin" for name, _ in self.headers)

    def on_body(self, body: bytes) -> None:
        """Collect a part of the body; refuse one that is too large without reading on."""
        write = self.cycle
        if not isinstance(write, _Write):
            super().on_body(body)
            return
        if write.response_complete:
            return
        write.size += len(body)
        if write.size > write.limit:
            self._refuse_write(write, _too_large(write.limit))
            return
        write.body.append(body)

    def on_message_complete(self) -> None:
        """Answer a write request when the queue holds its events."""
        write = self.cycle
        if not isinstance(write, _Write):
            super().on_message_complete()
            return
        if write.response_complete or write.principal is None:
            return
        self.phase = _Phase.ANSWER
        body = write.body[0] if len(write.body) == 1 else b"".join(write.body)
        write.body = []

        def respond(answer: Answer) -> None:
            self._finish(write, answer)

        writes: WritePath = self.app_state["write_path"]
        writes.begin(
            WriteRequest(
                write.principal, write.endpoint, write.query, write.headers, body, self.root_path
            ),
            respond,
        )

    def _finish(self, write: _Write, answer: Answer) -> None:
        if write.response_complete:
            return
        write.response_complete = True
        if write.disconnected or self.transport.is_closing():
            return
        request_id = request_id_from(write.headers.items())
        self.send_answer(
            answer, write.endpoint, write.began, request_id, keep_alive=write.keep_alive
        )
        if not write.keep_alive:
            self.transport.close()
        self.on_response_complete()


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body has to be at most {limit} bytes")
