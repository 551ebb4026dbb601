"""DATA_DIR: what makes it ours, the secrets it keeps, and the processes that run from it."""

import asyncio
import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from logging_service.errors import SettingsError

# Every service that `up` starts carries this variable; workers inherit it, whoever their parent is.
OWNER_VARIABLE = "LOGGING_SERVICE_STARTED_FROM"
_MARK = ".logging-service"
_LOCK = "up.lock"
_SERVERS = {"postgres", "valkey-server", "redis-server", "initdb"}


def create(folder: Path) -> None:
    """Make `folder` for its owner alone; a new or empty one is marked as ours to remove."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not any(folder.iterdir()):
            (folder / _MARK).write_text("Made by logging-service, removed by its clean-data.\n")
    except OSError as error:
        raise SettingsError(f"DATA_DIR={folder} cannot be used: {error.strerror}") from None


def may_be_removed(folder: Path) -> bool:
    """Whether `folder` was made by us and holds neither the home folder nor the current one."""
    precious = (Path.home().resolve(), Path.cwd(), Path(__file__).resolve())
    return (folder / _MARK).is_file() and not any(
        folder in (place, *place.parents) for place in precious
    )


def write_secret(file: Path, text: str) -> None:
    """Put `text` into `file` in one step, readable by the owner alone."""
    new = file.with_name(f"{file.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    new.replace(file)


def kept_secret(file: Path, make: Callable[[], str]) -> str:
    """Return what `file` keeps, else what `make` returns, which is kept from then on.

    Of several processes that ask at once one makes it, and all get the same.
    """
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if kept := file.read_text(encoding="utf-8").strip():
                return kept
        made = make()
        write_secret(file, made + "\n")
        return made
    finally:
        os.close(folder)


class FolderInUse(SettingsError):
    """Another `up` runs from this folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process alone; children do not inherit the lock.

    Raises FolderInUse when another process holds it.
    """
    with (folder / _LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise FolderInUse(
                f"DATA_DIR={folder} is in use by another `up`, process {lock.read() or 'unknown'}: "
                "stop that one, or set DATA_DIR to another folder"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
        lock.truncate(0)


class Running(NamedTuple):
    """A process, told from a later one with the same number by when it started."""

    pid: int
    started: int

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens when the process is gone."""
        if self.is_alive():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def is_alive(self) -> bool:
        """Whether the process still runs; one that only waits to be collected does not."""
        return _started(self.pid) == self.started


def lock_holder(folder: Path) -> Running | None:
    """Return the `up` that holds `folder`, None when nobody does."""
    try:
        with (folder / _LOCK).open("r+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = int(lock.read() or 0)
                return Running(pid, _started(pid) or 0)
    except FileNotFoundError:
        pass
    return None


def _started(pid: int) -> int | None:
    try:
        # The name, in parentheses, may hold anything; what follows it may not.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {b"Z", b"X"} else int(fields[19])


def _all(belongs: Callable[[Path], bool]) -> list[Running]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        started = _started(int(entry.name))
        with suppress(OSError):
            if started is not None and belongs(entry):
                found.append(Running(int(entry.name), started))
    return found


def services_of(folder: Path) -> list[Running]:
    """Return the services that an `up` on `folder` started, with their workers."""
    mark = f"{OWNER_VARIABLE}={folder}".encode()
    return _all(lambda entry: mark in (entry / "environ").read_bytes().split(b"\0"))


def servers_in(folder: Path) -> list[Running]:
    """Return the database servers whose files lie in `folder`, with their helpers."""

    def belongs(entry: Path) -> bool:
        arguments = (entry / "cmdline").read_bytes().split(b"\0")
        if Path(os.fsdecode(arguments[0])).name in _SERVERS and os.fsencode(folder) in arguments:
            return True
        # A server that runs as another user hides where it is from us unless we are root.
        name = (entry / "exe").readlink().name.removesuffix(" (deleted)")
        return name in _SERVERS and (entry / "cwd").readlink() == folder

    return _all(belongs)


async def end(processes: list[Running], number: signal.Signals, seconds: float) -> None:
    """Send `number`, after `seconds` SIGKILL, and return when none of `processes` is left."""
    for process in processes:
        process.send(number)
    if not await gone(processes, seconds):
        for process in processes:
            process.send(signal.SIGKILL)
        await gone(processes, 5)


async def gone(processes: list[Running], seconds: float) -> bool:
    """Wait up to `seconds` until none of `processes` is left, and say whether that is so."""
    until = time.monotonic() + seconds
    while any(process.is_alive() for process in processes):
        if time.monotonic() > until:
            return False
        await asyncio.sleep(0.02)
    return True
