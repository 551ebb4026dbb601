"""The roll-ups in PostgreSQL without somebody: what was counted stays, of whom it was goes."""

import hmac
import secrets
from collections.abc import Collection
from datetime import datetime
from typing import Any, Final

import asyncpg

from logging_service.postgres_ledger import copy_deltas, copy_roll_up, take_rows
from logging_service.rollups import SPANS, USAGE, USER, Key, RollUp, Sums, Totals, key_of
from logging_service.sketches import hash_of, unpack
from logging_service.statement_parts import parts_of

_SQL: Final = parts_of("erasure.sql")
_HASHED: Final = {USAGE: ("sessions", "users"), USER: ("sessions",)}
# A row may have 64 KiB of hashes.
_ROWS_AT_ONCE: Final = 100

Period = tuple[datetime, datetime]


class Replacing:
    """Gives each hash another one, always the same, that can be traced back by nobody.

    It is smaller, so that it stays among the smallest: as many different ones are counted as
    before.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def of(self, one: int) -> int:
        """Return the other hash."""
        drawn = hmac.digest(self._key, one.to_bytes(8, "big"), "sha256")
        return int.from_bytes(drawn, "big") % max(one, 1)


class ErasedSums:
    """Takes users and sessions out of the roll-ups of a day, in a transaction that alone folds."""

    def __init__(
        self, connection: asyncpg.Connection, users: Collection[str], project: str | None
    ) -> None:
        self._connection = connection
        self._users = frozenset(users)
        self._project = project
        self._user_hashes = {hash_of(user.encode()) for user in users}
        # Of each project: another one may have a session of the same name.
        self._session_hashes: dict[str, set[int]] = {}
        self._replacing = Replacing()

    async def forget(self, period: Period, sessions: Collection[tuple[str, str]]) -> None:
        """Put what a user has under no user, and other hashes where these sessions or users are.

        Each of the sessions comes with its project.
        """
        self._session_hashes = {}
        for session, source in sessions:
            self._session_hashes.setdefault(source, set()).add(hash_of(session.encode()))
        for roll_up in _HASHED:
            await self._forget_waiting(roll_up, period)
            for span in SPANS:
                await self._forget_span(roll_up, span, period)

    async def _forget_waiting(self, roll_up: RollUp, period: Period) -> None:
        take = _SQL["take_deltas"].format(deltas=roll_up.deltas)
        rows = await self._connection.fetch(take, *period, self._project)
        await copy_deltas(self._connection, self._without(roll_up, rows))

    async def _forget_span(self, roll_up: RollUp, span: int, period: Period) -> None:
        keys: set[Key] = set()
        statement = _SQL["hashed"].format(
            table=roll_up.table, keys=", ".join(roll_up.keys), hashes=", ".join(_HASHED[roll_up])
        )
        rows = await self._connection.cursor(statement, span, *period, self._project)
        while some := await rows.fetch(_ROWS_AT_ONCE):
            for row in some:
                key = key_of(roll_up, row)
                other = self._other_key(roll_up, key)
                if key != other or self._has_hashes(roll_up, row):
                    keys |= {key, other}
        if keys:
            taken = await take_rows(self._connection, roll_up, span, list(keys))
            await copy_roll_up(self._connection, self._without(roll_up, taken), span)

    def _has_hashes(self, roll_up: RollUp, row: asyncpg.Record) -> bool:
        return any(
            not self._wanted(column, row).isdisjoint(unpack(row[column]))
            for column in _HASHED[roll_up]
        )

    def _wanted(self, column: str, row: Any) -> set[int]:
        of_project = self._session_hashes.get(row["source"], set())
        return of_project if column == "sessions" else self._user_hashes

    def _other_key(self, roll_up: RollUp, key: Key) -> Key:
        if roll_up is USER and key[-1] in self._users:
            return (*key[:-1], "")
        return key

    def _without(self, roll_up: RollUp, rows: Collection[Any]) -> Totals:
        totals = Totals(roll_up)
        for row in rows:
            sums = Sums.of(row, roll_up.columns)
            for column in _HASHED[roll_up]:
                hashes: set[int] = getattr(sums, column)
                gone = hashes & self._wanted(column, row)
                setattr(sums, column, hashes - gone | set(map(self._replacing.of, gone)))
            totals.of(self._other_key(roll_up, key_of(roll_up, row))).add(sums)
        return totals
