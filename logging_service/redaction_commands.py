"""`logging-service redaction`: the rules in force, and what they find in what is stored."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from logging_service.given_times import moment_given
from logging_service.progress import progress
from logging_service.settings import Settings, load_settings
from logging_service.terminal import print_json, print_table

if TYPE_CHECKING:
    from datetime import datetime

    from logging_service.redaction_scan import Scan

app = typer.Typer(
    no_args_is_help=True,
    help="Personal data and secrets: the rules by which they are replaced, and a search for them.",
)

Json = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]


@app.command("scan")
def scan_events(
    *,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Events from then on; a day is UTC.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Search stored events by the rules in force, and count what each finds. No value is shown.

    What was replaced counts no more. Ends with code 1 when anything is found: it was stored before
    its rule was there. The services go on meanwhile.

    Examples: `redaction scan`, `redaction scan --since 2026-11-01 --json`.
    """
    try:
        start = moment_given(since) if since is not None else None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--since") from None
    told = asyncio.run(_scan(load_settings(), start))
    if as_json:
        print_json(told)
    else:
        _print_scan(told)
    if told.rules:
        raise typer.Exit(1)


async def _scan(settings: Settings, since: "datetime | None") -> "Scan":
    from logging_service.audit import COMMAND_LINE, REDACTION_SCANNED, Note
    from logging_service.backends import open_audit_outbox, open_reader, redactor_of
    from logging_service.ports import Filter
    from logging_service.redaction_scan import new_scan, scan

    redactor, told = redactor_of(settings), new_scan(since)
    async with open_reader(settings) as reader, open_audit_outbox(settings) as outbox:
        total = await reader.total(Filter(start=since, end=told.until))
        with progress("searching", total.events) as advance:
            await scan(reader, redactor, told, advance)
        values = {rule: hits.values for rule, hits in told.rules.items()}
        payload = {"since": since, "events": told.events, "values": values}
        await outbox.add([Note(REDACTION_SCANNED, COMMAND_LINE, payload)])
    return told


def _print_scan(told: "Scan") -> None:
    if told.rules:
        rows = [
            (rule, str(hits.events), str(hits.values))
            for rule, hits in sorted(told.rules.items(), key=lambda entry: -entry[1].values)
        ]
        print_table(("rule", "events", "values"), rows, right=("events", "values"))
    events = f"{told.events} event{'' if told.events == 1 else 's'} looked at"
    print(events if told.rules else f"{events}: nothing found")


@app.command("rules")
def list_rules(*, as_json: Json = False) -> None:
    """List the rules in force: fields by name, then patterns in the order in which they are tried.

    Examples: `redaction rules`, `redaction rules --json`.
    """
    from logging_service.backends import redaction_rules_of

    rules = redaction_rules_of(load_settings())
    names = [("field", name) for name in sorted(rules.fields)]
    names += [("pattern", pattern.name) for pattern in rules.patterns]
    listed = [(name, kind, rules.action_of(name)) for kind, name in names]
    if as_json:
        columns = ("rule", "kind", "action")
        answer = [dict(zip(columns, row, strict=True)) for row in listed]
        print_json({"rules": answer, "exempt": sorted(rules.exempt)})
        return
    print_table(("rule", "kind", "action"), listed)
    if rules.exempt:
        print(f"exempt: {', '.join(sorted(rules.exempt))}")
