"""Whatever is sent, the good events are in, the bad ones are told, and the services live."""

import asyncio
import gzip
import re
import socket
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import psutil
import pytest
import requests
import zstandard
from conftest import ADMIN_API_KEY, API_KEY, owner_url_of, url_of
from events_made import unchecked
from hostile import EVENTS, MOST_PAYLOAD, PAYLOADS, TEXTS, Hostile
from servers import RunningService, run_service, unused_port
from test_producer import LENGTH, ONE, raw_request, speak

from logging_service.embedded import Postgres, Valkey

ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "gzip": lambda body: gzip.compress(body, 1),
    "zstd": zstandard.compress,
}
FORMS: dict[str, Callable[[list[bytes]], bytes]] = {
    "array": lambda events: b"[" + b",".join(events) + b"]",
    "envelope": lambda events: b'{"events": [' + b" , ".join(events) + b"]}",
    "lines": b"\n".join,
}
_ZEROS = bytes(2**20)


def _gzip_bomb(mebibytes: int) -> bytes:
    packer = zlib.compressobj(1, wbits=31)
    parts = [packer.compress(_ZEROS) for _ in range(mebibytes)]
    return b"".join((*parts, packer.flush()))


def _zstd_bomb(mebibytes: int, window_log: int) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=window_log)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    parts = [packer.compress(_ZEROS) for _ in range(mebibytes)]
    return b"".join((*parts, packer.flush()))


_EVENTS = b"[" + b",".join([ONE] * 9) + b"]"
# The encoding that is said, and the body; made when they are needed.
BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "gzip": ("gzip", lambda: _gzip_bomb(100)),
    "zstd": ("zstd", lambda: _zstd_bomb(400, 20)),
    "zstd with a window of 128 MiB": ("zstd", lambda: _zstd_bomb(200, 27)),
    "zstd of many frames": ("zstd", lambda: zstandard.compress(b" ") * 100_000),
    "gzip of 100,000 members": ("gzip", lambda: gzip.compress(b" ") * 100_000),
    "gzip of 100,000 empty members": ("gzip", lambda: gzip.compress(b"") * 100_000),
    "gzip that is cut": ("gzip", lambda: gzip.compress(_EVENTS)[:-9]),
    "gzip in gzip": ("gzip", lambda: gzip.compress(gzip.compress(_EVENTS))),
    "gzip and zstd": ("gzip, zstd", lambda: gzip.compress(_EVENTS)),
    "not gzip": ("gzip", lambda: _EVENTS),
    "a name that is long": ("gzip", lambda: b"\x1f\x8b\x08\x08" + bytes(6) + b"x" * 1_000_000),
}
GOOD = b'{"event_type":"good","session_id":%d,"payload":{"n":%d}}'
_sessions = count(1)


class Pipeline(NamedTuple):
    """Producer, consumer and query service, shared by all that is sent here."""

    producer: RunningService
    consumer: RunningService
    query: RunningService
    database_url: str

    def post(
        self, body: bytes, encoding: str = "", path: str = "/log", media: str = "application/json"
    ) -> requests.Response:
        headers = {"X-API-Key": API_KEY, "Content-Type": media}
        if encoding:
            headers["Content-Encoding"] = encoding
        url = f"{self.producer.url}{path}"
        return requests.post(url, ENCODINGS[encoding](body), headers=headers, timeout=30)

    def post_batch(self, events: list[bytes], form: str, encoding: str) -> requests.Response:
        media = "application/x-ndjson" if form == "lines" else "application/json"
        return self.post(FORMS[form](events), encoding, "/logs?wait=stored", media)

    def stored(self, **wanted: Any) -> list[dict[str, Any]]:
        answer = requests.get(f"{self.query.url}/events", wanted, timeout=30)
        assert answer.status_code == 200, answer.text
        events: list[dict[str, Any]] = answer.json()["events"]
        return events

    def replay(self, order: dict[str, Any]) -> dict[str, Any]:
        url = f"{self.query.url}/dead-letters/replay"
        answer = requests.post(url, json=order, headers={"X-API-Key": ADMIN_API_KEY}, timeout=30)
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()
        return told


@pytest.fixture(scope="module")
async def pipeline(
    postgres: Postgres, redis_server: Valkey, migrated_template: str
) -> AsyncIterator[Pipeline]:
    connection = await asyncpg.connect(postgres.admin_url, ssl=False)
    await connection.execute(
        f"CREATE DATABASE attacked TEMPLATE {migrated_template} OWNER logging_service_owner"
    )
    await connection.close()
    environment = {
        "DATABASE_URL": url_of(postgres, "attacked"),
        "REDIS_URL": redis_server.url,
        "REDIS_QUEUE_NAME": "attacked",
        "API_KEY": API_KEY,
        "ADMIN_API_KEY": ADMIN_API_KEY,
        "RATE_LIMIT": "100000/minute",
        "PRODUCER_PORT": str(unused_port()),
        "QUERY_SERVICE_PORT": str(unused_port()),
        "METRICS_PORT": str(unused_port()),
    }
    with ExitStack() as stack:
        names = ("producer", "consumer", "query_service")
        producer, consumer, query = (
            stack.enter_context(run_service(name, environment)) for name in names
        )
        yield Pipeline(producer, consumer, query, owner_url_of(postgres, "attacked"))


@pytest.fixture(autouse=True)
def _all_live(pipeline: Pipeline) -> Iterator[None]:
    """No service may end, meet a mistake of its own, or put anything aside."""
    yield
    for service in (pipeline.producer, pipeline.consumer, pipeline.query):
        assert service.process.poll() is None, service.log
        assert "unhandled_error" not in service.log
        assert "Traceback" not in service.log


def peak_of(process: psutil.Process) -> int:
    """Return the most bytes that the process had in memory since `forget_peak`."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def forget_peak(process: psutil.Process) -> None:
    Path(f"/proc/{process.pid}/clear_refs").write_text("5", encoding="ascii")


def amid(bad: bytes, goods: int, session: int) -> list[bytes]:
    good = [GOOD % (session, number) for number in range(goods)]
    return [*good[: goods // 2], bad, *good[goods // 2 :]]


def faults_of(answer: requests.Response) -> list[str]:
    return [fault["loc"] for fault in answer.json()["errors"]]


@pytest.mark.parametrize("name", EVENTS)
class TestABadEvent:
    def test_is_refused_and_its_field_is_named(self, pipeline: Pipeline, name: str) -> None:
        hostile = EVENTS[name]
        for encoding in ENCODINGS:
            answer = pipeline.post(hostile.text, encoding)
            if len(hostile.text) > 2**20:
                assert answer.status_code == 413
            else:
                assert (answer.status_code, faults_of(answer)) == (422, [hostile.loc])

    def test_costs_none_of_its_neighbours(self, pipeline: Pipeline, name: str) -> None:
        turn = [*EVENTS].index(name)
        for place, form in enumerate(FORMS):
            encoding = [*ENCODINGS][(place + turn) % 3]
            goods = 999 if place == turn // 3 % 3 else 19
            assert_only_the_bad_one_is_refused(pipeline, EVENTS[name], goods, form, encoding)


def assert_only_the_bad_one_is_refused(
    pipeline: Pipeline, hostile: Hostile, goods: int, form: str, encoding: str
) -> None:
    session = next(_sessions)
    answer = pipeline.post_batch(amid(hostile.text, goods, session), form, encoding)
    told = answer.json()
    assert (answer.status_code, told["status"], told["accepted"]) == (207, "stored", goods)
    (refused,) = told["rejected"]
    assert (refused["index"], refused["errors"][0]["loc"]) == (goods // 2, hostile.loc)
    assert refused["errors"][0]["msg"]
    stored = pipeline.stored(session_id=session, limit=1000, order="asc")
    assert [event["payload"]["n"] for event in stored] == [*range(goods)]


@pytest.mark.parametrize("name", TEXTS)
class TestATextThatIsNoJson:
    def test_is_refused(self, pipeline: Pipeline, name: str) -> None:
        for encoding in ENCODINGS:
            assert pipeline.post(TEXTS[name], encoding).status_code == 400

    def test_costs_its_line_or_its_array(self, pipeline: Pipeline, name: str) -> None:
        hostile = Hostile(TEXTS[name], "body")
        encoding = [*ENCODINGS][[*TEXTS].index(name) % 3]
        assert_only_the_bad_one_is_refused(pipeline, hostile, 19, "lines", encoding)
        session = next(_sessions)
        for form in ("array", "envelope"):
            answer = pipeline.post_batch(amid(hostile.text, 19, session), form, encoding)
            assert answer.status_code == 400
        assert pipeline.stored(session_id=session) == []


@pytest.mark.parametrize(
    ("path", "media", "body", "status"),
    [
        ("/log", "application/json", b"", 400),
        ("/logs", "application/json", b"", 400),
        ("/logs", "application/x-ndjson", b"", 422),
        ("/logs", "application/x-ndjson", b"\n \r\n\n", 422),
        ("/logs", "application/json", b"null", 400),
        ("/logs", "application/json", b'"events"', 400),
        ("/logs", "application/json", b"[]", 422),
        ("/logs", "application/json", b'{"events":[],"events":[]}', 400),
        ("/logs", "application/json", b'{"events":[%b],"\\u0065vents":[]}' % ONE, 400),
        ("/logs", "application/json", b'{"events":[%b],"more":1}' % ONE, 400),
        ("/logs", "application/json", b"\xef\xbb\xbf[%b]" % ONE, 400),
        ("/logs", "application/json", b"[" * 5_000_000, 400),
        ("/logs", "application/json", b'{"events":' * 500_000, 400),
        ("/log", "application/x-ndjson", ONE, 415),
        ("/log", "application/jsonx", ONE, 415),
        ("/log", "text/json", ONE, 415),
        ("/logs", "application/x-www-form-urlencoded", b"[%b]" % ONE, 415),
        ("/logs", "multipart/form-data; boundary=a", b"[%b]" % ONE, 415),
        ("/logs", "application/json\t;", b"[1", 400),
        ("/logs", "application/json;charset=utf-16", "[]".encode("utf-16"), 400),
    ],
)
def test_a_body_that_holds_no_event_is_refused(
    pipeline: Pipeline, path: str, media: str, body: bytes, status: int
) -> None:
    answer = pipeline.post(body, path=path, media=media)
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize("number", range(len(PAYLOADS)))
def test_what_is_taken_comes_back_as_it_was_sent(pipeline: Pipeline, number: int) -> None:
    payload, session = PAYLOADS[number], next(_sessions)
    assert len(payload) <= MOST_PAYLOAD
    event = b'{"event_type":"taken","session_id":%d,"payload":%b}' % (session, payload)
    for place, form in enumerate(FORMS):
        encoding = [*ENCODINGS][(place + number) % 3]
        assert pipeline.post_batch([event], form, encoding).json()["status"] == "stored"
    assert pipeline.post(event, path="/log?wait=stored").json()["status"] == "stored"
    answer = requests.get(f"{pipeline.query.url}/events?session_id={session}", timeout=30)
    assert answer.content.count(b'"payload":' + payload) == 4


class TestReplay:
    """Bytes that somebody has put among the dead letters by hand."""

    async def test_takes_what_a_producer_would_take_and_tells_the_rest(
        self, pipeline: Pipeline
    ) -> None:
        session = str(next(_sessions))
        bad = {name: payload for name in EVENTS if (payload := payload_of(EVENTS[name]))}
        letters = [unchecked(payload, session_id=session) for payload in bad.values()]
        goods = [unchecked(payload, session_id=session) for payload in PAYLOADS]
        at = len(letters) // 2
        ids = await bury_by_hand(
            pipeline, [*letters[:at], *goods, *letters[at:], b"", b"\x01garbage", goods[0][:-1]]
        )
        told = pipeline.replay({"ids": ids})
        assert told["replayed"] == len(goods)
        refused = {refusal["id"] for refusal in told["refused"]}
        assert refused == {*ids[:at], *ids[at + len(goods) :]}
        details = [refusal["detail"] for refusal in told["refused"]]
        assert sum(detail.startswith("payload: ") for detail in details) == len(bad)
        assert len(await self.stored_in_time(pipeline, session, len(goods))) == len(goods)
        assert pipeline.replay({"ids": ids})["replayed"] == 0

    async def stored_in_time(self, pipeline: Pipeline, session: str, number: int) -> list[Any]:
        for _ in range(200):
            stored = pipeline.stored(session_id=session)
            if len(stored) >= number:
                break
            await asyncio.sleep(0.02)
        return stored


def payload_of(hostile: Hostile) -> bytes | None:
    """Return the payload of an event that has nothing else at fault."""
    before, _, payload = hostile.text.partition(b'"payload":')
    return payload[:-1] if hostile.loc == "payload" and before.endswith(b'",') else None


async def bury_by_hand(pipeline: Pipeline, events: list[bytes]) -> list[int]:
    connection = await asyncpg.connect(pipeline.database_url)
    try:
        return [
            await connection.fetchval(
                "INSERT INTO dead_letters (event, reason, detail, attempts)"
                " VALUES ($1, 'rejected', 'by hand', 1) RETURNING id",
                event,
            )
            for event in events
        ]
    finally:
        await connection.close()


class TestBombs:
    """What is small on the way and large in memory."""

    @pytest.mark.parametrize("path", ["/log", "/logs"])
    @pytest.mark.parametrize("kind", BOMBS)
    def test_is_refused_before_it_has_exploded(
        self, pipeline: Pipeline, path: str, kind: str
    ) -> None:
        encoding, made = BOMBS[kind]
        body = made()
        process = psutil.Process(pipeline.producer.pid)
        headers = {"X-API-Key": API_KEY, "Content-Encoding": encoding}
        forget_peak(process)
        before, began = process.memory_info().rss, time.monotonic()
        answer = requests.post(pipeline.producer.url + path, body, headers=headers, timeout=30)
        assert 400 <= answer.status_code < 500
        assert time.monotonic() - began < 5
        assert peak_of(process) - before < 64 * 2**20


CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(ONE), ONE)
# What an answer to it would tell, were it taken for a request of its own.
SMUGGLED = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
TE = "Transfer-Encoding"
AMBIGUOUS = {
    "CL.TE": (["Content-Length: 4", f"{TE}: chunked"], CHUNKED),
    "TE.CL": ([f"{TE}: chunked", "Content-Length: 4"], CHUNKED),
    "TE.TE": ([f"{TE}: chunked", f"{TE}: identity"], CHUNKED),
    "TE.TE, the other first": ([f"{TE}: identity", f"{TE}: chunked"], CHUNKED),
    "TE twice": ([f"{TE}: chunked", f"{TE}: chunked"], CHUNKED),
    "TE with another": ([f"{TE}: gzip, chunked"], CHUNKED),
    "TE with another behind": ([f"{TE}: chunked, identity"], CHUNKED),
    "TE of an unknown name": ([f"{TE}: xchunked"], CHUNKED),
    "TE in quotes": ([f'{TE}: "chunked"'], CHUNKED),
    "TE behind a vertical tab": ([f"{TE}:\vchunked"], CHUNKED),
    "TE before a space": ([f"{TE} : chunked"], CHUNKED),
    "TE that is folded": ([f"{TE}:\r\n chunked"], CHUNKED),
    "TE without a colon": ([TE, LENGTH], ONE),
    "CL twice": ([LENGTH, LENGTH], ONE),
    "CL twice, not the same": (["Content-Length: 0", LENGTH], ONE),
    "CL as a list": ([f"{LENGTH}, {len(ONE)}"], ONE),
    "CL with a sign": ([f"Content-Length: +{len(ONE)}"], ONE),
    "CL below zero": (["Content-Length: -1"], ONE),
    "CL in hexadecimal": ([f"Content-Length: {len(ONE):#x}"], ONE),
    "CL of two numbers": (["Content-Length: 8 8"], ONE),
    "CL of nothing": (["Content-Length:"], ONE),
    "CL before a space": ([LENGTH.replace(":", " :")], ONE),
    "CL that overflows": ([f"Content-Length: {2**64 + len(ONE)}"], ONE),
    "an end of line without CR": ([f"X-A: b\n{LENGTH}"], ONE),
    "an end of line without LF": ([f"X-A: b\r{LENGTH}"], ONE),
    "a line that is folded": ([LENGTH, "X-A: b\r\n c"], ONE),
    "a NUL": ([LENGTH, "X-A: b\0c"], ONE),
    "a NUL in a name": ([LENGTH, "X\0A: b"], ONE),
    "a space before the first line": ([f" {LENGTH}"], ONE),
    "two keys": ([LENGTH, "X-API-Key: another"], ONE),
    "two encodings": ([LENGTH, "Content-Encoding: gzip", "Content-Encoding: identity"], ONE),
    "two types": ([LENGTH, "Content-Type: text/plain"], ONE),
    "a chunk that overflows": ([f"{TE}: chunked"], b"f" * 17 + b"\r\n" + ONE),
    "a chunk below zero": ([f"{TE}: chunked"], b"-1\r\n" + ONE),
    "a chunk in C": ([f"{TE}: chunked"], b"0x" + CHUNKED),
    "a chunk before a space": ([f"{TE}: chunked"], CHUNKED.replace(b"\r\n", b" \r\n", 1)),
    "chunks without CR": ([f"{TE}: chunked"], CHUNKED.replace(b"\r\n", b"\n")),
    "a chunk without its end": ([f"{TE}: chunked"], CHUNKED.replace(b"}}\r\n", b"}}")),
    "an extension that is cut": ([f"{TE}: chunked"], CHUNKED.replace(b"\r\n", b";a\n", 1)),
}


def statuses_in(answer: bytes) -> list[bytes]:
    return re.findall(rb"HTTP/1\.1 (\d+) ", answer)


def answer_to(service: RunningService, sent: bytes) -> bytes:
    """Return all that comes until the service closes the connection."""
    port = int(service.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(sent)
        return b"".join(iter(lambda: connection.recv(65536), b""))


class TestHttp:
    @pytest.mark.parametrize("name", AMBIGUOUS)
    def test_a_request_that_a_proxy_may_read_in_another_way_is_refused(
        self, pipeline: Pipeline, name: str
    ) -> None:
        headers, body = AMBIGUOUS[name]
        asked = [
            (pipeline.producer, "/log"),
            (pipeline.producer, "/x"),
            (pipeline.query, "/events"),
        ]
        for service, path in asked:
            answer = answer_to(service, raw_request(body, *headers, path=path) + SMUGGLED)
            assert statuses_in(answer) == [b"400"]
            assert b"connection: close" in answer

    def test_http_1_0_has_no_chunks(self, pipeline: Pipeline) -> None:
        sent = raw_request(CHUNKED, f"{TE}: chunked", version="1.0") + SMUGGLED
        assert statuses_in(answer_to(pipeline.producer, sent)) == [b"400"]

    @pytest.mark.parametrize("version", ["0.9", "1.2", "2.0"])
    def test_another_version_of_http_is_refused(self, pipeline: Pipeline, version: str) -> None:
        for path in ("/log", "/x"):
            sent = raw_request(ONE, LENGTH, path=path, version=version)
            assert statuses_in(answer_to(pipeline.producer, sent)) == [b"400"]

    @pytest.mark.parametrize("host", [b"elsewhere", b"localhost@elsewhere", b"elsewhere:8001"])
    def test_a_whole_url_names_the_host_that_is_asked(
        self, pipeline: Pipeline, host: bytes
    ) -> None:
        def ask_for(host: bytes) -> bytes:
            line = b"GET http://%b/health HTTP/1.1\r\n" % host
            head = line + b"Host: localhost\r\nConnection: close\r\n\r\n"
            return answer_to(pipeline.producer, head)

        assert statuses_in(ask_for(host)) == [b"421"]
        assert statuses_in(ask_for(b"localhost:8001")) == [b"200"]

    @pytest.mark.parametrize(
        "garbage",
        [
            b"\0" * 5000,
            b"\r\n" * 5 + b"\x16\x03\x01",
            b"POST\r\n\r\n",
            b"}" * 100,
            b"GET",
        ],
    )
    def test_garbage_behind_a_request_costs_the_connection_alone(
        self, pipeline: Pipeline, garbage: bytes
    ) -> None:
        answer = speak(pipeline.producer, raw_request(ONE, LENGTH), garbage + b"\r\n\r\n")
        assert statuses_in(answer) == [b"202", b"400"]
        assert statuses_in(speak(pipeline.query, SMUGGLED, garbage + b"\r\n\r\n"))[0] == b"200"

    def test_an_upgrade_that_is_not_made_ends_the_connection(self, pipeline: Pipeline) -> None:
        head = SMUGGLED[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        assert statuses_in(answer_to(pipeline.producer, head + SMUGGLED)) == [b"200"]

    def test_a_hundred_thousand_bytes_of_header_take_no_memory(self, pipeline: Pipeline) -> None:
        process = psutil.Process(pipeline.producer.pid)
        forget_peak(process)
        before = process.memory_info().rss
        for line in (b"X-Filler: x\r\n", b"X-%b: y\r\n" % (b"a" * 30_000), b"x" * 1000):
            head = b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + line * (
                100_000 // len(line) + 1
            )
            assert statuses_in(answer_to(pipeline.producer, head)) == [b"431"]
        assert peak_of(process) - before < 16 * 2**20
