"""What of an event's payload is counted: the user, the duration, the outcome, the findings."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from logging_service.sketches import MAX_DURATION_US
from logging_service.usage import MAX_NAME

LLM_CALL: Final = "llm_query_sent"
REVIEW_END: Final = "review_completed"
ERROR: Final = "error_occurred"

_MAX_COUNT: Final = 10**12
_SEVERITIES: Final = ("error", "warning", "info")


# What one event says about itself: the user, at most 200 characters, a number as text; the
# microseconds it took, if there is a usable `duration_ms`; whether it failed, that is `success` is
# false or there is an `error` that is not empty. Plain, since each is made per event.
Facts = tuple[str | None, int | None, bool]


class Findings(NamedTuple):
    """How many findings of each severity a review reported; None where it did not."""

    errors: int | None = None
    warnings: int | None = None
    infos: int | None = None


class _Seen(msgspec.Struct):
    user_id: Any = None
    user: Any = msgspec.field(default=None, name="user.id")
    duration_ms: Any = None
    success: Any = None
    error: Any = None


_decode = msgspec.json.Decoder(_Seen).decode
_decode_all = msgspec.json.Decoder(list[_Seen]).decode
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def facts_of(payloads: Sequence[bytes]) -> list[Facts]:
    """Return what the JSON of each payload says; nothing where it cannot be read. Never raises."""
    try:
        # One call for all costs half of one for each.
        seen = _decode_all(b"[%b]" % b",".join(payloads))
    except _UNREADABLE:
        seen = []
    if len(seen) != len(payloads):
        seen = [_seen(payload) for payload in payloads]
    return list(map(_facts, seen))


def _facts(seen: _Seen) -> Facts:
    user, duration = seen.user_id, seen.duration_ms
    if user is None:
        user = seen.user
    # PostgreSQL has no NUL.
    if type(user) is not str or len(user) > MAX_NAME or "\x00" in user:
        user = None if user is None else _user(user)
    return (
        user or None,
        None if duration is None else _micros(duration),
        seen.success is False or bool(seen.error),
    )


def _seen(payload: bytes) -> _Seen:
    try:
        return _decode(payload)
    except _UNREADABLE:
        return _Seen()


def _user(value: object) -> str | None:
    if type(value) is int and abs(value) < 10**MAX_NAME:
        value = str(value)
    return value[:MAX_NAME].replace("\x00", "") if isinstance(value, str) else None


def _micros(value: object) -> int | None:
    if type(value) is int or type(value) is float:
        return round(value * 1000) if 0 <= value <= MAX_DURATION_US // 1000 else None
    return None


def findings_in(sent: Mapping[str, Any]) -> Findings:
    """Return the findings in a `review_completed` payload: `findings_by_severity`, else `counts`.

    Either is an object with `error`, `warning` and `info`; one of them makes the others 0.
    """
    for name in ("findings_by_severity", "counts"):
        told = sent.get(name)
        if isinstance(told, dict) and not told.keys().isdisjoint(_SEVERITIES):
            return Findings(*(_count(told.get(severity)) for severity in _SEVERITIES))
    return Findings()


def _count(value: object) -> int:
    return value if type(value) is int and 0 <= value <= _MAX_COUNT else 0
