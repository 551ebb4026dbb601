"""Replaces personal data and secrets in payloads by keyed tokens, before anything keeps them.

Equal values get equal tokens, so that they can still be counted; without the key nobody can try
values. Everything else of a payload stays as it was sent, to the byte.
"""

import hmac
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from heapq import heapify, heappop, heappush
from typing import Any, Final, Literal, NamedTuple

import re2

from logging_service.secret_patterns import PATTERNS, Pattern

Action = Literal["hash", "mask", "drop"]

_TOKEN_DIGITS: Final = 16
_IS_TOKEN: Final = re.compile(rb"\[[a-z0-9_]{1,40}(?::[0-9a-f]{16})?\]")
_NO_NAME: Final = re.compile(r"[^a-z0-9_]")
# A text, a bracket, a comma or colon, or a number or name.
_PARTS: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\],:]|[^\s"{}\[\],:]++', re.DOTALL)
_DIGITS: Final = b"0123456789"
_COLON: Final = re.compile(rb"\s*:\s*")
_INTEGER: Final = re.compile(rb"[\s:,\[]([0-9]+)(?=[\s,\]}])")
_read = json.JSONDecoder(strict=False).decode
# The shortest text in which a built-in pattern finds anything.
_SHORTEST: Final = len("a@b.de")
_LOOK_EFFORT, _JUDGE_EFFORT, _HIT_EFFORT, _PART_EFFORT = 10, 20, 5, 2
_KEPT: Final = frozenset({b"true", b"false", b"null"})
# An escape hides what is looked for: `@` may be `\u0040`. Of what encoders escape by habit,
# `"&'<>` and the backquote, no rule needs any, and `\/` is known to the rules.
_HIDING: Final = rb"\\u00(?:2[^267]|3[^cCeE]|6[^0]|[457].)"
_HIDES: Final = re.compile(_HIDING)
_PLAIN_NAME: Final = re.compile(r"[^\x00-\x1f\"&'<>`/\\\x7f-\U0010ffff]*")


@dataclass(frozen=True)
class Rules:
    """What is replaced: fields by name at any depth, patterns in any text, and how.

    Names of fields are in lower case and stand for those of any case. What an exempt field holds
    is kept, whatever it is.
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
    """A text without what the rules found, how often each did, and the microseconds it took.

    `effort` is not measured: it is what a slow processor takes for what was to be done.
    """

    text: bytes
    found: Counter[str]
    effort: int


class _Tally:
    """What was found so far, and the effort of it."""

    __slots__ = ("effort", "found")

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()
        self.effort = 0

    def note(self, rule: str) -> None:
        self.found[rule] += 1
        self.effort += _LOOK_EFFORT


class _Place(NamedTuple):
    """An object or array, or what it is in: how its values are treated."""

    is_object: bool = False
    field: str | None = None
    is_exempt: bool = False


class _Work:
    """A payload under work: what of it is to be replaced, in order, and by what."""

    __slots__ = ("_end", "_pieces", "payload", "tally")

    def __init__(self, payload: bytes) -> None:
        self.payload = payload
        self.tally = _Tally()
        self._pieces: list[bytes] = []
        self._end = 0

    def replace(self, start: int, stop: int, instead: bytes) -> None:
        self._pieces += (self.payload[self._end : start], instead)
        self._end = stop

    def done(self) -> Redacted:
        text, tally = self.payload, self.tally
        if tally.found:
            text = b"".join((*self._pieces, text[self._end :]))
        return Redacted(text, tally.found, tally.effort)


class _Hit(NamedTuple):
    """What a search finds next: where, the place of its pattern in the rules, and what."""

    since: int
    rank: int
    found: bytes
    search: "_Search"


class _Search:
    """Looks for several patterns, by their places in the rules, at once."""

    __slots__ = ("_finds", "_ranks")

    def __init__(self, patterns: Mapping[int, Pattern]) -> None:
        self._finds = re2.compile(
            b"|".join(
                b"(?P<%b>%b%b%b)" % (one.name.encode(), one.before, one.core, one.after)
                for one in patterns.values()
            )
        )
        named = self._finds.groupindex
        # By the number of its group, since a pattern may have groups of its own.
        self._ranks = {named[one.name.encode()]: rank for rank, one in patterns.items()}

    def next(self, text: bytes, at: int) -> _Hit | None:
        """Return what is found first from `at` on."""
        match = self._finds.search(text, at)
        if match is None:
            return None
        return _Hit(match.start(), self._ranks[match.lastindex], match.group(), self)


class Redactor:
    """Replaces what `rules` find; equal values get the same token under the same `key`.

    `suspects` is an RE2 pattern without groups that fits somewhere in every payload, as it was
    sent, in which the rules find anything; None when there are no rules.
    """

    def __init__(self, rules: Rules, key: bytes) -> None:
        self._rules = rules
        self._key = key
        together = {rank: p for rank, p in enumerate(rules.patterns) if not p.is_alone}
        alone = [{rank: p} for rank, p in enumerate(rules.patterns) if p.is_alone]
        self._searches = [_Search(some) for some in (together, *alone) if some]
        builtin = all(pattern in PATTERNS for pattern in rules.patterns)
        self._shortest = _SHORTEST if builtin else 1
        hints = [p.core + p.after if p.hint is None else p.hint for p in rules.patterns]
        if rules.fields:
            names = b"|".join(re2.escape(name).encode() for name in sorted(rules.fields))
            hints.append(b'(?i:"(?:%b)")' % names)
        if not all(map(_PLAIN_NAME.fullmatch, rules.fields)):
            hints.append(b"")
        self.suspects = b"|".join((*hints, _HIDING)) if hints else None
        self._suspects = re2.compile(self.suspects) if self.suspects is not None else None
        # Sessions and types come again and again.
        self._known_texts = lru_cache(maxsize=4_096)(self._plain_text)
        # What an exempt field holds is not to be found, and nothing tells where a rule without a
        # hint finds anything.
        self._walks = bool(rules.exempt or (self._suspects and self._suspects.search(b"")))

    def text(self, text: bytes) -> Redacted:
        """Return a plain text in UTF-8, such as a session's name, without what patterns find."""
        return self._known_texts(text)

    def _plain_text(self, text: bytes) -> Redacted:
        tally = _Tally()
        return Redacted(self._searched(text, tally), tally.found, tally.effort)

    def payload(self, payload: bytes) -> Redacted:
        """Return a payload, JSON in UTF-8 that was checked, without what the rules find."""
        work = _Work(payload)
        if self._walks or (b"\\" in payload and _HIDES.search(payload)):
            self._walk(work, 0, _Place())
        elif self._suspects is not None:
            self._follow_hits(work, self._suspects)
        return work.done()

    def _follow_hits(self, work: _Work, suspects: Any) -> None:
        payload = work.payload
        quotes = payload
        if b"\\" in payload:
            # As long, with the quotes that begin and end texts alone.
            quotes = payload.replace(rb"\\", b"__").replace(rb"\"", b"__")
        # Always outside of texts.
        place = 0
        while hit := suspects.search(payload, place):
            work.tally.effort += _HIT_EFFORT
            last = hit.end() - 1
            if quotes.count(b'"', place, last) % 2:
                start = quotes.rfind(b'"', place, last)
                place = self._follow_text(work, start, quotes.index(b'"', last) + 1)
            else:
                place = self._follow_integer(work, place, hit.end())

    def _follow_text(self, work: _Work, start: int, stop: int) -> int:
        """Replace in the text from `start` to `stop`, or what a field of that name holds."""
        word = work.payload[start:stop]
        if colon := _COLON.match(work.payload, stop):
            name = _text_of(word).decode().lower()
            if name in self._rules.fields:
                return self._walk(work, colon.end(), _Place(field=name))
        instead = self._text_value(word, work.tally)
        if instead != word:
            work.replace(start, stop, instead)
        return stop

    def _follow_integer(self, work: _Work, place: int, stop: int) -> int:
        """Replace in the integer whose digits stand before `stop`, if they do."""
        start = place + len(work.payload[place:stop].rstrip(_DIGITS))
        integer = _INTEGER.match(work.payload, start - 1)
        if integer is None:
            return stop
        instead = self._number_value(integer[1], work.tally)
        if instead != integer[1]:
            work.replace(*integer.span(1), instead)
        return integer.end()

    def _walk(self, work: _Work, start: int, place: _Place) -> int:
        """Replace in the value that begins at `start`, and return where it ends."""
        places: list[_Place] = []
        name, is_key = "", False
        for part in _PARTS.finditer(work.payload, start):
            work.tally.effort += _PART_EFFORT
            word = part[0]
            mark = word[:1]
            if mark in b"{[":
                places.append(place)
                place = self._inside(place, name, is_object=mark == b"{")
                is_key = place.is_object
            elif mark in b"}]":
                place = places.pop()
            elif mark == b",":
                is_key = place.is_object
            elif mark == b":":
                is_key = False
            elif is_key:
                name = _text_of(word).decode().lower()
                # A key that tells what it should not.
                self._put(
                    work, part, word if place.is_exempt else self._text_value(word, work.tally)
                )
            else:
                self._put(work, part, self._value(word, self._inside(place, name), work.tally))
            if not places:
                return part.end()
        return len(work.payload)

    @staticmethod
    def _put(work: _Work, part: re.Match[bytes], instead: bytes) -> None:
        if instead != part[0]:
            work.replace(*part.span(), instead)

    def _inside(self, place: _Place, name: str, *, is_object: bool = False) -> _Place:
        """Return how what stands under a name is treated; what is inside of it likewise."""
        rules = self._rules
        if not place.is_object:
            return place._replace(is_object=is_object)
        return _Place(
            is_object,
            place.field or (name if name in rules.fields else None),
            place.is_exempt or name in rules.exempt,
        )

    def _value(self, word: bytes, place: _Place, tally: _Tally) -> bytes:
        if place.is_exempt or word in _KEPT:
            return word
        is_text = word[:1] == b'"'
        if place.field is None:
            return self._text_value(word, tally) if is_text else self._number_value(word, tally)
        value = _text_of(word) if is_text else word
        if not value or _IS_TOKEN.fullmatch(value):
            return word
        tally.note(place.field)
        return b'"%b"' % self._instead(place.field, value)

    def _number_value(self, word: bytes, tally: _Tally) -> bytes:
        """Return a number, or the text instead of an integer in which a rule finds something."""
        searched = self._searched(word, tally) if word.isdigit() else word
        return word if searched == word else b'"%b"' % searched

    def _text_value(self, word: bytes, tally: _Tally) -> bytes:
        value = _text_of(word)
        searched = self._searched(value, tally)
        if searched == value:
            return word
        if b"\\" in word:
            return json.dumps(searched.decode(), ensure_ascii=False).encode()
        return b'"%b"' % searched

    def _searched(self, text: bytes, tally: _Tally) -> bytes:
        """Return `text` without what patterns find; still UTF-8."""
        if len(text) < self._shortest:
            return text
        pieces: list[bytes] = []
        end = 0
        for rule, start, stop in self._found(text, tally):
            # What was replaced before, in a replay, stays.
            if not _IS_TOKEN.fullmatch(text, start, stop):
                tally.note(rule)
                pieces += (text[end:start], self._instead(rule, text[start:stop]))
                end = stop
        if not pieces:
            return text
        # A bound of a pattern may have cut a character.
        return b"".join((*pieces, text[end:])).decode(errors="replace").encode()

    def _found(self, text: bytes, tally: _Tally) -> Iterator[tuple[str, int, int]]:
        """Yield which rule found something, from where and to where, from left to right."""
        # What each search finds next, the leftmost first, of several there the surest.
        coming = [hit for search in self._searches if (hit := search.next(text, 0))]
        heapify(coming)
        at = 0
        while coming:
            since, rank, found, search = heappop(coming)
            again = at
            if since >= at:
                pattern = self._rules.patterns[rank]
                if span := pattern.judge(found):
                    at = again = since + span[1]
                    yield pattern.name, since + span[0], at
                else:
                    tally.effort += _JUDGE_EFFORT
                    # Something else may begin within it.
                    again = since + 1
            if hit := search.next(text, again):
                heappush(coming, hit)

    def _instead(self, rule: str, value: bytes) -> bytes:
        action = self._rules.action_of(rule)
        if action == "drop":
            return b""
        name = _NO_NAME.sub("_", rule)[:40].encode()
        if action == "mask":
            return b"[%b]" % name
        digest = hmac.digest(self._key, value, "sha256").hex()[:_TOKEN_DIGITS]
        if digest.isdecimal():
            # It could be a card's number, and be replaced in a replay.
            digest = f"a{digest[1:]}"
        return b"[%b:%b]" % (name, digest.encode())


def _text_of(word: bytes) -> bytes:
    """Return what a text of JSON says, in UTF-8."""
    if b"\\" not in word:
        return word[1:-1]
    text: str = _read(word.decode())
    return text.encode()
