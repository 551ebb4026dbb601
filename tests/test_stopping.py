"""SIGTERM and SIGHUP at any moment: what is under way is answered, what was said is true."""

import asyncio
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import count
from typing import Any
from uuid import UUID

import asyncpg
import psutil
import pytest
from events_made import an_event
from redis import Redis
from relay import before
from servers import RunningService, run_service

from bench.rows import EventMaker, http_request
from logging_service import wire

API_KEY = "test_key_123"
GRACE_SECONDS = 4
SENDERS = 4
# A hang would last for as long as a body may take, 30 s.
HANGS_AFTER = 20


@pytest.fixture
def patient(environment: dict[str, str]) -> dict[str, str]:
    """An environment in which Redis may take its time and nothing limits the load."""
    return environment | {
        "SHUTDOWN_GRACE_SECONDS": str(GRACE_SECONDS),
        "REDIS_TIMEOUT_MS": "10000",
        "RATE_LIMIT": "999999999/second",
    }


@pytest.fixture
def queue(redis_url: str) -> Iterator[Redis]:
    with closing(Redis.from_url(redis_url)) as client:
        yield client


def held(queue: Redis) -> set[UUID]:
    elements: Any = queue.lrange("log_queue", 0, -1)
    return {wire.decode(element).event_id for element in elements}


def connect(service: RunningService) -> socket.socket:
    port = int(service.url.rpartition(":")[2])
    return socket.create_connection(("127.0.0.1", port), timeout=HANGS_AFTER)


@contextmanager
def connections(service: RunningService, number: int) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        yield [stack.enter_context(connect(service)) for _ in range(number)]


def answer_on(connection: socket.socket) -> bytes:
    """Return an answer, or nothing when the connection ended before it."""
    answer = b""
    while True:
        head, found, body = answer.partition(b"\r\n\r\n")
        if found and len(body) >= int(head.lower().partition(b"content-length: ")[2].split()[0]):
            return answer
        try:
            part = connection.recv(65536)
        except ConnectionError:
            return b""
        if not part:
            return b""
        answer += part


class Load:
    """Senders of single events, in threads; `stays` keeps each one's connection open."""

    def __init__(self, service: RunningService, *, stays: bool) -> None:
        self.acknowledged: set[UUID] = set()
        self.unanswered: list[UUID] = []
        self.not_connected = 0
        self._service = service
        self._stays = stays
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(n,)) for n in range(SENDERS)]

    @contextmanager
    def running(self) -> Iterator["Load"]:
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join(2 * HANGS_AFTER)

    def acknowledges(self, more: int) -> None:
        """Return when that many more events are acknowledged."""
        wanted = len(self.acknowledged) + more
        until = time.monotonic() + HANGS_AFTER
        while len(self.acknowledged) < wanted:
            assert time.monotonic() < until, "nothing is acknowledged"
            time.sleep(0.01)

    def _send(self, number: int) -> None:
        maker = EventMaker(number)
        while not self._over.is_set():
            try:
                connection = connect(self._service)
            except ConnectionError:
                self.not_connected += 1
                time.sleep(0.01)
                continue
            with connection:
                while self._ask(connection, maker) and self._stays and not self._over.is_set():
                    pass

    def _ask(self, connection: socket.socket, maker: EventMaker) -> bool:
        event_id = maker.event_id(time.time_ns() // 1_000_000)
        request = http_request("/log", maker.event(event_id), API_KEY)
        try:
            connection.sendall(request)
            answer = answer_on(connection)
        except ConnectionError:
            answer = b""
        if answer.startswith(b"HTTP/1.1 202 "):
            self.acknowledged.add(event_id)
        else:
            self.unanswered.append(event_id)
        return bool(answer) and b"connection: close" not in answer.lower()


def end(service: RunningService, number: signal.Signals = signal.SIGTERM) -> int:
    service.process.send_signal(number)
    return service.process.wait(HANGS_AFTER)


def workers_of(service: RunningService) -> list[psutil.Process]:
    """Return the workers that run; one that only waits to be collected does not."""
    found = []
    for child in psutil.Process(service.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


def wait_until(holds: Callable[[], object]) -> None:
    until = time.monotonic() + HANGS_AFTER
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


WORKERS = pytest.mark.parametrize("workers", [1, 2])


@WORKERS
@pytest.mark.parametrize("stays", [True, False], ids=["kept connections", "new connections"])
def test_a_producer_stopped_under_load_holds_what_it_acknowledged(
    patient: dict[str, str], queue: Redis, workers: int, *, stays: bool
) -> None:
    with run_service("producer", patient, "--workers", str(workers)) as producer:
        with Load(producer, stays=stays).running() as load:
            load.acknowledges(100 + random.randrange(200))
            assert end(producer) == 0
        assert load.acknowledged <= held(queue)


def one_event() -> bytes:
    return http_request("/log", b'{"event_type": "under_way"}', API_KEY)


@WORKERS
def test_requests_half_read_at_the_stop_are_answered(
    patient: dict[str, str], queue: Redis, workers: int
) -> None:
    request = one_event()
    cuts = [0, 1, 40, request.index(b"\r\n\r\n") + 2, len(request) - 10, len(request) - 1]
    with (
        run_service("producer", patient, "--workers", str(workers)) as producer,
        connections(producer, len(cuts)) as opened,
    ):
        for cut, connection in zip(cuts, opened, strict=True):
            connection.sendall(request[:cut])
        time.sleep(0.3)
        producer.process.terminate()
        time.sleep(0.3)
        for cut, connection in zip(cuts, opened, strict=True):
            connection.sendall(request[cut:])
        answers = [answer_on(connection) for connection in opened]
        assert producer.process.wait(HANGS_AFTER) == 0
    assert [answer[:13] for answer in answers] == [b"HTTP/1.1 202 "] * len(cuts)
    assert all(b"connection: close" in answer for answer in answers)
    assert len(held(queue)) == len(cuts)


@WORKERS
def test_a_body_that_never_ends_is_refused_at_the_stop_and_holds_nothing_up(
    patient: dict[str, str], queue: Redis, workers: int
) -> None:
    with (
        run_service("producer", patient, "--workers", str(workers)) as producer,
        connections(producer, 2) as (half, silent),
    ):
        half.sendall(one_event()[:-3])
        time.sleep(0.3)
        assert end(producer) == 0
        assert answer_on(half).startswith(b"HTTP/1.1 408 ")
        assert answer_on(silent) == b""
    assert held(queue) == set()


@WORKERS
def test_a_queue_that_never_answers_does_not_hold_the_stop_up(
    patient: dict[str, str], workers: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"redis://127.0.0.1:{mute.getsockname()[1]}/0"
        hanging = patient | {"REDIS_URL": url, "REDIS_TIMEOUT_MS": "60000"}
        with (
            run_service("producer", hanging, "--workers", str(workers)) as producer,
            connect(producer) as waiting,
        ):
            waiting.sendall(one_event())
            time.sleep(0.3)
            assert end(producer) != 0
            assert answer_on(waiting) == b""


HEALTH = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
EVENTS = b"GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    ("name", "asked"),
    [("producer", one_event()), ("consumer", HEALTH), ("query_service", EVENTS)],
    ids=["producer", "consumer", "query_service"],
)
async def test_a_database_that_falls_silent_does_not_hold_the_stop_up(
    patient: dict[str, str], name: str, asked: bytes
) -> None:
    async with before(patient["DATABASE_URL"]) as (relay, url):

        def stopped_in_silence() -> int:
            with (
                run_service(name, patient | {"DATABASE_URL": url}) as service,
                connect(service) as connection,
            ):
                connection.sendall(asked)
                assert answer_on(connection)
                # Books and checks come once a second: some find the database there, some silent.
                time.sleep(1.5)
                relay.is_half_open = True
                connection.sendall(asked)
                time.sleep(2)
                return end(service)

        assert await asyncio.to_thread(stopped_in_silence) == 0


@pytest.mark.parametrize("name", ["producer", "query_service"])
def test_an_idle_connection_is_closed_at_the_stop(patient: dict[str, str], name: str) -> None:
    with run_service(name, patient) as service, connect(service) as idle:
        idle.sendall(HEALTH)
        assert answer_on(idle).startswith(b"HTTP/1.1 200 ")
        assert end(service) == 0
        assert idle.recv(1) == b""


def test_the_query_service_answers_what_is_under_way(patient: dict[str, str]) -> None:
    cuts = [0, 1, 10, len(EVENTS) - 1, len(EVENTS)]
    with run_service("query_service", patient) as service, connections(service, 5) as opened:
        for cut, connection in zip(cuts, opened, strict=True):
            connection.sendall(EVENTS[:cut])
        service.process.terminate()
        time.sleep(0.2)
        for cut, connection in zip(cuts, opened, strict=True):
            connection.sendall(EVENTS[cut:])
        answers = [answer_on(connection) for connection in opened]
        assert service.process.wait(HANGS_AFTER) == 0
    assert [answer[:13] for answer in answers] == [b"HTTP/1.1 200 "] * len(cuts)


async def test_a_consumer_stopped_at_random_moments_stores_everything_once(
    patient: dict[str, str], queue: Redis, database: asyncpg.Connection
) -> None:
    events = [an_event(session_id=f"s{place}") for place in range(20_000)]
    queue.rpush("log_queue", *events)
    hasty = patient | {"CONSUMER_BATCH_SIZE": "500"}

    def stop_soon() -> int:
        with run_service("consumer", hasty) as consumer:
            time.sleep(random.random() / 5)
            code = end(consumer)
        assert list(queue.scan_iter("{log_queue}:lease:*")) == []
        return code

    for times in count(1):
        assert await asyncio.to_thread(stop_soon) == 0
        if not queue.llen("log_queue"):
            break
        assert times < 40, "the queue is not emptied"
    ids = {wire.decode(event).event_id for event in events}
    assert {
        row["event_id"] for row in await database.fetch("SELECT event_id FROM log_events")
    } == ids
    assert await database.fetchval("SELECT sum(duplicates)::int FROM deliveries") == 0


def reload(producer: RunningService) -> None:
    """Ask for new workers, and return when they have replaced the old ones."""
    before = workers_of(producer)
    producer.process.send_signal(signal.SIGHUP)

    def replaced() -> bool:
        now = workers_of(producer)
        return len(now) == len(before) and not set(now) & set(before)

    wait_until(replaced)


class TestReload:
    def test_no_request_fails_while_the_workers_are_replaced(
        self, patient: dict[str, str], queue: Redis
    ) -> None:
        with run_service("producer", patient, "--workers", "2") as producer:
            with Load(producer, stays=False).running() as load:
                for _ in range(2):
                    load.acknowledges(100)
                    reload(producer)
                load.acknowledges(100)
            assert (load.unanswered, load.not_connected) == ([], 0)
            assert end(producer) == 0
        assert held(queue) == load.acknowledged

    def test_a_stop_does_not_wait_for_a_reload(self, patient: dict[str, str]) -> None:
        with (
            run_service("producer", patient, "--workers", "2") as producer,
            connect(producer) as half,
        ):
            half.sendall(one_event()[:-3])
            producer.process.send_signal(signal.SIGHUP)
            time.sleep(random.random() * 2)
            assert end(producer) == 0

    def test_one_worker_alone_stops_in_order(self, patient: dict[str, str], queue: Redis) -> None:
        with run_service("producer", patient) as producer:
            with Load(producer, stays=True).running() as load:
                load.acknowledges(100)
                assert end(producer, signal.SIGHUP) == 0
            assert load.acknowledged <= held(queue)


def pids(processes: Sequence[psutil.Process]) -> set[int]:
    return {process.pid for process in processes}


class TestWorkers:
    def test_one_that_is_killed_is_replaced(self, patient: dict[str, str]) -> None:
        with run_service("producer", patient, "--workers", "2") as producer:
            killed, other = workers_of(producer)
            killed.kill()
            wait_until(lambda: len(pids(workers_of(producer)) - {killed.pid, other.pid}) == 1)
            assert other.pid in pids(workers_of(producer))

    def test_they_end_when_their_parent_is_killed(
        self, patient: dict[str, str], queue: Redis
    ) -> None:
        with run_service("producer", patient, "--workers", "2") as producer:
            workers = workers_of(producer)
            with Load(producer, stays=True).running() as load:
                load.acknowledges(100)
                end(producer, signal.SIGKILL)
                psutil.wait_procs(workers, HANGS_AFTER)
            assert not any(worker.is_running() for worker in workers)
            assert load.acknowledged <= held(queue)
            with run_service("producer", patient) as next_one:
                assert next_one.process.poll() is None
