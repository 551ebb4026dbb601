"""What a rule of ruff means to us: category and severity, by the longest prefix of its code.

ruff calls nearly everything an error; a reader wants to know what breaks, what is dangerous and
what is taste.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from hashlib import sha256

import msgspec

from code_reviewer.findings import Category, Severity

TARGET_VERSIONS = (
    "py37", "py38", "py39", "py310", "py311", "py312", "py313", "py314", "py315",
)  # fmt: skip

DEFAULT = "default"
"""Stands for `DEFAULT_SELECTION` in what a caller selects."""

DEFAULT_SELECTION = (
    "E4", "E7", "E9", "F", "B", "S", "PLE", "PLW", "BLE", "ASYNC", "DTZ", "PERF", "SIM", "UP",
    "RUF",
)  # fmt: skip

# Whether a suppression comment is right depends on settings that a snippet comes without.
DEFAULT_IGNORED = ("RUF100", "RUF102")

# What the compiler refuses although it parses, and what a reader cannot see: looked for whatever is
# selected.
ALWAYS_SELECTED = (
    "F404", "F407", "F621", "F622", "F701", "F702", "F704", "F706", "F707",
    "PLE0115", "PLE0117", "PLE0118", "PLE1132", "PLE1142", "PLE1700",
    "PLE2502", "PLE2510", "PLE2512", "PLE2513", "PLE2515",
)  # fmt: skip

SECRETS = ("S105", "S106", "S107")
COMPLEXITY = "C901"

SOME_COMPLEXITY = 10
"""McCabe's number above which a function is worth a word."""
MUCH_COMPLEXITY = 20
"""McCabe's number above which a function is worth a warning."""


class Grade(msgspec.Struct, frozen=True):
    """What a rule is about and how bad it is."""

    category: Category
    severity: Severity

    @property
    def always_counts(self) -> bool:
        """Say whether no comment in the code can keep it from counting."""
        return self.category in {Category.SYNTAX, Category.SECURITY}


_BUG, _SECURITY, _STYLE = Category.BUG, Category.SECURITY, Category.STYLE
_PERFORMANCE, _COMPLEXITY, _SYNTAX = Category.PERFORMANCE, Category.COMPLEXITY, Category.SYNTAX
_ERROR, _WARNING, _INFO = Severity.ERROR, Severity.WARNING, Severity.INFO

_BY_PREFIX = {
    (_SYNTAX, _ERROR): """
        invalid-syntax E9 F404 F407 F62 F70 PLE0115 PLE0117 PLE0118 PLE1132 PLE1142 PLE1700
    """,
    # It will raise, or do something else than it says.
    (_BUG, _ERROR): """
        F402 F50 F52 F601 F63 F722 F82 F901 B002 B016 B029 B030 PLE
        PLW0129 PLW0177 PLW1501 RUF016 YTT
    """,
    (_BUG, _WARNING): """
        F403 F405 F406 F504 F522 F523 F602 F811 E721 E722 B BLE ASYNC DTZ
        PLW RUF006 RUF008 RUF009 RUF012 RUF018 RUF024 RUF026 RUF030 RUF032 RUF033 RUF040
        RUF048 RUF049 RUF060 RUF063 RUF064 RUF071 SIM107 SIM115 SIM222 SIM223
        A AIR DJ FAST INT LOG NPY PD PGH PLC2 PT T10 TRY2 TRY4
    """,
    (_BUG, _INFO): """
        F401 F841 F842 B007 B008 B018 B027 B028 B904 B905 B911 B912 DTZ011 DTZ012
        PLW0120 PLW0602 PLW0603 PLW0604 PLW0642 PLW1510 PLW1641 PLW2901 PLW3301 RUF059
        ARG ERA FIX G TD TRY EM
    """,
    (_SECURITY, _ERROR): """
        PLE2502 S102 S201 S301 S302 S307 S501 S506 S507 S602 S604 S605 S608 S609 S610 S611
        S612 S701
    """,
    (_SECURITY, _WARNING): "S PLE251",
    # Tests assert, and a subprocess without a shell is what was asked for.
    (_SECURITY, _INFO): "S101 S311 S4 S603 S607",
    (_PERFORMANCE, _INFO): "PERF C4 RUF005 RUF015 RUF017 RUF037 RUF046 RUF057 FLY FURB",
    (_COMPLEXITY, _INFO): "C901 PLR09 PLR17 SIM102 SIM103 SIM108 SIM114 SIM117",
    (_STYLE, _INFO): """
        ANN E W F541 C CPY COM D DOC EXE FA FBT I ICN INP ISC N PIE PL PTH PYI Q RET RSE RUF SIM
        SLF SLOT T20 TC TID UP
    """,
}
_GRADES = {
    prefix: Grade(category, severity)
    for (category, severity), prefixes in _BY_PREFIX.items()
    for prefix in prefixes.split()
}

_TABLES = (
    _BY_PREFIX, DEFAULT_SELECTION, DEFAULT_IGNORED, ALWAYS_SELECTED, SOME_COMPLEXITY,
    MUCH_COMPLEXITY,
)  # fmt: skip
VERSION = sha256(repr(_TABLES).encode()).hexdigest()[:8]
"""Changes with the tables above: reviews kept from before are not those of today."""


@cache
def grade(rule: str) -> Grade:
    """Return what `rule` means to us; what nobody thought of is a matter of style."""
    for length in range(len(rule), 0, -1):
        if known := _GRADES.get(rule[:length]):
            return known
    return Grade(_STYLE, _INFO)


def grade_of_complexity(complexity: int) -> Grade | None:
    """Return what a function of this complexity deserves; None: no word."""
    if complexity <= SOME_COMPLEXITY:
        return None
    return Grade(_COMPLEXITY, _WARNING if complexity > MUCH_COMPLEXITY else _INFO)


def selection(wanted: Sequence[str] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what to select and what to leave out of it; None: our own selection."""
    named = tuple(prefix for prefix in dict.fromkeys(wanted or ()) if prefix != DEFAULT)
    if wanted and DEFAULT not in wanted:
        return named, ALWAYS_SELECTED
    unwanted = tuple(rule for rule in DEFAULT_IGNORED if rule not in named)
    return (*DEFAULT_SELECTION, *named), (*ALWAYS_SELECTED, *unwanted)


def selects(prefixes: Iterable[str], rule: str) -> bool:
    """Say whether `prefixes`, as a caller gives them, select `rule`: `S` does not mean `SIM102`."""
    return any(
        prefix in {"ALL", rule} or (rule.startswith(prefix) and rule[len(prefix) :].isdigit())
        for prefix in prefixes
    )
