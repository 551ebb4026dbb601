"""The arithmetic of the figures, and the object in which they are printed."""

import json
import statistics
from collections.abc import Sequence

import msgspec


class Stored(msgspec.Struct):
    """Events a second that reach the database over HTTP, against `COPY` of the same rows."""

    events_per_second: int
    copy_events_per_second: int
    ratio: float


class PostLog(msgspec.Struct):
    """Answers a second of `POST /log`, against those of an empty application."""

    requests_per_second: int
    empty_app_requests_per_second: int
    ratio: float
    p50_ms: float
    p99_ms: float


class Queryable(msgspec.Struct):
    """Milliseconds from an event's 202 to the first SELECT that sees it."""

    p50: float
    p99: float


class Figures(msgspec.Struct, omit_defaults=True):
    """What was measured, in the order in which it is printed; None was not asked for."""

    stored: Stored | None = None
    post_log: PostLog | None = None
    queryable_ms: Queryable | None = None

    def line(self) -> str:
        """Return the figures as one line of JSON."""
        return json.dumps(msgspec.to_builtins(self))


def percentile(ascending: Sequence[float], percent: float) -> float:
    """Return the smallest of the values that at least `percent` % of them do not exceed."""
    if not ascending:
        return float("nan")
    return ascending[max(0, -int(-len(ascending) * percent // 100) - 1)]


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> tuple[int, int, float]:
    """Return both medians, whole, and their quotient."""
    mine, other = statistics.median(ours), statistics.median(theirs)
    return round(mine), round(other), round(mine / other, 3)
