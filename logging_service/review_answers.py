"""What a review of the gateway says, as far as the terminal needs it."""

from collections.abc import Collection
from decimal import Decimal
from typing import Literal

import msgspec

from logging_service.gateway_calls import ReviewRefused
from logging_service.review_sources import Source

SEVERITIES = ("error", "warning", "info")
# The source of findings that the verdict never looks at.
MODEL = "llm"


class Place(msgspec.Struct, frozen=True):
    """Line and column, from 1."""

    line: int
    column: int


class Fix(msgspec.Struct, frozen=True):
    """How a finding can be mended."""

    applicability: str
    message: str | None = None


class Found(msgspec.Struct, frozen=True):
    """A finding; `end` is the place after it."""

    source: str
    rule: str
    category: str
    severity: Literal["error", "warning", "info"]
    start: Place
    end: Place
    message: str
    url: str | None = None
    fix: Fix | None = None
    suppressed: bool = False


class _Usage(msgspec.Struct, frozen=True):
    input: int = 0
    output: int = 0


class Model(msgspec.Struct, frozen=True):
    """What became of the model, and what it cost in US dollars, None where that is unknown."""

    status: str
    model: str | None = None
    attempts: int = 0
    usage: _Usage = _Usage()
    cost_usd: Decimal | None = None


class _Timings(msgspec.Struct, frozen=True):
    total: int


class _Counts(msgspec.Struct, frozen=True):
    error: int = 0
    warning: int = 0
    info: int = 0


class _Review(msgspec.Struct, frozen=True):
    status: str
    verdict: Literal["pass", "warn", "fail"]
    summary: str
    cached: bool
    counts: _Counts
    findings: tuple[Found, ...]
    llm: Model
    timings_ms: _Timings
    degraded_reasons: tuple[str, ...] = ()
    truncated: bool = False


class Answer(msgspec.Struct, frozen=True):
    """A review of `source`: the findings that are shown, how many count, and the verdict on them.

    Of a whole file these are the gateway's, also where it was asked for fewer findings.
    """

    source: Source
    review: _Review
    document: dict[str, object]
    findings: tuple[Found, ...]
    counts: dict[str, int]
    verdict: str

    @property
    def failed(self) -> bool:
        """Whether the code was not analysed at all."""
        return self.review.status == "failed"


def verdict_of(severities: Collection[str]) -> str:
    """Return the verdict on static findings of these severities."""
    return "fail" if "error" in severities else "warn" if "warning" in severities else "pass"


def read_answer(source: Source, content: bytes) -> Answer:
    """Return what the gateway said of `source`; raises ReviewRefused where that is no review."""
    try:
        review = msgspec.json.decode(content, type=_Review)
        document = msgspec.json.decode(content, type=dict[str, object])
    except (msgspec.DecodeError, RecursionError) as error:
        raise ReviewRefused(f"the gateway's answer cannot be read: {error}") from None
    if source.changed is None:
        counts = msgspec.structs.asdict(review.counts)
        return Answer(source, review, document, review.findings, counts, review.verdict)
    shown = tuple(finding for finding in review.findings if _is_shown(source, finding))
    counted = [finding for finding in shown if not finding.suppressed]
    counts = {name: sum(one.severity == name for one in counted) for name in SEVERITIES}
    verdict = verdict_of({one.severity for one in counted if one.source != MODEL})
    return Answer(source, review, document, shown, counts, verdict)


def _is_shown(source: Source, finding: Found) -> bool:
    last = finding.end.line - (finding.end.column <= 1)
    lines = (finding.start.line, max(last, finding.start.line))
    return is_about_all(finding.source, finding.category) or source.is_shown(*lines)


def is_about_all(source: str, category: str) -> bool:
    """Whether a finding is about the file, not its line: there are no others, or not all of them.

    A syntax error stands where it was noticed; `reviewer` says that an analysis failed.
    """
    return category == "syntax" or source == "reviewer"


def as_document(answer: Answer) -> dict[str, object]:
    """Return the review as the gateway sent it, with its file and what is shown of it alone."""
    sent = msgspec.convert(answer.document["findings"], list[object])
    pairs = zip(sent, answer.review.findings, strict=True)
    kept = [one for one, finding in pairs if finding in answer.findings]
    more = {"findings": kept, "counts": answer.counts, "verdict": answer.verdict}
    return {"filename": answer.source.name, **answer.document, **more}
