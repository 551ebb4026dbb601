"""Runs of the model stage against a server over loopback, and all that they told."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import msgspec

from code_reviewer.analyses import Analysis, StaticReport
from code_reviewer.attempts import Clockwork
from code_reviewer.budget import Budget
from code_reviewer.findings import CodeMetrics, Finding, Options, Place, Submission
from code_reviewer.llm import LlmLimits, LlmOutcome, LlmStage
from code_reviewer.models import Scrub, open_model
from gateway.tariff import ListTariff
from logging_service.pricing import Prices

CODE = "def mean(xs):\n    total = sum(xs)\n    return total / len(xs)\n"
API_KEY = "sk-test-0123456789abcdef"
TARIFF = ListTariff(Prices(None))


class Named(NamedTuple):
    """Which model is asked, and whose prices hold."""

    adapter: Literal["openai", "anthropic"] = "openai"
    name: str = "gpt-4o"
    provider: str = "openai"


def unscrubbed(text: str) -> tuple[str, int]:
    return text, 0


class SkippedTime:
    """A clock on which nobody has to wait: sleeping moves it."""

    def __init__(self) -> None:
        self.pauses: list[float] = []
        self.ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.ahead += seconds
        await asyncio.sleep(0)

    def clockwork(self) -> Clockwork:
        return Clockwork(monotonic=self.monotonic, sleep=self.sleep, fraction=lambda: 0.0)


@dataclass
class Told:
    """What the reviews of one stage came to."""

    stage: LlmStage
    events: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)

    async def review(
        self,
        code: str | Submission = CODE,
        *,
        findings: Sequence[Finding] = (),
        secrets: Sequence[tuple[Place, Place]] = (),
        lint: str = "ok",
    ) -> LlmOutcome:
        submission = code if isinstance(code, Submission) else Submission(code)
        analyses = (Analysis("lint", lint, tuple(findings), 1.0, "ruff"),)
        static = StaticReport(
            analyses, tuple(findings), CodeMetrics(lines=3), truncated=False, secrets=tuple(secrets)
        )
        return await self.stage.review(submission, static, self.emit)

    def emit(self, event_type: str, payload: Mapping[str, object]) -> None:
        # What cannot be JSON would fail later, in the client's thread.
        self.events.append((event_type, msgspec.json.decode(msgspec.json.encode(payload))))

    def of(self, event_type: str) -> list[Mapping[str, Any]]:
        return [payload for one, payload in self.events if one == event_type]

    @property
    def calls(self) -> list[Mapping[str, Any]]:
        return self.of("llm_query_sent")

    @property
    def outcomes(self) -> list[str]:
        return [call["outcome"] for call in self.calls]


@asynccontextmanager
async def told_by(
    address: str,
    *,
    model: Named = Named(),  # noqa: B008 - it cannot change
    scrub: Scrub = unscrubbed,
    budget: Budget | None = None,
    limits: LlmLimits | None = None,
    clockwork: Clockwork | None = None,
) -> AsyncIterator[Told]:
    """Open a model at `address` and a stage that asks it."""
    opened = open_model(
        model.adapter,
        base_url=address,
        api_key=API_KEY,
        name=model.name,
        provider=model.provider,
    )
    async with opened as asked:
        clockwork = clockwork or SkippedTime().clockwork()
        yield Told(LlmStage(asked, TARIFF, scrub, budget or Budget(), limits, clockwork))


def without_model() -> Told:
    return Told(LlmStage(None, TARIFF, unscrubbed, Budget()))


def wanting(code: str = CODE, **options: Any) -> Submission:
    return Submission(code, options=Options(**options))
