"""What ruff says, as findings of ours."""

import re
from collections.abc import Iterable, Sequence
from heapq import nsmallest

import msgspec

from code_reviewer.findings import (
    MOST_SEVERE_FIRST,
    Edit,
    Finding,
    Fingerprints,
    Fix,
    FunctionComplexity,
    Place,
)
from code_reviewer.ruff_check import SYNTAX, Diagnostic, RuffFix, Spot
from code_reviewer.rules import SOME_COMPLEXITY, Grade, grade, grade_of_complexity
from code_reviewer.syntax_message import SyntaxMessage

MOST_FINDINGS = 500
_LONGEST_MESSAGE = 1_000
_LONGEST_NAME = 200
_LONGEST_FIX = 8_192

_LINE_END = re.compile(r"\r\n|\r|\n")
_TOO_COMPLEX = re.compile(r"`(.*)` is too complex \((\d+) > 0\)")

Spots = frozenset[tuple[str, Spot, Spot]]
"""Of diagnostics: their rule, where they begin and where they end."""


class Graded(msgspec.Struct, frozen=True):
    """A diagnostic, what it means to us, and whether a comment keeps it from counting."""

    diagnostic: Diagnostic
    grade: Grade
    suppressed: bool = False
    source: str = "ruff"


def lines_of(code: str) -> list[str]:
    """Return the lines of `code` as Python and ruff count them, without their ends."""
    lines = _LINE_END.split(code.removeprefix("\ufeff"))
    return lines if lines[-1] else lines[:-1]


def spot(diagnostic: Diagnostic) -> tuple[str, Spot, Spot]:
    """Return what tells `diagnostic` from others, in each run on the same code."""
    return diagnostic.code, diagnostic.location, diagnostic.end_location


def graded(diagnostics: Iterable[Diagnostic], counting: Spots | None = None) -> list[Graded]:
    """Return `diagnostics` with their grades; `counting`: those that no comment suppresses.

    Without it none is suppressed.
    """
    return [
        Graded(diagnostic, meaning, _suppressed(diagnostic, meaning, counting))
        for diagnostic in diagnostics
        for meaning in (grade(diagnostic.code),)
    ]


def with_message(found: Sequence[Graded], said: SyntaxMessage) -> list[Graded]:
    """Return `found`, syntax errors, with what CPython says.

    It stands in place of ruff's words about the same line, or beside them.
    """
    start, end = (Spot(at.line, at.column) for at in (said.start, said.end))
    spoken = Diagnostic(SYNTAX, said.message, start, end, None, None)
    for index, item in enumerate(found):
        if item.diagnostic.code == SYNTAX and item.diagnostic.location.row == start.row:
            there = msgspec.structs.replace(item.diagnostic, message=said.message)
            return [*found[:index], Graded(there, item.grade), *found[index + 1 :]]
    return [*found, Graded(spoken, grade(SYNTAX), source="cpython")]


def no_text(before: str) -> Graded:
    """Return the syntax error of a character, after `before`, that no source can have in it."""
    lines = lines_of(before + ".")
    column = len(lines[-1])
    start, end = Spot(len(lines), column), Spot(len(lines), column + 1)
    message = "Source code cannot contain null bytes or halves of surrogate pairs"
    said = Diagnostic(SYNTAX, message, start, end, None, None)
    return Graded(said, grade(SYNTAX), source="reviewer")


def functions(diagnostics: Iterable[Diagnostic]) -> tuple[FunctionComplexity, ...]:
    """Return the complexity of each function, at most 500: the most complex, in their order."""
    found = [_function(diagnostic) for diagnostic in diagnostics]
    most = nsmallest(MOST_FINDINGS, found, key=lambda function: -function.complexity)
    return tuple(sorted(most, key=lambda function: function.line))


def too_complex(diagnostics: Iterable[Diagnostic], counting: Spots | None = None) -> list[Graded]:
    """Return those functions that are more complex than our bound."""
    found = []
    for diagnostic in diagnostics:
        function = _function(diagnostic)
        if meaning := grade_of_complexity(function.complexity):
            message = (
                f"`{function.name}` is too complex ({function.complexity} > {SOME_COMPLEXITY})"
            )
            said = msgspec.structs.replace(diagnostic, message=message)
            found.append(Graded(said, meaning, _suppressed(diagnostic, meaning, counting)))
    return found


def findings(found: Sequence[Graded], lines: Sequence[str]) -> tuple[Finding, ...]:
    """Return at most 500 of `found`, the most severe, in the order of their places."""
    worst = nsmallest(MOST_FINDINGS, found, key=_severity)
    ids = Fingerprints()
    return tuple(_finding(item, lines, ids) for item in sorted(worst, key=_place))


def place(spot: Spot) -> Place:
    """Return the same place in our words."""
    return Place(spot.row, spot.column)


def _suppressed(diagnostic: Diagnostic, meaning: Grade, counting: Spots | None) -> bool:
    if counting is None or meaning.always_counts:
        return False
    return spot(diagnostic) not in counting


def _function(diagnostic: Diagnostic) -> FunctionComplexity:
    said = _TOO_COMPLEX.fullmatch(diagnostic.message)
    if said is None:
        raise ValueError("C901 says something new")
    name = said[1][:_LONGEST_NAME]
    return FunctionComplexity(name, diagnostic.location.row, int(said[2]))


def _severity(item: Graded) -> tuple[bool, int]:
    return item.suppressed, MOST_SEVERE_FIRST.index(item.grade.severity)


def _place(item: Graded) -> tuple[Place, str]:
    return place(item.diagnostic.location), item.diagnostic.code


def _finding(item: Graded, lines: Sequence[str], ids: Fingerprints) -> Finding:
    said = item.diagnostic
    row = said.location.row
    return Finding(
        id=ids.of(said.code, lines[row - 1] if row <= len(lines) else ""),
        source=item.source,
        rule=said.code,
        category=item.grade.category,
        severity=item.grade.severity,
        start=place(said.location),
        end=place(said.end_location),
        message=said.message[:_LONGEST_MESSAGE],
        url=said.url,
        fix=_fix(said.fix) if said.fix else None,
        suppressed=item.suppressed,
    )


def _fix(fix: RuffFix) -> Fix:
    message = fix.message[:_LONGEST_MESSAGE] if fix.message else None
    if sum(len(edit.content) for edit in fix.edits) > _LONGEST_FIX:
        return Fix(fix.applicability, message)
    edits = (
        Edit(place(edit.location), place(edit.end_location), edit.content) for edit in fix.edits
    )
    return Fix(fix.applicability, message, tuple(edits))
