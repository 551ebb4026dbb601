"""Text that others wrote, made harmless to look at."""

import re

_LINE_END = re.compile(r"\r\n|\r|\n")


def visible(text: str) -> str:
    """Return `text` with what hides or turns other signs made visible; tabs and ends of lines stay.

    Controls, bidirectional signs and halves of surrogate pairs become Python's escapes.
    """
    return "".join(
        sign if sign.isprintable() or sign in "\t\n" else _escaped(sign) for sign in text
    )


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape").decode()


def one_line(text: str) -> str:
    """Return `text`, visible, with every run of white space as one space."""
    return visible(" ".join(text.split()))


def lines_of(code: str) -> list[str]:
    """Return the lines of `code` as Python counts them, without their ends."""
    return _LINE_END.split(code)
