"""How a service is: its dependencies, each asked for at most a second, as `/health` tells it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Literal, NamedTuple, TypeVar

import msgspec
from starlette.responses import Response

from logging_service.errors import LoggingServiceError
from logging_service.web import json_answer, release

State = Literal["ok", "degraded", "unavailable"]
_Answer = TypeVar("_Answer")
_CHECK_SECONDS = 1.0


class Check(NamedTuple):
    """A dependency: `run` returns None or what is not as it should be, and raises when it is away.

    Without a dependency that is not `essential` the service is degraded only.
    """

    name: str
    run: Callable[[], Awaitable[str | None]]
    essential: bool = True


class Dependency(msgspec.Struct, omit_defaults=True):
    """How a dependency is, and why it is not ok."""

    status: State
    detail: str | None = None


class KeyReport(msgspec.Struct):
    """What the key of a request is good for."""

    valid: bool
    name: str
    scopes: list[str]


class Health(msgspec.Struct, omit_defaults=True):
    """How a service is, by its worst dependency; `warnings` tell of what works and is unsafe."""

    status: State
    service: str
    version: str
    dependencies: dict[str, Dependency]
    api_key: KeyReport | None = None
    warnings: list[str] = []


Warn = Callable[[], Awaitable[list[str]]]


async def health(
    service: str, checks: Sequence[Check], api_key: KeyReport | None, warn: Warn | None = None
) -> Response:
    """Return what /health answers: all checks at once, a second for each; 503 if unavailable.

    What `warn` returns changes nothing of the status.
    """
    examining = asyncio.gather(*map(_examine, checks))
    states, warnings = await asyncio.gather(examining, _warnings(warn))
    status: State = "ok"
    if any(state.status != "ok" for state in states):
        status = "degraded"
    away = [state.status == "unavailable" for state in states]
    if any(gone and check.essential for check, gone in zip(checks, away, strict=True)):
        status = "unavailable"
    names = (check.name for check in checks)
    dependencies = dict(zip(names, states, strict=True))
    answer = Health(status, service, release(), dependencies, api_key, warnings)
    return json_answer(answer, 503 if status == "unavailable" else 200)


def _forget(asked: "asyncio.Future[_Answer]") -> None:
    if not asked.cancelled():
        asked.exception()


async def answer_within(seconds: float, run: Callable[[], Awaitable[_Answer]]) -> _Answer:
    """Return what `run` returns; raises TimeoutError after `seconds`, whatever hangs."""
    asking = asyncio.ensure_future(run())
    # Not a timeout: what hangs may take as long to give up.
    await asyncio.wait({asking}, timeout=seconds)
    if not asking.done():
        asking.cancel()
        asking.add_done_callback(_forget)
        raise TimeoutError(f"no answer within {seconds:g} s")
    return asking.result()


async def _warnings(warn: Warn | None) -> list[str]:
    # What cannot be asked stands among the dependencies.
    with suppress(LoggingServiceError, TimeoutError):
        return await answer_within(_CHECK_SECONDS, warn) if warn else []
    return []


async def _examine(check: Check) -> Dependency:
    try:
        fault = await answer_within(_CHECK_SECONDS, check.run)
    except (LoggingServiceError, TimeoutError) as error:
        return Dependency("unavailable", str(error))
    return Dependency("degraded", fault) if fault else Dependency("ok")
