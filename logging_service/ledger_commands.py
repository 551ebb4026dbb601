"""`logging-service reprice` and `rebuild`: the ledger corrected, the roll-ups made anew."""

import asyncio
import sys
from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated

import typer

from logging_service.errors import SettingsError
from logging_service.given_times import LATEST, moment_given
from logging_service.progress import progress
from logging_service.rebuilding import Rebuilt
from logging_service.settings import Settings, load_settings
from logging_service.terminal import print_json, print_table

if TYPE_CHECKING:
    from logging_service.repricing import Difference, Line, LineKey, Wanted

app = typer.Typer()

_MOST_SHOWN = 200


def _moment(text: str, option: str) -> datetime:
    try:
        return moment_given(text)
    except ValueError as error:
        raise _wrong(option, str(error)) from None


def _day(text: str, option: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise _wrong(option, "has to be a day such as 2026-11-23") from None


def _wrong(option: str, why: str) -> typer.BadParameter:
    return typer.BadParameter(why, param_hint=option)


DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would change, no more.")]


@app.command("reprice")
def reprice_calls(
    *,
    since: Annotated[str, typer.Option(metavar="TIME", help="Calls from then on; a day is UTC.")],
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Calls before then.")] = None,
    model: Annotated[str | None, typer.Option(help="Calls of this model alone.")] = None,
    dry_run: DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Price model calls anew, by this release's prices and PRICES_FILE at the time of each call.

    Shows the difference by day and model, asks, and records corrections: nothing in the ledger
    is overwritten. The services go on meanwhile.

    Examples: `reprice --since 2026-11-01 --dry-run`, `reprice --since 2026-11-01 --model gpt-4o`.
    """
    from logging_service.repricing import Wanted

    if not (yes or dry_run) and (as_json or not sys.stdin.isatty()):
        raise SettingsError("nobody can be asked here: add --yes, or --dry-run to look only")
    end = _moment(until, "--until") if until is not None else LATEST
    start = _moment(since, "--since")
    if end <= start:
        raise SettingsError("--until has to be later than --since")
    settings, wanted = load_settings(), Wanted(start, end, model)
    looked_at, found = asyncio.run(_survey(settings, wanted))
    if not as_json:
        _print_difference(looked_at, found)
    recorded = None
    if found.lines and not dry_run:
        if not yes:
            typer.confirm(f"Record {_number(found.total.calls, 'correction')}?", abort=True)
        recorded = _record(settings, wanted, looked_at, quiet=as_json)
    if as_json:
        _print_json(looked_at, found, recorded)


async def _survey(settings: Settings, wanted: "Wanted") -> "tuple[int, Difference]":
    from logging_service.backends import open_call_ledger, open_prices
    from logging_service.repricing import Difference, reprice

    looked_at, found = 0, Difference()
    async with open_call_ledger(settings) as ledger:
        with progress("comparing", await ledger.count(wanted)) as advance:
            async for step in reprice(ledger, wanted, open_prices(settings), record=False):
                found.add(step.changes)
                looked_at += step.calls
                advance(step.calls)
    return looked_at, found


def _record(settings: Settings, wanted: "Wanted", calls: int, *, quiet: bool) -> "Difference":
    from logging_service.repricing import Difference

    recorded = Difference()
    try:
        asyncio.run(_record_all(settings, wanted, calls, recorded))
    finally:
        if not quiet:
            total = recorded.total
            corrections = _number(total.calls, "correction")
            print(f"recorded {corrections}, {_signed(total.difference_nanos)} dollars")
    return recorded


async def _record_all(
    settings: Settings, wanted: "Wanted", calls: int, recorded: "Difference"
) -> None:
    from logging_service.backends import open_call_ledger, open_prices
    from logging_service.repricing import reprice

    async with open_call_ledger(settings) as ledger:
        with progress("recording", calls) as advance:
            async for step in reprice(ledger, wanted, open_prices(settings), record=True):
                recorded.add(step.changes)
                advance(step.calls)


def _print_difference(looked_at: int, found: "Difference") -> None:
    if not found.lines:
        print(f"{_number(looked_at, 'call')} looked at: each costs what the ledger says")
        return
    names = ("day (UTC)", "provider", "model")
    numbers = ("calls", "newly priced", "no longer", "before ($)", "after ($)", "difference ($)")
    largest = sorted(found.lines.items(), key=_size, reverse=True)[:_MOST_SHOWN]
    rows = [
        (f"{key.day}", key.provider or "", key.model or "", *_cells(line))
        for key, line in sorted(largest, key=_order)
    ]
    total = ("all", "", "", *_cells(found.total))
    print_table((*names, *numbers), rows, right=numbers, total=total)
    if len(found.lines) > _MOST_SHOWN:
        print(f"{len(found.lines) - _MOST_SHOWN} lines with less of a difference: see --json")
    print(f"{_number(looked_at, 'call')} looked at")


def _size(entry: "tuple[LineKey, Line]") -> int:
    return abs(entry[1].difference_nanos)


def _order(entry: "tuple[LineKey, Line]") -> tuple[date, str, str]:
    key = entry[0]
    return key.day, key.provider or "", key.model or ""


def _cells(line: "Line") -> tuple[str, ...]:
    counts = (line.calls, line.newly_priced, line.no_longer_priced)
    costs = (f"{_dollars(line.before_nanos):f}", f"{_dollars(line.after_nanos):f}")
    return (*map(str, counts), *costs, _signed(line.difference_nanos))


def _dollars(nanos: int) -> Decimal:
    return Decimal(nanos).scaleb(-9)


def _signed(nanos: int) -> str:
    return f"{_dollars(nanos):+f}"


def _number(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _print_json(looked_at: int, found: "Difference", recorded: "Difference | None") -> None:
    lines = sorted(found.lines.items(), key=_order)
    answer = {
        "calls": looked_at,
        "total": _fields(found.total),
        "groups": [{**key._asdict(), **_fields(line)} for key, line in lines],
        "recorded": recorded and _fields(recorded.total),
    }
    print_json(answer)


def _fields(line: "Line") -> dict[str, int | Decimal]:
    return {
        "calls": line.calls,
        "newly_priced": line.newly_priced,
        "no_longer_priced": line.no_longer_priced,
        "cost_before": _dollars(line.before_nanos),
        "cost_after": _dollars(line.after_nanos),
        "difference": _dollars(line.difference_nanos),
    }


@app.command()
def rebuild(
    *,
    since: Annotated[str | None, typer.Option(metavar="DAY", help="The first UTC day.")] = None,
    until: Annotated[str | None, typer.Option(metavar="DAY", help="The last UTC day.")] = None,
    dry_run: DryRun = False,
) -> None:
    """Make the roll-ups anew, a UTC day at a time, from the events and the ledger.

    Of the days from --since to --until, either included, those are made anew whose events are all
    still there; others stay as they are. The services go on meanwhile.

    Examples: `rebuild`, `rebuild --since 2026-11-20 --until 2026-11-21`, `rebuild --dry-run`.
    """
    first = _day(since, "--since") if since is not None else None
    last = _day(until, "--until") if until is not None else None
    if first and last and last < first:
        raise SettingsError("--until may not be before --since")
    settings, done = load_settings(), list[Rebuilt]()
    try:
        asyncio.run(_rebuild(settings, first, last, done, keep=not dry_run))
    finally:
        if done:
            _print_rebuilt(done, kept=not dry_run)
    if not done:
        print("there is no day whose events are all still there")


def _print_rebuilt(days: Sequence[Rebuilt], *, kept: bool) -> None:
    events, rows = sum(day.events for day in days), sum(day.rows for day in days)
    differed, added = sum(day.differed for day in days), sum(day.calls_added for day in days)
    print(
        f"{'rebuilt' if kept else 'compared'} {_number(len(days), 'day')}: "
        f"{_number(events, 'event')}, {_number(rows, 'row')}, of which {differed} differed"
    )
    if added:
        verb = "were added to" if kept else "are not in"
        print(f"{_number(added, 'call')} {verb} the ledger")


async def _rebuild(
    settings: Settings, since: date | None, until: date | None, done: list[Rebuilt], *, keep: bool
) -> None:
    from logging_service.backends import open_roll_ups

    async with open_roll_ups(settings) as roll_ups:
        days = await roll_ups.days(since, until)
        with progress("rebuilding", await roll_ups.count(days)) as advance:
            for day in days:
                rebuilt = await roll_ups.rebuild(day, advance, keep=keep)
                done.append(rebuilt)
