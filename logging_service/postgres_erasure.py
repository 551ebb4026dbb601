"""Erasure in PostgreSQL: day by day, each in one transaction: a fault leaves no half of one.

What tells which sessions are a user's own goes last: asked again after a fault, it finds the rest.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final

import asyncpg

from logging_service.audit import ERASED, Actor, Note
from logging_service.dead_letters import CRASH
from logging_service.erasure import Erased, Found, Subject, left_of, may_tell_of, told_by
from logging_service.errors import BackendUnavailable
from logging_service.postgres_erased_sums import ErasedSums
from logging_service.postgres_ledger import lock_folding
from logging_service.postgres_notes import note
from logging_service.postgres_sole import note_change, open_sole_connection
from logging_service.statement_parts import parts_of

_SQL: Final = parts_of("erasure.sql")
_FORGET_HOURS: Final = parts_of("sessions.sql")["forget_hours"]

_DAY: Final = timedelta(days=1)
# Payloads and letters may have 256 KiB each.
_EVENTS_AT_ONCE: Final = 100
_LETTERS_AT_ONCE: Final = 50
_CALLS_AT_ONCE: Final = 1_000
_REVIEWS_AT_ONCE: Final = 200
# Folding takes a second at the most, and goes on every few seconds.
_TRIES: Final = 600
_PAUSE_SECONDS: Final = 0.1

Advance = Callable[[int, int], None]


def _period(day: date) -> tuple[datetime, datetime]:
    since = datetime.combine(day, time(), UTC)
    return since, since + _DAY


class PostgresErasure:
    """An Erasure on one connection, beside which nobody rebuilds, prices anew or erases."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def erase(self, subject: Subject, actor: Actor, advance: Advance) -> Erased:
        """Erase a subject, with notes for the audit, and say how much that was.

        Asked again after a fault it does the rest; of who was erased before nothing is found.
        """
        return await _Erasing(self._connection, subject, advance).run(actor)


class _Erasing:
    """One subject under work."""

    def __init__(self, connection: asyncpg.Connection, subject: Subject, advance: Advance) -> None:
        self._connection = connection
        self._subject = subject
        self._users, self._project = list(subject.users), subject.project
        self._keeps_users = subject.kind == "session"
        self._tell = advance
        self._steps = 1
        self._erased = Erased()

    async def run(self, actor: Actor) -> Erased:
        await self._find_sessions()
        whom = (self._users, self._project, list(self._subject.sessions))
        days = [row["day"] for row in await self._connection.fetch(_SQL["days"], *whom)]
        self._steps = 3 * len(days) + 1
        await self._drop_letters()
        await self._drop_stored_reviews()
        sums = ErasedSums(self._connection, self._users, self._project)
        for day in days:
            await self._alone(lambda day=day: self._forget_sums(sums, day))  # type: ignore[misc]
            self._advance()
        for day in days:
            await self._erase_sessions(day)
            self._advance()
        await self._erase_sessions_entries()
        for day in days:
            await self._erase_user(day)
            self._advance()
        await self._erase_user_entries()
        await self._alone(lambda: self._end(actor))
        self._advance()
        return self._erased

    def _advance(self) -> None:
        self._tell(1, self._steps)

    async def _find_sessions(self) -> None:
        await self._connection.execute(_SQL["make_sessions"])
        await self._connection.execute("TRUNCATE subject_sessions")
        texts = list(self._subject.texts)
        name = "sessions" if self._subject.sessions else "sessions_of_user"
        await self._connection.execute(_SQL[name], texts, self._project)
        await self._connection.execute("ANALYZE subject_sessions")

    async def _alone(self, work: Callable[[], Any]) -> None:
        """Do `work` in a transaction in which nobody else rewrites roll-ups."""
        for _ in range(_TRIES):
            async with self._connection.transaction():
                if await lock_folding(self._connection):
                    await work()
                    return
            await asyncio.sleep(_PAUSE_SECONDS)
        raise BackendUnavailable("erase: it has to wait, others rewrite the roll-ups")

    async def _forget_sums(self, sums: ErasedSums, day: date) -> None:
        period = _period(day)
        rows = await self._connection.fetch(_SQL["sessions_on"], *period)
        await sums.forget(period, list(map(tuple, rows)))

    async def _erase_sessions(self, day: date) -> None:
        """Erase the events of sessions, of a user's own sessions those that name nobody."""
        period = _period(day)
        async with self._connection.transaction(isolation="repeatable_read"):
            await self._connection.execute(_SQL["look_up"])
            users = None if self._keeps_users else (None,)
            await self._erase_events("events_of_sessions", period, users)
            clear = _SQL["facts_of_sessions"]
            await self._connection.execute(clear, *period, self._keeps_users)

    async def _erase_user(self, day: date) -> None:
        if not self._users:
            return
        asked = (*_period(day), self._users, self._project)
        async with self._connection.transaction(isolation="repeatable_read"):
            await self._connection.execute(_SQL["look_up"])
            await self._erase_events("events_of_user", asked, self._users)
            await self._connection.execute(_SQL["facts_of_user"], *asked)

    async def _erase_events(
        self, name: str, asked: Sequence[Any], users: Sequence[str | None] | None
    ) -> None:
        rows = await self._connection.cursor(_SQL[name], *asked)
        while some := await rows.fetch(_EVENTS_AT_ONCE):
            left = left_of([Found(*row) for row in some], users)
            told = (*left, self._subject.pseudonym)
            self._erased.events += await self._connection.fetchval(_SQL["erase_events"], *told)

    async def _erase_sessions_entries(self) -> None:
        asked = (self._keeps_users,)
        await self._erase_calls("calls_of_sessions", asked, keep_user=self._keeps_users)
        await self._erase_reviews("reviews_of_sessions", asked)

    async def _erase_user_entries(self) -> None:
        asked = (self._users, self._project)
        await self._erase_calls("calls_of_user", asked, keep_user=False)
        await self._erase_reviews("reviews_of_user", asked)

    async def _erase_calls(self, name: str, asked: Sequence[Any], *, keep_user: bool) -> None:
        async with self._connection.transaction():
            rows = await self._connection.cursor(_SQL[name], *asked)
            while some := await rows.fetch(_CALLS_AT_ONCE):
                times, ids = zip(*some, strict=True)
                told = (times, ids, keep_user, self._subject.pseudonym)
                number = await self._connection.fetchval(_SQL["erase_calls"], *told)
                self._erased.ledger_entries += number

    async def _erase_reviews(self, name: str, asked: Sequence[Any]) -> None:
        # What the server says is "INSERT 0" with the number.
        told = await self._connection.execute(_SQL[name], *asked)
        self._erased.reviews += int(told.rpartition(" ")[2])

    async def _drop_letters(self) -> None:
        beyond = 0
        while rows := await self._connection.fetch(_SQL["letters"], beyond, _LETTERS_AT_ONCE):
            ids = await self._letters_of_subject(rows)
            await self._connection.execute(_SQL["drop_letters"], ids)
            self._erased.dead_letters += len(ids)
            beyond = rows[-1]["id"]

    async def _drop_stored_reviews(self) -> None:
        asked = (self._users, self._project, list(self._subject.sessions), _REVIEWS_AT_ONCE)
        dropped = _REVIEWS_AT_ONCE
        while dropped == _REVIEWS_AT_ONCE:
            # What the server says is "DELETE" with the number.
            told = await self._connection.execute(_SQL["drop_stored_reviews"], *asked)
            dropped = int(told.rpartition(" ")[2])
            self._erased.stored_reviews += dropped

    async def _letters_of_subject(self, rows: Sequence[asyncpg.Record]) -> list[int]:
        subject = self._subject
        # Bytes that ended those who read them are not read.
        told = {row["id"]: told_by(row["event"]) for row in rows if row["reason"] != CRASH}
        named = [one.session_id for one in told.values() if one and one.session_id]
        gone = set(map(tuple, await self._connection.fetch(_SQL["some_sessions"], named)))
        ids = []
        for row in rows:
            one = told.get(row["id"])
            if one is None:
                is_it = may_tell_of(subject, row["event"])
            else:
                own = one.user in subject.users or one.session_id in subject.sessions
                nobodys = self._keeps_users or one.user is None
                is_it = own and subject.is_of_project(one.source)
                is_it = is_it or (nobodys and (one.session_id, one.source) in gone)
            if is_it:
                ids.append(row["id"])
        return ids

    async def _end(self, actor: Actor) -> None:
        asked = (self._users, self._project)
        rows = await self._connection.fetch(_SQL["sums_of_sessions"], *asked)
        await self._connection.execute(_FORGET_HOURS, [row["hour"] for row in rows])
        await note_change(self._connection)
        told = {
            "subject": self._subject.pseudonym,
            "kind": self._subject.kind,
            "project": self._project,
            "events": self._erased.events,
            "ledger_entries": self._erased.ledger_entries,
            "reviews": self._erased.reviews,
            "dead_letters": self._erased.dead_letters,
            "stored_reviews": self._erased.stored_reviews,
        }
        await note(self._connection, Note(ERASED, actor, told))


@asynccontextmanager
async def open_postgres_erasure(url: str) -> AsyncIterator[PostgresErasure]:
    """Yield what erases in the database at `url`.

    Raises BackendUnavailable while another one corrects, and SchemaMismatch.
    """
    async with open_sole_connection(url, "erase") as connection:
        yield PostgresErasure(connection)
