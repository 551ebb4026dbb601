"""What the configured model finds of twenty seeded mistakes: `python evals/run.py`.

Asks the model of LLM_MODEL, LLM_API_KEY and LLM_BASE_URL once a snippet, which costs money, and
prints what was found, missed and made up. Nothing is stored or sent elsewhere.
"""

if __name__ == "__main__" and not __package__:
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import asyncio
import json
import sys
import tomllib
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import track
from rich.table import Table

from code_reviewer.call_events import dollars
from code_reviewer.findings import Finding, Submission
from code_reviewer.llm import LlmOutcome, LlmStage
from code_reviewer.static_analysis import StaticAnalyzer
from gateway.model_stage import open_llm_stage
from gateway.settings import GatewaySettings
from logging_service.errors import SettingsError
from logging_service.settings import load_settings

CASES = Path(__file__).with_name("cases.toml")


class Case(msgspec.Struct, frozen=True):
    """A snippet; `at` is in the line of its mistake, a finding up to `near` lines off counts."""

    name: str
    code: str
    at: str | None = None
    near: int = 1
    why: str = ""

    @property
    def line(self) -> int | None:
        """The line of the mistake, None where there is none."""
        lines = self.code.splitlines()
        return next((n for n, line in enumerate(lines, 1) if self.at and self.at in line), None)

    def is_meant(self, finding: Finding) -> bool:
        """Whether a finding is about the mistake."""
        wanted = self.line
        if wanted is None:
            return False
        return finding.start.line - self.near <= wanted <= finding.end.line + self.near


class Result(msgspec.Struct, frozen=True):
    """What the model made of a case; `found` is None where there was nothing to find."""

    name: str
    status: str
    found: bool | None
    false_alarms: int
    tokens: int
    cost_usd: str | None


def read_cases(path: Path = CASES) -> list[Case]:
    """Return the cases of a file."""
    cases = msgspec.convert(tomllib.loads(path.read_text("utf-8"))["case"], list[Case])
    return [msgspec.structs.replace(case, code=case.code.lstrip("\n")) for case in cases]


async def judge(case: Case, static: StaticAnalyzer, llm: LlmStage) -> Result:
    """Have a case reviewed."""

    def unheard(_event_type: str, _payload: Mapping[str, object]) -> None:
        """Events of an eval are nobody's bill."""

    submission = Submission(case.code, filename=f"{case.name}.py")
    report = await static.analyze(submission, unheard)
    return _result(case, await llm.review(submission, report, unheard))


def _result(case: Case, outcome: LlmOutcome) -> Result:
    meant = [finding for finding in outcome.findings if case.is_meant(finding)]
    report = outcome.report
    return Result(
        case.name,
        report.status if report.status == "ok" else f"{report.status}: {report.reason}",
        None if case.at is None else bool(meant),
        len(outcome.findings) - len(meant),
        report.usage.input + report.usage.output,
        report.cost_usd,
    )


async def judge_all(settings: GatewaySettings, cases: Sequence[Case]) -> list[Result]:
    """Have all cases reviewed, one after the other."""

    async def nothing_spent(_day: date) -> int:
        return 0

    static = StaticAnalyzer()
    results = []
    console = Console(stderr=True)
    async with open_llm_stage(settings, nothing_spent) as llm:
        for case in track(cases, "Reviewing", console=console, transient=True):
            results.append(await judge(case, static, llm))  # noqa: PERF401 - one at a time
    return results


def totals(results: Sequence[Result]) -> dict[str, object]:
    """Return the sums; the cost is None when that of a call is not known."""
    costs = [result.cost_usd for result in results if result.tokens]
    known = [Decimal(cost) for cost in costs if cost is not None]
    nanos = int(sum(known, Decimal(0)).scaleb(9))
    seeded = [result.found for result in results if result.found is not None]
    return {
        "seeded": len(seeded),
        "found": sum(seeded),
        "missed": len(seeded) - sum(seeded),
        "false_alarms": sum(result.false_alarms for result in results),
        "not_answered": sum(result.status != "ok" for result in results),
        "tokens": sum(result.tokens for result in results),
        "cost_usd": dollars(nanos) if costs and len(known) == len(costs) else None,
    }


def show(model: str, results: Sequence[Result]) -> None:
    """Print the table."""
    table = Table(title=f"{model}: seeded mistakes")
    for heading in ("case", "answer", "mistake", "false alarms", "tokens", "cost $"):
        table.add_column(heading, justify="right" if heading in {"tokens", "cost $"} else "left")
    words = {True: "found", False: "[red]missed[/]", None: "none to find"}
    for one in results:
        alarms = str(one.false_alarms) if one.false_alarms else ""
        row = (one.name, one.status, words[one.found], alarms, str(one.tokens), one.cost_usd or "?")
        table.add_row(*row)
    whole = totals(results)
    console = Console()
    console.print(table)
    console.print(
        f"found {whole['found']} of {whole['seeded']}, missed {whole['missed']}, "
        f"{whole['false_alarms']} false alarms, {whole['not_answered']} not answered; "
        f"{whole['tokens']} tokens, {whole['cost_usd'] or 'unknown'} dollars"
    )


def main() -> int:
    """Run the evals; exit code 2 without a model, 1 when it did not answer all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--case", action="append", help="only this case; repeatable")
    asked = parser.parse_args()
    cases = [case for case in read_cases() if asked.case is None or case.name in asked.case]
    try:
        settings = load_settings(GatewaySettings)
        if settings.llm_model is None:
            print("LLM_MODEL and LLM_API_KEY (or LLM_BASE_URL) say which model", file=sys.stderr)
            return 2
        results = asyncio.run(judge_all(settings, cases))
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    if asked.json:
        print(json.dumps({"results": msgspec.to_builtins(results), "totals": totals(results)}))
    else:
        show(settings.llm_model, results)
    return int(any(result.status != "ok" for result in results))


if __name__ == "__main__":
    sys.exit(main())
