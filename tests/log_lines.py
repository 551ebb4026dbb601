"""Which lines the code can log, as its source says, and which ones the manual explains."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from servers import ROOT

_LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
# These log a name that they are given.
_GIVEN = {"Pause", "Fault"}
_SOURCES = ("logging_service", "gateway", "code_reviewer", "main.py", "storage.py")


def sources() -> Iterator[Path]:
    for name in _SOURCES:
        place = ROOT / name
        yield from sorted(place.rglob("*.py")) if place.is_dir() else [place]


@cache
def event_names() -> dict[str, str]:
    """Return the names of all lines, each with where it is; what is no static name is one too."""
    found: dict[str, str] = {}
    for file in sources():
        if not file.is_file():
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and (name := _named(node)):
                found[name] = f"{file.relative_to(ROOT)}:{node.lineno}"
    return found


def _named(call: ast.Call) -> str | None:
    called = call.func
    if isinstance(called, ast.Name) and called.id in _GIVEN:
        return _constant(call, 0)
    if not isinstance(called, ast.Attribute) or not isinstance(called.value, ast.Name):
        return None
    if called.value.id not in {"_log", "log", "logger"}:
        return None
    if called.attr == "log":
        return _constant(call, 1)
    return _constant(call, 0) if called.attr in _LEVELS else None


def _constant(call: ast.Call, place: int) -> str | None:
    argument = call.args[place]
    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
        return argument.value
    # Those that are given their names, and only those.
    return None if ast.unparse(argument) == "self._what" else ast.unparse(argument)


def documented() -> dict[str, set[str]]:
    """Return the names in the manual's table, with the services that log them."""
    text = (ROOT / "docs" / "logs.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| ([a-z_, ]+) \|", text, re.MULTILINE)
    return {name: set(services.split(", ")) for name, services in rows}
