"""`USE_REDIS_QUEUE=false`: a file that the processes of a host share, or one process's memory."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
import requests
from servers import RunningService, run_service, run_to_end

EVENT = {"session_id": 1, "event_type": "review_started", "payload": {"n": 1}}


@pytest.fixture
def local(environment: dict[str, str]) -> dict[str, str]:
    """The variables of services without any Redis."""
    return {**environment, "REDIS_URL": "", "USE_REDIS_QUEUE": "false"}


@pytest.fixture
def in_memory(local: dict[str, str]) -> dict[str, str]:
    return {**local, "SPOOL_PATH": ":memory:"}


def post(producer: RunningService, query: str = "", events: int = 1) -> requests.Response:
    path, body = ("/log", EVENT) if events == 1 else ("/logs", [EVENT] * events)
    headers = {"X-API-Key": "test_key_123"}
    return requests.post(f"{producer.url}{path}{query}", json=body, headers=headers, timeout=10)


def asked(service: RunningService, path: str) -> Any:
    return requests.get(f"{service.url}{path}", timeout=10).json()


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_events_go_from_the_producer_through_the_file_into_the_database(
    local: dict[str, str],
) -> None:
    with (
        run_service("producer", local, "--workers", "2") as producer,
        run_service("consumer", local) as consumer,
        run_service("query_service", local) as query,
    ):
        for _ in range(20):
            answer = post(producer)
            assert (answer.status_code, answer.json()["status"]) == (202, "spooled")
        assert post(producer, "?wait=stored").json()["status"] == "stored"
        until(lambda: asked(query, "/events")["pagination"]["total"] == 21)
        assert asked(producer, "/queue/status")["backend"] == "spool"
        balance = asked(query, "/balance")
        assert (balance["queue"], balance["accepted"], balance["stored"]) == ("spool", 21, 21)
        assert balance["balanced"]
        for service in (producer, consumer, query):
            health = asked(service, "/health")
            assert (health["status"], health.get("warnings")) == ("ok", None)


def test_what_a_killed_producer_acknowledged_is_stored(local: dict[str, str]) -> None:
    with run_service("producer", local) as producer:
        assert post(producer, events=50).json()["status"] == "spooled"
        os.kill(producer.pid, signal.SIGKILL)
        producer.process.wait()
    with run_service("consumer", local), run_service("query_service", local) as query:
        until(lambda: asked(query, "/events")["pagination"]["total"] == 50)


def test_a_killed_consumer_loses_nothing_and_counts_nothing_twice(local: dict[str, str]) -> None:
    with run_service("producer", local) as producer, run_service("query_service", local) as query:
        with run_service("consumer", local) as consumer:
            for _ in range(20):
                post(producer, events=50)
            os.kill(consumer.pid, signal.SIGKILL)
            consumer.process.wait()
        with run_service("consumer", local):
            # What was under the killed one's lease comes when that has run out.
            until(lambda: asked(query, "/balance")["stored"] == 1000, 60)
            until(lambda: asked(query, "/balance")["balanced"] is True)


def test_in_memory_the_producer_stores_its_events_itself_and_says_so(
    in_memory: dict[str, str],
) -> None:
    with (
        run_service("producer", in_memory) as producer,
        run_service("query_service", in_memory) as query,
    ):
        assert post(producer).json()["status"] == "in_memory"
        assert post(producer, "?wait=stored").json()["status"] == "stored"
        until(lambda: asked(query, "/events")["pagination"]["total"] == 2)
        assert asked(producer, "/queue/status")["backend"] == "memory"
        shown = requests.get(f"{producer.url}/metrics", timeout=10).text
        assert "events_stored_total 2.0" in shown
        balance = asked(query, "/balance")
        assert (balance["stored"], balance["queue"], balance["balanced"]) == (2, None, None)
        assert asked(query, "/health")["status"] == "degraded"
        assert "a killed process loses" in producer.log


def test_a_stop_stores_what_is_in_memory(in_memory: dict[str, str]) -> None:
    with run_service("producer", in_memory) as producer:
        for _ in range(5):
            assert post(producer, events=2000).json()["status"] == "in_memory"
    with run_service("query_service", in_memory) as query:
        assert asked(query, "/events")["pagination"]["total"] == 10_000


@pytest.mark.parametrize(
    ("service", "arguments"), [("consumer", ()), ("producer", ("--workers", "2"))]
)
def test_memory_is_refused_where_nobody_else_would_see_it(
    in_memory: dict[str, str], service: str, arguments: tuple[str, ...]
) -> None:
    code, written = run_to_end(service, in_memory, *arguments)
    assert code == 2
    assert len(written.splitlines()) == 1
    assert written.startswith("SPOOL_PATH=:memory:")
