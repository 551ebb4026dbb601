"""The report in a terminal: carets under what is meant, colours, and lines that are too long."""

from io import StringIO
from typing import Literal

import msgspec
import pytest
from reviews_made import UNUSED, a_finding, a_review
from rich.cells import cell_len
from rich.console import Console

from code_reviewer.findings import Finding, Fix, LlmReport, Place, Review
from logging_service.review_answers import read_answer
from logging_service.review_report import print_report
from logging_service.review_sources import Source


def report(review: Review, code: str = "x = 1\n", *, terminal: bool = False) -> str:
    out = StringIO()
    answer = read_answer(Source("app.py", code), msgspec.json.encode(review))
    colours: Literal["standard"] | None = "standard" if terminal else None
    console = Console(file=out, force_terminal=terminal, color_system=colours, width=80)
    print_report(console, [answer])
    return out.getvalue()


def at(line: int, start: int, end: int, **more: object) -> Finding:
    return a_finding(start=Place(line, start), end=Place(line, end), **more)


@pytest.mark.parametrize(
    ("code", "start", "end", "marked"),
    [
        ("return eval(x)", 8, 15, "eval(x)"),
        ("\tif\teval(x)", 5, 9, "eval"),
        ("名前 = eval(x)", 6, 10, "eval"),
        ("x = '\x1b[2J' + eval(x)", 14, 18, "eval"),
        ("e\u0301te\u0301 = eval(x)", 9, 13, "eval"),
        ("a" * 500 + " = eval(x) " + "b" * 500, 504, 508, "eval"),
    ],
)
def test_carets_stand_under_what_is_meant(code: str, start: int, end: int, marked: str) -> None:
    lines = report(a_review(at(1, start, end)), code).splitlines()
    shown, carets = lines[1], lines[2]
    before = shown[: shown.index(marked)]
    assert cell_len(before) == carets.index("^")
    assert carets.count("^") == cell_len(marked)
    assert len(shown) < 250


def test_a_finding_over_several_lines_is_marked_to_the_end_of_the_first() -> None:
    finding = a_finding(start=Place(1, 5), end=Place(3, 2))
    lines = report(a_review(finding), "x = (1 +\n2\n)\n").splitlines()
    assert lines[1:3] == ["    1 | x = (1 +", "      |     ^^^^"]


@pytest.mark.parametrize("place", [Place(0, 0), Place(99, 1), Place(1, 99), Place(2, 1)])
def test_a_place_outside_the_code_is_no_failure(place: Place) -> None:
    text = report(a_review(a_finding(start=place, end=place)))
    assert "S307" in text
    assert "app.py: fail" in text


def test_a_terminal_gets_colours_and_a_link_to_the_rule() -> None:
    text = report(a_review(at(1, 1, 2)), terminal=True)
    assert "\x1b[1;31m" in text
    assert "https://docs.astral.sh/ruff/rules/suspicious-eval-usage" in text


def test_an_address_that_is_no_plain_one_is_no_link() -> None:
    text = report(a_review(at(1, 1, 2, url="https://x/\x1b\\evil")), terminal=True)
    assert "evil" not in text


def test_suppressed_findings_say_so_and_fixes_are_told() -> None:
    lines = report(a_review(UNUSED)).splitlines()
    assert lines[0].endswith("`os` imported but unused  (suppressed)")
    assert "      fix (safe): Remove unused import: `os`" in lines
    words = report(a_review(at(1, 1, 2, fix=Fix("display", "one\ntwo\x1b"))))
    assert "fix (display): one two\\x1b" in words


@pytest.mark.parametrize(
    ("llm", "told"),
    [
        (LlmReport("disabled"), "ms\n"),
        (LlmReport("failed", "m", 3), "m: 0 tokens, cost unknown\n"),
        (LlmReport("ok", "m", 1, cost_usd="0.10"), "m: 0 tokens, $0.10\n"),
    ],
)
def test_what_the_model_cost_is_told_where_one_was_asked(llm: LlmReport, told: str) -> None:
    assert report(a_review(llm=llm)).endswith(told)


def test_a_long_message_stays_one_line_for_tools_that_read_lines() -> None:
    lines = report(a_review(at(1, 1, 2, message="word " * 200))).splitlines()
    assert lines[0].count("word") == 200


def test_a_cut_off_or_cached_review_says_so() -> None:
    text = report(a_review(truncated=True, cached=True, llm=LlmReport("disabled")))
    assert "there were more findings than are kept" in text
    assert "2425 ms, cached\n" in text
