"""Measures what the project publishes: a table, then one line of JSON on standard output."""

if __name__ == "__main__" and not __package__:
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
from functools import partial

from rich.progress import Progress

from bench import post_log, queryable, stored
from bench.command import carry_out, sheet_console
from bench.figures import Figures
from bench.servers import a_pipeline
from bench.sheet import Sheet

PARTS = ("stored", "post_log", "queryable")
_START_SECONDS = 8.0


async def measure(parts: set[str], seconds: float, progress: Progress) -> tuple[Figures, Sheet]:
    """Run the parts, each measured run of about `seconds`, on servers of their own."""
    task = progress.add_task("starting the servers", total=_expected(parts, seconds))

    def step(of: float) -> None:
        progress.advance(task, of)

    figures, sheet = Figures(), Sheet()
    async with a_pipeline() as pipeline:
        step(_START_SECONDS)
        if "stored" in parts:
            progress.update(task, description="events stored a second")
            long = seconds * stored.TIMES
            figures.stored = await stored.measure_stored(pipeline, long, sheet, step)
        if "post_log" in parts:
            progress.update(task, description="POST /log requests a second")
            figures.post_log = await post_log.measure_post_log(pipeline, seconds, sheet, step)
        if "queryable" in parts:
            progress.update(task, description="accepted to queryable")
            long = seconds * queryable.TIMES
            figures.queryable_ms = await queryable.measure_queryable(pipeline, long, sheet, step)
        progress.update(task, description="stopping")
    return figures, sheet


def _expected(parts: set[str], seconds: float) -> float:
    units = {
        "stored": seconds * stored.TIMES * 2 * (stored.ROUNDS + 1),
        "post_log": 3.5 + seconds * 3 * post_log.ROUNDS,
        "queryable": 1 + seconds * queryable.TIMES,
    }
    return _START_SECONDS + sum(units[part] for part in parts)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS, help="measure this part alone")
    parser.add_argument(
        "--seconds",
        type=float,
        default=4.0,
        metavar="N",
        help="the length of each measured run (default 4; the published figures are of that)",
    )
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    parts = {arguments.only} if arguments.only else set(PARTS)
    figures, sheet = carry_out(partial(measure, parts, arguments.seconds))
    sheet.show(sheet_console(), figures)
    print(figures.line())


if __name__ == "__main__":
    main()
