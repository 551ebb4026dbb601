"""A reviewer for tests: ruff as it is, and a model that says what the test wants."""

import asyncio
import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from code_reviewer.budget import Budget
from code_reviewer.child import Limits
from code_reviewer.findings import Options, Submission
from code_reviewer.llm import LlmStage
from code_reviewer.models import Bill, Manner, ModelError, Question, Reply
from code_reviewer.review import Reviewed, Reviewer, ReviewIds, Stage
from code_reviewer.static_analysis import StaticAnalyzer

IDS = ReviewIds("review-1", "session-1")
CODE = "def f(x):\n    return eval(x)\n"
NO_MODEL = Options(llm=False)

Say = Callable[[Question], str]


class ScriptedModel:
    """A model in this process; it answers with what `say` returns, when `may_answer` is set."""

    name = "scripted"
    provider = "stub"
    address = "http://scripted.invalid"
    first_manner = Manner()

    def __init__(self, say: Say) -> None:
        self.say = say
        self.asked: list[Question] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def complete(
        self,
        question: Question,
        manner: Manner,  # noqa: ARG002
        max_tokens: int,  # noqa: ARG002
        seconds: float,  # noqa: ARG002
    ) -> Reply:
        self.asked.append(question)
        await self.may_answer.wait()
        return Reply(self.say(question), {"prompt_tokens": 10, "completion_tokens": 5})


class FlatTariff:
    """Each call takes ten tokens and five, and costs a thousand nano-dollars."""

    def bill(
        self,
        provider: str,  # noqa: ARG002
        model: str,  # noqa: ARG002
        usage: Mapping[str, object] | None,  # noqa: ARG002
        at: datetime,  # noqa: ARG002
    ) -> Bill:
        return Bill(input=10, cached_input=0, cache_write=0, output=5, reasoning=0, nanos=1_000)


def unscrubbed(code: str) -> tuple[str, int]:
    return code, 0


def refuses(_: Question) -> str:
    raise ModelError("unauthorized", "no", http_status=401)


def says(*findings: Mapping[str, Any], summary: str = "Fine.") -> Say:
    whole = [
        {
            "severity": "error",
            "category": "bug",
            "message": "a fault",
            "suggestion": None,
            **finding,
        }
        for finding in findings
    ]
    answer = json.dumps({"summary": summary, "findings": whole})
    return lambda _: answer


def a_reviewer(model: ScriptedModel | None = None, limits: Limits | None = None) -> Reviewer:
    static = StaticAnalyzer(limits=limits or Limits())
    return Reviewer(static, LlmStage(model, FlatTariff(), unscrubbed, Budget()))


class Watched:
    """One review and all that it told on its way."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Mapping[str, Any]]] = []
        self.stages: list[Stage] = []

    def emit(self, event_type: str, payload: Mapping[str, Any]) -> None:
        self.events.append((event_type, payload))

    async def of(self, reviewer: Reviewer, code: str | Submission) -> Reviewed:
        submission = code if isinstance(code, Submission) else Submission(code)
        reviewer.begin(submission, self.emit)
        return await reviewer.review(submission, IDS, self.emit, self.stages.append)

    @property
    def types(self) -> list[str]:
        return [event_type for event_type, _ in self.events]


async def reviewed(reviewer: Reviewer, code: str | Submission) -> Reviewed:
    return await Watched().of(reviewer, code)
