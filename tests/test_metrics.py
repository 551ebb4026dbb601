"""What /metrics says, with any number of workers, whatever becomes of them."""

import os
import signal
from collections.abc import Iterator
from math import isnan
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest
import requests
from projects import soon
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from servers import RunningService, run_service

from logging_service import metrics
from logging_service.backends import open_queue, open_store
from logging_service.producer import Status
from logging_service.settings import Settings
from logging_service.shared_metrics import (
    MAX_SERIES,
    SharedCounter,
    SharedGauge,
    SharedHistogram,
    SharedMemory,
    Tallies,
)

KEY = {"X-API-Key": "test_key_123"}
Shown = dict[tuple[str, ...], float]


def scraped(producer: RunningService) -> Shown:
    """Return what whichever worker says that answers."""
    return samples(requests.get(f"{producer.url}/metrics", timeout=10).text)


def samples(text: str) -> Shown:
    """Return every value, by the name and the values of the labels in their names' order."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def send(producer: RunningService, *event_types: str) -> None:
    """Send each in a request and over a connection of its own: the system picks the worker."""
    for event_type in event_types:
        event = {"event_type": event_type}
        requests.post(f"{producer.url}/log", json=event, headers=KEY, timeout=10).raise_for_status()


def taken(shown: Shown) -> float:
    return shown.get(("api_requests_total", "/log", "POST", "producer", "202"), 0)


def observed(shown: Shown) -> list[float]:
    series = ("/log", "producer")
    buckets = shown["request_duration_seconds_bucket", "/log", "+Inf", "producer"]
    return [shown["request_duration_seconds_count", *series], buckets]


def by_type(shown: Shown) -> Shown:
    return {labels[1:]: value for labels, value in shown.items() if labels[0] == "log_events_total"}


def workers_of(producer: RunningService) -> list[psutil.Process]:
    children = psutil.Process(producer.pid).children(recursive=True)
    return [one for one in children if "spawn_main" in " ".join(one.cmdline())]


@pytest.fixture
def producer(environment: dict[str, str]) -> Iterator[RunningService]:
    environment["RATE_LIMIT"] = "100000/minute"
    with run_service("producer", environment, "--workers", "2") as producer:
        assert soon(lambda: len(workers_shown(scraped(producer))) == 2)
        yield producer


def workers_shown(shown: Shown) -> set[str]:
    return {labels[1] for labels in shown if labels[0] == "process_cpu_seconds_total"}


def test_workers_count_together_and_each_answers_for_all(producer: RunningService) -> None:
    send(producer, *[f"type_{number:03}" for number in range(150)], "type_000", "type_149")
    for _ in range(10):
        shown = scraped(producer)
        assert taken(shown) == 152
        assert observed(shown) == [152, 152]
        assert (shown["queue_size",], shown["queue_in_flight",], shown["dead_letters",]) == (
            152,
            0,
            0,
        )
        assert shown["api_requests_total", "/log", "POST", "producer", "500"] == 0
        types = by_type(shown)
        assert types["type_000",] == 2
        assert types["other",] == 51
        assert len(types) == 101
        assert len({labels for labels in shown if labels[0] == "queue_size"}) == 1
        assert workers_shown(shown) == {"1", "2"}
    assert soon(lambda: 0 < scraped(producer)["oldest_event_age_seconds",] < 60)


def test_nothing_counted_is_lost_with_a_worker_or_counted_again(producer: RunningService) -> None:
    first = workers_of(producer)
    send(producer, *["before"] * 20)
    for worker in first:
        worker.kill()
        assert soon(lambda: taken(scraped(producer)) == 20)
    assert soon(lambda: len(workers_shown(scraped(producer))) == 2)
    assert not {one.pid for one in first} & {one.pid for one in workers_of(producer)}
    send(producer, *["between"] * 20)
    os.kill(producer.pid, signal.SIGHUP)
    assert soon(lambda: '"reloaded"' in producer.log)
    send(producer, *["after"] * 20)
    for _ in range(5):
        shown = scraped(producer)
        assert (taken(shown), observed(shown)) == (60, [60, 60])
        assert by_type(shown) == {("before",): 20, ("between",): 20, ("after",): 20}
        assert len(workers_shown(shown)) == 2


class Board:
    """A counter, a gauge and a histogram, as one worker sees them."""

    def __init__(self, memory: SharedMemory | None = None) -> None:
        self.tallies = Tallies()
        if memory is not None:
            self.tallies.join(memory)
        self.registry = CollectorRegistry()
        given = {"tallies": self.tallies, "registry": self.registry}
        self.count = SharedCounter("seen_total", "Seen.", ["kind"], most=3, **given)  # type: ignore[arg-type]
        self.plain = SharedCounter("all_total", "All.", **given)  # type: ignore[arg-type]
        self.gauge = SharedGauge("worst", "The worst.", **given)  # type: ignore[arg-type]
        self.took = SharedHistogram("took", "Seconds.", ["what"], (0.1, 1.0), **given)  # type: ignore[arg-type]

    def see(self, *kinds: str) -> None:
        for kind in kinds:
            self.tallies.values[self.count.slot(kind)] += 1

    def shown(self) -> Shown:
        return samples(generate_latest(self.registry).decode())


def work(memory: SharedMemory, told: Connection) -> None:
    board = Board(memory)
    board.see("a", "b", "c")
    board.plain.inc(5)
    board.gauge.set(7)
    board.took.observer("it")(0.5)
    told.send("counted")
    told.recv()


def test_a_worker_that_was_killed_has_counted_and_says_nothing_more() -> None:
    spawn = get_context("spawn")
    memory = SharedMemory(workers=1)
    ours, theirs = spawn.Pipe()
    worker = spawn.Process(target=work, args=(memory, theirs))
    worker.start()
    try:
        assert ours.recv() == "counted"
        board = Board(memory)
        board.gauge.set(2)
        board.took.observer("it")(1)
        board.see("a", "c", "d", "e")
        shown = board.shown()
        assert shown["worst",] == 7
        assert set(board.tallies.processes().values()) == {os.getpid(), worker.pid}
    finally:
        worker.kill()
        worker.join()
    shown = board.shown()
    assert shown["worst",] == 2
    assert [*board.tallies.processes().values()] == [os.getpid()]
    assert shown["all_total",] == 5
    kinds = {labels[1]: value for labels, value in shown.items() if labels[0] == "seen_total"}
    assert kinds == {"a": 2, "b": 1, "c": 2, "other": 2}
    assert shown["took_bucket", "0.1", "it"] == 0
    assert shown["took_bucket", "1.0", "it"] == shown["took_count", "it"] == 2
    assert shown["took_sum", "it"] == 1.5


def test_values_of_a_histogram_are_in_the_bucket_that_ends_with_them() -> None:
    board = Board()
    observe = board.took.observer("it")
    for value in (0.0, 0.1, 0.1000001, 1.0, 2.0):
        observe(value)
    shown = board.shown()
    bounds = ("0.1", "1.0", "+Inf")
    assert [shown["took_bucket", bound, "it"] for bound in bounds] == [2, 4, 5]
    assert shown["took_count", "it"] == 5


def test_any_text_can_be_a_label() -> None:
    board = Board()
    board.see('quote " and \\', "two\nlines", "nul \0 é")
    kinds = {labels[1] for labels in board.shown() if labels[0] == "seen_total"}
    assert kinds == {'quote " and \\', "two\nlines", "nul \0 é"}


@pytest.mark.parametrize("length", [1, 1000])
def test_series_past_the_bounds_are_counted_where_nobody_looks(length: int) -> None:
    tallies, registry = Tallies(), CollectorRegistry()
    count = SharedCounter("many_total", "Many.", ["kind"], tallies=tallies, registry=registry)
    for number in range(MAX_SERIES + 100):
        tallies.values[count.slot(f"{number}" * length)] += 1
    [family] = registry.collect()
    assert 100 < len(family.samples) < MAX_SERIES
    assert {sample.value for sample in family.samples} == {1}


def test_nothing_is_counted_where_nobody_can_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_is_on", True)
    before = generate_latest(metrics.API_REQUESTS)
    metrics.switch(on=False)
    metrics.observe_request("producer", "/switched-off", "POST", 202, 0.001)
    metrics.count_events(["switched_off"])
    after = generate_latest(metrics.API_REQUESTS)
    assert after == before
    assert b"switched_off" not in generate_latest(metrics.LOG_EVENTS)


async def test_a_queue_that_does_not_answer_has_no_size(settings: Settings, free_port: int) -> None:
    away = settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{free_port}/0"})
    metrics.QUEUE_SIZE.set(5)
    async with open_queue(away) as queue, open_store(away) as store:
        await Status(away, queue, store).measure()
    assert isnan(samples(metrics.exposition("producer")[0].decode())["queue_size",])
    metrics.QUEUE_SIZE.set(0)


def test_the_disk_is_that_of_the_nearest_folder_there_is(tmp_path: Path) -> None:
    metrics.measure_disk(tmp_path / "not" / "made" / "yet")
    size, free = metrics.DISK_SIZE._value.get(), metrics.DISK_FREE._value.get()
    assert 0 < free <= size
    assert size == psutil.disk_usage(str(tmp_path)).total
