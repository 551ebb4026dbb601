"""A model's server over loopback that says what a test told it to: OpenAI's API and Anthropic's.

It stands for the wire, never for the quality of a review.
"""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, cast

USAGE: Mapping[str, Any] = {
    "prompt_tokens": 2006,
    "completion_tokens": 300,
    "total_tokens": 2306,
    "prompt_tokens_details": {"cached_tokens": 1920},
    "completion_tokens_details": {"reasoning_tokens": 128},
}
JSON_TYPE: Mapping[str, str] = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Scripted:
    """One answer; `manner` `hang` says nothing, `reset` cuts off, `endless` sends without end."""

    status: int = 200
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=lambda: JSON_TYPE)
    delay_seconds: float = 0.0
    manner: Literal["answer", "hang", "reset", "endless", "drip"] = "answer"


HANG = Scripted(manner="hang")
RESET = Scripted(manner="reset")
ENDLESS = Scripted(manner="endless")
DRIP = Scripted(manner="drip")


def finding(line: int, quote: str, **more: object) -> dict[str, object]:
    """Return a finding as a model states it."""
    stated = {
        "line": line,
        "quote": quote,
        "severity": "warning",
        "category": "bug",
        "message": "It goes wrong when the list is empty.",
        "suggestion": None,
    }
    return stated | more


def review_text(*findings: object, summary: str = "It adds numbers.") -> str:
    """Return what a model says when it does as it is asked."""
    return json.dumps({"summary": summary, "findings": findings})


def chat(
    text: str | None,
    *,
    usage: Mapping[str, Any] | None = USAGE,
    finish_reason: str = "stop",
    model: str = "stub-model",
    **more: object,
) -> Scripted:
    """Return a chat completion of OpenAI's API; without `usage` it is left out."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    answer = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": model,
        "choices": [choice],
    } | more
    if usage is not None:
        answer["usage"] = usage
    return Scripted(body=json.dumps(answer).encode())


def message(text: str, *, usage: Mapping[str, Any], stop_reason: str = "end_turn") -> Scripted:
    """Return a message of Anthropic's API."""
    answer = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-stub",
        "content": [{"type": "text", "text": text}],
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": usage,
    }
    return Scripted(body=json.dumps(answer).encode())


def refusal(status: int, text: str = "no", *, param: str | None = None, **headers: str) -> Scripted:
    """Return an error in OpenAI's form; `Retry_After` becomes the header."""
    body = json.dumps({"error": {"message": text, "type": "invalid", "param": param}}).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Scripted(status, body, {**JSON_TYPE, **named})


@dataclass(frozen=True)
class Asked:
    """One HTTP request that arrived; the names of its headers are in lower case."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]

    @property
    def text(self) -> str:
        """All that a model would read."""
        said = [self.body.get("system", "")] + [one["content"] for one in self.body["messages"]]
        return "\n".join(said)


class ModelStub:
    """Answers the n-th request with the n-th of its script, and then with the last one again."""

    def __init__(self) -> None:
        self.script: Sequence[Scripted] = (chat(review_text()),)
        self.asked: list[Asked] = []
        self.before_answer: Callable[[], None] = lambda: None
        self.is_over = threading.Event()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        cast("Any", self._server).stub = self

    @property
    def base_url(self) -> str:
        """What LLM_BASE_URL has to be for the adapter `openai`."""
        return f"{self.root_url}/v1"

    @property
    def root_url(self) -> str:
        """What it has to be for the adapter `anthropic`."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def answers(self, *script: Scripted) -> None:
        """Begin anew, with this script."""
        with self._lock:
            self.script, self.asked = script, []

    def take(self, asked: Asked) -> Scripted:
        """Note a request and return what answers it."""
        with self._lock:
            self.asked.append(asked)
            return self.script[min(len(self.asked), len(self.script)) - 1]

    @contextmanager
    def running(self) -> Iterator["ModelStub"]:
        """Serve until the block ends."""
        thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.is_over.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # One write an answer, and none that waits for the other side's acknowledgement.
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        stub: ModelStub = cast("Any", self.server).stub
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        scripted = stub.take(Asked(self.path, headers, body))
        stub.before_answer()
        if scripted.delay_seconds:
            time.sleep(scripted.delay_seconds)
        try:
            getattr(self, f"_{scripted.manner}")(scripted, stub)
        except OSError:
            self.close_connection = True

    def _answer(self, scripted: Scripted, _stub: ModelStub) -> None:
        self.send_response(scripted.status)
        for name, value in scripted.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(scripted.body)))
        self.end_headers()
        self.wfile.write(scripted.body)

    def _hang(self, _scripted: Scripted, stub: ModelStub) -> None:
        stub.is_over.wait(30)
        self.close_connection = True

    def _reset(self, _scripted: Scripted, _stub: ModelStub) -> None:
        # With no time to linger, closing sends a reset.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _endless(self, scripted: Scripted, stub: ModelStub) -> None:
        self._stream(scripted, stub, b" " * 65_536, 0)

    def _drip(self, scripted: Scripted, stub: ModelStub) -> None:
        self._stream(scripted, stub, b" ", 0.02)

    def _stream(self, scripted: Scripted, stub: ModelStub, piece: bytes, pause: float) -> None:
        self.send_response(scripted.status)
        for name, value in scripted.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        while not stub.is_over.wait(pause):
            self.wfile.write(piece)
            self.wfile.flush()

    def log_message(self, *_: object) -> None:
        """Say nothing."""
