"""What rows of facts and roll-ups add up to, and the metrics of it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final

import msgspec

from logging_service.analytics import (
    Findings,
    LlmMetrics,
    Metrics,
    PerformanceMetrics,
    ReviewMetrics,
    Subject,
    UsageMetrics,
)
from logging_service.periods import Period
from logging_service.rollups import CALL_COUNTS
from logging_service.sketches import (
    Bins,
    Unique,
    add_bins,
    bin_of,
    hash_of,
    percentiles,
    smallest,
    unpack,
)
from logging_service.uniques import Runs, count_together

_DAY: Final = timedelta(days=1)
_decode_list = msgspec.json.Decoder(list[Bins]).decode

_SUMS: Final = (
    "events",
    "errors",
    "timed",
    "failed",
    "total_us",
    *CALL_COUNTS,
    "cost",
)


class Counted:
    """Numbers that add up, the longest duration, and sketches that merge."""

    def __init__(self) -> None:
        self.sums: Counter[str] = Counter()
        self.max_us = 0
        self.durations: Bins = {}
        self.sessions: Runs = []
        self.users: Runs = []

    @classmethod
    def of(cls, row: Mapping[str, Any], names: Mapping[str, str | None]) -> "Counted":
        """Return what a row says, in which those of one group were added up, named by dimension."""
        counted = cls()
        counted.sums.update({name: int(row[name]) for name in _SUMS if row.get(name) is not None})
        counted.max_us = row.get("max_us") or 0
        counted.sessions = _different(row, "session", names.get("session_id"))
        counted.users = _different(row, "user", names.get("user_id"))
        for bins in _decode_list(f"[{row.get('durations') or ''}]"):
            add_bins(counted.durations, bins)
        add_bins(counted.durations, Counter(map(bin_of, row.get("duration_us") or ())))
        return counted

    def add_hashes(self, row: Mapping[str, Any]) -> None:
        """Add the hashes of a single row, of sessions and users if it has them."""
        for runs, name in ((self.sessions, "sessions"), (self.users, "users")):
            if row.get(name) is not None:
                runs.append(unpack(row[name]))

    @classmethod
    def together(cls, several: Sequence["Counted"]) -> "Counted":
        """Return what several, at least one, add up to."""
        counted = cls()
        for one in several:
            counted.sums.update(one.sums)
            add_bins(counted.durations, one.durations)
            counted.sessions += one.sessions
            counted.users += one.users
        counted.max_us = max(one.max_us for one in several)
        return counted

    def metrics(self, subject: Subject, period: Period, within: Metrics | None = None) -> Metrics:
        """Return the metrics of what was counted in a period; reviews have theirs in their row.

        They are found faster when the metrics of what all of it lies `within` are known.
        """
        if subject == "usage":
            return _usage(self, period, within if isinstance(within, UsageMetrics) else None)
        return _llm(self) if subject == "llm" else _performance(self)


def _different(row: Mapping[str, Any], subject: str, name: str | None) -> Runs:
    texts = row.get(f"{subject}_ids") or [] if name is None else [name]
    single = smallest({hash_of(text.encode()) for text in texts})
    return [*map(unpack, row.get(f"{subject}s") or ()), single]


def _usage(counted: Counted, period: Period, within: UsageMetrics | None) -> UsageMetrics:
    events = counted.sums["events"]
    all_sessions = all_users = None
    if within is not None:
        all_sessions = Unique(within.unique_sessions, within.unique_sessions_is_estimate)
        all_users = Unique(within.unique_users, within.unique_users_is_estimate)
    sessions = count_together(counted.sessions, all_sessions)
    users = count_together(counted.users, all_users)
    # Each was in an event: an estimate may be beyond that.
    return UsageMetrics(
        total_events=events,
        unique_sessions=min(sessions.number, events),
        unique_users=min(users.number, events),
        events_per_day=_per_day(events, period),
        error_rate=counted.sums["errors"] / events if events else 0.0,
        unique_sessions_is_estimate=sessions.is_estimate,
        unique_users_is_estimate=users.is_estimate,
    )


def _llm(counted: Counted) -> LlmMetrics:
    sums = counted.sums
    written = sums["cache_write"] + sums["cache_write_1h"]
    input_tokens = sums["uncached_input"] + sums["cache_read"] + written
    output_tokens = sums["output"] + sums["reasoning"]
    p50, p95, p99 = percentiles(counted.durations, 50, 95, 99)
    return LlmMetrics(
        total_queries=sums["queries"],
        total_tokens=input_tokens + output_tokens + sums["unsplit"],
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cached_tokens=sums["cache_read"],
        reasoning_tokens=sums["reasoning"],
        total_cost=_dollars(sums["cost"]),
        unpriced_queries=sums["unpriced"],
        avg_latency_ms=_average_ms(counted),
        p50_latency_ms=p50,
        p95_latency_ms=p95,
        p99_latency_ms=p99,
    )


def _performance(counted: Counted) -> PerformanceMetrics:
    timed = counted.sums["timed"]
    longest = counted.max_us / 1000
    # What a bin says may lie beyond what is in it.
    p50, p90, p95, p99 = (
        None if one is None else min(one, longest)
        for one in percentiles(counted.durations, 50, 90, 95, 99)
    )
    return PerformanceMetrics(
        count=timed,
        success_rate=1 - counted.sums["failed"] / timed if timed else None,
        avg_duration_ms=_average_ms(counted),
        p50_duration_ms=p50,
        p90_duration_ms=p90,
        p95_duration_ms=p95,
        p99_duration_ms=p99,
        max_duration_ms=longest if timed else None,
    )


_NO_REVIEWS: Final[Mapping[str, Any]] = dict.fromkeys(
    ["reviews", "failed", "cost", "tokens", "unpriced", "timed", "errors", "warnings", "infos"], 0
)


def reviews_of(row: Mapping[str, Any] | None, period: Period) -> ReviewMetrics:
    """Return the metrics of a row that has the reviews of a period together, None for none."""
    if row is None or not row["reviews"]:
        row = _NO_REVIEWS
    reviews = row["reviews"]
    p50_cost, p95_cost = row.get("costs") or (None, None)
    p50_us, p95_us = row.get("durations") or (None, None)
    timed = row["timed"]
    return ReviewMetrics(
        total_reviews=reviews,
        reviews_per_day=_per_day(reviews, period),
        success_rate=1 - row["failed"] / reviews if reviews else None,
        total_cost=_dollars(row["cost"]),
        avg_cost=_dollars(Decimal(row["cost"]) / reviews) if reviews else None,
        p50_cost=None if p50_cost is None else _dollars(p50_cost),
        p95_cost=None if p95_cost is None else _dollars(p95_cost),
        total_tokens=int(row["tokens"]),
        avg_tokens=float(row["tokens"] / reviews) if reviews else None,
        unpriced_queries=int(row["unpriced"]),
        avg_duration_ms=float(row["total_us"] / timed / 1000) if timed else None,
        p50_duration_ms=None if p50_us is None else p50_us / 1000,
        p95_duration_ms=None if p95_us is None else p95_us / 1000,
        findings=Findings(
            error=int(row["errors"] or 0),
            warning=int(row["warnings"] or 0),
            info=int(row["infos"] or 0),
        ),
    )


def _dollars(nanos: int | Decimal) -> Decimal:
    return Decimal(round(nanos)).scaleb(-9)


def _per_day(number: int, period: Period) -> float:
    start, end = period
    return number / ((end - start) / _DAY)


def _average_ms(counted: Counted) -> float | None:
    timed = counted.sums["timed"]
    return counted.sums["total_us"] / timed / 1000 if timed else None
