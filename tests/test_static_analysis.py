import asyncio
import re
import subprocess
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from code_reviewer import rules
from code_reviewer.child import Limits
from code_reviewer.findings import (
    Category,
    Counts,
    Finding,
    FunctionComplexity,
    Options,
    Place,
    Severity,
    Submission,
    at_least,
    counts,
    fingerprint,
    verdict,
)
from code_reviewer.ruff_check import Ruff, RuffMissing, read
from code_reviewer.static_analysis import StaticAnalyzer, StaticReport

Events = list[tuple[str, Mapping[str, Any]]]

PANIC = """{"code":"panic","message":"m","location":{"row":1,"column":1},
"end_location":{"row":1,"column":1},"fix":null,"url":null}""".replace("\n", "")
KINDS = ("syntax", "lint", "complexity")


@pytest.fixture(scope="module")
def analyzer() -> StaticAnalyzer:
    return StaticAnalyzer()


@pytest.fixture(scope="module")
def ruff() -> Ruff:
    return Ruff()


async def report(
    analyzer: StaticAnalyzer, code: str, events: Events | None = None, **options: Any
) -> StaticReport:
    submission = Submission(code, options=Options(**options))
    told = [] if events is None else events
    return await analyzer.analyze(submission, lambda kind, payload: told.append((kind, payload)))


async def only(analyzer: StaticAnalyzer, code: str, **options: Any) -> Finding:
    (finding,) = (await report(analyzer, code, **options)).findings
    return finding


def rules_of(report: StaticReport) -> list[str]:
    return [finding.rule for finding in report.findings]


def branchy(name: str, complexity: int) -> str:
    branches = "    if x:\n        x += 1\n" * (complexity - 1)
    return f"def {name}(x):\n{branches}    return x\n"


async def test_what_is_dangerous_is_an_error_with_its_place(analyzer: StaticAnalyzer) -> None:
    found = await report(analyzer, "def f(x): return eval(x)")
    assert found.findings == (
        Finding(
            id=fingerprint("S307", "def f(x): return eval(x)", 0),
            source="ruff",
            rule="S307",
            category=Category.SECURITY,
            severity=Severity.ERROR,
            start=Place(1, 18),
            end=Place(1, 25),
            message="Use of possibly insecure function; consider using `ast.literal_eval`",
            url="https://docs.astral.sh/ruff/rules/suspicious-eval-usage",
        ),
    )
    assert found.metrics.functions == (FunctionComplexity("f", 1, 1),)
    assert (found.metrics.lines, found.truncated) == (1, False)


async def test_each_analysis_tells_when_it_begins_and_ends(analyzer: StaticAnalyzer) -> None:
    events: Events = []
    found = await report(analyzer, "import os\nx = eval(y)\n", events)
    assert [(kind, payload["analysis_type"]) for kind, payload in events] == [
        (f"syntax_analysis_{moment}", kind) for kind in KINDS for moment in ("started", "completed")
    ]
    assert [analysis.type for analysis in found.analyses] == list(KINDS)
    _, lint = events[3]
    assert lint["results"] == {
        "status": "ok",
        "findings": 3,
        "suppressed": 0,
        "by_severity": {"info": 1, "error": 2},
        "by_rule": {"F401": 1, "S307": 1, "F821": 1},
        "tool": found.analyses[1].tool,
        "reason": None,
        "truncated": False,
    }
    assert lint["duration_ms"] == found.analyses[1].duration_ms > 0
    msgspec.json.encode(events)


async def test_results_name_at_most_twenty_rules(analyzer: StaticAnalyzer) -> None:
    code = Path(subprocess.__file__).read_text()
    found = await report(analyzer, code, select=("ALL",))
    by_rule = found.analyses[1].results()["by_rule"]
    assert isinstance(by_rule, dict)
    assert len(by_rule) == 20
    assert len({finding.rule for finding in found.analyses[1].findings}) > 20


async def test_after_a_syntax_error_the_others_are_skipped(analyzer: StaticAnalyzer) -> None:
    events: Events = []
    found = await report(analyzer, "import os\nprint 'a'\n", events)
    assert [(analysis.status, analysis.reason) for analysis in found.analyses] == [
        ("ok", None),
        ("skipped", "the code does not parse"),
        ("skipped", "the code does not parse"),
    ]
    assert [payload["analysis_type"] for _, payload in events] == [
        kind for kind in KINDS for _ in range(2)
    ]
    assert verdict(counts(found.findings)) == "fail"


async def test_the_words_of_cpython_stand_in_for_those_of_ruff(analyzer: StaticAnalyzer) -> None:
    finding = await only(analyzer, "x = 1\nprint 'a'\n")
    assert finding.message == "Missing parentheses in call to 'print'. Did you mean print(...)?"
    assert (finding.source, finding.start.line) == ("ruff", 2)


async def test_cpython_is_not_asked_about_other_versions(analyzer: StaticAnalyzer) -> None:
    other = next(version for version in rules.TARGET_VERSIONS if version not in analyzer.rule_set)
    finding = await only(analyzer, "print 'a'\n", target_version=other)
    assert "Did you mean" not in finding.message


async def test_cpython_shows_where_what_is_open_began(analyzer: StaticAnalyzer) -> None:
    found = await report(analyzer, "\ufeffé = (\n  1,\n")
    opened, ended = found.findings
    assert (opened.source, opened.message) == ("cpython", "'(' was never closed")
    assert opened.start == Place(1, 5)
    assert (ended.source, ended.start.line) == ("ruff", 3)


@pytest.mark.parametrize(
    "code",
    [
        "return 1\n",
        "class A:\n    yield 1\n",
        "break\n",
        "f(a=1, a=2)\n",
        "def f():\n  nonlocal x\n",
    ],
)
async def test_what_does_not_compile_is_a_syntax_error_whatever_is_selected(
    analyzer: StaticAnalyzer, code: str
) -> None:
    found = await report(analyzer, code + "import os  # the rest is still read\n", select=("D3",))
    assert {finding.category for finding in found.findings} == {Category.SYNTAX}
    assert verdict(counts(found.findings)) == "fail"


@pytest.mark.parametrize(
    ("target", "rules_found"),
    [("py313", ["invalid-syntax"]), ("py314", ["F821"]), (None, ["F821"])],
)
async def test_a_template_string_is_right_for_the_python_that_has_it(
    analyzer: StaticAnalyzer, target: str | None, rules_found: list[str]
) -> None:
    found = await report(analyzer, 'x = t"{y}"\n', target_version=target)
    assert rules_of(found) == rules_found


async def test_every_version_that_we_allow_is_known(analyzer: StaticAnalyzer) -> None:
    for target in rules.TARGET_VERSIONS:
        found = await report(analyzer, "x = 1\n", target_version=target)
        assert (found.analyses[0].status, found.findings) == ("ok", ())


@pytest.mark.parametrize("options", [{"target_version": "py27"}, {"select": ("ZZZ",)}])
async def test_options_that_ruff_would_refuse_are_refused(
    analyzer: StaticAnalyzer, options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"no rule begins with ZZZ|no target version py27"):
        await report(analyzer, "x = 1\n", **options)


def test_unknown_rules_are_named(analyzer: StaticAnalyzer) -> None:
    asked = ("default", "ALL", "PL", "F401", "F4", "AS", "S410", "--fix", "", "f401", "ASYNC")
    assert analyzer.unknown_rules(asked) == ("AS", "S410", "--fix", "", "f401")


async def test_ruff_runs_with_every_prefix_that_we_allow(
    analyzer: StaticAnalyzer, ruff: Ruff
) -> None:
    found = await report(analyzer, "x = 1\n", select=tuple(sorted(ruff.prefixes)))
    assert [analysis.status for analysis in found.analyses] == ["ok", "ok", "ok"]


async def test_what_is_selected_is_looked_for(analyzer: StaticAnalyzer) -> None:
    code = "import os\ndef f(a):\n    return a.b == 1\n"
    assert rules_of(await report(analyzer, code)) == ["F401"]
    assert rules_of(await report(analyzer, code, select=("D103", "PLR2004"))) == ["D103"]
    assert rules_of(await report(analyzer, code, select=("default", "D103"))) == ["F401", "D103"]


@pytest.mark.parametrize(
    "comment", ["# noqa", "# noqa: F401", "#NOQA:F401", "# ruff: ignore[F401]"]
)
async def test_what_a_comment_suppresses_is_shown_and_does_not_count(
    analyzer: StaticAnalyzer, comment: str
) -> None:
    found = await report(analyzer, f"import os  {comment}\nimport sys\n", select=("F", "W"))
    assert [(finding.rule, finding.suppressed) for finding in found.findings] == [
        ("F401", True),
        ("F401", False),
    ]
    assert counts(found.findings) == Counts(info=1)


async def test_no_comment_suppresses_a_danger_or_a_syntax_error(analyzer: StaticAnalyzer) -> None:
    code = "# ruff: noqa\n# flake8: noqa\nx = eval(input())  # noqa: S307\nreturn x  # noqa\n"
    found = await report(analyzer, code)
    assert [(finding.rule, finding.suppressed) for finding in found.findings] == [
        ("S307", False),
        ("F706", False),
    ]


async def test_an_id_survives_lines_put_in_above_and_new_indentation(
    analyzer: StaticAnalyzer,
) -> None:
    before = await report(analyzer, "x = eval(a)\ny = 1\nx = eval(a)\n", select=("S",))
    after = await report(analyzer, "\n\nif 1:\n    x = eval(a)\n    x = eval(a)\n", select=("S",))
    ids = [finding.id for finding in before.findings]
    assert ids == [finding.id for finding in after.findings]
    assert len(set(ids)) == 2


async def test_an_id_is_made_of_the_first_2000_characters_of_a_line() -> None:
    assert fingerprint("S307", "x" * 2_000, 0) == fingerprint("S307", "x" * 2_001, 0)
    assert fingerprint("S307", "x" * 1_999, 0) != fingerprint("S307", "x" * 2_000, 0)


async def test_columns_count_characters(analyzer: StaticAnalyzer) -> None:
    for before in ("", "é", "日本", "😀", "e\u0301", "\t"):
        finding = await only(analyzer, f'x = "{before}", name\n', select=("F821",))
        assert finding.start == Place(1, 9 + len(before))
        assert finding.end == Place(1, 13 + len(before))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
async def test_lines_count_as_python_counts_them(analyzer: StaticAnalyzer, end: str) -> None:
    code = f"\ufeffx = 1{end}\fy = '\u2028\x85\v'{end}\tz = name{end}".replace("\t", "")
    found = await report(analyzer, code, select=("F821",))
    assert [finding.start for finding in found.findings] == [Place(3, 5)]
    assert found.findings[0].id == fingerprint("F821", "z = name", 0)
    assert found.metrics.lines == 3


async def test_a_byte_order_mark_is_no_column(analyzer: StaticAnalyzer) -> None:
    finding = await only(analyzer, "\ufeffprint(name)\n")
    assert (finding.start, finding.end) == (Place(1, 7), Place(1, 11))
    assert finding.id == fingerprint("F821", "print(name)", 0)


async def test_a_fix_has_its_edits(analyzer: StaticAnalyzer) -> None:
    finding = await only(analyzer, "x = 1\nimport os\n", select=("F401",))
    assert finding.fix is not None
    assert (finding.fix.applicability, finding.fix.message) == (
        "safe",
        "Remove unused import: `os`",
    )
    (edit,) = finding.fix.edits
    assert (edit.start, edit.end, edit.text) == (Place(2, 1), Place(3, 1), "")


async def test_a_fix_that_is_longer_than_it_helps_has_none(analyzer: StaticAnalyzer) -> None:
    code = "from a import (" + ", ".join(f"b{number}" for number in reversed(range(2_000))) + ")\n"
    finding = await only(analyzer, code, select=("I001",))
    assert finding.fix is not None
    assert (finding.fix.applicability, finding.fix.edits) == ("safe", ())


async def test_every_function_has_its_complexity(analyzer: StaticAnalyzer) -> None:
    code = "class A:\n    def m(self):\n        def inner(): return 1 if self else 2\n" + branchy(
        "g", 3
    )
    found = await report(analyzer, code, select=("F",))
    assert found.metrics.functions == (
        FunctionComplexity("m", 2, 2),
        FunctionComplexity("inner", 3, 1),
        FunctionComplexity("g", 4, 3),
    )
    assert found.findings == ()


@pytest.mark.parametrize(
    ("complexity", "severity"),
    [(10, None), (11, Severity.INFO), (20, Severity.INFO), (21, Severity.WARNING)],
)
async def test_a_function_above_the_bound_is_a_finding(
    analyzer: StaticAnalyzer, complexity: int, severity: Severity | None
) -> None:
    found = await report(analyzer, branchy("f", complexity), select=("F",))
    assert [finding.severity for finding in found.findings] == [severity] * bool(severity)
    for finding in found.findings:
        assert (finding.rule, finding.category) == ("C901", Category.COMPLEXITY)
        assert finding.message == f"`f` is too complex ({complexity} > 10)"


async def test_a_comment_excuses_a_function_from_the_bound(analyzer: StaticAnalyzer) -> None:
    code = branchy("f", 30).replace("(x):", "(x):  # noqa: C901", 1) + branchy("g", 30)
    found = await report(analyzer, code, select=("F",))
    assert [finding.suppressed for finding in found.findings] == [True, False]


async def test_complexity_is_no_matter_of_lint(analyzer: StaticAnalyzer) -> None:
    found = await report(analyzer, branchy("f", 2) + branchy("g", 12), select=("C901", "C"))
    assert [finding.message for finding in found.findings] == ["`g` is too complex (12 > 10)"]


@pytest.mark.parametrize("select", [("F",), ("S",), None])
async def test_where_secrets_stand_is_known_whatever_is_selected(
    analyzer: StaticAnalyzer, select: tuple[str, ...] | None
) -> None:
    code = 'password = "abc"\nf(token="x")  # noqa\ndef g(secret="é"): pass\n'
    found = await report(analyzer, code, select=select)
    assert found.secrets == (
        (Place(1, 12), Place(1, 17)),
        (Place(2, 3), Place(2, 12)),
        (Place(3, 14), Place(3, 17)),
    )
    shown = {finding.rule for finding in found.findings} & set(rules.SECRETS)
    assert shown == (set() if select == ("F",) else set(rules.SECRETS))


async def test_a_stub_is_read_as_a_stub(analyzer: StaticAnalyzer) -> None:
    code = "x: Y\nclass Y: ...\n"
    for filename, expected in (("a/b.pyi", []), ("a/b.py", ["F821"])):
        found = await analyzer.analyze(Submission(code, filename=filename), lambda *_: None)
        assert [item.rule for item in found.findings if item.rule == "F821"] == expected


async def test_filtering_is_left_to_who_shows(analyzer: StaticAnalyzer) -> None:
    code = "import os\nx = eval(input())\n"
    found = await report(analyzer, code, min_severity=Severity.ERROR)
    assert rules_of(found) == ["F401", "S307"]
    shown = at_least(found.findings, Severity.WARNING)
    assert [finding.rule for finding in shown] == ["S307"]
    assert at_least(found.findings, Severity.INFO) == found.findings


@pytest.mark.parametrize(
    ("counted", "expected"),
    [
        (Counts(), "pass"),
        (Counts(info=3), "pass"),
        (Counts(warning=1, info=1), "warn"),
        (Counts(error=1, warning=1), "fail"),
    ],
)
def test_the_worst_that_counts_is_the_verdict(counted: Counts, expected: str) -> None:
    assert verdict(counted) == expected


async def test_a_tool_that_is_too_slow_is_a_finding_and_an_event() -> None:
    events: Events = []
    found = await report(StaticAnalyzer(limits=Limits(wall_seconds=1e-6)), "x = 1\n", events)
    assert [analysis.status for analysis in found.analyses] == ["timeout", "skipped", "skipped"]
    (finding,) = found.findings
    assert (finding.source, finding.rule) == ("reviewer", "analysis-failed")
    assert finding.message == "The syntax analysis was not done: ruff took more than 1e-06 s."
    assert verdict(counts(found.findings)) == "warn"
    assert [kind for kind, _ in events][:3] == [
        "syntax_analysis_started",
        "error_occurred",
        "syntax_analysis_completed",
    ]
    assert events[1][1] == {
        "error_type": "analysis_timeout",
        "error_message": "ruff took more than 1e-06 s",
        "stage": "syntax",
    }


async def test_what_is_too_much_to_read_is_a_finding() -> None:
    analyzer = StaticAnalyzer(limits=Limits(output_bytes=2_000))
    found = await report(analyzer, "import os\n" * 100)
    assert found.truncated
    assert Counter(rules_of(found)).most_common() == [("F811", 4), ("analysis-incomplete", 1)]
    assert found.analyses[1].status == "ok"


async def test_comments_suppress_nothing_when_they_cannot_be_heeded_to_the_end() -> None:
    # That run is cut before the import; were it believed, the import would be suppressed.
    analyzer = StaticAnalyzer(limits=Limits(output_bytes=2_000))
    functions = "".join(f"def f{number}(): pass\n" for number in range(20))
    found = await report(analyzer, f"{functions}import os\n# noqa\n", select=("F",))
    assert [(finding.rule, finding.suppressed) for finding in found.analyses[1].findings] == [
        ("F401", False)
    ]


async def test_the_most_severe_are_kept(analyzer: StaticAnalyzer) -> None:
    found = await report(analyzer, "x = y == None\n" * 600 + "eval(x)\n")
    assert len(found.findings) == 500
    assert found.truncated
    assert counts(found.findings).error == 500
    found = await report(analyzer, "x = 1;\n" * 600 + "eval(x)\n")
    assert (len(found.findings), counts(found.findings).error) == (500, 1)
    assert rules_of(found)[-1] == "S307"
    assert [finding.start for finding in found.findings] == sorted(
        finding.start for finding in found.findings
    )


async def test_the_most_severe_of_all_analyses_are_kept(analyzer: StaticAnalyzer) -> None:
    code = "return 1\n" * 300 + "x = 1;\n" * 300 + branchy("f", 30)
    found = await report(analyzer, code)
    assert Counter(rules_of(found)) == {"F706": 300, "E703": 199, "C901": 1}
    assert found.truncated
    assert not any(analysis.truncated for analysis in found.analyses)


async def test_a_cancelled_analysis_leaves_no_child(analyzer: StaticAnalyzer) -> None:
    before = {child.pid for child in psutil.Process().children()}
    for delay in (0.0, 0.001, 0.003, 0.006, 0.012):
        running = asyncio.ensure_future(report(analyzer, "x = 1;\n" * 20_000 + "# noqa"))
        await asyncio.sleep(delay)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert {child.pid for child in psutil.Process().children()} <= before
    assert (await report(analyzer, "x = 1\n")).findings == ()


async def test_many_at_once_are_each_as_if_alone(analyzer: StaticAnalyzer) -> None:
    codes = [f"import a{number}\n" * (number % 3) for number in range(12)]
    together = await asyncio.gather(*(report(analyzer, code) for code in codes))
    for code, found in zip(codes, together, strict=True):
        assert found.findings == (await report(analyzer, code)).findings


def test_a_place_without_ruff_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ruff.find_ruff_bin", lambda: "/nowhere/ruff")
    with pytest.raises(RuffMissing, match="/nowhere/ruff does not run"):
        StaticAnalyzer()
    monkeypatch.setitem(__import__("sys").modules, "ruff", None)
    with pytest.raises(RuffMissing, match=re.escape("pip install 'logging-service[reviewer]'")):
        StaticAnalyzer()


def test_a_ruff_that_goes_away_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "ruff"
    binary.write_text('#!/bin/sh\ncase $1 in rule) echo "[]";; *) echo ruff 0.17.0;; esac\n')
    binary.chmod(0o755)
    monkeypatch.setattr("ruff.find_ruff_bin", lambda: str(binary))
    analyzer = StaticAnalyzer()
    assert analyzer.fault() is None
    binary.unlink()
    assert analyzer.fault() == "ruff is not installed any more"


async def test_a_ruff_that_goes_away_fails_the_analysis_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "ruff"
    script = '#!/bin/sh\ncase $1 in rule) echo "[]";; *) echo "ruff 0.17.0: $(cat)";; esac\n'
    binary.write_text(script.replace(": $(cat)", ""))
    binary.chmod(0o755)
    monkeypatch.setattr("ruff.find_ruff_bin", lambda: str(binary))
    analyzer = StaticAnalyzer()
    assert (await report(analyzer, "x = 1\n")).analyses[0].reason == (
        "ruff said what nobody understands"
    )
    binary.unlink()
    assert (await report(analyzer, "x = 1\n")).analyses[0].reason == (
        "ruff could not be run: No such file or directory"
    )


def codes_of(ruff: Ruff) -> list[str]:
    binary, *_ = ruff.command((), filename="", target_version=None)
    said = subprocess.check_output([binary, "rule", "--all", "--output-format", "json"])
    return [rule["code"] for rule in msgspec.json.decode(said) if rule["code"] in ruff.prefixes]


def family_of(prefix: str) -> str:
    letters = re.match("[A-Z]+", prefix)
    assert letters
    return letters[0]


def test_every_rule_has_its_place_in_the_map_in_its_own_family(ruff: Ruff) -> None:
    codes = codes_of(ruff)
    assert len([code for code in codes if rules.selects(rules.DEFAULT_SELECTION, code)]) > 300
    for code in codes:
        graded_as = max((prefix for prefix in rules._GRADES if code.startswith(prefix)), key=len)
        assert family_of(graded_as) in {family_of(code), *(["PL"] if code[:2] == "PL" else [])}


def test_no_prefix_is_graded_twice() -> None:
    prefixes = [prefix for text in rules._BY_PREFIX.values() for prefix in text.split()]
    assert [prefix for prefix, number in Counter(prefixes).items() if number > 1] == []


@pytest.mark.parametrize(
    ("rule", "category", "severity"),
    [
        ("invalid-syntax", Category.SYNTAX, Severity.ERROR),
        ("F821", Category.BUG, Severity.ERROR),
        ("PLE0604", Category.BUG, Severity.ERROR),
        ("S602", Category.SECURITY, Severity.ERROR),
        ("S113", Category.SECURITY, Severity.WARNING),
        ("S101", Category.SECURITY, Severity.INFO),
        ("PLE2502", Category.SECURITY, Severity.ERROR),
        ("B006", Category.BUG, Severity.WARNING),
        ("BLE001", Category.BUG, Severity.WARNING),
        ("PERF401", Category.PERFORMANCE, Severity.INFO),
        ("UP006", Category.STYLE, Severity.INFO),
        ("QQQ999", Category.STYLE, Severity.INFO),
    ],
)
def test_severity_is_ours(rule: str, category: Category, severity: Severity) -> None:
    assert rules.grade(rule) == rules.Grade(category, severity)


def test_ruffs_json_has_the_shape_that_is_relied_on(ruff: Ruff, tmp_path: Path) -> None:
    command = ruff.command(("F", "C901"), filename="snippet.py", target_version=None)
    said = subprocess.run(
        command, input=b"import os\ndef f(): pass\n", capture_output=True, check=True, cwd=tmp_path
    )
    unused, complexity = map(msgspec.json.decode, said.stdout.splitlines())
    assert unused == {
        "cell": None,
        "code": "F401",
        "location": {"row": 1, "column": 8},
        "end_location": {"row": 1, "column": 10},
        "filename": str(tmp_path / "snippet.py"),
        "fix": {
            "applicability": "safe",
            "edits": [
                {
                    "content": "",
                    "location": {"row": 1, "column": 1},
                    "end_location": {"row": 2, "column": 1},
                }
            ],
            "message": "Remove unused import: `os`",
        },
        "message": "`os` imported but unused",
        "name": "unused-import",
        "noqa_row": 1,
        "severity": "error",
        "url": "https://docs.astral.sh/ruff/rules/unused-import",
    }
    assert complexity["message"] == "`f` is too complex (1 > 0)"
    assert said.stderr == b""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line",
    [
        PANIC,
        '{"code":null}',
        "thread 'main' panicked",
    ],
)
def test_what_ruff_never_says_is_not_taken_for_an_answer(line: str) -> None:
    assert read(b"") == []
    with pytest.raises(ValueError, match=r"panic|malformed|missing|Expected"):
        read(line.encode() + b"\n")


def test_no_configuration_beside_the_code_is_followed(ruff: Ruff, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.ruff.lint]\nignore = ["F401"]\n')
    (tmp_path / "ruff.toml").write_text("this is not toml")
    (tmp_path / "requests.py").write_text("")
    command = ruff.command(("F401", "I001"), filename="snippet.py", target_version=None)
    # Were requests a module of this folder, a blank line would have to stand before it.
    code = b"import numpy\nimport requests\n"
    here = subprocess.run(command, input=code, capture_output=True, check=True, cwd=tmp_path)
    there = subprocess.run(command, input=code, capture_output=True, check=True, cwd="/")
    assert here.stdout.replace(str(tmp_path).encode(), b"") == there.stdout
    assert re.findall(rb'"code":"(\w+)"', here.stdout) == [b"F401", b"F401"]
