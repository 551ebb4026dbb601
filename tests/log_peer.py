"""A stand-in for the producer as the client library meets it: it records and answers batches."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from logging_helper import flush, reset

KEY = "test_key_123"


class Request(NamedTuple):
    """One batch that arrived, whatever it was answered."""

    path: str
    headers: dict[str, str]
    body: bytes
    events: list[dict[str, Any]]
    at_seconds: float


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str] = MappingProxyType({})
    body: object = None


TAKEN = Answer(202, body={"status": "queued"})


class Peer:
    """Records batches and answers them by `answer`, holding the answers back while it hangs."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.answered = 0
        self.answer: Callable[[Request], Answer | None] = lambda _: TAKEN
        self.answers = threading.Event()
        self.answers.set()
        self.arrived = threading.Event()
        parts = {
            "protocol_version": "HTTP/1.1",
            "wbufsize": -1,  # an answer in one packet
            "do_POST": lambda call: self._serve(call),  # noqa: PLW0108 - a function binds
            "log_message": lambda *_: None,
        }
        handler = type("Handler", (BaseHTTPRequestHandler,), parts)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/log"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def _serve(self, call: BaseHTTPRequestHandler) -> None:
        body = call.rfile.read(int(call.headers["Content-Length"]))
        request = Request(call.path, dict(call.headers), body, json.loads(body), time.monotonic())
        self.requests.append(request)
        self.arrived.set()
        self.answers.wait(30)
        answer = self.answer(request)
        self.answered += 1
        if answer is None:
            call.connection.shutdown(socket.SHUT_RDWR)
            return
        text = json.dumps(answer.body).encode()
        call.send_response(answer.status)
        for name, value in answer.headers.items():
            call.send_header(name, value)
        call.send_header("Content-Length", str(len(text)))
        call.end_headers()
        call.wfile.write(text)

    def close(self) -> None:
        self.answers.set()
        self.server.shutdown()
        self.server.server_close()

    def script(self, *answers: Answer | None) -> None:
        """Answer the next requests so, and take every one after."""
        rest = list(answers)
        self.answer = lambda _: rest.pop(0) if rest else TAKEN

    @property
    def events(self) -> list[dict[str, Any]]:
        return [event for request in self.requests for event in request.events]

    def event(self) -> dict[str, Any]:
        """Send what waits; return the one event that came of it, without its id."""
        assert flush()
        (event,) = self.events
        return {name: value for name, value in event.items() if name != "event_id"}


@contextmanager
def recording_peer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    """Yield a peer that the client library of this process sends to."""
    peer = Peer()
    monkeypatch.setenv("LOGGING_ENABLED", "true")
    monkeypatch.setenv("LOGGING_SERVICE_URL", peer.url)
    monkeypatch.setenv("API_KEY", KEY)
    reset()
    yield peer
    reset()
    peer.close()
