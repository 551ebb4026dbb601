"""`logging-service erase`: a session or a user goes, and what they said."""

import asyncio
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from logging_service.errors import SettingsError
from logging_service.progress import progress
from logging_service.settings import Settings, load_settings
from logging_service.terminal import print_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from logging_service.erasure import Erased, Kind

app = typer.Typer()

_WAIT_SECONDS = 600.0


@app.command("erase")
def erase_subject(
    *,
    session: Annotated[str | None, typer.Option(help="The session's id.")] = None,
    user: Annotated[str | None, typer.Option(help="The user's id, as in payloads.")] = None,
    project: Annotated[str | None, typer.Option(help="Only events of this project.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Erase what a session or a user said: in events, the ledger, roll-ups and dead letters.

    That the events happened stays, with what is counted of them. With a user go the sessions in
    which no other user is named. It cannot be undone. The services go on meanwhile; events that
    were accepted before and are not stored yet are waited for.

    Examples: `erase --session 123`, `erase --user user123 --project reviewer --yes`.
    """
    named = session or user
    if not named or (session and user):
        raise SettingsError("one of --session and --user is needed")
    if not yes:
        if not sys.stdin.isatty():
            raise SettingsError("nobody can be asked here: add --yes")
        of = f" in {project}" if project else ""
        kind = "session" if session else "user"
        typer.confirm(f"Erase what the {kind} {named!r} said{of}, for good?", abort=True)
    erased = asyncio.run(_erase(load_settings(), "session" if session else "user", named, project))
    if as_json:
        print_json(erased)
        return
    print(
        f"erased {erased.events} events, {erased.ledger_entries} entries of the ledger, "
        f"{erased.reviews} reviews, {erased.dead_letters} dead letters, "
        f"{erased.stored_reviews} reviews that the gateway kept"
    )


async def _erase(settings: Settings, kind: "Kind", text: str, project: str | None) -> "Erased":
    from logging_service.audit import COMMAND_LINE
    from logging_service.backends import open_seen_queue
    from logging_service.erasing import erase, subject_of

    subject = subject_of(settings, kind, text, project)
    with ExitStack() as shown:
        async with open_seen_queue(settings) as queue:
            return await erase(
                settings,
                queue,
                subject,
                COMMAND_LINE,
                wait_seconds=_WAIT_SECONDS,
                advance=_bar(shown),
            )


def _bar(shown: ExitStack) -> "Callable[[int, int], None]":
    bar = None

    def advance(more: int, of: int) -> None:
        nonlocal bar
        bar = bar or shown.enter_context(progress("erasing", of))
        bar(more)

    return advance
