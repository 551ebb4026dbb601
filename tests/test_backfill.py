"""What `POST /logs?backfill=true` promises: old events, taken from whom may and stored for good."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import requests
from events_made import REDACTOR
from servers import RunningService, run_service
from stored_rows import uuid7_of

from logging_service import wire
from logging_service.errors import EventRejected
from logging_service.event_ttls import EventTtls
from logging_service.events import Origin
from logging_service.intake import read_one
from logging_service.write_path import Encoders

ADMIN = {"X-API-Key": "admin_key_123"}
WRITER = {"X-API-Key": "test_key_123"}
YEAR = 365.25
# A plain request is answered by the protocol itself, one that expects 100 by the framework.
WAYS: list[dict[str, str]] = [{}, {"Expect": "100-continue"}]


@pytest.fixture
def producer(environment: dict[str, str]) -> Iterator[RunningService]:
    with run_service("producer", environment) as service:
        yield service


def days_ago(days: float) -> datetime:
    return datetime.now(UTC) - timedelta(days=days)


def dated(days: float) -> dict[str, Any]:
    """Return an event whose timestamp is so many days old."""
    return {"event_type": "old", "timestamp": days_ago(days).isoformat()}


def identified(days: float) -> dict[str, Any]:
    """Return an event whose time is that of its id."""
    return {"event_type": "old", "event_id": str(uuid7_of(days_ago(days)))}


def post(
    service: RunningService, path: str, body: Any, headers: dict[str, str]
) -> requests.Response:
    return requests.post(service.url + path, json=body, headers=headers, timeout=10)


@pytest.mark.parametrize("way", WAYS, ids=["protocol", "framework"])
def test_a_backfill_takes_what_is_younger_than_five_years_and_names_what_is_not(
    producer: RunningService, way: dict[str, str]
) -> None:
    events = [dated(8), dated(4.9 * YEAR), dated(5.1 * YEAR), identified(8), identified(6 * YEAR)]
    answer = post(producer, "/logs?backfill=true", events, ADMIN | way)
    assert answer.status_code == 207
    faults = [(one["index"], one["errors"][0]["loc"]) for one in answer.json()["rejected"]]
    assert faults == [(2, "timestamp"), (4, "event_id")]
    assert "1826 days" in answer.json()["rejected"][0]["errors"][0]["msg"]


@pytest.mark.parametrize("query", ["", "?backfill=false"])
def test_without_it_the_same_key_cannot_send_what_is_older_than_the_ttl(
    producer: RunningService, query: str
) -> None:
    answer = post(producer, f"/logs{query}", [dated(6), dated(8), identified(8)], ADMIN)
    assert [one["index"] for one in answer.json()["rejected"]] == [1, 2]
    assert "7 days" in answer.json()["rejected"][0]["errors"][0]["msg"]


@pytest.mark.parametrize("way", WAYS, ids=["protocol", "framework"])
def test_a_key_without_the_scope_may_not_backfill(
    producer: RunningService, way: dict[str, str]
) -> None:
    answer = post(producer, "/logs?backfill=true", [dated(1)], WRITER | way)
    assert answer.status_code == 403
    assert "'admin'" in answer.json()["detail"]
    status = requests.get(f"{producer.url}/queue/status", timeout=10).json()
    assert status["size"] == 0
    assert post(producer, "/logs?backfill=false", [dated(1)], WRITER | way).status_code == 202


@pytest.mark.parametrize("way", WAYS, ids=["protocol", "framework"])
@pytest.mark.parametrize(
    ("path", "loc"),
    [
        ("/logs?backfill=", "backfill"),
        ("/logs?backfill=1", "backfill"),
        ("/logs?backfill=True", "backfill"),
        ("/logs?backfill=true&backfill=true", "backfill"),
        ("/logs?backfill=true&wait=now", "wait"),
        ("/logs?backfil=true", "backfil"),
        ("/log?backfill=true", "backfill"),
    ],
)
def test_any_other_parameter_is_refused_and_named(
    producer: RunningService, way: dict[str, str], path: str, loc: str
) -> None:
    answer = post(producer, path, dated(1), ADMIN | way)
    assert answer.status_code == 422
    assert [fault["loc"] for fault in answer.json()["errors"]] == [loc]


async def test_backfilled_events_are_stored_under_their_own_time(
    environment: dict[str, str], producer: RunningService
) -> None:
    events = [{**dated(days), "session_id": days} for days in (30, 700, 1_800)]
    with (
        # An event may wait for a minute: what counts is when it came, not how old it is.
        run_service("consumer", environment | {"REDIS_QUEUE_TTL": "60"}),
        run_service("query_service", environment) as query_service,
    ):
        answer = post(producer, "/logs?backfill=true&wait=stored", events, ADMIN)
        assert (answer.status_code, answer.json()["status"]) == (202, "stored")
        for sent in events:
            found = requests.get(
                f"{query_service.url}/events", {"session_id": sent["session_id"]}, timeout=10
            )
            (event,) = found.json()["events"]
            assert datetime.fromisoformat(event["timestamp"]) == datetime.fromisoformat(
                sent["timestamp"]
            )
            assert datetime.fromisoformat(event["received_at"]) > days_ago(1)
        balance = requests.get(f"{query_service.url}/balance", timeout=10).json()
    assert (balance["stored"], balance["expired"], balance["balanced"]) == (3, 0, True)


@pytest.mark.parametrize(
    ("ttl_days", "usual", "backfill"), [(7, 7, 1826), (0, 1826, 1826), (3_000, 3_000, 3_000)]
)
def test_a_backfill_is_never_stricter_than_other_writes(
    ttl_days: int, usual: int, backfill: int
) -> None:
    encoders = Encoders.of(EventTtls(ttl_days), REDACTOR)
    now = wire.now_micros()
    for encoder, days in zip(encoders, (usual, backfill), strict=True):
        origin = Origin("tests", None, None, now)
        for age, is_taken in ((days - 0.1, True), (days + 0.1, False)):
            moment = wire.from_micros(now - int(age * 86_400_000_000)).isoformat()
            body = b'{"event_type": "old", "timestamp": "%b"}' % moment.encode()
            try:
                read_one(body, encoder, origin)
                taken = True
            except EventRejected:
                taken = False
            assert taken is is_taken, (ttl_days, age)


def test_types_with_a_time_of_their_own_may_be_so_old_and_no_older() -> None:
    own = EventTtls(7, {"LLM_QUERY_SENT": 30, "CHATTER": 1, "SIGNED_OFF": 0})
    usual, backfill = Encoders.of(own, REDACTOR)
    now = wire.now_micros()
    origin = Origin("tests", None, None, now)
    most = {"llm_query_sent": 30, "llm.query-sent": 30, "chatter": 1, "signed_off": 1826, "a": 7}
    for event_type, days in most.items():
        for age, takers in ((days - 0.1, [usual, backfill]), (days + 0.1, [backfill])):
            moment = wire.from_micros(now - int(age * 86_400_000_000)).isoformat()
            body = b'{"event_type": "%b", "timestamp": "%b"}' % (
                event_type.encode(),
                moment.encode(),
            )
            for encoder in (usual, backfill):
                try:
                    read_one(body, encoder, origin)
                    taken = True
                except EventRejected:
                    taken = False
                assert taken is (encoder in takers and age < 1826), (event_type, age)
