"""The crash run: everything under load, while all of it is killed, stopped and cut off at random.

In the end each event that was acknowledged has to be stored once, or lie in the dead letters with
the reason. The last line says so; exit code 1 where it is not so, or the balance does not close.
"""

if __name__ == "__main__" and not __package__:
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import asyncio
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from chaos.load import LINE_BYTES, Seen
from chaos.pipeline import Pipeline, Say, a_folder, a_pipeline
from chaos.torment import Torment
from chaos.verdict import Ledger, balance_faults, judge, read_kept, until_empty
from logging_service.errors import LoggingServiceError
from logging_service.logs import configure_logs

_EMPTY_SECONDS = 120.0
_INTERRUPTED = 130
_PLAIN_WIDTH = 100
_LARGEST = 100_000


class Options(msgspec.Struct, frozen=True):
    """What was asked for."""

    minutes: float
    seed: int
    kills_per_minute: float
    events_per_second: float
    keep: bool


class Outcome(msgspec.Struct):
    """What is printed, `line` last; `faults` say what must not be, a sentence each."""

    line: str
    balance: str
    faults: list[str]
    done: Mapping[str, int]
    endings: Mapping[str, int]
    answers: Mapping[str, int]


class CrashRun:
    """One run in a folder of its own; `state` says how far it is."""

    def __init__(self, options: Options, folder: Path, say: Say) -> None:
        self._options = options
        self._folder = folder
        self._say = say
        self._began = time.monotonic()
        self._step = "starting"
        self._torment: Torment | None = None

    def state(self) -> str:
        """Return one line for the person who waits."""
        counts = ""
        if self._torment is not None:
            with suppress(FileNotFoundError):
                lines = (self._folder / "ledger.txt").stat().st_size // LINE_BYTES
                counts = f" acknowledged={lines} kills={self._torment.kills}"
                counts += f" deeds={self._torment.done.total()}"
        return f"chaos: {time.monotonic() - self._began:.0f} s, {self._step}{counts}"

    async def run(self) -> Outcome:
        """Return what became of the acknowledged events."""
        options = self._options
        async with a_pipeline(
            self._folder, options.seed, options.events_per_second, self._say
        ) as pipeline:
            torment = Torment(pipeline, options.seed, options.kills_per_minute, self._say)
            self._torment = torment
            self._step = "tormenting"
            await torment.run(60 * options.minutes)
            self._step = "emptying the queue"
            self._say(self._step)
            seen = msgspec.json.decode(await pipeline.end_load(), type=Seen)
            faults = await until_empty(pipeline, _EMPTY_SECONDS)
            self._step = "comparing"
            outcome = await self._compare(pipeline, torment, seen)
            outcome.faults[:0] = faults
            self._step = "stopping"
            return outcome

    async def _compare(self, pipeline: Pipeline, torment: Torment, seen: Seen) -> Outcome:
        ledger, kept = Ledger(pipeline.ledger), await read_kept(pipeline.postgres.url)
        verdict = judge(ledger, kept, torment.kills)
        balance, faults = await balance_faults(pipeline, kept, ledger)
        wrong = [f"an answer that may not be: {one}" for one in seen.wrong]
        lost = {f"answers of {name} lost": count for name, count in torment.lost_answers().items()}
        return Outcome(
            line=verdict.line,
            balance=balance,
            faults=[*verdict.faults, *faults, *wrong],
            done=torment.done | lost,
            endings=pipeline.endings(),
            answers=seen.answers | {"given up, events": seen.given_up},
        )


@asynccontextmanager
async def shown(line: Callable[[], str]) -> AsyncIterator[None]:
    """Show a line again and again: in its place on a terminal, every half minute elsewhere."""
    on_terminal = sys.stderr.isatty()

    async def show() -> None:
        while True:
            print(
                f"\r\x1b[K{line()}" if on_terminal else line(),
                file=sys.stderr,
                end="" if on_terminal else "\n",
                flush=True,
            )
            await asyncio.sleep(0.5 if on_terminal else 30)

    task = asyncio.create_task(show())
    try:
        yield
    finally:
        task.cancel()
        if on_terminal:
            print("\r\x1b[K", file=sys.stderr, end="", flush=True)


@contextmanager
def a_diary(folder: Path) -> Iterator[Say]:
    """Yield what writes a line with the time into `chaos.log`."""
    with (folder / "chaos.log").open("w", encoding="utf-8", buffering=1) as file:
        yield lambda line: print(time.strftime("%H:%M:%S"), line, file=file)


async def crash(options: Options) -> int:
    """Run, print the outcome and return the exit code; a signal ends it in order."""
    _cancel_on_signals()
    with a_folder(keep=options.keep) as folder, a_diary(folder) as say:
        if options.keep:
            print(f"chaos: logs, ledger and data are kept in {folder}", flush=True)
        run = CrashRun(options, folder, say)
        try:
            async with shown(run.state):
                outcome = await run.run()
        except BaseExceptionGroup as group:
            raise _first_of(group) from None
        _show(outcome, options)
    return 1 if outcome.faults else 0


def _first_of(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _cancel_on_signals() -> None:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()

    def cancel() -> None:
        # Once: what it takes to end everything must not be cut short.
        for number in numbers:
            loop.add_signal_handler(number, lambda: None)
        if task is not None:
            task.cancel()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, cancel)


def _show(outcome: Outcome, options: Options) -> None:
    console = Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH, highlight=False)
    counted = (("done", outcome.done), ("ended", outcome.endings), ("answers", outcome.answers))
    for title, counts in counted:
        table = Table(title, "times", box=None, pad_edge=False)
        for name, count in sorted(counts.items()):
            table.add_row(name, f"{count}")
        console.print(table)
    for fault in outcome.faults:
        print(f"chaos: {fault}")
    if outcome.faults and not options.keep:
        print(f"chaos: run it with --seed {options.seed} --keep to have the logs")
    print(outcome.balance)
    print(outcome.line)


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number <= _LARGEST:
        raise argparse.ArgumentTypeError(f"{text}: more than 0, at most {_LARGEST}")
    return number


def _arguments() -> Options:
    parser = argparse.ArgumentParser(description=__doc__)

    def add(name: str, default: float, what: str) -> None:
        parser.add_argument(name, type=_positive, default=default, metavar="N", help=what)

    add("--minutes", 5.0, "how long (default 5)")
    parser.add_argument("--seed", type=int, metavar="N", help="of every random choice")
    add("--kills-per-minute", 8.0, "by signal 9, on average (default 8)")
    add("--events-per-second", 500.0, "sent, on average (default 500)")
    parser.add_argument("--keep", action="store_true", help="keep logs, ledger and data")
    given = vars(parser.parse_args())
    if given["seed"] is None:
        given["seed"] = random.SystemRandom().randrange(1_000_000)
    return msgspec.convert(given, Options)


def main() -> int:
    """Run and return the exit code."""
    options = _arguments()
    configure_logs("chaos", "error")
    print(f"chaos: seed={options.seed} minutes={options.minutes:g}", flush=True)
    try:
        return asyncio.run(crash(options))
    except (asyncio.CancelledError, KeyboardInterrupt):
        print("chaos: stopped", file=sys.stderr)
        return _INTERRUPTED
    except (LoggingServiceError, RuntimeError) as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
