"""The query benchmark: what it stores, what it asks, what it makes of the answers."""

import json
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest
from servers import processes_of, run_tool

from bench.query_events import DAYS, MODELS, USERS, Batch, Plan, batch_of
from bench.query_figures import figures_of
from bench.query_fill import Filled
from bench.query_questions import FIRST_PAGE, Answers, Kind, Question, questions_about
from logging_service import wire
from logging_service.pricing import Prices
from logging_service.usage import usage_of

PLAN = Plan.of(100_000, wire.now_micros())


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    return [batch_of(PLAN, number) for number in range(PLAN.batches)]


@pytest.fixture(scope="module")
def events(batches: list[Batch]) -> list[wire.Decoded]:
    return [wire.decode(element) for batch in batches for element in batch.elements]


def test_every_session_has_twelve_events_and_ends_with_its_review(
    events: list[wire.Decoded],
) -> None:
    assert len(events) == PLAN.events == 99_996
    sessions: dict[str | None, list[str]] = {}
    for event in sorted(events, key=lambda event: event.timestamp):
        sessions.setdefault(event.session_id, []).append(event.event_type)
    assert {len(types) for types in sessions.values()} == {12}
    assert {(types[0], types[-1]) for types in sessions.values()} == {
        ("review_started", "review_completed")
    }


def test_one_event_in_five_is_a_model_call_and_one_in_a_hundred_an_error(
    events: list[wire.Decoded],
) -> None:
    types = Counter(event.event_type for event in events)
    assert types["llm_query_sent"] / len(events) == pytest.approx(0.2, abs=0.005)
    assert types["error_occurred"] / len(events) == pytest.approx(0.01, abs=0.002)


def test_the_events_fill_the_thirty_days_evenly_and_each_has_the_time_it_was_received(
    batches: list[Batch], events: list[wire.Decoded]
) -> None:
    until = wire.from_micros(PLAN.until)
    days = Counter((until - wire.from_micros(event.timestamp)) // timedelta(1) for event in events)
    assert set(days) == set(range(DAYS))
    assert min(days.values()) > 0.9 * len(events) / DAYS
    for batch in batches:
        received = [wire.received_at(element) for element in batch.elements]
        assert batch.received == received == sorted(received)
    assert {event.received_at - event.timestamp < 1000 for event in events} == {True}


def test_users_models_and_payloads_are_what_is_published(events: list[wire.Decoded]) -> None:
    payloads = [json.loads(event.payload) for event in events]
    assert len({payload["user_id"] for payload in payloads}) > 0.95 * USERS
    calls = Counter((one["provider"], one["model"]) for one in payloads if "model" in one)
    assert set(calls) == set(MODELS)
    assert len(MODELS) == 40
    assert calls[MODELS[0]] > 5 * calls[MODELS[20]] > calls[MODELS[-1]] > 0
    assert 150 < sum(len(event.payload) for event in events) / len(events) < 250


def test_all_but_a_few_models_have_a_price() -> None:
    prices, now = Prices(), wire.from_micros(PLAN.until)
    sent = ({"provider": one, "model": two, "input_tokens": 9} for one, two in MODELS)
    priced = [prices.cost_of(usage_of(payload), now).nanos is not None for payload in sent]
    assert 35 <= sum(priced) < 40


def test_a_batch_has_the_same_payloads_every_time(batches: list[Batch]) -> None:
    again = [wire.decode(element).payload for element in batch_of(PLAN, 3).elements]
    assert again == [wire.decode(element).payload for element in batches[3].elements]


def test_every_size_is_asked_the_same_questions() -> None:
    one, other = questions_about(PLAN), questions_about(Plan.of(12, PLAN.until))
    assert [question.name for question in one] == [question.name for question in other]
    assert len({question.name for question in one}) == len(one)
    asked = {question.path.partition("?")[0] for question in one}
    assert asked == {
        "/events",
        "/analytics/usage",
        "/analytics/llm",
        "/analytics/performance",
        "/analytics/reviews",
    }


def answers(*milliseconds: float, **unexpected: int) -> Answers:
    seen = Counter({int(status[1:]): number for status, number in unexpected.items()})
    return Answers(sorted(milliseconds), seen)


def judged(kind: Kind, small: Answers, large: Answers) -> tuple[float | None, bool]:
    """Judge a question beside a first page of 10 ms."""
    filled = [Filled("", Plan(size, 0), 1.0, 1) for size in (1, 10)]
    question = Question("asked", kind, "/")
    first = Question(FIRST_PAGE, "page", "/events"), [answers(10), answers(10)]
    figures = figures_of(filled, [first, (question, [small, large])])
    return figures.questions[1].ratio, figures.questions[1].holds


@pytest.mark.parametrize(
    ("kind", "small", "large", "judgement"),
    [
        ("analytics", answers(20), answers(30), (1.5, True)),
        ("analytics", answers(20), answers(31), (1.55, False)),
        ("analytics", answers(50), answers(50), (1.0, True)),
        ("analytics", answers(50), answers(50.1), (1.0, False)),
        ("page", answers(1), answers(15), (1.5, True)),
        ("page", answers(20), answers(16), (1.6, False)),
        ("analytics", answers(20), answers(20, _500=1), (None, False)),
        ("page", answers(_503=3), answers(9), (0.9, False)),
    ],
)
def test_a_bar_holds_by_the_slower_tail_and_never_where_answers_are_missing(
    kind: Kind, small: Answers, large: Answers, judgement: tuple[float | None, bool]
) -> None:
    assert judged(kind, small, large) == judgement


def test_a_percentile_is_told_unless_other_answers_came_as_often() -> None:
    assert answers(1, 2, 3, _304=2).at(50) == 2
    assert answers(1, 2, _304=2).at(50) is None


def test_a_short_run_answers_every_question_and_leaves_nothing(tmp_path: Path) -> None:
    arguments = ("--events", "600", "1200", "--requests", "2")
    with run_tool("bench", tmp_path, *arguments, script="query") as run:
        out, err = run.communicate(timeout=180)
    assert run.returncode == 0, err
    *table, last = out.splitlines()
    figures = json.loads(last)
    assert figures["events"] == [600, 1200]
    assert [one["question"] for one in figures["questions"]] == [
        question.name for question in questions_about(PLAN)
    ]
    assert [one["question"] for one in figures["questions"] if None in one["p95_ms"]] == []
    assert not any(line.startswith("{") for line in table)
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []
