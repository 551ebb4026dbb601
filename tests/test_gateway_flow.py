"""The whole way of a review: the gateway, a model, the services, and what they tell of it then."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from decimal import Decimal
from typing import Any

import pytest
import requests
from conftest import API_KEY
from consuming import until
from model_stub import HANG, USAGE, ModelStub, chat, finding, refusal, review_text
from served import ask
from servers import RunningService, run_service

KEY = {"X-API-Key": API_KEY}
SECRET = "AKIAIOSFODNN7EXAMPLE"
CODE = f'def f(x):\n    x = x / 0\n    return eval(x)\n\n\nkey = "{SECRET}"\n'
SEVEN = {
    "review_started",
    "syntax_analysis_started",
    "syntax_analysis_completed",
    "llm_query_sent",
    "llm_feedback_received",
    "error_occurred",
    "review_completed",
}


@pytest.fixture
def model() -> Iterator[ModelStub]:
    """A model that fails once, then finds a fault, of which it tells the wrong line."""
    with ModelStub().running() as stub:
        found = finding(9, "x = x / 0", severity="error", message="This divides by zero.")
        stub.answers(refusal(500), chat(review_text(found), usage=USAGE, model="gpt-4o-2024-08-06"))
        yield stub


@pytest.fixture
def variables(environment: dict[str, str], model: ModelStub) -> dict[str, str]:
    """Those of all services, with a model that is priced like the one of that name."""
    return {
        **environment,
        "LOGGING_SERVICE_URL": f"http://127.0.0.1:{environment['PRODUCER_PORT']}/log",
        "QUERY_SERVICE_URL": f"http://127.0.0.1:{environment['QUERY_SERVICE_PORT']}",
        "LLM_MODEL": "gpt-4o",
        "LLM_PROVIDER": "openai",
        "LLM_BASE_URL": model.base_url,
        "LLM_API_KEY": "key-of-the-model",
    }


@pytest.fixture
def query(variables: dict[str, str]) -> Iterator[RunningService]:
    """The query service, beside producer and consumer."""
    with ExitStack() as stack:
        for name in ("producer", "consumer"):
            stack.enter_context(run_service(name, variables))
        yield stack.enter_context(run_service("query_service", variables))


def soon(question: Callable[[], Any], holds: Callable[[Any], object]) -> Any:
    end = time.monotonic() + 20
    while not holds(found := question()):
        assert time.monotonic() < end, found
        time.sleep(0.05)
    return found


def events_of(gateway: RunningService, review_id: str) -> list[dict[str, Any]]:
    url = f"{gateway.url}/reviews/{review_id}/events"
    page = requests.get(url, headers=KEY, timeout=30)
    assert page.status_code == 200, page.text
    events: list[dict[str, Any]] = page.json()["events"]
    return events


def is_over(events: list[dict[str, Any]]) -> bool:
    return any(event["event_type"] == "review_completed" for event in events)


def is_whole(events: list[dict[str, Any]]) -> bool:
    """Whether all are there: the last one goes its own way, and may come before others."""
    numbers = [event["payload"].get("seq", 0) for event in events]
    return is_over(events) and len(numbers) == max(numbers)


@pytest.mark.parametrize("session", ["a session", "ada@example.com"])
def test_a_review_with_a_model_is_told_everywhere_alike(
    query: RunningService, variables: dict[str, str], model: ModelStub, session: str
) -> None:
    with run_service("gateway", variables) as gateway:
        answer = requests.post(
            f"{gateway.url}/reviews",
            json={"code": CODE, "user_id": "ada"},
            headers={**KEY, "X-Session-ID": session},
            timeout=30,
        )
        review = answer.json()
        assert (answer.status_code, review["status"], review["verdict"]) == (
            200,
            "completed",
            "fail",
        )
        by_source = Counter(finding["source"] for finding in review["findings"])
        assert by_source["llm"] == 1, review
        [added] = [finding for finding in review["findings"] if finding["source"] == "llm"]
        assert added["start"]["line"] == 2, "by the quote, not by what the model counts"

        events = soon(lambda: events_of(gateway, review["review_id"]), is_whole)
        assert {event["event_type"] for event in events} == SEVEN
        assert [event["payload"]["seq"] for event in events] == list(range(1, len(events) + 1))
        assert {event["payload"]["user_id"] for event in events} == {"ada"}
        assert {event["request_id"] for event in events} == {answer.headers["X-Request-ID"]}
        [stored_session] = {event["session_id"] for event in events}
        assert (stored_session == session) == ("@" not in session)

        calls = [one["payload"] for one in events if one["event_type"] == "llm_query_sent"]
        assert len(calls) == len(model.asked) == review["llm"]["attempts"] == 2
        assert [call["http_status"] for call in calls] == [500, 200]
        assert [call["tokens_used"] for call in calls] == [None, 2306]
        assert not [one for one in model.asked if SECRET in one.text]
        assert SECRET not in json.dumps(events)

        told = requests.get(f"{query.url}/analytics/llm?days=1", headers=KEY, timeout=30)
        metrics = json.loads(told.text, parse_float=Decimal)["metrics"]
        used = review["llm"]["usage"]
        assert metrics["total_queries"] == 2
        assert (metrics["input_tokens"], metrics["output_tokens"]) == (2006, 300)
        assert (used["input"], used["output"]) == (2006, 300)
        assert (metrics["cached_tokens"], metrics["reasoning_tokens"]) == (1920, 128)
        assert (used["cached_input"], used["reasoning"]) == (1920, 128)
        assert metrics["total_cost"] == Decimal(review["llm"]["cost_usd"]) == Decimal("0.005615")
        told = requests.get(f"{query.url}/analytics/reviews?days=1", headers=KEY, timeout=30)
        found = told.json()["metrics"]["findings"]
        assert {name: found[name] for name in review["counts"]} == review["counts"]
        listed = requests.get(f"{gateway.url}/reviews", headers=KEY, timeout=30).json()
        assert [one["cost_usd"] for one in listed["reviews"]] == [review["llm"]["cost_usd"]]


def test_a_review_that_a_crash_cuts_off_is_completed_at_the_next_start(
    query: RunningService, variables: dict[str, str], model: ModelStub
) -> None:
    model.answers(HANG)
    with run_service("gateway", variables) as gateway:
        headers = {**KEY, "Prefer": "respond-async"}
        url = f"{gateway.url}/reviews"
        begun = requests.post(url, json={"code": CODE}, headers=headers, timeout=30).json()
        soon(lambda: model.asked, bool)
        gateway.process.kill()
        gateway.process.wait()
    with run_service("gateway", variables) as gateway:
        events = soon(lambda: events_of(gateway, begun["review_id"]), is_over)
        ended = [one["payload"] for one in events if one["event_type"] == "review_completed"]
        assert [(one["success"], one["status"]) for one in ended] == [(False, "interrupted")]
        url = f"{gateway.url}/reviews/{begun['review_id']}"
        assert requests.get(url, headers=KEY, timeout=30).json()["status"] == "interrupted"
        sarif = requests.get(f"{url}?format=sarif", headers=KEY, timeout=30)
        assert (sarif.status_code, sarif.json()["type"]) == (409, "/problems/conflict")
    assert query.process.poll() is None


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_who_waits_at_the_stop_is_told_that_the_review_was_not_finished(
    variables: dict[str, str], model: ModelStub, accept: str
) -> None:
    model.answers(HANG)
    with run_service("gateway", {**variables, "SHUTDOWN_GRACE_SECONDS": "2"}) as gateway:
        headers = {**KEY, "Accept": accept}
        url = f"{gateway.url}/reviews"
        waiting = asyncio.create_task(ask(url, "POST", json={"code": CODE}, headers=headers))
        await until(lambda: model.asked)
        gateway.process.terminate()
        told = (await waiting).text.rpartition("data: ")[2]
        assert json.loads(told)["degraded_reasons"] == ["interrupted"]
        assert gateway.process.wait(10) == 0
        assert "Traceback" not in gateway.log
