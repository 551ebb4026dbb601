"""The full flow: the client and HTTP in, through the queue, out of the query service and SQL.

`python tests/test_integration.py` runs it against servers that it starts itself.
"""

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import asyncpg
import pytest
import requests
from servers import ROOT, RunningService, run_service

KEY = {"X-API-Key": "test_key_123"}
SERVICES = ("producer", "consumer", "query_service")


@pytest.fixture
def pipeline(environment: dict[str, str]) -> Iterator[dict[str, RunningService]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(run_service(name, environment)) for name in SERVICES}


def query(pipeline: dict[str, RunningService], path: str, **parameters: str) -> requests.Response:
    return requests.get(pipeline["query_service"].url + path, params=parameters, timeout=10)


async def test_an_event_posted_is_read_back_from_http_and_sql(
    pipeline: dict[str, RunningService], database_url: str
) -> None:
    payload = '{"user_id": "user123", "score": 1.50, "list": [1, {"deep": "é"}]}'
    body = f'{{"session_id": 123, "event_type": "review_started", "payload": {payload}}}'
    taken = requests.post(
        f"{pipeline['producer'].url}/log?wait=stored",
        data=body.encode(),
        headers={**KEY, "Content-Type": "application/json", "X-Request-ID": "req-1"},
        timeout=10,
    ).json()
    assert taken["status"] == "stored"

    page = query(pipeline, "/events", session_id="123")
    (event,) = page.json()["events"]
    assert payload in page.text
    assert event["event_id"] == taken["event_id"]
    assert (event["event_type"], event["source"]) == ("review_started", "default")
    assert event["request_id"] == "req-1"
    assert event["payload"] == json.loads(payload)
    one = query(pipeline, f"/events/{taken['event_id']}")
    assert one.json() == event

    connection = await asyncpg.connect(database_url)
    try:
        row = await connection.fetchrow(
            "SELECT *, payload::text AS text FROM log_events WHERE event_id = $1",
            uuid.UUID(taken["event_id"]),
        )
    finally:
        await connection.close()
    assert (row["session_id"], row["text"]) == ("123", payload)


def test_events_are_found_by_the_trace_and_the_request_they_belong_to(
    pipeline: dict[str, RunningService],
) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01", "X-Request-ID": "req-2"}
    own = {"event_type": "own", "trace_id": "my-trace", "request_id": "my-request"}
    requests.post(
        f"{pipeline['producer'].url}/logs?wait=stored",
        json=[own, {"event_type": "of_headers"}, {"event_type": "mixed", "trace_id": "my-trace"}],
        headers=KEY | headers,
        timeout=10,
    )
    wanted = {
        ("trace_id", "my-trace"): ["mixed", "own"],
        ("trace_id", trace): ["of_headers"],
        ("request_id", "my-request"): ["own"],
        ("request_id", "req-2"): ["mixed", "of_headers"],
    }
    for (name, value), types in wanted.items():
        events = query(pipeline, "/events", **{name: value}).json()["events"]
        assert sorted(event["event_type"] for event in events) == types
        assert {event[name] for event in events} == {value}


def test_a_retry_under_the_same_id_is_stored_once(pipeline: dict[str, RunningService]) -> None:
    url = f"{pipeline['producer'].url}/log?wait=stored"
    event = {"event_type": "retried", "payload": {"n": 1}}
    first = requests.post(url, json=event, headers=KEY, timeout=10).json()["event_id"]
    for _ in range(3):
        again = {**event, "event_id": first}
        assert requests.post(url, json=again, headers=KEY, timeout=10).json()["status"] == "stored"
    assert query(pipeline, "/events", event_type="retried").json()["pagination"]["total"] == 1


def test_other_content_under_a_stored_id_is_set_aside(
    pipeline: dict[str, RunningService],
) -> None:
    url = f"{pipeline['producer'].url}/log?wait=stored"
    first = requests.post(url, json={"event_type": "a"}, headers=KEY, timeout=10).json()["event_id"]
    other = {"event_type": "a", "payload": {"other": True}, "event_id": first}
    answer = requests.post(url, json=other, headers=KEY, timeout=10).json()
    # It is not said to be stored: another event is, under its id and time.
    assert answer == {"status": "queued", "event_id": first}
    assert query(pipeline, f"/events/{first}").json()["payload"] == {}
    status = requests.get(f"{pipeline['producer'].url}/queue/status", timeout=10).json()
    assert status["dead_letters"] == 1


CLIENT = """
from logging_helper import (
    log_analysis_completed, log_analysis_started, log_error, log_event, log_llm_feedback,
    log_llm_query, log_review_completed, log_review_started, session,
)

with session("review-1"):
    log_review_started(user_id="u", code_length=10)
    log_analysis_started()
    log_analysis_completed(results={"findings": 0}, duration_ms=12)
    log_llm_query(model="gpt-4o", tokens_used=1523, cost=0.0123)
    log_llm_feedback(model="gpt-4o", feedback_length=80)
    log_error(error_type="ValueError", error_message="no")
    log_event("custom", payload={"x": 1})
    log_review_completed(analysis_count=1, success=True, duration_ms=20)
"""


def test_the_clients_calls_are_in_the_trail_in_order(
    pipeline: dict[str, RunningService], environment: dict[str, str], tmp_path: Path
) -> None:
    variables = {
        "API_KEY": environment["API_KEY"],
        "LOGGING_SERVICE_URL": f"{pipeline['producer'].url}/log",
        "PYTHONPATH": str(ROOT),
    }
    script = tmp_path / "app.py"
    script.write_text(CLIENT, encoding="utf-8")
    subprocess.run([sys.executable, script], env=variables, check=True, timeout=30)
    marker = {"event_type": "marker"}
    url = f"{pipeline['producer'].url}/log?wait=stored"
    requests.post(url, json=marker, headers=KEY, timeout=10)
    events = query(pipeline, "/events", session_id="review-1", order="asc").json()["events"]
    assert [event["event_type"] for event in events] == [
        "review_started",
        "syntax_analysis_started",
        "syntax_analysis_completed",
        "llm_query_sent",
        "llm_feedback_received",
        "error_occurred",
        "custom",
        "review_completed",
    ]
    assert events[3]["payload"]["cost"] == 0.0123
    types = query(pipeline, "/events/types").json()["types"]
    assert {kind["event_type"] for kind in types} == {
        "marker", *(event["event_type"] for event in events)
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v", "-p", "no:cacheprovider"]))
