"""The vocabulary of a review: what is submitted, what is found, what comes back."""

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum
from hashlib import sha256
from heapq import nsmallest

import msgspec


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


MOST_SEVERE_FIRST = (Severity.ERROR, Severity.WARNING, Severity.INFO)


class Category(StrEnum):
    """What a finding is about."""

    SYNTAX = "syntax"
    BUG = "bug"
    SECURITY = "security"
    COMPLEXITY = "complexity"
    PERFORMANCE = "performance"
    STYLE = "style"


class Place(msgspec.Struct, frozen=True, order=True):
    """A place in the code; lines and columns (in characters) count from 1."""

    line: int
    column: int


class Edit(msgspec.Struct, frozen=True):
    """Replace what is from `start` until before `end` by `text`."""

    start: Place
    end: Place
    text: str


class Fix(msgspec.Struct, frozen=True):
    """How a finding can be mended: by edits, or in words where there are none.

    `applicability` is `safe`, `unsafe` (it may change what the code does) or `display`.
    """

    applicability: str
    message: str | None = None
    edits: tuple[Edit, ...] = ()


class Finding(msgspec.Struct, frozen=True):
    """One finding; `end` is the place after it.

    `suppressed`: a comment in the code asks not to count it. `id` stays the same when the line
    moves. `source` is `ruff`, `cpython`, `reviewer` (code was not read) or `llm`.
    """

    id: str
    source: str
    rule: str
    category: Category
    severity: Severity
    start: Place
    end: Place
    message: str
    url: str | None = None
    fix: Fix | None = None
    suppressed: bool = False


class Options(msgspec.Struct, frozen=True):
    """What a caller may choose; `select` are ruff's rule prefixes, None: ours."""

    target_version: str | None = None
    select: tuple[str, ...] | None = None
    llm: bool = True
    max_llm_findings: int = 10
    min_severity: Severity = Severity.INFO


class Submission(msgspec.Struct, frozen=True):
    """Code to be reviewed, as it was sent."""

    code: str
    filename: str = "snippet.py"
    language: str = "python"
    user_id: str | None = None
    options: Options = Options()


class FunctionComplexity(msgspec.Struct, frozen=True):
    """McCabe's number of a function; `line` counts from 1."""

    name: str
    line: int
    complexity: int


class CodeMetrics(msgspec.Struct, frozen=True):
    """How large and how branched the code is."""

    lines: int
    functions: tuple[FunctionComplexity, ...] = ()


class Counts(msgspec.Struct, frozen=True):
    """How many findings count, by severity: those that are not suppressed."""

    error: int = 0
    warning: int = 0
    info: int = 0


class Usage(msgspec.Struct, frozen=True):
    """Tokens of all attempts; `input` contains `cached_input`, `output` contains `reasoning`."""

    input: int = 0
    cached_input: int = 0
    output: int = 0
    reasoning: int = 0


class LlmReport(msgspec.Struct, frozen=True):
    """What became of the model stage.

    `status` is `ok`, `disabled` (no model is configured, or none was wanted), `failed` or
    `skipped`; `reason` says why it is not `ok`. `cost_usd` is exact to the nano-dollar, None where
    it is not known. `dropped` counts findings that could not be read, `unanchored` those whose
    quote is not in the code, `redacted` the secrets that were taken out before the code left.
    """

    status: str
    model: str | None = None
    attempts: int = 0
    usage: Usage = Usage()
    cost_usd: str | None = None
    reason: str | None = None
    dropped: int = 0
    unanchored: int = 0
    redacted: int = 0


class Timings(msgspec.Struct, frozen=True):
    """Milliseconds."""

    static: int
    llm: int
    total: int


class Review(msgspec.Struct, frozen=True):
    """A finished review; `verdict` comes from static findings alone."""

    review_id: str
    session_id: str
    status: str
    degraded_reasons: tuple[str, ...]
    verdict: str
    summary: str
    cached: bool
    counts: Counts
    findings: tuple[Finding, ...]
    metrics: CodeMetrics
    llm: LlmReport
    timings_ms: Timings
    truncated: bool = False


def fingerprint(rule: str, line: str, occurrence: int) -> str:
    """Return the id of the `occurrence`-th finding (from 0) of `rule` on lines like `line`.

    It has no line number in it: the id survives what is put in above, and new indentation. Of a
    long line the first 2,000 characters count.
    """
    normal = " ".join(line[:2_000].split())
    seed = f"{rule}\0{normal}\0{occurrence}".encode("utf-8", "surrogatepass")
    return "fp:" + sha256(seed).hexdigest()[:32]


class Fingerprints:
    """Gives ids to the findings of one review, which come in the order of their places."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def of(self, rule: str, line: str) -> str:
        """Return the id of the next finding of `rule` on a line like `line`."""
        first = fingerprint(rule, line, 0)
        occurrence = self._seen[first]
        self._seen[first] += 1
        return fingerprint(rule, line, occurrence) if occurrence else first


def most_severe(findings: Iterable[Finding], most: int) -> tuple[Finding, ...]:
    """Return at most so many of `findings`, the most severe that count, in the order of places."""
    kept = nsmallest(most, findings, key=_severity)
    return tuple(sorted(kept, key=lambda finding: (finding.start, finding.rule)))


def _severity(finding: Finding) -> tuple[bool, int]:
    return finding.suppressed, MOST_SEVERE_FIRST.index(finding.severity)


def counts(findings: Iterable[Finding]) -> Counts:
    """Return how many of `findings` count, by severity."""
    found = Counter(finding.severity for finding in findings if not finding.suppressed)
    return Counts(found[Severity.ERROR], found[Severity.WARNING], found[Severity.INFO])


def verdict(counted: Counts) -> str:
    """Return `fail` where there is an error, `warn` where there is a warning, else `pass`.

    To be asked about all static findings, before any are hidden by `min_severity`.
    """
    if counted.error:
        return "fail"
    return "warn" if counted.warning else "pass"


def at_least(findings: Iterable[Finding], severity: Severity) -> tuple[Finding, ...]:
    """Return those of `findings` that are not below `severity`."""
    wanted = MOST_SEVERE_FIRST[: MOST_SEVERE_FIRST.index(severity) + 1]
    return tuple(finding for finding in findings if finding.severity in wanted)
