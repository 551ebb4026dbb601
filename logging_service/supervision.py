"""Keeps a process running: starts it, sees whether it is well, starts it again when it ends."""

import asyncio
import os
import signal
import ssl
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from logging_service.errors import BackendUnavailable, SettingsError
from logging_service.settings import project_root

_WRONG_SETTING = 2
_HEALTHY_SECONDS = 10.0
_PAUSES = (0.0, 0.2, 0.4, 0.8, 1.6, 2.0)
_SETTLED_SECONDS = 2.0


class Runs(Protocol):
    """Something that can be kept running."""

    name: str

    async def start(self) -> None:
        """Return when it answers.

        Raises BackendUnavailable when it ends before, SettingsError when it never can.
        """

    async def wait(self) -> int:
        """Return its exit code once it has ended."""

    async def stop(self, seconds: float) -> None:
        """End it in order, after `seconds` by force; harmless when it does not run."""

    def hurry(self) -> None:
        """End it at once."""


class Service:
    """One of our processes, the first of a group of its own.

    It is well when `/health` at `url` answers 200; without a URL, when it has lived for two
    seconds. Whose certificate an https URL shows is not asked: it is a process of our own.
    """

    def __init__(
        self, name: str, script: Path, url: str | None, environment: dict[str, str]
    ) -> None:
        self.name = name
        self._script = script
        self._url = url
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Return when it is well; exit code 2, a wrong setting, becomes SettingsError."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(self._script),
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
            env=self._environment,
            cwd=project_root(),
        )
        ended = asyncio.ensure_future(self.wait())
        well = asyncio.ensure_future(self._until_well())
        try:
            await asyncio.wait({ended, well}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            well.cancel()
            ended.cancel()
        if self._process.returncode == _WRONG_SETTING:
            raise SettingsError(f"{self.name} cannot start with these settings (exit code 2)")
        if self._process.returncode is not None:
            raise BackendUnavailable(f"ended with code {self._process.returncode}")

    async def _until_well(self) -> None:
        if self._url is None:
            await asyncio.sleep(_SETTLED_SECONDS)
            return
        while True:
            if await _answers_ok(self._url):
                return
            await asyncio.sleep(0.05)

    async def wait(self) -> int:
        """Return its exit code once it has ended; workers that outlive it are ended too."""
        if self._process is None:
            return 0
        code = await self._process.wait()
        self.hurry()
        return code

    async def stop(self, seconds: float) -> None:
        """Ask it to end, and after `seconds` end its whole group."""
        if self._process is None or self._process.returncode is not None:
            return
        self._process.terminate()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), seconds)
        self.hurry()
        await self._process.wait()

    def hurry(self) -> None:
        """End its whole group at once."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


async def _answers_ok(url: str) -> bool:
    asked = urlsplit(url)
    try:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection(
                asked.hostname,
                asked.port,
                ssl=_any_certificate() if asked.scheme == "https" else None,
            )
            try:
                writer.write(f"GET /health HTTP/1.0\r\nHost: {asked.netloc}\r\n\r\n".encode())
                return (await reader.readline()).split(b" ")[1:2] == [b"200"]
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


@cache
def _any_certificate() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def keep_running(
    runs: Runs, say: Callable[[str], None], answers: asyncio.Event, *, patient: bool
) -> None:
    """Start `runs`, again whenever it ends, and set `answers` while it does.

    Again means at once, then after 0.2 s doubling to 2 s, from the beginning once it was well for
    ten seconds. At the very first start SettingsError passes, BackendUnavailable unless `patient`.
    """
    began, failures = False, 0
    while True:
        well_since = time.monotonic()
        try:
            await runs.start()
            well_since = time.monotonic()
            began = True
            answers.set()
            reason = f"ended with code {await runs.wait()}"
        except (BackendUnavailable, SettingsError) as error:
            if not began and not (patient and isinstance(error, BackendUnavailable)):
                raise
            well_since, reason = time.monotonic(), str(error)
        answers.clear()
        if time.monotonic() - well_since >= _HEALTHY_SECONDS:
            failures = 0
        pause = _PAUSES[min(failures, len(_PAUSES) - 1)]
        failures += 1
        say(f"{runs.name} {reason}; starting it again {f'in {pause} s' if pause else 'at once'}")
        await asyncio.sleep(pause)
