"""The last part of `make check`: what no linter says. Prints each fault on a line; exit code 1."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 450
LOCKS = {
    "requirements.txt": ("embedded", "reviewer", "anthropic", "dev"),
    "logging_service/requirements.txt": (),
    "gateway/requirements.txt": ("reviewer", "anthropic"),
}
_PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*])?==([^ ;\\]+)", re.MULTILINE)
_ADDRESS = re.compile(r"(?:https?|file)://|--(?:extra-)?index-url|--find-links")


def tracked(pattern: str) -> list[Path]:
    """Return the files of the project that match, the new ones included."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", pattern]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def long_modules() -> Iterator[str]:
    for file in tracked("*.py"):
        name = file.relative_to(ROOT).as_posix()
        lines = len(file.read_text(encoding="utf-8").splitlines())
        if lines > MAX_LINES and not name.startswith("tests/"):
            yield f"{name} has {lines} lines, {MAX_LINES} at the most: it has a second purpose"


def unlocked() -> Iterator[str]:
    """Yield each requirement of pyproject.toml that a lock file does not meet."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for lock, extras in LOCKS.items():
        text = (ROOT / lock).read_text(encoding="utf-8")
        pins = {canonicalize_name(name): version for name, version in _PIN.findall(text)}
        wanted = [*project["dependencies"]]
        for extra in extras:
            wanted += project["optional-dependencies"][extra]
        for requirement in map(Requirement, wanted):
            pin = pins.get(canonicalize_name(requirement.name))
            if pin is None or pin not in requirement.specifier:
                yield f"{lock} has {requirement.name} {pin}, not {requirement}: make lock"
        if text.count("--hash=sha256:") < len(pins):
            yield f"{lock} lacks hashes: make lock"
        if _ADDRESS.search(text):
            yield f"{lock} names an address: make lock"


def main() -> int:
    faults = [*long_modules(), *unlocked()]
    for fault in faults:
        print(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
