"""Reviews asked for a few at once, read and printed in the form wanted."""

import sys
from collections.abc import Callable, Mapping, Sequence
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Protocol, TypeVar

import msgspec
from rich.console import Console

from logging_service.errors import LoggingServiceError
from logging_service.gateway_calls import Gateway, GatewayUnusable
from logging_service.logs import escape_controls
from logging_service.progress import progress
from logging_service.review_answers import Answer, as_document, read_answer
from logging_service.review_report import print_report
from logging_service.review_sources import Source
from logging_service.sarif_runs import merged, read_log
from logging_service.terminal import print_json

MOST_FILES = 1000
_AT_ONCE = 4
_TICK_SECONDS = 0.25
_MAX_NAME = 255
_JSON = "application/json"
_SARIF = "application/sarif+json"

_Outcome = bytes | Exception
_Tasks = SimpleQueue[tuple[int, Source]]
_Outcomes = SimpleQueue[tuple[int, _Outcome]]


class _Judged(Protocol):
    @property
    def verdict(self) -> str: ...

    @property
    def failed(self) -> bool: ...


_Read = TypeVar("_Read", bound=_Judged)


class Reviewed(msgspec.Struct, frozen=True):
    """The verdicts on what was reviewed, and a line for each thing that was not."""

    verdicts: frozenset[str]
    faults: tuple[str, ...]


class Reviewing(msgspec.Struct, frozen=True):
    """What is asked of `gateway` for each of `sources`, with these options of a review."""

    gateway: Gateway
    sources: Sequence[Source]
    options: Mapping[str, object]

    def run(self, form: str) -> Reviewed:
        """Have all reviewed, print that as `text`, `json` or `sarif`, and tell what came of it.

        Raises GatewayUnusable as soon as that is known; nothing is printed then.
        """
        if form == "sarif":
            return self._run(_SARIF, read_log, lambda logs: print_json(merged(logs)))
        return self._run(_JSON, read_answer, _print_text if form == "text" else _print_documents)

    def _run(
        self,
        media_type: str,
        read: Callable[[Source, bytes], _Read],
        show: Callable[[Sequence[_Read]], None],
    ) -> Reviewed:
        answers, faults = list[_Read](), list[str]()
        outcomes = self._outcomes(media_type)
        for number, source in enumerate(self.sources):
            outcome = outcomes[number]
            try:
                if isinstance(outcome, Exception):
                    raise outcome
                answers.append(answer := read(source, outcome))
            except LoggingServiceError as error:
                faults.append(f"{source.name}: {error}")
            else:
                if answer.failed:
                    faults.append(f"{source.name}: the review failed")
        show(answers)
        return Reviewed(frozenset(answer.verdict for answer in answers), tuple(faults))

    def _outcomes(self, media_type: str) -> dict[int, _Outcome]:
        waiting, done = _Tasks(), _Outcomes()
        for task in enumerate(self.sources):
            waiting.put(task)
        for _ in range(min(_AT_ONCE, len(self.sources))):
            # Daemons: who interrupts the command does not wait for their answers.
            Thread(target=self._work, args=(waiting, done, media_type), daemon=True).start()
        outcomes: dict[int, _Outcome] = {}
        with progress("reviewing", len(self.sources)) as advance:
            while len(outcomes) < len(self.sources):
                try:
                    number, outcome = done.get(timeout=_TICK_SECONDS)
                except Empty:
                    advance(0)
                    continue
                if isinstance(outcome, GatewayUnusable):
                    raise outcome
                outcomes[number] = outcome
                advance(1)
        return outcomes

    def _work(self, waiting: _Tasks, done: _Outcomes, media_type: str) -> None:
        outcome: _Outcome | None = None
        while not isinstance(outcome, GatewayUnusable):
            try:
                number, source = waiting.get_nowait()
            except Empty:
                return
            outcome = self._ask(source, media_type)
            done.put((number, outcome))

    def _ask(self, source: Source, media_type: str) -> _Outcome:
        # The gateway takes no longer name, and none with controls.
        name = escape_controls(source.name)[-_MAX_NAME:]
        submission = {"code": source.code, "filename": name, "options": self.options}
        try:
            return self.gateway.review(submission, media_type)
        except Exception as error:  # noqa: BLE001 - who waits for the outcome raises it
            return error


def complain(text: str) -> None:
    """Print `text`, which may hold what others wrote, as one line on standard error."""
    sys.stderr.write(escape_controls(text) + "\n")


def _print_text(answers: Sequence[Answer]) -> None:
    print_report(Console(highlight=False, markup=False, emoji=False), answers)


def _print_documents(answers: Sequence[Answer]) -> None:
    print_json([as_document(answer) for answer in answers])
