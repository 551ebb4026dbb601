"""Part of `make check`: whether a package that we install has a known vulnerability.

Prints each on a line; exit code 1. Where nobody can be asked, it says so on one line instead.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LOCK = Path(__file__).resolve().parent.parent / "requirements.txt"
MOST_SECONDS = 60
_COMMAND = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes"]
_OPTIONS = ["--format", "json", "--progress-spinner", "off", "--timeout", "5"]


def main() -> int:
    try:
        asked = subprocess.run(
            [*_COMMAND, *_OPTIONS, "--requirement", str(LOCK)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            text=True,
            timeout=MOST_SECONDS,
        )
    except subprocess.TimeoutExpired:
        print(f"vulnerabilities: skipped, no answer within {MOST_SECONDS} s")
        return 0
    code, told = verdict(asked.stdout, asked.stderr)
    print(told)
    return code


def verdict(report: str, said: str) -> tuple[int, str]:
    """Return the exit code and what to print for pip-audit's report and its last words."""
    try:
        packages: list[dict[str, Any]] = json.loads(report)["dependencies"]
    except ValueError:
        reason = (said.strip().splitlines() or ["pip-audit said nothing"])[-1]
        return 0, f"vulnerabilities: skipped, {reason}"
    audited = [package for package in packages if "vulns" in package]
    if not audited:
        return 0, f"vulnerabilities: skipped, none of {len(packages)} packages is known there"
    found = [
        f"{package['name']} {package['version']}: {fault['id']}, "
        f"mended in {', '.join(fault['fix_versions']) or 'no version yet'}"
        for package in audited
        for fault in package["vulns"]
    ]
    none = f"vulnerabilities: none known in {len(audited)} of {len(packages)} packages"
    return (1, "\n".join(found)) if found else (0, none)


if __name__ == "__main__":
    sys.exit(main())
