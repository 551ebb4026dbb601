"""The crash run, for a minute, and the tools of which its verdict is made."""

import asyncio
import json
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import islice
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import psutil
import pytest
from events_made import an_event
from servers import processes_of, run_tool, unused_port
from stored_rows import NOON, Row, a_row, store_rows

from chaos import load
from chaos.load import LINE_BYTES, Request, RequestMaker, Seen, Sender
from chaos.proxy import Proxy
from chaos.torment import Bag
from chaos.verdict import Kept, Ledger, judge, read_kept

_LINE = re.compile(
    r"acknowledged=\d+ stored=\d+ lost=0 duplicated=0 dead_lettered=\d+ kills=([1-9]\d*)"
)


def _wait_for_ledger(folder: Path) -> None:
    until = time.monotonic() + 60
    while not list(islice(folder.glob("*/ledger.txt"), 1)):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_minute_of_kills_loses_nothing_and_the_balance_closes(tmp_path: Path) -> None:
    with run_tool("chaos", tmp_path, "--minutes", "1") as run:
        out, err = run.communicate(timeout=400)
    assert run.returncode == 0, out + err
    first, *_, balance, last = out.splitlines()
    assert re.fullmatch(r"chaos: seed=\d+ minutes=1", first)
    assert _LINE.fullmatch(last), out
    assert "balanced=True" in balance
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    with run_tool("chaos", tmp_path, "--minutes", "5", "--kills-per-minute", "60") as run:
        _wait_for_ledger(tmp_path)
        time.sleep(random.random() * 5)
        run.send_signal(signal.SIGINT)
        _, errors = run.communicate(timeout=60)
    assert run.returncode == 130, errors
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []


def test_a_run_that_fails_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    with run_tool("chaos", tmp_path, "--minutes", "0.05") as run:
        _wait_for_ledger(tmp_path)
        for process in psutil.Process(run.pid).children():
            if "load.py" in " ".join(process.cmdline()):
                process.kill()
        _, err = run.communicate(timeout=60)
    assert run.returncode == 1
    assert err.splitlines()[-1] == "chaos: the senders gave up, see load.log (--keep)"
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []


def an_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


class TestVerdict:
    @pytest.fixture
    def ledger(self, tmp_path: Path) -> Ledger:
        lines = [f"{mark} {UUID(int=number)}\n" for mark, number in (("e", 1), ("e", 2), ("c", 2))]
        assert {len(line) for line in lines} == {LINE_BYTES}
        file = tmp_path / "ledger.txt"
        file.write_text("".join(lines))
        return Ledger(file)

    def test_each_acknowledged_event_is_stored_or_a_dead_letter(self, ledger: Ledger) -> None:
        kept = Kept(rows=2, stored={an_id(1), an_id(2)}, dead={an_id(2)}, dead_letters=1)
        verdict = judge(ledger, kept, kills=7)
        assert verdict.faults == []
        assert verdict.line == (
            "acknowledged=2 stored=2 lost=0 duplicated=0 dead_lettered=1 kills=7"
        )

    def test_one_that_is_neither_is_lost_and_named(self, ledger: Ledger) -> None:
        kept = Kept(rows=1, stored={an_id(2)}, dead={an_id(2)}, dead_letters=1)
        verdict = judge(ledger, kept, kills=7)
        assert "lost=1" in verdict.line
        assert verdict.faults == [f"lost: {UUID(int=1)}"]

    def test_other_content_that_left_no_dead_letter_is_lost(self, ledger: Ledger) -> None:
        kept = Kept(rows=2, stored={an_id(1), an_id(2)})
        assert "lost=1" in judge(ledger, kept, kills=7).line

    def test_an_event_in_two_rows_is_duplicated_and_named(self, ledger: Ledger) -> None:
        stored = {an_id(1), an_id(2)}
        kept = Kept(3, stored, {an_id(1)}, {an_id(2)}, 1)
        verdict = judge(ledger, kept, kills=7)
        assert "duplicated=1" in verdict.line
        assert verdict.faults == [f"duplicated: {UUID(int=1)}"]

    def test_a_run_that_acknowledged_nothing_proves_nothing(self, tmp_path: Path) -> None:
        file = tmp_path / "ledger.txt"
        file.write_text("")
        assert judge(Ledger(file), Kept(), kills=7).faults == ["nothing was acknowledged"]

    async def test_the_tables_are_read_as_they_are(
        self, database_url: str, database: asyncpg.Connection
    ) -> None:
        once, twice, dead = uuid4(), uuid4(), uuid4()
        rows = [a_row(event_id=once), a_row(event_id=twice), Row(twice, NOON.replace(hour=13))]
        await store_rows(database_url, rows)
        letters = [an_event(event_id=dead, timestamp=NOON), b"unreadable"]
        await database.executemany(
            "INSERT INTO dead_letters (event, reason, detail, attempts) VALUES ($1, 'r', 'd', 1)",
            [(letter,) for letter in letters],
        )
        assert await read_kept(database_url) == Kept(
            3, {once.bytes, twice.bytes}, {twice.bytes}, {dead.bytes}, 2
        )


class Echo:
    """A server that answers with the same in capitals; `heard` is what came."""

    def __init__(self) -> None:
        self.heard = b""
        self.port = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while piece := await reader.read(100):
                self.heard += piece
                writer.write(piece.upper())
        writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    echo = Echo()
    async with await asyncio.start_server(echo.answer, "127.0.0.1", 0) as server:
        echo.port = server.sockets[0].getsockname()[1]
        yield echo


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[Proxy]:
    proxy = Proxy(unused_port(), echo.port)
    await proxy.mend()
    yield proxy
    proxy.refuse()


class Client:
    """A connection that says something and hears what comes back."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def ask(self, text: bytes) -> bytes:
        async with asyncio.timeout(10):
            self._writer.write(text)
            return await self._reader.readexactly(len(text))

    def close(self) -> None:
        self._writer.close()


@asynccontextmanager
async def a_client(proxy: Proxy) -> AsyncIterator[Client]:
    client = Client(*await asyncio.open_connection("127.0.0.1", proxy.port))
    try:
        yield client
    finally:
        client.close()


class TestProxy:
    async def test_it_passes_on(self, proxy: Proxy) -> None:
        async with a_client(proxy) as client:
            assert await client.ask(b"hello") == b"HELLO"
            proxy.delay_seconds = 0.01
            assert await client.ask(b"again") == b"AGAIN"

    async def test_faults_that_end_at_once_end(self, proxy: Proxy) -> None:
        proxy.refuse()
        await asyncio.gather(*(proxy.mend() for _ in range(3)))
        async with a_client(proxy) as client:
            assert await client.ask(b"hello") == b"HELLO"

    async def test_the_answer_to_the_last_word_is_lost_once(self, proxy: Proxy, echo: Echo) -> None:
        async with a_client(proxy) as client:
            proxy.lose_answer([b"EXEC", b"commit"])
            assert await client.ask(b"begin com") == b"BEGIN COM"
            with pytest.raises(ConnectionResetError):
                await client.ask(b"mit;")
        assert echo.heard == b"begin commit;"
        assert proxy.lost_answers == 1
        async with a_client(proxy) as client:
            assert await client.ask(b"commit") == b"COMMIT"

    async def test_half_open_takes_what_is_sent_and_nothing_arrives(
        self, proxy: Proxy, echo: Echo
    ) -> None:
        async with a_client(proxy) as client, a_client(proxy) as idle:
            assert await idle.ask(b"a") == b"A"
            proxy.is_half_open = True
            asking = asyncio.create_task(client.ask(b"lost"))
            await asyncio.sleep(0.1)
            assert not asking.done()
            await proxy.mend()
            with pytest.raises(ConnectionResetError):
                await asking
            assert await idle.ask(b"b") == b"B"
        assert echo.heard == b"ab"

    async def test_a_reset_ends_connections_and_takes_new_ones(self, proxy: Proxy) -> None:
        async with a_client(proxy) as client:
            assert await client.ask(b"a") == b"A"
            proxy.reset()
            with pytest.raises(ConnectionResetError):
                await client.ask(b"b")
        async with a_client(proxy) as client:
            assert await client.ask(b"c") == b"C"

    async def test_nobody_is_let_in_until_it_is_mended(self, proxy: Proxy) -> None:
        port = proxy.port
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        await proxy.mend()
        async with a_client(proxy) as client:
            assert await client.ask(b"a") == b"A"
        assert proxy.port == port


def drawn(seed: int, number: int) -> list[str]:
    bag = Bag("abcdef", random.Random(seed))
    return [bag.next() for _ in range(number)]


def test_each_thing_comes_once_before_any_comes_again() -> None:
    things = drawn(1, 60)
    assert all(sorted(things[place : place + 6]) == list("abcdef") for place in range(0, 60, 6))


def test_the_same_seed_gives_the_same_order() -> None:
    assert drawn(7, 60) == drawn(7, 60) != drawn(8, 60)


def test_requests_are_of_every_kind_and_say_what_is_good_in_them() -> None:
    maker, made = RequestMaker("seed"), []
    for _ in range(2_000):
        made.append(maker.next())
        maker.remember(made[-1])
    bodies = Counter(request.body for request in made)
    repeats = sum(times - 1 for times in bodies.values())
    singles = [one for one in made if one.path.startswith("/log") and one.path != "/logs"]
    bad = [one for one in singles if not one.ids]
    conflicts = [one for one in made if one.mark == "c"]
    batches = [one for one in made if one.path == "/logs"]
    spoilt = [one for one in batches if len(json.loads(one.body)) == len(one.ids) + 1]
    assert 20 < repeats < 120
    assert min(map(len, (bad, conflicts, spoilt))) > 0
    assert len(singles) + len(batches) == len(made)
    assert any(one.path.endswith("wait=stored") for one in singles)
    first_bodies = {event_id: one.body for one in reversed(made) for event_id in one.ids}
    assert all(first_bodies[one.ids[0]] != one.body for one in conflicts)


class Fickle:
    """A server that gives the answers it has, in their order; an empty one ends the connection."""

    def __init__(self, ledger: Path, answers: Sequence[bytes]) -> None:
        self.bodies: list[bytes] = []
        self.ledgers: list[str] = []
        self._ledger = ledger
        self._answers = iter(answers)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length: ")[2].split()[0])
                self.bodies.append(await reader.readexactly(length))
                self.ledgers.append(self._ledger.read_text())
                answer = next(self._answers)
                if not answer:
                    break
                writer.write(answer)
        writer.close()


def http_answer(status: str, document: object = None) -> bytes:
    body = json.dumps(document).encode()
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


@pytest.fixture
def ledger_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("API_KEY", "test_key_123")
    file = tmp_path / "ledger.txt"
    file.write_text("")
    return file


async def deliver(
    request: Request, ledger_file: Path, *answers: bytes
) -> tuple[Fickle, Seen, list[str]]:
    """Send `request` to a server with `answers`; return it, what was seen and the ledger."""
    fickle, seen = Fickle(ledger_file, answers), Seen()
    ledger = os.open(ledger_file, os.O_WRONLY | os.O_APPEND)
    try:
        async with await asyncio.start_server(fickle.answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            sender = Sender([port, port], RequestMaker("seed"), ledger, seen)
            await sender.deliver(request, random.Random(1))
            sender.hang_up()
    finally:
        os.close(ledger)
    return fickle, seen, ledger_file.read_text().splitlines()


class TestSender:
    good = str(uuid4()), str(uuid4())
    batch = Request("/logs", b"[1, 2, 3]", good)
    taken = http_answer("207 Multi-Status", {"status": "spooled", "event_ids": good})
    busy = http_answer("503 Service Unavailable")
    slow = http_answer("408 Request Timeout")

    async def test_it_tries_again_until_there_is_an_answer(self, ledger_file: Path) -> None:
        answers = (self.busy, b"", self.slow, self.taken)
        fickle, seen, lines = await deliver(self.batch, ledger_file, *answers)
        assert fickle.bodies == [self.batch.body] * 4
        assert lines == [f"e {event_id}" for event_id in self.good]
        assert seen.answers == {
            "503": 1,
            "none: IncompleteReadError": 1,
            "408": 1,
            "207 spooled": 1,
        }

    async def test_nothing_is_in_the_ledger_before_the_answer(self, ledger_file: Path) -> None:
        fickle, _, _ = await deliver(self.batch, ledger_file, self.busy, self.taken)
        assert fickle.ledgers == ["", ""]

    async def test_it_gives_up_in_the_end(
        self, ledger_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(load, "_LONGEST_PAUSE_SECONDS", 0.01)
        fickle, seen, lines = await deliver(self.batch, ledger_file, *[self.busy] * 20)
        assert len(fickle.bodies) == 8
        assert (seen.given_up, lines) == (2, [])

    async def test_an_answer_that_names_other_events_is_told(self, ledger_file: Path) -> None:
        one = http_answer("202 Accepted", {"status": "queued", "event_id": self.good[0]})
        _, seen, lines = await deliver(self.batch, ledger_file, one)
        assert len(seen.wrong) == 1
        assert lines == [f"e {self.good[0]}"]

    async def test_a_refusal_is_final(self, ledger_file: Path) -> None:
        refused = http_answer("422 Unprocessable Content", {"status": 422})
        _, seen, lines = await deliver(Request("/log", b"{}", ()), ledger_file, refused)
        assert (seen.answers, seen.wrong, lines) == ({"422": 1}, [], [])
