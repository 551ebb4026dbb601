"""The operator's own rules: what they change, and that a wrong file is one line."""

import json
from pathlib import Path

import pytest
import re2

from logging_service.errors import SettingsError
from logging_service.redaction import Redactor
from logging_service.redaction_file import MAX_BYTES, read_redaction_file

FIELDS = ("Email", "phone")


def a_file(folder: Path, text: str) -> Path:
    file = folder / "redaction.toml"
    file.write_text(text, encoding="utf-8")
    return file


def changed(rules_of: Path, payload: str) -> str:
    redactor = Redactor(read_redaction_file(rules_of, FIELDS), b"k" * 32)
    assert redactor.suspects is not None
    assert re2.search(redactor.suspects, payload.encode())
    return redactor.payload(payload.encode()).text.decode()


def test_an_operator_adds_patterns_turns_rules_off_and_exempts_fields(tmp_path: Path) -> None:
    file = a_file(
        tmp_path,
        """
        action = "mask"
        off = ["ip", "phone"]
        exempt = ["Commit"]
        [actions]
        employee = "drop"
        [[pattern]]
        name = "employee"
        regex = 'EMP-[0-9]{6}'
        """,
    )
    payload = '{"email":"Ada","phone":"1","t":"10.1.2.3 EMP-123456!","commit":"a@b.org"}'
    expected = '{"email":"[email]","phone":"1","t":"10.1.2.3 !","commit":"a@b.org"}'
    assert changed(file, payload) == expected


@pytest.mark.parametrize(
    ("regex", "text"),
    [
        (r"\bEMP-\d{6}\b", 'a\nEMP-123456\tb "EMP-123456"'),
        ("^x$", "x"),
        ('say "a.b"', 'I say "a\\b"'),
        ("a[^b]c", "a\nc"),
        ("a/b", "a/b"),
        ("a[ -~]b", "a/b"),
        ("a[A-z]b", "a\\b"),
        ("a[!-Z]b", 'a"b'),
        ("(?:|y)z|z*y", "zzy"),
        ("(a)(b)|(?i)q", "ab Q"),
        ("ä+ß", "ääß"),
        ("x<y>&", "x<y>&"),
        (r"\n\t", "\n\t"),
    ],
)
@pytest.mark.parametrize("escaped", [True, False])
def test_a_pattern_finds_in_json_what_it_finds_in_the_text(
    tmp_path: Path, regex: str, text: str, *, escaped: bool
) -> None:
    rule = f"[[pattern]]\nname = 'own'\nregex = '{regex}'\n"
    file = a_file(tmp_path, f"action = 'drop'\n{rule}")
    sent = json.dumps({"t": text}, ensure_ascii=escaped)
    if escaped:
        sent = sent.replace("<", "\\u003c").replace("/", "\\/")
    expected = Redactor(read_redaction_file(file, FIELDS), b"k" * 32).text(text.encode())
    assert expected.found["own"]
    assert json.loads(changed(file, sent)) == {"t": expected.text.decode()}


def test_an_empty_file_changes_nothing_of_the_usual_rules(tmp_path: Path) -> None:
    after = changed(a_file(tmp_path, ""), '{"EMAIL":"Ada","t":"10.1.2.3"}')
    assert "Ada" not in after
    assert "10.1.2.3" not in after


def _pattern(name: str, regex: str) -> str:
    return f"[[pattern]]\nname = {name!r}\nregex = {regex!r}\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("action = 'burn'", "action has to be hash, mask, drop"),
        ("actions = 3", "actions has to be a table of rules and actions"),
        ("[actions]\nemail = 'burn'", "actions.email has to be hash, mask, drop"),
        ("[actions]\nnobody = 'mask'", "actions: there is no rule nobody"),
        ("off = ['nobody']", "off: there is no rule nobody; there are "),
        ("off = 'ip'", "off has to be a list of names"),
        ("exempt = [3]", "exempt has to be a list of names"),
        ("exempt = [" + "'x'," * 1001 + "]", "exempt may have 1000 names"),
        ("rules = 3", "rules is not known; allowed are action, actions, exempt, off, pattern"),
        ("pattern = 3", "pattern has to be [[pattern]] tables, at most 100"),
        ("[[pattern]]\nname = 'x'", "number 1 has to have name and regex, and no more"),
        (_pattern("Über", "x"), "number 1: name has to be 1 to 40 of a-z, 0-9 and _"),
        (_pattern("email", "x"), "number 1: there is a rule email already"),
        (_pattern("a", "x") + _pattern("a", "y"), "number 2: there is a rule a already"),
        (_pattern("a", "("), "number 1: regex is not RE2: "),
        (_pattern("a", "(?=x)"), "number 1: regex is not RE2: "),
        (_pattern("a", "x*"), "number 1: regex may not fit an empty text"),
        (_pattern("a", "(?P<b>x)"), "number 1: regex may not name groups"),
        (_pattern("a", "x" * 1001), "number 1: regex has to be a text of 1 to 1000 characters"),
        ("no toml", "Expected"),
        ("#" * (MAX_BYTES + 1), f"it has to be at most {MAX_BYTES} bytes"),
    ],
)
def test_a_wrong_file_is_one_line_that_says_why(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str, reason: str
) -> None:
    file = a_file(tmp_path, text)
    with pytest.raises(SettingsError) as refused:
        read_redaction_file(file, FIELDS)
    assert str(refused.value).startswith(f"REDACTION_FILE={str(file)!r} cannot be used: ")
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)
    assert capfd.readouterr().err == ""


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        read_redaction_file(tmp_path / "none.toml", FIELDS)
