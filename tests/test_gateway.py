"""The gateway without a model, beside services that are away, and what is its own of the rest."""

import asyncio
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import msgspec
import pytest
import requests
from conftest import API_KEY, url_of
from pydantic import ValidationError
from served import served
from servers import ROOT, RunningService, run_service, run_to_end, unused_port
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Router
from starlette.types import Receive, Scope, Send
from test_sarif import STANDARD

from code_reviewer.findings import Review
from gateway import openapi
from gateway.answers import form_of, wants_stream
from gateway.bodies import prefers_async, session_of
from gateway.event_source import EventSource, ReviewTrace, ServiceClient, where
from gateway.scrubbing import Scrubber
from gateway.settings import GatewaySettings
from gateway.tariff import ListTariff, provider_of
from logging_service.embedded import Postgres, Valkey
from logging_service.errors import BackendUnavailable
from logging_service.pricing import Prices
from logging_service.redaction_file import rules_for
from logging_service.schema import migrate
from logging_service.usage import usage_of

KEY = {"X-API-Key": API_KEY}
EVAL = "def f(x): return eval(x)"


@pytest.fixture(scope="module")
async def variables(
    postgres: Postgres, redis_server: Valkey, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[dict[str, str]]:
    """The variables of a gateway; nobody listens where its events go."""
    admin = await asyncpg.connect(postgres.admin_url, ssl=False)
    await admin.execute("CREATE DATABASE gateway OWNER logging_service_user")
    await migrate(url_of(postgres, "gateway"))
    away = f"http://127.0.0.1:{unused_port()}"
    yield {
        "DATABASE_URL": url_of(postgres, "gateway"),
        "REDIS_URL": redis_server.url,
        "REDIS_QUEUE_NAME": "gateway",
        "API_KEY": API_KEY,
        "DATA_DIR": str(tmp_path_factory.mktemp("gateway")),
        "GATEWAY_PORT": str(unused_port()),
        "LOGGING_SERVICE_URL": f"{away}/log",
        "QUERY_SERVICE_URL": away,
    }
    await admin.execute("DROP DATABASE gateway WITH (FORCE)")
    await admin.close()


@pytest.fixture(scope="module")
def gateway(variables: dict[str, str]) -> Iterator[RunningService]:
    with run_service("gateway", variables) as running:
        yield running


@pytest.fixture(scope="module")
def url(gateway: RunningService) -> str:
    return f"{gateway.url}/reviews"


def post(url: str, body: object, **headers: str) -> requests.Response:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.post(url, json=body, headers={**KEY, **sent}, timeout=30)


def when_done(url: str) -> requests.Response:
    """Return a review as soon as it does not run any more."""
    until = time.monotonic() + 20
    while (answer := requests.get(url, timeout=30)).status_code == 202:
        assert answer.headers["Retry-After"] == "1"
        assert time.monotonic() < until
        time.sleep(0.02)
    return answer


def test_a_review_without_a_model_is_complete_and_useful(url: str) -> None:
    answer = post(url, {"code": EVAL})
    assert answer.status_code == 200
    review = msgspec.json.decode(answer.content, type=Review)
    assert (review.status, review.verdict, review.llm.status) == ("completed", "fail", "disabled")
    [finding] = review.findings
    assert (finding.rule, finding.category, finding.start.column) == ("S307", "security", 18)
    assert answer.headers["Location"] == f"/reviews/{review.review_id}"
    assert answer.headers["X-Session-ID"] == review.session_id
    shown = requests.get(f"{url}/{review.review_id}", timeout=30)
    assert msgspec.json.decode(shown.content, type=Review) == review


def test_code_that_is_no_python_is_a_review_with_a_finding(url: str) -> None:
    review = post(url, {"code": "def f(:\n", "filename": "../../etc/passwd"}).json()
    assert (review["status"], review["verdict"]) == ("completed", "fail")
    assert {finding["category"] for finding in review["findings"]} == {"syntax"}


@pytest.mark.parametrize("code", ["", "\ufeffx = 1\r\n", "x = '\x00'", "x = 1\n" * 20_000])
def test_no_text_is_too_odd_to_be_reviewed(url: str, code: str) -> None:
    answer = post(url, {"code": code})
    assert answer.status_code == 200
    assert answer.json()["status"] == "completed"


def test_a_session_is_the_callers_if_it_can_be(url: str) -> None:
    for sent in ("mine", "x" * 200):
        assert post(url, {"code": EVAL}, X_Session_ID=sent).json()["session_id"] == sent
    made = post(url, {"code": EVAL}, X_Session_ID="x" * 201).json()["session_id"]
    assert len(made) == 36
    for bad in ("", " ", "größe", "a\tb"):
        assert len(session_of({"x-session-id": bad})) == 36


@pytest.mark.parametrize(
    ("body", "status", "names"),
    [
        ({}, 422, ["code"]),
        ({"code": 1}, 422, ["code"]),
        ({"code": None}, 422, ["code"]),
        ({"code": "", "more": 1}, 422, ["more"]),
        ({"code": "", "filename": ""}, 422, ["filename"]),
        ({"code": "", "filename": "a\nb.py"}, 422, ["filename"]),
        ({"code": "", "filename": "x" * 256}, 422, ["filename"]),
        ({"code": "", "language": "perl"}, 422, ["language"]),
        ({"code": "", "user_id": ["ada"]}, 422, ["user_id"]),
        ({"code": "", "user_id": "x" * 201}, 422, ["user_id"]),
        ({"code": "", "options": []}, 422, ["options"]),
        ({"code": "", "options": {"rules": 1}}, 422, ["options.rules"]),
        ({"code": "", "options": {"target_version": "py27"}}, 422, ["options.target_version"]),
        ({"code": "", "options": {"select": []}}, 422, ["options.select"]),
        ({"code": "", "options": {"select": ["--config=x"]}}, 422, ["options.select"]),
        ({"code": "", "options": {"select": ["E", "QQQ"]}}, 422, ["options.select"]),
        ({"code": "", "options": {"llm": "no"}}, 422, ["options.llm"]),
        ({"code": "", "options": {"max_llm_findings": 51}}, 422, ["options.max_llm_findings"]),
        ({"code": "", "options": {"min_severity": "high"}}, 422, ["options.min_severity"]),
        ([], 422, ["body"]),
        ({"code": "x" * 262_144}, 413, []),
    ],
)
def test_what_cannot_be_used_is_named(url: str, body: object, status: int, names: Any) -> None:
    answer = post(url, body)
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert [fault["loc"] for fault in answer.json().get("errors", [])] == names


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b'{"code": "\\ud800"}', "application/json", 400),
        (b"\xff", "application/json", 400),
        (b"x = 1", "text/x-python", 415),
    ],
)
def test_what_is_no_json_is_refused_whole(url: str, body: bytes, kind: str, status: int) -> None:
    headers = {**KEY, "Content-Type": kind}
    assert requests.post(url, data=body, headers=headers, timeout=30).status_code == status


def test_a_number_is_a_user_too(url: str) -> None:
    review_id = post(url, {"code": "a = 1", "user_id": 4711}).json()["review_id"]
    found = requests.get(f"{url}?user_id=4711", timeout=30).json()["reviews"]
    assert [review["review_id"] for review in found] == [review_id]


def test_the_form_is_as_the_caller_accepts_it(url: str) -> None:
    body = {"code": EVAL, "filename": "src/a.py"}
    review_id = post(url, body).json()["review_id"]

    def shown(accept: str) -> requests.Response:
        return requests.get(f"{url}/{review_id}", headers={"Accept": accept}, timeout=30)

    def posted(accept: str) -> requests.Response:
        return post(url, body, Accept=accept)

    for answer_to in (shown, posted):
        sarif = answer_to("application/sarif+json, application/problem+json")
        assert sarif.headers["Content-Type"] == "application/sarif+json"
        STANDARD.validate(sarif.json())
        [result] = sarif.json()["runs"][0]["results"]
        place = result["locations"][0]["physicalLocation"]["artifactLocation"]
        assert place["uri"] == "src/a.py"
        text = answer_to("text/markdown")
        assert text.headers["Content-Type"] == "text/markdown; charset=utf-8"
        assert text.text.startswith("# Review of `src/a.py`: fail")


def test_format_wins_over_accept() -> None:
    assert form_of("application/sarif+json", "markdown") == "markdown"
    assert form_of("*/*", None) == "json"
    assert form_of("application/sarif+json;q=0.5, application/json", None) == "json"
    assert wants_stream("text/event-stream")
    assert not wants_stream("*/*")


def test_a_streamed_review_tells_its_stages_then_the_result(url: str) -> None:
    answer = post(url, {"code": "streamed = eval('1')"}, Accept="text/event-stream")
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    events = [block.split("\n") for block in answer.text.strip().split("\n\n")]
    names = [name.removeprefix("event: ") for name, _ in events]
    told = [json.loads(text.removeprefix("data: ")) for _, text in events]
    assert names == ["stage"] * 7 + ["result"]
    stages = [(stage["stage"], stage["status"]) for stage in told[:-1]]
    begun = [stage for stage, status in stages if status == "started"]
    assert begun == ["syntax", "lint", "complexity"]
    assert stages[-1] == ("llm", "disabled")
    assert told[-1]["verdict"] == "fail"


def test_who_is_refused_is_so_before_the_stream(url: str) -> None:
    answer = post(url, {"code": 1}, Accept="text/event-stream")
    assert answer.status_code == 422
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_who_does_not_wait_finds_the_review_later(url: str) -> None:
    answer = post(url, {"code": "later = eval('1')"}, Prefer="wait=5, respond-async")
    assert answer.status_code == 202
    assert answer.headers["Preference-Applied"] == "respond-async"
    place = f"{url.removesuffix('/reviews')}{answer.headers['Location']}"
    assert place == f"{url}/{answer.json()['review_id']}"
    assert when_done(place).json()["verdict"] == "fail"


def test_a_preference_is_read_as_it_is_written() -> None:
    class Headers(dict[str, list[str]]):
        def getlist(self, name: str) -> list[str]:
            return self.get(name, [])

    for text in ("respond-async", "Respond-Async; x=1", "return=minimal,respond-async"):
        assert prefers_async(Headers(prefer=[text]))
    for text in ("", "respond-asynchronously", "wait=5"):
        assert not prefers_async(Headers(prefer=[text]))


def test_the_same_key_and_body_are_the_same_review(url: str) -> None:
    key = uuid4().hex
    body = {"code": "repeated = 1"}
    ids = {post(url, body, Idempotency_Key=key).json()["review_id"] for _ in range(3)}
    assert len(ids) == 1
    other = post(url, {"code": "another = 1"}, Idempotency_Key=key)
    assert other.status_code == 422
    assert other.json()["errors"][0]["loc"] == "Idempotency-Key"
    for bad in ("", "x" * 256, "a\tb"):
        assert post(url, body, Idempotency_Key=bad).status_code == 422


def test_what_was_reviewed_before_is_not_reviewed_again(url: str) -> None:
    body = {"code": "once = eval('1')"}
    first, second = post(url, body).json(), post(url, body).json()
    assert (first["cached"], second["cached"]) == (False, True)
    assert first["findings"] == second["findings"]
    assert first["review_id"] != second["review_id"]


def test_pages_of_the_list_meet_every_review_once(url: str) -> None:
    session = uuid4().hex
    ids = [
        post(url, {"code": f"x = {number}"}, X_Session_ID=session).json()["review_id"]
        for number in range(5)
    ]
    found: list[str] = []
    query = {"session_id": session, "limit": "2"}
    while True:
        page = requests.get(url, params=query, timeout=30).json()
        found += [review["review_id"] for review in page["reviews"]]
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    assert found == ids[::-1]
    elsewhere = {"cursor": query["cursor"], "session_id": "another"}
    for bad in (elsewhere, {"cursor": "x"}, {"limit": "0"}, {"verdict": "good"}, {"q": "1"}):
        assert requests.get(url, params=bad, timeout=30).status_code == 422


def test_a_review_that_is_not_there_is_not_found(url: str) -> None:
    for path in (f"/{uuid4()}", f"/{uuid4()}/events"):
        assert requests.get(f"{url}{path}", timeout=30).status_code == 404
    assert requests.get(f"{url}/1", timeout=30).status_code == 422


def test_without_the_other_services_it_works_on_and_says_so(
    gateway: RunningService, url: str
) -> None:
    review_id = post(url, {"code": EVAL}).json()["review_id"]
    answer = requests.get(f"{url}/{review_id}/events", timeout=30)
    assert answer.status_code == 503
    assert answer.json()["type"] == "/problems/unavailable"
    health = requests.get(f"{gateway.url}/health", timeout=30)
    assert (health.status_code, health.json()["status"]) == (200, "degraded")
    states = {name: one["status"] for name, one in health.json()["dependencies"].items()}
    assert states == {
        "ruff": "ok",
        "database": "ok",
        "logging_service": "unavailable",
        "query_service": "unavailable",
    }


def test_the_page_works_under_its_policy(gateway: RunningService) -> None:
    page = requests.get(gateway.url, timeout=30)
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "script-src 'self'" in page.headers["Content-Security-Policy"]
    assert "unsafe" not in page.headers["Content-Security-Policy"]
    for name, kind in (("form.js", "text/javascript"), ("form.css", "text/css")):
        assert f'"{name}"' in page.text
        part = requests.get(f"{gateway.url}/{name}", timeout=30)
        assert part.headers["Content-Type"] == f"{kind}; charset=utf-8"


def test_reviews_are_counted(gateway: RunningService, url: str) -> None:
    def counted() -> dict[str, float]:
        lines = requests.get(f"{gateway.url}/metrics", timeout=30).text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line[:1] != "#")
        return {name: float(value) for name, value in pairs}

    body = {"code": f"counted = {uuid4().int}"}
    post(url, body)
    before = counted()
    post(url, body)
    post(url, {"code": f"counted = {uuid4().int}"})
    after = counted()
    for status in ("completed", "cached"):
        name = f'reviews_total{{status="{status}"}}'
        assert after[name] == before.get(name, 0) + 1
    assert after["reviews_running"] == 0
    assert after["journal_events_waiting"] > 0, "nobody takes them"
    name = 'review_stage_seconds_count{stage="static"}'
    assert after[name] == before[name] + 1


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"LLM_API_KEY": "a-secret"}, "LLM_API_KEY cannot be used without LLM_MODEL"),
        ({"LLM_MODEL": "m"}, "LLM_MODEL cannot be used without LLM_API_KEY or LLM_BASE_URL"),
        ({"LLM_MODEL": "m", "LLM_BASE_URL": "ftp://host"}, "LLM_BASE_URL=(not shown) cannot"),
        ({"LLM_MODEL": "m", "LLM_BASE_URL": "http://u:p@host"}, "LLM_BASE_URL=(not shown) cannot"),
        ({"LLM_ADAPTER": "other"}, "LLM_ADAPTER='other' cannot be used"),
        ({"LLM_MAX_COST_PER_DAY": "-1"}, "LLM_MAX_COST_PER_DAY='-1' cannot be used"),
        ({"REVIEWS_AT_ONCE": "0"}, "REVIEWS_AT_ONCE='0' cannot be used"),
    ],
)
def test_a_wrong_setting_ends_the_start_with_one_line(
    variables: dict[str, str], told: str, tmp_path: Path
) -> None:
    code, output = run_to_end("gateway", {"DATA_DIR": str(tmp_path), **variables})
    assert code == 2
    [line] = output.splitlines()
    assert line.startswith(told)
    assert "a-secret" not in line


@pytest.mark.parametrize(
    ("base_url", "told", "provider"),
    [
        ("https://api.openai.com/v1", None, "openai"),
        ("https://api.anthropic.com", None, "anthropic"),
        ("https://openrouter.ai/api/v1", None, "openrouter"),
        ("http://localhost:11434/v1", None, "local"),
        ("http://127.0.0.1:8080/v1", None, "local"),
        ("http://[::1]:8080/v1", None, "local"),
        ("http://10.1.2.3/v1", None, "local"),
        ("http://vllm:8000/v1", None, "local"),
        ("https://models.corp.internal/v1", None, "local"),
        ("https://models.example.com/v1", None, "models.example.com"),
        ("http://localhost:4000/v1", "x_ai", "x-ai"),
    ],
)
def test_whose_prices_hold(base_url: str, told: str | None, provider: str) -> None:
    assert provider_of(base_url, told) == provider


def test_a_bill_is_what_the_event_about_the_call_is_priced_at() -> None:
    prices = Prices()
    tariff, at = ListTariff(prices), datetime(2026, 11, 1, tzinfo=UTC)
    usage = {
        "prompt_tokens": 2006,
        "completion_tokens": 300,
        "total_tokens": 2306,
        "prompt_tokens_details": {"cached_tokens": 1920},
        "completion_tokens_details": {"reasoning_tokens": 128},
    }
    bill = tariff.bill("openai", "gpt-4o", usage, at)
    event = usage_of({"provider": "openai", "model": "gpt-4o", "usage": usage})
    assert bill.nanos == prices.cost_of(event, at).nanos == 5_615_000
    counts = (bill.input, bill.cached_input, bill.cache_write, bill.output, bill.reasoning)
    assert counts == (2006, 1920, 0, 300, 128)
    assert bill.source == prices.cost_of(event, at).source


@pytest.mark.parametrize(
    ("provider", "usage"),
    [
        ("local", {"prompt_tokens": 10, "completion_tokens": 5}),
        ("openai", None),
        ("openai", {"total_tokens": 10}),
        ("openai", {"prompt_tokens": 1, "prompt_tokens_details": {"cached_tokens": 5}}),
        ("openai", {"prompt_tokens": "many"}),
    ],
)
def test_a_cost_that_is_not_known_is_none_and_never_0(
    provider: str, usage: dict[str, Any] | None
) -> None:
    bill = ListTariff(Prices()).bill(provider, "gpt-4o", usage, datetime.now(UTC))
    assert (bill.nanos, bill.source) == (None, None)


def test_a_cost_that_the_provider_tells_counts_where_no_price_is_known() -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "cost": Decimal("0.00123")}
    bill = ListTariff(Prices()).bill("models.example.com", "any", usage, datetime.now(UTC))
    assert (bill.nanos, bill.source, bill.input) == (1_230_000, "reported", 10)


def test_secrets_leave_their_lines_in_place() -> None:
    scrub = Scrubber(rules_for(()))
    key = "-----BEGIN PRIVATE KEY-----\r\nMIIE\nabc\n-----END PRIVATE KEY-----"
    code = f'a = "AKIAIOSFODNN7EXAMPLE"\nb = """{key}"""\nmail("ada@example.com")\n'
    told, replaced = scrub(code)
    assert replaced == 3
    assert told.splitlines()[0] == 'a = "[aws_key]"'
    assert told.count("\n") == code.count("\n")
    assert told.endswith('mail("[email]")\n')
    assert not [secret for secret in ("AKIA", "MIIE", "ada@") if secret in told]
    assert scrub("größe = 1\n") == ("größe = 1\n", 0)


def test_events_are_looked_for_by_time_where_the_session_is_stored_as_another() -> None:
    began = datetime(2026, 11, 1, 10, tzinfo=UTC)
    trace = ReviewTrace("id", "my session", began, None)
    assert where(trace) == {"session_id": "my session"}
    hidden = trace._replace(session_id="[email:0123456789abcdef]")
    assert where(hidden) == {"start_time": "2026-11-01T09:59:55+00:00"}
    assert set(where(hidden._replace(ended=began))) == {"start_time", "end_time"}


class Elsewhere:
    """A service that says what a test wants."""

    def __init__(self) -> None:
        self.answer = Response(b'{"events": [], "pagination": {}}')
        self.asked: list[Request] = []
        self.may = asyncio.Event()
        self.may.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.append(Request(scope))
        await self.may.wait()
        await self.answer(scope, receive, send)


@pytest.fixture
async def elsewhere() -> AsyncIterator[tuple[Elsewhere, ServiceClient]]:
    service = Elsewhere()
    config = Router([Mount("/", service)])
    async with served(config) as url:
        yield service, ServiceClient(url, "our key")
        service.may.set()


TRACE = ReviewTrace("id", "my session", datetime(2026, 11, 1, tzinfo=UTC), None)


async def test_events_are_asked_for_with_our_key(
    elsewhere: tuple[Elsewhere, ServiceClient],
) -> None:
    service, client = elsewhere
    assert await EventSource(client).page(TRACE, 10, "after") == service.answer.body
    [asked] = service.asked
    assert asked.headers["X-API-Key"] == "our key"
    assert dict(asked.query_params) == {
        "payload.review_id": "id",
        "session_id": "my session",
        "order": "asc",
        "limit": "10",
        "cursor": "after",
    }


@pytest.mark.parametrize(
    "answer",
    [
        Response(b"<html>", 200),
        Response(b"[]", 200),
        Response(b"{}", 401),
        Response(b"", 302, {"Location": "http://127.0.0.1:9/"}),
        Response(b'{"events": [], "x": "' + b"x" * 17 * 2**20 + b'"}', 200),
    ],
)
async def test_what_is_no_page_of_events_is_not_passed_on(
    elsewhere: tuple[Elsewhere, ServiceClient], answer: Response
) -> None:
    service, client = elsewhere
    service.answer = answer
    with pytest.raises(BackendUnavailable):
        await EventSource(client).page(TRACE, 10, None)
    assert len(service.asked) == 1


async def test_a_service_that_hangs_is_waited_for_by_few(
    elsewhere: tuple[Elsewhere, ServiceClient],
) -> None:
    service, client = elsewhere
    service.may.clear()
    waiting = [asyncio.create_task(client.get("/")) for _ in range(32)]
    await asyncio.sleep(0)
    with pytest.raises(BackendUnavailable, match="too many requests wait"):
        await client.get("/")
    service.may.set()
    assert {answered.status for answered in await asyncio.gather(*waiting)} == {200}


async def test_health_is_asked_for_once_a_second_however_many_want_to_know(
    elsewhere: tuple[Elsewhere, ServiceClient],
) -> None:
    service, client = elsewhere
    service.answer = Response(b"", 503)
    outcomes = await asyncio.gather(*(client.check() for _ in range(20)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {BackendUnavailable}
    assert [str(asked.url.path) for asked in service.asked] == ["/health"]


def test_the_documents_example_is_a_review() -> None:
    review = msgspec.convert(openapi.REVIEW_EXAMPLE, Review)
    assert msgspec.json.decode(msgspec.json.encode(review)) == openapi.REVIEW_EXAMPLE


def test_a_model_needs_no_key_where_it_has_an_address() -> None:
    settings = GatewaySettings(llm_model="m", llm_base_url="http://localhost:1/v1")
    assert settings.model_address == "http://localhost:1/v1"
    for adapter, host in (("openai", "api.openai.com"), ("anthropic", "api.anthropic.com")):
        chosen = {"llm_model": "m", "llm_api_key": "k", "llm_adapter": adapter}
        assert host in GatewaySettings.model_validate(chosen).model_address
    with pytest.raises(ValidationError):
        GatewaySettings(llm_base_url="http://localhost:1/v1")


def test_the_installed_package_has_the_gateway(variables: dict[str, str], tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(installed)
    settings = {**variables, "GATEWAY_PORT": str(unused_port()), "DATA_DIR": str(tmp_path / "d")}
    (tmp_path / ".env").write_text("".join(f"{k}={v}\n" for k, v in settings.items()))
    log = tmp_path / "log"
    with log.open("wb") as out:
        running = subprocess.Popen(
            [sys.executable, "-m", "logging_service.cli", "gateway"],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(installed)},
            stdout=out,
            stderr=out,
        )
    try:
        url = f"http://127.0.0.1:{settings['GATEWAY_PORT']}"
        until = time.monotonic() + 20
        while b"listening" not in log.read_bytes():
            assert running.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.05)
        assert post(f"{url}/reviews", {"code": EVAL}).json()["verdict"] == "fail"
        assert requests.get(url, timeout=30).text.startswith("<!doctype html>")
    finally:
        running.terminate()
        assert running.wait(20) == 0
