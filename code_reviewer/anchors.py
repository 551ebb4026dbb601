"""Finds where a quote stands in the code, by its words and not by the line that was stated."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

from code_reviewer.findings import Place
from code_reviewer.visible_text import lines_of

MAX_QUOTE: Final = 1000
"""Characters; a longer quote is found by its beginning."""
_SHORTEST_PART: Final = 3
_NUMBER = re.compile(r"\s*\d{1,7}\| ?")
_WORD = re.compile(r"\S+")


class Anchors:
    """The lines of a code with every run of white space as one space, and no empty lines."""

    def __init__(self, lines: Sequence[str]) -> None:
        """Take the lines as the model saw them."""
        self._lines = lines
        self._numbers: list[int] = []
        self._offsets: list[int] = []
        texts, offset = [], 0
        for number, line in enumerate(lines, 1):
            if text := " ".join(line.split()):
                texts.append(text)
                self._numbers.append(number)
                self._offsets.append(offset)
                offset += len(text) + 1
        self._text = "\n".join(texts)
        self._mirrored = self._text[::-1]

    def find(self, quote: str, stated: int) -> tuple[Place, Place] | None:
        """Return where the quote begins and ends, nearest to the `stated` line; None: nowhere."""
        for told in (quote, _without_numbers(quote)):
            wanted = _normal(told[:MAX_QUOTE])
            at = self._nearest(wanted, stated)
            if at is not None:
                return self._place(at), self._end(at + len(wanted) - 1)
        return None

    def _nearest(self, wanted: str, stated: int) -> int | None:
        if not wanted:
            return None
        if len(wanted) < _SHORTEST_PART:
            return self._whole_line(wanted, stated)
        index = bisect_right(self._numbers, stated) - 1
        origin = self._offsets[max(index, 0)] if self._offsets else 0
        after = self._text.find(wanted, origin)
        # The mirrored text, since `rfind` takes quadratic time on text made for that.
        since = max(0, len(self._text) - origin - len(wanted) + 1)
        mirrored = self._mirrored.find(wanted[::-1], since)
        before = -1 if mirrored < 0 else len(self._text) - mirrored - len(wanted)
        found = [at for at in (after, before) if at >= 0]
        return min(found, key=lambda at: abs(self._line(at) - stated), default=None)

    def _whole_line(self, wanted: str, stated: int) -> int | None:
        """Return a line that is nothing else: two signs are a part of too many."""
        same = [
            (abs(number - stated), offset)
            for number, offset in zip(self._numbers, self._offsets, strict=True)
            if self._text[offset : offset + len(wanted) + 1].rstrip("\n") == wanted
        ]
        return min(same)[1] if same else None

    def _line(self, at: int) -> int:
        return self._numbers[bisect_right(self._offsets, at) - 1]

    def _place(self, at: int) -> Place:
        """Return the place of a character of the normal text."""
        index = bisect_right(self._offsets, at) - 1
        number, inside = self._numbers[index], at - self._offsets[index]
        passed = 0
        for word in _WORD.finditer(self._lines[number - 1]):
            length = word.end() - word.start()
            if inside < passed + length:
                return Place(number, word.start() + max(inside - passed, 0) + 1)
            passed += length + 1
        return Place(number, len(self._lines[number - 1]) + 1)

    def _end(self, last: int) -> Place:
        place = self._place(last)
        return Place(place.line, place.column + 1)


def _normal(quote: str) -> str:
    lines = (" ".join(line.split()) for line in lines_of(quote))
    return "\n".join(line for line in lines if line)


def _without_numbers(quote: str) -> str:
    """Return the quote without the numbers of its lines, which a model may copy."""
    return "\n".join(_NUMBER.sub("", line, count=1) for line in lines_of(quote))


def in_original(place: Place, seen: str, original: str, *, is_end: bool = False) -> Place:
    """Return where a place of a line as it was `seen` lies in the line as it was sent.

    Inside a replaced secret it is the edge of what was replaced.
    """
    if seen == original:
        return place
    shorter = min(len(seen), len(original))
    same = next((n for n in range(shorter) if seen[n] != original[n]), shorter)
    at = place.column - 1
    if at < same or (is_end and at <= same):
        return place
    rest = shorter - same
    tail = next((n for n in range(rest) if seen[-1 - n] != original[-1 - n]), rest)
    from_end = len(seen) - at
    if from_end <= tail:
        return Place(place.line, len(original) - from_end + 1)
    return Place(place.line, (len(original) - tail if is_end else same) + 1)
