"""Sends events to the producers, and keeps a ledger of those that were acknowledged.

A process of its own: `load.py LEDGER SEED EVENTS_PER_SECOND PORT…`, the key in API_KEY. It ends
with its standard input, prints what it saw as one line of JSON, and leaves nothing behind but the
ledger: a line for each acknowledged event, `e` and its id, or `c` and the id for an event that was
sent with other content under an id that was acknowledged before.
"""

if __name__ == "__main__" and not __package__:
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import asyncio
import os
import random
import sys
import time
from asyncio import StreamReader, StreamWriter
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from bench.rows import EventMaker, http_request

LINE_BYTES = 39
_HOST = "127.0.0.1"
_SENDERS = 16
_ANSWER_SECONDS = 5.0
# A sender who has tried so often gives up, and what became of its events stays open.
_TRIES = 8
_LONGEST_PAUSE_SECONDS = 2.0
_LARGEST_BATCH = 60
_EVENTS_A_REQUEST = 7.0
_REMEMBERED = 300
_SINGLES = 0.8
_REPEATS, _CONFLICTS, _BAD, _WAITING, _NEW_CONNECTIONS = 0.03, 0.005, 0.01, 0.01, 0.1
_BAD_EVENT = b'{"event_type": "", "payload": []}'


class Request(NamedTuple):
    """A request, the ids of its good events, and what its ledger lines begin with."""

    path: str
    body: bytes
    ids: tuple[str, ...]
    mark: str = "e"


class RequestMaker:
    """Makes one request after the other: single events, batches, repeats, conflicts, bad ones."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)  # noqa: S311 - not a secret
        self._maker = EventMaker(self._random.getrandbits(32))
        self._acknowledged: deque[Request] = deque(maxlen=_REMEMBERED)

    def next(self) -> Request:
        """Return a request that has not been sent, or a repeat of one that was acknowledged."""
        chance = self._random.random()
        if chance < _REPEATS and self._acknowledged:
            return self._random.choice(self._acknowledged)
        if chance < _REPEATS + _CONFLICTS and self._acknowledged:
            return self._conflict(UUID(self._random.choice(self._acknowledged).ids[0]))
        if self._random.random() < _SINGLES:
            return self._single()
        return self._batch()

    def remember(self, request: Request) -> None:
        """Take note of an acknowledged request."""
        if request.ids and request.mark == "e":
            self._acknowledged.append(request)

    def _event_id(self) -> UUID:
        return self._maker.event_id(time.time_ns() // 1_000_000)

    def _single(self) -> Request:
        if self._random.random() < _BAD:
            return Request("/log", _BAD_EVENT, ())
        event_id = self._event_id()
        path = "/log?wait=stored" if self._random.random() < _WAITING else "/log"
        return Request(path, self._maker.event(event_id), (str(event_id),))

    def _conflict(self, event_id: UUID) -> Request:
        return Request("/log", self._maker.event(event_id), (str(event_id),), "c")

    def _batch(self) -> Request:
        ids = [self._event_id() for _ in range(self._random.randint(2, _LARGEST_BATCH))]
        events = [self._maker.event(event_id) for event_id in ids]
        if self._random.random() < len(ids) * _BAD:
            events.insert(self._random.randint(0, len(events)), _BAD_EVENT)
        return Request("/logs", b"[" + b",".join(events) + b"]", tuple(map(str, ids)))


class Answer(NamedTuple):
    """A whole answer."""

    status: int
    body: bytes


class Seen(msgspec.Struct):
    """What senders saw: how often each answer; events that they gave up; answers that are wrong."""

    answers: dict[str, int] = {}
    given_up: int = 0
    wrong: list[str] = []

    def count(self, answer: str) -> None:
        """Take note of one answer."""
        self.answers[answer] = self.answers.get(answer, 0) + 1


class Sender:
    """Sends one request after the other, each until it has an answer that settles it."""

    def __init__(
        self, ports: Sequence[int], requests: RequestMaker, ledger: int, seen: Seen
    ) -> None:
        self._ports = deque(ports)
        self._requests = requests
        self._ledger = ledger
        self._seen = seen
        self._key = os.environ["API_KEY"]
        self._connection: tuple[StreamReader, StreamWriter] | None = None

    async def run(
        self, requests_per_second: float, rng: random.Random, over: asyncio.Event
    ) -> None:
        """Send until it is over, so many requests a second, fewer when the answers take long."""
        while not over.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(rng.expovariate(requests_per_second)):
                    await over.wait()
            if rng.random() < _NEW_CONNECTIONS:
                self.hang_up()
            await self.deliver(self._requests.next(), rng)
        self.hang_up()

    async def deliver(self, request: Request, rng: random.Random) -> None:
        """Send one request until an answer settles it, or until the bound of tries."""
        sent = http_request(request.path, request.body, self._key)
        for tries in range(_TRIES):
            answer = await self._ask(sent)
            if answer is not None and not _may_be_sent_again(answer.status):
                self._settle(request, answer)
                return
            # The other producer may be well.
            self._ports.rotate()
            self.hang_up()
            await asyncio.sleep(min(_LONGEST_PAUSE_SECONDS, 0.1 * 2**tries) * rng.uniform(0.5, 1))
        self._seen.given_up += len(request.ids)

    async def _ask(self, sent: bytes) -> Answer | None:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                answer = await self._exchange(sent)
        except (OSError, EOFError, TimeoutError) as error:
            self._seen.count(f"none: {type(error).__name__}")
            self.hang_up()
            return None
        said = _status_in(answer)
        self._seen.count(f"{answer.status} {said}".strip())
        return answer

    async def _exchange(self, sent: bytes) -> Answer:
        if self._connection is None:
            self._connection = await asyncio.open_connection(_HOST, self._ports[0])
        reader, writer = self._connection
        writer.write(sent)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length: ")[2].split(b"\r", 1)[0])
        body = await reader.readexactly(length)
        if b"connection: close" in head:
            self.hang_up()
        return Answer(int(head[9:12]), body)

    def hang_up(self) -> None:
        """Close the connection; the next request opens another."""
        if self._connection is not None:
            self._connection[1].transport.abort()
            self._connection = None

    def _settle(self, request: Request, answer: Answer) -> None:
        ids = _acknowledged_in(answer)
        if ids != list(request.ids):
            wrong = f"{answer.status} to {request.path} with {len(request.ids)} good events: "
            self._seen.wrong.append(wrong + answer.body[:300].decode(errors="replace"))
        lines = "".join(f"{request.mark} {event_id}\n" for event_id in ids)
        os.write(self._ledger, lines.encode())
        self._requests.remember(request)


def _may_be_sent_again(status: int) -> bool:
    again = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}
    return status in again or status >= HTTPStatus.INTERNAL_SERVER_ERROR


def _document(answer: Answer) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(answer.body)
    except msgspec.DecodeError:
        return {}
    return document if isinstance(document, dict) else {}


def _status_in(answer: Answer) -> str:
    return (
        str(_document(answer).get("status", "")) if answer.status < HTTPStatus.BAD_REQUEST else ""
    )


def _acknowledged_in(answer: Answer) -> list[str]:
    if answer.status >= HTTPStatus.MULTIPLE_CHOICES:
        return []
    document = _document(answer)
    ids: list[str] = document.get("event_ids", [document.get("event_id")])
    return ids


async def _until_told() -> None:
    reader = StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


async def send(ledger: Path, seed: str, events_per_second: float, ports: Sequence[int]) -> Seen:
    """Send until standard input ends, and return what was seen."""
    seen, over = Seen(), asyncio.Event()
    file = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    requests = RequestMaker(f"{seed} requests")
    each = events_per_second / _EVENTS_A_REQUEST / _SENDERS
    async with asyncio.TaskGroup() as senders:
        for number in range(_SENDERS):
            first = number % len(ports)
            sender = Sender([*ports[first:], *ports[:first]], requests, file, seen)
            rng = random.Random(f"{seed} sender {number}")  # noqa: S311 - not a secret
            senders.create_task(sender.run(each, rng, over))
        await _until_told()
        over.set()
    os.close(file)
    return seen


def main() -> None:
    """Send, then print what was seen."""
    ledger, seed, events_per_second, *ports = sys.argv[1:]
    seen = asyncio.run(send(Path(ledger), seed, float(events_per_second), [int(p) for p in ports]))
    print(msgspec.json.encode(seen).decode())


if __name__ == "__main__":
    main()
