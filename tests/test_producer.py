"""What the producer promises over HTTP, against its real process, queue and store."""

import asyncio
import gzip
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any
from uuid import UUID

import asyncpg
import psutil
import pytest
import requests
import zstandard
from redis import Redis
from relay import before
from served import ask
from servers import RunningService, run_service, run_to_end

from logging_service import wire

KEY = {"X-API-Key": "test_key_123"}
NDJSON = "application/x-ndjson"
EVENT = {"session_id": 123, "event_type": "review_started", "payload": {"user_id": "user123"}}
ONE = json.dumps(EVENT).encode()


@pytest.fixture
def producer(environment: dict[str, str]) -> Iterator[RunningService]:
    with run_service("producer", environment) as service:
        yield service


@pytest.fixture
def queue(redis_url: str) -> Iterator["Redis"]:
    with closing(Redis.from_url(redis_url)) as client:
        yield client


def waiting(queue: Redis) -> list[wire.Decoded]:
    elements: Any = queue.lrange("log_queue", 0, -1)
    return [wire.decode(element) for element in elements]


def post(
    service: RunningService, path: str, body: Any = EVENT, **headers: str
) -> requests.Response:
    """Post JSON, or bytes as they are, with the key; `Content_Type` names a header."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    return requests.post(
        service.url + path,
        data=sent,
        headers={"Content-Type": "application/json", **KEY, **named},
        timeout=20,
    )


def assert_problem(answer: requests.Response, status: int, loc: str | None = None) -> None:
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert (answer.status_code, problem["status"]) == (status, status)
    assert problem["type"].startswith("/problems/")
    assert problem["title"]
    assert problem["detail"]
    if loc is not None:
        assert loc in [fault["loc"] for fault in problem["errors"]]


class TestOneEvent:
    def test_it_is_queued_before_the_answer(self, producer: RunningService, queue: Redis) -> None:
        answer = post(producer, "/log")
        assert answer.status_code == 202
        (event,) = waiting(queue)
        assert answer.json() == {"status": "queued", "event_id": str(event.event_id)}
        assert (event.event_type, event.session_id) == ("review_started", "123")
        assert (event.payload, event.source) == (b'{"user_id": "user123"}', "default")

    def test_the_senders_id_is_kept(self, producer: RunningService, queue: Redis) -> None:
        first = UUID(post(producer, "/log").json()["event_id"])
        again = post(producer, "/log", {**EVENT, "event_id": str(first)})
        assert again.json()["event_id"] == str(first)
        assert [event.event_id for event in waiting(queue)] == [first, first]

    def test_headers_give_the_trace_and_the_request(
        self, producer: RunningService, queue: Redis
    ) -> None:
        trace = "4bf92f3577b34da6a3ce929d0e0e4736"
        headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01", "X-Request-ID": "mine"}
        answer = post(producer, "/log", **headers)
        assert answer.headers["X-Request-ID"] == "mine"
        (event,) = waiting(queue)
        assert (event.trace_id, event.request_id) == (trace, "mine")

    @pytest.mark.parametrize(
        ("body", "status", "loc"),
        [
            ({"event_type": "a b"}, 422, "event_type"),
            ({}, 422, "event_type"),
            ({"event_type": "a", "payload": 1}, 422, "payload"),
            ({"event_type": "a", "more": 1}, 422, "more"),
            ([EVENT], 422, "body"),
            (b"", 400, None),
            (b"{", 400, None),
            (b"null", 422, "body"),
            (b'"text"', 422, "body"),
            (b"\xff\xfe", 400, None),
        ],
    )
    def test_a_bad_one_is_refused_and_says_why(
        self, producer: RunningService, queue: Redis, body: Any, status: int, loc: str | None
    ) -> None:
        assert_problem(post(producer, "/log", body), status, loc)
        assert waiting(queue) == []

    @pytest.mark.parametrize("query", ["?wait=forever", "?wait=", "?now=1", "?wait=stored&x=1"])
    def test_a_bad_parameter_is_refused_and_named(
        self, producer: RunningService, queue: Redis, query: str
    ) -> None:
        answer = post(producer, f"/log{query}")
        assert_problem(answer, 422)
        assert answer.json()["errors"][0]["loc"] in query
        assert waiting(queue) == []


class TestBatches:
    @pytest.mark.parametrize(
        ("body", "headers"),
        [
            ([EVENT] * 3, {}),
            ({"events": [EVENT] * 3}, {}),
            (
                b"\n".join([json.dumps(EVENT).encode()] * 3),
                {"Content-Type": "application/x-ndjson"},
            ),
            (
                gzip.compress(json.dumps([EVENT] * 3).encode(), mtime=0),
                {"Content-Encoding": "gzip"},
            ),
            (zstandard.compress(json.dumps([EVENT] * 3).encode()), {"Content-Encoding": "zstd"}),
        ],
    )
    def test_every_form_is_queued_in_order(
        self, producer: RunningService, queue: Redis, body: Any, headers: dict[str, str]
    ) -> None:
        answer = post(producer, "/logs", body, **headers)
        assert answer.status_code == 202
        ids = [str(event.event_id) for event in waiting(queue)]
        assert answer.json() == {
            "status": "queued", "accepted": 3, "rejected": [], "event_ids": ids
        }  # fmt: skip

    def test_only_the_bad_events_are_refused(self, producer: RunningService, queue: Redis) -> None:
        bad = {"event_type": "a", "event_id": "0193a5e2-7c1f-4b3a-9d53-3f2b8f1c6d10"}
        answer = post(producer, "/logs", [EVENT, bad, EVENT, 7])
        assert answer.status_code == 207
        assert answer.json()["accepted"] == len(waiting(queue)) == 2
        first, second = answer.json()["rejected"]
        assert (first["index"], first["event_id"]) == (1, bad["event_id"])
        assert first["errors"][0]["loc"] == "event_id"
        assert second["index"] == 3

    @pytest.mark.parametrize(
        ("body", "loc"), [([], "body"), ({"events": []}, "body"), ([{}, {}], "1.event_type")]
    )
    def test_a_batch_without_a_good_event_is_refused(
        self, producer: RunningService, body: Any, loc: str
    ) -> None:
        assert_problem(post(producer, "/logs", body), 422, loc)

    @pytest.mark.parametrize("body", [b"[{]", b"", b"[" * 100_000, b'{"event_type": "a"}'])
    def test_a_body_that_is_no_batch_is_refused_whole(
        self, producer: RunningService, queue: Redis, body: bytes
    ) -> None:
        assert_problem(post(producer, "/logs", body), 400)
        assert waiting(queue) == []

    def test_another_content_type_is_refused(self, producer: RunningService) -> None:
        assert_problem(post(producer, "/logs", [EVENT], Content_Type="text/plain"), 415)
        assert_problem(post(producer, "/log", EVENT, Content_Type="text/plain"), 415)
        assert_problem(post(producer, "/logs", [EVENT], Content_Encoding="br"), 415)


class TestKeys:
    @pytest.mark.parametrize("path", ["/log", "/logs"])
    @pytest.mark.parametrize(
        "headers", [{}, {"X-API-Key": "wrong"}, {"Authorization": "Basic dGVzdA=="}]
    )
    def test_without_a_good_key_nothing_is_taken(
        self, producer: RunningService, queue: Redis, path: str, headers: dict[str, str]
    ) -> None:
        answer = requests.post(producer.url + path, json=[EVENT], headers=headers, timeout=5)
        assert_problem(answer, 401)
        assert "Bearer" in answer.headers["WWW-Authenticate"]
        assert waiting(queue) == []

    def test_a_bearer_token_is_a_key(self, producer: RunningService) -> None:
        headers = {"Authorization": "Bearer admin_key_123"}
        answer = requests.post(f"{producer.url}/log", json=EVENT, headers=headers, timeout=5)
        assert answer.status_code == 202

    def test_health_says_whether_a_key_is_good(self, producer: RunningService) -> None:
        url = f"{producer.url}/health"
        assert "api_key" not in requests.get(url, timeout=5).json()
        report = requests.get(url, headers=KEY, timeout=5).json()["api_key"]
        assert report == {"valid": True, "name": "default", "scopes": ["read", "write"]}
        assert_problem(requests.get(url, headers={"X-API-Key": "wrong"}, timeout=5), 401)

    def test_a_key_may_ask_for_its_limit_without_using_it(
        self, environment: dict[str, str]
    ) -> None:
        with run_service("producer", {**environment, "RATE_LIMIT_LOG": "3/hour"}) as producer:
            url = f"{producer.url}/log"
            for _ in range(5):
                answer = requests.get(url, headers=KEY, timeout=5)
                assert answer.json() == {"limit": 3, "remaining": 3, "reset_seconds": 3600}
            assert [post(producer, "/log").status_code for _ in range(4)] == [202] * 3 + [429]
            refused = post(producer, "/log")
            assert_problem(refused, 429)
            assert 0 < int(refused.headers["Retry-After"]) <= 3600
            assert refused.headers["RateLimit-Policy"] == '"default";q=3;w=3600'
            assert refused.headers["RateLimit"].startswith('"default";r=0;t=')
            assert post(producer, "/logs", [EVENT]).status_code == 202
            assert_problem(requests.get(url, timeout=5), 401)


def speak(
    service: RunningService, *sent: bytes, wait_seconds: float = 10, end: bool = False
) -> bytes:
    """Send bytes, in pieces, and return all that comes until the service closes."""
    port = int(service.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=wait_seconds) as connection:
        for piece in sent:
            connection.sendall(piece)
            time.sleep(0.05)
        if end:
            connection.shutdown(socket.SHUT_WR)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
        return b"".join(parts)


def raw_request(
    body: bytes = ONE,
    *headers: str,
    path: str = "/log",
    version: str = "1.1",
) -> bytes:
    lines = [
        f"POST {path} HTTP/{version}",
        "Host: localhost",
        "X-API-Key: test_key_123",
        "Content-Type: application/json",
        *(headers or [f"Content-Length: {len(body)}"]),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


LENGTH = f"Content-Length: {len(ONE)}"
CLOSE = ("Connection: close",)


class TestHttp:
    def test_pipelined_requests_are_answered_in_order(
        self, producer: RunningService, queue: Redis
    ) -> None:
        bodies = [json.dumps({"event_type": f"t{n}"}).encode() for n in range(20)]
        last = raw_request(bodies[-1], f"Content-Length: {len(bodies[-1])}", *CLOSE)
        answer = speak(producer, b"".join(map(raw_request, bodies[:-1])) + last)
        assert answer.count(b"HTTP/1.1 202 ") == 20
        answered = re.findall(rb'"event_id":"([0-9a-f-]+)"', answer)
        queued = waiting(queue)
        assert [event.event_type for event in queued] == [f"t{n}" for n in range(20)]
        assert [str(event.event_id).encode() for event in queued] == answered

    def test_a_chunked_body_is_read(self, producer: RunningService, queue: Redis) -> None:
        body = json.dumps(EVENT).encode()
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:10], body[10:]))
        sent = raw_request(chunks + b"0\r\n\r\n", "Transfer-Encoding: chunked", *CLOSE)
        assert speak(producer, sent).startswith(b"HTTP/1.1 202 ")
        assert len(waiting(queue)) == 1

    def test_expect_is_honoured(self, producer: RunningService, queue: Redis) -> None:
        body = json.dumps(EVENT).encode()
        length = f"Content-Length: {len(body)}"
        answer = speak(producer, raw_request(body, length, "Expect: 100-continue", *CLOSE))
        assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 202 ")
        assert len(waiting(queue)) == 1

    def test_a_pipelined_header_that_is_cut_in_two_costs_nothing(
        self, producer: RunningService, queue: Redis
    ) -> None:
        large = json.dumps([{**EVENT, "payload": {"text": "x" * 25_000}}]).encode()
        first, second = raw_request(large, path="/logs"), raw_request(ONE, LENGTH, *CLOSE)
        for cut in (9, 40, 120):
            answer = speak(producer, first + second[:cut], second[cut:])
            assert answer.count(b"HTTP/1.1 202 ") == 2
        assert len(waiting(queue)) == 6

    def test_a_header_may_come_in_pieces(self, producer: RunningService) -> None:
        request = raw_request(ONE, f"X-Filler: {'x' * 10_000}", LENGTH, *CLOSE)
        assert speak(producer, request[:9000], request[9000:]).startswith(b"HTTP/1.1 202 ")

    def test_a_refusal_does_not_overtake_the_answer_before_it(
        self, producer: RunningService, queue: Redis
    ) -> None:
        first = raw_request(ONE, LENGTH, path="/log?wait=stored")
        large = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Filler: " + b"x" * 10_000
        answer = speak(producer, first + large, b"x" * 20_000)
        assert answer.startswith(b"HTTP/1.1 202 ")
        assert answer.count(b"HTTP/1.1") == 1
        assert b"connection: close" in answer
        assert len(waiting(queue)) == 1

    def test_each_answer_carries_its_own_request_id(self, producer: RunningService) -> None:
        requests_sent = [
            raw_request(ONE, LENGTH, f"X-Request-ID: id-{n}", *(CLOSE if n == 2 else ()))
            for n in range(3)
        ]
        answer = speak(producer, b"".join(requests_sent))
        assert re.findall(rb"x-request-id: (\S+)", answer) == [b"id-0", b"id-1", b"id-2"]

    def test_a_trailer_is_no_header_and_is_bounded(self, producer: RunningService) -> None:
        head = b"POST /log HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
        body = b"%x\r\n%b\r\n0\r\n" % (len(ONE), ONE)
        key = b"X-API-Key: test_key_123\r\n"
        assert speak(producer, head + b"\r\n" + body + key + b"\r\n").startswith(b"HTTP/1.1 401 ")
        many = b"X-Filler: x\r\n" * 100_000
        assert speak(producer, head + key + b"\r\n" + body + many).startswith(b"HTTP/1.1 431 ")

    def test_who_ends_its_half_is_answered(self, producer: RunningService) -> None:
        assert speak(producer, raw_request(), end=True).startswith(b"HTTP/1.1 202 ")

    def test_without_a_key_no_body_is_read(self, producer: RunningService) -> None:
        head = b"POST /logs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n\r\n["
        assert speak(producer, head).startswith(b"HTTP/1.1 401 ")

    def test_http_1_0_is_answered_and_closed(self, producer: RunningService) -> None:
        body = json.dumps(EVENT).encode()
        sent = raw_request(body, f"Content-Length: {len(body)}", version="1.0")
        assert b" 202 " in speak(producer, sent).splitlines()[0]

    @pytest.mark.parametrize("path", ["/log", "/logs"])
    def test_a_body_over_the_limit_is_refused_before_it_is_read(
        self, producer: RunningService, path: str
    ) -> None:
        answer = speak(producer, raw_request(b"{", "Content-Length: 99999999999", path=path))
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in answer

    def test_a_chunked_body_over_the_limit_is_cut_off(self, producer: RunningService) -> None:
        chunk = b"%x\r\n%b\r\n" % (2**20, b" " * 2**20)
        sent = raw_request(chunk * 3, "Transfer-Encoding: chunked")
        assert speak(producer, sent).startswith(b"HTTP/1.1 413 ")

    def test_a_slow_path_body_over_the_limit_is_refused(self, producer: RunningService) -> None:
        body = b" " * (2**20 + 1)
        sent = raw_request(body, f"Content-Length: {len(body)}", version="1.0")
        assert b" 413 " in speak(producer, sent).splitlines()[0]

    @pytest.mark.parametrize("size", [17_000, 100_000, 1_000_000])
    def test_a_header_over_16_kib_is_refused(self, producer: RunningService, size: int) -> None:
        filler = "\r\n".join(f"X-Filler-{n}: {'x' * 990}" for n in range(size // 1000))
        for path in ("/log", "/health"):
            answer = speak(producer, raw_request(b"{}", filler, "Content-Length: 2", path=path))
            assert answer.startswith(b"HTTP/1.1 431 ")
        assert speak(producer, b"GET /" + b"a" * size).startswith(b"HTTP/1.1 431 ")
        assert post(producer, "/log").status_code == 202

    @pytest.mark.parametrize(
        "garbage", [b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"POST /log HTTP/9.9\r\n\r\n"]
    )
    def test_what_is_not_http_is_refused(self, producer: RunningService, garbage: bytes) -> None:
        answer = speak(producer, garbage)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"application/problem+json" in answer
        assert b"x-request-id: " in answer
        assert post(producer, "/log").status_code == 202

    def test_unknown_paths_and_methods_are_said(self, producer: RunningService) -> None:
        assert_problem(requests.get(f"{producer.url}/nothing", timeout=5), 404)
        refused = requests.delete(f"{producer.url}/log", timeout=5)
        assert_problem(refused, 405)
        assert refused.headers["Allow"]

    def test_many_at_once_are_all_held(self, producer: RunningService, queue: Redis) -> None:
        def send(worker: int) -> list[str]:
            with requests.Session() as session:
                session.headers.update(KEY)
                answers = [
                    session.post(f"{producer.url}/log", json={"event_type": f"w{worker}"})
                    for _ in range(50)
                ]
            assert {answer.status_code for answer in answers} == {202}
            return [answer.json()["event_id"] for answer in answers]

        with ThreadPoolExecutor(16) as pool:
            acknowledged = [one for ids in pool.map(send, range(16)) for one in ids]
        held = [str(event.event_id) for event in waiting(queue)]
        assert len(set(held)) == 800
        assert sorted(held) == sorted(acknowledged)


class TestWaiting:
    def test_stored_is_said_when_the_event_can_be_queried(
        self, environment: dict[str, str], producer: RunningService
    ) -> None:
        with run_service("consumer", environment):
            answer = post(producer, "/log?wait=stored")
            assert (answer.status_code, answer.json()["status"]) == (202, "stored")
            batch = post(producer, "/logs?wait=stored", [EVENT] * 1000)
            assert (batch.json()["status"], batch.json()["accepted"]) == ("stored", 1000)

    def test_without_a_consumer_the_answer_comes_all_the_same(
        self, producer: RunningService
    ) -> None:
        assert post(producer, "/log?wait=stored").json()["status"] == "queued"


class TestBadDays:
    async def test_without_redis_events_are_spooled_and_then_all_is_well_again(
        self, environment: dict[str, str], redis_url: str, queue: Redis
    ) -> None:
        async with before(redis_url) as (relay, through):
            with run_service("producer", {**environment, "REDIS_URL": through}) as producer:
                assert (await ask(f"{producer.url}/queue/status")).json()["backend"] == "redis"
                await relay.cut()
                for _ in range(3):
                    answer = await asyncio.to_thread(post, producer, "/log")
                    assert (answer.status_code, answer.json()["status"]) == (202, "spooled")
                status = (await ask(f"{producer.url}/queue/status")).json()
                assert (status["backend"], status["spooled"]) == ("spool", 3)
                health = (await ask(f"{producer.url}/health")).json()
                assert health["status"] == "degraded"
                assert "spooled on this host" in json.dumps(health)
                shown = (await ask(f"{producer.url}/metrics")).text
                assert "spool_active 1.0" in shown
                assert "spool_events 3.0" in shown
                assert "events_spooled_total 3.0" in shown
                await relay.mend()
                while (await ask(f"{producer.url}/queue/status")).json()["spooled"]:
                    await asyncio.sleep(0.1)
                answer = await asyncio.to_thread(post, producer, "/log")
                assert answer.json()["status"] == "queued"
                assert (await ask(f"{producer.url}/health")).json()["status"] == "ok"
        assert len(waiting(queue)) == 4

    async def test_without_redis_and_without_a_spool_the_answer_is_503(
        self, environment: dict[str, str], free_port: int
    ) -> None:
        away = f"redis://127.0.0.1:{free_port}/0"
        small = {**environment, "REDIS_URL": away, "SPOOL_MAX_BYTES": "1048576"}
        event = {**EVENT, "payload": {"text": "x" * 200_000}}
        with run_service("producer", small) as producer:
            answers = [post(producer, "/log", event) for _ in range(12)]
            assert answers[0].json()["status"] == "spooled"
            assert_problem(answers[-1], 503)
            assert int(answers[-1].headers["Retry-After"]) > 0
            assert (await ask(f"{producer.url}/health")).json()["status"] != "ok"

    def test_without_a_database_events_are_taken_and_health_is_degraded(
        self, environment: dict[str, str], free_port: int
    ) -> None:
        away = {**environment, "DATABASE_URL": f"postgresql://x@127.0.0.1:{free_port}/x"}
        with run_service("producer", away) as producer:
            assert post(producer, "/log").status_code == 202
            health = requests.get(f"{producer.url}/health", timeout=5)
            assert (health.status_code, health.json()["status"]) == (200, "degraded")
            status = requests.get(f"{producer.url}/queue/status", timeout=5).json()
            assert (status["size"], status["dead_letters"]) == (1, None)
            shown = requests.get(f"{producer.url}/metrics", timeout=5).text
            assert "\nqueue_size 1.0\n" in shown
            assert "\ndead_letters NaN\n" in shown

    @pytest.mark.parametrize(
        ("variable", "value", "said"),
        [
            ("RATE_LIMIT", "many", "1000/minute"),
            ("PRODUCER_PORT", "99999", "65535"),
            ("API_KEY", "short", "at least 8"),
            ("REDIS_URL", "http://x", "redis://"),
            ("REDIS_URL", "redis://localhost:99999/0", "ort"),
            ("REDIS_URL", "redis://localhost:abc/0", "ort"),
            ("REDIS_URL", "redis://localhost:6379/abc", "number"),
            ("DATABASE_URL", "postgresql://u@localhost:99999/x", "ort"),
            ("USE_REDIS_QUEUE", "perhaps", "boolean"),
            ("SPOOL_MAX_BYTES", "1000", "1048576"),
            ("SPOOL_PATH", "/", "folder"),
            ("SPOOL_PATH", ":memory:", "USE_REDIS_QUEUE=false"),
            ("RATE_LIMIT_LOG", "9/fortnight", "minute"),
        ],
    )
    def test_a_wrong_variable_is_named_in_one_line(
        self, environment: dict[str, str], variable: str, value: str, said: str
    ) -> None:
        code, written = run_to_end("producer", {**environment, variable: value})
        assert code == 2
        assert len(written.splitlines()) == 1
        assert written.startswith(f"{variable}=")
        assert said in written
        if variable == "API_KEY":
            assert value not in written

    async def test_a_newer_schema_is_refused_in_one_line(
        self, environment: dict[str, str], database_url: str
    ) -> None:
        connection = await asyncpg.connect(database_url)
        await connection.execute("UPDATE alembic_version SET version_num = '9999'")
        await connection.close()
        code, written = run_to_end("producer", environment)
        assert code == 2
        assert "9999 is newer than this release" in written.splitlines()[-1]

    def test_a_port_that_is_taken_is_named_in_one_line(self, environment: dict[str, str]) -> None:
        with socket.create_server(("127.0.0.1", int(environment["PRODUCER_PORT"]))):
            code, written = run_to_end("producer", environment)
        assert code == 2
        assert len(written.splitlines()) == 1
        assert f"PRODUCER_PORT={environment['PRODUCER_PORT']}" in written

    def test_a_request_under_way_is_answered_at_the_stop(
        self, environment: dict[str, str], queue: Redis
    ) -> None:
        with run_service("producer", environment) as producer:
            body = json.dumps(EVENT).encode()
            request = raw_request(body)
            port = int(producer.url.rpartition(":")[2])
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                connection.sendall(request[:-5])
                time.sleep(0.3)
                producer.process.terminate()
                time.sleep(0.3)
                connection.sendall(request[-5:])
                assert connection.recv(65536).startswith(b"HTTP/1.1 202 ")
            assert producer.process.wait(15) == 0
        assert len(waiting(queue)) == 1


class TestFaces:
    def test_queue_status_tells_what_waits(self, producer: RunningService) -> None:
        post(producer, "/logs", [EVENT] * 5)
        status = requests.get(f"{producer.url}/queue/status", timeout=5).json()
        assert status.pop("oldest_age_seconds") >= 0
        assert status == {
            "backend": "redis", "size": 5, "in_flight": 0, "spooled": 0, "dead_letters": 0,
            "stored_per_second": 0.0, "drain_seconds": None,
        }  # fmt: skip

    def test_metrics_count_requests_events_and_the_queue(self, producer: RunningService) -> None:
        post(producer, "/logs", [EVENT, {"event_type": "other_type"}])
        post(producer, "/log", {})
        requests.get(f"{producer.url}/nothing", timeout=5)
        text = requests.get(f"{producer.url}/metrics", timeout=5).text
        series = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")

        def requested(endpoint: str, method: str, status: int) -> float:
            labels = f'endpoint="{endpoint}",method="{method}",service="producer"'
            return float(series[f'api_requests_total{{{labels},status_code="{status}"}}'])

        assert requested("/logs", "POST", 202) == 1
        assert requested("/log", "POST", 422) == 1
        assert requested("other", "GET", 404) == 1
        assert requested("/log", "POST", 500) == requested("/logs", "POST", 500) == 0
        assert float(series['log_events_total{event_type="review_started"}']) == 1
        assert float(series["queue_size"]) == 2
        assert 'request_duration_seconds_count{endpoint="/logs",service="producer"}' in series

    def test_metrics_can_be_closed_and_health_cannot(self, environment: dict[str, str]) -> None:
        with run_service("producer", {**environment, "ENABLE_METRICS": "false"}) as producer:
            assert requests.get(f"{producer.url}/metrics", timeout=5).status_code == 404
            assert requests.get(f"{producer.url}/health", timeout=5).status_code == 200

    def test_the_documents_name_every_route(self, producer: RunningService) -> None:
        assert "swagger" in requests.get(f"{producer.url}/docs", timeout=5).text.lower()
        paths = requests.get(f"{producer.url}/openapi.json", timeout=5).json()["paths"]
        assert set(paths["/log"]) == {"get", "post"}
        assert {"/log", "/logs", "/health", "/queue/status", "/metrics"} <= set(paths)
        with_key = {
            (method, path)
            for path, methods in paths.items()
            for method, route in methods.items()
            if route.get("security") == [{"write_key": []}]
        }
        assert with_key == {("get", "/log"), ("post", "/log"), ("post", "/logs")}

    def test_every_answer_carries_a_request_id(self, producer: RunningService) -> None:
        for path in ("/health", "/nothing", "/metrics"):
            answer = requests.get(producer.url + path, timeout=5)
            assert answer.headers["X-Request-ID"]
        first, second = (post(producer, "/log").headers["X-Request-ID"] for _ in range(2))
        assert first != second

    def test_several_workers_share_the_port(
        self, environment: dict[str, str], queue: Redis
    ) -> None:
        with run_service("producer", environment, "--workers", "2") as producer:
            workers = psutil.Process(producer.pid).children(recursive=True)
            assert len([one for one in workers if "spawn_main" in " ".join(one.cmdline())]) == 2
            threads = [
                threading.Thread(target=post, args=(producer, "/logs", [EVENT] * 10))
                for _ in range(10)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert queue.llen("log_queue") == 100
