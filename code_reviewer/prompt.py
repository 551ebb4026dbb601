"""What a model is asked: the file without its secrets, as data between marks nobody can guess."""

import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from importlib import resources
from string import Template
from typing import Final

import msgspec

from code_reviewer.analyses import StaticReport
from code_reviewer.findings import Finding, Place, Submission
from code_reviewer.models import Question, Scrub
from code_reviewer.visible_text import lines_of, one_line

MOST_LINTER_FINDINGS: Final = 50
_MAX_NAME, _MAX_MESSAGE = 200, 300
_SECRET: Final = "[secret]"  # noqa: S105 - what stands in its place

# The part of JSON Schema that all servers with structured output understand.
_TEXT: Final = {"type": "string"}
SCHEMA: Final[dict[str, object]] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["summary", "findings"],
    "properties": {
        "summary": _TEXT,
        "findings": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["line", "quote", "severity", "category", "message", "suggestion"],
                "properties": {
                    "line": {"type": "integer"},
                    "quote": _TEXT,
                    "severity": {"type": "string", "enum": ["error", "warning", "info"]},
                    "category": {
                        "type": "string",
                        "enum": ["bug", "security", "performance", "complexity"],
                    },
                    "message": _TEXT,
                    "suggestion": {"anyOf": [_TEXT, {"type": "null"}]},
                },
            },
        },
    },
}


_Span = tuple[Place, Place]


class Redacted(msgspec.Struct, frozen=True):
    """A submission as a model may see it; `lines` are as many as the code's own."""

    filename: str
    lines: tuple[str, ...]
    linter: str
    replaced: int


def redacted(submission: Submission, static: StaticReport, scrub: Scrub) -> Redacted:
    """Return what may leave: without the strings that hold secrets, and what `scrub` finds."""
    code = encodable(submission.code)
    # The linter's list may be cut, knows few names, and is empty for code that it cannot read.
    places = _joined({*static.secrets, *named_literals(code)})
    lines = lines_of(code)
    replaced = _take_out(lines, places)
    code, in_code = scrub("\n".join(lines))
    filename, in_name = scrub(one_line(submission.filename)[:_MAX_NAME])
    linter, in_linter = scrub(_listed(static.findings, places))
    return Redacted(
        filename,
        tuple(lines_of(code)),
        linter,
        replaced + in_code + in_name + in_linter,
    )


# With bounds everywhere: code that repeats one word may not take quadratic time.
_NAMED = re.compile(
    r"(?i)(?:passw(?:or)?d|passphrase|pwd|secret|token|api_?key)[\w\]\"']{0,40}\s{0,20}"
    r"(?::[^=\n\"']{0,60})?[=:!]=?\s{0,20}[rbuf]{0,2}"
    r"(?P<literal>(?P<mark>\"{3}|'{3}|[\"'])(?:\\.|(?!(?P=mark))[^\\\n]){1,2000}(?:(?P=mark)|$)?)"
)


def named_literals(code: str) -> Iterator[tuple[Place, Place]]:
    """Yield the places of strings that names call secret, also of such as have no end."""
    for number, line in enumerate(lines_of(code), 1):
        for found in _NAMED.finditer(line):
            start, end = found.span("literal")
            yield Place(number, start + 1), Place(number, end + 1)


def _joined(places: Iterable[_Span]) -> list[_Span]:
    """Return `places` in order, those that overlap as one."""
    joined: list[_Span] = []
    for start, end in sorted(places):
        if joined and start < joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def encodable(text: str) -> str:
    """Return `text` with each half of a surrogate pair, which no encoding knows, as `?`."""
    return text.encode(errors="replace").decode()


def _take_out(lines: list[str], literals: Iterable[tuple[Place, Place]]) -> int:
    """Replace each literal inside its lines, the last first, so that the others stay in place."""
    replaced = 0
    for start, end in sorted(literals, reverse=True):
        if not 1 <= start.line <= end.line <= len(lines):
            continue
        last = lines[end.line - 1][end.column - 1 :]
        first = lines[start.line - 1][: start.column - 1] + _SECRET
        if start.line == end.line:
            lines[start.line - 1] = first + last
        else:
            lines[start.line - 1] = first
            lines[start.line : end.line - 1] = [""] * (end.line - start.line - 1)
            lines[end.line - 1] = last
        replaced += 1
    return replaced


def _listed(findings: Sequence[Finding], secrets: Sequence[_Span]) -> str:
    told = [
        f"{one.start.line}: {one.rule} {_message(one, secrets)}"
        for one in findings[:MOST_LINTER_FINDINGS]
    ]
    return "\n".join(told) or "none"


def _message(finding: Finding, secrets: Sequence[_Span]) -> str:
    """Return what the linter says, nothing where it may quote a secret."""
    if any(start < finding.end and finding.start < end for start, end in secrets):
        return ""
    return one_line(finding.message)[:_MAX_MESSAGE]


class Prompt:
    """The text of `prompts/review.md`: rules above the line of dashes, the request below it."""

    def __init__(self) -> None:
        text = (resources.files("code_reviewer") / "prompts" / "review.md").read_text("utf-8")
        rules, _, request = text.partition("\n---\n")
        self._rules = rules
        self._request = Template(request)
        schema = msgspec.json.encode(SCHEMA, order="sorted")
        self.version = sha256(text.encode() + schema).hexdigest()[:12]
        """Changes with each change of what is asked."""

    def question(self, submission: Redacted, most_findings: int) -> Question:
        """Return the question about a submission, between marks that are new each time."""
        numbered = "\n".join(f"{n}| {line}" for n, line in enumerate(submission.lines, 1))
        request = self._request.substitute(
            tag=secrets.token_hex(8),
            most=most_findings,
            filename=submission.filename,
            linter=submission.linter,
            code=numbered,
        )
        return Question(self._rules, request, SCHEMA)
