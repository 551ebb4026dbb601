"""The evals: that their cases are what they say, and that the runner counts."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from model_stub import ModelStub, chat, finding, refusal, review_text

from code_reviewer.findings import Submission
from code_reviewer.static_analysis import StaticAnalyzer
from evals.run import Case, read_cases

ROOT = Path(__file__).resolve().parent.parent
CASES = read_cases()


@pytest.fixture(scope="module")
def stub() -> Iterator[ModelStub]:
    with ModelStub().running() as server:
        yield server


def run(tmp_path: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("LLM_")}
    environment = own | {"DATA_DIR": str(tmp_path), "COLUMNS": "200"} | variables
    return subprocess.run(
        [sys.executable, "evals/run.py", *options],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        check=False,
        text=True,
    )


def test_there_are_twenty_mistakes_and_some_snippets_without() -> None:
    assert len([case for case in CASES if case.at]) == 20
    assert len({case.name for case in CASES}) == len(CASES) == 24


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_is_python_with_its_mistake_in_one_line(case: Case) -> None:
    ast.parse(case.code)
    assert case.at is None or case.code.count(case.at) == 1
    assert bool(case.why) == bool(case.at)


async def test_no_linter_finds_the_mistakes() -> None:
    static = StaticAnalyzer()
    for case in CASES:
        report = await static.analyze(Submission(case.code), lambda *_: None)
        bad = [one.rule for one in report.findings if one.severity == "error"]
        on_it = [one.rule for one in report.findings if one.start.line == case.line]
        assert (case.name, bad, on_it) == (case.name, [], [])


def test_the_runner_counts_what_was_found_missed_and_made_up(
    stub: ModelStub, tmp_path: Path
) -> None:
    first, second = CASES[0], CASES[1]
    said = review_text(
        finding(1, first.at or "", severity="error"),
        finding(1, "return averages", message="Made up."),
        finding(1, second.at or ""),
    )
    stub.answers(chat(said))
    ran = run(tmp_path, LLM_MODEL="gpt-4o", LLM_BASE_URL=stub.base_url, LLM_PROVIDER="openai")
    assert (ran.returncode, len(stub.asked)) == (0, 24)
    last = " ".join(ran.stdout.split()[-18:])
    assert "found 2 of 20, missed 18, 1 false alarms, 0 not answered; 55344 tokens" in last
    assert "0.13476 dollars" in last


def test_a_model_that_does_not_answer_is_told(stub: ModelStub, tmp_path: Path) -> None:
    stub.answers(refusal(401))
    one = ("--json", "--case", CASES[0].name)
    ran = run(tmp_path, *one, LLM_MODEL="any", LLM_BASE_URL=stub.base_url)
    told = json.loads(ran.stdout)
    assert ran.returncode == 1
    assert told["results"][0]["status"] == "failed: unauthorized"
    assert (told["totals"]["not_answered"], told["totals"]["cost_usd"]) == (1, None)


def test_without_a_model_the_runner_says_what_it_needs(tmp_path: Path) -> None:
    ran = run(tmp_path)
    assert ran.returncode == 2
    assert "LLM_MODEL" in ran.stderr
