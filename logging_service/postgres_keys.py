"""The keys in PostgreSQL: made, shown, rotated, revoked, and told to who checks requests."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import aiosql
import asyncpg
import msgspec

from logging_service import audit
from logging_service.api_keys import (
    MAX_ACTIVE_KEYS,
    USUAL_OVERLAP,
    ApiKey,
    KeyChanges,
    KeyPlace,
    KeyTerms,
    KeyUse,
    MadeKey,
    StoredKey,
    checked_overlap,
)
from logging_service.errors import KeyConflict, SettingsError
from logging_service.key_text import make_key
from logging_service.pepper import Pepper
from logging_service.postgres import open_pool, weather
from logging_service.postgres_notes import note

_sql: Any = aiosql.from_path(Path(__file__).parent / "sql" / "api_keys.sql", "asyncpg")

_STATEMENT_MS = 10_000
_ACQUIRE_SECONDS = 5.0
_MOST_FOUND = 20
# Beyond that many changes it is less work to load the keys that are good than those that changed.
_MOST_CHANGES = 1000

_ACTIVE = "revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())"


class Peppers(NamedTuple):
    """How to get the pepper that there is, if there is one, and one in any case."""

    present: Callable[[], Pepper | None]
    kept: Callable[[], Pepper]


class PostgresKeys:
    """KeyStore in PostgreSQL."""

    def __init__(self, pool: asyncpg.Pool, peppers: Peppers) -> None:
        self._pool = pool
        self._peppers = peppers

    async def create(self, terms: KeyTerms, by: audit.Actor) -> MadeKey:
        """Make a key; raises KeyConflict while MAX_ACTIVE_KEYS are active."""
        async with self._transaction() as connection:
            change = await _sql.begin_change(connection)
            made = await self._insert(connection, terms, by, change)
            await _note(connection, audit.KEY_CREATED, by, made.key)
        return made

    async def page(
        self, limit: int, after: KeyPlace | None = None, *, ended: bool = False
    ) -> list[ApiKey]:
        """Return up to `limit` keys, newest first; with `ended` also revoked and expired ones."""
        conditions = ["true" if ended else _ACTIVE]
        if after is not None:
            conditions.append("(created_at, id) < ($1, $2)")
        async with self._connection() as connection:
            return await self._shown(connection, conditions, after or (), limit)

    async def find(self, id_or_name: str) -> list[ApiKey]:
        """Return the key of that id, else the active ones of that name, else the ended ones."""
        async with self._connection() as connection:
            for condition in ("id = $1", f"name = $1 AND {_ACTIVE}", "name = $1"):
                found = await self._shown(connection, [condition], (id_or_name,), _MOST_FOUND)
                if found:
                    return found
        return []

    async def rotate(
        self, key_id: str, by: audit.Actor, overlap: timedelta = USUAL_OVERLAP
    ) -> MadeKey | None:
        """Make a key on the same terms, which lives as long; the old one ends after `overlap`.

        None: there is no such key. Raises KeyConflict for one that is revoked, expired or rotated
        already, KeyRejected for an overlap that is not from 0 to 30 days.
        """
        checked_overlap(overlap)
        async with self._transaction() as connection:
            row = await _sql.lock_key(connection, id=key_id)
            if row is None:
                return None
            _refuse_to_rotate(key_id, row)
            change = await _sql.begin_change(connection)
            named = make_key()
            await _sql.hand_over(
                connection, id=key_id, overlap=overlap, successor=named[0], change=change
            )
            lifetime = row["lifetime"]
            made = await self._insert(
                connection, _terms_again(row), by, change, named=named, lifetime=lifetime
            )
            old = await self._one(connection, key_id)
            await _note(connection, audit.KEY_ROTATED, by, old, rotated_to=made.key.id)
        return made

    async def revoke(self, key_id: str, by: audit.Actor) -> ApiKey | None:
        """End a key now, if it has not ended that way before; None: there is no such key."""
        async with self._transaction() as connection:
            row = await _sql.lock_key(connection, id=key_id)
            if row is None:
                return None
            if row["revoked_at"] is None:
                change = await _sql.begin_change(connection)
                await _sql.end_key(connection, id=key_id, change=change)
            key = await self._one(connection, key_id)
            if row["revoked_at"] is None:
                await _note(connection, audit.KEY_REVOKED, by, key)
        return key

    async def uses(self, key_ids: Sequence[str]) -> dict[str, KeyUse]:
        """Return the use of keys by id, of those that were ever used; `API_KEY` is an id too."""
        async with self._connection() as connection:
            rows = [row async for row in _sql.uses_of(connection, ids=key_ids)]
        return {row[0]: KeyUse(row[1], row[2]) for row in rows}

    async def changes(self, since: int) -> KeyChanges | None:
        """Return what has changed since `since`, -1: all that is good now; None: nothing has."""
        async with self._connection() as connection:
            # Before the rows: what changes in between is told again, and not missed.
            number = await _sql.newest_change(connection)
            if number == since:
                return None
            is_whole = not 0 <= since < number or number - since > _MOST_CHANGES
            rows = (
                _sql.good_keys(connection, most=MAX_ACTIVE_KEYS)
                if is_whole
                else _sql.changed_keys(connection, since=since)
            )
            return KeyChanges(number, [_stored(row) async for row in rows], is_whole)

    async def note_uses(self, uses: Mapping[tuple[str, datetime], int]) -> None:
        """Add numbers of requests, by key id and the beginning of an hour."""
        async with self._transaction() as connection:
            await _sql.add_uses(
                connection,
                ids=[key_id for key_id, _ in uses],
                hours=[hour for _, hour in uses],
                requests=list(uses.values()),
            )

    async def forget_old_uses(self) -> None:
        """Drop what is older than two days, but of each key the last hour of its use."""
        async with self._connection() as connection:
            await _sql.drop_old_uses(connection)

    async def _insert(
        self,
        connection: asyncpg.Connection,
        terms: KeyTerms,
        by: audit.Actor,
        change: int,
        *,
        named: tuple[str, str] | None = None,
        lifetime: timedelta | None = None,
    ) -> MadeKey:
        pepper = await self._pepper(connection)
        key_id, key = named or make_key()
        await _sql.insert_key(
            connection,
            id=key_id,
            name=terms.name,
            project=terms.project,
            scopes=sorted(terms.scopes),
            digest=pepper.digest(key.encode()),
            pepper=pepper.fingerprint,
            rates=msgspec.json.encode(terms.rates),
            networks=list(terms.networks),
            created_by=by.by,
            expires_at=terms.expires_at,
            lifetime=lifetime,
            change=change,
        )
        return MadeKey(key, await self._one(connection, key_id))

    async def _pepper(self, connection: asyncpg.Connection) -> Pepper:
        active = await _sql.active_keys(connection)
        if active >= MAX_ACTIVE_KEYS:
            raise KeyConflict(f"{MAX_ACTIVE_KEYS} keys are active, the most there may be.")
        if active and self._peppers.present() is None:
            # A second pepper would make a key that the services refuse.
            raise KeyConflict(
                "The pepper of the keys that are active is not here: use the services' "
                "API_KEY_PEPPER or DATA_DIR. If it is lost, set a new API_KEY_PEPPER for all."
            )
        try:
            return self._peppers.kept()
        except SettingsError as error:
            raise KeyConflict(f"A new pepper cannot be kept: {error}") from error

    async def _one(self, connection: asyncpg.Connection, key_id: str) -> ApiKey:
        return (await self._shown(connection, ["id = $1"], (key_id,), 1))[0]

    async def _shown(
        self,
        connection: asyncpg.Connection,
        conditions: Sequence[str],
        values: Sequence[object],
        limit: int,
    ) -> list[ApiKey]:
        text = _sql.shown_keys.sql.format(
            conditions=" AND ".join(f"({condition})" for condition in conditions),
            limit=f"${len(values) + 1}",
        )
        rows = await connection.fetch(text, *values, limit)
        pepper = self._peppers.present()
        fingerprint = pepper.fingerprint if pepper else b""
        return [_shown_key(dict(row), fingerprint) for row in rows]

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[asyncpg.Connection]:
        with weather("keys"):
            async with self._pool.acquire(timeout=_ACQUIRE_SECONDS) as connection:
                yield connection

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[asyncpg.Connection]:
        async with self._connection() as connection, connection.transaction():
            yield connection


def _refuse_to_rotate(key_id: str, row: asyncpg.Record) -> None:
    if row["revoked_at"] is not None:
        raise KeyConflict(f"The key {key_id} is revoked; create a new one.")
    if row["rotated_to"] is not None:
        raise KeyConflict(f"The key {key_id} was rotated already, to {row['rotated_to']}.")
    if row["is_expired"]:
        raise KeyConflict(f"The key {key_id} has expired; create a new one.")


def _terms_again(row: asyncpg.Record) -> KeyTerms:
    return KeyTerms(
        row["name"],
        row["project"],
        frozenset(row["scopes"]),
        _rates_in(row["rates"]),
        tuple(row["networks"]),
        None,
    )


async def _note(
    connection: asyncpg.Connection,
    event_type: str,
    by: audit.Actor,
    key: ApiKey,
    **more: str,
) -> None:
    told = {
        "id": key.id,
        "name": key.name,
        "project": key.project,
        "scopes": key.scopes,
        "rates": key.rates,
        "networks": key.networks,
        "expires_at": key.expires_at,
        **more,
    }
    await note(connection, audit.Note(event_type, by, {"key": told}))


def _shown_key(row: dict[str, Any], fingerprint: bytes) -> ApiKey:
    has_other_pepper = row.pop("pepper") != fingerprint
    rates, expires_at = _rates_in(row.pop("rates")), _moment(row.pop("expires_at"))
    return ApiKey(**row, rates=rates, expires_at=expires_at, has_other_pepper=has_other_pepper)


# A row may have been changed by hand: it must not keep the others from being told.
def _rates_in(column: bytes) -> dict[str, str]:
    try:
        return msgspec.json.decode(column, type=dict[str, str])
    except msgspec.DecodeError:
        return {"": "unreadable"}


def _moment(expires_at: datetime | None) -> datetime | None:
    # PostgreSQL's infinite times come without a zone.
    return expires_at and expires_at.replace(tzinfo=UTC)


def _stored(row: asyncpg.Record) -> StoredKey:
    return StoredKey(
        row["id"],
        row["name"],
        row["project"],
        frozenset(row["scopes"]),
        row["digest"],
        row["pepper"],
        _rates_in(row["rates"]),
        tuple(map(str, row["networks"])),
        _moment(row["expires_at"]),
        is_revoked=row["revoked_at"] is not None,
    )


@asynccontextmanager
async def open_postgres_keys(
    url: str, *, connections: int, peppers: Peppers
) -> AsyncIterator[PostgresKeys]:
    """Yield the keys in the database at `url`; it connects when it is first used."""
    async with open_pool(
        url,
        connections=connections,
        name="logging-service keys",
        statement_timeout_ms=_STATEMENT_MS,
        command_seconds=_STATEMENT_MS / 1000 + 2,
        durable=True,
    ) as pool:
        yield PostgresKeys(pool, peppers)
