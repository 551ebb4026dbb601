"""`logging-service alerts`: the rules for Prometheus, with this site's limits and times."""

import sys
from typing import Annotated

import typer

app = typer.Typer()


@app.command("alerts")
def print_alerts(
    *,
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=NUMBER", help="What an alert's value has to exceed."),
    ] = None,
    lasting: Annotated[
        list[str] | None,
        typer.Option("--for", metavar="NAME=DURATION", help="How long that has to hold."),
    ] = None,
    over: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=DURATION", help="Over how long a rate is taken."),
    ] = None,
    runbook: Annotated[
        str | None, typer.Option(help="Where docs/operations.md can be read at your site.")
    ] = None,
) -> None:
    """Print the rules of all alerts for Prometheus; without options those of `alerts.yml`.

    Each option can be repeated; the name `all` is every alert.

    Examples: `alerts --limit ModelCostPerHour=50 --for QueueGrowing=30m > alerts.yml`,
    `alerts --for all=0s --over all=1m` to try them.
    """
    from logging_service.alerts import RUNBOOK, rules

    changes = {"limit": limit or (), "lasting": lasting or (), "over": over or ()}
    sys.stdout.write(rules(changes, runbook or RUNBOOK))
