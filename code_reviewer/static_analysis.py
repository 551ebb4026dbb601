"""The static stage: ruff, in a cage, about code that is read and never run."""

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from posixpath import basename
from time import perf_counter

from code_reviewer import rules
from code_reviewer.analyses import Analysis, StaticReport, unread
from code_reviewer.child import Cages, Ended, Fate, Limits
from code_reviewer.events import Emit
from code_reviewer.findings import (
    CodeMetrics,
    FunctionComplexity,
    Options,
    Place,
    Submission,
    most_severe,
)
from code_reviewer.ruff_check import SYNTAX, Diagnostic, Ruff, read
from code_reviewer.ruff_findings import (
    MOST_FINDINGS,
    Graded,
    Spots,
    findings,
    functions,
    graded,
    lines_of,
    no_text,
    place,
    spot,
    too_complex,
    with_message,
)
from code_reviewer.syntax_message import OWN_VERSION, syntax_message

__all__ = ["Analysis", "StaticAnalyzer", "StaticReport"]

_NO_TEXT = re.compile("[\0\ud800-\udfff]")
# ruff knows no comment that suppresses without one of the two.
_MAY_SUPPRESS = re.compile("noqa|ruff", re.IGNORECASE)

Found = tuple[Ended, Sequence[Graded]]


class AnalysisFailed(Exception):
    """The tool did not say what there is to find; `status` is that of the analysis."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class StaticAnalyzer:
    """Analyses submissions, with at most `at_once` child processes (default: one per core).

    Making it starts ruff twice, for 20 ms; raises RuffMissing. `rule_set` changes with all that
    makes findings differ: ruff, our view of its rules, the Python whose words are used.
    """

    def __init__(self, *, at_once: int | None = None, limits: Limits | None = None) -> None:
        self._ruff = Ruff()
        self._cages = Cages(at_once or len(os.sched_getaffinity(0)), limits or Limits())
        self.rule_set = f"{self._ruff.name}; rules {rules.VERSION}; {OWN_VERSION}"

    def unknown_rules(self, select: Iterable[str]) -> tuple[str, ...]:
        """Return those of `select` that are neither `default` nor the beginning of a rule."""
        known = (rules.DEFAULT, *self._ruff.prefixes)
        return tuple(prefix for prefix in select if prefix not in known)

    def fault(self) -> str | None:
        """Say why nothing can be analysed; None: it can."""
        return None if self._ruff.is_there else "ruff is not installed any more"

    async def analyze(self, submission: Submission, emit: Emit) -> StaticReport:
        """Return what is found, whatever the code is; `emit` gets two events for each analysis.

        The findings are not filtered by `min_severity`: a verdict is about all of them. After a
        syntax error `lint` and `complexity` are skipped. Raises ValueError for options that
        `unknown_rules` and TARGET_VERSIONS do not allow.
        """
        self._refuse(submission.options)
        return await _Examination(self._ruff, self._cages, submission, emit).report()

    def _refuse(self, options: Options) -> None:
        if unknown := self.unknown_rules(options.select or ()):
            raise ValueError(f"no rule begins with {unknown[0]}")
        if options.target_version not in {None, *rules.TARGET_VERSIONS}:
            raise ValueError(f"there is no target version {options.target_version}")


class _Examination:
    """One submission, from the first analysis to the last."""

    def __init__(self, ruff: Ruff, cages: Cages, submission: Submission, emit: Emit) -> None:
        self._ruff = ruff
        self._cages = cages
        self._emit = emit
        self._code = submission.code
        self._fed = submission.code.encode("utf-8", "surrogatepass")
        self._lines = lines_of(submission.code)
        self._filename = _stand_in(submission.filename)
        self._target = submission.options.target_version
        self._select, self._ignore = rules.selection(submission.options.select)
        self._functions: tuple[FunctionComplexity, ...] = ()
        self._secrets: tuple[tuple[Place, Place], ...] = ()

    async def report(self) -> StaticReport:
        """Do the three analyses, in order, and tell of each."""
        self._begin("syntax")
        syntax = self._end(await self._analysis("syntax", self._syntax))
        reason = _unparsed(syntax)
        others = [self._skip(kind, reason) for kind in ("lint", "complexity")] if reason else None
        analyses = (syntax, *(others or await self._lint_and_complexity()))
        found = [finding for analysis in analyses for finding in analysis.findings]
        return StaticReport(
            analyses=analyses,
            findings=most_severe(found, MOST_FINDINGS),
            metrics=CodeMetrics(len(self._lines), self._functions),
            truncated=len(found) > MOST_FINDINGS or any(each.truncated for each in analyses),
            secrets=self._secrets,
        )

    async def _lint_and_complexity(self) -> tuple[Analysis, Analysis]:
        # The children run side by side; the events stay in order.
        async with asyncio.TaskGroup() as together:
            counting = together.create_task(self._counting())
            complexity = self._analysis("complexity", partial(self._complexity, counting))
            ahead = together.create_task(complexity)
            self._begin("lint")
            lint = self._end(await self._analysis("lint", partial(self._lint, counting)))
            self._begin("complexity")
            return lint, self._end(await ahead)

    async def _syntax(self) -> Found:
        if unheard := _NO_TEXT.search(self._code):
            return Ended(Fate.DONE), [no_text(self._code[: unheard.start()])]
        ended = await self._check(rules.ALWAYS_SELECTED)
        found = await self._read(ended, graded)
        broken = any(item.diagnostic.code == SYNTAX for item in found)
        if broken and self._target in {None, OWN_VERSION}:
            said = await syntax_message(self._cages, self._fed)
            return ended, with_message(found, said) if said else found
        return ended, found

    async def _lint(self, counting: asyncio.Task[Spots | None]) -> Found:
        ended = await self._check(
            (*self._select, *rules.SECRETS), (*self._ignore, rules.COMPLEXITY)
        )
        spots = await counting
        return ended, await self._read(ended, lambda found: self._without_secrets(found, spots))

    async def _complexity(self, counting: asyncio.Task[Spots | None]) -> Found:
        ended = await self._check((rules.COMPLEXITY,))
        spots = await counting
        return ended, await self._read(ended, lambda found: self._too_complex(found, spots))

    async def _counting(self) -> Spots | None:
        """Return what no comment suppresses; None: no comment suppresses anything.

        The second is also the answer where this cannot be found out, so that all counts.
        """
        if not _MAY_SUPPRESS.search(self._code):
            return None
        select = (*self._select, *rules.SECRETS, rules.COMPLEXITY)
        ended = await self._check(select, self._ignore, heed_comments=True)
        if ended.fate is not Fate.DONE:
            return None
        try:
            return await asyncio.to_thread(lambda: frozenset(map(spot, read(ended.output))))
        except ValueError:
            return None

    def _without_secrets(self, found: list[Diagnostic], spots: Spots | None) -> list[Graded]:
        secrets = [item for item in found if item.code in rules.SECRETS]
        self._secrets = tuple((place(item.location), place(item.end_location)) for item in secrets)
        wanted = (
            item
            for item in found
            if item.code not in rules.SECRETS or rules.selects(self._select, item.code)
        )
        return graded(wanted, spots)

    def _too_complex(self, found: list[Diagnostic], spots: Spots | None) -> list[Graded]:
        self._functions = functions(found)
        return too_complex(found, spots)

    async def _check(
        self, select: Sequence[str], ignore: Sequence[str] = (), *, heed_comments: bool = False
    ) -> Ended:
        command = self._ruff.command(
            select,
            ignore=ignore,
            filename=self._filename,
            target_version=self._target,
            heed_comments=heed_comments,
        )
        return await self._cages.run(command, self._fed)

    async def _read(
        self, ended: Ended, sort: Callable[[list[Diagnostic]], list[Graded]]
    ) -> list[Graded]:
        if ended.fate is Fate.LATE:
            raise AnalysisFailed("timeout", f"ruff {ended.reason}")
        if ended.fate is Fate.FAILED:
            raise AnalysisFailed("failed", f"ruff {ended.reason}")
        try:
            return await asyncio.to_thread(lambda: sort(read(ended.output)))
        except ValueError:
            raise AnalysisFailed("failed", "ruff said what nobody understands") from None

    async def _analysis(self, kind: str, work: Callable[[], Awaitable[Found]]) -> Analysis:
        began = perf_counter()
        try:
            ended, found = await work()
        except AnalysisFailed as failure:
            message = f"The {kind} analysis was not done: {failure}."
            return Analysis(
                type=kind,
                status=failure.status,
                findings=(unread(kind, "analysis-failed", message),),
                duration_ms=_milliseconds_since(began),
                tool=self._ruff.name,
                reason=str(failure),
            )
        made = await asyncio.to_thread(findings, found, self._lines)
        if ended.fate is Fate.CUT:
            message = f"The {kind} analysis found more than is looked at: ruff {ended.reason}."
            made = (unread(kind, "analysis-incomplete", message), *made)
        return Analysis(
            type=kind,
            status="ok",
            findings=made,
            duration_ms=_milliseconds_since(began),
            tool=self._ruff.name,
            truncated=ended.fate is Fate.CUT or len(found) > MOST_FINDINGS,
        )

    def _skip(self, kind: str, reason: str) -> Analysis:
        self._begin(kind)
        return self._end(Analysis(kind, "skipped", (), 0.0, self._ruff.name, reason))

    def _begin(self, kind: str) -> None:
        self._emit("syntax_analysis_started", {"analysis_type": kind})

    def _end(self, analysis: Analysis) -> Analysis:
        if analysis.status in {"failed", "timeout"}:
            self._emit(
                "error_occurred",
                {
                    "error_type": f"analysis_{analysis.status}",
                    "error_message": analysis.reason,
                    "stage": analysis.type,
                },
            )
        self._emit(
            "syntax_analysis_completed",
            {
                "analysis_type": analysis.type,
                "results": analysis.results(),
                "duration_ms": analysis.duration_ms,
            },
        )
        return analysis


def _unparsed(syntax: Analysis) -> str | None:
    """Say why nothing else can be found; None: the code parses."""
    if syntax.status != "ok":
        return "the code was not read"
    if any(finding.rule == SYNTAX for finding in syntax.findings):
        return "the code does not parse"
    return None


def _stand_in(filename: str) -> str:
    # A stub has other rules, and so has what makes a package; nothing else of a name counts.
    if basename(filename) == "__init__.py":
        return "__init__.py"
    return "snippet.pyi" if filename.endswith(".pyi") else "snippet.py"


def _milliseconds_since(began: float) -> float:
    return round((perf_counter() - began) * 1_000, 1)
