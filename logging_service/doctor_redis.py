"""What an examination asks Redis: is it there, does it keep what it takes, may we do our work."""

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from hiredis import ReplyError

from logging_service.backends import open_pii_fingerprints, open_queue
from logging_service.doctor_findings import (
    Check,
    Examined,
    Finding,
    clock_finding,
    examine,
    examine_all,
    failure,
    in_words,
    ok,
    warning,
)
from logging_service.errors import BackendUnavailable
from logging_service.pepper import pii_fingerprint_of
from logging_service.ports import QueueStatus
from logging_service.redis_address import RedisAddress, parse_redis_url
from logging_service.redis_health import info_in
from logging_service.redis_pipe import Pipe
from logging_service.resp import pack
from logging_service.settings import Settings

_CALL_SECONDS = 1.8
_SECTIONS = ("server", "memory", "persistence", "replication")
_LEAST_VERSION = (6, 2)
_FULL = 0.8
_CONFIG = "`redis-cli CONFIG SET {}` and in its redis.conf"
_START = (
    "`logging-service up` starts the bundled one; else start yours, or name it: REDIS_URL or "
    "REDIS_HOST"
)
# What helps where the server answers and refuses, by its words.
_ADVICE = {
    "NOAUTH": "set REDIS_PASSWORD, or REDIS_URL with it",
    "WRONGPASS": "correct REDIS_PASSWORD or REDIS_URL",
    "AUTH": "remove the password from REDIS_PASSWORD or REDIS_URL: the server has none",
    "DB index": "set REDIS_DB to a database that the server has",
    "certificate": "name its authority: REDIS_URL=rediss://…?ssl_ca_certs=/path/ca.pem",
    "LOADING": "it reads what it kept: ask again in a moment",
}
# A queue that is not emptied for so long has no consumer that works.
_STUCK_SECONDS = 60.0


class _Told(NamedTuple):
    """What a server answered, and when by our clock: the middle, and the half of the way."""

    info: dict[str, str]
    fsync: str | None
    kind: bytes
    refused: list[str]
    offset_seconds: float
    uncertain_seconds: float


def place_of(address: RedisAddress) -> str:
    """Return where a server is looked for, without how it is entered."""
    places = ",".join(f"{place.host}:{place.port}" for place in address.places)
    return f"{address.service} of the sentinels {places}" if address.service else places


async def examine_redis(examined: Examined) -> list[Finding]:
    """Return what there is to say of Redis; of one that is not used, that alone."""
    settings = examined.settings
    if not settings.use_redis_queue:
        return [ok("redis", "is not used: USE_REDIS_QUEUE=false")]
    address = parse_redis_url(settings.queue_url)
    pipe = Pipe(address, _CALL_SECONDS)
    told: list[_Told] = []

    async def ask() -> list[Finding]:
        try:
            told.append(await _ask(pipe, settings.redis_queue_name))
        except BackendUnavailable as error:
            advice = next((told for words, told in _ADVICE.items() if words in str(error)), _START)
            return [failure("redis", f"{place_of(address)}: {error}", advice)]
        return [_server(told[0], place_of(address))]

    try:
        found = await examine(Check("redis", ask, _START))
    finally:
        pipe.close()
    if not told:
        return found
    found += _judge(told[0], settings.redis_queue_name)
    return found + await examine_all(
        (
            Check("queue", lambda: _queue(settings), seconds=2.5),
            Check("pii_hash_key", lambda: _pii_key(settings)),
        )
    )


async def _ask(pipe: Pipe, list_key: str) -> _Told:
    # Of a key that is not there nothing can be renamed: the answer only tells whether we may.
    absent = f"{{{list_key}}}:doctor:absent"
    trials = {
        "RENAME": ("RENAME", absent, absent),
        "LMOVE": ("LMOVE", absent, absent, "LEFT", "RIGHT"),
        "EVAL": ("EVAL", "return 1", 1, absent),
        "ZREM": ("ZREM", absent, "x"),
        "HDEL": ("HDEL", absent, "x"),
    }
    asked: list[tuple[str | int, ...]] = [
        ("TIME",),
        ("TYPE", list_key),
        ("CONFIG", "GET", "appendfsync"),
        *(("INFO", section) for section in _SECTIONS),
        *trials.values(),
    ]
    began = time.time()
    replies = await pipe.call(b"".join(map(pack, asked)), len(asked))
    took = time.time() - began
    moment, kind, config, *rest = replies
    sections, answers = rest[: len(_SECTIONS)], rest[len(_SECTIONS) :]
    if isinstance(kind, ReplyError):
        raise BackendUnavailable(f"redis: {kind}")
    offset = 0.0
    if not isinstance(moment, ReplyError):
        offset = int(moment[0]) + int(moment[1]) / 1e6 - (began + took / 2)
    tells_fsync = isinstance(config, list) and len(config) > 1
    return _Told(
        info=info_in(sections),
        fsync=config[1].decode() if tells_fsync else None,
        kind=kind,
        refused=[name for name, answer in zip(trials, answers, strict=True) if _is_refused(answer)],
        offset_seconds=offset,
        uncertain_seconds=took / 2,
    )


def _is_refused(answer: Any) -> bool:
    return isinstance(answer, ReplyError) and str(answer).startswith(("NOPERM", "ERR unknown"))


def _server(told: _Told, place: str) -> Finding:
    info = told.info
    valkey = info.get("valkey_version")
    text = valkey or info.get("redis_version", "of a version that it does not tell")
    found = f"{'Valkey' if valkey else 'Redis'} {text} at {place}"
    if info.get("role") == "slave":
        return failure("redis", f"{found} is a replica", "name the master in REDIS_URL")
    if not valkey and _version(text) < _LEAST_VERSION:
        return failure("redis", f"{found} is too old", "use Redis 6.2 or newer, or Valkey")
    return ok("redis", found)


def _version(text: str) -> tuple[int, ...]:
    with suppress(ValueError):
        return tuple(int(part) for part in text.split(".")[:2])
    return _LEAST_VERSION


def _judge(told: _Told, list_key: str) -> Iterator[Finding]:
    yield _persistence(told)
    yield _eviction(told.info)
    yield _memory(told.info)
    yield _commands(told, list_key)
    yield clock_finding("redis_clock", told.offset_seconds, told.uncertain_seconds)


def _persistence(told: _Told) -> Finding:
    check, info = "redis_persistence", told.info
    if info.get("aof_last_write_status", "ok") != "ok":
        disk = "free its disk: it takes no events until then"
        return failure(check, "the server cannot write its append-only file", disk)
    if info.get("aof_enabled") == "0":
        advice = _CONFIG.format("appendonly yes")
        return failure(check, "appendonly is off: a killed server loses the queue", advice)
    if told.fsync not in {None, "always"}:
        risk = f"appendfsync is {told.fsync}: a crash can lose the events acknowledged last"
        return warning(check, risk, _CONFIG.format("appendfsync always"))
    if "aof_enabled" not in info:
        return ok(check, "the server does not tell how it keeps events")
    return ok(check, f"appendonly yes, appendfsync {told.fsync or '(not told)'}")


def _eviction(info: dict[str, str]) -> Finding:
    policy = info.get("maxmemory_policy")
    if policy not in {None, "noeviction"}:
        advice = _CONFIG.format("maxmemory-policy noeviction")
        found = f"maxmemory-policy is {policy}: the server may evict the queue"
        return failure("redis_eviction", found, advice)
    return ok("redis_eviction", f"maxmemory-policy {policy or '(not told)'}")


def _memory(info: dict[str, str]) -> Finding:
    check = "redis_memory"
    used, most = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if not most:
        return ok(check, f"{in_words(used)} used, no maxmemory")
    found = f"{in_words(used)} of maxmemory {in_words(most)} used"
    advice = "more consumers, a larger maxmemory, or a smaller QUEUE_MAX_EVENTS"
    if used >= most:
        return failure(check, f"{found}: it takes no events", advice)
    return warning(check, found, advice) if used > _FULL * most else ok(check, found)


def _commands(told: _Told, list_key: str) -> Finding:
    check = "redis_commands"
    if told.kind not in {b"list", b"none"}:
        found = f"the key {list_key} is no list, but a {told.kind.decode()}"
        return failure(check, found, "set REDIS_QUEUE_NAME to a name that nothing else uses")
    if told.refused:
        names = ", ".join(told.refused)
        grant = " ".join(f"+{name.lower()}" for name in told.refused)
        advice = f"as an administrator of Redis: `ACL SETUSER <user> {grant}`"
        return failure(check, f"these commands are not permitted: {names}", advice)
    return ok(check, "what the queue needs is permitted, RENAME too")


async def _queue(settings: Settings) -> list[Finding]:
    async with open_queue(settings) as queue:
        status = await queue.status()
    return [judged_queue(status, settings)]


def judged_queue(status: QueueStatus, settings: Settings) -> Finding:
    """Judge how much waits, and for how long."""
    check, age = "queue", status.oldest_age_seconds or 0.0
    found = f"{status.size:,} events wait, {status.in_flight:,} are under work"
    if not status.size:
        return ok(check, found)
    found += f"; the oldest for {age:,.0f} s, {status.stored_per_second:g} a second leave"
    most, ttl = settings.queue_max_events, settings.redis_queue_ttl
    if age > ttl / 2:
        soon = f"{found}; after REDIS_QUEUE_TTL={ttl} s they are dropped"
        return failure(check, soon, "start more consumers, or raise REDIS_QUEUE_TTL at all of them")
    if status.size >= most:
        return failure(
            check, f"{found}; QUEUE_MAX_EVENTS={most} is reached", "start more consumers"
        )
    if age > _STUCK_SECONDS and not status.stored_per_second:
        return failure(check, found, "start a consumer, or see its log: nothing is stored")
    if status.size > _FULL * most:
        return warning(check, f"{found}; QUEUE_MAX_EVENTS is {most}", "start more consumers")
    return ok(check, found)


async def _pii_key(settings: Settings) -> list[Finding]:
    check, ours = "pii_hash_key", pii_fingerprint_of(settings)
    async with open_pii_fingerprints(settings) as fingerprints:
        noted = await fingerprints.noted() if fingerprints else []
    if ours is None:
        if noted:
            found = f"{len(noted)} hosts replace personal data, and this one has no PII_HASH_KEY"
            return [warning(check, found, "set PII_HASH_KEY, or DATA_DIR, to that of the services")]
        return [ok(check, "is made at the first start of a producer")]
    others = sorted(one.host for one in noted if one.fingerprint != ours)
    if others:
        named = ", ".join(others[:5]) + (" …" if len(others) > 5 else "")  # noqa: PLR2004
        found = f"another one was used within a day by {named}: equal values get other tokens there"
        return [warning(check, found, "set the same PII_HASH_KEY on all hosts, and restart")]
    return [ok(check, f"the same on all {len(noted)} hosts that told of it")]
