"""The benchmark's arithmetic, its events, its load generator and what it prints."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from servers import ROOT, processes_of, run_tool, unused_port

from bench.figures import Figures, PostLog, Queryable, Stored, percentile, ratio_of
from bench.load import around, drive, end_of_answer, pace
from bench.queryable import between
from bench.rows import EventMaker, bodies, copy_buffer, http_request
from logging_service import wire

_SHAPE = {
    "stored": ["events_per_second", "copy_events_per_second", "ratio"],
    "post_log": [
        "requests_per_second",
        "empty_app_requests_per_second",
        "ratio",
        "p50_ms",
        "p99_ms",
    ],
    "queryable_ms": ["p50", "p99"],
}


def _shape(line: str) -> dict[str, list[str]]:
    return {name: list(figures) for name, figures in json.loads(line).items()}


def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, of) for of in (50, 99, 100)] == [50, 99, 100]
    assert percentile([7.0], 99) == 7


def test_the_ratio_is_that_of_the_medians() -> None:
    assert ratio_of([90, 10, 110], [200, 100, 900]) == (90, 200, 0.45)


def test_a_delay_is_never_less_than_none() -> None:
    assert between([1.0, 2.0], [1.5, 1.9]) == [0.5, 0.0]


def test_the_figures_are_printed_in_the_order_of_the_contract() -> None:
    figures = Figures(Stored(1, 2, 0.5), PostLog(1, 2, 0.5, 1.0, 2.0), Queryable(1.0, 2.0))
    assert list(_shape(figures.line()).items()) == list(_SHAPE.items())


def test_what_was_not_measured_is_not_printed() -> None:
    assert _shape(Figures(queryable_ms=Queryable(1.0, 2.0)).line()) == {
        "queryable_ms": ["p50", "p99"]
    }


def test_payloads_are_unique_and_of_the_sizes_that_are_published() -> None:
    maker = EventMaker(seed=1)
    payloads = [maker.payload(of_llm=place % 10 < 3) for place in range(5_000)]
    lengths = [len(payload) for payload in payloads]
    assert len(set(payloads)) == len(payloads)
    assert min(lengths) >= 150
    assert max(lengths) <= 1_500
    assert 450 < sum(lengths) / len(lengths) < 550


def test_events_are_of_twelve_types_and_three_in_ten_are_model_calls() -> None:
    events = json.loads(EventMaker(seed=1).batch(5_000))
    types = Counter(event["event_type"] for event in events)
    assert len(types) == 12
    assert 0.27 < types["llm_query_sent"] / len(events) < 0.33
    assert 2_500 < len({event["session_id"] for event in events}) <= 5_000


def test_the_same_seed_makes_the_same_events() -> None:
    assert EventMaker(seed=7).batch(50) == EventMaker(seed=7).batch(50)


def test_the_reference_copies_every_event_once_and_under_its_own_id() -> None:
    texts = bodies(seed=1, batches=3, size=50)
    first, again = (copy_buffer(texts, wire.now_micros() + place) for place in range(2))
    assert first.startswith(b"PGCOPY\n")
    assert first.count(b'"user_id"') == 150
    assert len(again) == len(first)
    assert again != first


def test_an_answer_ends_where_its_length_says() -> None:
    answer = b"HTTP/1.1 202 Accepted\r\nContent-Length: 4\r\n\r\nbody"
    assert end_of_answer(answer + b"HTTP/1.1") == len(answer)
    assert end_of_answer(answer[:20]) is None
    assert end_of_answer(answer.lower()) == len(answer)


@pytest.fixture
def echo_port() -> Iterator[int]:
    """The port of a server that answers anything with a 202."""
    port = unused_port()
    command = [sys.executable, str(ROOT / "bench" / "echo_server.py"), str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as server:
        until = time.monotonic() + 10
        while time.monotonic() < until:
            try:
                drive(port, 1, [b"x"], 1)
                break
            except ConnectionRefusedError:
                time.sleep(0.02)
        yield port
        assert server.stdin is not None
        server.stdin.close()
        assert server.wait(5) == 0


def test_each_request_is_sent_once_and_its_answer_counted(echo_port: int) -> None:
    requests = [http_request("/log", b"{}", "key")] * 100
    outcome = drive(echo_port, 4, requests, 10)
    assert outcome.statuses == {"202": 100}
    assert 0 < outcome.p50_ms <= outcome.p99_ms


def test_a_run_ends_when_its_time_is_over(echo_port: int) -> None:
    outcome = drive(echo_port, 4, around([b"x"]), 0.1)
    assert outcome.answered > 4
    assert outcome.seconds >= 0.1


def test_a_steady_run_sends_nothing_before_it_is_due(echo_port: int) -> None:
    outcome = pace(echo_port, 2, [b"x"] * 20, 200)
    assert outcome.statuses == {"202": 20}
    assert outcome.answered_at == sorted(outcome.answered_at)
    assert outcome.seconds >= 19 / 200


def test_a_short_run_prints_every_figure_and_leaves_nothing(tmp_path: Path) -> None:
    with run_tool("bench", tmp_path, "--seconds", "0.1") as run:
        out, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    *table, last = out.splitlines()
    assert list(_shape(last).items()) == list(_SHAPE.items())
    assert not any(line.startswith("{") for line in table)
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    with run_tool("bench", tmp_path, "--seconds", "30") as run:
        until = time.monotonic() + 60
        while not list(islice(tmp_path.glob("*/producer.log"), 1)) and time.monotonic() < until:
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=60)
    assert run.returncode == 130
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []
