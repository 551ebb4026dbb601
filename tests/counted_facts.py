"""What analytics have to answer, counted by hand from the single facts, calls and reviews."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from math import ceil
from typing import Any

import asyncpg

from logging_service.analytics import Question

OPERATIONS = {
    "review_completed": "review",
    "syntax_analysis_completed": "syntax_analysis",
    "llm_query_sent": "llm_query",
}
COSTS = {"computed": "cost_nanos", "reported": "reported_nanos", "best": "best_nanos"}
DAY = timedelta(days=1)
Names = tuple[str | None, ...]
Rows = list[Any]


def nearest_rank(values: Iterable[int], percent: int) -> int | None:
    ordered = sorted(values)
    return ordered[ceil(len(ordered) * percent / 100) - 1] if ordered else None


def milliseconds(micros: float | None) -> float | None:
    return None if micros is None else micros / 1000


def times(rows: Rows, noun: str, *percents: int) -> dict[str, Any]:
    lasted = [row["duration_us"] for row in rows if row["duration_us"] is not None]
    found = {f"avg_{noun}_ms": milliseconds(sum(lasted) / len(lasted) if lasted else None)}
    for percent in percents:
        found[f"p{percent}_{noun}_ms"] = milliseconds(nearest_rank(lasted, percent))
    return found


def usage(rows: Rows, length: timedelta) -> dict[str, Any]:
    errors = sum(row["event_type"] == "error_occurred" for row in rows)
    return {
        "total_events": len(rows),
        "unique_sessions": len({row["session_id"] for row in rows} - {None}),
        "unique_users": len({row["user_id"] for row in rows} - {None}),
        "events_per_day": len(rows) / (length / DAY),
        "error_rate": errors / len(rows) if rows else 0,
    }


def tokens(row: Any) -> int:
    names = ("uncached_input", "cache_read", "cache_write", "cache_write_1h")
    return sum(row[name] for name in (*names, "output", "reasoning", "unsplit"))


def dollars(nanos: float) -> Decimal:
    return Decimal(nanos) / 10**9


def llm(rows: Rows, cost: str) -> dict[str, Any]:
    total = sum(map(tokens, rows))
    output = sum(row["output"] + row["reasoning"] for row in rows)
    return {
        "total_queries": sum(row["queries"] for row in rows),
        "total_tokens": total,
        "input_tokens": total - output - sum(row["unsplit"] for row in rows),
        "output_tokens": output,
        "cached_tokens": sum(row["cache_read"] for row in rows),
        "reasoning_tokens": sum(row["reasoning"] for row in rows),
        "total_cost": dollars(sum(row[COSTS[cost]] or 0 for row in rows)),
        "unpriced_queries": sum(row["unpriced"] for row in rows),
        **times(rows, "latency", 50, 95, 99),
    }


def performance(rows: Rows) -> dict[str, Any]:
    failed = sum(row["is_failed"] for row in rows)
    return {
        "count": len(rows),
        "success_rate": 1 - failed / len(rows) if rows else None,
        **times(rows, "duration", 50, 90, 95, 99),
        "max_duration_ms": milliseconds(max((row["duration_us"] for row in rows), default=None)),
    }


def reviews(rows: Rows, spent: dict[Any, Rows], cost: str, length: timedelta) -> dict[str, Any]:
    """`spent` has the calls that a review's session made, by the review's id."""
    calls = {row["event_id"]: spent.get(row["event_id"], []) for row in rows}
    costs = [sum(call[COSTS[cost]] or 0 for call in some) for some in calls.values()]
    used = sum(tokens(call) for some in calls.values() for call in some)
    number = len(rows)
    found = {
        name: sum(row[f"{name}s"] or 0 for row in rows) for name in ("error", "warning", "info")
    }
    percentiles = [nearest_rank(costs, percent) for percent in (50, 95)]
    return {
        "total_reviews": number,
        "reviews_per_day": number / (length / DAY),
        "success_rate": 1 - sum(row["is_failed"] for row in rows) / number if number else None,
        "total_cost": dollars(sum(costs)),
        "avg_cost": round(dollars(sum(costs)) / number, 9) if number else None,
        "p50_cost": None if percentiles[0] is None else dollars(percentiles[0]),
        "p95_cost": None if percentiles[1] is None else dollars(percentiles[1]),
        "total_tokens": used,
        "avg_tokens": used / number if number else None,
        "unpriced_queries": sum(call["unpriced"] for some in calls.values() for call in some),
        **times(rows, "duration", 50, 95),
        "findings": found,
    }


class Oracle:
    """All facts, calls and reviews of a small database."""

    def __init__(self, facts: Rows, calls: Rows, ended: Rows) -> None:
        self.facts, self.calls, self.ended = facts, calls, ended

    @classmethod
    async def of(cls, database: asyncpg.Connection) -> "Oracle":
        tables = ("event_facts", "llm_calls", "review_facts")
        return cls(*[await database.fetch(f"SELECT * FROM {table}") for table in tables])

    def rows(self, question: Question, start: datetime, end: datetime) -> Rows:
        every = {"llm": self.calls, "reviews": self.ended}.get(question.subject, self.facts)
        return [
            row
            for row in every
            if start <= row["timestamp"] < end
            and question.source in {None, row["source"]}
            and (question.subject != "performance" or row["duration_us"] is not None)
        ]

    def metrics(self, question: Question, rows: Rows, start: datetime, end: datetime) -> Any:
        if question.subject == "usage":
            return usage(rows, end - start)
        if question.subject == "llm":
            return llm(rows, question.cost)
        if question.subject == "performance":
            return performance(rows)
        return reviews(rows, self.spent(question), question.cost, end - start)

    def spent(self, question: Question) -> dict[Any, Rows]:
        """The calls of a session, under the last of its reviews."""
        until = question.points[-1] + DAY
        last: dict[Any, Any] = {}
        for row in sorted(self.ended, key=lambda row: (row["timestamp"], row["event_id"])):
            if row["session_id"] is not None and question.points[0] <= row["timestamp"] < until:
                last[row["source"], row["session_id"]] = row["event_id"]
        found = defaultdict(list)
        for call in self.calls:
            key = call["source"], call["session_id"]
            if key in last and question.points[0] - DAY <= call["timestamp"] < until:
                found[last[key]].append(call)
        return found

    def groups(self, question: Question, start: datetime, end: datetime) -> dict[Names, Any]:
        by_names: defaultdict[Names, Rows] = defaultdict(list)
        for row in self.rows(question, start, end):
            by_names[names_of(question, row)].append(row)
        return {
            names: self.metrics(question, rows, start, end)
            for names, rows in by_names.items()
            if question.subject != "llm" or any(row["queries"] for row in rows)
        }

    def series(self, question: Question, points: Sequence[datetime]) -> list[Any]:
        return [
            self.metrics(question, self.rows(question, *part), *part) for part in pairwise(points)
        ]


def names_of(question: Question, row: Any) -> Names:
    if question.subject == "performance":
        return (OPERATIONS.get(row["event_type"], row["event_type"]),)
    return tuple(row[dimension] for dimension in question.group_by)


def in_order(question: Question, groups: dict[Names, Any]) -> list[Names]:
    ranks: dict[str, Callable[[Any], tuple[Any, ...]]] = {
        "usage": lambda one: (-one["total_events"],),
        "llm": lambda one: (-one["total_cost"], -one["total_queries"]),
        "performance": lambda one: (-one["count"],),
        "reviews": lambda one: (-one["total_reviews"],),
    }
    rank = ranks[question.subject]
    return sorted(
        groups,
        key=lambda names: (
            *rank(groups[names]),
            *((name is None, name or "") for name in names),
        ),
    )
