"""A review as Markdown, for a comment or a file; nothing in it can leave its place."""

import re
from collections.abc import Iterator

from code_reviewer.findings import Finding, Fix, LlmReport, Place, Review
from code_reviewer.visible_text import lines_of, one_line, visible

_MARKS = re.compile(r"[\\`*_\[\]~|$!]|:(?=\S)|(?<=www)\.")
_BLOCK_START = re.compile(r"^(\d{0,9})([-#+=.)])")
_CODE_IN_TEXT = re.compile(r"`([^`]+)`")
_BACKTICKS = re.compile("`+")
_ADDRESS = re.compile(r"https?://[A-Za-z0-9./_~%?=#&-]+")
_MOST_LINES = 5
_MOST_FUNCTIONS = 5
_WIDEST = 200


def markdown(review: Review, filename: str, code: str | None = None) -> str:
    """Return `review` as Markdown, the findings in their order, suppressed ones last.

    With `code`, each finding shows the lines that it is about, five at the most.
    """
    lines = lines_of(code) if code is not None else []
    parts = [f"# Review of {_code(filename)}: {review.verdict}", *_opening(review)]
    counted = [finding for finding in review.findings if not finding.suppressed]
    suppressed = [finding for finding in review.findings if finding.suppressed]
    for title, findings in (("Findings", counted), ("Suppressed in the code", suppressed)):
        if findings:
            parts.append(f"## {title}")
        for finding in findings:
            parts += _finding(finding, lines)
    parts += _closing(review)
    return "\n\n".join(parts) + "\n"


def _opening(review: Review) -> Iterator[str]:
    if review.status != "completed":
        reasons = ", ".join(map(_code, review.degraded_reasons)) or "no reason given"
        yield f"> **{_text(review.status).capitalize()}**: {reasons}"
    if review.summary:
        yield _text(review.summary)
    counts = review.counts
    errors, warnings = _number(counts.error, "error"), _number(counts.warning, "warning")
    yield f"{errors}, {warnings}, {counts.info} info"
    if review.truncated:
        yield "There were more findings than are kept."


def _number(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _finding(finding: Finding, lines: list[str]) -> Iterator[str]:
    place = f"line {finding.start.line}, column {finding.start.column}"
    yield f"### {finding.severity.value.capitalize()}: {_rule(finding)}, {place}"
    asked = f" ({_text(finding.source)}, {finding.category.value})"
    yield _text(finding.message) + asked
    if shown := _lines_at(finding.start, finding.end, lines):
        yield _block(shown)
    if finding.fix:
        yield from _fix(finding.fix)


def _rule(finding: Finding) -> str:
    if finding.url and _ADDRESS.fullmatch(finding.url):
        return f"[{_code(finding.rule)}](<{finding.url}>)"
    return _code(finding.rule)


def _lines_at(start: Place, end: Place, lines: list[str]) -> str:
    last = max(start.line, end.line - (end.column <= 1))
    shown = lines[max(start.line, 1) - 1 : min(last, start.line + _MOST_LINES - 1)]
    return "\n".join(line[:_WIDEST] for line in shown)


def _fix(fix: Fix) -> Iterator[str]:
    words = _text(fix.message) if fix.message else "see below"
    yield f"Fix ({_text(fix.applicability)}): {words}"
    for edit in fix.edits[:_MOST_LINES]:
        start, end = edit.start, edit.end
        where = f"{start.line}:{start.column} to {end.line}:{end.column}"
        if edit.text:
            yield f"From {where} put"
            yield _block(edit.text)
        else:
            yield f"From {where} take away what is there."


def _closing(review: Review) -> Iterator[str]:
    functions = sorted(review.metrics.functions, key=lambda one: -one.complexity)
    if functions:
        yield "## Most branched functions"
        yield "\n".join(
            f"- {_code(one.name)}, line {one.line}: {one.complexity}"
            for one in functions[:_MOST_FUNCTIONS]
        )
    yield "---"
    took = f"{review.metrics.lines} lines in {review.timings_ms.total} ms"
    yield f"{took}. {_model(review.llm)} Review {_code(review.review_id)}."


def _model(llm: LlmReport) -> str:
    if not llm.attempts:
        why = f" ({_text(llm.reason)})" if llm.reason else ""
        return f"No model was asked: {_text(llm.status)}{why}."
    cost = _text(f"${llm.cost_usd}") if llm.cost_usd is not None else "cost unknown"
    tokens = f"{llm.usage.input} tokens in, {llm.usage.output} out"
    return f"Model {_code(llm.model or 'unknown')}: {_text(llm.status)}, {tokens}, {cost}."


def _text(text: str) -> str:
    """Return `text` as one line that reads as it is written, its `code` as code."""
    pieces = _CODE_IN_TEXT.split(one_line(text))
    line = "".join(
        _code(piece) if number % 2 else _plain(piece) for number, piece in enumerate(pieces)
    )
    return _BLOCK_START.sub(r"\1\\\2", line)


def _plain(text: str) -> str:
    safe = _MARKS.sub(r"\\\g<0>", text)
    safe = safe.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # Nobody is called by what a model, or the code, says.
    return safe.replace("@", "@\u200b")


def _code(text: str) -> str:
    shown = one_line(text) or " "
    fence = "`" * (_longest_run(shown) + 1)
    # A space on either side is taken away again, and only then may the text begin with a backtick.
    return f"{fence} {shown} {fence}" if "`" in shown else f"{fence}{shown}{fence}"


def _block(code: str) -> str:
    shown = visible("\n".join(lines_of(code)))
    fence = "`" * max(3, _longest_run(shown) + 1)
    return f"{fence}python\n{shown}\n{fence}"


def _longest_run(text: str) -> int:
    return max(map(len, _BACKTICKS.findall(text)), default=0)
