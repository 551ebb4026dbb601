"""A key that stands twice in an object is found, whatever it and its neighbours look like."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logging_service.repeated_keys import distinct_keys, misses_members, repeats_a_key

_KEYS = st.text('ab:"\\\u00e9{[ ', max_size=2)


class _Pairs(list[tuple[str, Any]]):
    """An object as it is written, also with a key twice."""


_VALUES = st.recursive(
    st.sampled_from([1, "a:b", ":", "{", '"', None]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(st.tuples(_KEYS, inner), max_size=3).map(_Pairs)
    ),
    max_leaves=12,
)


def _text(value: object, *, escaped: bool) -> str:
    if isinstance(value, _Pairs):
        members = (f"{_text(k, escaped=escaped)} :{_text(v, escaped=escaped)}" for k, v in value)
        return "{" + ", ".join(members) + "}"
    if isinstance(value, list):
        return "[ " + ",".join(_text(element, escaped=escaped) for element in value) + "]"
    if escaped and isinstance(value, str):
        return '"' + "".join(f"\\u{ord(sign):04x}" for sign in value) + '"'
    return json.dumps(value, ensure_ascii=False)


def _repeats(value: object) -> bool:
    if isinstance(value, _Pairs):
        keys = [key for key, _ in value]
        return len(set(keys)) < len(keys) or any(_repeats(inner) for _, inner in value)
    return isinstance(value, list) and any(map(_repeats, value))


@given(value=_VALUES, escaped=st.booleans())
def test_a_key_that_stands_twice_is_found_at_any_depth(value: object, *, escaped: bool) -> None:
    text = _text(_Pairs([("k", value)]), escaped=escaped).encode()
    assert repeats_a_key(text) == _repeats(value)


@pytest.mark.parametrize(
    ("text", "keys", "misses"),
    [
        (b"{}", 0, False),
        (b'{"a":{"b":1,"b":2}}', 1, False),
        (b'{"a":1,"\\u0061":":"}', 1, True),
        (b'{"a":":", "b" : [{}]}', 2, False),
    ],
)
def test_the_outer_keys_are_told_apart(text: bytes, keys: int, *, misses: bool) -> None:
    assert distinct_keys(msgspec.Raw(text)) == keys
    assert misses_members(text) == misses


@pytest.mark.parametrize("text", [b"[]", b"1", b'{"\xff":1}', b'"a"'])
def test_what_is_no_object_has_no_keys(text: bytes) -> None:
    assert distinct_keys(msgspec.Raw(text)) == 0
