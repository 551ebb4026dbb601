"""What `GET /analytics/*` can be asked: parameters, checked, become a question."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from typing import Annotated, Any, Final, Literal, NamedTuple
from zoneinfo import ZoneInfo

import msgspec
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from logging_service import wire
from logging_service.analytics import CostKind, GroupKey, Question, Subject
from logging_service.errors import QueryRejected
from logging_service.event_query import Moment, no_cursor, opened_cursor, sealed_cursor
from logging_service.local_calendar import Interval, beginnings, zone_names

MOST_PARTS = 10_000
MOST_DAYS = 3660
# How many numbers a group's rank has.
_RANKS: Final[dict[Subject, int]] = {"usage": 1, "llm": 2, "performance": 1, "reviews": 1}
_MOST_RANK: Final = 10**30
_DEFAULT_DAYS = 7
_HOURLY = timedelta(days=2)
# The clocks of all places are a multiple of a quarter hour from UTC since then.
_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
_LATEST = datetime(9998, 1, 1, tzinfo=UTC)


def _zone(name: str) -> str:
    # A plus sign that was not escaped arrives as a space: `Etc/GMT 5`.
    name = name.replace(" ", "+")
    if name not in zone_names():
        raise ValueError("has to be the name of an IANA time zone, such as Europe/Berlin")
    return name


def _split(sent: object) -> object:
    return (
        [name for one in sent for name in str(one).split(",")] if isinstance(sent, list) else sent
    )


def _each_once(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("may name each dimension once only")
    return names


_BY_NAME = (BeforeValidator(_split), AfterValidator(_each_once))
_GROUP_BY: Any = Field(
    default=[],
    description="one group for each value, or for each combination; may be repeated, or have "
    "several names separated by commas",
)
_COST: Any = Field(
    default="best",
    description="which cost: `computed` from prices, `reported` by the sender, or `best`: "
    "computed, else reported",
)


class AnalyticsQuery(BaseModel):
    """The parameters that all questions have."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    days: int | None = Field(
        default=None,
        ge=1,
        le=MOST_DAYS,
        description="so many times 24 hours before now, default 7; instead of the two times",
    )
    start_time: Moment | None = Field(
        default=None,
        description="from this time on, RFC 3339 with an offset; alone: until now",
        examples=["2026-11-16T00:00:00Z"],
    )
    end_time: Moment | None = Field(
        default=None,
        description="before this time; alone: the 7 days before it",
        examples=["2026-11-23T00:00:00Z"],
    )
    interval: Interval | None = Field(
        default=None,
        description="length of the parts of the series, default `hour` up to two days, else `day`",
    )
    timezone: Annotated[str, AfterValidator(_zone)] = Field(
        default="UTC",
        description="whose hours, days, weeks (from Monday) and months these are, by its IANA name",
        examples=["Europe/Berlin"],
    )
    limit: int = Field(default=100, ge=1, le=1000, description="groups on a page")
    cursor: str | None = Field(
        default=None,
        description="`groups_next_cursor` of the page before, with the same parameters",
    )
    series: Literal["groups"] | None = Field(
        default=None, description="`groups`: each group of the page has a series of its own"
    )


class UsageQuery(AnalyticsQuery):
    """The parameters of GET /analytics/usage."""

    group_by: Annotated[list[Literal["event_type", "user_id", "session_id"]], *_BY_NAME] = _GROUP_BY


class LlmQuery(AnalyticsQuery):
    """The parameters of GET /analytics/llm."""

    group_by: Annotated[
        list[Literal["model", "provider", "user_id", "session_id", "source"]], *_BY_NAME
    ] = _GROUP_BY
    cost: CostKind = _COST


class PerformanceQuery(AnalyticsQuery):
    """The parameters of GET /analytics/performance, which always has a group for each operation."""

    group_by: Annotated[list[Literal["operation"]], *_BY_NAME] = Field(
        default=["operation"], description="can be nothing else"
    )


class ReviewsQuery(AnalyticsQuery):
    """The parameters of GET /analytics/reviews."""

    group_by: Annotated[list[Literal["user_id", "source"]], *_BY_NAME] = _GROUP_BY
    cost: CostKind = _COST


SubjectQuery = UsageQuery | LlmQuery | PerformanceQuery | ReviewsQuery


class Asked(NamedTuple):
    """A question, in which zone its answer is told, and what the cursors behind it are bound to."""

    question: Question
    zone: ZoneInfo
    now: datetime
    bound_to: object

    def cursor_behind(self, key: GroupKey) -> str:
        """Return an opaque text for the page behind `key`, of the same period."""
        position = msgspec.json.encode(_Place(wire.to_micros(self.now), key))
        return sealed_cursor(position, self.bound_to)


class _Place(NamedTuple):
    """Where a page of groups begins, and what was now for the first page."""

    now_micros: int
    after: GroupKey


def read_question(
    subject: Subject, query: SubjectQuery, now: datetime, project: str | None = None
) -> Asked:
    """Return what checked parameters ask at the time `now`; raises QueryRejected naming one.

    It is asked of one `project`, or of all.
    """
    group_by: tuple[str, ...] = tuple(query.group_by)
    if query.series and not group_by:
        raise QueryRejected("series", "needs group_by")
    bound_to = (subject, query.model_dump(exclude={"cursor", "limit"}), project)
    after = None
    if query.cursor is not None:
        now, after = _place_in(query.cursor, bound_to, len(group_by))
        if len(after.rank) != _RANKS[subject]:
            raise no_cursor()
    zone = ZoneInfo(query.timezone)
    question = Question(
        subject,
        _points(query, *_period(query, now), zone),
        group_by,
        series_of_groups=query.series is not None,
        cost=getattr(query, "cost", "best"),
        limit=query.limit,
        after=after,
        source=project,
    )
    return Asked(question, zone, now, bound_to)


def _place_in(cursor: str, bound_to: object, names: int) -> tuple[datetime, GroupKey]:
    try:
        place = msgspec.json.decode(opened_cursor(cursor, bound_to), type=_Place)
        now = wire.from_micros(place.now_micros)
    except (ValueError, OverflowError):
        raise no_cursor() from None
    after = place.after
    fits = len(after.names) == names and all(abs(number) < _MOST_RANK for number in after.rank)
    if not fits or "\x00" in "".join(filter(None, after.names)) or not _EARLIEST <= now < _LATEST:
        raise no_cursor()
    return now, after


def _period(query: AnalyticsQuery, now: datetime) -> tuple[datetime, datetime]:
    start, end = query.start_time, query.end_time
    if query.days is not None and (start or end):
        raise QueryRejected("days", "cannot be used together with start_time or end_time")
    for name, moment in (("start_time", start), ("end_time", end)):
        if moment and not _EARLIEST <= moment < _LATEST:
            raise QueryRejected(name, "has to be in the years 2000 to 9997")
    if start and not end and start >= now:
        raise QueryRejected("start_time", "has to be before now")
    end = end or now
    start = start or end - timedelta(days=query.days or _DEFAULT_DAYS)
    if end <= start:
        raise QueryRejected("end_time", "has to be later than start_time")
    if end - start > timedelta(days=MOST_DAYS):
        raise QueryRejected("start_time", f"can be {MOST_DAYS} days before the end at the most")
    return start, end


def _points(
    query: AnalyticsQuery, start: datetime, end: datetime, zone: ZoneInfo
) -> tuple[datetime, ...]:
    interval: Interval = query.interval or ("hour" if end - start <= _HOURLY else "day")
    between = takewhile(lambda point: point < end, beginnings(start, interval, zone))
    points: Sequence[datetime] = (start, *islice(between, MOST_PARTS), end)
    parts = len(points) - 1
    if parts > MOST_PARTS:
        raise QueryRejected(
            "interval", f"divides the period into more than {MOST_PARTS} parts: take a longer one"
        )
    if query.series and parts * query.limit > MOST_PARTS:
        raise QueryRejected(
            "interval",
            f"makes {parts} parts of each group, which times limit may be {MOST_PARTS} at the most",
        )
    return tuple(points)
