"""What the answers to queries took, whether that holds the bars, and how it is printed."""

import json
from collections import Counter
from collections.abc import Sequence

import msgspec
from rich.console import Console
from rich.table import Table

from bench.machine import Others, description
from bench.query_fill import Filled
from bench.query_questions import FIRST_PAGE, Answers, Kind, Question

MOST_MS = 50.0
MOST_RATIO = 1.5


class QuestionFigures(msgspec.Struct):
    """Milliseconds for each number of events; None where it was not answered as expected.

    `ratio` is of p95: with analytics the most events to the fewest, with pages of the most events
    to their first page.
    """

    question: str
    kind: Kind
    p50_ms: list[float | None]
    p95_ms: list[float | None]
    ratio: float | None
    holds: bool
    unexpected: dict[str, int]


class QueryFigures(msgspec.Struct):
    """Everything, in the order in which it is printed."""

    events: list[int]
    fill_seconds: list[float]
    questions: list[QuestionFigures]

    def line(self) -> str:
        """Return the figures as one line of JSON."""
        return json.dumps(msgspec.to_builtins(self))


def figures_of(
    filled: Sequence[Filled], asked: Sequence[tuple[Question, Sequence[Answers]]]
) -> QueryFigures:
    """Judge what was seen; answers stand in the order of `filled`, fewest events first."""
    first_page = next(answers[-1].at(95) for question, answers in asked if _is_first(question))
    return QueryFigures(
        [one.plan.events for one in filled],
        [round(one.seconds, 1) for one in filled],
        [_judged(question, answers, first_page) for question, answers in asked],
    )


def _is_first(question: Question) -> bool:
    return question.name == FIRST_PAGE


def _judged(
    question: Question, answers: Sequence[Answers], first_page: float | None
) -> QuestionFigures:
    p95 = [one.at(95) for one in answers]
    is_page = question.kind == "page"
    unexpected = sum((one.unexpected for one in answers), Counter[int]())
    reference = first_page if is_page else p95[0]
    ratio = round(p95[-1] / reference, 2) if p95[-1] is not None and reference else None
    return QuestionFigures(
        question.name,
        question.kind,
        [one.at(50) for one in answers],
        p95,
        ratio,
        _holds(p95, ratio, is_page=is_page),
        {str(status): number for status, number in unexpected.items()},
    )


def _holds(p95: Sequence[float | None], ratio: float | None, *, is_page: bool) -> bool:
    slowest = max((one for one in p95 if one is not None), default=0.0)
    fast = is_page or slowest <= MOST_MS
    return None not in p95 and ratio is not None and ratio <= MOST_RATIO and fast


def show(console: Console, figures: QueryFigures, filled: Sequence[Filled], others: Others) -> None:
    """Print a table for a person, and what explains it."""
    columns = (f"{size:,}: p50 / p95 ms" for size in figures.events)
    table = Table("question", *columns, "ratio", "bar", "", box=None, pad_edge=False)
    for one in figures.questions:
        table.add_row(*_row(one))
    console.print(table)
    for of in filled:
        rate = of.plan.events / of.seconds
        console.print(
            f"{of.plan.events:,} events: stored in {of.seconds:,.0f} s ({rate:,.0f} events/s), "
            f"{of.bytes / 1e9:.1f} GB"
        )
    console.print(f"other programs: {others.share():.0%} of a processor meanwhile")
    console.print(description())


def _row(one: QuestionFigures) -> list[str]:
    times = [
        f"{_text(p50)} / {_text(p95)}" for p50, p95 in zip(one.p50_ms, one.p95_ms, strict=True)
    ]
    bar = f"≤ {MOST_RATIO} of page 1"
    if one.kind == "analytics":
        bar = f"≤ {MOST_MS:.0f} ms, ≤ {MOST_RATIO}"
    verdict = "holds" if one.holds else "does not hold"
    if one.unexpected:
        seen = (f"{status} ({number} times)" for status, number in one.unexpected.items())
        verdict += f"; answered {', '.join(seen)}"
    return [one.question, *times, _text(one.ratio), bar, verdict]


def _text(number: float | None) -> str:
    return "-" if number is None else f"{number:,}"
