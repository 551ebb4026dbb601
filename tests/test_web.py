"""What every HTTP face shares, behind a real server."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import pytest
from fastapi import FastAPI, Request
from pydantic import BaseModel
from served import ask, served
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse
from structlog.testing import capture_logs

from logging_service.errors import (
    BackendUnavailable,
    BodyTooLarge,
    Forbidden,
    QueryRejected,
    SchemaMismatch,
    SchemaTooNew,
    Unauthenticated,
)
from logging_service.health import Check, Health, KeyReport, health
from logging_service.server import serve
from logging_service.settings import Settings
from logging_service.web import (
    PROBLEMS,
    STATUS,
    RequestContext,
    create_face,
    describe_types,
    endpoints_of,
    json_answer,
    schema_of,
)

RAISED = {
    "query": QueryRejected("limit", "has to be smaller"),
    "size": BodyTooLarge("10 MiB are the most"),
    "key": Unauthenticated(),
    "scope": Forbidden("lacks erase"),
    "away": BackendUnavailable("postgres://secret@host refused"),
    "schema": SchemaMismatch("column secret is missing"),
    "newer": SchemaTooNew(),
    "teapot": HTTPException(404, "no such thing"),
    "bug": ZeroDivisionError("secret"),
}


class Sent(BaseModel):
    """A body with a nested field."""

    payload: dict[str, int]


@asynccontextmanager
async def _no_lifespan(_face: FastAPI) -> AsyncIterator[dict[str, Any]]:
    yield {}


def a_face(*, enable_metrics: bool = True) -> RequestContext:
    settings = Settings.model_validate({"enable_metrics": enable_metrics})
    app = create_face("faces", settings, description="A face.", lifespan=_no_lifespan)

    @app.get("/raise/{name}")
    async def raise_it(name: str) -> Response:
        raise RAISED[name]

    @app.post("/sent")
    async def take(sent: Sent, limit: int = 5) -> Response:
        return json_answer({"limit": limit, **sent.payload})

    @app.get("/health", responses={200: schema_of(Health)})
    async def show_health(_request: Request) -> Response:
        return await health("faces", [], None)

    @app.get("/broken-off")
    async def break_off() -> Response:
        return StreamingResponse(_broken_off())

    describe_types(app, [Health])
    return RequestContext(app, "faces", endpoints_of(app))


async def _broken_off() -> AsyncIterator[bytes]:
    yield b"a part"
    raise ZeroDivisionError


@pytest.fixture(autouse=True)
def lines() -> Iterator[list[MutableMapping[str, Any]]]:
    """What is logged meanwhile."""
    with capture_logs() as captured:
        yield captured


@pytest.fixture(scope="module")
async def url() -> AsyncIterator[str]:
    async with served(a_face()) as base:
        yield base


@pytest.mark.parametrize(
    ("name", "status", "slug"),
    [
        ("query", 422, "validation"),
        ("size", 413, "body-too-large"),
        ("key", 401, "unauthenticated"),
        ("scope", 403, "forbidden"),
        ("away", 503, "unavailable"),
        ("schema", 503, "schema"),
        ("newer", 503, "schema"),
        ("teapot", 404, "not-found"),
        ("bug", 500, "internal"),
    ],
)
async def test_every_error_is_answered_with_its_problem_document(
    url: str, name: str, status: int, slug: str
) -> None:
    answer = await ask(f"{url}/raise/{name}")
    document = answer.json()
    assert answer.status_code == document["status"] == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert (document["type"], document["title"]) == (f"/problems/{slug}", PROBLEMS[slug][0])
    assert ("Retry-After" in answer.headers) == (status == 503)
    assert answer.headers.get("WWW-Authenticate") == ("Bearer" if status == 401 else None)
    assert document.get("errors") == (
        [{"loc": "limit", "msg": "has to be smaller"}] if name == "query" else None
    )
    assert status < 500 or "secret" not in answer.text


def test_every_error_of_the_status_table_has_a_text_and_a_status() -> None:
    for status, slug in STATUS.values():
        assert HTTPStatus(status) >= 400
        assert all(PROBLEMS[slug])


async def test_what_is_wrong_in_a_request_is_named_by_its_plain_name(url: str) -> None:
    answer = await ask(f"{url}/sent?limit=x", "POST", json={"payload": {"user": "ada"}})
    assert answer.status_code == 422
    assert [fault["loc"] for fault in answer.json()["errors"]] == ["limit", "payload.user"]
    unreadable = await ask(f"{url}/sent", "POST", data="{")
    assert unreadable.status_code == 422
    assert unreadable.json()["type"] == "/problems/validation"


async def test_unknown_paths_and_methods_are_problems_too(url: str) -> None:
    unknown = await ask(f"{url}/nowhere")
    assert (unknown.status_code, unknown.json()["type"]) == (404, "/problems/not-found")
    assert (await ask(f"{url}/health/")).status_code == 404
    refused = await ask(f"{url}/health", "DELETE")
    assert (refused.status_code, refused.headers["Allow"]) == (405, "GET")
    assert refused.json()["type"] == "/problems/method-not-allowed"


async def test_every_type_of_problem_has_a_page(url: str) -> None:
    for slug, (title, _) in PROBLEMS.items():
        page = await ask(f"{url}/problems/{slug}")
        assert page.status_code == 200
        assert page.text.startswith(title)
        assert page.headers["Content-Type"].startswith("text/plain")
    assert (await ask(f"{url}/problems/other")).status_code == 404


async def test_our_own_mistake_is_logged_with_the_request_that_met_it(
    url: str, lines: list[MutableMapping[str, Any]]
) -> None:
    answer = await ask(f"{url}/raise/bug", headers={"X-Request-ID": "r-1"})
    (line,) = [line for line in lines if line["event"] == "unhandled_error"]
    assert (answer.status_code, answer.headers["X-Request-ID"]) == (500, "r-1")
    assert (line["request_id"], line["path"], line["exc_info"]) == ("r-1", "/raise/bug", True)


async def test_an_answer_that_breaks_off_ends_the_connection(
    url: str, lines: list[MutableMapping[str, Any]]
) -> None:
    with pytest.raises(OSError, match="prematurely"):
        await ask(f"{url}/broken-off")
    assert [line["event"] for line in lines] == ["unhandled_error"]


@pytest.mark.parametrize("sent", ["abc", "a b/c:d;e", "x" * 64])
async def test_a_request_id_comes_back(url: str, sent: str) -> None:
    answer = await ask(f"{url}/health", headers={"X-Request-ID": sent})
    assert answer.headers["X-Request-ID"] == sent


@pytest.mark.parametrize("sent", [None, "", "x" * 65, "tab\there", b"caf\xe9"])
async def test_a_request_id_that_cannot_be_used_is_replaced(
    url: str, sent: str | bytes | None
) -> None:
    headers = {"X-Request-ID": sent} if sent is not None else {}
    made = {
        (await ask(f"{url}{path}", headers=headers)).headers["X-Request-ID"]
        for path in ("/health", "/nowhere", "/raise/bug")
    }
    assert len(made) == 3
    assert all(len(one) == 32 and one.isalnum() for one in made)


async def test_requests_are_counted_by_the_template_of_their_route() -> None:
    async with served(a_face()) as url:
        before = await counts(url)
        assert before["/raise/{name}", "GET", "500"] >= 0
        assert before["/sent", "POST", "500"] == 0
        for path in ("/raise/query", "/raise/key", "/nowhere/1", "/nowhere/2"):
            await ask(f"{url}{path}")
        await ask(f"{url}/health", "PROPFIND")
        after = await counts(url)
    grown = {key: value - before.get(key, 0) for key, value in after.items()}
    assert grown["/raise/{name}", "GET", "422"] == 1
    assert grown["/raise/{name}", "GET", "401"] == 1
    assert grown["other", "GET", "404"] == 2
    assert grown["/health", "other", "405"] == 1
    assert not any("nowhere" in endpoint for endpoint, _, _ in after)


async def counts(url: str) -> dict[tuple[str, str, str], float]:
    found = {}
    for line in (await ask(f"{url}/metrics")).text.splitlines():
        if line.startswith("api_requests_total{") and 'service="faces"' in line:
            labels, _, value = line.partition("{")[2].partition("} ")
            named = dict(label.split("=", 1) for label in labels.split(","))
            key = [named[name].strip('"') for name in ("endpoint", "method", "status_code")]
            found[key[0], key[1], key[2]] = float(value)
    return found


async def test_metrics_can_be_closed_and_health_cannot() -> None:
    async with served(a_face(enable_metrics=False)) as url:
        closed = await ask(f"{url}/metrics")
        assert (closed.status_code, closed.json()["type"]) == (404, "/problems/not-found")
        assert (await ask(f"{url}/health")).status_code == 200


async def test_the_document_of_the_interface_describes_answers_and_problems(url: str) -> None:
    document = (await ask(f"{url}/openapi.json")).json()
    answers = document["paths"]["/health"]["get"]["responses"]
    content = answers["200"]["content"]["application/json"]
    assert content["schema"] == {"$ref": "#/components/schemas/Health"}
    assert "application/problem+json" in answers["default"]["content"]
    assert {"Health", "Dependency", "Problem"} <= set(document["components"]["schemas"])
    assert "422" not in document["paths"]["/sent"]["post"]["responses"]
    assert (await ask(f"{url}/docs")).status_code == 200


def saying(fault: str | None) -> Callable[[], Awaitable[str | None]]:
    async def run() -> str | None:
        if fault == "away":
            raise BackendUnavailable("nothing listens")
        if fault == "hangs":
            await asyncio.sleep(60)
        return fault

    return run


@pytest.mark.parametrize(
    ("faults", "status", "code"),
    [
        ({}, "ok", 200),
        ({"queue": None, "database": None}, "ok", 200),
        ({"queue": "evicts keys", "database": None}, "degraded", 200),
        ({"queue": "away", "database": None}, "unavailable", 503),
        ({"queue": "hangs", "database": "hangs"}, "unavailable", 503),
        ({"queue": None, "spare": "away"}, "degraded", 200),
    ],
)
async def test_health_is_as_good_as_the_worst_dependency_allows(
    faults: dict[str, str | None], status: str, code: int
) -> None:
    checks = [Check(name, saying(fault), name != "spare") for name, fault in faults.items()]
    async with asyncio.timeout(1.9):
        answer = await health("faces", checks, None)
    document = Answered.model_validate_json(bytes(answer.body))
    assert (document.status, answer.status_code) == (status, code)
    assert list(document.dependencies) == list(faults)
    for name, fault in faults.items():
        found = document.dependencies[name]
        expected = {"away": "nothing listens", "hangs": "no answer within 1 s"}
        assert found.get("detail") == (expected.get(fault, fault) if fault else None)


class Answered(BaseModel):
    """What a caller of /health reads."""

    status: str
    service: str
    version: str
    dependencies: dict[str, dict[str, str]]
    api_key: dict[str, Any] | None = None


async def test_health_tells_about_the_key() -> None:
    report = KeyReport(valid=True, name="default", scopes=["read"])
    document = Answered.model_validate_json(bytes((await health("faces", [], report)).body))
    assert document.api_key == {"valid": True, "name": "default", "scopes": ["read"]}
    assert (document.service, document.dependencies) == ("faces", {})


def test_a_port_that_is_taken_ends_the_start_with_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = Settings.model_validate({"producer_port": port})
        with pytest.raises(SystemExit) as ended:
            serve(a_face(), "producer", settings)
    line = capsys.readouterr().err
    assert ended.value.code == 2
    assert f"PRODUCER_PORT={port}" in line
    assert "in use" in line
    assert line.count("\n") == 1
