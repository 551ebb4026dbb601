"""Reviews as a person reads them in a terminal."""

import re
from collections.abc import Iterator, Sequence
from decimal import Decimal

from rich.cells import cell_len
from rich.console import Console
from rich.style import Style
from rich.text import Text

from logging_service.logs import escape_controls
from logging_service.review_answers import SEVERITIES, Answer, Found, Model

_COLOURS = {
    "error": "bold red", "warning": "yellow", "info": "cyan",
    "fail": "bold red", "warn": "yellow", "pass": "green",
}  # fmt: skip
_PLURALS = {"error": "errors", "warning": "warnings", "info": "info"}
_ADDRESS = re.compile(r"https?://[A-Za-z0-9./_~%?=#&:-]+")
_BEFORE, _MARKED, _AFTER = 80, 80, 60


def print_report(console: Console, answers: Sequence[Answer]) -> None:
    """Print every finding with its line, then the verdict on each file and on all of them.

    What a terminal would obey is not printed: the code and the model may have written it.
    """
    for answer in answers:
        lines = answer.source.lines()
        for finding in answer.findings:
            for line in _finding(answer.source.name, finding, lines):
                console.print(line, soft_wrap=True)
        for line in _closing(answer):
            console.print(line, soft_wrap=True)
    if len(answers) > 1:
        console.print(_total(answers), soft_wrap=True)


def _finding(name: str, finding: Found, lines: list[str]) -> Iterator[Text]:
    colour = _COLOURS[finding.severity]
    dim = "dim" if finding.suppressed else ""
    text = Text(style=dim)
    text.append(f"{escape_controls(name)}:{finding.start.line}:{finding.start.column}", "bold")
    text.append(f"  {finding.severity}  ", colour)
    text.append(escape_controls(finding.rule), _rule_style(finding.url))
    text.append(f"  {_one_line(finding.message)}")
    if finding.suppressed:
        text.append("  (suppressed)")
    yield text
    if 1 <= finding.start.line <= len(lines):
        yield from _marked(finding, lines[finding.start.line - 1], colour)
    if finding.fix and finding.fix.message:
        words = _one_line(finding.fix.message)
        yield Text(f"      fix ({escape_controls(finding.fix.applicability)}): {words}", "green")


def _rule_style(url: str | None) -> Style:
    link = url if url and _ADDRESS.fullmatch(url) else None
    return Style(bold=True, link=link)


def _marked(finding: Found, line: str, colour: str) -> Iterator[Text]:
    """Yield the line, cut to what is near the finding, and carets under it."""
    begins = max(finding.start.column - 1, 0)
    ends = finding.end.column - 1 if finding.end.line == finding.start.line else len(line)
    ends = max(ends, begins)
    before, marked, after = line[:begins], line[begins:ends], line[ends:]
    left = ("…" if len(before) > _BEFORE else "") + _shown(before[-_BEFORE:])
    middle = _shown(marked[:_MARKED])
    right = _shown(after[:_AFTER]) if len(marked) <= _MARKED else ""
    cut = len(marked) > _MARKED or len(after) > _AFTER
    number = f"{finding.start.line:>5} | "
    yield Text().append(number, "dim").append(left + middle + right + ("…" if cut else ""))
    carets = "^" * max(cell_len(middle), 1)
    yield Text().append(" " * 5 + " | ", "dim").append(" " * cell_len(left)).append(carets, colour)


def _shown(text: str) -> str:
    return escape_controls(text.replace("\t", "    "))


def _one_line(text: str) -> str:
    return escape_controls(" ".join(text.split()))


def _closing(answer: Answer) -> Iterator[Text]:
    review = answer.review
    if review.llm.status == "ok" and review.summary:
        yield Text(f"  {_one_line(review.summary)}", "italic")
    if review.status != "completed":
        reasons = _one_line(", ".join(review.degraded_reasons)) or "no reason given"
        yield Text(f"  {escape_controls(review.status)}: {reasons}", "bold yellow")
    if review.truncated:
        yield Text("  there were more findings than are kept", "yellow")
    text = _verdict(escape_controls(answer.source.name), answer.verdict, [answer])
    text.append(f"; {review.timings_ms.total} ms{', cached' if review.cached else ''}", "dim")
    yield text.append(_bill([review.llm]), "dim")


def _verdict(name: str, verdict: str, answers: Sequence[Answer]) -> Text:
    counts = {name: sum(answer.counts[name] for answer in answers) for name in SEVERITIES}
    told = ", ".join(
        f"{number} {severity if number == 1 else _PLURALS[severity]}"
        for severity, number in counts.items()
    )
    return Text(f"{name}: ").append(verdict, _COLOURS[verdict]).append(f": {told}")


def _total(answers: Sequence[Answer]) -> Text:
    verdicts = [answer.verdict for answer in answers]
    worst = next(verdict for verdict in ("fail", "warn", "pass") if verdict in verdicts)
    text = _verdict(f"{len(answers)} files", worst, answers)
    return text.append(_bill([answer.review.llm for answer in answers]), "dim")


def _bill(models: Sequence[Model]) -> str:
    """Return what the models that were asked took, nothing where none was."""
    asked = [model for model in models if model.attempts]
    if not asked:
        return ""
    known = [model.cost_usd for model in asked if model.cost_usd is not None]
    cost = f"${sum(known, Decimal(0)):f}" if known else "cost unknown"
    if known and len(known) < len(asked):
        cost += " and what is unknown"
    names = _one_line(", ".join(sorted({model.model or "a model" for model in asked})))
    tokens = sum(model.usage.input + model.usage.output for model in asked)
    return f"; {names}: {tokens:,} tokens, {cost}"
