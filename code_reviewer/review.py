"""The order of a review: ruff first, then the model, which can only add to what ruff found."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

import msgspec

from code_reviewer.events import Emit
from code_reviewer.findings import (
    CodeMetrics,
    Counts,
    Finding,
    LlmReport,
    Review,
    Submission,
    Timings,
    Usage,
    at_least,
    counts,
    verdict,
)
from code_reviewer.llm import LlmOutcome, LlmStage
from code_reviewer.static_analysis import Analysis, StaticAnalyzer, StaticReport


class Stage(msgspec.Struct, frozen=True, omit_defaults=True):
    """A step of a review that begins (`started`) or has ended, for who watches."""

    stage: str
    status: str
    findings: int | None = None
    duration_ms: float | None = None


Watch = Callable[[Stage], None]
"""Is told each stage; it never raises and never waits."""


class Reviewed(msgspec.Struct, frozen=True):
    """A review that ended, and the payload of its `review_completed`.

    `feedback` is what the model said, validated, as JSON text.
    """

    review: Review
    completed: dict[str, object]
    feedback: str | None = None


class ReviewIds(msgspec.Struct, frozen=True):
    """Which review it is, and of which session."""

    review_id: str
    session_id: str


class Reviewer:
    """Reviews code: `syntax`, `lint` and `complexity` by ruff, then the model, if there is one."""

    def __init__(self, static: StaticAnalyzer, llm: LlmStage) -> None:
        self._static = static
        self._llm = llm

    def content_key(self, submission: Submission) -> str:
        """Return what is the same for the same code, options, rules, model and prompt.

        Who asks is no part of it: two users of one project get the same review.
        """
        asked = msgspec.structs.replace(submission, user_id=None)
        model = self._llm.version if self._asks_model(submission) else ""
        by = f"{self._static.rule_set}\n{model}\n"
        return sha256(by.encode() + msgspec.json.encode(asked)).hexdigest()

    def begin(self, submission: Submission, emit: Emit) -> None:
        """Emit `review_started`; how and when the review ends is for the caller to say."""
        code = submission.code
        emit(
            "review_started",
            {
                "user_id": submission.user_id,
                "language": submission.language,
                "code_length": len(code),
                "code_sha256": sha256(code.encode()).hexdigest(),
                "llm_enabled": self._asks_model(submission),
            },
        )

    async def review(
        self, submission: Submission, ids: ReviewIds, emit: Emit, watch: Watch
    ) -> Reviewed:
        """Return the review; the events of its stages are emitted meanwhile.

        A model that fails makes it `degraded`. What raises is a mistake of ours: `unfinished` says
        what the review is then.
        """
        began = time.perf_counter()
        static = await self._static.analyze(submission, _watched(emit, watch))
        static_seconds = time.perf_counter() - began
        outcome = await self._ask_model(submission, static, emit, watch)
        total_seconds = time.perf_counter() - began
        timings = _timings(static_seconds, total_seconds)
        review = _merged(submission, ids, static, outcome, timings)
        done = sum(analysis.status == "ok" for analysis in static.analyses)
        completed = _completed(
            review,
            analysis_count=done + (outcome.report.status == "ok"),
            success=done > 0,
            duration_ms=round(total_seconds * 1000, 3),
        )
        return Reviewed(review, completed, outcome.feedback)

    def repeat(self, earlier: Review, ids: ReviewIds) -> Reviewed:
        """Return the review of the same content again, `cached`: neither ruff nor a model ran."""
        review = msgspec.structs.replace(
            earlier,
            review_id=ids.review_id,
            session_id=ids.session_id,
            cached=True,
            llm=_unpaid(earlier.llm),
            timings_ms=Timings(0, 0, 0),
        )
        return Reviewed(review, _completed(review, analysis_count=0, success=True, duration_ms=0.0))

    def unfinished(
        self, submission: Submission, ids: ReviewIds, reason: str, seconds: float
    ) -> Reviewed:
        """Return the review that could not be made, for a `reason` of one word; it `failed`."""
        asks_model = self._asks_model(submission)
        review = Review(
            review_id=ids.review_id,
            session_id=ids.session_id,
            status="failed",
            degraded_reasons=(reason,),
            # Code that nobody read is not good code.
            verdict="fail",
            summary=f"The review could not be finished: {reason}. The code was not judged.",
            cached=False,
            counts=Counts(),
            findings=(),
            metrics=CodeMetrics(lines=len(submission.code.splitlines())),
            llm=LlmReport("skipped", reason=reason) if asks_model else LlmReport("disabled"),
            timings_ms=_timings(seconds, seconds),
        )
        completed = _completed(
            review, analysis_count=0, success=False, duration_ms=round(seconds * 1000, 3)
        )
        return Reviewed(review, completed)

    def _asks_model(self, submission: Submission) -> bool:
        options = submission.options
        return bool(self._llm.version) and options.llm and options.max_llm_findings > 0

    async def _ask_model(
        self, submission: Submission, static: StaticReport, emit: Emit, watch: Watch
    ) -> LlmOutcome:
        began = time.perf_counter()
        if self._asks_model(submission):
            watch(Stage("llm", "started"))
        outcome = await self._llm.review(submission, static, emit)
        spent_ms = round((time.perf_counter() - began) * 1000, 3)
        watch(Stage("llm", outcome.report.status, len(outcome.findings), spent_ms))
        return outcome


def _watched(emit: Emit, watch: Watch) -> Emit:
    """Return `emit` which tells the watcher, too, of analyses that begin and end."""

    def emit_and_tell(event_type: str, payload: Mapping[str, Any]) -> None:
        emit(event_type, payload)
        if event_type == "syntax_analysis_started":
            watch(Stage(payload["analysis_type"], "started"))
        elif event_type == "syntax_analysis_completed":
            kind, results = payload["analysis_type"], payload["results"]
            spent_ms = payload["duration_ms"]
            watch(Stage(kind, results["status"], results["findings"], spent_ms))

    return emit_and_tell


def _merged(
    submission: Submission,
    ids: ReviewIds,
    static: StaticReport,
    outcome: LlmOutcome,
    timings: Timings,
) -> Review:
    options = submission.options
    added = _new(static.findings, outcome.findings)[: options.max_llm_findings]
    findings = _in_order([*static.findings, *added])
    reasons = _reasons(static.analyses, outcome.report)
    status = "degraded" if reasons else "completed"
    if not any(analysis.status == "ok" for analysis in static.analyses):
        status = "failed"
    every = counts(findings)
    return Review(
        review_id=ids.review_id,
        session_id=ids.session_id,
        status=status,
        degraded_reasons=reasons,
        # Of what ruff found, whatever the model says; code that nobody read is not good code.
        verdict="fail" if status == "failed" else verdict(counts(static.findings)),
        summary=_summary(every, findings, reasons, outcome.summary, is_cut=static.truncated),
        cached=False,
        counts=every,
        findings=at_least(findings, options.min_severity),
        metrics=static.metrics,
        llm=outcome.report,
        timings_ms=timings,
        truncated=static.truncated,
    )


def _new(found: Iterable[Finding], added: Iterable[Finding]) -> list[Finding]:
    """Return what of `added` is neither in `found` nor there twice, by its id or line and words."""
    known = {sign for finding in found for sign in _signs(finding)}
    new = []
    for finding in added:
        if known.isdisjoint(signs := _signs(finding)):
            new.append(finding)
            known.update(signs)
    return new


def _signs(finding: Finding) -> tuple[object, object]:
    return finding.id, (finding.start.line, finding.message.casefold())


def _in_order(findings: list[Finding]) -> tuple[Finding, ...]:
    # Python's order is stable: at one place ruff's stand before the model's.
    return tuple(sorted(findings, key=lambda finding: finding.start))


def _reasons(analyses: Iterable[Analysis], llm: LlmReport) -> tuple[str, ...]:
    """Return what is missing from the review, such as `lint_timeout` and `llm_budget`."""
    lost = [one for one in analyses if one.status in {"failed", "timeout"}]
    reasons = [f"{one.type}_{one.status}" for one in lost]
    if llm.status in {"failed", "skipped"}:
        reasons.append(f"llm_{llm.reason or llm.status}")
    return tuple(reasons)


def _summary(
    every: Counts,
    findings: Sequence[Finding],
    reasons: Sequence[str],
    said: str | None,
    *,
    is_cut: bool,
) -> str:
    """Return the result in words; what the model said comes last and is marked as its own."""
    parts = [_told(every)]
    if is_cut:
        parts.append("There was more to find than is kept.")
    if suppressed := sum(finding.suppressed for finding in findings):
        parts.append(f"{_number(suppressed, 'finding')} suppressed by comments in the code.")
    if reasons:
        parts.append(f"The review is incomplete: {', '.join(reasons)}.")
    if said:
        parts.append(f"The model says: {said}")
    return " ".join(parts)


def _told(every: Counts) -> str:
    numbers = {"error": every.error, "warning": every.warning, "note": every.info}
    told = [_number(number, noun) for noun, number in numbers.items() if number]
    if not told:
        return "Nothing to report."
    *most, last = told
    return f"{', '.join(most)} and {last}." if most else f"{last}."


def _number(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _unpaid(report: LlmReport) -> LlmReport:
    """Return what the model stage had been, without the calls: nobody pays for them twice."""
    cost = None if report.cost_usd is None else "0"
    return msgspec.structs.replace(report, attempts=0, usage=Usage(), cost_usd=cost)


def _timings(static_seconds: float, total_seconds: float) -> Timings:
    static, total = round(static_seconds * 1000), round(total_seconds * 1000)
    return Timings(static=static, llm=total - static, total=total)


def _completed(
    review: Review, *, analysis_count: int, success: bool, duration_ms: float
) -> dict[str, object]:
    """Return the payload of `review_completed`; `success`: what ruff does was done."""
    every = review.counts
    return {
        "analysis_count": analysis_count,
        "success": success,
        "duration_ms": duration_ms,
        "status": review.status,
        "verdict": review.verdict,
        "degraded_reasons": list(review.degraded_reasons),
        "findings_total": every.error + every.warning + every.info,
        "findings_by_severity": msgspec.to_builtins(every),
        "cached": review.cached,
    }
