"""The three static analyses, and what they found together."""

from collections import Counter

import msgspec

from code_reviewer.findings import Category, CodeMetrics, Finding, Place, Severity, fingerprint

_TOP_RULES = 20
_FIRST = Place(1, 1)


class Analysis(msgspec.Struct, frozen=True):
    """One of `syntax`, `lint` and `complexity`.

    `status` is `ok`, `failed`, `timeout` or `skipped`; `reason` says why, also where it is `ok` and
    something went without. `truncated`: there was more to find.
    """

    type: str
    status: str
    findings: tuple[Finding, ...]
    duration_ms: float
    tool: str
    reason: str | None = None
    truncated: bool = False

    def results(self) -> dict[str, object]:
        """Return what an event tells of it: numbers and the names of rules, nothing of the code."""
        counted = [finding for finding in self.findings if not finding.suppressed]
        by_rule = Counter(finding.rule for finding in self.findings)
        return {
            "status": self.status,
            "findings": len(self.findings),
            "suppressed": len(self.findings) - len(counted),
            "by_severity": dict(Counter(finding.severity.value for finding in counted)),
            "by_rule": dict(by_rule.most_common(_TOP_RULES)),
            "tool": self.tool,
            "reason": self.reason,
            "truncated": self.truncated,
        }


class StaticReport(msgspec.Struct, frozen=True):
    """What all three found: at most 500 findings, the most severe, in the order of their places.

    `secrets` are where string literals look like passwords, whatever was selected; there are none
    where `lint` was not done.
    """

    analyses: tuple[Analysis, ...]
    findings: tuple[Finding, ...]
    metrics: CodeMetrics
    truncated: bool
    secrets: tuple[tuple[Place, Place], ...] = ()


def unread(analysis: str, rule: str, message: str) -> Finding:
    """Return the finding that `analysis` has not read all of the code.

    It is a warning, so that nothing passes unread.
    """
    return Finding(
        id=fingerprint(rule, analysis, 0),
        source="reviewer",
        rule=rule,
        category=Category.BUG,
        severity=Severity.WARNING,
        start=_FIRST,
        end=_FIRST,
        message=message,
    )
