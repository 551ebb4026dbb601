"""`logging-service review` against a small server that speaks as the gateway does."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from commanded import Command, CommandHere
from reviews_made import FROM_MODEL, UNUSED, a_finding, a_review
from served import served
from servers import unused_port
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from code_reviewer.findings import Category, Counts, Finding, Place, Review, Severity
from code_reviewer.sarif import sarif
from logging_service.gateway_calls import gateway_key, gateway_url
from logging_service.review_run import MOST_FILES
from logging_service.review_sources import MAX_CODE_BYTES
from logging_service.settings import Settings

EVAL = "import os\n\n\ndef f(x):\n    return eval(x)\n"


class StandIn:
    """Answers as the gateway would; a test says what it finds, or what it answers instead."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answers: list[Response] = []
        self.review: Callable[[dict[str, Any]], Review] = lambda _: a_review(a_finding())
        self.at_once = self.most_at_once = 0

    async def post(self, request: Request) -> Response:
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            self.headers.append(dict(request.headers))
            self.asked.append(asked := json.loads(await request.body()))
            await asyncio.sleep(0.01)
            return self.answers.pop(0) if self.answers else self._form(request, asked)
        finally:
            self.at_once -= 1

    def _form(self, request: Request, asked: dict[str, Any]) -> Response:
        review = self.review(asked)
        wants_sarif = request.headers["accept"].startswith("application/sarif+json")
        body: object = sarif(review, asked["filename"]) if wants_sarif else review
        media_type = "application/sarif+json" if wants_sarif else "application/json"
        return Response(msgspec.json.encode(body), media_type=media_type)

    def finds(self, *findings: Finding, **more: Any) -> None:
        counted = [finding for finding in findings if not finding.suppressed]
        counts = {name: sum(one.severity == name for one in counted) for name in Severity}
        static = {one.severity for one in counted if one.source != "llm"}
        verdict = "fail" if "error" in static else "warn" if "warning" in static else "pass"
        made = a_review(*findings, counts=Counts(**counts), verdict=verdict)
        self.review = lambda _: msgspec.structs.replace(made, **more)


class Served:
    """One server for the whole module; each test has its own stand-in behind it."""

    def __init__(self) -> None:
        self.stand_in = StandIn()
        self.app = Starlette(routes=[Route("/reviews", self._post, methods=["POST"])])

    async def _post(self, request: Request) -> Response:
        return await self.stand_in.post(request)


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[tuple[Served, str]]:
    behind = Served()
    async with served(behind.app) as url:
        yield behind, url


@pytest.fixture
def gateway(server: tuple[Served, str]) -> StandIn:
    server[0].stand_in = StandIn()
    server[0].stand_in.url = server[1]
    return server[0].stand_in


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "work"
    made.mkdir()
    monkeypatch.chdir(made)
    (made / "app.py").write_text(EVAL, encoding="utf-8")
    return made


@pytest.fixture
def command(gateway: StandIn, folder: Path) -> CommandHere:
    kept = folder.parent / "data"
    return CommandHere(
        "review",
        {"GATEWAY_URL": gateway.url, "API_KEY": "a-key-of-tests", "DATA_DIR": str(kept)},
    )


def a_warning(**more: Any) -> Finding:
    return a_finding(rule="B006", severity=Severity.WARNING, category=Category.BUG, **more)


async def test_it_shows_each_finding_at_its_line_and_the_verdict(command: CommandHere) -> None:
    done = await command.run("app.py", code=1)
    assert done.stdout.splitlines() == [
        f"app.py:5:12  error  S307  {a_finding().message}",
        "    5 |     return eval(x)",
        "      |            ^^^^^^^",
        "  1 error",
        "app.py: fail: 1 error, 0 warnings, 1 info; 2425 ms; gpt-5-mini: 2,306 tokens, $0.0006695",
    ]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("findings", "fail_on", "code"),
    [
        ((a_finding(),), "error", 1),
        ((a_finding(),), "warning", 1),
        ((a_finding(),), "never", 0),
        ((a_warning(),), "error", 0),
        ((a_warning(),), "warning", 1),
        ((a_finding(suppressed=True),), "warning", 0),
        ((a_finding(source="llm", rule="llm/bug"),), "warning", 0),
        ((), "warning", 0),
    ],
)
@pytest.mark.parametrize("form", ["text", "sarif"])
async def test_the_exit_code_is_what_fail_on_says(
    command: CommandHere,
    gateway: StandIn,
    findings: tuple[Finding, ...],
    fail_on: str,
    code: int,
    form: str,
) -> None:
    gateway.finds(*findings)
    await command.run("app.py", "--fail-on", fail_on, "--format", form, code=code)


async def test_several_files_are_one_array_in_their_order(
    command: CommandHere, folder: Path
) -> None:
    names = [f"{name}.py" for name in "edcba"]
    for name in names:
        (folder / name).write_text("x = 1\n", encoding="utf-8")
    done = await command.run(*names, "--format", "json", code=1)
    reviews = json.loads(done.stdout)
    assert [review["filename"] for review in reviews] == names
    assert reviews[0]["findings"][0]["rule"] == "S307"
    assert reviews[0]["counts"] == {"error": 1, "warning": 0, "info": 1}


async def test_several_files_end_with_what_they_are_together(
    command: CommandHere, folder: Path
) -> None:
    (folder / "b.py").write_text(EVAL, encoding="utf-8")
    done = await command.run("app.py", "b.py", code=1)
    assert done.stdout.splitlines()[-1] == (
        "2 files: fail: 2 errors, 0 warnings, 2 info; gpt-5-mini: 4,612 tokens, $0.0013390"
    )


async def test_several_files_are_one_run_of_sarif(
    command: CommandHere, gateway: StandIn, folder: Path
) -> None:
    (folder / "b.py").write_text(EVAL, encoding="utf-8")
    by_name = {"app.py": (a_finding(),), "b.py": (a_warning(), UNUSED, a_finding())}
    gateway.review = lambda asked: a_review(*by_name[asked["filename"]])
    done = await command.run("app.py", "b.py", "--format", "sarif", code=1)
    (run,) = json.loads(done.stdout)["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert sorted(rules) == ["B006", "F401", "S307"]
    places = [
        (result["ruleId"], run["artifacts"][place["index"]]["location"]["uri"])
        for result in run["results"]
        for place in [result["locations"][0]["physicalLocation"]["artifactLocation"]]
    ]
    assert places == [
        ("S307", "app.py"), ("B006", "b.py"), ("F401", "b.py"), ("S307", "b.py"),
    ]  # fmt: skip
    assert [rules[result["ruleIndex"]] for result in run["results"]] == [one for one, _ in places]
    assert [len(result["suppressions"]) for result in run["results"]] == [0, 0, 1, 0]
    assert run["results"][2]["fixes"][0]["artifactChanges"][0]["artifactLocation"]["index"] == 1
    assert [one["executionSuccessful"] for one in run["invocations"]] == [True, True]


async def test_all_files_are_of_one_session_and_say_what_is_wanted(
    command: CommandHere, gateway: StandIn, folder: Path
) -> None:
    (folder / "b.py").write_text(EVAL, encoding="utf-8")
    await command.run(
        "app.py", "b.py", "--no-llm", "--target-version", "py311", "--min-severity", "warning",
        code=1,
    )  # fmt: skip
    assert len({headers["x-session-id"] for headers in gateway.headers}) == 1
    assert {headers["x-api-key"] for headers in gateway.headers} == {"a-key-of-tests"}
    for asked in gateway.asked:
        assert asked["options"] == {
            "llm": False, "target_version": "py311", "min_severity": "warning",
        }  # fmt: skip


async def test_at_most_four_reviews_are_asked_for_at_once(
    command: CommandHere, gateway: StandIn, folder: Path
) -> None:
    names = [f"f{number}.py" for number in range(12)]
    for name in names:
        (folder / name).write_text("x = 1\n", encoding="utf-8")
    await command.run(*names, code=1)
    assert len(gateway.asked) == 12
    assert 2 <= gateway.most_at_once <= 4


async def test_code_is_read_from_standard_input(command: CommandHere, gateway: StandIn) -> None:
    done = await command.run("-", answer=EVAL, code=1)
    assert gateway.asked[0]["code"] == EVAL
    assert done.stdout.startswith("stdin.py:5:12  error")


async def test_names_tell_nothing_of_the_folders_above(
    command: CommandHere, gateway: StandIn, folder: Path
) -> None:
    (folder / "src").mkdir()
    for path in (folder / "src" / "in.py", folder.parent / "out.py"):
        path.write_text("x = 1\n", encoding="utf-8")
    await command.run(str(folder / "src" / "in.py"), str(folder.parent / "out.py"), code=1)
    assert sorted(asked["filename"] for asked in gateway.asked) == ["out.py", "src/in.py"]


async def test_what_cannot_be_read_is_a_line_each_and_the_rest_is_reviewed(
    command: CommandHere, folder: Path
) -> None:
    (folder / "large.py").write_bytes(b"#" * (MAX_CODE_BYTES + 1))
    (folder / "latin.py").write_bytes(b"x = '\xe9'\n")
    (folder / "sub").mkdir()
    done = await command.run("large.py", "gone.py", "app.py", "latin.py", "sub", code=2)
    assert done.stderr.splitlines() == [
        "large.py: is larger than 256 KiB",
        "gone.py: cannot be read: No such file or directory",
        "latin.py: is not UTF-8 at byte 5",
        "sub: is a folder; name the files in it",
    ]
    assert "app.py: fail" in done.stdout


async def test_hostile_names_and_messages_are_shown_and_not_obeyed(
    command: CommandHere, gateway: StandIn, folder: Path
) -> None:
    name = "evil\x1b[2J\u202e.py"
    (folder / name).write_text("x = '\x1b]0;owned\x07\u202e'\t# y\n", encoding="utf-8")
    hostile = "\x1b[31mred\r\n\u2066 [link=https://evil]x[/link] :boom:"
    gateway.finds(
        a_finding(message=hostile, rule="S\x1b1", start=Place(1, 5), end=Place(1, 6)),
        summary=hostile,
        degraded_reasons=("\x1b",),
        status="degraded",
    )
    done = await command.run(name, "\x1b[1m.py", code=2)
    for sign in (done.stdout + done.stderr).replace("\n", ""):
        assert sign.isprintable()
    assert "[link=https://evil]x[/link] :boom:" in done.stdout
    assert gateway.asked[0]["filename"].isprintable()


async def test_without_a_gateway_one_line_says_how_to_start_it(
    command: CommandHere, folder: Path
) -> None:
    (folder / "b.py").write_text(EVAL, encoding="utf-8")
    url = f"http://127.0.0.1:{unused_port()}"
    done = await command.run("app.py", "b.py", "--gateway", url, code=2)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"no gateway answers at {url}: start it by `logging-service up`")


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "set API_KEY"), (403, "does not let this key"), (404, "is no gateway")],
)
async def test_who_may_not_is_told_so_once(
    command: CommandHere, gateway: StandIn, folder: Path, status: int, words: str
) -> None:
    names = [f"f{number}.py" for number in range(8)]
    for name in names:
        (folder / name).write_text(EVAL, encoding="utf-8")
    gateway.answers = [JSONResponse({"status": status}, status) for _ in names]
    done = await command.run(*names, code=2)
    (line,) = done.stderr.splitlines()
    assert words in line
    assert len(gateway.asked) < len(names)


async def test_a_busy_gateway_is_asked_again(command: CommandHere, gateway: StandIn) -> None:
    busy = {"Retry-After": "0"}
    gateway.answers = [Response("", 429, headers=busy), Response("", 503, headers=busy)]
    await command.run("app.py", code=1)
    assert len(gateway.asked) == 3


async def test_a_gateway_that_stays_busy_is_given_up(
    command: CommandHere, gateway: StandIn
) -> None:
    gateway.answers = [JSONResponse({"detail": "too many"}, 429, {"Retry-After": "9"})]
    done = await command.run("app.py", "--timeout", "5", code=2)
    assert done.stderr == "app.py: too many\n"


async def test_what_is_wrong_with_one_submission_is_told_with_its_name(
    command: CommandHere, gateway: StandIn
) -> None:
    problem = {"title": "x", "errors": [{"loc": "options.target_version", "msg": "no such Python"}]}
    gateway.answers = [JSONResponse(problem, 422)]
    done = await command.run("app.py", "--target-version", "py99", code=2)
    assert done.stderr == "app.py: options.target_version: no such Python\n"


@pytest.mark.parametrize("form", ["text", "json", "sarif"])
@pytest.mark.parametrize(
    "body", [b"<html>", b"{}", b"[]", b'{"runs": []}', b'{"runs": [{"results": [1]}]}', b"\xff"]
)
async def test_an_answer_that_is_no_review_is_one_line(
    command: CommandHere, gateway: StandIn, form: str, body: bytes
) -> None:
    gateway.answers = [Response(body)]
    done = await command.run("app.py", "--format", form, code=2)
    (line,) = done.stderr.splitlines()
    assert line.startswith("app.py: the gateway's answer")


async def test_a_key_is_not_carried_to_another_address(
    command: CommandHere, gateway: StandIn
) -> None:
    gateway.answers = [RedirectResponse(gateway.url + "/reviews", 307)]
    done = await command.run("app.py", code=2)
    assert "sends elsewhere" in done.stderr
    assert len(gateway.asked) == 1


async def test_the_key_that_up_made_is_for_this_host_alone(gateway: StandIn, folder: Path) -> None:
    data = folder.parent / "data"
    data.mkdir()
    (data / "api_key").write_text("made-by-up\n", encoding="utf-8")
    keyless = CommandHere("review", {"GATEWAY_URL": gateway.url, "DATA_DIR": str(data)})
    await keyless.run("app.py", code=1)
    assert gateway.headers[-1]["x-api-key"] == "made-by-up"
    settings = Settings.model_validate({"data_dir": data})
    assert gateway_key(settings, "http://localhost:8000") == "made-by-up"
    assert gateway_key(settings, "https://reviews.example") is None


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ({}, "http://127.0.0.1:8000"),
        ({"gateway_host": "0.0.0.0", "gateway_port": 8080}, "http://127.0.0.1:8080"),
        ({"gateway_host": "::"}, "http://[::1]:8000"),
        ({"gateway_host": "10.0.0.7"}, "http://10.0.0.7:8000"),
        ({"gateway_tls_cert": "c.pem", "gateway_tls_key": "k.pem"}, "https://localhost:8000"),
        ({"gateway_url": "https://reviews.example"}, "https://reviews.example"),
    ],
)
def test_the_gateway_is_where_the_settings_start_it(given: dict[str, object], url: str) -> None:
    assert gateway_url(Settings.model_validate(given)) == url


async def test_a_failed_review_is_no_success(command: CommandHere, gateway: StandIn) -> None:
    gateway.finds(status="failed", degraded_reasons=("internal",))
    done = await command.run("app.py", code=2)
    assert done.stderr == "app.py: the review failed\n"
    assert "  failed: internal" in done.stdout


async def test_more_files_than_fit_into_memory_are_refused(
    command: CommandHere, gateway: StandIn
) -> None:
    done = await command.run(*(f"f{number}.py" for number in range(MOST_FILES + 1)), code=2)
    assert done.stderr == "these are more than 1000 files: review them in portions\n"
    assert gateway.asked == []


@pytest.mark.parametrize("arguments", [(), ("app.py", "--diff"), ("--gateway", "ftp://x", "a.py")])
async def test_a_call_that_makes_no_sense_is_one_line(
    command: CommandHere, arguments: tuple[str, ...]
) -> None:
    done = await command.run(*arguments, code=2)
    assert len(done.stderr.splitlines()) == 1


async def test_it_runs_as_a_process_and_writes_no_colours_into_a_pipe(
    gateway: StandIn, folder: Path
) -> None:
    environment = {"GATEWAY_URL": gateway.url, "API_KEY": "a-key-of-tests"}
    done = await Command("review", environment).run(str(folder / "app.py"), code=1)
    assert "app.py: fail" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


# --- --diff ---


@pytest.fixture
def git(folder: Path) -> Callable[..., str]:
    def run(*arguments: str) -> str:
        named = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        done = subprocess.run(named, cwd=folder, check=True, capture_output=True)
        return done.stdout.decode()

    run("init", "-q")
    run("add", ".")
    run("commit", "-qm", "first")
    return run


async def test_of_a_diff_only_findings_on_changed_lines_are_shown_and_count(
    command: CommandHere, gateway: StandIn, folder: Path, git: Callable[..., str]
) -> None:
    (folder / "app.py").write_text(EVAL.replace("import os", "import os, sys"), encoding="utf-8")
    gateway.finds(a_finding(), msgspec.structs.replace(UNUSED, suppressed=False), FROM_MODEL)
    text = (await command.run("--diff", answer=git("diff"))).stdout
    assert "F401" in text
    assert "S307" not in text
    document = (await command.run("--diff", "--format", "json", answer=git("diff"))).stdout
    (review,) = json.loads(document)
    assert [finding["rule"] for finding in review["findings"]] == ["F401"]
    assert review["counts"] == {"error": 0, "warning": 1, "info": 0}
    assert review["verdict"] == "warn"
    log = (await command.run("--diff", "--format", "sarif", answer=git("diff"))).stdout
    (run,) = json.loads(log)["runs"]
    assert [result["ruleId"] for result in run["results"]] == ["F401"]
    await command.run("--diff", "--fail-on", "warning", answer=git("diff"), code=1)


async def test_of_a_diff_what_is_about_the_whole_file_is_always_shown(
    command: CommandHere, gateway: StandIn, folder: Path, git: Callable[..., str]
) -> None:
    (folder / "app.py").write_text(EVAL.replace("import os\n", ""), encoding="utf-8")
    gateway.finds(
        a_finding(rule="invalid-syntax", category=Category.SYNTAX),
        a_warning(source="reviewer"),
        a_finding(),
    )
    for form in ("text", "sarif"):
        done = await command.run("--diff", "--format", form, answer=git("diff"), code=1)
        assert "invalid-syntax" in done.stdout
        assert "B006" in done.stdout
    assert len(json.loads(done.stdout)["runs"][0]["results"]) == 2


async def test_a_diff_may_be_read_below_the_top_of_the_repository(
    command: CommandHere,
    gateway: StandIn,
    folder: Path,
    git: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    below = folder / "src"
    below.mkdir()
    (below / "my ö.py").write_text("x = 1\n", encoding="utf-8")
    git("add", "-AN")
    monkeypatch.chdir(below)
    for diff in (git("diff"), git("diff", "--relative=src")):
        await command.run("--diff", answer=diff)
    assert [asked["filename"] for asked in gateway.asked] == ["src/my ö.py", "my ö.py"]


async def test_only_python_is_reviewed_and_nothing_is_no_failure(
    command: CommandHere, gateway: StandIn, folder: Path, git: Callable[..., str]
) -> None:
    (folder / "notes.txt").write_text("x\n", encoding="utf-8")
    git("add", "-AN")
    for form, expected in (("text", ""), ("json", "[]\n")):
        done = await command.run("--diff", "--format", form, answer=git("diff"))
        assert (done.stdout, done.stderr) == (expected, "no Python file is changed\n")
    done = await command.run("--diff", "--format", "sarif", answer="")
    assert json.loads(done.stdout)["runs"] == []
    assert gateway.asked == []


async def test_a_working_tree_that_is_not_what_the_diff_says_is_not_judged(
    command: CommandHere, gateway: StandIn, folder: Path, git: Callable[..., str]
) -> None:
    (folder / "app.py").write_text("x = 1\n" + EVAL, encoding="utf-8")
    diff = git("diff")
    (folder / "app.py").write_text("y = 2\n" + EVAL, encoding="utf-8")
    done = await command.run("--diff", answer=diff, code=2)
    assert done.stderr == "app.py: line 1 is not what the diff says\n"
    assert gateway.asked == []


@pytest.mark.parametrize("name", ["../secret.py", "/etc/secret.py", "link.py", "gone.py"])
async def test_a_diff_cannot_have_files_elsewhere_sent_away(
    command: CommandHere, gateway: StandIn, folder: Path, git: Callable[..., str], name: str
) -> None:
    git("status")
    (folder.parent / "secret.py").write_text("x\n", encoding="utf-8")
    (folder / "link.py").symlink_to(folder.parent / "secret.py")
    diff = f"--- a/{name}\n+++ b/{name}\n@@ -0,0 +1 @@\n+x\n"
    done = await command.run("--diff", answer=diff, code=2)
    assert done.stderr.endswith(f"{name}: is not in the working tree\n")
    assert gateway.asked == []


async def test_a_combined_diff_is_refused_in_one_line(command: CommandHere) -> None:
    done = await command.run("--diff", answer="diff --cc app.py\n", code=2)
    assert done.stderr.startswith("a combined diff")
    assert len(done.stderr.splitlines()) == 1
