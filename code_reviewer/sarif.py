"""A review as SARIF 2.1.0, the form that code scanning services take."""

from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from posixpath import normpath
from urllib.parse import quote

from code_reviewer.findings import Category, Finding, Fix, Place, Review, Severity
from code_reviewer.visible_text import visible

_SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
_LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "note"}
# As GitHub sorts them: critical from 9.0, high from 7.0, medium from 4.0.
_SECURITY = {Severity.ERROR: "8.0", Severity.WARNING: "5.0", Severity.INFO: "2.0"}

Json = dict[str, object]


def sarif(review: Review, filename: str) -> Json:
    """Return `review` as a SARIF log of one run, ready to be encoded as JSON.

    `filename` becomes a relative address. Suppressed findings are in it, marked; fingerprints stay
    the same when lines move.
    """
    run = {
        "tool": {"driver": _driver(review.findings)},
        "invocations": [_invocation(review)],
        "artifacts": [
            {
                "location": {"uri": relative_uri(filename)},
                "roles": ["analysisTarget"],
                "sourceLanguage": "python",
            }
        ],
        "columnKind": "unicodeCodePoints",
        "results": list(_results(review.findings, relative_uri(filename))),
        "properties": {
            "review_id": review.review_id,
            "session_id": review.session_id,
            "status": review.status,
            "verdict": review.verdict,
        },
    }
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}


def relative_uri(filename: str) -> str:
    """Return `filename` as a relative URI that leads out of no folder; never empty."""
    path = normpath("/" + filename.replace("\\", "/")).strip("/")
    return quote(path.encode("utf-8", "replace"), safe="/~") or "snippet.py"


@cache
def _release() -> Json:
    try:
        return {"version": version("logging-service")}
    except PackageNotFoundError:
        return {}


def _driver(findings: Iterable[Finding]) -> Json:
    first = {finding.rule: finding for finding in reversed(tuple(findings))}
    rules = [_rule(first[rule]) for rule in sorted(first)]
    return {"name": "code-reviewer", **_release(), "rules": rules}


def _rule(finding: Finding) -> Json:
    category = finding.category.value
    properties: Json = {"category": category, "tags": [category]}
    if finding.category is Category.SECURITY:
        properties["security-severity"] = _SECURITY[finding.severity]
    rule: Json = {
        "id": finding.rule,
        "shortDescription": {"text": f"{finding.rule}: {category}"},
        "defaultConfiguration": {"level": _LEVELS[finding.severity]},
        "properties": properties,
    }
    if finding.url:
        rule["helpUri"] = finding.url
    return rule


def _results(findings: tuple[Finding, ...], uri: str) -> Iterable[Json]:
    index = {rule: number for number, rule in enumerate(sorted({one.rule for one in findings}))}
    some_suppressed = any(finding.suppressed for finding in findings)
    for finding in findings:
        result: Json = {
            "ruleId": finding.rule,
            "ruleIndex": index[finding.rule],
            "level": _LEVELS[finding.severity],
            "message": {"text": _message(finding)},
            "locations": [
                {
                    "physicalLocation": {
                        "artifactLocation": {"uri": uri, "index": 0},
                        "region": _region(finding.start, finding.end),
                    }
                }
            ],
            # The second name is the one that GitHub looks at.
            "partialFingerprints": {
                "findingId/v1": finding.id,
                "primaryLocationLineHash": finding.id,
            },
            "properties": {"source": finding.source, "category": finding.category.value},
        }
        if some_suppressed:
            result["suppressions"] = [{"kind": "inSource"}] if finding.suppressed else []
        if finding.fix and finding.fix.edits:
            result["fixes"] = [_fix(finding.fix, finding.rule, uri)]
        yield result


def _message(finding: Finding) -> str:
    text = finding.message
    if finding.fix and finding.fix.message and not finding.fix.edits:
        text += f"\nSuggestion: {finding.fix.message}"
    return _unlinked(text)


def _unlinked(text: str) -> str:
    # `[text](address)` would be a link: a model, or the code, could have written it.
    return visible(text).replace("](", "] (")


def _region(start: Place, end: Place) -> Json:
    region: Json = {"startLine": max(start.line, 1), "startColumn": max(start.column, 1)}
    if end >= start:
        region |= {"endLine": max(end.line, 1), "endColumn": max(end.column, 1)}
    return region


def _fix(fix: Fix, rule: str, uri: str) -> Json:
    replacements = [
        {"deletedRegion": _region(edit.start, edit.end), "insertedContent": {"text": edit.text}}
        for edit in fix.edits
    ]
    return {
        "description": {"text": _unlinked(fix.message or f"Fix {rule}")},
        "artifactChanges": [
            {"artifactLocation": {"uri": uri, "index": 0}, "replacements": replacements}
        ],
        "properties": {"applicability": fix.applicability},
    }


def _invocation(review: Review) -> Json:
    notices = [_notice("degraded", "warning", reason) for reason in review.degraded_reasons]
    if review.truncated:
        notices.append(_notice("truncated", "note", "there were more findings than are kept"))
    return {
        "executionSuccessful": review.status != "failed",
        "toolExecutionNotifications": notices,
    }


def _notice(name: str, level: str, text: str) -> Json:
    return {"descriptor": {"id": name}, "level": level, "message": {"text": _unlinked(text)}}
