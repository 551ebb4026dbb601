"""The operator's own rules for what is replaced: `REDACTION_FILE`, read and checked."""

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, cast, get_args

import re2

from logging_service.errors import SettingsError
from logging_service.redaction import Action, Rules
from logging_service.secret_patterns import PATTERNS, Pattern

MAX_BYTES: Final = 65_536
MAX_PATTERNS: Final = 100
MAX_PATTERN: Final = 1_000
MAX_NAMES: Final = 1_000
_ACTIONS: Final = get_args(Action)
_ALLOWED: Final = ("action", "actions", "exempt", "off", "pattern")
_RULE_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")


def read_redaction_file(path: Path, fields: Iterable[str]) -> Rules:
    """Return the rules for `fields` (PII_FIELDS) with what the file adds, changes and turns off.

    Raises SettingsError, one line that says what in the file is wrong.
    """
    try:
        return _rules(_content(path.read_bytes()), rules_for(fields))
    except OSError as error:
        reason = error.strerror or "it cannot be read"
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
    raise SettingsError(f"REDACTION_FILE={str(path)!r} cannot be used: {reason}") from None


def rules_for(fields: Iterable[str]) -> Rules:
    """Return the built-in rules, for `fields` of any case."""
    return Rules(fields=frozenset(field.lower() for field in fields))


def _content(raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_BYTES:
        raise ValueError(f"it has to be at most {MAX_BYTES} bytes")
    return tomllib.loads(raw.decode())


def _rules(content: dict[str, Any], usual: Rules) -> Rules:
    if unknown := sorted(content.keys() - set(_ALLOWED)):
        raise ValueError(f"{unknown[0]} is not known; allowed are {', '.join(_ALLOWED)}")
    patterns = [*_own_patterns(content.get("pattern", [])), *PATTERNS]
    names = {pattern.name for pattern in patterns} | usual.fields
    off = set(_names(content, "off"))
    if unknown := sorted(off - names):
        raise ValueError(
            f"off: there is no rule {unknown[0]}; there are {', '.join(sorted(names))}"
        )
    return Rules(
        fields=usual.fields - off,
        exempt=frozenset(name.lower() for name in _names(content, "exempt")),
        patterns=tuple(pattern for pattern in patterns if pattern.name not in off),
        actions=_actions(content.get("actions", {}), names),
        action=_action(content.get("action", "hash"), "action"),
    )


def _names(content: dict[str, Any], key: str) -> list[str]:
    names = content.get(key, [])
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{key} has to be a list of names")
    if len(names) > MAX_NAMES:
        raise ValueError(f"{key} may have {MAX_NAMES} names")
    return names


def _actions(told: object, rules: set[str]) -> dict[str, Action]:
    if not isinstance(told, dict):
        raise ValueError("actions has to be a table of rules and actions")  # noqa: TRY004 - worded
    if unknown := sorted(told.keys() - rules):
        raise ValueError(f"actions: there is no rule {unknown[0]}")
    return {rule: _action(action, f"actions.{rule}") for rule, action in told.items()}


def _action(told: object, place: str) -> Action:
    if told not in _ACTIONS:
        raise ValueError(f"{place} has to be {', '.join(_ACTIONS)}")
    return cast("Action", told)


def _own_patterns(tables: object) -> list[Pattern]:
    if not isinstance(tables, list) or len(tables) > MAX_PATTERNS:
        raise ValueError(f"pattern has to be [[pattern]] tables, at most {MAX_PATTERNS}")
    patterns: dict[str, Pattern] = {}
    known = {pattern.name for pattern in PATTERNS}
    for number, table in enumerate(tables, 1):
        place = f"[[pattern]] number {number}"
        if not isinstance(table, dict) or table.keys() != {"name", "regex"}:
            raise ValueError(f"{place} has to have name and regex, and no more")
        name, regex = table["name"], table["regex"]
        if not isinstance(name, str) or not _RULE_NAME.fullmatch(name):
            raise ValueError(f"{place}: name has to be 1 to 40 of a-z, 0-9 and _")
        if name in known or name in patterns:
            raise ValueError(f"{place}: there is a rule {name} already")
        patterns[name] = Pattern(
            name, _checked(regex, place), before=b"", hint=_hint(regex), is_alone=True
        )
    return list(patterns.values())


# Characters that stand in JSON as they are, classes of them, and what says how often. A range goes
# over digits or letters of one case: others hold `"`, `/` or the backslash.
_PLAIN: Final = re.compile(
    r"(?:[A-Za-z0-9 _@:#=,;~%!+*?|()^$-]|\\[dwbBAz.+*?()|\[\]{}-]|\{[0-9,]+\}"
    r"|\[(?:[0-9]-[0-9]|[a-z]-[a-z]|[A-Z]-[A-Z]|[A-Za-z0-9 _@:.#=,;~%!+*?|(){}]|\\[dw.-])+-?\])*"
)
_QUIET: Final = re2.Options()
_QUIET.log_errors = False
_EDGE: Final = re.compile(r"\\[bBAz]|[\^$]")


def _hint(regex: str) -> bytes:
    """Return what fits wherever `regex` does, in JSON too; nothing, which fits anywhere, if unsure.

    Beside an escape there are edges that are none in the text itself.
    """
    hint = b"(?:%b)" % _EDGE.sub("", regex).encode()
    try:
        re2.compile(hint, _QUIET)
    except re2.error:
        return b""
    return hint if _PLAIN.fullmatch(regex) else b""


def _checked(regex: object, place: str) -> bytes:
    if not isinstance(regex, str) or not 1 <= len(regex) <= MAX_PATTERN:
        raise ValueError(f"{place}: regex has to be a text of 1 to {MAX_PATTERN} characters")
    try:
        compiled = re2.compile(f"(?:{regex})".encode(), _QUIET)
    except re2.error as error:
        reason = error.args[0] if error.args else "it is not RE2"
        text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise ValueError(f"{place}: regex is not RE2: {text}") from None
    if compiled.groupindex:
        raise ValueError(f"{place}: regex may not name groups")
    if compiled.search(b""):
        raise ValueError(f"{place}: regex may not fit an empty text")
    return f"(?:{regex})".encode()
