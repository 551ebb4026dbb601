"""`logging-service review`: code reviewed by the gateway, shown in the terminal."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import uuid4

import typer

from logging_service.errors import LoggingServiceError, SettingsError
from logging_service.settings import load_settings

if TYPE_CHECKING:
    from logging_service.gateway_calls import Gateway
    from logging_service.review_sources import Source, Unreadable

app = typer.Typer()

_USAGE = 2
_STDIN = "-"


class Form(StrEnum):
    """How the reviews are printed."""

    TEXT = "text"
    JSON = "json"
    SARIF = "sarif"


class FailOn(StrEnum):
    """What makes the exit code 1."""

    ERROR = "error"
    WARNING = "warning"
    NEVER = "never"


class Severity(StrEnum):
    """How bad findings are."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


_VERDICTS: dict[FailOn, frozenset[str]] = {
    FailOn.ERROR: frozenset({"fail"}),
    FailOn.WARNING: frozenset({"fail", "warn"}),
    FailOn.NEVER: frozenset(),
}


@app.command()
def review(  # noqa: PLR0913 - options of a command
    files: Annotated[
        list[str] | None, typer.Argument(metavar="FILE…", help="Files; -: standard input.")
    ] = None,
    *,
    diff: Annotated[
        bool, typer.Option("--diff", help="Read a diff from standard input, show its lines alone.")
    ] = False,
    form: Annotated[Form, typer.Option("--format", help="How to print it.")] = Form.TEXT,
    fail_on: Annotated[FailOn, typer.Option(help="What makes the exit code 1.")] = FailOn.ERROR,
    min_severity: Annotated[
        Severity, typer.Option(help="Show findings that are at least so bad.")
    ] = Severity.INFO,
    target_version: Annotated[
        str | None, typer.Option(metavar="pyXY", help="The Python that it is for, such as py311.")
    ] = None,
    no_llm: Annotated[bool, typer.Option("--no-llm", help="Ask no model.")] = False,
    gateway: Annotated[
        str | None, typer.Option(metavar="URL", help="The gateway; default: GATEWAY_URL.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=1, max=3600, help="Seconds that one review may take.")
    ] = 180,
) -> None:
    """Have Python code reviewed by the gateway, which has to run (`logging-service up`).

    With --diff, the changed .py files are reviewed as they are in the working tree, and findings
    on changed lines are shown; syntax errors always are.
    JSON is an array with one review a file, SARIF one run.

    Exit code 1: an error (--fail-on warning: or a warning) that is not suppressed was found.
    What a model finds is shown, but does not count.
    Exit code 2: something could not be reviewed.

    Examples: `review app.py`, `git diff | logging-service review --diff --fail-on warning`,
    `review src/*.py --format sarif > review.sarif`.
    """
    from logging_service.review_run import Reviewing, complain

    options: dict[str, object] = {"min_severity": min_severity.value}
    if no_llm:
        options["llm"] = False
    if target_version is not None:
        options["target_version"] = target_version
    try:
        asked = _gateway(gateway, timeout)
        sources, faults = _sources(files or [], diff=diff)
        reviewed = Reviewing(asked, sources, options).run(form.value)
    except LoggingServiceError as error:
        complain(str(error))
        raise typer.Exit(_USAGE) from None
    for fault in (*faults, *reviewed.faults):
        complain(fault)
    if faults or reviewed.faults:
        raise typer.Exit(_USAGE)
    raise typer.Exit(int(not _VERDICTS[fail_on].isdisjoint(reviewed.verdicts)))


def _gateway(url: str | None, timeout_seconds: float) -> "Gateway":
    from logging_service.face_settings import check_http_url
    from logging_service.gateway_calls import Gateway, gateway_key, gateway_url

    settings = load_settings()
    try:
        address = gateway_url(settings) if url is None else check_http_url(url)
    except ValueError as error:
        raise SettingsError(f"--gateway {url} cannot be used: {error}") from None
    return Gateway(address, gateway_key(settings, address), str(uuid4()), timeout_seconds)


def _sources(files: Sequence[str], *, diff: bool) -> "tuple[list[Source], list[str]]":
    """Return what can be reviewed, and a line for each thing that cannot."""
    from logging_service.review_run import MOST_FILES
    from logging_service.review_sources import Source

    if diff == bool(files):
        raise SettingsError("name files, or - for standard input, or give a diff by --diff")
    found = _changed_sources() if diff else _named_sources(dict.fromkeys(files))
    every = list(islice(found, MOST_FILES + 1))
    if len(every) > MOST_FILES:
        raise SettingsError(f"these are more than {MOST_FILES} files: review them in portions")
    sources = [one for one in every if isinstance(one, Source)]
    faults = [str(one) for one in every if not isinstance(one, Source)]
    if not every:
        print("no Python file is changed", file=sys.stderr)
    return sources, faults


def _changed_sources() -> "Iterable[Source | Unreadable]":
    from logging_service.review_sources import MAX_DIFF_BYTES, sources_of

    if sys.stdin.isatty():
        raise SettingsError("a diff is read from standard input: git diff | … review --diff")
    content = sys.stdin.buffer.read(MAX_DIFF_BYTES + 1)
    if len(content) > MAX_DIFF_BYTES:
        raise SettingsError(f"the diff is larger than {MAX_DIFF_BYTES >> 20} MiB")
    return sources_of(content, Path.cwd())


def _named_sources(files: Iterable[str]) -> "Iterator[Source | Unreadable]":
    from logging_service.review_sources import MAX_CODE_BYTES, Unreadable, decoded, read_file

    for name in files:
        try:
            if name == _STDIN:
                yield decoded("stdin.py", sys.stdin.buffer.read(MAX_CODE_BYTES + 1))
            else:
                yield read_file(Path(name))
        except Unreadable as error:
            yield error
