"""The model stage: asks a model about the code and adds what it finds, if it can be believed."""

import asyncio
import traceback

import msgspec
import structlog

from code_reviewer.analyses import StaticReport
from code_reviewer.answers import MAX_FINDINGS, Answer, Reading, read_answer
from code_reviewer.attempts import Attempts, Clockwork, LlmLimits
from code_reviewer.budget import Budget
from code_reviewer.call_events import Spent, dollars
from code_reviewer.events import Emit
from code_reviewer.findings import Finding, LlmReport, Submission
from code_reviewer.models import Bill, Model, ModelError, Reply, Scrub, Tariff
from code_reviewer.prompt import Prompt, Redacted, encodable, redacted
from code_reviewer.visible_text import lines_of

__all__ = ["Bill", "LlmLimits", "LlmOutcome", "LlmStage", "Tariff"]

_log = structlog.get_logger()
_REFUSALS = {"content_filter", "refusal"}


class LlmOutcome(msgspec.Struct, frozen=True):
    """What the stage adds to a review; `feedback` is what the model said, validated, as JSON."""

    report: LlmReport
    findings: tuple[Finding, ...] = ()
    summary: str | None = None
    feedback: str | None = None


class LlmStage:
    """Made once; reviews run through it at the same time."""

    def __init__(
        self,
        model: Model | None,
        tariff: Tariff,
        scrub: Scrub,
        budget: Budget,
        limits: LlmLimits | None = None,
        clockwork: Clockwork | None = None,
    ) -> None:
        """Take the model, None for reviews without one; who opened it closes it."""
        self._model = model
        self._scrub = scrub
        self._prompt = Prompt()
        self._attempts: Attempts | None = None
        if model is not None:
            self._attempts = Attempts(
                model, tariff, budget, limits or LlmLimits(), clockwork or Clockwork()
            )

    @property
    def version(self) -> str:
        """The model and what it is asked, as part of a cache's key; empty without a model."""
        model = self._model
        return f"{model.provider}/{model.name} {self._prompt.version}" if model else ""

    @property
    def fault(self) -> str | None:
        """Why the model is not asked at this time, None where it is, or where there is none."""
        return self._attempts.fault if self._attempts else None

    async def review(self, submission: Submission, static: StaticReport, emit: Emit) -> LlmOutcome:
        """Return what the model adds to what static analysis found; it can take nothing away.

        Emits `llm_query_sent`, `llm_feedback_received` and `error_occurred`. Raises only
        CancelledError.
        """
        attempts = self._attempts
        if attempts is None:
            return LlmOutcome(LlmReport("disabled", reason="no_model"))
        if not submission.options.llm or submission.options.max_llm_findings < 1:
            return LlmOutcome(LlmReport("disabled", model=self._name, reason="not_wanted"))
        run = _Run(submission, static, emit, Spent())
        try:
            return await self._asked(attempts, run)
        except ModelError as error:
            is_skipped = run.spent.attempts == 0
            return self._lost("skipped" if is_skipped else "failed", error.kind, run)
        except Exception as error:  # noqa: BLE001 - logged and told; the review goes on
            # Its message and its frames may hold the code.
            last = traceback.extract_tb(error.__traceback__)[-1]
            _log.error(
                "model_stage_failed", error=type(error).__name__, at=f"{last.name}:{last.lineno}"
            )
            self._tell(run, "internal", "the model stage failed")
            return self._lost("failed", "internal", run)

    @property
    def _name(self) -> str | None:
        return self._model.name if self._model else None

    async def _asked(self, attempts: Attempts, run: "_Run") -> LlmOutcome:
        seen = await asyncio.to_thread(redacted, run.submission, run.static, self._scrub)
        run.redacted = seen.replaced
        most = min(run.submission.options.max_llm_findings, MAX_FINDINGS)
        reply = await attempts.ask(self._prompt.question(seen, most), run.spent, run.emit)
        if not reply.text.strip():
            reason = "refused" if reply.finish_reason in _REFUSALS else "empty"
            self._tell(run, reason, "the model answered with no text")
            return self._lost("failed", reason, run)
        answer = await asyncio.to_thread(read_answer, reply.text, _reading(run, seen))
        run.emit("llm_feedback_received", self._received(reply, answer))
        if answer.parsed == "failed":
            self._tell(run, "unreadable", "the model's answer holds no review")
            return self._lost("failed", "unreadable", run)
        report = msgspec.structs.replace(
            self._report("ok", None, run),
            dropped=answer.dropped,
            unanchored=answer.unanchored,
        )
        return LlmOutcome(report, answer.findings, answer.summary, answer.feedback())

    def _received(self, reply: Reply, answer: Answer) -> dict[str, object]:
        return {
            "model": self._name,
            "feedback_length": len(reply.text),
            "finish_reason": reply.finish_reason,
            "parsed": answer.parsed,
            "kept": len(answer.findings),
            "dropped": answer.dropped,
            "unanchored": answer.unanchored,
            "repeated": answer.repeated,
            "beyond": answer.beyond,
        }

    def _tell(self, run: "_Run", reason: str, message: str) -> None:
        payload = {
            "error_type": f"llm_{reason}",
            "error_message": message,
            "stage": "llm",
            "attempt": run.spent.attempts,
            "retryable": False,
        }
        run.emit("error_occurred", payload)

    def _lost(self, status: str, reason: str, run: "_Run") -> LlmOutcome:
        return LlmOutcome(self._report(status, reason, run))

    def _report(self, status: str, reason: str | None, run: "_Run") -> LlmReport:
        return LlmReport(
            status,
            self._name,
            run.spent.attempts,
            run.spent.usage,
            dollars(run.spent.nanos),
            reason,
            redacted=run.redacted,
        )


class _Run(msgspec.Struct):
    """One review's way through the stage."""

    submission: Submission
    static: StaticReport
    emit: Emit
    spent: Spent
    redacted: int = 0


def _reading(run: _Run, seen: Redacted) -> Reading:
    return Reading(
        seen.lines,
        lines_of(encodable(run.submission.code)),
        run.static.findings,
        run.submission.options,
    )
