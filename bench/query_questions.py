"""What is asked of the query service, and how long each answer takes over HTTP."""

import asyncio
import http.client
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple
from urllib.parse import urlencode
from uuid import UUID

from bench.figures import percentile
from bench.query_events import Plan, session_id
from logging_service import wire
from logging_service.event_query import cursor_of
from logging_service.ports import EventKey, Filter

FIRST_PAGE = "first page"
_ASKED_UNSEEN = 3
# A question that takes this long has been asked often enough after a quarter of its requests.
_PATIENCE_SECONDS = 20.0
_SILENCE_SECONDS = 30.0
_CSV = {"Accept": "text/csv"}
_OK, _NOT_MODIFIED = 200, 304

Kind = Literal["analytics", "page"]


class Question(NamedTuple):
    """A request; `repeats` sends back the ETag of an answer just seen, which costs nothing."""

    name: str
    kind: Kind
    path: str
    headers: Mapping[str, str] = {}
    repeats: bool = False

    @property
    def expected(self) -> int:
        """The status of the answer."""
        return _NOT_MODIFIED if self.repeats else _OK


class Answers(NamedTuple):
    """How long the answers took, in ascending milliseconds, and what else came."""

    milliseconds: list[float]
    unexpected: Counter[int]

    def at(self, percent: float) -> float | None:
        """Return a percentile; None when most answers were not those that were expected."""
        if len(self.milliseconds) <= self.unexpected.total():
            return None
        return round(percentile(self.milliseconds, percent), 2)


def questions_about(plan: Plan) -> list[Question]:
    """Return the questions, in the same order for every plan."""
    return [*_analytics(), *_pages(plan)]


_GROUPS: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...] = (
    ("usage", ((), ("event_type",), ("user_id",), ("session_id",))),
    (
        "llm",
        (
            (),
            ("model",),
            ("provider",),
            ("source",),
            ("user_id",),
            ("session_id",),
            ("model", "user_id"),
        ),
    ),
    ("performance", ((),)),
    ("reviews", ((),)),
)


def _analytics() -> list[Question]:
    questions = []
    for subject, groupings in _GROUPS:
        for dimensions in groupings:
            name = f"{subject} by {' and '.join(dimensions)}" if dimensions else subject
            asked = [("days", "7"), *(("group_by", one) for one in dimensions)]
            questions.append(_about(name, subject, asked))
    for subject in ("usage", "llm"):
        kolkata = [("days", "7"), ("timezone", "Asia/Kolkata")]
        questions.append(_about(f"{subject}, days of Asia/Kolkata", subject, kolkata))
        hours = [("days", "2"), ("interval", "hour")]
        questions.append(_about(f"{subject}, hours of 2 days", subject, hours))
        questions.append(_about(f"{subject}, 30 days", subject, [("days", "30")]))
    by_model = [("days", "7"), ("group_by", "model")]
    csv = _about("llm by model, as CSV", "llm", by_model)
    repeated = _about("llm by model, not modified", "llm", by_model)
    return [*questions, csv._replace(headers=_CSV), repeated._replace(repeats=True)]


def _about(name: str, subject: str, asked: Sequence[tuple[str, str]]) -> Question:
    return Question(name, "analytics", f"/analytics/{subject}?{urlencode(asked)}")


def _pages(plan: Plan) -> list[Question]:
    session = session_id(plan.sessions // 2)
    a_day = {
        "start_time": wire.from_micros(plan.moment(0.5)).isoformat(),
        "end_time": wire.from_micros(plan.moment(0.45)).isoformat(),
    }
    filters: tuple[tuple[str, dict[str, str]], ...] = (
        ("page of one event type", {"event_type": "llm_query_sent"}),
        ("page of a rare event type", {"event_type": "error_occurred"}),
        ("page of a session", {"session_id": session}),
        ("page of one and a half days", a_day),
    )
    depths = ((0.01, "1 %"), (0.5, "50 %"), (0.99, "99 %"))
    return [
        Question(FIRST_PAGE, "page", "/events"),
        *(
            Question(f"page behind {name}", "page", f"/events?{urlencode(_behind(plan, share))}")
            for share, name in depths
        ),
        *(Question(name, "page", f"/events?{urlencode(one)}") for name, one in filters),
    ]


def _behind(plan: Plan, share: float) -> dict[str, str]:
    key = EventKey(wire.from_micros(plan.moment(share)), UUID(int=0))
    return {"cursor": cursor_of(key, Filter())}


class Asker:
    """Asks one query service, over a connection that stays open."""

    def __init__(self, port: int, api_key: str) -> None:
        self._connection = http.client.HTTPConnection("localhost", port, timeout=_SILENCE_SECONDS)
        self._key = {"X-API-Key": api_key}

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def read(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, bytes, str]:
        """Return the status, the body and the ETag of an answer."""
        self._connection.request("GET", path, headers={**self._key, **(headers or {})})
        answer = self._connection.getresponse()
        return answer.status, answer.read(), answer.getheader("ETag", "")

    def time(self, question: Question) -> tuple[int, float]:
        """Return the status of an answer and the milliseconds until its last byte."""
        headers = dict(question.headers)
        if question.repeats:
            headers["If-None-Match"] = self.read(question.path, headers)[2]
        began = time.perf_counter()
        status, _, _ = self.read(question.path, headers)
        return status, (time.perf_counter() - began) * 1000


async def ask_in_turn(
    askers: Sequence[Asker], questions: Sequence[Question], times: int
) -> list[Answers]:
    """Ask each asker its own question, by turns, up to `times`; the first few do not count."""
    answers = [Answers([], Counter()) for _ in askers]
    began = time.monotonic()
    for number in range(-_ASKED_UNSEEN, times):
        if number >= times / 4 and time.monotonic() - began > _PATIENCE_SECONDS:
            break
        for asker, question, seen in zip(askers, questions, answers, strict=True):
            status, milliseconds = await asyncio.to_thread(asker.time, question)
            if number < 0:
                continue
            if status == question.expected:
                seen.milliseconds.append(milliseconds)
            else:
                seen.unexpected[status] += 1
    for seen in answers:
        seen.milliseconds.sort()
    return answers
