"""Replaces personal data and secrets in payloads by keyed tokens, before anything keeps them.

Equal values get equal tokens, so that they can still be counted; without the key nobody can try
values. Everything else of a payload stays as it was sent, to the byte.
"""

import hmac
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

import re2

from logging_service.secret_patterns import PATTERNS, Pattern

Action = Literal["hash", "mask", "drop"]

_TOKEN_DIGITS: Final = 16
_IS_TOKEN: Final = re.compile(r"\[[a-z0-9_]{1,40}(?::[0-9a-f]{16})?\]")
_NO_NAME: Final = re.compile(r"[^a-z0-9_]")
# A text, a bracket, a comma or colon, or a number or name.
_PARTS: Final = re.compile(r'"(?:[^"\\]|\\.)*+"|[{}\[\],:]|[^\s"{}\[\],:]++', re.DOTALL)
_read = json.JSONDecoder(strict=False).decode
_KEPT: Final = frozenset({"true", "false", "null"})
# What an escape can hide: `@` is `\u0040`, `://` may be `:\/\/`.
_ESCAPES: Final = rb"\\[u/]"


@dataclass(frozen=True)
class Rules:
    """What is replaced: fields by name at any depth, patterns in any text, and how.

    Names of fields have no case. What an exempt field holds is kept, whatever it is.
    """

    fields: frozenset[str] = frozenset()
    exempt: frozenset[str] = frozenset()
    patterns: Sequence[Pattern] = PATTERNS
    actions: Mapping[str, Action] = field(default_factory=dict)
    action: Action = "hash"

    def action_of(self, rule: str) -> Action:
        """Return what is done with what a rule finds."""
        return self.actions.get(rule, self.action)


class Redacted(NamedTuple):
    """A text without what the rules found, and how often each did."""

    text: bytes
    found: Counter[str]


class _Place(NamedTuple):
    """An object or array: how its values are treated, and whether keys come next."""

    is_object: bool
    field: str | None
    is_exempt: bool


class Redactor:
    """Replaces what `rules` find; equal values get the same token under the same `key`."""

    def __init__(self, rules: Rules, key: bytes) -> None:
        self._rules = rules
        self._key = key
        self._judges = {one.name.encode(): one for one in rules.patterns}
        groups = (
            b"(?P<%b>%b%b%b)" % (p.name.encode(), p.before, p.core, p.after) for p in rules.patterns
        )
        self._finds = re2.compile(b"|".join(groups)) if rules.patterns else None
        # Without word edges: in JSON an escape's letter may stand before what is looked for.
        cores = [pattern.apart + pattern.core for pattern in rules.patterns]
        if rules.fields:
            names = b"|".join(re2.escape(name).encode() for name in sorted(rules.fields))
            cores.append(b'(?i:"(?:%b)")' % names)
        self._suspects = re2.compile(b"|".join([_ESCAPES, *cores])) if cores else None

    def may_change(self, body: bytes) -> bool:
        """Whether a payload in `body` may hold what is to be replaced; false is certain."""
        return self._suspects is not None and self._suspects.search(body) is not None

    def text(self, text: bytes) -> Redacted:
        """Return a plain text in UTF-8, such as a session's name, without what patterns find."""
        found: Counter[str] = Counter()
        return Redacted(self._searched(text, found), found)

    def payload(self, payload: bytes) -> Redacted:
        """Return a payload, JSON in UTF-8 that was checked, without what the rules find."""
        found: Counter[str] = Counter()
        text = payload.decode()
        pieces: list[str] = []
        end = 0
        for start, stop, instead in self._changes(text, found):
            pieces += (text[end:start], instead)
            end = stop
        if not found:
            return Redacted(payload, found)
        return Redacted("".join((*pieces, text[end:])).encode(), found)

    def _changes(self, text: str, found: Counter[str]) -> list[tuple[int, int, str]]:
        changes: list[tuple[int, int, str]] = []
        places: list[_Place] = []
        place = _Place(is_object=False, field=None, is_exempt=False)
        name, is_key = "", False
        for part in _PARTS.finditer(text):
            first, word = part[0][0], part[0]
            if first in "{[":
                places.append(place)
                place = self._inside(place, name, is_object=first == "{")
                is_key = place.is_object
            elif first in "}]":
                place = places.pop()
                is_key = False
            elif first == ",":
                is_key = place.is_object
            elif first == ":":
                is_key = False
            else:
                if is_key:
                    name = _read(word).casefold()
                    # A key that tells what it should not.
                    instead = word if place.is_exempt else self._text_value(word, found)
                else:
                    instead = self._value(word, self._inside(place, name), found)
                if instead != word:
                    changes.append((*part.span(), instead))
        return changes

    def _inside(self, place: _Place, name: str, *, is_object: bool = False) -> _Place:
        """Return how what stands under a name is treated; what is inside of it likewise."""
        rules = self._rules
        if not place.is_object:
            name = ""
        return _Place(
            is_object,
            place.field or (name if name in rules.fields else None),
            place.is_exempt or name in rules.exempt,
        )

    def _value(self, word: str, place: _Place, found: Counter[str]) -> str:
        if place.is_exempt or word in _KEPT:
            return word
        if place.field is None:
            return self._text_value(word, found) if word[0] == '"' else word
        value = _read(word) if word[0] == '"' else word
        if not value or _IS_TOKEN.fullmatch(value):
            return word
        found[place.field] += 1
        return _quoted(self._instead(place.field, value.encode()).decode())

    def _text_value(self, word: str, found: Counter[str]) -> str:
        value: bytes = _read(word).encode()
        searched = self._searched(value, found)
        return word if searched == value else _quoted(searched.decode(errors="replace"))

    def _searched(self, text: bytes, found: Counter[str]) -> bytes:
        if self._finds is None:
            return text
        pieces: list[bytes] = []
        end = at = 0
        while match := self._finds.search(text, at):
            span = self._judges[match.lastgroup].judge(match.group())
            if span is None:
                # Something else may begin within it.
                at = match.start() + 1
                continue
            start, stop = match.start() + span[0], match.start() + span[1]
            at = stop
            # What was replaced before, in a replay, stays.
            if not _IS_TOKEN.fullmatch(text[start:stop].decode(errors="replace")):
                rule = match.lastgroup.decode()
                found[rule] += 1
                pieces += (text[end:start], self._instead(rule, text[start:stop]))
                end = stop
        return b"".join((*pieces, text[end:]))

    def _instead(self, rule: str, value: bytes) -> bytes:
        action = self._rules.action_of(rule)
        if action == "drop":
            return b""
        name = _NO_NAME.sub("_", rule)[:40].encode()
        if action == "mask":
            return b"[%b]" % name
        digest = hmac.digest(self._key, value, "sha256").hex()[:_TOKEN_DIGITS]
        return b"[%b:%b]" % (name, digest.encode())


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
