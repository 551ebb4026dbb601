"""What is believed of a model's answer, and where in the code it is put."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_stub import finding, review_text

from code_reviewer.anchors import Anchors, in_original
from code_reviewer.answers import Answer, Reading, read_answer
from code_reviewer.findings import Category, Finding, Options, Place, Severity

LINES = (
    "def mean(xs):",
    "\ttotal = sum( xs )",
    "",
    "    return total / len(xs)",
    "",
    "total = sum( xs )",
)


def read(text: str, lines: tuple[str, ...] = LINES, **more: object) -> Answer:
    known = more.pop("known", ())
    return read_answer(text, Reading(lines, lines, known, Options(**more)))  # type: ignore[arg-type]


def static(line: int, category: Category) -> Finding:
    start, end = Place(line, 1), Place(line, 2)
    return Finding("fp:1", "ruff", "B000", category, Severity.WARNING, start, end, "known")


class TestPlaces:
    @pytest.mark.parametrize(
        ("quote", "stated", "start", "end"),
        [
            ("return total / len(xs)", 4, (4, 5), (4, 27)),
            ("return   total /\tlen(xs)", 1, (4, 5), (4, 27)),
            ("total = sum( xs )", 3, (2, 2), (2, 19)),
            ("total = sum( xs )", 5, (6, 1), (6, 18)),
            ("total = sum( xs )", 10**30, (6, 1), (6, 18)),
            ("total = sum( xs )", -7, (2, 2), (2, 19)),
            ("sum( xs )\n\n    return total", 2, (2, 10), (4, 17)),
            ("4|     return total / len(xs)", 4, (4, 5), (4, 27)),
            ("total = sum( xs )\nreturn total", 1, (2, 2), (4, 17)),
            ("len(xs)\ntotal", 1, (4, 20), (6, 6)),
        ],
    )
    def test_a_quote_is_found_nearest_to_the_stated_line(
        self, quote: str, stated: int, start: tuple[int, int], end: tuple[int, int]
    ) -> None:
        assert Anchors(LINES).find(quote, stated) == (Place(*start), Place(*end))

    @pytest.mark.parametrize("quote", ["", " \n ", "return xs", "xs", ":", "total\nmean", "/"])
    def test_what_is_not_there_or_anywhere_is_not_found(self, quote: str) -> None:
        assert Anchors(LINES).find(quote, 1) is None

    def test_two_signs_are_found_where_they_are_the_line(self) -> None:
        assert Anchors(("x = f(", ")", ")", "y")).find(")", 4) == (Place(3, 1), Place(3, 2))

    def test_no_code_has_no_place(self) -> None:
        assert Anchors(("", " ")).find("def", 1) is None

    @given(st.lists(st.text("ab \tx", max_size=6), max_size=8), st.integers(-2, 10), st.data())
    def test_every_part_of_the_code_is_found_where_it_says_it_is(
        self, lines: list[str], stated: int, data: st.DataObject
    ) -> None:
        code = "\n".join(lines)
        begin = data.draw(st.integers(0, len(code)))
        quote = code[begin : data.draw(st.integers(begin, len(code)))]
        found = Anchors(lines).find(quote, stated)
        words = quote.split()
        if len(" ".join(words)) < 3:
            return
        assert found is not None
        start, end = found
        inside = lines[start.line - 1 : end.line]
        inside[-1] = inside[-1][: end.column - 1]
        inside[0] = inside[0][start.column - 1 :]
        assert "".join("".join(inside).split()) == "".join(words)

    def test_code_made_to_be_slow_is_not(self) -> None:
        lines = ["a" * 250_000, *("a " * 500 for _ in range(5))]
        anchors = Anchors(lines)
        for _ in range(50):
            assert anchors.find("a" * 900 + "b", 4) is None
            assert anchors.find("b" + "a" * 900, 4) is None

    @pytest.mark.parametrize(
        ("column", "is_end", "original"),
        [
            (1, False, 1),
            (5, False, 5),
            (7, False, 6),
            (15, False, 11),
            (15, True, 11),
            (9, True, 10),
        ],
    )
    def test_a_place_behind_a_secret_is_where_it_was_sent(
        self, column: int, original: int, *, is_end: bool
    ) -> None:
        # k = "[secret]"; f()  came from  k = "abcd"; f()
        seen, sent = 'k = "[secret]"; f()', 'k = "abcd"; f()'
        place = in_original(Place(1, column), seen, sent, is_end=is_end)
        assert place == Place(1, original)


class TestReading:
    def test_what_the_linter_told_on_that_line_is_not_told_again(self) -> None:
        text = review_text(
            finding(2, "total = sum( xs )"),
            finding(2, "total = sum( xs )", category="security"),
            finding(4, "return total"),
        )
        answer = read(text, known=[static(2, Category.BUG)])
        told = [(found.start.line, found.rule) for found in answer.findings]
        assert told == [(2, "llm-security"), (4, "llm-bug")]
        assert answer.repeated == 1

    def test_the_model_does_not_count_twice_what_it_says_twice(self) -> None:
        twice = [finding(4, "return total")] * 2 + [finding(4, "len(xs)", message="Other.")]
        answer = read(review_text(*twice))
        assert (len(answer.findings), answer.repeated) == (2, 1)
        assert len({found.id for found in answer.findings}) == 2

    def test_an_id_survives_moved_lines_and_new_indentation(self) -> None:
        text = review_text(finding(4, "return total / len(xs)"))
        moved = ("", "x = 1", *(f"  {line}" for line in LINES))
        assert [one.id for one in read(text).findings] == [
            one.id for one in read(text, moved).findings
        ]

    def test_findings_below_the_wanted_severity_are_left_out(self) -> None:
        text = review_text(finding(1, "def mean", severity="info"), finding(4, "return total"))
        answer = read(text, min_severity=Severity.WARNING)
        assert ([found.start.line for found in answer.findings], answer.beyond) == ([4], 1)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"severity": "critical"},
            {"category": "style"},
            {"category": None},
            {"message": 7},
            {"message": " \n"},
            {"quote": None},
            {"line": "here"},
            {"line": None},
            {"suggestion": ["x"]},
        ],
    )
    def test_a_finding_of_another_form_is_dropped(self, wrong: dict[str, object]) -> None:
        answer = read(review_text(finding(4, "return total") | wrong))
        assert (answer.findings, answer.dropped) == ((), 1)

    def test_texts_are_short_and_of_visible_signs(self) -> None:
        nasty = "\x1b[31m\u202eevil\r\n\x00" * 999
        text = review_text(
            finding(4, "return total", message=nasty, suggestion=f"a\n{nasty}"), summary=nasty
        )
        answer = read(text)
        (found,) = answer.findings
        assert found.fix is not None
        assert found.fix.message is not None
        assert answer.summary is not None
        assert found.message.isprintable()
        assert answer.summary.isprintable()
        assert found.fix.message.replace("\n", "").isprintable()
        assert (len(found.message), len(answer.summary)) == (1000, 1000)

    def test_the_feedback_that_is_kept_quotes_no_code(self) -> None:
        answer = read(review_text(finding(4, "return total / len(xs)", suggestion="Check it.")))
        assert "total / len" not in answer.feedback()
        (kept,) = json.loads(answer.feedback())["findings"]
        assert (kept["line"], kept["suggestion"], kept["severity"]) == (4, "Check it.", "warning")

    @pytest.mark.parametrize(
        ("text", "parsed"),
        [
            ('{"summary": "x", "findings": []}', "strict"),
            ('{"summary": "x"}', "strict"),
            ('{"summary": "x", "findings": [', "partial"),
            ('```\n{"summary": "x"}\n```', "partial"),
            ('I use {braces} and {"json": 1}. {"summary": "x"}', "partial"),
            ('{"summary": "x"} {"summary": "y"}', "partial"),
            ('{"answer": 1}', "failed"),
            ("[]", "failed"),
            ("{" * 100_000, "failed"),
            ('{"findings":' * 10_000, "failed"),
        ],
    )
    def test_how_an_answer_was_read(self, text: str, parsed: str) -> None:
        assert read(text).parsed == parsed

    @given(
        st.text()
        | st.builds(
            json.dumps,
            st.recursive(
                st.none() | st.integers() | st.text() | st.floats(),
                lambda inner: (
                    st.lists(inner)
                    | st.dictionaries(
                        st.sampled_from(
                            [
                                "summary",
                                "findings",
                                "line",
                                "quote",
                                "severity",
                                "category",
                                "message",
                            ]
                        ),
                        inner,
                    )
                ),
            ),
        )
    )
    def test_no_answer_breaks_the_reader(self, text: str) -> None:
        answer = read(text)
        assert all(1 <= found.start.line <= len(LINES) for found in answer.findings)
