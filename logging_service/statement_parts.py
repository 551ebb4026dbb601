"""Statements that are composed of fixed texts: the parts in a file of `sql/`, by name."""

import re
from pathlib import Path


def parts_of(file: str) -> dict[str, str]:
    """Return each part of a file, which begins behind a line `-- name: …` and its comments.

    What stands in braces is to be put in by the caller: a fixed text or a bound parameter's
    number, never what somebody sent.
    """
    text = (Path(__file__).parent / "sql" / file).read_text(encoding="utf-8")
    pattern = r"^-- name: (\w+)\n(?:--[^\n]*\n)*(.*?)\s*(?=^-- name: |\Z)"
    return dict(re.findall(pattern, text, re.MULTILINE | re.DOTALL))
