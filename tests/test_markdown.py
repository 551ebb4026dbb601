"""The Markdown of a review: what it shows, and what hostile text cannot do in it."""

import re

import pytest
from markdown_it import MarkdownIt
from reviews_made import CODE, FROM_MODEL, UNUSED, a_finding, a_review

from code_reviewer.findings import CodeMetrics, Fix, FunctionComplexity, LlmReport, Place
from code_reviewer.markdown import markdown

# HTML and bare addresses are alive here, as they are where reviews are posted.
READER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])

HOSTILE = [
    "<script>alert(1)</script>",
    "[click](javascript:alert(1))",
    "![x](https://evil.example/pixel)",
    "<https://evil.example>",
    "**bold** _it_ ~~gone~~ # heading",
    "# heading",
    "- item",
    "1. item",
    "12) item",
    "> quote",
    "+ item",
    "=====",
    "---",
    "line\n\n# two\n\n<b>x</b>",
    "`` ` `` <b>`</b>`<i>`",
    "```\n</code></pre><script>",
    "[x]: https://evil.example",
    "&lt;b&gt; &amp;",
    "a | b | c\\",
    "| a |\n|---|\n| b |",
]


def rendered(text: str) -> str:
    return re.sub(r"<[^>]*>", "", READER.render(text))


def tags(text: str) -> set[str]:
    return set(re.findall(r"</?([a-z0-9]+)", READER.render(text)))


def test_a_review_tells_its_verdict_findings_and_cost() -> None:
    text = markdown(a_review(a_finding(), UNUSED, FROM_MODEL), "src/app.py", CODE)
    assert text.startswith("# Review of `src/app.py`: fail\n")
    rule = "[`S307`](<https://docs.astral.sh/ruff/rules/suspicious-eval-usage>)"
    assert f"### Error: {rule}, line 5, column 12\n" in text
    assert "consider using `ast.literal_eval` (ruff, security)" in text
    assert "```python\n    return eval(x)  # noqa: S307\n```" in text
    assert text.index("Suppressed in the code") > text.index("llm/bug")
    assert "Fix (display): Parse it instead" in text
    assert "Model `gpt-5-mini`: ok, 2006 tokens in, 300 out, \\$0.0006695." in text
    assert "\n\n1 error, 0 warnings, 1 info\n\n" in text


def test_without_the_code_no_line_is_shown() -> None:
    assert "```" not in markdown(a_review(a_finding()), "app.py")


def test_without_a_model_it_says_so() -> None:
    review = a_review(llm=LlmReport("disabled"))
    assert "No model was asked: disabled." in markdown(review, "app.py")


def test_a_degraded_review_says_why() -> None:
    review = a_review(status="degraded", degraded_reasons=("llm_timeout",))
    assert "> **Degraded**: `llm_timeout`" in markdown(review, "app.py")


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_message_is_text_wherever_it_stands(hostile: str) -> None:
    calm = markdown(a_review(a_finding(fix=Fix("display", "x")), summary="x"), "app.py")
    review = a_review(a_finding(message=hostile, fix=Fix("display", hostile)), summary=hostile)
    text = markdown(review, "app.py")
    assert tags(text) <= tags(calm) | {"code"}
    assert text.count("\n") == calm.count("\n")
    shown = READER.render(text)
    assert "evil" not in "".join(re.findall(r"<[^>]*>", shown))


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_name_is_text(hostile: str) -> None:
    metrics = CodeMetrics(1, (FunctionComplexity(hostile, 1, 3),))
    calm = markdown(a_review(metrics=CodeMetrics(1, (FunctionComplexity("f", 1, 3),))), "app.py")
    text = markdown(a_review(metrics=metrics, review_id=hostile), hostile)
    assert tags(text) == tags(calm)
    assert text.count("\n") == calm.count("\n")


def test_code_cannot_close_its_fence() -> None:
    code = "x = 1\n```\n````\n# <script>\n"
    text = markdown(a_review(a_finding(start=_at(1), end=_at(5))), "app.py", code)
    assert "`````python\nx = 1\n```\n````\n# <script>\n`````" in text
    assert "script" not in tags(text)


def test_code_shows_what_hides_or_turns_text() -> None:
    text = markdown(a_review(a_finding(start=_at(1), end=_at(1))), "a.py", "x = '\u202e\x1b[2J'\n")
    assert r"x = '\u202e\x1b[2J'" in text


def test_nobody_is_mentioned() -> None:
    text = markdown(a_review(a_finding(message="ask @everyone")), "app.py")
    assert "@everyone" not in text
    assert "ask @" in rendered(text)


def test_an_address_that_is_no_plain_one_is_no_link() -> None:
    for url in ("javascript:alert(1)", "https://x/> <b>", "https://x/\n"):
        assert "<http" not in markdown(a_review(a_finding(url=url)), "app.py")
        assert "javascript" not in markdown(a_review(a_finding(url=url)), "app.py")


def _at(line: int) -> Place:
    return Place(line, 1)
