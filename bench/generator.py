"""The load generator as a process of its own, which takes orders a line at a time.

It ends with its standard input, so that none outlives whoever started it.
"""

import asyncio
import gc
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import msgspec

from bench.load import Outcome, ServerSilent, around, drive, pace
from bench.rows import EventMaker, bodies, http_request

_ROOT = Path(__file__).resolve().parent.parent
_LINE_BYTES = 64 * 1024 * 1024


class Render(msgspec.Struct, tag=True):
    """Make requests: batches of `size` for /logs, single events for /log where it is None.

    `first_millis`, for single events, gives each an id of its own millisecond from then on.
    """

    api_key: str
    number: int
    seed: int
    size: int | None = None
    first_millis: int | None = None

    def requests(self) -> list[bytes]:
        """Return the requests."""
        if self.size is not None:
            path, texts = "/logs", bodies(self.seed, self.number, self.size)
        else:
            path, maker = "/log", EventMaker(self.seed)
            texts = [maker.event(self._event_id(maker, place)) for place in range(self.number)]
        return [http_request(path, text, self.api_key) for text in texts]

    def _event_id(self, maker: EventMaker, place: int) -> UUID | None:
        return maker.event_id(self.first_millis + place) if self.first_millis else None


class Drive(msgspec.Struct, tag=True):
    """Send requests on all connections, one after the other and from the beginning again."""

    port: int
    connections: int
    seconds: float


class Pace(msgspec.Struct, tag=True):
    """Send each request when it is due."""

    port: int
    connections: int
    per_second: float


class Rendered(msgspec.Struct, tag=True):
    """How many bytes the requests have."""

    size: int


_orders = msgspec.json.Decoder(Render | Drive | Pace)
_answers = msgspec.json.Decoder(Outcome)


class Generator:
    """A generator that runs, as the one who gives the orders sees it."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def render(self, order: Render) -> None:
        """Have the requests made that later orders send."""
        await self._ask(order)

    async def send(self, order: Drive | Pace) -> Outcome:
        """Have the requests sent; raises RuntimeError when that did not succeed."""
        return _answers.decode(await self._ask(order))

    async def _ask(self, order: Render | Drive | Pace) -> bytes:
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the generator has no pipes")
        self._process.stdin.write(msgspec.json.encode(order) + b"\n")
        answer = await self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the load generator gave up")
        return answer


@asynccontextmanager
async def a_generator() -> AsyncIterator[Generator]:
    """Yield a generator in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.generator",
        cwd=_ROOT,
        stdin=PIPE,
        stdout=PIPE,
        limit=_LINE_BYTES,
        # Ctrl-C is for the one that gives the orders.
        start_new_session=True,
    )
    try:
        yield Generator(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _carry_out(order: Drive | Pace, requests: list[bytes]) -> Outcome:
    if isinstance(order, Pace):
        return pace(order.port, order.connections, requests, order.per_second)
    return drive(order.port, order.connections, around(requests), order.seconds)


def main() -> None:
    """Carry out orders from standard input, and answer each with a line."""
    requests: list[bytes] = []
    for line in sys.stdin.buffer:
        order = _orders.decode(line)
        answer: Outcome | Rendered
        if isinstance(order, Render):
            requests = order.requests()
            answer = Rendered(sum(map(len, requests)))
            # Nothing here makes garbage in circles; looking for it would cost time.
            gc.freeze()
            gc.disable()
        else:
            try:
                answer = _carry_out(order, requests)
            except (ServerSilent, OSError) as error:
                sys.exit(f"load generator: {error}")
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
