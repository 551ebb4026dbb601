"""The code that a terminal wants reviewed: files, standard input, what a diff changed."""

import re
from collections.abc import Iterator
from pathlib import Path, PurePath

import msgspec

from logging_service.errors import LoggingServiceError
from logging_service.unified_diff import Changed, changed_files

MAX_CODE_BYTES = 262_144
MAX_DIFF_BYTES = 64 * 1024 * 1024
_LINE_END = re.compile(r"\r\n|\r|\n")


class Unreadable(LoggingServiceError):
    """The code cannot be reviewed; the message names it and says why."""


class Source(msgspec.Struct, frozen=True):
    """Code under a name; `changed`: the lines that are looked at, None: all of them."""

    name: str
    code: str
    changed: frozenset[int] | None = None

    def lines(self) -> list[str]:
        """Return its lines as Python counts them, without their ends."""
        return _LINE_END.split(self.code)

    def is_shown(self, first: int, last: int) -> bool:
        """Whether one of the lines from `first` to `last` is looked at."""
        return self.changed is None or any(first <= line <= last for line in self.changed)


def read_file(path: Path) -> Source:
    """Return what is in the file; raises Unreadable, which names it and says why."""
    name = _name(path, Path.cwd())
    if path.is_dir():
        raise Unreadable(f"{name}: is a folder; name the files in it")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CODE_BYTES + 1)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise Unreadable(f"{name}: cannot be read: {why}") from None
    return decoded(name, content)


def decoded(name: str, content: bytes) -> Source:
    """Return `content` as code; raises Unreadable where it is too large or no UTF-8."""
    if len(content) > MAX_CODE_BYTES:
        raise Unreadable(f"{name}: is larger than {MAX_CODE_BYTES // 1024} KiB")
    try:
        return Source(name, content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise Unreadable(f"{name}: is not UTF-8 at byte {error.start}") from None


def sources_of(diff: bytes, folder: Path) -> Iterator[Source | Unreadable]:
    """Yield the Python files that `diff` changed, as they are in the working tree of `folder`.

    Paths in the diff are relative to the top of its repository, or to `folder`.
    Raises DiffRejected.
    """
    top = _top(folder)
    for change in changed_files(diff):
        if change.path.endswith(".py"):
            try:
                yield _changed_source(change, top, folder)
            except Unreadable as error:
                yield error


def _top(folder: Path) -> Path:
    resolved = folder.resolve()
    for candidate in (resolved, *resolved.parents):
        if (candidate / ".git").exists():
            return candidate
    return resolved


def _changed_source(change: Changed, top: Path, folder: Path) -> Source:
    source = read_file(_path_in(top, folder, change.path))
    lines = source.lines()
    for number, text in change.lines.items():
        if number > len(lines) or _differs(lines[number - 1], text, first=number == 1):
            raise Unreadable(f"{change.path}: line {number} is not what the diff says")
    return Source(change.path, source.code, frozenset(change.lines))


def _path_in(top: Path, folder: Path, name: str) -> Path:
    if "\0" not in name:
        for path in ((top / name).resolve(), (folder / name).resolve()):
            # A diff may come from anywhere: it is not to have other files read and sent away.
            if path.is_relative_to(top) and path.is_file():
                return path
    raise Unreadable(f"{name}: is not in the working tree")


def _differs(line: str, text: bytes, *, first: bool) -> bool:
    expected = text.decode("utf-8", "replace")
    return line != (expected.removeprefix("\ufeff") if first else expected)


def _name(path: Path, folder: Path) -> str:
    """Return the path from `folder`, and of what lies elsewhere the last part alone."""
    plain = PurePath(path.absolute())
    return plain.relative_to(folder).as_posix() if plain.is_relative_to(folder) else plain.name
