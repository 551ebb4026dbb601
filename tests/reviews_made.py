"""Reviews for tests, with all that one can hold."""

from typing import Any

import msgspec

from code_reviewer.findings import (
    Category,
    CodeMetrics,
    Counts,
    Edit,
    Finding,
    Fix,
    FunctionComplexity,
    LlmReport,
    Place,
    Review,
    Severity,
    Timings,
    Usage,
    fingerprint,
)

CODE = "import os\n\n\ndef f(x):\n    return eval(x)  # noqa: S307\n"


def a_finding(**more: Any) -> Finding:
    base = Finding(
        id=fingerprint("S307", "    return eval(x)  # noqa: S307", 0),
        source="ruff",
        rule="S307",
        category=Category.SECURITY,
        severity=Severity.ERROR,
        start=Place(5, 12),
        end=Place(5, 19),
        message="Use of possibly insecure function; consider using `ast.literal_eval`",
        url="https://docs.astral.sh/ruff/rules/suspicious-eval-usage",
    )
    return msgspec.structs.replace(base, **more)


UNUSED = Finding(
    id=fingerprint("F401", "import os", 0),
    source="ruff",
    rule="F401",
    category=Category.BUG,
    severity=Severity.WARNING,
    start=Place(1, 8),
    end=Place(1, 10),
    message="`os` imported but unused",
    url="https://docs.astral.sh/ruff/rules/unused-import",
    fix=Fix("safe", "Remove unused import: `os`", (Edit(Place(1, 1), Place(2, 1), ""),)),
    suppressed=True,
)
FROM_MODEL = Finding(
    id=fingerprint("llm/bug", "def f(x):", 0),
    source="llm",
    rule="llm/bug",
    category=Category.BUG,
    severity=Severity.INFO,
    start=Place(4, 1),
    end=Place(4, 10),
    message="f runs whatever it is given",
    fix=Fix("display", "Parse it instead"),
)


def a_review(*findings: Finding, **more: Any) -> Review:
    base = Review(
        review_id="0193d7a5-0000-7000-8000-000000000001",
        session_id="s-1",
        status="completed",
        degraded_reasons=(),
        verdict="fail",
        summary="1 error",
        cached=False,
        counts=Counts(error=1, info=1),
        findings=findings,
        metrics=CodeMetrics(5, (FunctionComplexity("f", 4, 1),)),
        llm=LlmReport("ok", "gpt-5-mini", 1, Usage(2006, 1920, 300, 128), "0.0006695"),
        timings_ms=Timings(21, 2400, 2425),
    )
    return msgspec.structs.replace(base, **more)
