"""Asks a model until it answers: by one deadline, one breaker, one budget, one event a request."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

import msgspec

from code_reviewer.breaker import Breaker
from code_reviewer.budget import Budget, Purse
from code_reviewer.call_events import (
    Estimate,
    Spent,
    answered,
    bounded_usage,
    failed,
    tokens_of_bytes,
)
from code_reviewer.events import Emit
from code_reviewer.ladder import MOST_STEPS, Ladder, step_down
from code_reviewer.models import Bill, Manner, Model, ModelError, Question, Reply, Tariff
from code_reviewer.visible_text import one_line

MAX_ERROR: Final = 500
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 8.0


class LlmLimits(msgspec.Struct, frozen=True):
    """Seconds for all attempts of a review together; failed attempts; tokens of one answer."""

    deadline_seconds: float = 60.0
    max_attempts: int = 3
    max_tokens: int = 2000


class Clockwork(msgspec.Struct, frozen=True):
    """Where time and chance come from; tests put in their own."""

    monotonic: Callable[[], float] = time.monotonic
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    fraction: Callable[[], float] = random.random


class Round(msgspec.Struct, frozen=True):
    """One review's question, and what its attempts may take and have taken."""

    question: Question
    spent: Spent
    purse: Purse
    deadline: float
    emit: Emit


class Attempts:
    """Asks one model; made once, and used by all reviews at the same time."""

    def __init__(
        self, model: Model, tariff: Tariff, budget: Budget, limits: LlmLimits, clockwork: Clockwork
    ) -> None:
        self._model = model
        self._tariff = tariff
        self._budget = budget
        self._limits = limits
        self._clockwork = clockwork
        self._ladder = Ladder()
        self._breaker = Breaker(clockwork.monotonic)

    @property
    def fault(self) -> str | None:
        """Why the model is not asked now, None while it is."""
        if self._breaker.is_open:
            return "the model failed too often and is left alone for a while"
        return "the budget of the day is used up" if self._budget.is_spent else None

    async def ask(self, question: Question, spent: Spent, emit: Emit) -> Reply:
        """Return the answer, and add to `spent` what it took; raises ModelError for none in time.

        Emits one `llm_query_sent` an HTTP request, and one `error_occurred` a failure; what a
        server does not understand of the manner is asked again in another, and no failure.
        """
        deadline = self._clockwork.monotonic() + self._limits.deadline_seconds
        this = Round(question, spent, self._budget.purse(), deadline, emit)
        manner = self._ladder.manner(self._model)
        steps = failures = 0
        while True:
            try:
                reply = await self._attempt(this, manner)
            except ModelError as error:
                lower = step_down(manner, error) if steps < MOST_STEPS else None
                if lower is not None:
                    manner, steps = lower, steps + 1
                    continue
                failures += 1
                await self._pause(this, error, failures)
            else:
                self._ladder.remember(self._model, manner)
                return reply

    async def _pause(self, this: Round, error: ModelError, failures: int) -> None:
        """Wait before the next attempt; raises the error where there is to be none."""
        pause = self._seconds(error, failures)
        is_last = failures >= self._limits.max_attempts or pause >= self._left(this)
        is_final = is_last or not error.is_retryable
        this.emit(
            "error_occurred",
            {
                "error_type": f"llm_{error.kind}",
                "error_message": one_line(str(error))[:MAX_ERROR],
                "stage": "llm",
                "attempt": this.spent.attempts,
                "retryable": error.is_retryable,
            },
        )
        if is_final:
            raise error
        await self._clockwork.sleep(pause)

    def _seconds(self, error: ModelError, failures: int) -> float:
        longest = min(_FIRST_PAUSE_SECONDS * 2.0 ** (failures - 1), _LONGEST_PAUSE_SECONDS)
        pause = longest * (1 + self._clockwork.fraction()) / 2
        # Not all who were told the same time come at it.
        return max(pause, (error.retry_after_seconds or 0) + pause / 5)

    def _left(self, this: Round) -> float:
        return this.deadline - self._clockwork.monotonic()

    async def _attempt(self, this: Round, manner: Manner) -> Reply:
        """Ask once, where time, breaker and budget allow it."""
        if self._left(this) <= 0:
            raise ModelError("timeout", "the time for the model is over")
        with self._breaker.attempt():
            sent = tokens_of_bytes(this.question.bytes_sent)
            worst = self._bill(Estimate(sent, self._limits.max_tokens).usage())
            reservation = this.purse.reserve(worst.nanos or 0)
            if reservation is None:
                raise ModelError("budget", "the call might cost more than the budget has left")
            this.spent.attempts += 1
            begun = self._clockwork.monotonic()
            try:
                reply = await self._complete(this, manner)
            except BaseException as error:
                known = error if isinstance(error, ModelError) else None
                is_free = known is not None and not known.may_be_billed
                reservation.settle(0 if is_free else None)
                self._tell(this, begun, failed(self._model, known))
                raise
            reservation.settle(self._account(this, begun, reply, sent))
            return reply

    def _account(self, this: Round, begun: float, reply: Reply, sent: int) -> int:
        """Add an answered attempt to what was spent, tell of it, return its nano-dollars."""
        bill = self._bill(bounded_usage(reply.usage))
        estimate = Estimate(sent, tokens_of_bytes(len(reply.text.encode(errors="replace"))))
        this.spent.add(bill)
        self._tell(this, begun, answered(self._model, reply, bill, estimate))
        cost = bill if bill.nanos is not None else self._bill(estimate.usage())
        return cost.nanos or 0

    def _bill(self, usage: dict[str, object] | None) -> Bill:
        if usage is None:
            return Bill()
        return self._tariff.bill(
            self._model.provider, self._model.name, usage, self._clockwork.now()
        )

    async def _complete(self, this: Round, manner: Manner) -> Reply:
        seconds = self._left(this)
        try:
            async with asyncio.timeout(seconds):
                return await self._model.complete(
                    this.question, manner, self._limits.max_tokens, seconds
                )
        except TimeoutError:
            raise ModelError("timeout", "the model did not answer in time") from None
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                "internal", f"asking the model failed: {type(error).__name__}"
            ) from error

    def _tell(self, this: Round, begun: float, payload: dict[str, object]) -> None:
        duration = round((self._clockwork.monotonic() - begun) * 1000, 3)
        about = {"attempt": this.spent.attempts, "duration_ms": duration}
        this.emit("llm_query_sent", payload | about)
