"""What commands print, for a person or for a program."""

import sys
from collections.abc import Collection, Iterable, Sequence

import msgspec

_WIDE = 200
_JSON = msgspec.json.Encoder(decimal_format="number")


def print_json(answer: object) -> None:
    """Print `answer` as JSON, decimals as numbers."""
    sys.stdout.write(msgspec.json.format(_JSON.encode(answer), indent=2).decode() + "\n")


def print_table(
    columns: Iterable[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Collection[str] = (),
    total: Sequence[str] = (),
) -> None:
    """Print `rows` under the names of their columns, those of `right` as numbers are.

    `total` is a last row that stands out. What a terminal would obey is not printed.
    """
    # Loaded with the command, not with its help.
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        if name in right:
            table.add_column(name, justify="right", no_wrap=True)
        else:
            table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    if total:
        table.add_section()
        table.add_row(*(Text(printable(cell)) for cell in total), style="bold")
    # What reads a pipe has no width.
    Console(width=None if sys.stdout.isatty() else _WIDE).print(table)


def printable(text: str) -> str:
    """Return `text` without what a terminal would obey: others may have written it."""
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in text)
