"""The questions that analytics answer, and their answers."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal, NamedTuple, Protocol

import msgspec

Subject = Literal["usage", "llm", "performance", "reviews"]
CostKind = Literal["computed", "reported", "best"]


class GroupKey(NamedTuple):
    """Where a group stands: groups come with the largest rank first, then by their names.

    The rank is one number, or two that are compared one after the other: the cost in nano-dollars
    and the queries of `llm`.
    """

    rank: tuple[int, ...]
    names: tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about the time from the first of `points` to the last, which is not included.

    The points ascend, in UTC; the series has one part between each two. Those between the first
    and the last begin a quarter hour, or are moved to where one does. `group_by` names dimensions
    of the subject, where performance always has its operations; groups come `limit` at a time,
    those behind `after`. With `series_of_groups` each group of the page has a series of its own,
    in place of the one of everything. With a `source` only what that project wrote is counted.
    """

    subject: Subject
    points: tuple[datetime, ...]
    group_by: tuple[str, ...] = ()
    series_of_groups: bool = False
    cost: CostKind = "best"
    limit: int = 100
    after: GroupKey | None = None
    source: str | None = None


class UsageMetrics(msgspec.Struct, omit_defaults=True):
    """What was done; numbers of different ones past 4,096 are estimates, and marked."""

    total_events: int
    unique_sessions: int
    unique_users: int
    events_per_day: float
    """Over the length of the period, or of the part of the series, in days."""
    error_rate: float
    """The share of `error_occurred` events; 0 where there are none at all."""
    unique_sessions_is_estimate: bool = False
    unique_users_is_estimate: bool = False


class LlmMetrics(msgspec.Struct):
    """What models were asked, used and cost; tokens inclusive, dollars exact."""

    total_queries: int
    total_tokens: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    total_cost: Decimal
    unpriced_queries: int
    avg_latency_ms: float | None
    p50_latency_ms: float | None
    p95_latency_ms: float | None
    p99_latency_ms: float | None


class PerformanceMetrics(msgspec.Struct):
    """How long what has a duration took, and how often it went well."""

    count: int
    success_rate: float | None
    avg_duration_ms: float | None
    p50_duration_ms: float | None
    p90_duration_ms: float | None
    p95_duration_ms: float | None
    p99_duration_ms: float | None
    max_duration_ms: float | None


class Findings(msgspec.Struct):
    """What reviews found, as far as they reported it."""

    error: int
    warning: int
    info: int


class ReviewMetrics(msgspec.Struct):
    """Reviews that ended, and the model calls of their sessions.

    Calls count from a day before the period to a day behind it. Costs are in US dollars; a review
    without a model call cost nothing, and of several reviews of a session the last one has the
    cost of all.
    """

    total_reviews: int
    reviews_per_day: float
    success_rate: float | None
    total_cost: Decimal
    avg_cost: Decimal | None
    p50_cost: Decimal | None
    p95_cost: Decimal | None
    total_tokens: int
    avg_tokens: float | None
    unpriced_queries: int
    avg_duration_ms: float | None
    p50_duration_ms: float | None
    p95_duration_ms: float | None
    findings: Findings


Metrics = UsageMetrics | LlmMetrics | PerformanceMetrics | ReviewMetrics


class Group(NamedTuple):
    """One group: the values of the dimensions, None where there was none."""

    names: tuple[str | None, ...]
    metrics: Metrics


class Part(NamedTuple):
    """One part of a series, of a group or, with `names` None, of everything."""

    start: datetime
    end: datetime
    names: tuple[str | None, ...] | None
    metrics: Metrics


class Answer(NamedTuple):
    """The answer: everything together, a page of groups, the series without holes.

    `start` and `end` are what was counted: the time asked for, unless events off the quarter hour
    are gone. `after` is where the next page of groups begins, None on the last.
    """

    start: datetime
    end: datetime
    metrics: Metrics
    groups: list[Group]
    series: list[Part]
    after: GroupKey | None


class AnalyticsReader(Protocol):
    """What is stored, added up; raises BackendUnavailable or SchemaMismatch."""

    async def answer(self, question: Question) -> Answer:
        """Return the answer to a question, all of it from one moment.

        Raises QueryRejected for a question that takes longer than ten seconds.
        """

    async def version(self) -> str:
        """Return a text that changes whenever an answer about the same time can have changed."""
