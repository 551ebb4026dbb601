"""Reads a model's answer, and believes as little of it as possible."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec
from pydantic_core import from_json

from code_reviewer.anchors import Anchors, in_original
from code_reviewer.findings import (
    Category,
    Finding,
    Fix,
    Options,
    Place,
    Severity,
    fingerprint,
)
from code_reviewer.visible_text import one_line, visible

MAX_FINDINGS: Final = 50
"""That a caller may ask for."""
_MOST_READ = 200
_MAX_SUMMARY, _MAX_MESSAGE, _MAX_SUGGESTION = 1000, 1000, 2000
_MOST_STARTS = 20
_ORDER: Final = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.INFO: 2}


class Said(msgspec.Struct, frozen=True):
    """A finding as a model states it."""

    line: int
    quote: str
    severity: Severity
    category: Literal["bug", "security", "performance", "complexity"]
    message: str
    suggestion: str | None = None


class Answer(msgspec.Struct, frozen=True):
    """What an answer is worth.

    `parsed` is `strict`, `partial` (taken out of other text, or broken off) or `failed`. `dropped`
    findings could not be read, `unanchored` ones quote what is not there, `repeated` ones were
    known, and `beyond` are those that were not asked for: too many, or not severe enough.
    """

    parsed: Literal["strict", "partial", "failed"]
    summary: str | None = None
    findings: tuple[Finding, ...] = ()
    dropped: int = 0
    unanchored: int = 0
    repeated: int = 0
    beyond: int = 0

    def feedback(self) -> str:
        """Return what was said and kept as JSON, without quotes: those are the submitted code."""
        findings = [
            {
                "id": one.id,
                "line": one.start.line,
                "severity": one.severity,
                "category": one.category,
                "message": one.message,
                "suggestion": one.fix and one.fix.message,
            }
            for one in self.findings
        ]
        return msgspec.json.encode({"summary": self.summary, "findings": findings}).decode()


class Reading(msgspec.Struct, frozen=True):
    """What an answer is read against: the lines as they were `seen` by the model and as sent."""

    seen: Sequence[str]
    original: Sequence[str]
    known: Iterable[Finding]
    options: Options


def read_answer(text: str, reading: Reading) -> Answer:
    """Return what is worth keeping of an answer; never raises, whatever it holds."""
    parsed, said = _object(text)
    if said is None:
        return Answer("failed")
    items = said.get("findings")
    read, dropped = _valid(items if isinstance(items, list) else [])
    anchors = Anchors(reading.seen)
    placed = [(one, anchors.find(one.quote, one.line)) for one in read]
    found = [(one, span) for one, span in placed if span is not None]
    fresh = _fresh(found, reading.known)
    kept = [one for one in fresh if _ORDER[one[0].severity] <= _ORDER[reading.options.min_severity]]
    kept.sort(key=lambda one: _ORDER[one[0].severity])
    kept = kept[: min(reading.options.max_llm_findings, MAX_FINDINGS)]
    summary = said.get("summary")
    return Answer(
        parsed,
        _line(summary, _MAX_SUMMARY) if isinstance(summary, str) else None,
        tuple(_findings(kept, reading)),
        dropped=dropped,
        unanchored=len(placed) - len(found),
        repeated=len(found) - len(fresh),
        beyond=len(fresh) - len(kept),
    )


def _object(text: str) -> tuple[Literal["strict", "partial", "failed"], Mapping[str, Any] | None]:
    """Return the first object of a text that has findings or a summary."""
    # A model that thinks aloud may think in JSON.
    text = text.rpartition("</think>")[2].strip()
    start = text.find("{")
    for _ in range(_MOST_STARTS):
        if start < 0:
            break
        try:
            found = from_json(text[start:], allow_partial=True, allow_inf_nan=False)
        except ValueError:
            found = None
        if isinstance(found, dict) and not {"findings", "summary"}.isdisjoint(found):
            return _strictness(text, start), found
        start = text.find("{", start + 1)
    return "failed", None


def _strictness(text: str, start: int) -> Literal["strict", "partial"]:
    if start:
        return "partial"
    try:
        from_json(text)
    except ValueError:
        return "partial"
    return "partial" if not text.endswith("}") else "strict"


def _valid(items: Sequence[object]) -> tuple[list[Said], int]:
    """Return the findings that can be read, and how many cannot."""
    read = []
    for item in items[:_MOST_READ]:
        try:
            one = msgspec.convert(item, Said, strict=False)
        except (msgspec.ValidationError, ValueError, RecursionError):
            continue
        if one.message.strip():
            read.append(one)
    return read, len(items) - len(read)


_Span = tuple[Place, Place]


def _fresh(found: list[tuple[Said, _Span]], known: Iterable[Finding]) -> list[tuple[Said, _Span]]:
    """Return the findings that neither the linter nor the model itself has told before."""
    told: set[tuple[object, ...]] = {(one.start.line, str(one.category)) for one in known}
    fresh = []
    for one, span in found:
        line, message = span[0].line, _line(one.message, _MAX_MESSAGE)
        if not told.isdisjoint({(line, one.category), (line, one.category, message)}):
            continue
        told.add((line, one.category, message))
        fresh.append((one, span))
    return fresh


def _findings(kept: Iterable[tuple[Said, _Span]], reading: Reading) -> Iterable[Finding]:
    times: dict[tuple[str, str], int] = {}
    for one, (start, end) in kept:
        rule, line = f"llm-{one.category}", reading.seen[start.line - 1]
        key = rule, " ".join(line.split())
        times[key] = times.get(key, -1) + 1
        first, last = start.line - 1, end.line - 1
        suggestion = visible((one.suggestion or "")[:_MAX_SUGGESTION]).strip()
        yield Finding(
            # By the line as the model saw it: no secret goes into the id.
            id=fingerprint(rule, line, times[key]),
            source="llm",
            rule=rule,
            category=Category(one.category),
            severity=one.severity,
            start=in_original(start, line, reading.original[first]),
            end=in_original(end, reading.seen[last], reading.original[last], is_end=True),
            message=_line(one.message, _MAX_MESSAGE),
            fix=Fix("display", suggestion) if suggestion else None,
        )


def _line(text: str, most: int) -> str:
    return one_line(text[: 4 * most])[:most]
