"""The rules of an event's fields: what they may hold, and what a payload is searched for."""

import json
import re
from functools import lru_cache

import re2

from logging_service import audit
from logging_service.errors import EventRejected
from logging_service.wire import column

MAX_PAYLOAD_BYTES = 256 * 1024
MAX_PAYLOAD_DEPTH = 32
MAX_SESSION_ID = 200
MAX_TRACE_ID = 64
# Beyond this a double, and with it most JSON readers, cannot tell neighbouring integers apart.
MAX_INTEGER = 2**53 - 1


_EVENT_TYPE = re.compile(r"[A-Za-z0-9_.:-]{1,100}")


@lru_cache(maxsize=4096)
def check_event_type(event_type: str) -> bytes:
    """Return the type as a column of the row; raises EventRejected for one that breaks the rule."""
    if _EVENT_TYPE.fullmatch(event_type) is None:
        raise EventRejected("event_type", "has to be 1 to 100 characters of A-Z a-z 0-9 _ . : -")
    return column(event_type.encode())


@lru_cache(maxsize=4096)
def check_sent_type(event_type: str) -> bytes:
    """Return the same for a type that a sender may use: the service alone makes the audit."""
    if event_type.startswith(audit.PREFIX):
        raise EventRejected("event_type", f"may not begin with {audit.PREFIX}")
    return check_event_type(event_type)


def check_text(name: str, text: str | None, most: int) -> str | None:
    """Return `text`; raises EventRejected when it is too long or holds a NUL character."""
    if text is not None and len(text) > most:
        raise EventRejected(name, f"has to be at most {most} characters")
    if text is not None and "\x00" in text:
        raise EventRejected(name, "may not hold a NUL character")
    return text


# msgspec checks the syntax of a payload that it does not decode, and refuses half a surrogate
# pair. This finds what it lets through and a reader of the stored text could not represent: NUL,
# and numbers that a double cannot hold. A number counts only where one can begin.
_NUL = rb"\\u0000"
_NUMBER = rb"[\x00-\x20:,\[]-?[0-9](?:[0-9.]{15}|[0-9.]*[eE]\+?[0-9]{3})"
SUSPICIOUS = _NUL + rb"|" + _NUMBER
_SUSPICIOUS = re2.compile(SUSPICIOUS)
_HAS_NUL = re2.compile(rb"(?:^|[^\\])(?:\\\\)*" + _NUL)
_HAS_NUMBER = re2.compile(_NUMBER)
_TEXTS = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_ALL_BUT_BRACKETS = bytes(set(range(256)) - set(b"{}[]"))


def is_suspicious(body: bytes) -> bool:
    """Whether a payload in `body` may hold what cannot be represented."""
    return _SUSPICIOUS.search(body) is not None or not is_utf8(body)


def is_utf8(body: bytes) -> bool:
    """Whether `body` is UTF-8."""
    if body.isascii():
        return True
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def check_payload(payload: bytes, *, suspicious: bool, most_bytes: int = MAX_PAYLOAD_BYTES) -> None:
    """Raise EventRejected unless `payload`, which is JSON, is an object within the bounds.

    `suspicious` is what `is_suspicious` says of it, or of the body that it is part of.
    """
    if payload[:1] != b"{":
        raise EventRejected("payload", "has to be a JSON object")
    if len(payload) > most_bytes:
        raise EventRejected("payload", f"has to be at most {most_bytes} bytes")
    opened = payload.count(b"{") + payload.count(b"[")
    if opened > MAX_PAYLOAD_DEPTH and _is_too_deep(payload):
        raise EventRejected("payload", f"may be {MAX_PAYLOAD_DEPTH} levels deep")
    if suspicious and is_suspicious(payload):
        _check_values(payload)


def _is_too_deep(payload: bytes) -> bool:
    brackets = _TEXTS.sub(b"", payload).translate(None, _ALL_BUT_BRACKETS)
    for _ in range(MAX_PAYLOAD_DEPTH):
        # What is innermost goes, level by level.
        brackets = brackets.replace(b"{}", b"").replace(b"[]", b"")
    return bool(brackets)


def _check_values(payload: bytes) -> None:
    if _HAS_NUL.search(payload):
        raise EventRejected("payload", "may not hold a NUL character")
    try:
        text = payload.decode()
        if _HAS_NUMBER.search(payload):
            _STRICT.decode(text)
    except UnicodeDecodeError:
        raise EventRejected("payload", "has to be UTF-8") from None
    except ValueError as error:
        raise EventRejected("payload", str(error)) from None


def _strict_integer(digits: str) -> int:
    # The length first: reading a long integer takes quadratic time.
    if len(digits) > len(f"-{MAX_INTEGER}") or abs(int(digits)) > MAX_INTEGER:
        raise ValueError("an integer beyond 2^53-1 has to be sent as a string")
    return int(digits)


def _strict_float(digits: str) -> float:
    number = float(digits)
    if number in {float("inf"), float("-inf")}:
        raise ValueError(f"the number {digits[:20]} is too large")
    return number


_STRICT = json.JSONDecoder(parse_int=_strict_integer, parse_float=_strict_float)
