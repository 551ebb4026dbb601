"""The two roles in PostgreSQL: who owns the schema, and what the services' role may do in it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import aiosql
import asyncpg

from logging_service.errors import SchemaMismatch, SettingsError

_sql: Any = aiosql.from_path(Path(__file__).parent / "sql" / "roles.sql", "asyncpg")

_CONNECT_SECONDS = 5
_READ = "SELECT"
_ADD = "SELECT, INSERT"
_CHANGE = "SELECT, INSERT, UPDATE"
_REPLACE = "SELECT, INSERT, DELETE"
_ALL = "SELECT, INSERT, UPDATE, DELETE"

RIGHTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "alembic_version": _READ,
        "log_events": _ADD,
        "llm_calls": _ADD,
        "event_facts": _REPLACE,
        "review_facts": _REPLACE,
        "usage_rollup": _REPLACE,
        "user_rollup": _REPLACE,
        "llm_rollup": _REPLACE,
        "usage_deltas": _REPLACE,
        "user_deltas": _REPLACE,
        "llm_deltas": _REPLACE,
        "session_hours": _REPLACE,
        "session_sums": _ALL,
        "thinned_days": _READ,
        "retention_clock": _READ,
        "ledger_changes": "SELECT, UPDATE",
        "deliveries": _ALL,
        "epochs": _ALL,
        "moves": _ALL,
        "trials": _ALL,
        "dead_letters": _ALL,
        "audit_outbox": _REPLACE,
        "api_keys": _CHANGE,
        "api_key_uses": _ALL,
        "key_changes": "SELECT, UPDATE",
        "reviews": _ALL,
    }
)
"""What the services' role may do, by table; it has no right on any partition."""
# What is emptied again and again is vacuumed by who empties it, where PostgreSQL has that right.
_VACUUMED = ("usage_deltas", "user_deltas", "llm_deltas")
_MAINTAIN_SINCE = 17
_FUNCTIONS = (
    "make_partitions(date[])",
    "pass_day()",
    "drop_partitions(text, date, text[])",
    "delete_events(date, text, integer)",
    "forget_thinned_days(date)",
    "erase_events(timestamptz[], uuid[], json[], text)",
    "erase_calls(timestamptz[], uuid[], boolean, text)",
)

_MAY_ALTER = (
    "the services' database role may change or remove stored events: give the schema to a role of "
    "its own, DATABASE_OWNER_URL (docs/operations.md, Two roles)"
)

_NOT_THE_OWNER = (
    "the tables belong to another role: run `logging-service migrate` with the DATABASE_OWNER_URL "
    "of that one (docs/operations.md, Two roles)"
)


async def services_role(owner_url: str, services_url: str) -> str | None:
    """Return the role of the services, None where it is the one that migrates.

    Raises SettingsError when the two URLs name different databases, SchemaMismatch, with what an
    administrator has to run, when the tables belong to another role than the one that migrates.
    """
    services = await asyncpg.connect(services_url, timeout=_CONNECT_SECONDS)
    try:
        theirs = await _sql.whose(services)
    finally:
        await services.close()
    owner = await asyncpg.connect(owner_url, timeout=_CONNECT_SECONDS)
    try:
        ours = await _sql.whose(owner)
        if ours["database"] != theirs["database"]:
            raise SettingsError(
                f"DATABASE_OWNER_URL leads to the database {ours['database']}, but the services "
                f"use {theirs['database']}: both have to be the same"
            )
        role = None if ours["role"] == theirs["role"] else theirs["role"]
        if hand_over := await _sql.hand_over(owner, role=role):
            if role is None:
                raise SchemaMismatch(_NOT_THE_OWNER)
            raise SchemaMismatch(
                f"the tables do not belong to {ours['role']}, who migrates; as an administrator, "
                f"run in this database: {hand_over} (docs/operations.md, Two roles)"
            )
        return role
    finally:
        await owner.close()


async def grant_rights(owner: asyncpg.Connection, role: str) -> None:
    """Give `role` what the services need in the schema of `owner`, and take away all else.

    In the connection's transaction: at no moment does a service lack a right.
    """
    rights = dict(RIGHTS)
    if owner.get_server_version().major >= _MAINTAIN_SINCE:
        rights |= {table: f"{rights[table]}, MAINTAIN" for table in _VACUUMED}
    tables = list(rights)
    await _run(owner, [row async for row in _sql.clearing(owner, role=role, tables=tables)])
    given = {"tables": tables, "rights": list(rights.values()), "functions": _FUNCTIONS}
    await _run(owner, [row async for row in _sql.giving(owner, role=role, **given)])


async def _run(owner: asyncpg.Connection, rows: Sequence[asyncpg.Record]) -> None:
    for row in rows:
        await owner.execute(row["statement"])


async def role_warnings(services: asyncpg.Connection) -> list[str]:
    """Return what is to be said of the role that is connected, nothing where it is as it should."""
    return [_MAY_ALTER] if await _sql.may_alter(services) else []
