"""PostgreSQL's settings that matter to us, each with what it was measured to be worth."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from logging_service.doctor_findings import Finding, failure, ok, warning

_GIB = 1024**3
_LONG_DAYS = 90
_MANY_LOCKS = 1024


class Setting(NamedTuple):
    """A setting's value, its bytes where it is a size, and what else it could be."""

    value: str
    size: int | None = None
    choices: tuple[str, ...] = ()


class _Server(NamedTuple):
    settings: Mapping[str, Setting]
    payload_compression: str | None
    kept_days: int

    def value(self, name: str) -> str:
        found = self.settings.get(name)
        return found.value if found else "(not told)"

    def size(self, name: str) -> int:
        found = self.settings.get(name)
        return (found.size if found else None) or 0


def _set(text: str) -> str:
    return f"`ALTER SYSTEM SET {text}`, then `SELECT pg_reload_conf()`"


def _fsync(server: _Server) -> Finding:
    check = "postgresql_fsync"
    if server.value("fsync") == "off":
        found = "off: a crash of the machine can lose or damage all that is stored"
        return failure(check, found, _set("fsync = on"))
    return ok(check, server.value("fsync"))


def _full_page_writes(server: _Server) -> Finding:
    check = "postgresql_full_page_writes"
    if server.value("full_page_writes") == "off":
        found = "off: a power cut can damage pages; on costs less than 2 %"
        return warning(check, found, _set("full_page_writes = on"))
    return ok(check, server.value("full_page_writes"))


def _synchronous_commit(server: _Server) -> Finding:
    check, value = "postgresql_synchronous_commit", server.value("synchronous_commit")
    if value in {"off", "local"}:
        return ok(check, f"{value}; the services set it to on for what they store")
    return ok(check, value)


def _max_wal_size(server: _Server) -> Finding:
    check, size = "postgresql_max_wal_size", server.size("max_wal_size")
    found = f"{size / _GIB:.1f} GiB"
    if size < 4 * _GIB:
        effect = f"{found}; with 8 GB a quarter more events were stored a second"
        return warning(check, effect, _set("max_wal_size = '8GB'"))
    return ok(check, found)


def _shared_buffers(server: _Server) -> Finding:
    check, size = "postgresql_shared_buffers", server.size("shared_buffers")
    found = f"{size // 1024**2} MiB"
    if size < 128 * 1024**2 or (size < _GIB and server.size("max_wal_size") < 4 * _GIB):
        effect = f"{found}; with 1 GB a quarter more events were stored a second"
        restart = "`ALTER SYSTEM SET shared_buffers = '1GB'`, and restart PostgreSQL"
        return warning(check, effect, restart)
    return ok(check, found)


def _wal_compression(server: _Server) -> Finding:
    check, value = "postgresql_wal_compression", server.value("wal_compression")
    if value in {"on", "pglz"}:
        return ok(check, f"{value}: 5 % fewer events a second than with off, for 2 % less WAL")
    return ok(check, value)


def _toast_compression(server: _Server) -> Finding:
    check = "postgresql_payload_compression"
    setting = server.settings.get("default_toast_compression")
    if setting is None or "lz4" not in setting.choices:
        return ok(check, "pglz: this server was built without lz4")
    default = {"lz4": "l", "pglz": "p"}.get(setting.value)
    if (server.payload_compression or default) == "l":
        return ok(check, "lz4")
    found = "pglz; payloads of 10 KB are stored three times as fast with lz4"
    advice = "as the owner: `ALTER TABLE log_events ALTER COLUMN payload SET COMPRESSION lz4`"
    return warning(check, found, advice)


def _locks(server: _Server) -> Finding:
    check, value = "postgresql_max_locks_per_transaction", server.value("max_locks_per_transaction")
    is_long = server.kept_days == 0 or server.kept_days > _LONG_DAYS
    if is_long and value.isdecimal() and int(value) < _MANY_LOCKS:
        found = f"{value}; events are kept long, and a statement over all days locks each of them"
        advice = "`ALTER SYSTEM SET max_locks_per_transaction = 1024`, and restart PostgreSQL"
        return warning(check, found, advice)
    return ok(check, value)


def _timezone(server: _Server) -> Finding:
    return ok("postgresql_timezone", f"{server.value('TimeZone')}; the services use UTC, always")


_JUDGES: Mapping[str, Callable[[_Server], Finding]] = {
    "fsync": _fsync,
    "full_page_writes": _full_page_writes,
    "synchronous_commit": _synchronous_commit,
    "max_wal_size": _max_wal_size,
    "shared_buffers": _shared_buffers,
    "wal_compression": _wal_compression,
    "default_toast_compression": _toast_compression,
    "max_locks_per_transaction": _locks,
    "TimeZone": _timezone,
}
NAMES: Iterable[str] = tuple(_JUDGES)


def judged_settings(
    settings: Mapping[str, Setting], payload_compression: str | None, kept_days: int
) -> list[Finding]:
    """Judge the settings of NAMES; events are kept for `kept_days`, 0: for good."""
    server = _Server(settings, payload_compression, kept_days)
    return [judge(server) for judge in _JUDGES.values()]
