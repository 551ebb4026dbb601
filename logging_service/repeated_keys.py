"""Objects that have a key twice: of such a text two readers get different things."""

import json
from collections.abc import Sequence

import msgspec

_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def distinct_keys(payload: msgspec.Raw) -> int:
    """Return how many keys an object has, those of inner ones apart; 0 for what is none."""
    try:
        return len(_members(payload))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0


def misses_members(text: bytes) -> bool:
    """Whether an object whose keys hold no colon has one of them twice, those of inner ones apart.

    Outside of its key and its value a member has one colon, which one that is lost to a later one
    leaves.
    """
    members = _members(text)
    return text.count(b":") != len(members) + b"".join(members.values()).count(b":")


def repeats_a_key(text: bytes) -> bool:
    """Whether an object, or one inside of it, has a key twice; its depth has to be bounded."""
    is_flat = text.find(b"{", 1) < 0
    if is_flat and not misses_members(text):
        return False
    try:
        json.loads(text, object_pairs_hook=_refuse_repeated, parse_int=len, parse_float=len)
    except _RepeatedError:
        return True
    return False


class _RepeatedError(Exception):
    pass


def _refuse_repeated(pairs: Sequence[tuple[str, object]]) -> None:
    if len(dict(pairs)) != len(pairs):
        raise _RepeatedError
