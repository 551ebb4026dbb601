"""The client against a recording peer: what is on the wire, and what a caller notices."""

import asyncio
import contextlib
import json
import logging
import math
import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import pytest
from log_peer import KEY, TAKEN, Answer, Peer, Request, recording_peer
from servers import unused_port

import logging_helper
from logging_helper import (
    backlog,
    flush,
    log_analysis_completed,
    log_analysis_started,
    log_error,
    log_event,
    log_llm_feedback,
    log_llm_query,
    log_review_completed,
    log_review_started,
    reset,
    session,
)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    with recording_peer(monkeypatch) as peer:
        yield peer


@pytest.fixture
def url_of_nobody() -> str:
    return f"http://127.0.0.1:{unused_port()}/log"


def wait_until(promise: Callable[[], object], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not promise():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.005)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "logging_helper"]


def run_python(script: str, peer_url: str, cwd: Path = ROOT, **env: str) -> tuple[str, str]:
    """Run a script as its own process; return what it wrote to standard output and error."""
    known = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG"}}
    if peer_url:
        known |= {"LOGGING_SERVICE_URL": peer_url, "API_KEY": KEY}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=cwd,
        env=known | env,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return done.stdout, done.stderr


# What is on the wire


@pytest.mark.parametrize(
    ("call", "event_type", "payload"),
    [
        (
            lambda: log_review_started("s", user_id="u1", code_length=120, filename="a.py"),
            "review_started",
            {"user_id": "u1", "language": "python", "code_length": 120, "filename": "a.py"},
        ),
        (
            lambda: log_review_started("s"),
            "review_started",
            {"user_id": None, "language": "python", "code_length": None},
        ),
        (
            lambda: log_review_completed("s", analysis_count=2, success=False, duration_ms=12.5),
            "review_completed",
            {"analysis_count": 2, "success": False, "duration_ms": 12.5},
        ),
        (
            lambda: log_analysis_started("s"),
            "syntax_analysis_started",
            {"analysis_type": "syntax"},
        ),
        (
            lambda: log_analysis_completed("s", results={"errors": ["E1"]}, duration_ms=3),
            "syntax_analysis_completed",
            {"analysis_type": "syntax", "results": {"errors": ["E1"]}, "duration_ms": 3},
        ),
        (
            lambda: log_llm_query("s", model="gpt-4o", tokens_used=9, cost=0.25, provider="openai"),
            "llm_query_sent",
            {"model": "gpt-4o", "tokens_used": 9, "cost": 0.25, "provider": "openai"},
        ),
        (
            lambda: log_llm_query("s", model="gpt-4o", error="timeout", http_status=None),
            "llm_query_sent",
            {
                "model": "gpt-4o",
                "tokens_used": None,
                "cost": None,
                "error": "timeout",
                "http_status": None,
            },
        ),
        (
            lambda: log_llm_feedback("s", model="gpt-4o", feedback_length=77),
            "llm_feedback_received",
            {"model": "gpt-4o", "feedback_length": 77},
        ),
        (
            lambda: log_error("s", error_type="ValueError", error_message="no"),
            "error_occurred",
            {"error_type": "ValueError", "error_message": "no"},
        ),
        (
            lambda: log_event("my.event", "s", {"a": 1, "b": 2}, b=3),
            "my.event",
            {"a": 1, "b": 3},
        ),
        (lambda: log_event("my.event", "s"), "my.event", {}),
    ],
    ids=[
        "review-started",
        "review-started-bare",
        "review-completed",
        "analysis-started",
        "analysis-completed",
        "query",
        "failed-query",
        "feedback",
        "error",
        "event",
        "event-bare",
    ],
)
def test_a_call_sends_its_type_session_and_payload(
    peer: Peer, call: Callable[[], str | None], event_type: str, payload: dict[str, object]
) -> None:
    event_id = call()
    assert peer.event() == {"event_type": event_type, "session_id": "s", "payload": payload}
    assert peer.events[0]["event_id"] == event_id


def test_a_batch_is_an_array_of_json_at_logs_with_the_key(peer: Peer) -> None:
    log_event("a")
    assert flush()
    request = peer.requests[0]
    assert request.path == "/logs"
    assert request.headers["X-API-Key"] == KEY
    assert request.headers["Content-Type"] == "application/json"
    assert isinstance(json.loads(request.body), list)


def test_a_key_goes_out_in_utf_8(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "schlüssel-€\n")
    reset()
    log_event("a")
    assert flush()
    assert peer.requests[0].headers["X-API-Key"].encode("latin-1").decode() == "schlüssel-€"


def test_an_integer_session_id_stays_one(peer: Peer) -> None:
    log_event("a", 123)
    assert peer.event()["session_id"] == 123


def test_no_session_id_is_sent_where_there_is_none(peer: Peer) -> None:
    log_event("a")
    assert peer.event() == {"event_type": "a", "payload": {}}


def test_an_event_id_is_a_uuid7_of_the_call(peer: Peer) -> None:
    before = time.time_ns() // 1_000_000
    event_id = uuid.UUID(log_event("a"))
    assert (event_id.version, event_id.variant) == (7, uuid.RFC_4122)
    assert before <= event_id.int >> 80 <= time.time_ns() // 1_000_000
    assert flush()
    assert peer.events[0]["event_id"] == str(event_id)


@pytest.mark.usefixtures("peer")
def test_event_ids_ascend() -> None:
    ids = [log_event("a") or "" for _ in range(5_000)]
    assert ids == sorted(set(ids))


def test_event_ids_ascend_when_the_clock_goes_back(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = log_event("a") or ""
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_000_000_000)
    assert (log_event("a") or "") > first
    assert flush()
    assert {uuid.UUID(event["event_id"]).version for event in peer.events} == {7}


def test_the_payload_is_sent_as_it_was_at_the_call(peer: Peer) -> None:
    payload: dict[str, object] = {"list": [1]}
    log_event("a", payload=payload)
    payload["list"] = "changed"
    assert peer.event()["payload"] == {"list": [1]}


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (math.nan, None),
        ([1.5, -math.inf], [1.5, None]),
        ({7}, [7]),
        (b"caf\xc3\xa9 \xff", "café \ufffd"),
        (Path("a/b"), "a/b"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Decimal("0.000669500"), 0.0006695),
        (Decimal("NaN"), None),
        ({(1, 2): "pair", None: "none"}, {"(1, 2)": "pair", "None": "none"}),
        ("half \ud800 pair", "half ? pair"),
        ("a\0b", "a\ufffdb"),
        (2**53, str(2**53)),
        ({"deep": [-(10**5000)]}, {"deep": ["<int>"]}),
        (2**53 - 1, 2**53 - 1),
        (1234.5678901234567, 1234.5678901234567),
        ("12345678901234567890", "12345678901234567890"),
        ("ünïcode ✓ 𝄞", "ünïcode ✓ 𝄞"),
    ],
)
def test_what_json_does_not_know_is_sent_as_text_or_null(
    peer: Peer, given: object, sent: object
) -> None:
    assert log_event("a", payload={"value": given})
    assert peer.event()["payload"] == {"value": sent}


class Broken:
    def __str__(self) -> str:
        raise RuntimeError("broken")


def test_an_object_that_cannot_be_shown_does_not_cost_the_event(peer: Peer) -> None:
    circle: list[object] = [1]
    circle.append(circle)
    assert log_event("a", payload={"object": Broken(), "circle": circle, "fine": True})
    payload = peer.event()["payload"]
    assert payload == {"object": "<Broken>", "circle": [1, "[1, [...]]"], "fine": True}


def test_a_bad_value_leaves_the_other_events_of_its_batch_alone(peer: Peer) -> None:
    log_event("good", n=1)
    log_event("bad", n=math.nan)
    log_event("good", n=2)
    assert flush()
    assert [event["payload"]["n"] for event in peer.events] == [1, None, 2]


# What a caller notices


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        (lambda: log_event(""), "event_type is not"),
        (lambda: log_event("ends with a line\n"), "event_type is not"),
        (lambda: log_event("x" * 101), "event_type is not"),
        (lambda: log_event(7), "TypeError"),  # type: ignore[arg-type]
        (lambda: log_event("a", payload="text"), "TypeError"),  # type: ignore[arg-type]
        (lambda: log_event("a", "s" * 201), "session_id has more than 200"),
        (lambda: log_event("a", text="x" * 256 * 1024), "payload has more than 256 KiB"),
    ],
    ids=["empty", "newline", "long", "no-text", "no-mapping", "session", "payload"],
)
def test_a_malformed_call_returns_none_and_warns_once(
    peer: Peer,
    caplog: pytest.LogCaptureFixture,
    call: Callable[[], str | None],
    fault: str,
) -> None:
    assert (call(), call()) == (None, None)
    (warning,) = warnings_of(caplog)
    assert fault in warning
    assert flush()
    assert peer.requests == []


def test_a_payload_of_exactly_256_kib_is_sent(peer: Peer) -> None:
    text = "x" * (256 * 1024 - len('{"text":""}'))
    assert log_event("a", "s", text=text)
    assert peer.event()["payload"] == {"text": text}


@pytest.mark.parametrize("value", ["false", "False", "0", "no"])
def test_a_disabled_client_sends_nothing(
    peer: Peer, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("LOGGING_ENABLED", value)
    reset()
    assert log_event("a") is None
    assert flush()
    assert peer.requests == []


@pytest.mark.parametrize(
    "url", ["localhost:8001/log", "ftp://host/log", "http://", "http://h:99999"]
)
def test_a_bad_url_is_one_warning_and_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    monkeypatch.setenv("LOGGING_ENABLED", "true")
    monkeypatch.setenv("LOGGING_SERVICE_URL", url)
    reset()
    assert (log_event("a"), log_error(error_type="E", error_message="m")) == (None, None)
    (warning,) = warnings_of(caplog)
    assert "LOGGING_SERVICE_URL" in warning
    reset()


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://h:8001/log", "http://h:8001/logs"),
        ("https://h/logs", "https://h/logs"),
        ("http://h", "http://h/logs"),
        ("http://h/base/log/", "http://h/base/logs"),
        ("http://user:secret@h/log", "http://h/logs"),
        ("http://[::1]:8001/log", "http://[::1]:8001/logs"),
        ("", "http://localhost:8001/logs"),
    ],
)
def test_batches_go_to_logs_beside_log(
    monkeypatch: pytest.MonkeyPatch, given: str, used: str
) -> None:
    monkeypatch.setenv("LOGGING_ENABLED", "true")
    monkeypatch.setenv("LOGGING_SERVICE_URL", given)
    reset()
    assert logging_helper._target()[0] == used
    reset()


def test_settings_come_from_a_dotenv_file_unless_the_environment_has_them(
    peer: Peer, tmp_path: Path
) -> None:
    shutil.copy(ROOT / "logging_helper.py", tmp_path)
    (tmp_path / ".env").write_text(
        f"# settings\n\nexport LOGGING_SERVICE_URL='{peer.url}' # here\nAPI_KEY=from_the_file\n"
    )
    script = "import logging_helper; logging_helper.log_event('a')"
    run_python(script, "", tmp_path)
    run_python(script, "", tmp_path, API_KEY="from_the_environment")
    keys = [request.headers["X-API-Key"] for request in peer.requests]
    assert keys == ["from_the_file", "from_the_environment"]


def test_a_call_returns_while_the_service_hangs(peer: Peer) -> None:
    peer.answers.clear()
    log_event("first")
    assert peer.arrived.wait(15)
    ids = [log_event("more") for _ in range(1_000)]
    assert all(ids)
    assert peer.answered == 0
    assert not flush(0.05)


def test_nothing_is_raised_where_nobody_listens(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, url_of_nobody: str
) -> None:
    monkeypatch.setenv("LOGGING_ENABLED", "true")
    monkeypatch.setenv("LOGGING_SERVICE_URL", url_of_nobody)
    reset()
    assert log_event("a")
    wait_until(lambda: warnings_of(caplog))
    assert "does not take events" in warnings_of(caplog)[0]
    assert not flush(0.01)
    reset()


def test_a_fault_of_a_log_handler_does_not_reach_the_caller(peer: Peer) -> None:
    def broken(_: logging.LogRecord) -> bool:
        raise RuntimeError("broken")

    logger = logging.getLogger("logging_helper")
    logger.addFilter(broken)
    try:
        assert log_event("") is None
    finally:
        logger.removeFilter(broken)
    assert log_event("a")
    assert peer.event()["event_type"] == "a"


def test_a_call_may_interrupt_a_call(peer: Peer) -> None:
    with logging_helper._Sender.current._changed:  # as a signal handler would find it
        assert log_event("a")
    assert peer.event()["event_type"] == "a"


# Batches


def test_many_events_go_in_few_requests_in_order(peer: Peer) -> None:
    for number in range(3_000):
        log_event("a", n=number)
    assert flush()
    assert [event["payload"]["n"] for event in peer.events] == list(range(3_000))
    assert max(len(request.events) for request in peer.requests) <= 500
    assert len(peer.requests) < 100


def test_a_request_stays_below_one_mebibyte(peer: Peer) -> None:
    for _ in range(30):
        log_event("a", text="x" * 200_000)
    assert flush()
    assert len(peer.events) == 30
    assert max(len(request.body) for request in peer.requests) < 2**20


def test_events_of_eight_threads_arrive_once_each(peer: Peer) -> None:
    ids: list[str | None] = []

    def log_a_thousand() -> None:
        mine = [log_event("a", n=number) for number in range(1_000)]
        ids.extend(mine)

    threads = [threading.Thread(target=log_a_thousand) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert flush(20)
    assert Counter(event["event_id"] for event in peer.events) == Counter(ids)
    assert len(set(ids)) == 8_000


@pytest.mark.parametrize(
    ("bound", "most"), [("MAX_WAITING_EVENTS", 10), ("MAX_WAITING_BYTES", 2_000)]
)
def test_a_full_queue_drops_the_newest_with_one_warning(
    peer: Peer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    bound: str,
    most: int,
) -> None:
    monkeypatch.setattr(logging_helper, bound, most)
    peer.answers.clear()
    log_event("first")
    assert peer.arrived.wait(15)
    ids = [log_event("more", text="x" * 150) for _ in range(30)]
    kept = [event_id for event_id in ids if event_id]
    assert ids == kept + [None] * (30 - len(kept))
    assert 5 <= len(kept) <= 10
    assert len(warnings_of(caplog)) == 1
    peer.answers.set()
    assert flush()
    assert [event["event_id"] for event in peer.events[1:]] == kept
    assert log_event("again")


# Answers


@pytest.mark.parametrize("answer", [Answer(503), Answer(500), Answer(429), None])
def test_a_batch_is_sent_again_under_the_same_ids(peer: Peer, answer: Answer | None) -> None:
    peer.script(answer)
    ids = [log_event("a"), log_event("b")]
    assert flush()
    again = [[event["event_id"] for event in request.events] for request in peer.requests]
    assert again[0] == again[-1]
    assert again[-1] == ids
    assert len(again) == 2


def test_a_retry_waits_as_long_as_it_was_told(peer: Peer) -> None:
    peer.script(Answer(429, {"Retry-After": "1"}))
    log_event("a")
    wait_until(lambda: peer.requests)
    log_event("b")
    assert flush()
    first, second = (request.at_seconds for request in peer.requests[:2])
    assert second - first >= 0.9


def test_an_outage_is_one_warning_and_its_end_another(
    peer: Peer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging_helper, "MAX_RETRY_SECONDS", 0.01)
    for _ in range(2):
        peer.script(*[Answer(503)] * 5)
        log_event("a")
        assert flush()
    begin, end, *again = warnings_of(caplog)
    assert "does not take events" in begin
    assert "takes events again" in end
    assert again == [begin, end]


def test_one_failure_is_no_warning(peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    peer.script(Answer(503))
    log_event("a")
    assert flush()
    assert warnings_of(caplog) == []


def rejecting(event_type: str) -> Callable[[Request], Answer]:
    def answer(request: Request) -> Answer:
        rejected = [
            {
                "index": index,
                "event_id": event["event_id"],
                "errors": [{"loc": "payload", "msg": "has to be a JSON object"}],
            }
            for index, event in enumerate(request.events)
            if event["event_type"] == event_type
        ]
        return Answer(207, body={"rejected": rejected}) if rejected else TAKEN

    return answer


def test_a_rejected_event_is_named_once_without_its_payload_and_not_sent_again(
    peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    peer.answer = rejecting("bad")
    for _ in range(2):
        log_event("good")
        log_event("bad", text="a secret")
        assert flush()
    (warning,) = warnings_of(caplog)
    assert "rejected bad" in warning
    assert "has to be a JSON object" in warning
    assert "a secret" not in warning
    assert len(peer.events) == 4


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (401, "API_KEY"),
        (403, "scope 'write'"),
        (400, "a reason"),
        (422, "a reason"),
        (404, "LOGGING_SERVICE_URL"),
        (302, "LOGGING_SERVICE_URL"),
    ],
)
def test_a_refused_batch_is_dropped_with_one_warning_that_says_what_to_do(
    peer: Peer, caplog: pytest.LogCaptureFixture, status: int, hint: str
) -> None:
    refusal = Answer(status, {"Location": peer.url}, {"detail": "a reason"})
    peer.script(refusal, refusal)
    for _ in range(3):
        log_event("a")
        assert flush()
    (warning,) = warnings_of(caplog)
    assert str(status) in warning
    assert hint in warning
    assert len(peer.requests) == 3


def test_a_batch_that_is_too_large_goes_in_halves(peer: Peer) -> None:
    peer.answer = lambda request: TAKEN if len(request.events) < 4 else Answer(413)
    ids = [log_event("a") for _ in range(20)]
    assert flush()
    taken = [request for request in peer.requests if len(request.events) < 4]
    assert [event["event_id"] for request in taken for event in request.events] == ids


def test_one_event_that_is_too_large_is_dropped_with_a_warning(
    peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    peer.script(Answer(413))
    log_event("large")
    assert flush()
    assert "smaller payloads" in warnings_of(caplog)[0]
    assert len(peer.requests) == 1


def test_an_answer_that_is_nonsense_does_not_end_the_sending(
    peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    peer.script(Answer(207, body="no object"))
    log_event("a")
    assert flush()
    log_event("b")
    assert flush()
    assert "dropped" in warnings_of(caplog)[0]
    assert peer.events[-1]["event_type"] == "b"


# Processes


def test_what_waits_is_sent_at_exit(peer: Peer) -> None:
    script = "import logging_helper as h\nfor n in range(1200): h.log_event('a', n=n)"
    run_python(script, peer.url)
    assert [event["payload"]["n"] for event in peer.events] == list(range(1200))


def test_an_exit_gives_up_and_says_how_many_were_lost(url_of_nobody: str) -> None:
    script = "import logging_helper as h\nfor n in range(7): h.log_event('a')"
    _, errors = run_python(script, url_of_nobody)
    assert "7 events did not reach the logging service" in errors


def test_an_exit_does_not_wait_for_a_service_that_hangs(peer: Peer) -> None:
    peer.answers.clear()
    run_python("import logging_helper as h; h.EXIT_SECONDS = 0.2; h.log_event('a')", peer.url)
    assert peer.answered == 0


FORK = """
import os, logging_helper as h
h.log_event("parent", number=1)
if (child := os.fork()) == 0:
    print(h.log_event("child"), flush=True)
    os._exit(0 if h.flush() else 1)
_, status = os.waitpid(child, 0)
assert status == 0
h.log_event("parent", number=2)
"""


def test_a_forked_child_sends_its_own_events_and_only_those(peer: Peer) -> None:
    run_python(FORK, peer.url)
    assert Counter(event["event_type"] for event in peer.events) == {"parent": 2, "child": 1}
    assert len({event["event_id"] for event in peer.events}) == 3


MULTIPROCESSING = """
import multiprocessing, logging_helper as h
with h.session("s"):
    h.log_event("parent")
    child = multiprocessing.get_context("fork").Process(target=h.log_event, args=("child",))
    child.start()
    child.join()
"""


def test_a_child_of_multiprocessing_sends_its_events_at_exit(peer: Peer) -> None:
    run_python(MULTIPROCESSING, peer.url)
    assert {(event["event_type"], event["session_id"]) for event in peer.events} == {
        ("parent", "s"),
        ("child", "s"),
    }


# Sessions


def sessions_of(peer: Peer) -> dict[str, object]:
    """Return the session_id of each event, by the event's type."""
    assert flush()
    return {event["event_type"]: event.get("session_id") for event in peer.events}


def test_a_session_gives_the_calls_inside_its_id(peer: Peer) -> None:
    log_event("before")
    with session("outer") as name:
        log_event("outer")
        with session(7):
            log_event("inner")
            log_event("explicit", "own")
        log_event("outer-again")
    log_event("after")
    assert name == "outer"
    assert sessions_of(peer) == {
        "before": None,
        "outer": "outer",
        "inner": 7,
        "explicit": "own",
        "outer-again": "outer",
        "after": None,
    }


def test_a_session_without_an_id_gets_a_new_one(peer: Peer) -> None:
    with session() as first, session() as second:
        log_event("a")
    assert first != second
    assert uuid.UUID(str(second)).version == 7
    assert sessions_of(peer) == {"a": second}


def test_a_session_ends_with_an_error(peer: Peer) -> None:
    with contextlib.suppress(ValueError), session("s"):
        raise ValueError
    log_event("after")
    assert sessions_of(peer) == {"after": None}


async def test_a_session_holds_across_await_and_in_tasks(peer: Peer) -> None:
    async def review(name: str) -> None:
        async with session(name):
            await asyncio.sleep(0.01)
            log_event(f"{name}-await")
            await asyncio.gather(asyncio.to_thread(log_event, f"{name}-thread"), child(name))

    async def child(name: str) -> None:
        await asyncio.sleep(0)
        log_event(f"{name}-task")

    await asyncio.gather(review("a"), review("b"))
    log_event("after")
    await asyncio.to_thread(log_event, "after-thread")
    assert sessions_of(peer) == {
        "a-await": "a",
        "a-thread": "a",
        "a-task": "a",
        "b-await": "b",
        "b-thread": "b",
        "b-task": "b",
        "after": None,
        "after-thread": None,
    }


def test_a_thread_started_inside_keeps_the_session(peer: Peer) -> None:
    go_on = threading.Event()

    def work() -> None:
        go_on.wait(15)
        log_event("thread")
        grandchild = threading.Thread(target=log_event, args=("grandchild",))
        grandchild.start()
        grandchild.join()

    class Worker(threading.Thread):
        def run(self) -> None:
            go_on.wait(15)
            log_event("subclass")

    with session("s"):
        threads = [threading.Thread(target=work), Worker()]
        for thread in threads:
            thread.start()
    outside = threading.Thread(target=log_event, args=("outside",))
    for thread in [*threads, outside]:
        go_on.set()
        if thread is outside:
            thread.start()
        thread.join()
    assert sessions_of(peer) == {
        "thread": "s",
        "grandchild": "s",
        "subclass": "s",
        "outside": None,
    }


def test_a_job_of_a_thread_pool_has_the_session_it_was_given_in(peer: Peer) -> None:
    with ThreadPoolExecutor(1) as pool:
        with session("a"):
            pool.submit(log_event, "a")
        with session("b"):
            list(pool.map(log_event, ["b"]))
        pool.submit(log_event, "outside").result()
    assert sessions_of(peer) == {"a": "a", "b": "b", "outside": None}


async def test_a_job_of_an_executor_has_the_session_it_was_given_in(peer: Peer) -> None:
    loop = asyncio.get_running_loop()
    with session("s"):
        await loop.run_in_executor(None, log_event, "inside")
    await loop.run_in_executor(None, log_event, "outside")
    assert sessions_of(peer) == {"inside": "s", "outside": None}


def test_a_request_id_goes_with_the_session_also_into_threads_and_inner_sessions(
    peer: Peer,
) -> None:
    with session("outer", "request-7"):
        log_event("a")
        thread = threading.Thread(target=log_event, args=("thread",))
        thread.start()
        thread.join()
        with session("inner"):
            log_event("inner")
    with session("other"):
        log_event("after")
    assert flush()
    assert {event["event_type"]: event.get("request_id") for event in peer.events} == {
        "a": "request-7",
        "thread": "request-7",
        "inner": "request-7",
        "after": None,
    }


def test_the_backlog_says_what_waits_and_what_was_lost(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging_helper, "MAX_WAITING_EVENTS", 3)
    peer.answers.clear()
    log_event("first")
    assert peer.arrived.wait(15)
    for _ in range(5):
        log_event("more")
    assert backlog() == (4, 2)
    peer.answers.set()
    assert flush()
    assert backlog() == (0, 2)
