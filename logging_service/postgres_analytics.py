"""Analytics in PostgreSQL: what facts, ledger and roll-ups add up to at one moment."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Final

import asyncpg

from logging_service.analytics import Answer, Group, GroupKey, Metrics, Part, Question
from logging_service.analytics_statements import SQL, Names, Statement
from logging_service.counted import Counted, reviews_of
from logging_service.errors import QueryRejected
from logging_service.periods import Period, aligned, covering, end_of_quarters, quarter_of
from logging_service.postgres import open_pool, weather

ANSWER_SECONDS: Final = 10.0
_ACQUIRE_SECONDS: Final = 5.0
_GRACE_SECONDS: Final = 2.0  # for a server that no longer minds its own limit
# A quarter hour may have sketches of 64 KiB.
_PARTS_AT_ONCE: Final = 100
# Merging is work for the processor: others have a turn in between.
_ROWS_AT_ONCE: Final = 10

_MICROSECOND: Final = timedelta(microseconds=1)

_Place = tuple[int, Names]
"""The number of a part, from 0 on, and the names of a group."""
_InParts = dict[_Place, Metrics]


class PostgresAnalytics:
    """An AnalyticsReader in PostgreSQL."""

    def __init__(self, pool: asyncpg.Pool, answer_seconds: float = ANSWER_SECONDS) -> None:
        self._pool = pool
        self._answer_seconds = answer_seconds
        # One connection is left to those who ask what has changed.
        self._answers = asyncio.Semaphore(max(1, pool.get_max_size() - 1))

    async def answer(self, question: Question) -> Answer:
        """Return the answer to a question, all of it from one moment.

        Whoever asks by session, or by user together with another dimension, is answered from
        single events and calls: of what retention removed nothing is counted, and time is needed
        for each. Raises QueryRejected for a question that takes longer than ten seconds.
        """
        with weather("analytics"):
            async with asyncio.timeout(_ACQUIRE_SECONDS):
                await self._answers.acquire()
            try:
                return await self._answer(question)
            finally:
                self._answers.release()

    async def _answer(self, question: Question) -> Answer:
        kind = _AskedReviews if question.subject == "reviews" else _Asked
        async with self._pool.acquire(timeout=_ACQUIRE_SECONDS) as connection:
            try:
                async with (
                    asyncio.timeout(self._answer_seconds),
                    connection.transaction(isolation="repeatable_read", readonly=True),
                ):
                    return await kind(connection, question).answer()
            except (TimeoutError, asyncpg.QueryCanceledError):
                raise QueryRejected(
                    "period",
                    f"is too long: adding up took more than {self._answer_seconds:g} s",
                ) from None

    async def version(self) -> str:
        """Return a text that changes whenever an answer about the same time can have changed."""
        with weather("analytics"):
            async with self._pool.acquire(timeout=_ACQUIRE_SECONDS) as connection:
                return "-".join(map(str, await connection.fetchrow(SQL["version"])))


class _Asked:
    """One question about usage, model calls or performance, being answered on a connection."""

    def __init__(self, connection: asyncpg.Connection, question: Question) -> None:
        self._connection = connection
        self._question = question
        is_performance = question.subject == "performance"
        self._dimensions = ("operation",) if is_performance else question.group_by
        self._times: list[Period] = []

    async def answer(self) -> Answer:
        """Return the answer."""
        points = await self._counted_points()
        period = points[0], points[-1]
        page, groups, after = await self._page(period)
        if self._question.series_of_groups:
            metrics, _ = await self._everything(period)
            parts = await self._groups(points, page)
            series = [
                Part(*part, names, parts[number, names])
                for number, part in enumerate(pairwise(points))
                for names in page
            ]
        else:
            metrics, each = await self._everything(points)
            series = [
                Part(*part, None, one) for part, one in zip(pairwise(points), each, strict=True)
            ]
        return Answer(
            *period, metrics, [Group(names, groups[0, names]) for names in page], series, after
        )

    async def _counted_points(self) -> list[datetime]:
        """Return the points, wider where single events at the ends are not there any more."""
        points = aligned(self._question.points)
        if self._question.subject in {"usage", "performance"}:
            if await self._lacks_events(points[0]):
                points[0] = quarter_of(points[0])
            if await self._lacks_events(points[-1]):
                points[-1] = end_of_quarters(points[-1])
        return points

    async def _lacks_events(self, moment: datetime) -> bool:
        start, end = quarter_of(moment), end_of_quarters(moment)
        return start < end and await self._connection.fetchval(SQL["lacks_events"], start, end)

    async def _page(self, period: Period) -> tuple[list[Names], _InParts, GroupKey | None]:
        """Return the groups of the page in order, and behind which one the next page begins."""
        if not self._dimensions:
            return [], {}, None
        limit = self._question.limit
        statement = Statement(self._question, period, self._dimensions)
        rows = await self._fetch(statement, self._ranked(statement, limit + 1))
        page = [_columns(row, "name_") for row in rows[:limit]]
        after = None
        if len(rows) > limit:
            after = GroupKey(tuple(map(int, _columns(rows[limit - 1], "rank_"))), page[-1])
        if statement.adds_up_when_ranking:
            found = await self._counted(rows[:limit])
            groups = {
                place: one.metrics(self._question.subject, period) for place, one in found.items()
            }
        else:
            self._times = _times_of(rows[:limit], period) if statement.tells_times else []
            groups = await self._groups(period, page)
        return page, groups, after

    def _ranked(self, statement: Statement, limit: int) -> str:
        return statement.ranked(self._question.after, limit)

    async def _everything(self, points: Sequence[datetime]) -> tuple[Metrics, list[Metrics]]:
        """Return the metrics of everything together, and those of each part."""
        subject = self._question.subject
        total, parts = Counted(), []
        for first in range(0, len(points) - 1, _PARTS_AT_ONCE):
            some = points[first : first + _PARTS_AT_ONCE + 1]
            found = await self._added_up(Statement(self._question, some))
            parts += [
                found[number, ()].metrics(subject, part)
                for number, part in enumerate(pairwise(some))
            ]
            total = Counted.together([total, *found.values()])
        return total.metrics(subject, (points[0], points[-1])), parts

    async def _groups(self, points: Sequence[datetime], page: Sequence[Names]) -> _InParts:
        """Return the metrics of each group of the page in each part between the points."""
        if not page:
            return {}
        statement = Statement(self._question, points, self._dimensions, page, self._times)
        found = await self._added_up(statement)
        return {
            (number, names): found[number, names].metrics(self._question.subject, part)
            for number, part in enumerate(pairwise(points))
            for names in page
        }

    async def _added_up(self, statement: Statement) -> defaultdict[_Place, Counted]:
        return await self._counted(await self._fetch(statement, statement.added_up()))

    async def _counted(self, rows: Sequence[asyncpg.Record]) -> defaultdict[_Place, Counted]:
        found: defaultdict[_Place, Counted] = defaultdict(Counted)
        for number, row in enumerate(rows):
            if not number % _ROWS_AT_ONCE:
                await asyncio.sleep(0)
            names = _columns(row, "name_")
            dimensions = dict(zip(self._dimensions, names, strict=False))
            found[row.get("part", 1) - 1, names] = Counted.of(row, dimensions)
        return found

    async def _fetch(self, statement: Statement, text: str) -> list[asyncpg.Record]:
        rows: list[asyncpg.Record] = await self._connection.fetch(text, *statement.values)
        return rows


class _AskedReviews(_Asked):
    """One question about reviews: what they cost is not in any roll-up."""

    def _ranked(self, statement: Statement, limit: int) -> str:
        return statement.ranked_reviews(self._question.after, limit)

    async def _everything(self, points: Sequence[datetime]) -> tuple[Metrics, list[Metrics]]:
        statement = Statement(self._question, points)
        rows = await self._fetch(statement, statement.reviews(with_total=True))
        found = {row["part"]: row for row in rows}
        total = reviews_of(found[None], (points[0], points[-1]))
        each: list[Metrics] = [
            reviews_of(found.get(n), part) for n, part in enumerate(pairwise(points), 1)
        ]
        return total, each

    async def _groups(self, points: Sequence[datetime], page: Sequence[Names]) -> _InParts:
        if not page:
            return {}
        statement = Statement(self._question, points, self._dimensions, page)
        rows = await self._fetch(statement, statement.reviews(with_total=False))
        found = {(row["part"] - 1, _columns(row, "name_")): row for row in rows}
        return {
            (number, names): reviews_of(found.get((number, names)), part)
            for number, part in enumerate(pairwise(points))
            for names in page
        }


def _times_of(rows: Sequence[asyncpg.Record], period: Period) -> list[Period]:
    """Return when there was anything of some groups; nothing when that is most of the period."""
    times = covering((row["since"], row["until"] + _MICROSECOND) for row in rows)
    covered = sum((until - since for since, until in times), timedelta())
    return times if covered < (period[1] - period[0]) / 2 else []


def _columns(row: asyncpg.Record, prefix: str) -> tuple[Any, ...]:
    return tuple(value for name, value in row.items() if name.startswith(prefix))


@asynccontextmanager
async def open_postgres_analytics(
    url: str, *, connections: int, answer_seconds: float = ANSWER_SECONDS
) -> AsyncIterator[PostgresAnalytics]:
    """Yield a reader that connects when it is first used."""
    # The settings go into the URL, from where asyncpg takes what it does not know as settings.
    planner = (
        "plan_cache_mode=force_custom_plan&jit=off&work_mem=64MB&random_page_cost=1.1"
        "&enable_partitionwise_aggregate=on"
    )
    async with open_pool(
        f"{url}{'&' if '?' in url else '?'}{planner}",
        connections=connections,
        name="logging-service analytics",
        statement_timeout_ms=round(answer_seconds * 1000),
        command_seconds=answer_seconds + _GRACE_SECONDS,
    ) as pool:
        yield PostgresAnalytics(pool, answer_seconds)
