"""Analytics in PostgreSQL: what facts, ledger and roll-ups add up to at one moment."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Final

import asyncpg

from logging_service.analytics import Answer, Group, GroupKey, Metrics, Part, Question
from logging_service.analytics_statements import SQL, Names, SessionStatement, Statement
from logging_service.counted import Counted, reviews_of
from logging_service.errors import QueryRejected
from logging_service.periods import Period, aligned, covering, end_of_quarters, quarter_of
from logging_service.postgres import open_pool, weather
from logging_service.postgres_sessions import HOURS

ANSWER_SECONDS: Final = 10.0
_ACQUIRE_SECONDS: Final = 5.0
_GRACE_SECONDS: Final = 2.0  # for a server that no longer minds its own limit
# A quarter hour may have sketches of 64 KiB.
_PARTS_AT_ONCE: Final = 100
# Merging is work for the processor: others have a turn in between.
_ROWS_AT_ONCE: Final = 10

_MICROSECOND: Final = timedelta(microseconds=1)
_HOUR: Final = timedelta(hours=1)
_ZERO: Final = datetime(2000, 1, 1, tzinfo=UTC)

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
        kind = _kind_of(question)
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
        by_groups = self._question.series_of_groups
        metrics, each = await self._everything(period if by_groups else points)
        page, groups, after = await self._page(period, metrics)
        if by_groups:
            parts = await self._groups(points, page)
            series = [
                Part(*part, names, parts[number, names])
                for number, part in enumerate(pairwise(points))
                for names in page
            ]
        else:
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
        if start == end:
            return False
        quarter = (start, end, self._question.source)
        lacking: bool = await self._connection.fetchval(SQL["lacks_events"], *quarter)
        return lacking

    async def _page(
        self, period: Period, within: Metrics
    ) -> tuple[list[Names], _InParts, GroupKey | None]:
        """Return the groups of the page in order, and behind which one the next page begins."""
        if not self._dimensions:
            return [], {}, None
        limit = self._question.limit
        statement = Statement(self._question, period, self._dimensions)
        rows = await self._fetch(statement, self._ranked(statement, limit + 1))
        page, after = self._names_of(rows)
        if statement.adds_up_when_ranking:
            found = await self._counted(rows[:limit])
            await self._add_hashes(found, Statement(self._question, period, self._dimensions, page))
            groups = {
                place: one.metrics(self._question.subject, period, within)
                for place, one in found.items()
            }
        else:
            self._times = _times_of(rows[:limit], period) if statement.tells_times else []
            groups = await self._groups(period, page)
        return page, groups, after

    def _ranked(self, statement: Statement, limit: int) -> str:
        return statement.ranked(self._question.after, limit)

    def _names_of(self, rows: Sequence[asyncpg.Record]) -> tuple[list[Names], GroupKey | None]:
        """Return the groups of the page, of which one more was read, and where the next begins."""
        limit = self._question.limit
        page = [_columns(row, "name_") for row in rows[:limit]]
        if len(rows) <= limit:
            return page, None
        return page, GroupKey(tuple(map(int, _columns(rows[limit - 1], "rank_"))), page[-1])

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

    async def _add_hashes(self, found: Mapping[_Place, Counted], statement: Statement) -> None:
        text = statement.sketches() if found else None
        for row in await self._fetch(statement, text) if text else ():
            found[0, _columns(row, "name_")].add_hashes(row)

    async def _fetch(self, statement: Statement, text: str) -> list[asyncpg.Record]:
        rows: list[asyncpg.Record] = await self._connection.fetch(text, *statement.values)
        return rows


class _AskedSessions(_Asked):
    """One question by session: what these did in hours that are over is summed up, mostly."""

    async def _page(
        self, period: Period, within: Metrics
    ) -> tuple[list[Names], _InParts, GroupKey | None]:
        times, hours = await self._pieces(period)
        statement = SessionStatement(self._question, period, times, hours)
        ranked = self._ranked(statement, self._question.limit + 1)
        page, after = self._names_of(await self._fetch(statement, ranked))
        if not page:
            return page, {}, after
        statement = SessionStatement(self._question, period, times, hours, page)
        counted = await self._added_up(statement)
        found = defaultdict(list, {names: [one] for (_, names), one in counted.items()})
        statement = SessionStatement(self._question, period, times, hours)
        for row in await self._fetch(statement, statement.summed_up(page)):
            found[row["name_0"],].append(Counted.of(row, {"session_id": row["name_0"]}))
        groups = {
            (0, names): Counted.together(found[names]).metrics(
                self._question.subject, period, within
            )
            for names in page
        }
        return page, groups, after

    async def _pieces(self, period: Period) -> tuple[list[Period], list[datetime]]:
        """Return the times whose events are to be read, and the hours that are summed up."""
        since, until = period
        first, last = since + (_ZERO - since) % _HOUR, until - (until - _ZERO) % _HOUR
        summed = await self._connection.fetchrow(SQL["summed_hours"], first, last)
        if summed["first"] is None:
            return [period], []
        first, last = summed["first"], summed["last"] + _HOUR
        rows = await self._connection.fetch(HOURS, first, last)
        others = [(row["hour"], row["hour"] + _HOUR) for row in rows if not row["is_right"]]
        times = covering([(since, first), (last, until), *others])
        return [one for one in times if one[0] < one[1]], [
            row["hour"] for row in rows if row["is_right"]
        ]


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


def _kind_of(question: Question) -> type[_Asked]:
    if question.subject == "reviews":
        return _AskedReviews
    if question.group_by == ("session_id",) and not question.series_of_groups:
        return _AskedSessions
    return _Asked


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
