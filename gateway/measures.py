"""What the gateway counts of its reviews."""

from decimal import Decimal

from starlette.requests import Request

from code_reviewer.findings import Review
from logging_helper import backlog
from logging_service import metrics


async def measure(request: Request) -> None:
    """Bring up to date what runs and what waits, for the scrape that asks."""
    jobs = request.state.jobs
    metrics.REVIEWS_RUNNING.set(jobs.running)
    metrics.REVIEWS_WAITING.set(jobs.waiting)
    metrics.REVIEWS_BUFFERED.set(request.state.storage.buffered)
    waiting, lost = backlog()
    metrics.JOURNAL_EVENTS.set(waiting)
    metrics.JOURNAL_LOST.set(lost)


def count_review(review: Review) -> None:
    """Count a review that ended; one that was answered from what is stored is `cached` alone."""
    metrics.REVIEWS.labels("cached" if review.cached else review.status).inc()
    if review.cached:
        return
    timings, llm = review.timings_ms, review.llm
    metrics.REVIEW_STAGE.labels("static").observe(timings.static / 1000)
    metrics.REVIEW_STAGE.labels("total").observe(timings.total / 1000)
    if not llm.attempts:
        return
    metrics.REVIEW_STAGE.labels("llm").observe(timings.llm / 1000)
    # One at the most for each LLM_MODEL that this process was started with.
    model = llm.model or "unknown"
    metrics.REVIEW_MODEL_CALLS.labels(model).inc(llm.attempts)
    metrics.REVIEW_TOKENS.labels(model, "input").inc(llm.usage.input)
    metrics.REVIEW_TOKENS.labels(model, "output").inc(llm.usage.output)
    metrics.REVIEW_COST.labels(model).inc(float(Decimal(llm.cost_usd or 0)))
