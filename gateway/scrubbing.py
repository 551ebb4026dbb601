"""Takes secrets and personal data out of code before it leaves for a model."""

import re
from collections.abc import Iterator

import re2

from logging_service.redaction import Rules
from logging_service.secret_patterns import Pattern

_LINE_END = re.compile(rb"\r\n|\r|\n")


class Scrubber:
    """Replaces what the patterns of `rules` find by the pattern's name, such as `[aws_key]`.

    These are the patterns that events are redacted by, here without a token that could be compared.
    A name of a field tells nothing in code, so fields are not looked for.
    """

    def __init__(self, rules: Rules) -> None:
        self._patterns = [
            (pattern, re2.compile(pattern.before + pattern.core + pattern.after))
            for pattern in rules.patterns
        ]

    def __call__(self, code: str) -> tuple[str, int]:
        """Return `code` with as many lines as before, and how many things were replaced in it."""
        text, replaced = code.encode(), 0
        for pattern, finds in self._patterns:
            pieces, end = [], 0
            for start, stop in _spans(pattern, finds, text):
                ends = b"".join(_LINE_END.findall(text, start, stop))
                pieces += [text[end:start], b"[%b]" % pattern.name.encode(), ends]
                end = stop
                replaced += 1
            text = b"".join((*pieces, text[end:]))
        # A bound of a pattern may have cut a character.
        return text.decode(errors="replace"), replaced


def _spans(pattern: Pattern, finds: "re2._Regexp", text: bytes) -> Iterator[tuple[int, int]]:
    at = 0
    while match := finds.search(text, at):
        if span := pattern.judge(match.group()):
            start, at = match.start() + span[0], match.start() + span[1]
            yield start, at
        else:
            # Something else may begin within it.
            at = match.start() + 1
