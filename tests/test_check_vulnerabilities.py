"""What `make check` makes of pip-audit's report."""

import json

from check_vulnerabilities import verdict

GOOD = {"name": "a", "version": "1.0", "vulns": []}
UNKNOWN = {"name": "b", "skip_reason": "Dependency not found"}
FAULT = {"id": "PYSEC-1", "fix_versions": ["1.2", "2.0"], "aliases": [], "description": "long"}


def report(*packages: object) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


def test_a_known_vulnerability_fails_and_is_named() -> None:
    bad = {"name": "c", "version": "1.1", "vulns": [FAULT, {**FAULT, "fix_versions": []}]}
    assert verdict(report(GOOD, bad, UNKNOWN), "") == (
        1,
        "c 1.1: PYSEC-1, mended in 1.2, 2.0\nc 1.1: PYSEC-1, mended in no version yet",
    )


def test_without_one_it_says_how_much_was_looked_at() -> None:
    told = "vulnerabilities: none known in 1 of 2 packages"
    assert verdict(report(GOOD, UNKNOWN), "") == (0, told)


def test_where_nobody_can_be_asked_it_is_skipped_in_one_line() -> None:
    for asked, said, why in (
        (report(UNKNOWN), "Found no vulnerabilities", "none of 1 packages is known there"),
        ("", "Traceback:\nNo module named pip_audit\n", "No module named pip_audit"),
        ("", "", "pip-audit said nothing"),
    ):
        assert verdict(asked, said) == (0, f"vulnerabilities: skipped, {why}")
