"""What an examination finds: a line each, with how bad it is and what to do."""

import asyncio
import re
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple, ParamSpec, TypeVar

import asyncpg
import msgspec
from dotenv import dotenv_values

from logging_service.errors import LoggingServiceError
from logging_service.health import answer_within
from logging_service.postgres import said
from logging_service.settings import Settings

Status = Literal["ok", "warning", "failure"]
STATUSES: tuple[Status, ...] = ("ok", "warning", "failure")

_Result = TypeVar("_Result")
_Words = ParamSpec("_Words")
_MOST_CHARACTERS = 1000
_HIDDEN = "(not shown)"
_LEAST_HIDDEN = 6
_SECRET = re.compile(r"(KEY|PASSWORD|PEPPER|URL|TOKEN|SECRET)$")
# Beyond a minute, ages, retention and the expiry of keys are judged wrongly.
_SKEW_WARNING_SECONDS, _SKEW_FAILURE_SECONDS = 2.0, 60.0


class Finding(msgspec.Struct, frozen=True):
    """What was found by a check, and what to do about it where there is something to do."""

    check: str
    status: Status
    found: str
    advice: str | None = None


def ok(check: str, found: str, advice: str | None = None) -> Finding:
    """Return a finding that is as it should be."""
    return Finding(check, "ok", found, advice)


def warning(check: str, found: str, advice: str) -> Finding:
    """Return a finding that works, and may not for long, or is less than it could be."""
    return Finding(check, "warning", found, advice)


def failure(check: str, found: str, advice: str) -> Finding:
    """Return a finding that does not work, or loses events."""
    return Finding(check, "failure", found, advice)


def worst_of(findings: Iterable[Finding]) -> Status:
    """Return the worst status among `findings`, `ok` where there are none."""
    return max((finding.status for finding in findings), key=STATUSES.index, default="ok")


class Examined(NamedTuple):
    """What is examined: settings, and where they come from."""

    settings: Settings
    environment: Mapping[str, str]
    env_file: Path

    @property
    def in_file(self) -> dict[str, str]:
        """What `.env` names, names in capitals; empty values count as absent."""
        try:
            kept = dotenv_values(self.env_file, encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return {}
        return {name.upper(): value for name, value in kept.items() if value}

    @property
    def named(self) -> dict[str, str]:
        """What is set: the environment wins over `.env`."""
        given = {name.upper(): value for name, value in self.environment.items() if value}
        return {**self.in_file, **given}


class Check(NamedTuple):
    """Something to look at, by name; what fails or hangs becomes a failure with this advice."""

    name: str
    run: Callable[[], Awaitable[Iterable[Finding]]]
    advice: str = "look at the lines above: what it needs does not answer"
    seconds: float = 2.0


async def examine(check: Check) -> list[Finding]:
    """Return what `check` finds, after its seconds that it did not answer; never raises."""
    try:
        return list(await answer_within(check.seconds, check.run))
    except (LoggingServiceError, TimeoutError, OSError, asyncpg.InterfaceError) as error:
        reason = str(error) or type(error).__name__
    except asyncpg.PostgresError as error:
        reason = said(error)
    except Exception as error:  # noqa: BLE001 - a check's own fault must not hide what others find
        # Its text may hold anything, also a secret.
        reason = f"the check itself failed: {type(error).__name__}"
    return [failure(check.name, reason, check.advice)]


async def examine_all(checks: Iterable[Check]) -> list[Finding]:
    """Return what all of `checks` find, at once, in their order."""
    found = await asyncio.gather(*map(examine, checks))
    return [finding for some in found for finding in some]


class Threads(ThreadPoolExecutor):
    """An executor of which nothing is waited for: a disk or a resolver may hang for minutes."""

    def submit(
        self, work: Callable[_Words, _Result], /, *args: _Words.args, **kwargs: _Words.kwargs
    ) -> "Future[_Result]":
        """Begin `work` in a thread of its own, which ends with the process at the latest."""
        future: Future[_Result] = Future()

        def run() -> None:
            try:
                result = work(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - it is told to who waits
                future.set_exception(error)
            else:
                future.set_result(result)

        if future.set_running_or_notify_cancel():
            threading.Thread(target=run, daemon=True).start()
        return future

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - its interface
        """Leave behind what has not ended."""
        super().shutdown(wait=False, cancel_futures=cancel_futures)


class Mask:
    """Takes secrets out of findings, whatever brought them there: a server's words, a file."""

    def __init__(self, secrets: Iterable[str]) -> None:
        # The longest first: one may be a part of another.
        long_enough = {secret for secret in secrets if len(secret) >= _LEAST_HIDDEN}
        self._secrets = sorted(long_enough, key=len, reverse=True)

    def hide(self, finding: Finding) -> Finding:
        """Return `finding` without secrets, and not longer than a person reads."""
        advice = None if finding.advice is None else self._without(finding.advice)
        return Finding(finding.check, finding.status, self._without(finding.found), advice)

    def _without(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, _HIDDEN)
        return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"


def is_secret(variable: str) -> bool:
    """Whether the value of `variable` is not to be shown."""
    return bool(_SECRET.search(variable)) and not variable.startswith("QUERY_REQUIRE")


def in_words(size: float) -> str:
    """Return a number of bytes as people say it."""
    for unit in ("bytes", "KiB", "MiB"):
        if abs(size) < 1024:  # noqa: PLR2004 - of each there are so many in the next
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def clock_finding(check: str, offset_seconds: float, uncertain_seconds: float) -> Finding:
    """Judge another clock that is `offset_seconds` ahead of ours, give or take."""
    off = max(0.0, abs(offset_seconds) - uncertain_seconds)
    if off < _SKEW_WARNING_SECONDS:
        return ok(check, "agrees with this host's clock")
    direction = "ahead of" if offset_seconds > 0 else "behind"
    found = f"its clock is {off:,.1f} s {direction} this host's"
    judged = warning if off < _SKEW_FAILURE_SECONDS else failure
    return judged(check, found, "set both clocks by NTP: `timedatectl set-ntp true`")
