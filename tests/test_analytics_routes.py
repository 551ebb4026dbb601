"""`GET /analytics/*` over HTTP, with a reader that says what it was asked."""

import asyncio
import csv
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal
from functools import partial
from io import StringIO
from itertools import pairwise
from typing import Any

import pytest
import requests
from conftest import API_KEY
from events_made import a_delivery, an_event
from pydantic import SecretStr
from served import ask, served
from servers import unused_port

from logging_service import analytics_routes, wire
from logging_service.analytics import (
    Answer,
    Findings,
    Group,
    GroupKey,
    LlmMetrics,
    Metrics,
    Part,
    PerformanceMetrics,
    Question,
    ReviewMetrics,
    UsageMetrics,
)
from logging_service.backends import open_queue
from logging_service.embedded import Valkey
from logging_service.errors import BackendUnavailable, QueryRejected
from logging_service.ports import EventQueue, Sorted
from logging_service.postgres_store import open_postgres_store
from logging_service.query_service import create_app
from logging_service.settings import Settings

SUBJECTS = ("usage", "llm", "performance", "reviews")
NANO = Decimal("0.000000001")
LLM = LlmMetrics(7, 70, 40, 30, 20, 10, 1234567 * NANO, 2, 1.5, 1.0, 2.0, None)
METRICS: dict[str, Metrics] = {
    "usage": UsageMetrics(12, 3, 4, 1.7, 0.25),
    "llm": LLM,
    "performance": PerformanceMetrics(9, 0.75, 1.5, 1.0, 2.0, 3.0, 4.0, 5.5),
    "reviews": ReviewMetrics(
        3, 0.5, None, 5 * NANO, NANO, None, NANO, 7, 2.5, 0, None, 1.0, 2.0, Findings(1, 2, 3)
    ),
}


LLM_CELLS = ["7", "70", "40", "30", "20", "10", "0.001234567", "2", "1.5", "1.0", "2.0", ""]
DIMENSIONS = {
    "usage": "event_type",
    "llm": "model",
    "performance": "operation",
    "reviews": "user_id",
}


@dataclass
class Reader:
    """An AnalyticsReader with one group for each of `names`, the same on each of `pages`."""

    metrics: dict[str, Metrics] = field(default_factory=lambda: dict(METRICS))
    names: tuple[str | None, ...] = ("name",)
    asked: list[Question] = field(default_factory=list)
    state: str = "1"
    fault: Exception | None = None
    pages: int = 1
    counted_from: datetime | None = None
    before_answering: Callable[[], Awaitable[None]] | None = None

    async def answer(self, question: Question) -> Answer:
        self.asked.append(question)
        if self.before_answering:
            await self.before_answering()
        if self.fault:
            raise self.fault
        metrics = self.metrics[question.subject]
        page = question.after.rank[0] + 1 if question.after else 0
        groups = [
            Group((name, *question.group_by[1:]), metrics)
            for name in self.names
            if question.group_by
        ]
        of_whom = [group.names for group in groups] if question.series_of_groups else [None]
        series = [
            Part(start, end, names, metrics)
            for start, end in pairwise(question.points)
            for names in of_whom
        ]
        rank = (page, 2**70) if question.subject == "llm" else (page,)
        after = GroupKey(rank, groups[-1].names) if page < self.pages - 1 else None
        start = self.counted_from or question.points[0]
        return Answer(start, question.points[-1], metrics, groups, series, after)

    async def version(self) -> str:
        if isinstance(self.fault, BackendUnavailable):
            raise self.fault
        return self.state


@dataclass
class Service:
    """The query service with such a reader behind it."""

    url: str
    reader: Reader
    settings: Settings

    async def get(self, path: str, method: str = "GET", **more: Any) -> requests.Response:
        return await ask(f"{self.url}/analytics/{path}", method, **more)


@pytest.fixture(scope="module")
async def shared(redis_server: Valkey) -> AsyncIterator[Service]:
    settings = Settings(
        database_url=f"postgresql://nobody@127.0.0.1:{unused_port()}/nothing",
        redis_url=redis_server.url,
        redis_queue_name="analytics_routes",
        api_key=SecretStr(API_KEY),
    )
    reader = Reader()

    def opened(_: Settings) -> AbstractAsyncContextManager[Reader]:
        return nullcontext(reader)

    async with served(create_app(settings, analytics=opened)) as url:
        yield Service(url, reader, settings)


@pytest.fixture
def service(shared: Service) -> Service:
    vars(shared.reader).update(vars(Reader()))
    return shared


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


async def test_an_answer_has_the_shape_that_is_promised(service: Service, subject: str) -> None:
    answer = await service.get(f"{subject}?days=3&timezone=Asia/Kolkata")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/json"
    document = answer.json()
    members = ["period", "metrics", "groups", "series", "groups_next_cursor", "watermark"]
    assert list(document) == members + (["percentiles"] if subject != "usage" else [])
    assert list(document["period"]) == ["start", "end", "timezone"]
    assert list(document["watermark"]) == ["complete_to", "queued"]
    assert document["groups_next_cursor"] is None
    assert len(document["groups"]) == (1 if subject == "performance" else 0)
    assert len(document["series"]) == 4
    for part in document["series"]:
        assert {name: part[name] for name in document["metrics"]} == document["metrics"]


async def test_the_example_of_the_contract_works_as_it_is_written(service: Service) -> None:
    data = (await service.get("llm?days=7")).json()
    assert data["metrics"]["total_cost"] == 0.001234567


async def test_the_metrics_are_those_of_the_contract(service: Service) -> None:
    usage = (await service.get("usage")).json()["metrics"]
    assert usage == {
        "total_events": 12,
        "unique_sessions": 3,
        "unique_users": 4,
        "events_per_day": 1.7,
        "error_rate": 0.25,
    }
    reviews = (await service.get("reviews")).json()["metrics"]
    assert reviews["findings"] == {"error": 1, "warning": 2, "info": 3}
    assert (reviews["success_rate"], reviews["p50_cost"]) == (None, None)


async def test_estimates_are_marked(service: Service) -> None:
    service.reader.metrics["usage"] = UsageMetrics(
        9000, 4500, 4, 1.0, 0.0, unique_sessions_is_estimate=True
    )
    metrics = (await service.get("usage")).json()["metrics"]
    assert metrics["unique_sessions_is_estimate"] is True
    assert "unique_users_is_estimate" not in metrics


async def test_answers_with_percentiles_say_how_far_these_are_off(service: Service) -> None:
    assert (await service.get("llm")).json()["percentiles"] == {"relative_error": 0.01}


@pytest.mark.parametrize(
    ("cost", "text"),
    [
        (NANO, "0.000000001"),
        (0 * NANO, "0"),
        (2500 * 10**9 * NANO, "2500"),
        (Decimal("1E+3"), "1000"),
        (123456789_123456789 * NANO, "123456789.123456789"),
        (-1500 * NANO, "-0.0000015"),
    ],
)
async def test_a_cost_is_a_number_with_all_its_digits_and_no_exponent(
    service: Service, cost: Decimal, text: str
) -> None:
    service.reader.metrics["llm"] = LlmMetrics(1, 1, 1, 1, 1, 1, cost, 0, None, None, None, None)
    assert f'"total_cost":{text},' in (await service.get("llm")).text
    assert f",{text}," in (await service.get("llm", headers={"Accept": "text/csv"})).text


async def test_times_are_told_in_the_zone_that_was_asked_for(service: Service) -> None:
    times = "start_time=2026-10-31T12:00:00Z&end_time=2026-11-03T12:00:00%2B01:00"
    document = (await service.get(f"usage?{times}&timezone=America/New_York")).json()
    assert document["period"] == {
        "start": "2026-10-31T08:00:00-04:00",
        "end": "2026-11-03T06:00:00-05:00",
        "timezone": "America/New_York",
    }
    assert [part["start"] for part in document["series"]] == [
        "2026-10-31T08:00:00-04:00",
        "2026-11-01T00:00:00-04:00",
        "2026-11-02T00:00:00-05:00",
        "2026-11-03T00:00:00-05:00",
    ]
    ends = [part["end"] for part in document["series"]]
    assert ends == [part["start"] for part in document["series"][1:]] + [document["period"]["end"]]


async def test_a_zone_whose_plus_was_lost_is_understood(service: Service) -> None:
    document = (await service.get("usage?timezone=Etc/GMT+5")).json()
    assert document["period"]["timezone"] == "Etc/GMT+5"
    assert document["period"]["end"].endswith("-05:00")


async def test_the_period_told_is_the_one_that_was_counted(service: Service) -> None:
    service.reader.counted_from = datetime(2026, 1, 1, tzinfo=UTC)
    document = (await service.get("llm")).json()
    assert document["period"]["start"] == "2026-01-01T00:00:00Z"


async def test_a_group_has_each_dimension_by_its_name(service: Service) -> None:
    service.reader.names = ("gpt-4o", None)
    groups = (await service.get("llm?group_by=model&group_by=user_id")).json()["groups"]
    assert [(group["model"], group["user_id"]) for group in groups] == [
        ("gpt-4o", "user_id"),
        (None, "user_id"),
    ]
    assert list(groups[0])[2:] == list((await service.get("llm")).json()["metrics"])


async def test_a_series_of_groups_has_the_dimensions(service: Service) -> None:
    service.reader.names = ("a", "b")
    times = "start_time=2026-11-01T00:00:00Z&end_time=2026-11-03T00:00:00Z"
    document = (await service.get(f"llm?{times}&interval=day&group_by=model&series=groups")).json()
    assert [part["model"] for part in document["series"]] == ["a", "b", "a", "b"]
    (together, *_) = (await service.get("llm?group_by=model")).json()["series"]
    assert "model" not in together


async def test_what_is_asked_reaches_the_reader(service: Service) -> None:
    await service.get("reviews?group_by=source,user_id&cost=reported&limit=5&series=groups")
    (question,) = service.reader.asked
    assert question.subject == "reviews"
    assert question.group_by == ("source", "user_id")
    assert (question.cost, question.limit, question.series_of_groups) == ("reported", 5, True)
    assert (question.after, question.source) == (None, None)


async def test_pages_of_groups_are_of_one_period(service: Service) -> None:
    service.reader.pages = 3
    query = "llm?days=7&group_by=model"
    document = (await service.get(query)).json()
    seen = 1
    while (cursor := document["groups_next_cursor"]) is not None:
        document = (await service.get(query, params={"cursor": cursor})).json()
        seen += 1
    assert seen == 3
    assert {question.points for question in service.reader.asked} == {
        service.reader.asked[0].points
    }
    assert [question.after for question in service.reader.asked] == [
        None,
        GroupKey((0, 2**70), ("name",)),
        GroupKey((1, 2**70), ("name",)),
    ]


@pytest.mark.parametrize("accept", ["text/csv", "application/json"])
async def test_a_link_leads_to_the_next_page(service: Service, accept: str) -> None:
    service.reader.pages = 2
    path = "usage?group_by=user_id&days=1&timezone=Etc/GMT%2B5"
    first = await service.get(path, headers={"Accept": accept})
    second = await service.get(f"usage{first.links['next']['url']}", headers={"Accept": accept})
    assert second.status_code == 200
    assert "Link" not in second.headers
    assert service.reader.asked[0].points == service.reader.asked[1].points


BAD_VALUES: list[tuple[str, str]] = [
    ("days=0", "days"),
    ("days=3661", "days"),
    ("days=-1", "days"),
    ("days=1.5", "days"),
    ("days=x", "days"),
    ("days=", "days"),
    ("days=99999999999999999999", "days"),
    ("days=1&days=2", "days"),
    ("days=1&end_time=2026-11-01T00:00:00Z", "days"),
    ("start_time=yesterday", "start_time"),
    ("start_time=2026-11-01T00:00:00", "start_time"),
    ("start_time=2026-11-01", "start_time"),
    ("start_time=", "start_time"),
    ("start_time=0001-01-01T00:00:00%2B14:00", "start_time"),
    ("start_time=2999-01-01T00:00:00Z", "start_time"),
    ("end_time=2026-13-01T00:00:00Z", "end_time"),
    ("end_time=9999-12-31T23:59:59-14:00", "end_time"),
    ("end_time=0001-01-01T00:00:00Z", "end_time"),
    ("start_time=2026-11-02T00:00:00Z&end_time=2026-11-01T00:00:00Z", "end_time"),
    ("interval=minute", "interval"),
    ("interval=", "interval"),
    ("interval=HOUR", "interval"),
    ("days=3660&interval=hour", "interval"),
    ("timezone=Mars/Olympus", "timezone"),
    ("timezone=", "timezone"),
    ("timezone=../../etc/passwd", "timezone"),
    ("timezone=/usr/share/zoneinfo/UTC", "timezone"),
    ("timezone=%00", "timezone"),
    ("timezone=localtime", "timezone"),
    ("group_by=colour", "group_by"),
    ("group_by=", "group_by"),
    ("group_by=source,", "group_by"),
    ("limit=0", "limit"),
    ("limit=1001", "limit"),
    ("limit=ten", "limit"),
    ("cursor=", "cursor"),
    ("cursor=xyz", "cursor"),
    ("cursor=%F0%9F%98%80", "cursor"),
    ("series=", "series"),
    ("series=all", "series"),
    ("colour=red", "colour"),
    ("Days=7", "Days"),
    ("timezone=UTC&timezone=UTC", "timezone"),
]
BAD_VALUES_OF: dict[str, list[tuple[str, str]]] = {
    "usage": [
        ("group_by=model", "group_by"),
        ("group_by=user_id&group_by=user_id", "group_by"),
        ("group_by=user_id,user_id", "group_by"),
        ("series=groups", "series"),
        ("cost=best", "cost"),
        ("days=30&interval=hour&group_by=user_id&series=groups", "interval"),
    ],
    "llm": [
        ("group_by=event_type", "group_by"),
        ("group_by=model&group_by=provider,model", "group_by"),
        ("series=groups", "series"),
        ("cost=", "cost"),
        ("cost=all", "cost"),
        ("cost=best&cost=best", "cost"),
    ],
    "performance": [("group_by=event_type", "group_by"), ("cost=best", "cost")],
    "reviews": [("group_by=session_id", "group_by"), ("cost=mine", "cost")],
}


@pytest.mark.parametrize(
    ("subject", "parameters", "named"),
    [(subject, *bad) for subject in SUBJECTS for bad in [*BAD_VALUES, *BAD_VALUES_OF[subject]]],
)
async def test_a_bad_value_gets_a_422_that_names_its_parameter(
    service: Service, subject: str, parameters: str, named: str
) -> None:
    answer = await service.get(f"{subject}?{parameters}")
    assert answer.status_code == 422, answer.text
    problem = answer.json()
    assert problem["type"] == "/problems/validation"
    assert {fault["loc"] for fault in problem["errors"]} == {named}
    assert not service.reader.asked


async def test_an_unknown_dimension_is_told_which_ones_there_are(service: Service) -> None:
    problem = (await service.get("usage?group_by=model")).json()
    for dimension in ("event_type", "user_id", "session_id"):
        assert dimension in problem["detail"]


CSV = {"Accept": "text/csv"}


def rows_of(answer: requests.Response) -> list[list[str]]:
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8; header=present"
    text = answer.content.decode()
    assert text.endswith("\r\n")
    return list(csv.reader(StringIO(text, newline=""), strict=True))


class TestCsv:
    async def test_has_the_groups_where_these_were_asked_for(self, service: Service) -> None:
        service.reader.names = ("gpt-4o", None)
        answer = await service.get("llm?group_by=model,source", headers=CSV)
        assert rows_of(answer) == [
            ["model", "source", *LlmMetrics.__struct_fields__],
            ["gpt-4o", "source", *LLM_CELLS],
            ["", "source", *LLM_CELLS],
        ]

    async def test_has_the_series_where_there_are_no_groups(self, service: Service) -> None:
        times = "start_time=2026-11-01T00:00:00Z&end_time=2026-11-03T00:00:00Z"
        answer = await service.get(
            f"llm?{times}&interval=day&timezone=Africa/Lagos&limit=9", headers=CSV
        )
        header, *parts = rows_of(answer)
        assert header == ["start", "end", *LlmMetrics.__struct_fields__]
        assert parts == [
            ["2026-11-01T01:00:00+01:00", "2026-11-02T00:00:00+01:00", *LLM_CELLS],
            ["2026-11-02T00:00:00+01:00", "2026-11-03T00:00:00+01:00", *LLM_CELLS],
            ["2026-11-03T00:00:00+01:00", "2026-11-03T01:00:00+01:00", *LLM_CELLS],
        ]

    async def test_of_performance_has_the_operations(self, service: Service) -> None:
        header, row = rows_of(await service.get("performance", headers=CSV))
        assert header[:3] == ["operation", "count", "success_rate"]
        assert row[:3] == ["name", "9", "0.75"]

    async def test_has_the_series_of_groups_where_that_was_asked_for(
        self, service: Service
    ) -> None:
        service.reader.names = ("a", "b")
        query = "usage?days=1&interval=day&group_by=user_id&series=groups"
        header, *parts = rows_of(await service.get(query, headers=CSV))
        assert header[:3] == ["user_id", "start", "end"]
        assert [part[0] for part in parts] == ["a", "b", "a", "b"]

    async def test_has_a_column_for_each_severity_and_for_each_mark(self, service: Service) -> None:
        reviews = rows_of(await service.get("reviews?group_by=user_id", headers=CSV))
        assert reviews[0][-3:] == ["findings_error", "findings_warning", "findings_info"]
        assert reviews[1][-3:] == ["1", "2", "3"]
        usage = rows_of(await service.get("usage?group_by=user_id", headers=CSV))
        assert usage[0][-2:] == ["unique_sessions_is_estimate", "unique_users_is_estimate"]
        assert usage[1][-2:] == ["false", "false"]

    async def test_without_any_group_has_the_header_alone(self, service: Service) -> None:
        service.reader.names = ()
        header, *groups = rows_of(await service.get("usage?group_by=user_id", headers=CSV))
        assert header[0] == "user_id"
        assert groups == []

    @pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"])
    async def test_a_name_that_is_a_formula_is_made_harmless(
        self, service: Service, first: str
    ) -> None:
        service.reader.names = (f'{first}HYPERLINK("http://x","y")', f"a{first}")
        _, *groups = rows_of(await service.get("usage?group_by=user_id", headers=CSV))
        assert [group[0] for group in groups] == [
            f'\'{first}HYPERLINK("http://x","y")',
            f"a{first}",
        ]

    async def test_a_name_with_commas_quotes_and_lines_stays_one_cell(
        self, service: Service
    ) -> None:
        service.reader.names = ('a,"b"\r\nc\nü😀',)
        _, group = rows_of(await service.get("usage?group_by=user_id", headers=CSV))
        assert group[0] == 'a,"b"\r\nc\nü😀'

    async def test_is_a_file_to_be_kept(self, service: Service) -> None:
        answer = await service.get("usage?start_time=2026-11-01T00:00:00Z", headers=CSV)
        expected = 'attachment; filename="usage-2026-11-01.csv"'
        assert answer.headers["Content-Disposition"] == expected

    @pytest.mark.parametrize(
        ("accept", "form"),
        [
            ("text/csv", "text/csv"),
            ("TEXT/CSV; charset=utf-8", "text/csv"),
            ("text/*", "text/csv"),
            ("text/csv, */*;q=0.1", "text/csv"),
            ("application/json;q=0.5, text/csv;q=0.9", "text/csv"),
            ("text/csv;q=1.0, application/json;q=0.999", "text/csv"),
            ("*/*", "application/json"),
            ("", "application/json"),
            ("application/json", "application/json"),
            ("text/html, application/xhtml+xml, */*;q=0.8", "application/json"),
            ("application/json, text/csv;q=0.9", "application/json"),
            ("text/csv;q=0, */*", "application/json"),
            ("text/csv, application/*", "application/json"),
            ("text/csv;q=nonsense", "application/json"),
            ("image/png", "application/json"),
            (";;,,q=1;/", "application/json"),
        ],
    )
    async def test_comes_to_who_likes_it_better_than_json(
        self, service: Service, accept: str, form: str
    ) -> None:
        answer = await service.get("usage", headers={"Accept": accept})
        assert answer.status_code == 200
        assert answer.headers["Content-Type"].startswith(form)


async def a_minute_that_lasts() -> None:
    second = datetime.now(UTC).second
    await asyncio.sleep(60 - second if second > 50 else 0)


class Later:
    """A clock that is a minute ahead."""

    @staticmethod
    def now(zone: tzinfo) -> datetime:
        return datetime.now(zone) + timedelta(minutes=1)


class TestPolling:
    async def test_an_answer_that_is_known_costs_no_reading(self, service: Service) -> None:
        await a_minute_that_lasts()
        first = await service.get("llm?group_by=model")
        assert first.headers["Cache-Control"] == "private, no-cache"
        tag = first.headers["ETag"]
        for known in (tag, f'"other", {tag}', tag.removeprefix("W/"), "*"):
            again = await service.get("llm?group_by=model", headers={"If-None-Match": known})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["ETag"] == tag
            assert again.headers["Vary"] == "Accept, X-API-Key, Authorization"
        assert len(service.reader.asked) == 1

    async def test_every_minute_has_an_answer_of_its_own(
        self, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tag = (await service.get("llm")).headers["ETag"]
        monkeypatch.setattr(analytics_routes, "datetime", Later)
        answer = await service.get("llm", headers={"If-None-Match": tag})
        assert answer.status_code == 200

    @pytest.mark.parametrize("known", ["", "x", '"', 'W/"other"', "W/*"])
    async def test_an_answer_that_is_not_known_is_given(self, service: Service, known: str) -> None:
        answer = await service.get("llm", headers={"If-None-Match": known})
        assert answer.status_code == 200

    async def test_every_question_form_and_state_has_a_tag_of_its_own(
        self, service: Service
    ) -> None:
        asked: list[tuple[str, dict[str, str]]] = [
            ("llm", {}),
            ("llm", CSV),
            ("llm?days=8", {}),
            ("llm?cost=reported", {}),
            ("reviews", {}),
        ]
        tags = {(await service.get(path, headers=form)).headers["ETag"] for path, form in asked}
        service.reader.state = "2"
        tags |= {(await service.get(path, headers=form)).headers["ETag"] for path, form in asked}
        assert len(tags) == 2 * len(asked)


class TestWatermark:
    async def test_tells_what_waits(self, service: Service) -> None:
        received = datetime.now(UTC) - timedelta(seconds=60)
        event = an_event(received_at=wire.to_micros(received))
        async with open_queue(service.settings) as queue:
            await queue.put([event])
            watermark = (await service.get("usage")).json()["watermark"]
            assert watermark["queued"] == 1
            told = datetime.fromisoformat(watermark["complete_to"])
            assert told == received - timedelta(seconds=1)
            delivery = await queue.take(1, 0)
            assert delivery
            await queue.done(delivery)
            watermark = (await service.get("usage")).json()["watermark"]
        assert watermark["queued"] == 0
        assert datetime.fromisoformat(watermark["complete_to"]) > received

    async def test_is_read_before_the_answer_is(self, service: Service) -> None:
        async with open_queue(service.settings) as queue:
            await queue.put([an_event()])
            service.reader.before_answering = partial(empty, queue)
            assert (await service.get("usage")).json()["watermark"]["queued"] == 1
            assert (await queue.status()).size == 0


async def empty(queue: EventQueue) -> None:
    delivery = await queue.take(1, 0)
    assert delivery
    await queue.done(delivery)


async def test_what_was_stored_is_in_the_answer_and_a_poll_learns_of_more(
    settings: Settings, database_url: str
) -> None:
    call = {"provider": "openai", "model": "gpt-4o", "input_tokens": 1000, "output_tokens": 100}
    async with (
        open_postgres_store(database_url, connections=2) as store,
        served(create_app(settings)) as url,
    ):
        await a_minute_that_lasts()
        known: dict[str, str] = {}
        for calls in (1, 2):
            event = an_event("llm_query_sent", payload=call)
            await store.append(Sorted(a_delivery(event), [event]))
            answer = await ask(f"{url}/analytics/llm?days=7", headers=known)
            data = answer.json(parse_float=Decimal)
            assert data["metrics"]["total_cost"] == calls * Decimal("0.0035")
            known = {"If-None-Match": answer.headers["ETag"]}
            again = await ask(f"{url}/analytics/llm?days=7", headers=known)
            assert again.status_code == 304


async def test_head_answers_like_get_without_a_body(service: Service, subject: str) -> None:
    answer = await service.get(f"{subject}?days=2", "HEAD")
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["Content-Length"]) > 0
    assert answer.headers["ETag"]
    assert (await service.get(f"{subject}?days=0", "HEAD")).status_code == 422
    refused = await service.get(subject, "POST")
    assert (refused.status_code, refused.headers["Allow"]) == (405, "GET")


async def test_reading_needs_a_key_with_the_scope(service: Service, subject: str) -> None:
    behind_a_proxy = {"X-Forwarded-For": "192.0.2.1"}
    assert (await service.get(subject, headers=behind_a_proxy)).status_code == 401
    assert (await service.get(subject, "HEAD", headers=behind_a_proxy)).status_code == 401
    assert (await service.get(subject, headers={"X-API-Key": "wrong"})).status_code == 401
    assert not service.reader.asked
    good = {**behind_a_proxy, "X-API-Key": API_KEY}
    assert (await service.get(subject, headers=good)).status_code == 200


async def test_a_database_that_is_away_is_told(service: Service) -> None:
    service.reader.fault = BackendUnavailable("postgresql: away")
    answer = await service.get("usage", headers={"If-None-Match": "*"})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")


async def test_a_question_that_takes_too_long_is_refused(service: Service) -> None:
    service.reader.fault = QueryRejected("period", "is too long")
    answer = await service.get("usage")
    assert answer.status_code == 422
    assert "ETag" not in answer.headers


async def test_the_openapi_document_describes_the_answers(service: Service, subject: str) -> None:
    service.reader.names = ("gpt-4o",)
    document = (await ask(f"{service.url}/openapi.json")).json()
    operation = document["paths"][f"/analytics/{subject}"]["get"]
    content = operation["responses"]["200"]["content"]
    assert "text/csv" in content
    answer = (await service.get(f"{subject}?group_by={DIMENSIONS[subject]}&days=3")).json()
    example, schema = content["application/json"]["example"], content["application/json"]["schema"]
    assert list(example) == list(answer) == list(schema["properties"])
    for member in ("metrics", "period", "watermark"):
        assert list(example[member]) == list(answer[member])
    assert list(example["groups"][0]) == list(answer["groups"][0])
    assert list(example["series"][0]) == list(answer["series"][0])
    parameters = {parameter["name"] for parameter in operation["parameters"]}
    assert parameters >= {"days", "start_time", "end_time", "interval", "timezone", "group_by"}


async def test_costs_are_numbers_in_the_openapi_document(service: Service) -> None:
    document = (await ask(f"{service.url}/openapi.json")).json()
    schemas = document["components"]["schemas"]
    assert schemas["LlmMetrics"]["properties"]["total_cost"] == {"type": "number"}
    assert {"type": "number"} in schemas["ReviewMetrics"]["properties"]["avg_cost"]["anyOf"]
