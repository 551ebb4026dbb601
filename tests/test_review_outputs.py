"""What the reviewer really finds, in the forms of the gateway, as the command shows it."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from commanded import CommandHere
from reviewing import a_reviewer, reviewed
from served import served
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from test_sarif import STANDARD

from gateway.answers import answer, form_of
from gateway.bodies import ReviewBody

CODE = """\
import os
import subprocess


def run(command, seen=[]):
\tsubprocess.run(command, shell=True)  # noqa: S602
\treturn eval("größe + " + command)
"""


@pytest.fixture(scope="module")
async def url() -> AsyncIterator[str]:
    reviewer = a_reviewer()

    async def post(request: Request) -> Response:
        submission = ReviewBody.model_validate_json(await request.body()).submission()
        review = (await reviewed(reviewer, submission)).review
        form = form_of(request.headers["accept"], None)
        return answer(review, form, submission.filename, submission.code)

    async with served(Starlette(routes=[Route("/reviews", post, methods=["POST"])])) as address:
        yield address


@pytest.fixture
def command(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandHere:
    (tmp_path / "run.py").write_text(CODE, encoding="utf-8")
    (tmp_path / "broken.py").write_text("def f(:\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return CommandHere("review", {"GATEWAY_URL": url, "DATA_DIR": str(tmp_path / "data")})


async def test_a_finding_of_ruff_is_marked_in_the_line_that_it_is_about(
    command: CommandHere,
) -> None:
    lines = (await command.run("run.py", code=1)).stdout.splitlines()
    number = next(n for n, line in enumerate(lines) if line.startswith("run.py:7:9  error  S307"))
    shown, carets = lines[number + 1 : number + 3]
    meant = shown[carets.index("^") : carets.rindex("^") + 1]
    assert meant == 'eval("größe + " + command)'
    assert lines[-1].startswith("run.py: fail: 2 errors, ")


async def test_its_sarif_is_what_the_standard_allows(command: CommandHere) -> None:
    done = await command.run("run.py", "broken.py", "--format", "sarif", code=1)
    log = json.loads(done.stdout)
    STANDARD.validate(log)
    (run,) = log["runs"]
    by_rule = {result["ruleId"]: result for result in run["results"]}
    assert {"S307", "S602", "F401", "B006"} <= set(by_rule)
    assert by_rule["F401"]["fixes"][0]["artifactChanges"][0]["replacements"]
    prints = {result["partialFingerprints"]["findingId/v1"] for result in run["results"]}
    assert len(prints) == len(run["results"])
    uris = {
        result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        for result in run["results"]
    }
    assert uris == {"run.py", "broken.py"}


async def test_fingerprints_stay_when_lines_move(command: CommandHere, tmp_path: Path) -> None:
    async def prints() -> set[str]:
        done = await command.run("run.py", "--format", "sarif", code=1)
        results = json.loads(done.stdout)["runs"][0]["results"]
        return {result["partialFingerprints"]["findingId/v1"] for result in results}

    before = await prints()
    (tmp_path / "run.py").write_text('"""Run."""\n\n\n' + CODE, encoding="utf-8")
    assert await prints() == before


async def test_broken_code_is_shown_also_where_a_diff_did_not_touch_the_line(
    command: CommandHere,
) -> None:
    diff = "--- a/broken.py\n+++ b/broken.py\n@@ -1,2 +1 @@\n def f(:\n-x = 1\n"
    done = await command.run("--diff", answer=diff, code=1)
    assert "broken.py:1:7" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("broken.py: fail: ")


async def test_the_options_are_those_that_the_gateway_takes(command: CommandHere) -> None:
    done = await command.run(
        "run.py", "--target-version", "py311", "--no-llm", "--min-severity", "error", code=1
    )
    assert "S307" in done.stdout
    assert "F401" not in done.stdout
