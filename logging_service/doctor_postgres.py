"""What an examination asks PostgreSQL: is it there, is the schema ours, is all of it tidy."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiosql
import asyncpg

from logging_service.backends import open_books, open_seen_queue
from logging_service.balance import Balance
from logging_service.bookkeeper import balance_as_noted
from logging_service.doctor_findings import (
    Check,
    Examined,
    Finding,
    clock_finding,
    examine,
    examine_all,
    failure,
    ok,
    warning,
)
from logging_service.doctor_postgres_settings import NAMES, Setting, judged_settings
from logging_service.hidden_queue import HiddenQueue
from logging_service.pepper import pepper_of
from logging_service.postgres import SCHEMA_REVISION, open_pool, said, schema_revision
from logging_service.postgres_roles import role_warnings
from logging_service.settings import Settings

_sql: Any = aiosql.from_path(Path(__file__).parent / "sql" / "doctor.sql", "asyncpg")

_LEAST_VERSION = 16
_STATEMENT_MS = 1_500
_CONNECTIONS = 4
# A producer, a consumer, a query service and a gateway at full load.
_NEEDED_CONNECTIONS = 60
_CROWDED = 0.8
_DAYS_AHEAD = 7
_MOST_LETTERS = 10_000
_MOST_PEPPERS = 20
_BALANCE_SECONDS = 4.0
_BALANCE = "docs/operations.md, The balance"
_MIGRATE = "`logging-service migrate`"
_UP = (
    "`logging-service up` starts the bundled one; else start yours, or name it: DATABASE_URL or "
    "DATABASE_HOST"
)

# What helps where the server answers and refuses, by the class of the SQLSTATE.
_ADVICE = {
    "28": "correct DATABASE_USER and DATABASE_PASSWORD, or DATABASE_URL",
    "3D": "make the database: docs/operations.md, Two roles",
    "53": "raise max_connections, or end connections that nobody needs",
    "57": "it starts or stops: ask again in a moment",
}

_Question = Callable[[asyncpg.Connection], Awaitable[Sequence[Finding]]]


class _Server(NamedTuple):
    version: str
    is_standby: bool
    is_read_only: bool
    revision: str | None
    offset_seconds: float
    uncertain_seconds: float


def place_of(url: str) -> str:
    """Return where a database is looked for, without how it is entered."""
    parts = urlsplit(url)
    host = parts.hostname or "a local socket"
    return f"{host}:{parts.port or 5432}{parts.path}"


async def examine_postgres(examined: Examined) -> list[Finding]:
    """Return what there is to say of PostgreSQL; of one that does not answer, that alone."""
    settings = examined.settings
    place = place_of(settings.store_url)
    async with open_pool(
        settings.store_url,
        connections=_CONNECTIONS,
        name="logging-service doctor",
        statement_timeout_ms=_STATEMENT_MS,
        command_seconds=_STATEMENT_MS / 1000,
    ) as pool:
        told: list[_Server] = []

        async def ask() -> list[Finding]:
            try:
                async with pool.acquire() as connection:
                    told.append(await _ask(connection))
            except asyncpg.PostgresError as error:
                advice = _ADVICE.get((error.sqlstate or "")[:2], _UP)
                return [failure("postgresql", f"{place}: {said(error)}", advice)]
            return [_version(told[0], place)]

        found = await examine(Check("postgresql", ask, _UP))
        if not told:
            return found
        found += [
            clock_finding("postgresql_clock", told[0].offset_seconds, told[0].uncertain_seconds),
            _schema(told[0].revision),
        ]
        is_ours = told[0].revision == SCHEMA_REVISION
        return found + await examine_all(_checks(pool, settings, is_ours=is_ours))


async def _ask(connection: asyncpg.Connection) -> _Server:
    began = time.time()
    server = await _sql.server(connection)
    took = time.time() - began
    revision = await schema_revision(connection)
    return _Server(
        server["version"].split(" ")[0],
        server["is_standby"],
        server["is_read_only"],
        revision,
        server["now"] - (began + took / 2),
        took / 2,
    )


def _version(server: _Server, place: str) -> Finding:
    check, found = "postgresql", f"PostgreSQL {server.version} at {place}"
    major = server.version.partition(".")[0]
    if server.is_standby:
        return failure(check, f"{found} is a standby", "name the primary in DATABASE_URL")
    if server.is_read_only:
        advice = "`ALTER DATABASE … RESET default_transaction_read_only`, if nobody wants that"
        return failure(check, f"{found} is read-only", advice)
    if major.isdecimal() and int(major) < _LEAST_VERSION:
        return failure(check, f"{found} is too old", f"PostgreSQL {_LEAST_VERSION} or newer")
    return ok(check, found)


def _schema(revision: str | None) -> Finding:
    if revision == SCHEMA_REVISION:
        return ok("schema", f"{revision}, as this release needs it")
    if revision is None:
        return failure("schema", "the database has no schema of ours", _MIGRATE)
    found = f"{revision}, this release needs {SCHEMA_REVISION}"
    if revision < SCHEMA_REVISION:
        return failure("schema", found, _MIGRATE)
    return failure("schema", found, "run the release that made it, or a newer one")


def _checks(pool: asyncpg.Pool, settings: Settings, *, is_ours: bool) -> list[Check]:
    def asked(name: str, question: _Question) -> Check:
        async def run() -> Sequence[Finding]:
            async with pool.acquire() as connection:
                return await question(connection)

        return Check(name, run, "ask again, and see the server's log")

    checks = [
        asked("postgresql_settings", partial(_settings, settings)),
        asked("postgresql_connections", _connections),
    ]
    if is_ours:
        checks += [
            asked("database_roles", _roles),
            asked("partitions", _partitions),
            asked("retention", partial(_retention, settings)),
            asked("dead_letters", _dead_letters),
            asked("api_key_pepper", partial(_peppers, settings)),
            Check("balance", lambda: _balance(settings), seconds=_BALANCE_SECONDS),
        ]
    return checks


async def _settings(settings: Settings, connection: asyncpg.Connection) -> list[Finding]:
    rows = {row["name"]: row async for row in _sql.settings(connection, names=list(NAMES))}
    found = {
        name: Setting(row["setting"], row["bytes"], tuple(row["choices"] or ()))
        for name, row in rows.items()
    }
    payload = await _sql.payload_compression(connection)
    return judged_settings(found, payload, settings.event_ttls.longest)


async def _connections(connection: asyncpg.Connection) -> list[Finding]:
    used, most = tuple(await _sql.connections(connection))
    check, found = "postgresql_connections", f"{used} of {most} connections are in use"
    advice = "`ALTER SYSTEM SET max_connections = 200`, and restart PostgreSQL"
    if used > _CROWDED * most:
        return [warning(check, found, advice)]
    if most < _NEEDED_CONNECTIONS:
        needed = f"{found}; one of each service takes up to {_NEEDED_CONNECTIONS} at full load"
        return [warning(check, needed, advice)]
    return [ok(check, found)]


async def _roles(connection: asyncpg.Connection) -> list[Finding]:
    faults = await role_warnings(connection)
    if not faults:
        return [ok("database_roles", "the services' role can neither change nor remove events")]
    found, _, advice = faults[0].partition(": ")
    return [warning("database_roles", found, advice)]


async def _partitions(connection: asyncpg.Connection) -> list[Finding]:
    days = await _sql.days(connection)
    found = f"{days['partitions']} days have one, of the next {_DAYS_AHEAD} {days['ahead']}"
    if days["ahead"] < _DAYS_AHEAD:
        advice = "start a consumer: it makes them at its start and every hour, or see its log"
        return [warning("partitions", found, advice)]
    return [ok("partitions", f"{found}; the last is {days['last']}")]


async def _retention(settings: Settings, connection: asyncpg.Connection) -> list[Finding]:
    check, longest = "retention", settings.event_ttls.longest
    if not longest:
        note = "LOG_TTL_DAYS=0 keeps events for good: watch the disk"
        return [ok(check, note)]
    days, counts_from = await _sql.days(connection), await _sql.retention_day(connection)
    found = f"events are kept for {longest} days, the oldest are of {days['first'] or 'no day yet'}"
    clock = "the clock of PostgreSQL, and a consumer: it removes what is too old every hour"
    if counts_from is not None and abs((days["today"] - counts_from).days) > 1:
        behind = f"{found}; retention counts from {counts_from}, it is {days['today']}"
        return [warning(check, behind, f"see {clock}")]
    due = days["today"] - timedelta(days=longest + 2)
    if days["first"] is not None and days["first"] < due:
        advice = f"start or see {clock}; `retention_waits` in its log says what holds it up"
        return [warning(check, f"{found}: it is behind", advice)]
    return [ok(check, found)]


async def _dead_letters(connection: asyncpg.Connection) -> list[Finding]:
    row = await _sql.open_letters(connection, most=_MOST_LETTERS)
    if not row["letters"]:
        return [ok("dead_letters", "none")]
    number = f"{row['letters']:,}" + (" or more" if row["letters"] == _MOST_LETTERS else "")
    state = f" (SQLSTATE {row['sqlstate']})" if row["sqlstate"] else ""
    newest = f"the newest of {row['last_seen']:%Y-%m-%d %H:%M}: {row['reason']}{state}"
    advice = "`logging-service dead-letters list` says why; then `replay` or `drop`"
    return [warning("dead_letters", f"{number} could not be stored, {newest}", advice)]


async def _peppers(settings: Settings, connection: asyncpg.Connection) -> list[Finding]:
    check, pepper = "api_key_pepper", pepper_of(settings)
    rows = [row async for row in _sql.peppers(connection, most=_MOST_PEPPERS)]
    keys = sum(row["keys"] for row in rows)
    if not keys:
        return [ok(check, "no made key is active")]
    ours = pepper.fingerprint if pepper else b""
    others = sum(row["keys"] for row in rows if bytes(row["pepper"]) != ours)
    if others:
        found = f"{others} of {keys} active keys were made with another pepper: they are refused"
        advice = "set the API_KEY_PEPPER (or DATA_DIR) of who made them, or make new ones"
        return [warning(check, found, advice)]
    return [ok(check, f"all {keys} active keys were made with it")]


async def _balance(settings: Settings) -> list[Finding]:
    # A file that is the queue itself is left to who uses it: to open it is to write to it.
    is_file = not (settings.use_redis_queue or settings.queue_is_memory)
    async with open_books(settings) as books:
        if is_file:
            return [_judged_balance(await balance_as_noted(HiddenQueue(), books))]
        async with open_seen_queue(settings) as queue:
            return [_judged_balance(await balance_as_noted(queue, books))]


def _judged_balance(balance: Balance) -> Finding:
    check = "balance"
    stored = f"{balance.accepted:,} accepted, {balance.stored:,} stored"
    if balance.balanced is None:
        return ok(check, f"{stored}; the queue was not asked, so it is not known whether that fits")
    terms = ("removed_outside", "rolled_back", "reappeared", "damaged")
    off = {term: getattr(balance, term) for term in terms}
    told = ", ".join(f"{term} {events:,}" for term, events in off.items() if events)
    if not balance.balanced:
        return warning(check, f"{stored}, {told}", f"see {_BALANCE}")
    exactly = "balanced" if balance.exact else "balanced as far as can be told while events move"
    return ok(check, f"{stored}: {exactly}")


async def data_directory(settings: Settings) -> Path | None:
    """Return where the server keeps its files, as it tells us; None where it does not.

    Raises what asyncpg raises.
    """
    connection = await asyncpg.connect(settings.store_url, timeout=_STATEMENT_MS / 1000)
    try:
        async with asyncio.timeout(_STATEMENT_MS / 1000):
            told = await _sql.data_directory(connection)
    finally:
        connection.terminate()
    return Path(told) if told else None
