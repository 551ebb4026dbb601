"""What the roll-ups have to say, counted by hand: costs by what the ledger says, not by prices."""

import json
from collections import Counter, defaultdict
from typing import Any

import asyncpg
from oracle import CALL_SUMS, KEYS, buckets

from logging_service.sketches import bin_of, decode_bins, hash_of, unpack

LARGEST = {"max_us"}
SETS = {"sessions", "users"}
Rows = dict[tuple[Any, ...], dict[str, Any]]


def add(into: dict[str, Any], row: dict[str, Any]) -> None:
    for name, value in row.items():
        if name in SETS:
            into[name] = into.get(name, set()) | value
        elif name in LARGEST:
            into[name] = max(into.get(name, 0), value)
        else:
            into[name] = into.get(name, type(value)()) + value


def times_of(duration_us: int | None, *, failed: bool) -> dict[str, Any]:
    if duration_us is None:
        return {"timed": 0, "failed": 0, "total_us": 0, "max_us": 0, "durations": Counter()}
    bins = Counter({bin_of(duration_us): 1})
    return {
        "timed": 1, "failed": int(failed), "total_us": duration_us, "max_us": duration_us,
        "durations": bins,
    }  # fmt: skip


def hashes(text: str | None) -> set[int]:
    return set() if text is None else {hash_of(text.encode())}


async def counted(database: asyncpg.Connection) -> dict[str, Rows]:
    """What has to stand there, of payloads that are plain: texts, whole milliseconds, booleans."""
    rows: dict[str, Rows] = {subject: defaultdict(dict) for subject in KEYS}
    for event in await database.fetch("SELECT *, payload::text AS text FROM log_events"):
        payload, source = json.loads(event["text"]), event["source"]
        user, milliseconds = payload.get("user_id"), payload.get("duration_ms")
        duration = None if milliseconds is None else milliseconds * 1000
        times = times_of(duration, failed=payload.get("success") is False or "error" in payload)
        number = {"events": 1, "errors": int(event["event_type"] == "error_occurred")}
        sessions, users = hashes(event["session_id"]), hashes(user)
        for bucket in buckets(event["timestamp"]):
            for event_type in (event["event_type"], ""):
                told = {**number, **times, "sessions": sessions, "users": users}
                add(rows["usage"][(*bucket, source, event_type)], told)
            told = {**number, **no_calls(), "sessions": sessions}
            add(rows["user"][(*bucket, source, user or "")], told)
    for call in await database.fetch("SELECT * FROM llm_calls"):
        told = {name: call[name] or 0 for name in CALL_SUMS}
        told |= times_of(call["duration_us"], failed=call["is_failed"])
        source = call["source"]
        for bucket in buckets(call["timestamp"]):
            model = call["provider"] or "", call["model"] or ""
            add(rows["llm"][(*bucket, source, *model)], told)
            add(rows["user"][(*bucket, source, call["user_id"] or "")], told)
    return rows


def no_calls() -> dict[str, Any]:
    return {**dict.fromkeys(CALL_SUMS, 0), **times_of(None, failed=False)}


async def rolled_up(database: asyncpg.Connection) -> dict[str, Rows]:
    """What stands in the roll-ups, with what is yet to be folded into them."""
    found: dict[str, Rows] = {subject: defaultdict(dict) for subject in KEYS}
    for subject, keys in KEYS.items():
        for row in await database.fetch(f"SELECT * FROM {subject}_rollup"):
            add(found[subject][(row["span"], row["bucket"], *(row[key] for key in keys))],
                values_of(row, keys))  # fmt: skip
        for row in await database.fetch(f"SELECT * FROM {subject}_deltas"):
            for bucket in buckets(row["bucket"]):
                add(found[subject][(*bucket, *(row[key] for key in keys))], values_of(row, keys))
    return found


def values_of(row: asyncpg.Record, keys: tuple[str, ...]) -> dict[str, Any]:
    values = {name: value for name, value in row.items() if name not in {"span", "bucket", *keys}}
    values["durations"] = Counter(decode_bins(values["durations"].encode()))
    return {name: set(unpack(value)) if name in SETS else value for name, value in values.items()}
