"""Reviews in PostgreSQL."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import asyncpg
import msgspec

from gateway.stored_reviews import Place, StoredReview, Wanted
from logging_service.audit import RETENTION, Actor, Note
from logging_service.errors import BackendUnavailable
from logging_service.postgres import check_schema, open_pool, weather
from logging_service.postgres_notes import note
from logging_service.statement_parts import parts_of

# An absolute path is taken as it is.
_SQL: Final = parts_of(str(Path(__file__).parent / "sql" / "reviews.sql"))

_STATEMENT_MS: Final = 5_000
_ACQUIRE_SECONDS: Final = 2.0
_CONNECTIONS: Final = 4
_RETENTION: Final = Actor("retention", None)
LEFT_AFTER: Final = timedelta(minutes=10)
"""No review takes that long: one that still runs then was left by who was at work on it."""
_EVENT_LEASE: Final = timedelta(seconds=30)

# A field of a StoredReview has the name of its column, but for those that hold JSON.
_FIELDS: Final = StoredReview.__struct_fields__
_COLUMNS: Final = tuple(name.removesuffix("_json") for name in _FIELDS)
_BULKY: Final = frozenset({"code_json", "result_json", "feedback_json", "usage_json", "event_json"})
_SHORT: Final = ", ".join(
    "NULL::json" if field in _BULKY else column
    for field, column in zip(_FIELDS, _COLUMNS, strict=True)
)
_ALL: Final = ", ".join(_COLUMNS)
_PLACES: Final = {field: f"${number}" for number, field in enumerate(_FIELDS, 1)}
_DUE: Final = (
    "{event_json}::json IS NOT NULL AND {event_sent_at}::timestamptz IS NULL"
    " AND {event_refused}::text IS NULL"
).format_map(_PLACES)
_VALUES: Final = ", ".join(_PLACES.values())
_EXCLUDED: Final = ", ".join(f"excluded.{column}" for column in _COLUMNS)


def _filled(name: str, **more: str) -> str:
    parts = {"columns": _ALL, "values": _VALUES, "due": _DUE, "excluded": _EXCLUDED}
    return _SQL[name].format_map(parts | more)


_BEGIN: Final = _filled("begin")
_SAME_KEY: Final = _filled("same_key")
_FINISH: Final = _filled("finish", review_id=_PLACES["review_id"])
_PUT: Final = _filled("put")
_FIND: Final = _filled("find")
_CACHED: Final = _filled("cached")
_LEFT_RUNNING: Final = _filled("left_running")


def _values(review: StoredReview) -> list[Any]:
    return [getattr(review, field) for field in _FIELDS]


def _review(row: Sequence[Any]) -> StoredReview:
    values: list[Any] = [str(value) if isinstance(value, UUID) else value for value in row]
    return StoredReview(**dict(zip(_FIELDS, values, strict=True)))


class ReviewStore:
    """Reviews in a table; every method raises BackendUnavailable or SchemaMismatch.

    What the database refuses as wrong raises PostgresError as it is.
    """

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def check(self) -> None:
        """Return when the database answers and has a schema that fits."""
        await check_schema(self._pool)

    async def begin(self, review: StoredReview) -> StoredReview | None:
        """Store a review that begins, unless there is one with its idempotency key: return that."""
        async with self._connection() as connection:
            if await connection.fetchval(_BEGIN, *_values(review)):
                return None
            asked = (review.project, review.idempotency_digest)
            row = await connection.fetchrow(_SAME_KEY, *asked)
        if row is None:
            raise BackendUnavailable("reviews: the id is taken")
        return _review(row)

    async def finish(self, review: StoredReview) -> bool:
        """Store the end of a review that runs; False when it has ended before, or was erased."""
        async with self._connection() as connection:
            return bool(await connection.fetchval(_FINISH, *_values(review)))

    async def put(self, review: StoredReview) -> None:
        """Store a review whether its begin was or not; one that has ended stays as it is."""
        async with self._connection() as connection:
            try:
                await connection.execute(_PUT, *_values(review))
            except asyncpg.UniqueViolationError:
                # Another came with the same idempotency key while the database was away.
                alone = msgspec.structs.replace(review, idempotency_digest=None)
                await connection.execute(_PUT, *_values(alone))

    async def find(self, review_id: str, project: str | None) -> StoredReview | None:
        """Return a review of a project, or of any; None when there is none."""
        async with self._connection() as connection:
            row = await connection.fetchrow(_FIND, review_id, project)
        return row and _review(row)

    async def cached(self, content_key: str, project: str, since: datetime) -> StoredReview | None:
        """Return the last review of this content that completed, of those begun since."""
        async with self._connection() as connection:
            row = await connection.fetchrow(_CACHED, content_key, project, since)
        return row and _review(row)

    async def page(self, wanted: Wanted, after: Place | None, limit: int) -> list[StoredReview]:
        """Return reviews, newest first, without what a list does not tell."""
        conditions, asked = ["true"], list[Any]()
        for column, value in wanted._asdict().items():
            if value is not None:
                asked.append(value)
                conditions.append(f"{column} = ${len(asked)}")
        if after:
            asked += after
            place = f"(${len(asked) - 1}, ${len(asked)}::uuid)"
            conditions.append(f"(created_at, review_id) < {place}")
        asked.append(limit)
        statement = _filled(
            "page",
            columns=_SHORT,
            conditions=" AND ".join(conditions),
            limit=f"${len(asked)}",
        )
        async with self._connection() as connection:
            return [_review(row) for row in await connection.fetch(statement, *asked)]

    async def spent_nanos(self, day: date) -> int:
        """Return what the reviews that began on a UTC day cost, as far as it is known."""
        since = datetime.combine(day, time(), UTC)
        async with self._connection() as connection:
            asked = (since, since + timedelta(days=1))
            spent: int = await connection.fetchval(_SQL["spent"], *asked)
        return spent

    async def interrupt(
        self,
        instances: Sequence[str],
        interrupted: Callable[[StoredReview], StoredReview],
        most: int,
    ) -> int:
        """End reviews that still run and were begun by `instances`, or ten minutes ago by any.

        Returns how many, at most `most` of them.
        """
        async with self._connection() as connection, connection.transaction():
            asked = (instances, LEFT_AFTER, most)
            left = [
                interrupted(_review(row)) for row in await connection.fetch(_LEFT_RUNNING, *asked)
            ]
            if left:
                await connection.executemany(_FINISH, map(_values, left))
        return len(left)

    async def lease_events(self, most: int) -> dict[str, bytes]:
        """Return events that are to be posted, by review; nobody else gets them for a while."""
        async with self._connection() as connection:
            rows = await connection.fetch(_SQL["lease_events"], most, _EVENT_LEASE)
        return {str(row["review_id"]): row["event"] for row in rows}

    async def release_events(self, review_ids: Sequence[str]) -> None:
        """Let events be leased again at once."""
        async with self._connection() as connection:
            await connection.execute(_SQL["release_events"], review_ids)

    async def settle_events(self, reasons: Mapping[str, str | None]) -> None:
        """Note which events were taken, and which were refused for which reason."""
        async with self._connection() as connection:
            told = (list(reasons), list(reasons.values()))
            await connection.execute(_SQL["settle_events"], *told)

    async def delete_old(self, ttl: timedelta, most: int) -> int:
        """Delete some reviews of days that are over since `ttl`; return how many, 0: none left.

        A clock that was set wrong ends them day by day, as it does events.
        """
        async with self._connection() as connection, connection.transaction():
            today: date = await connection.fetchval("SELECT pass_day()")
            before = datetime.combine(today, time(), UTC) - ttl
            told = await connection.execute(_SQL["delete_old"], before, most)
            # What the server says is "DELETE" with the number.
            deleted = int(told.rpartition(" ")[2])
            if deleted:
                done = {"reviews_before": before.date(), "reviews": deleted}
                await note(connection, Note(RETENTION, _RETENTION, done))
        return deleted

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[asyncpg.Connection]:
        with weather("reviews"):
            async with self._pool.acquire(timeout=_ACQUIRE_SECONDS) as connection:
                yield connection


@asynccontextmanager
async def open_review_store(url: str) -> AsyncIterator[ReviewStore]:
    """Yield the reviews in the database at `url`; it connects when it is first used."""
    async with open_pool(
        url,
        connections=_CONNECTIONS,
        name="logging-service gateway",
        statement_timeout_ms=_STATEMENT_MS,
        command_seconds=_STATEMENT_MS / 1000 + 1,
        durable=True,
    ) as pool:
        yield ReviewStore(pool)
