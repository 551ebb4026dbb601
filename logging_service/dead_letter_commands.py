"""`logging-service dead-letters`: seen, replayed and dropped, on the database and the queue."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Annotated

import msgspec
import typer

from logging_service.audit import COMMAND_LINE
from logging_service.dead_letters import Refusal, ShownLetter, page_of, replay, shown
from logging_service.errors import LoggingServiceError
from logging_service.ports import DeadLetters, LetterFilter, LetterKey
from logging_service.progress import progress
from logging_service.settings import Settings, load_settings
from logging_service.terminal import print_json, print_table, printable

app = typer.Typer(
    no_args_is_help=True,
    help="Events that could not be stored: see why, put them into the queue again, drop them.",
)

_MOST_ID = 2**63 - 1
_KEYS_AT_ONCE = 10_000
_DROPPED_AT_ONCE = 1_000
_COLUMNS = ("id", "reason", "attempts", "last seen (UTC)", "event type", "session", "detail")

LetterId = Annotated[int, typer.Argument(min=1, max=_MOST_ID, help="The letter's number.")]
Ids = Annotated[list[int] | None, typer.Argument(min=1, max=_MOST_ID, help="The letters' numbers.")]
Reason = Annotated[
    str | None, typer.Option(help="Those put aside for this reason, such as conflict.")
]
All = Annotated[bool, typer.Option("--all", help="Every letter that was not replayed yet.")]
Json = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]


class _Listed(msgspec.Struct):
    dead_letters: list[ShownLetter]
    before: int | None


@app.command("list")
def list_letters(
    *,
    reason: Reason = None,
    event_type: Annotated[str | None, typer.Option(help="Those of this event type.")] = None,
    replayed: Annotated[
        bool, typer.Option("--replayed", help="Those replayed in the last seven days.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at the most.")] = 50,
    before: Annotated[
        int, typer.Option(min=0, max=_MOST_ID, help="Only those with lower numbers; 0: all.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """List dead letters, the newest first.

    Examples: `dead-letters list --reason conflict`, `dead-letters list --limit 10 --json`.
    """
    wanted = LetterFilter(None, reason, event_type, replayed)
    page, following = asyncio.run(_page(load_settings(), wanted, before, limit))
    if as_json:
        print_json(_Listed(page, following))
    elif page:
        print_table(_COLUMNS, map(_cells, page), right={"id", "attempts"})
        if following:
            print(f"there are more: --before {following}")
    else:
        print("no dead letters")


async def _page(
    settings: Settings, wanted: LetterFilter, before: int, limit: int
) -> tuple[list[ShownLetter], int | None]:
    from logging_service.backends import open_dead_letters

    async with open_dead_letters(settings) as letters:
        return await page_of(letters, wanted, before, limit)


@app.command()
def show(letter_id: LetterId, *, as_json: Json = False) -> None:
    """Show one dead letter with its payload.

    Example: `dead-letters show 17`.
    """
    letter = asyncio.run(_find(load_settings(), letter_id))
    if as_json:
        print_json(letter)
        return
    fields = {name: getattr(letter, name) for name in letter.__struct_fields__}
    payload = fields.pop("payload")
    for name, value in fields.items():
        print(f"{name:<12} {'' if value is None else printable(str(value))}")
    if payload is not None:
        for line in msgspec.json.format(bytes(payload), indent=2).decode().splitlines():
            print(printable(line))


async def _find(settings: Settings, letter_id: int) -> ShownLetter:
    from logging_service.backends import open_dead_letters

    async with open_dead_letters(settings) as letters:
        found = (await letters.letters([letter_id])).get(letter_id)
    if found is None:
        raise LoggingServiceError(f"there is no dead letter {letter_id}")
    return shown(found)


@app.command("replay")
def replay_letters(ids: Ids = None, *, reason: Reason = None, every: All = False) -> None:
    """Put the events of dead letters into the queue again, checked as new events are.

    What cannot be read is refused and stays. A letter whose event fails again comes back.

    Examples: `dead-letters replay 17 18`, `dead-letters replay --reason rejected`,
    `dead-letters replay --all`.
    """
    wanted = _choice(ids, reason, every=every)
    refused = asyncio.run(_replay(load_settings(), wanted))
    if refused:
        first = refused[0]
        raise LoggingServiceError(
            f"{len(refused)} refused, they stay; the first is {first.id}: {printable(first.detail)}"
        )


async def _replay(settings: Settings, wanted: LetterFilter) -> list[Refusal]:
    from logging_service.backends import open_dead_letters, open_queue, redactor_of

    redactor = redactor_of(settings)
    replayed, refused, missing = 0, list[Refusal](), set(wanted.ids or ())
    async with open_dead_letters(settings) as letters, open_queue(settings) as queue:
        try:
            with progress("replaying", await letters.count(wanted)) as advance:
                async for keys in _all_keys(letters, wanted):
                    missing.difference_update(key.id for key in keys)
                    async for step in replay(letters, queue, keys, COMMAND_LINE, redactor):
                        replayed += step.replayed
                        refused += step.refused
                        advance(step.replayed + len(step.refused))
        finally:
            print(f"replayed {replayed}")
    gone = "there is no such letter, or it was replayed"
    return [*refused, *(Refusal(letter_id, gone) for letter_id in sorted(missing))]


@app.command()
def drop(
    ids: Ids = None,
    *,
    reason: Reason = None,
    every: All = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Forget dead letters for good, with the events in them.

    Examples: `dead-letters drop 17`, `dead-letters drop --reason unreadable --yes`.
    """
    wanted = _choice(ids, reason, every=every)
    settings = load_settings()
    number = asyncio.run(_count(settings, wanted))
    if number and not yes:
        letters = "1 dead letter" if number == 1 else f"{number} dead letters"
        typer.confirm(f"Forget {letters} for good?", abort=True)
    dropped = asyncio.run(_drop(settings, wanted, number))
    print(f"dropped {dropped}")
    asked = len(set(wanted.ids or ()))
    if dropped < asked:
        gone = asked - dropped
        raise LoggingServiceError(f"{gone} of these {asked} were not there, or are replayed")


async def _count(settings: Settings, wanted: LetterFilter) -> int:
    from logging_service.backends import open_dead_letters

    async with open_dead_letters(settings) as letters:
        return await letters.count(wanted)


async def _drop(settings: Settings, wanted: LetterFilter, number: int) -> int:
    from logging_service.backends import open_dead_letters

    dropped = 0
    async with open_dead_letters(settings) as letters:
        with progress("dropping", number) as advance:
            async for keys in _all_keys(letters, wanted):
                for start in range(0, len(keys), _DROPPED_AT_ONCE):
                    portion = keys[start : start + _DROPPED_AT_ONCE]
                    dropped += await letters.drop([key.id for key in portion], COMMAND_LINE)
                    advance(len(portion))
    return dropped


async def _all_keys(
    letters: DeadLetters, wanted: LetterFilter
) -> AsyncIterator[Sequence[LetterKey]]:
    beyond = 0
    while keys := await letters.keys(wanted, _KEYS_AT_ONCE, beyond=beyond):
        yield keys
        beyond = keys[-1].id


def _choice(ids: list[int] | None, reason: str | None, *, every: bool) -> LetterFilter:
    if sum((bool(ids), reason is not None, every)) != 1:
        raise typer.BadParameter("give the letters' numbers, or --reason, or --all")
    return LetterFilter(ids=tuple(ids) if ids else None, reason=reason)


def _cells(letter: ShownLetter) -> tuple[str, ...]:
    return (
        str(letter.id),
        letter.reason,
        str(letter.attempts),
        f"{letter.last_seen:%Y-%m-%d %H:%M:%S}",
        letter.event_type or "",
        letter.session_id or "",
        letter.detail,
    )
