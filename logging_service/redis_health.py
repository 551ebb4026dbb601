"""What a Redis server tells of itself that its user should know."""

from collections.abc import Sequence
from typing import Any

from hiredis import ReplyError

from logging_service.errors import BackendUnavailable
from logging_service.resp import pack

_SECTIONS = ("memory", "persistence", "replication")


def questions(list_key: str) -> list[bytes]:
    """Return the commands whose replies `judge` reads."""
    return [
        pack(("TYPE", list_key)),
        pack(("CONFIG", "GET", "appendfsync")),
        *(pack(("INFO", section)) for section in _SECTIONS),
    ]


def judge(list_key: str, replies: Sequence[Any]) -> list[str]:
    """Say what can lose events, a sentence each.

    Raises BackendUnavailable when the server takes no events. What it does not tell, as managed
    servers may not, is passed over.
    """
    kind, config, *sections = replies
    if kind not in {b"list", b"none"}:
        raise BackendUnavailable(f"redis: the key {list_key} is no list")
    told = info_in(sections)
    _refuse_disabled(told)
    fsync = None if isinstance(config, ReplyError) or not config else config[1].decode()
    return _warnings(told, fsync)


def info_in(sections: Sequence[Any]) -> dict[str, str]:
    """Return the fields of replies to `INFO`; one that is an error tells none."""
    told: dict[str, str] = {}
    for section in sections:
        if not isinstance(section, ReplyError):
            lines = (line.partition(":") for line in section.decode().splitlines())
            told |= {name: value for name, _, value in lines}
    return told


def _refuse_disabled(told: dict[str, str]) -> None:
    if told.get("role") == "slave":
        raise BackendUnavailable("redis: it is a replica and takes no events")
    if 0 < int(told.get("maxmemory", 0)) < int(told.get("used_memory", 0)):
        raise BackendUnavailable("redis: it is out of memory (maxmemory)")
    if told.get("aof_last_write_status", "ok") != "ok":
        raise BackendUnavailable("redis: it cannot write its append-only file")


def _warnings(told: dict[str, str], fsync: str | None) -> list[str]:
    found = []
    policy = told.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        found.append(f"maxmemory-policy is {policy}: the server may evict the queue")
    if told.get("aof_enabled") == "0":
        found.append("appendonly is off: a killed server loses the queue")
    elif fsync not in {None, "always"}:
        found.append(f"appendfsync is {fsync}: a crash can lose the events acknowledged last")
    return found
