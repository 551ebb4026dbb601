"""`logging-service spool`: what can be done for a spool file that was set aside."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from logging_service.books import Wreck
from logging_service.errors import BackendUnavailable, SchemaMismatch
from logging_service.ports import NO_EPOCH
from logging_service.progress import progress
from logging_service.settings import Settings, load_settings
from logging_service.spool_file import peek
from logging_service.spool_folder import original_of, place_of
from logging_service.spool_salvage import Salvaged, salvage, size_of

app = typer.Typer(no_args_is_help=True, help="Spool files that were set aside as damaged.")


@app.command("salvage")
def salvage_file(
    file: Annotated[Path, typer.Argument(help="The file, `….damaged-<time>`, its log beside it.")],
) -> None:
    """Put what is whole in a damaged spool file into the queue, and rename the file.

    The services may run meanwhile. An event that comes twice is stored once.

    Example: `spool salvage data/spool/queue.sqlite.damaged-20261123T101500Z`.
    """
    found, missing = asyncio.run(_salvage(load_settings(), file))
    print(f"recovered {found.events} events in {found.rows} rows; {found.damaged} are damaged")
    if found.lost_rows or found.unreadable_bytes:
        print(
            f"{found.lost_rows} rows cannot be told any more, "
            f"{found.unreadable_bytes} bytes were not given by the disk"
        )
    print(f"the file is now {found.file}")
    if missing:
        print(
            f"the balance goes on showing what was recovered as removed_outside ({missing}): "
            f"salvage {found.file} once more when the database is there"
        )


async def _salvage(settings: Settings, file: Path) -> tuple[Salvaged, str]:
    """Return what was found, and why it is not in the books, if so."""
    from logging_service.backends import open_books, open_queue

    held = peek(file)
    async with open_queue(settings) as queue, open_books(settings) as books:
        with progress("salvaging", size_of(file)) as advance:
            ttl = settings.redis_queue_ttl
            found = await salvage(file, queue, advance, ttl_seconds=ttl)
        original = original_of(file)
        there = peek(original)
        wreck = Wreck(
            held.epoch if held else NO_EPOCH,
            place_of(original),
            there.epoch if there else NO_EPOCH,
        )
        try:
            await books.credit(wreck, found.events)
        except (BackendUnavailable, SchemaMismatch) as error:
            return found, str(error)
        return found, ""
