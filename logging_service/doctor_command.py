"""`logging-service doctor`: what a person with "it does not work" runs first."""

import asyncio
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from logging_service.progress import progress
from logging_service.terminal import print_json, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from logging_service.doctor_findings import Finding

app = typer.Typer()


Skipped = StrEnum("Skipped", ["postgresql", "redis", "services", "files"])
_MOST_SECONDS = 10

_COLOURS = {"ok": "green", "warning": "yellow", "failure": "bold red"}


@app.command("doctor")
def examine_everything(
    *,
    skip: Annotated[list[Skipped] | None, typer.Option(help="Do not look at this.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Look at everything this service needs, and say what is wrong and what to do.

    Settings, PostgreSQL, Redis, the services, the spool, the disk, clocks, keys and certificates,
    in a few seconds, whatever is down. It changes nothing and shows no secret.

    Each line is `ok`, `warning` (it works, and may not for long, or is less than it could be) or
    `failure` (it does not work, or loses events). The exit code is 1 with a failure, else 0, also
    with warnings. `--json` prints `status`, the worst, and `checks`, each with `check`, `status`,
    `found` and `advice` (null: nothing to do).

    Services are asked where they listen on this host; `--skip services` where none does.

    Examples: `doctor`, `doctor --json`, `doctor --skip services`.
    """
    from logging_service.doctor_findings import worst_of
    from logging_service.logs import configure_logs

    # What is found is told below; standard output is for that alone.
    configure_logs("doctor", "error")
    findings = asyncio.run(_findings(skip or []))
    worst = worst_of(findings)
    if as_json:
        print_json({"status": worst, "checks": findings})
    else:
        _show(findings)
    raise typer.Exit(1 if worst == "failure" else 0)


async def _findings(skip: "Sequence[Skipped]") -> "list[Finding]":
    from logging_service.doctor import diagnose_here

    asked = asyncio.ensure_future(diagnose_here(skip))
    with progress("examining", _MOST_SECONDS * 10) as advance:
        while not asked.done():
            await asyncio.wait({asked}, timeout=0.1)
            advance(1)
    return await asked


def _show(findings: "Sequence[Finding]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    is_terminal = sys.stdout.isatty()
    if is_terminal:
        table = Table(box=None, show_header=False, pad_edge=False)
        for _ in range(3):
            table.add_column(overflow="fold")
        for finding in findings:
            found = Text(printable(finding.found))
            if finding.advice:
                found.append(f"\n→ {printable(finding.advice)}", style="cyan")
            status = Text(finding.status, style=_COLOURS[finding.status])
            table.add_row(status, Text(finding.check), found)
        Console().print(table)
    else:
        for finding in findings:
            print(f"{finding.status:<8} {finding.check:<36} {printable(finding.found)}")
            if finding.advice:
                print(f"{'':<8} {'':<36} → {printable(finding.advice)}")
    print(_summary(findings))


def _summary(findings: "Sequence[Finding]") -> str:
    numbers = [
        f"{sum(finding.status == status for finding in findings)} {status}"
        for status in ("failure", "warning", "ok")
    ]
    return ", ".join(numbers)
