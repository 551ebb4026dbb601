"""The SARIF of a review: what the standard asks for, and what hostile findings cannot do to it."""

import json
from typing import Any

import jsonschema_rs
import msgspec
import pytest
from reviews_made import FROM_MODEL, UNUSED, a_finding, a_review

from code_reviewer.findings import Finding, Fix, Place, Review, fingerprint
from code_reviewer.sarif import relative_uri, sarif


def _object(required: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": required.split(),
        "properties": properties,
        "additionalProperties": False,
    }


def _array(items: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, **more}


# What chapter 3 of the standard says of each object that we write, and not one property more.
TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 1}
INDEX = {"type": "integer", "minimum": 0}
LEVEL = {"enum": ["none", "note", "warning", "error"]}
BAG = {"type": "object"}
MESSAGE = _object("text", text=TEXT)
ARTIFACT = _object("uri", uri={"type": "string", "format": "uri-reference"}, index=INDEX)
REGION = _object(
    "startLine", startLine=COUNT, startColumn=COUNT, endLine=COUNT, endColumn=COUNT
)  # fmt: skip
RULE = _object(
    "id",
    id=TEXT,
    shortDescription=MESSAGE,
    helpUri={"type": "string", "format": "uri"},
    defaultConfiguration=_object("", level=LEVEL),
    properties=BAG,
)
REPLACEMENT = _object(
    "deletedRegion",
    deletedRegion=REGION,
    insertedContent=_object("", text={"type": "string"}),
)
CHANGE = _object(
    "artifactLocation replacements",
    artifactLocation=ARTIFACT,
    replacements=_array(REPLACEMENT, minItems=1),
)
RESULT = _object(
    "message",
    ruleId=TEXT,
    ruleIndex=INDEX,
    level=LEVEL,
    message=MESSAGE,
    locations=_array(
        _object("", physicalLocation=_object("", artifactLocation=ARTIFACT, region=REGION)),
    ),
    partialFingerprints={"type": "object", "additionalProperties": TEXT},
    suppressions=_array(_object("kind", kind={"enum": ["inSource", "external"]}), uniqueItems=True),
    fixes=_array(
        _object(
            "artifactChanges",
            description=MESSAGE,
            artifactChanges=_array(CHANGE, minItems=1),
            properties=BAG,
        )
    ),
    properties=BAG,
)
INVOCATION = _object(
    "executionSuccessful",
    executionSuccessful={"type": "boolean"},
    toolExecutionNotifications=_array(
        _object("message", descriptor=_object("id", id=TEXT), level=LEVEL, message=MESSAGE)
    ),
)
DRIVER = _object("name", name=TEXT, version=TEXT, rules=_array(RULE, uniqueItems=True))
RUN = _object(
    "tool",
    tool=_object("driver", driver=DRIVER),
    invocations=_array(INVOCATION),
    artifacts=_array(
        _object(
            "",
            location=ARTIFACT,
            roles=_array({"const": "analysisTarget"}),
            sourceLanguage={"const": "python"},
        )
    ),
    columnKind={"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
    results=_array(RESULT),
    properties=BAG,
)
LOG = _object(
    "version runs",
    **{"$schema": {"type": "string", "format": "uri"}},
    version={"const": "2.1.0"},
    runs=_array(RUN),
)
STANDARD = jsonschema_rs.validator_for(LOG, validate_formats=True)


def run_of(review: Review, filename: str = "src/app.py") -> dict[str, Any]:
    """Return the one run, once the whole is seen to be what the standard allows."""
    log = json.loads(msgspec.json.encode(sarif(review, filename)))
    STANDARD.validate(log)
    (run,) = log["runs"]
    for result in run["results"]:
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
    return dict(run)


def results_of(*findings: Finding) -> list[dict[str, Any]]:
    return list(run_of(a_review(*findings))["results"])


def test_a_finding_is_at_its_place_with_its_rule_and_level() -> None:
    run = run_of(a_review(a_finding(), UNUSED, FROM_MODEL))
    assert [result["level"] for result in run["results"]] == ["error", "warning", "note"]
    location = run["results"][0]["locations"][0]["physicalLocation"]
    assert location["artifactLocation"] == {"uri": "src/app.py", "index": 0}
    assert location["region"] == {
        "startLine": 5, "startColumn": 12, "endLine": 5, "endColumn": 19,
    }  # fmt: skip
    rules = {rule["id"]: rule for rule in run["tool"]["driver"]["rules"]}
    assert rules["S307"]["helpUri"].endswith("/suspicious-eval-usage")
    assert rules["S307"]["properties"]["security-severity"] == "8.0"
    assert "helpUri" not in rules["llm/bug"]
    assert run["columnKind"] == "unicodeCodePoints"


def test_a_rule_that_is_found_often_is_told_once() -> None:
    run = run_of(a_review(a_finding(), a_finding(id="fp:2", start=Place(9, 1), end=Place(9, 4))))
    assert len(run["tool"]["driver"]["rules"]) == 1
    assert [result["ruleIndex"] for result in run["results"]] == [0, 0]


def test_a_fingerprint_survives_lines_that_move() -> None:
    line = "    return eval(x)"
    (before,) = results_of(a_finding(id=fingerprint("S307", line, 0)))
    moved = a_finding(id=fingerprint("S307", f"  {line}", 0), start=Place(90, 3), end=Place(90, 9))
    (after,) = results_of(moved)
    assert before["partialFingerprints"] == after["partialFingerprints"]
    assert before["locations"] != after["locations"]


def test_suppressed_findings_say_so_and_the_others_that_they_are_not() -> None:
    results = results_of(a_finding(), UNUSED)
    assert [one["suppressions"] for one in results] == [[], [{"kind": "inSource"}]]
    assert "suppressions" not in results_of(a_finding())[0]


def test_edits_are_fixes_and_advice_is_part_of_the_message() -> None:
    with_edit, with_words = results_of(UNUSED, FROM_MODEL)
    (change,) = with_edit["fixes"][0]["artifactChanges"]
    assert change["replacements"] == [
        {
            "deletedRegion": {"startLine": 1, "startColumn": 1, "endLine": 2, "endColumn": 1},
            "insertedContent": {"text": ""},
        }
    ]
    assert "fixes" not in with_words
    assert with_words["message"]["text"].endswith("\nSuggestion: Parse it instead")


@pytest.mark.parametrize(
    ("status", "reasons", "truncated", "expected"),
    [
        ("completed", (), False, (True, [])),
        ("degraded", ("llm_timeout",), False, (True, ["llm_timeout"])),
        ("failed", ("analysis_failed",), False, (False, ["analysis_failed"])),
        ("completed", (), True, (True, ["there were more findings than are kept"])),
    ],
)
def test_the_invocation_says_how_the_review_went(
    status: str,
    reasons: tuple[str, ...],
    truncated: bool,  # noqa: FBT001 - pytest names it
    expected: tuple[bool, list[str]],
) -> None:
    review = a_review(status=status, degraded_reasons=reasons, truncated=truncated)
    (invocation,) = run_of(review)["invocations"]
    told = [one["message"]["text"] for one in invocation["toolExecutionNotifications"]]
    assert (invocation["executionSuccessful"], told) == expected


def test_the_driver_tells_its_release() -> None:
    assert set(run_of(a_review())["tool"]["driver"]) == {"name", "version", "rules"}


@pytest.mark.parametrize(
    ("filename", "uri"),
    [
        ("app.py", "app.py"),
        ("src/my app.py", "src/my%20app.py"),
        ("/etc/passwd", "etc/passwd"),
        ("../../etc/passwd", "etc/passwd"),
        ("a/./b/../c.py", "a/c.py"),
        ("C:\\code\\app.py", "C%3A/code/app.py"),
        ("javascript:alert(1)", "javascript%3Aalert%281%29"),
        ("//evil.example/x.py", "evil.example/x.py"),
        ("a.py?x#y%20", "a.py%3Fx%23y%2520"),
        ("größe\n\x1b.py", "gr%C3%B6%C3%9Fe%0A%1B.py"),
        ("\ud800.py", "%3F.py"),
        ("..", "snippet.py"),
        ("", "snippet.py"),
    ],
)
def test_an_address_is_relative_and_leads_out_of_no_folder(filename: str, uri: str) -> None:
    assert relative_uri(filename) == uri
    run_of(a_review(a_finding()), filename)


def test_a_hostile_message_is_neither_a_link_nor_a_control() -> None:
    hostile = "see [the fix](https://evil.example) \x1b[2J\u202e\ud800"
    (result,) = results_of(a_finding(message=hostile, fix=Fix("display", "[x](http://evil)")))
    text = result["message"]["text"]
    assert "](" not in text
    assert all(sign.isprintable() or sign == "\n" for sign in text)
    assert "\\u202e" in text


def test_a_place_that_makes_no_sense_stays_within_the_standard() -> None:
    (result,) = results_of(a_finding(start=Place(0, 0), end=Place(0, -3)))
    region = result["locations"][0]["physicalLocation"]["region"]
    assert region == {"startLine": 1, "startColumn": 1}
