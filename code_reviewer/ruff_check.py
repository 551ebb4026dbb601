"""How ruff is found and called, and what it answers."""

import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from subprocess import SubprocessError, run

import msgspec

SYNTAX = "invalid-syntax"


class RuffMissing(Exception):
    """ruff is not installed beside this Python, or does not run."""


class Spot(msgspec.Struct, frozen=True):
    """A place as ruff counts: from 1, in characters, without a byte order mark."""

    row: int
    column: int


class RuffEdit(msgspec.Struct, frozen=True):
    """Replace what is from `location` until before `end_location` by `content`."""

    content: str
    location: Spot
    end_location: Spot


class RuffFix(msgspec.Struct, frozen=True):
    """How ruff would mend it."""

    applicability: str
    edits: list[RuffEdit]
    message: str | None


class Diagnostic(msgspec.Struct, frozen=True):
    """One line of ruff's output; of its fields, those that are used here."""

    code: str
    message: str
    location: Spot
    end_location: Spot
    fix: RuffFix | None
    url: str | None


class _Rule(msgspec.Struct):
    code: str | None
    status: dict[str, object]


_DIAGNOSTIC = msgspec.json.Decoder(Diagnostic)
_RULES = msgspec.json.Decoder(list[_Rule])
_RULE = re.compile(rf"{SYNTAX}|[A-Z]+[0-9]+")
_LETTERS = re.compile("[A-Z]+")


def read(output: bytes) -> list[Diagnostic]:
    """Return what ruff found; a last line that was cut off is left out.

    Raises ValueError for what ruff does not say when all is well.
    """
    lines = output.split(b"\n")[:-1]
    try:
        # One by one: a thread that decodes all at once keeps the others waiting.
        diagnostics = [_DIAGNOSTIC.decode(line) for line in lines]
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from error
    for code in {diagnostic.code for diagnostic in diagnostics}:
        if not _RULE.fullmatch(code):
            raise ValueError(f"{code:.50} is not a rule")
    return diagnostics


class Ruff:
    """The ruff that is installed beside this Python.

    `prefixes` are what can be selected: ruff does not run with one that selects no rule. Finding it
    starts it twice, for 20 ms. Raises RuffMissing.
    """

    def __init__(self) -> None:
        self._binary = _binary()
        self.version = self._say("--version").decode().split()[-1]
        self.prefixes = _prefixes(self._say("rule", "--all", "--output-format", "json"))

    @property
    def name(self) -> str:
        """The name and the version of the tool."""
        return f"ruff {self.version}"

    @property
    def is_there(self) -> bool:
        """Whether it has not gone away since."""
        return self._binary.is_file()

    def command(
        self,
        select: Sequence[str],
        *,
        ignore: Sequence[str] = (),
        filename: str,
        target_version: str | None,
        heed_comments: bool = False,
    ) -> list[str]:
        """Return the words that check what comes on standard input.

        Without `target_version` all syntax up to the newest is right, and no advice is for new
        Pythons alone. `heed_comments`: what comments suppress is left out. Every function is
        reported with its complexity, if that is selected. No configuration is read, and `src` is
        empty because ruff would look there for modules of the names that are imported.
        """
        return [
            str(self._binary), "check", "--isolated", "--no-cache", "--no-fix", "--exit-zero",
            "--quiet", "--output-format", "json-lines", "--stdin-filename", filename,
            "--config", "src=[]", "--config", "lint.mccabe.max-complexity=0",
            "--select", ",".join(select),
            *(("--ignore", ",".join(ignore)) if ignore else ()),
            *(("--target-version", target_version) if target_version else ()),
            *(() if heed_comments else ("--ignore-noqa",)),
            "-",
        ]  # fmt: skip

    def _say(self, *words: str) -> bytes:
        try:
            return run(  # noqa: S603 - fixed words
                [self._binary, *words], capture_output=True, check=True, timeout=30, env={}, cwd="/"
            ).stdout
        except (OSError, SubprocessError) as error:
            raise RuffMissing(f"{self._binary} does not run: {error}") from error


def _binary() -> Path:
    try:
        return Path(import_module("ruff").find_ruff_bin())
    except (ImportError, FileNotFoundError) as error:
        raise RuffMissing(
            "ruff is not installed beside this Python; pip install 'logging-service[reviewer]'"
        ) from error


def _prefixes(rules: bytes) -> frozenset[str]:
    usable = (rule.code for rule in _RULES.decode(rules) if "Stable" in rule.status)
    return frozenset({"ALL", "PL"}.union(*(_beginnings(code) for code in usable if code)))


def _beginnings(code: str) -> Iterator[str]:
    letters = _LETTERS.match(code)
    for length in range(letters.end() if letters else 1, len(code) + 1):
        yield code[:length]
