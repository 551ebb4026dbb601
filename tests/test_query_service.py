"""The query service as a process of its own, asked over HTTP."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest
import requests
from conftest import ADMIN_API_KEY, API_KEY, url_of
from relay import a_relay
from served import ask, served
from servers import ROOT, RunningService, run_service, unused_port
from stored_rows import NOON, Row, a_row, store_rows, uuid7_of

from logging_service.backends import open_reader
from logging_service.embedded import Postgres, Valkey
from logging_service.ports import EventReader
from logging_service.query_service import create_app
from logging_service.schema import migrate
from logging_service.settings import Settings

PAYLOAD = (
    '{"b": 1.0, "a": [1e2, -0, "é\\u00e9😀"], "gen_ai.provider.name": "openai",\t"n": {"a": 7}}'
)
# Sessions keep the tests that share the service apart.
PAGED = [
    a_row(number // 4, session_id="paged", event_type=f"kind{number % 3}") for number in range(50)
]
ROWS = [
    a_row(-3, session_id="one", event_type="llm_query_sent", payload=PAYLOAD.encode()),
    a_row(-2, session_id="one", event_type="error_occurred", source="other", trace_id="t1"),
    a_row(-1, session_id="one", event_type="review_started", request_id="r1"),
    a_row(-86_400, session_id="old", event_id=uuid4(), payload='{"note": "Ünïcode"}'.encode()),
    a_row(-90_000, session_id="of the key", source="default"),
    *PAGED,
]


class Served(NamedTuple):
    """The service that most tests share, and its database."""

    url: str
    database_url: str

    def get(self, path: str, **parameters: Any) -> requests.Response:
        return requests.get(f"{self.url}{path}", params=parameters, timeout=30)

    def events(self, **parameters: Any) -> list[dict[str, Any]]:
        answer = self.get("/events", **parameters)
        assert answer.status_code == 200, answer.text
        events: list[dict[str, Any]] = answer.json()["events"]
        return events


def variables(database_url: str) -> dict[str, str]:
    return {
        "DATABASE_URL": database_url,
        "API_KEY": API_KEY,
        "ADMIN_API_KEY": ADMIN_API_KEY,
        "QUERY_SERVICE_PORT": str(unused_port()),
    }


@pytest.fixture(scope="module")
async def service(postgres: Postgres, redis_server: Valkey) -> AsyncIterator[Served]:
    connection = await asyncpg.connect(postgres.admin_url, ssl=False)
    await connection.execute("CREATE DATABASE queried OWNER logging_service_user")
    await connection.close()
    database_url = url_of(postgres, "queried")
    await migrate(database_url)
    await store_rows(database_url, ROWS)
    environment = {**variables(database_url), "REDIS_URL": redis_server.url}
    with run_service("query_service", environment) as running:
        yield Served(running.url, database_url)


def ids(events: Sequence[Mapping[str, Any]]) -> list[str]:
    return [event["event_id"] for event in events]


def ids_of(rows: Sequence[Row], *, newest_first: bool = True) -> list[str]:
    ordered = sorted(rows, key=lambda row: (row.timestamp, row.event_id), reverse=newest_first)
    return [str(row.event_id) for row in ordered]


def test_a_page_has_the_shape_that_is_promised(service: Served) -> None:
    answer = service.get("/events", session_id="one", limit=1)
    assert answer.headers["Content-Type"] == "application/json"
    document = answer.json()
    assert list(document) == ["events", "pagination"]
    assert list(document["events"][0]) == [
        "event_id",
        "timestamp",
        "received_at",
        "event_type",
        "session_id",
        "source",
        "trace_id",
        "request_id",
        "payload",
    ]
    pagination = document["pagination"]
    assert isinstance(pagination.pop("next_cursor"), str)
    assert pagination == {"page": 1, "limit": 1, "total": 3, "total_pages": 3}


def test_an_event_comes_back_as_it_was_stored(service: Served) -> None:
    answer = service.get("/events", session_id="one", event_type="llm_query_sent")
    assert f'"payload":{PAYLOAD}' in answer.text
    (event,) = answer.json()["events"]
    assert event["timestamp"] == "2026-11-23T11:59:57Z"
    assert event["received_at"] == "2026-11-23T12:00:00Z"
    assert (event["trace_id"], event["request_id"], event["source"]) == (None, None, "tests")


@pytest.mark.parametrize(
    ("parameters", "found"),
    [
        ({}, [2, 1, 0]),
        ({"order": "asc"}, [0, 1, 2]),
        ({"event_type": "error_occurred"}, [1]),
        ({"event_type": ["error_occurred", "review_started", "never"]}, [2, 1]),
        ({"event_type": ["error_occurred", "error_occurred"]}, [1]),
        ({"source": "other"}, [1]),
        ({"trace_id": "t1"}, [1]),
        ({"request_id": "r1"}, [2]),
        ({"start_time": "2026-11-23T11:59:58Z"}, [2, 1]),
        ({"end_time": "2026-11-23T11:59:58Z"}, [0]),
        ({"start_time": "2026-11-23T11:59:57Z", "end_time": "2026-11-23T11:59:57Z"}, []),
        ({"start_time": "2026-11-23T12:59:58+01:00"}, [2, 1]),
        ({"start_time": "2026-11-23T12:59:58 01:00"}, [2, 1]),
        ({"start_time": "2026-11-23 12:59:58 01:00"}, [2, 1]),
        ({"start_time": "2026-11-23t11:59:57.000001z"}, [2, 1]),
        ({"payload.b": "1.0"}, [0]),
        ({"payload.b": "1"}, []),
        ({"payload.n.a": "7"}, [0]),
        ({"payload.a.0": "1e2"}, [0]),
        ({"payload.gen_ai.provider.name": "openai"}, [0]),
        ({"payload.gen_ai.provider.name!": "openai"}, [2, 1]),
        ({"payload.b": "1.0", "payload.n.a!": "7"}, []),
        ({"q": "OPENAI"}, [0]),
        ({"q": "É"}, [0]),
        ({"q": "😀"}, [0]),
        ({"q": "nowhere"}, []),
        ({"event_type": "error_occurred", "source": "tests"}, []),
    ],
)
def test_every_filter_narrows_the_answer(
    service: Served, parameters: dict[str, Any], found: list[int]
) -> None:
    events = service.events(session_id="one", **parameters)
    assert ids(events) == [str(ROWS[number].event_id) for number in found]


def test_a_negated_field_may_be_written_as_it_is_read(service: Served) -> None:
    url = f"{service.url}/events?session_id=one&payload.gen_ai.provider.name!=openai"
    events = requests.get(url, timeout=30).json()["events"]
    assert ids(events) == ids_of(ROWS[1:3])


@pytest.mark.parametrize("order", ["desc", "asc"])
@pytest.mark.parametrize("more", [{}, {"event_type": ["kind0", "kind2"]}, {"q": "{}"}])
def test_numbered_pages_and_cursors_meet_every_event_once(
    service: Served, order: str, more: dict[str, Any]
) -> None:
    wanted = {"session_id": "paged", "order": order, "limit": 7, **more}
    kinds = more.get("event_type", ["kind0", "kind1", "kind2"])
    rows = [row for row in PAGED if row.event_type in kinds]
    expected = ids_of(rows, newest_first=order == "desc")
    pages = -(-len(rows) // 7)
    numbered: list[str] = []
    for page in range(1, pages + 1):
        document = service.get("/events", page=page, **wanted).json()
        numbered += ids(document["events"])
        assert document["pagination"]["total"] == len(rows)
        assert document["pagination"]["total_pages"] == pages
        assert (document["pagination"]["next_cursor"] is None) == (page == pages)
    assert numbered == expected
    assert list(followed(service, wanted)) == expected


def followed(service: Served, wanted: dict[str, Any]) -> Iterator[str]:
    document = service.get("/events", **wanted).json()
    yield from ids(document["events"])
    while (cursor := document["pagination"]["next_cursor"]) is not None:
        document = service.get("/events", cursor=cursor, **wanted).json()
        yield from ids(document["events"])
        pagination = document["pagination"]
        assert [pagination[name] for name in ("page", "total", "total_pages")] == [None] * 3
        assert pagination["limit"] == wanted["limit"]


def test_a_page_behind_the_last_is_empty(service: Served) -> None:
    document = service.get("/events", session_id="paged", page=9).json()
    assert (document["events"], document["pagination"]) == (
        [],
        {"page": 9, "limit": 50, "total": 50, "total_pages": 1, "next_cursor": None},
    )
    nothing = service.get("/events", session_id="nobody").json()
    assert (nothing["pagination"]["total"], nothing["pagination"]["total_pages"]) == (0, 0)


@pytest.mark.parametrize("order", ["desc", "asc"])
async def test_cursors_meet_every_event_once_while_new_ones_arrive(
    service: Served, order: str
) -> None:
    session = f"arriving-{order}"
    rows = [a_row(number // 3, session_id=session) for number in range(20)]
    await store_rows(service.database_url, rows)
    wanted = {"session_id": session, "order": order, "limit": 3}
    met: list[str] = []
    for number, event_id in enumerate(followed(service, wanted)):
        met.append(event_id)
        if number < 15:
            await store_rows(service.database_url, [a_row(100 + number, session_id=session)])
    expected = ids_of(rows, newest_first=order == "desc")
    assert met[: len(expected)] == expected
    assert len(met) == len(set(met)) == (20 if order == "desc" else 35)


def test_a_large_total_is_marked_as_estimated(service: Served) -> None:
    asyncio.run(_store_many(service.database_url))
    pagination = service.get("/events", session_id="many", limit=1000, page=10).json()["pagination"]
    assert pagination["total_is_estimate"] is True
    assert pagination["total"] >= 10_001
    assert pagination["total_pages"] >= 11
    exact = service.get("/events", session_id="many", limit=1000, page=11).json()["pagination"]
    assert (exact["total"], "total_is_estimate" in exact) == (10_050, False)


async def _store_many(database_url: str) -> None:
    rows = [a_row(number / 1000, session_id="many") for number in range(10_050)]
    await store_rows(database_url, rows)


A_CURSOR = "AAMD-Sj5dEkBograKUx5PLWmE_sAuv_3K9cyzd7MCocYYlAA"


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"limit": 0}, ["limit"]),
        ({"limit": 1001}, ["limit"]),
        ({"limit": "many"}, ["limit"]),
        ({"limit": ""}, ["limit"]),
        ({"limit": [5, 6]}, ["limit"]),
        ({"page": 0}, ["page"]),
        ({"page": -1}, ["page"]),
        ({"page": "x"}, ["page"]),
        ({"page": 101, "limit": 1000}, ["page"]),
        ({"page": 10**30}, ["page"]),
        ({"page": 1, "cursor": A_CURSOR}, ["page"]),
        ({"cursor": ""}, ["cursor"]),
        ({"cursor": "x"}, ["cursor"]),
        ({"cursor": "é" * 48}, ["cursor"]),
        ({"cursor": A_CURSOR}, ["cursor"]),
        ({"order": "random"}, ["order"]),
        ({"order": ["asc", "desc"]}, ["order"]),
        ({"event_type": ""}, ["event_type"]),
        ({"event_type": "a b"}, ["event_type"]),
        ({"event_type": "a\n"}, ["event_type"]),
        ({"event_type": "x" * 101}, ["event_type"]),
        ({"event_type": [f"t{number}" for number in range(51)]}, ["event_type"]),
        ({"session_id": "x" * 201}, ["session_id"]),
        ({"session_id": "a\0b"}, ["session_id"]),
        ({"source": "a\0b"}, ["source"]),
        ({"trace_id": "x" * 65}, ["trace_id"]),
        ({"request_id": "x" * 65}, ["request_id"]),
        ({"q": ""}, ["q"]),
        ({"q": "a\0b"}, ["q"]),
        ({"q": "x" * 201}, ["q"]),
        ({"start_time": "yesterday"}, ["start_time"]),
        ({"start_time": "2026-11-23"}, ["start_time"]),
        ({"start_time": "2026-11-23T10:00:00"}, ["start_time"]),
        ({"start_time": "2026-11-23 10:00"}, ["start_time"]),
        ({"start_time": "1763892000"}, ["start_time"]),
        ({"start_time": "0001-01-01T00:00:00+14:00"}, ["start_time"]),
        ({"end_time": "2026-02-30T00:00:00Z"}, ["end_time"]),
        (
            {"start_time": "2026-11-23T10:00:00Z", "end_time": "2026-11-23T09:00:00Z"},
            ["end_time"],
        ),
        ({"payload.": "x"}, ["payload."]),
        ({"payload.!": "x"}, ["payload.!"]),
        ({"payload.a": "x\0"}, ["payload.a"]),
        ({"payload.a\0": "x"}, ["payload.a\0"]),
        ({f"payload.{'x' * 201}": "x"}, [f"payload.{'x' * 201}"]),
        ({f"payload.f{number:02}": "x" for number in range(21)}, ["payload.f20"]),
        ({"payload": "x"}, ["payload"]),
        ({"eventtype": "x"}, ["eventtype"]),
        ({"offset": 1, "sort": "up"}, ["offset", "sort"]),
        ({"limit": 0, "order": "x", "start_time": "x"}, ["start_time", "order", "limit"]),
    ],
)
def test_every_parameter_that_cannot_be_used_is_named(
    service: Served, parameters: dict[str, Any], named: list[str]
) -> None:
    answer = service.get("/events", **parameters)
    assert answer.status_code == 422, answer.text
    document = answer.json()
    assert document["type"] == "/problems/validation"
    assert [fault["loc"] for fault in document["errors"]] == named
    assert all(
        fault["msg"] and name in document["detail"]
        for fault, name in zip(document["errors"], named, strict=True)
    )


def test_a_time_without_offset_is_told_so(service: Served) -> None:
    answer = service.get("/events", start_time="2026-11-23T10:00:00")
    assert "offset" in answer.json()["errors"][0]["msg"]


def test_too_deep_a_page_is_told_of_the_cursor(service: Served) -> None:
    answer = service.get("/events", page=2001, limit=50)
    assert "next_cursor" in answer.json()["errors"][0]["msg"]
    assert service.get("/events", page=2000, limit=50).status_code == 200


def test_a_cursor_serves_the_question_it_came_from_alone(service: Served) -> None:
    wanted = {"session_id": "paged", "limit": 5}
    cursor = service.get("/events", **wanted).json()["pagination"]["next_cursor"]
    assert service.get("/events", cursor=cursor, **wanted).status_code == 200
    assert service.get("/events", cursor=cursor, session_id="paged", limit=9).status_code == 200
    others: list[dict[str, Any]] = [
        {},
        {"session_id": "one"},
        {**wanted, "order": "asc"},
        {**wanted, "q": "x"},
        {**wanted, "payload.a": "1"},
        {**wanted, "end_time": "2026-11-24T00:00:00Z"},
    ]
    for other in others:
        assert service.get("/events", cursor=cursor, **other).status_code == 422
    for place in range(len(cursor)):
        changed = "B" if cursor[place] == "A" else "A"
        tampered = cursor[:place] + changed + cursor[place + 1 :]
        assert service.get("/events", cursor=tampered, **wanted).status_code == 422
    assert service.get("/events", cursor=cursor[:-1], **wanted).status_code == 422


def test_one_event_is_found_by_its_id_and_by_its_time(service: Served) -> None:
    for row in ROWS[:4]:
        event = service.get(f"/events/{row.event_id}").json()
        assert event["event_id"] == str(row.event_id)
        assert json.dumps(event["payload"]) == json.dumps(json.loads(row.payload))
        timed = service.get(f"/events/{row.event_id}", timestamp=event["timestamp"])
        assert timed.json() == event
        wrong = service.get(f"/events/{row.event_id}", timestamp="2026-11-23T00:00:00 00:00")
        assert wrong.status_code == 404


@pytest.mark.parametrize(
    ("path", "status", "named"),
    [
        (f"/events/{uuid4()}", 404, None),
        (f"/events/{uuid7_of(NOON)}", 404, None),
        ("/events/ffffffff-ffff-7fff-bfff-ffffffffffff", 404, None),
        ("/events/123", 422, "event_id"),
        (f"/events/{uuid4()}x", 422, "event_id"),
        (f"/events/{uuid4()}?timestamp=now", 422, "timestamp"),
        (f"/events/{uuid4()}?timestamp=9999-12-31T23:59:59.999999Z", 404, None),
        (f"/events/{uuid4()}?time=now", 422, "time"),
        ("/events/types?limit=5", 422, "limit"),
    ],
    ids=map(str, range(9)),
)
def test_an_event_that_is_not_there_or_not_named_well(
    service: Served, path: str, status: int, named: str | None
) -> None:
    answer = service.get(path)
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert [fault["loc"] for fault in answer.json().get("errors", [])] == ([named] if named else [])


def test_event_types_are_listed_most_frequent_first(service: Served) -> None:
    types = service.get("/events/types").json()["types"]
    assert all(list(one) == ["event_type", "count", "first", "last"] for one in types)
    assert [one["count"] for one in types] == sorted((one["count"] for one in types), reverse=True)
    kinds = {one["event_type"]: one for one in types}
    assert kinds["kind0"] == {
        "event_type": "kind0",
        "count": 17,
        "first": "2026-11-23T12:00:00Z",
        "last": "2026-11-23T12:00:12Z",
    }


def test_the_interface_is_documented(service: Served) -> None:
    document = service.get("/openapi.json").json()
    assert {"/events", "/events/{event_id}", "/events/types", "/health", "/metrics"} <= set(
        document["paths"]
    )
    asked = document["paths"]["/events"]["get"]
    assert {parameter["name"] for parameter in asked["parameters"]} >= {
        "event_type",
        "session_id",
        "source",
        "trace_id",
        "request_id",
        "start_time",
        "end_time",
        "q",
        "order",
        "limit",
        "page",
        "cursor",
    }
    assert "payload.<field>" in asked["description"]
    assert "example" in asked["responses"]["200"]["content"]["application/json"]
    assert service.get("/docs").status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"X-API-Key": API_KEY}, 200),
        ({"Authorization": f"Bearer {ADMIN_API_KEY}"}, 200),
        ({"X-API-Key": "wrong"}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil.example", "X-API-Key": API_KEY}, 421),
        ({"X-Forwarded-For": "203.0.113.7"}, 401),
        ({"Via": "1.1 proxy"}, 401),
        ({"Via": "1.1 proxy", "X-API-Key": API_KEY}, 200),
    ],
)
def test_on_loopback_only_this_host_reads_without_a_key(
    service: Served, headers: dict[str, str], status: int
) -> None:
    for path in ("/events", "/events/types", f"/events/{ROWS[4].event_id}"):
        answer = requests.get(f"{service.url}{path}", headers=headers, timeout=30)
        assert answer.status_code == status
        assert (answer.headers.get("WWW-Authenticate") == "Bearer") == (status == 401)


def test_health_needs_no_key_and_tells_about_the_one_it_gets(service: Served) -> None:
    answer = requests.get(f"{service.url}/health", headers={"Via": "1.1 proxy"}, timeout=30)
    document = answer.json()
    assert (answer.status_code, document["status"]) == (200, "ok")
    assert document["dependencies"] == {"database": {"status": "ok"}, "queue": {"status": "ok"}}
    [warning] = document["warnings"]
    assert "the services' database role may change or remove stored events" in warning
    assert "api_key" not in document
    for key, name in ((API_KEY, "default"), (ADMIN_API_KEY, "admin")):
        told = requests.get(f"{service.url}/health", headers={"X-API-Key": key}, timeout=30).json()
        assert (told["api_key"]["valid"], told["api_key"]["name"]) == (True, name)
        assert "read" in told["api_key"]["scopes"]
    wrong = requests.get(f"{service.url}/health", headers={"X-API-Key": "wrong"}, timeout=30)
    assert wrong.status_code == 401


def test_requests_are_counted_by_route(service: Served) -> None:
    service.get(f"/events/{uuid4()}")
    text = service.get("/metrics").text
    labels = 'endpoint="/events/{event_id}",method="GET",service="query_service",status_code='
    assert f'api_requests_total{{{labels}"404"}}' in text
    assert f'api_requests_total{{{labels}"500"}} 0.0' in text


@pytest.mark.parametrize(
    "variable", [{"QUERY_REQUIRE_API_KEY": "true"}, {"QUERY_SERVICE_HOST": "0.0.0.0"}]
)
def test_where_a_key_is_required_nobody_reads_without(
    database_url: str, variable: dict[str, str]
) -> None:
    with run_service("query_service", {**variables(database_url), **variable}) as running:
        assert requests.get(f"{running.url}/events", timeout=30).status_code == 401
        headers = {"X-API-Key": API_KEY}
        assert requests.get(f"{running.url}/events", headers=headers, timeout=30).ok
        assert requests.get(f"{running.url}/health", timeout=30).ok
        assert "reading_without_key" not in running.log


def opened_in_a_hurry(settings: Settings) -> AbstractAsyncContextManager[EventReader]:
    return open_reader(settings, read_seconds=0)


async def test_a_partial_answer_leads_on_to_every_event(
    settings: Settings, database_url: str
) -> None:
    rows = [a_row(number, payload=b'{"n": %d}' % (number % 300)) for number in range(1000)]
    await store_rows(database_url, rows)
    wanted = {"payload.n": "299", "limit": "2"}
    async with served(create_app(settings, opened_in_a_hurry)) as url:
        document = (await ask(f"{url}/events", params=wanted)).json()
        assert document["partial"] is True
        met, partial = ids(document["events"]), 1
        while (cursor := document["pagination"]["next_cursor"]) is not None:
            answer = await ask(f"{url}/events", params={**wanted, "cursor": cursor})
            document = answer.json()
            met += ids(document["events"])
            partial += document.get("partial", False)
        assert "partial" not in document
        slow = await ask(f"{url}/events/{uuid4()}")
    assert met == ids_of([row for row in rows if row.payload == b'{"n": 299}'])
    assert partial > 1
    assert (slow.status_code, slow.json()["errors"][0]["loc"]) == (422, "timestamp")


def relayed(database_url: str, port: int) -> str:
    parts = urlsplit(database_url)
    login = parts.netloc.rpartition("@")[0]
    return parts._replace(netloc=f"{login}@127.0.0.1:{port}").geturl()


async def until(condition: Any, seconds: float = 15) -> None:
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.1)


def expect_absence(service: RunningService) -> None:
    health = requests.get(f"{service.url}/health", timeout=9)
    assert (health.status_code, health.json()["status"]) == (503, "unavailable")
    assert health.json()["dependencies"]["database"]["detail"]
    answer = requests.get(f"{service.url}/events", timeout=9)
    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/unavailable")
    assert int(answer.headers["Retry-After"]) > 0


async def test_the_service_waits_for_its_database_and_survives_its_absence(
    database_url: str,
) -> None:
    await store_rows(database_url, [a_row()])
    async with a_relay(urlsplit(database_url).port or 0) as relay:
        await relay.cut()
        environment = variables(relayed(database_url, relay.port))
        with run_service("query_service", environment) as service:
            await asyncio.to_thread(expect_absence, service)
            await relay.mend()
            await until(lambda: requests.get(f"{service.url}/health", timeout=9).ok)
            answer = await ask(f"{service.url}/events")
            assert len(answer.json()["events"]) == 1
            await relay.cut()
            await asyncio.to_thread(expect_absence, service)
            await relay.mend()
            await until(lambda: requests.get(f"{service.url}/events", timeout=9).ok)
            log = service.log
    told = [line for line in log.splitlines() if "database_unavailable" in line]
    assert len(told) in {1, 2}
    assert log.count("reading_without_key") == 1
    assert "Traceback" not in log


async def test_without_a_schema_the_service_says_what_to_run(empty_database_url: str) -> None:
    with run_service("query_service", variables(empty_database_url)) as service:
        health = requests.get(f"{service.url}/health", timeout=9)
        assert health.status_code == 503
        assert "logging-service migrate" in health.json()["dependencies"]["database"]["detail"]
        answer = requests.get(f"{service.url}/events", timeout=9)
        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/schema")
        assert "logging-service migrate" in answer.json()["detail"]
        await migrate(empty_database_url)
        assert requests.get(f"{service.url}/events", timeout=9).ok
        assert requests.get(f"{service.url}/health", timeout=9).ok


def started(environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "query_service.py"],
        cwd=ROOT / "logging_service",
        env=dict(environment),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


async def test_a_schema_newer_than_the_service_ends_the_start(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute("UPDATE alembic_version SET version_num = '9999'")
    await connection.close()
    ended = started(variables(database_url))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "9999 is newer than this release" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("variable", "value"), [("QUERY_SERVICE_PORT", "many"), ("QUERY_REQUIRE_API_KEY", "perhaps")]
)
def test_a_variable_that_cannot_be_used_ends_the_start(variable: str, value: str) -> None:
    ended = started({variable: value})
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"{variable}='{value}' cannot be used")
    assert ended.stderr.count("\n") == 1


def test_a_port_that_is_taken_ends_the_start(service: Served) -> None:
    port = str(urlsplit(service.url).port)
    ended = started({**variables(service.database_url), "QUERY_SERVICE_PORT": port})
    assert ended.returncode == 2
    assert f"QUERY_SERVICE_PORT={port}" in ended.stderr
