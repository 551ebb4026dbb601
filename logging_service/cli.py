"""The `logging-service` command."""

import asyncio
import os
import shutil
import signal
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from logging_service import (
    alerts_command,
    dead_letter_commands,
    doctor_command,
    erase_command,
    key_commands,
    ledger_commands,
    redaction_commands,
    review_command,
    spool_commands,
)
from logging_service.errors import (
    KeyConflict,
    KeyRejected,
    LoggingServiceError,
    SchemaMismatch,
    SettingsError,
)
from logging_service.logs import escape_controls
from logging_service.settings import Settings, load_settings

# Each command imports what it runs: `--help` is to answer at once.
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(dead_letter_commands.app, name="dead-letters")
app.add_typer(key_commands.app, name="keys")
app.add_typer(redaction_commands.app, name="redaction")
app.add_typer(spool_commands.app, name="spool")
app.add_typer(ledger_commands.app)
app.add_typer(erase_command.app)
app.add_typer(review_command.app)
app.add_typer(doctor_command.app)
app.add_typer(alerts_command.app)

_STOP_SECONDS = 12
_GATEWAY = Path(__file__).resolve().parent.parent / "main.py"
_MENDABLE = (SettingsError, SchemaMismatch, KeyRejected, KeyConflict)


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it
    if wanted:
        try:
            print(version("logging-service"))
        except PackageNotFoundError:
            print("not installed")
        raise typer.Exit


@app.callback()
def logging_service(
    *,
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Say which.")
    ] = False,
) -> None:
    """Take events over HTTP, keep them in PostgreSQL, answer what was done and what it cost."""


@app.command()
def up() -> None:
    """Run everything on this machine, PostgreSQL and Valkey included, until Ctrl-C."""
    from logging_service import up as everything

    asyncio.run(everything.up(load_settings()))


@app.command()
def producer(
    workers: Annotated[int | None, typer.Option(min=1, max=64, help="Processes.")] = None,
) -> None:
    """Run the producer: takes events over HTTP and puts them into the queue."""
    from logging_service import producer as service

    service.main(workers)


@app.command()
def consumer() -> None:
    """Run the consumer: stores what waits in the queue."""
    from logging_service import consumer as service

    service.main()


@app.command()
def query() -> None:
    """Run the query service: answers from what is stored."""
    from logging_service import query_service as service

    service.main()


@app.command()
def gateway() -> None:
    """Run the API gateway: takes Python code over HTTP and has it reviewed."""
    if not _GATEWAY.exists():
        raise SettingsError("the gateway is not installed: there is no main.py beside this package")
    # It is a user of this package, which knows nothing of it but its file.
    os.execv(sys.executable, [sys.executable, str(_GATEWAY)])  # noqa: S606 - both are ours


@app.command()
def migrate() -> None:
    """Bring the database's schema up to date."""
    from logging_service import schema

    settings = load_settings()
    before, now = asyncio.run(schema.migrate(settings.owner_url, settings.store_url))
    print(f"schema {now}" if before == now else f"schema {now}, before {before or 'none'}")


@app.command()
def clean_data(
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Stop what runs from DATA_DIR, and remove DATA_DIR with every event in it."""
    from logging_service import data_folder

    settings = load_settings()
    folder = settings.data_path
    if not folder.exists():
        print(f"{folder} does not exist: nothing to remove")
        return
    if not data_folder.may_be_removed(folder):
        raise SettingsError(
            f"DATA_DIR={folder} was not made by logging-service, or holds more: remove it by hand"
        )
    if not yes:
        typer.confirm(f"Stop what runs from {folder}, and remove it with all its data?", abort=True)
    asyncio.run(_remove(settings))
    print(f"{folder} is removed")


async def _remove(settings: Settings) -> None:
    from logging_service import data_folder
    from logging_service.up import end_left_over

    folder = settings.data_path
    while holder := data_folder.lock_holder(folder):
        print(f"stopping the `up` that runs, process {holder.pid}")
        await data_folder.end([holder], signal.SIGTERM, _STOP_SECONDS)
        await asyncio.sleep(0.1)
    with data_folder.locked(folder):
        await end_left_over(folder)
        try:
            await asyncio.to_thread(shutil.rmtree, folder)
        except OSError as error:
            raise SettingsError(f"DATA_DIR={folder} cannot be removed: {error}") from None


def main() -> None:
    """Run the command; what the person can mend is one line and exit code 2, else 1."""
    try:
        app(prog_name="logging-service")
    except LoggingServiceError as error:
        print(escape_controls(str(error)), file=sys.stderr)
        sys.exit(2 if isinstance(error, _MENDABLE) else 1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
