"""A unified diff, as `git diff` writes it: which lines of which files are new."""

import re
from collections.abc import Iterator

import msgspec

from logging_service.errors import LoggingServiceError

_HUNK = re.compile(rb"@@ -[0-9]{1,9}(?:,([0-9]{1,9}))? \+([0-9]{1,9})(?:,([0-9]{1,9}))? @@")
_COMBINED = (b"diff --cc ", b"diff --combined ", b"@@@")
_OLD_PREFIXES = (b"a/", b"i/", b"c/", b"o/", b"w/", b"1/")
_NEW_PREFIXES = (b"b/", b"w/", b"i/", b"c/", b"o/", b"2/")
_ESCAPE = re.compile(rb"\\([0-7]{3}|.)", re.DOTALL)
_ESCAPED = {
    b"a": b"\a", b"b": b"\b", b"t": b"\t", b"n": b"\n", b"v": b"\v", b"f": b"\f", b"r": b"\r",
}  # fmt: skip
_NO_FILE = b"/dev/null"


class DiffRejected(LoggingServiceError):
    """What was given is no unified diff."""


class Changed(msgspec.Struct, frozen=True):
    """A file of the new version, and its lines that are new, by number from 1, without their ends.

    There are none where lines were only taken away. What is no UTF-8 in `path` are surrogates.
    """

    path: str
    lines: dict[int, bytes]


def changed_files(diff: bytes) -> list[Changed]:
    """Return the files whose text `diff` changes, in its order.

    Those that are removed, only renamed or binary are not among them. Raises DiffRejected for
    combined diffs, hunks that are cut off, and what is no diff at all.
    """
    reading = _Reading()
    for number, line in enumerate(diff.removesuffix(b"\n").split(b"\n"), 1):
        reading.read(number, line)
    reading.end()
    if diff.strip() and not reading.is_diff:
        raise DiffRejected("this is no unified diff, as `git diff --no-color` writes it")
    return [Changed(path, lines) for path, lines in reading.files.items()]


class _Reading:
    def __init__(self) -> None:
        self.files: dict[str, dict[int, bytes]] = {}
        self.is_diff = False
        self._old = b""
        self._lines: dict[int, bytes] | None = None
        self._old_left = self._new_left = self._number = 0

    def read(self, number: int, line: bytes) -> None:
        if self._old_left or self._new_left:
            self._read_hunk(number, line)
        elif line.startswith(_COMBINED):
            raise DiffRejected(
                "a combined diff, of a merge, has no single old version: `git diff HEAD` has one"
            )
        elif line.startswith(b"diff --git "):
            self.is_diff, self._old, self._lines = True, b"", None
        elif line.startswith(b"--- "):
            self._old = _path(line[4:])
        elif line.startswith(b"+++ ") and self._old:
            self._begin_file(_path(line[4:]))
        elif self._lines is not None and (hunk := _HUNK.match(line)):
            self._old_left, self._new_left = _length(hunk[1]), _length(hunk[3])
            self._number = int(hunk[2])

    def end(self) -> None:
        if self._old_left or self._new_left:
            raise DiffRejected("the diff is cut off within a hunk")

    def _begin_file(self, new: bytes) -> None:
        self.is_diff = True
        if new == _NO_FILE:
            self._lines = {}
            return
        path = new[2:] if _has_prefix(self._old, new) else new
        self._old = b""
        self._lines = self.files.setdefault(path.decode("utf-8", "surrogateescape"), {})

    def _read_hunk(self, number: int, line: bytes) -> None:
        kind = line[:1].strip(b"\r") or b" "
        if kind == b"\\":
            return
        if kind not in b"+- " or (kind != b"-" and not self._new_left):
            raise DiffRejected(f"line {number} of the diff does not fit its hunk")
        if kind == b"+" and self._lines is not None:
            self._lines[self._number] = line[1:].removesuffix(b"\r")
        if kind != b"-":
            self._number += 1
            self._new_left -= 1
        if kind != b"+":
            self._old_left -= 1
        if self._old_left < 0:
            raise DiffRejected(f"line {number} of the diff does not fit its hunk")


def _length(digits: bytes | None) -> int:
    return 1 if digits is None else int(digits)


def _has_prefix(old: bytes, new: bytes) -> bool:
    """Whether the names begin with `a/` and `b/` or their like, which are no folders."""
    if not new.startswith(_NEW_PREFIXES):
        return False
    return old == _NO_FILE or (old.startswith(_OLD_PREFIXES) and old[:2] != new[:2])


def _path(text: bytes) -> bytes:
    text = text.removesuffix(b"\r")
    if text.startswith(b'"'):
        # A quoted name ends with its quote; a plain one with the tab before a time.
        return b"".join(_unescaped(text[1:].rpartition(b'"')[0]))
    return text.partition(b"\t")[0]


def _unescaped(text: bytes) -> Iterator[bytes]:
    pieces = _ESCAPE.split(text)
    for number, piece in enumerate(pieces):
        if number % 2 == 0:
            yield piece
        elif len(piece) == 3:  # noqa: PLR2004 - octal digits
            yield bytes([int(piece, 8) & 0xFF])
        else:
            yield _ESCAPED.get(piece, piece)
