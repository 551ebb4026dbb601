"""The files of a spool: who owns them, whose turn it is, what was set aside, what disk is left."""

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import IO

from logging_service.errors import QueueFull, SettingsError

_DAMAGED = ".damaged-"
_SALVAGED = ".salvaged-"
_WAL = "-wal"
_SHM = "-shm"
_TURN_SECONDS = 2.0
_TURN_POLL_SECONDS = 0.0005
_MOST_FREE_BYTES = 64 * 1024 * 1024
_NAMED_AT_MOST = 5

# What tells a file from another one under the same name: its device and its inode.
Identity = tuple[int, int]


class SpoolTaken(SettingsError):
    """Another process owns the spool file."""


class SpoolFolder:
    """A spool file and what lies beside it; nothing of it is opened for reading here.

    The process that closes any handle of a file loses SQLite's locks on it.
    """

    def __init__(self, file: Path, *, max_bytes: int, exclusive: bool) -> None:
        self.file = file
        self._exclusive = exclusive
        # A small spool keeps a small distance from a full disk.
        self._free_floor = min(_MOST_FREE_BYTES, max_bytes // 4)
        self._turns: tuple[IO[bytes], IO[bytes]] | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the file, alone when it is exclusive, else with others who share it.

        Raises SpoolTaken when another process holds it otherwise, SettingsError when the folder
        cannot be used.
        """
        kind = fcntl.LOCK_EX if self._exclusive else fcntl.LOCK_SH
        with ExitStack() as held:
            try:
                self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                if self.file.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
                held.enter_context(_locked(held.enter_context(self._file(".lock")), kind))
                if not self._exclusive:
                    following, now = self._file(".next"), self._file(".turn")
                    self._turns = held.enter_context(following), held.enter_context(now)
            except BlockingIOError:
                raise SpoolTaken(
                    f"SPOOL_PATH={self.file} is in use by another process, which does not share it"
                ) from None
            except OSError as error:
                raise SettingsError(
                    f"SPOOL_PATH={self.file} cannot be used: {error.strerror}"
                ) from None
            yield

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Be the only one who writes to the file or sets it aside; in turns, not by luck.

        Raises TimeoutError when the others take longer than two seconds.
        """
        if self._turns is None:
            yield
            return
        until = time.monotonic() + _TURN_SECONDS
        # SQLite's own lock goes to whoever asks at the right moment: one that writes without a
        # pause would have it for ever. Here the next one waits alone, and others behind it.
        following, now = self._turns
        with ExitStack() as turn:
            with _locked(following, fcntl.LOCK_EX, until):
                turn.enter_context(_locked(now, fcntl.LOCK_EX, until))
            yield

    def identity(self) -> Identity | None:
        """Return which file bears the name now; None: there is none, or an empty one."""
        try:
            found = self.file.stat()
        except FileNotFoundError:
            return None
        return (found.st_dev, found.st_ino) if found.st_size else None

    def create(self) -> None:
        """Make the file, for its owner alone; a log that was left without its file is set aside."""
        if self.log_bytes():
            self.set_aside()
        os.close(os.open(self.file, os.O_WRONLY | os.O_CREAT, 0o600))
        _keep_names(self.file.parent)

    def log_bytes(self) -> int:
        """Return the size of SQLite's log."""
        try:
            return self._beside(_WAL).stat().st_size
        except FileNotFoundError:
            return 0

    def set_aside(self) -> Path:
        """Give the file and its log a name with the time, and return it."""
        return _renamed(self.file, _unused(self.file, _DAMAGED))

    def leave_free(self, more_bytes: int) -> None:
        """Raise QueueFull when `more_bytes` would leave too little of the disk free."""
        disk = os.statvfs(self.file.parent)
        if disk.f_bavail * disk.f_frsize - more_bytes < self._free_floor:
            needed = self._free_floor // (1024 * 1024)
            raise QueueFull(f"spool {self.file}: fewer than {needed} MiB of its disk are free")

    def warnings(self) -> list[str]:
        """Say which files were set aside and wait to be salvaged, a sentence each."""
        names = set_aside_in(self.file.parent)
        found = [
            f"{path.name} was set aside as damaged: run `logging-service spool salvage {path}`"
            for path in names[:_NAMED_AT_MOST]
        ]
        if len(names) > _NAMED_AT_MOST:
            found.append(f"{len(names) - _NAMED_AT_MOST} more files were set aside as damaged")
        return found

    def _beside(self, ending: str) -> Path:
        return _with(self.file, ending)

    def _file(self, ending: str) -> IO[bytes]:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        return os.fdopen(os.open(self._beside(ending), flags, 0o600), "r+b")


def set_aside_in(folder: Path) -> list[Path]:
    """Return the files of a folder that were set aside and wait to be salvaged.

    One of which only the log is left counts too.
    """
    found = folder.glob(f"*{_DAMAGED}*") if folder.is_dir() else iter(())
    return sorted({path.with_name(_without_ending(path.name)) for path in found})


@contextmanager
def held_for_salvage(file: Path) -> Iterator[None]:
    """Keep a file that no queue uses to oneself.

    Raises SpoolTaken when it is in use, SettingsError when it cannot be read.
    """
    with ExitStack() as held:
        try:
            parts = [part for part in (file, _with(file, _WAL)) if part.exists()]
            if not parts:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            if not all(part.is_file() for part in parts):
                raise SettingsError(f"{file} is no file that could be a spool")
            lock = _with(file, ".lock")
            for part in (*parts, lock) if lock.exists() else parts:
                opened = held.enter_context(part.open("rb"))
                held.enter_context(_locked(opened, fcntl.LOCK_EX))
        except BlockingIOError:
            raise SpoolTaken(f"{file} is in use: salvage it once no process has it") from None
        except OSError as error:
            raise SettingsError(f"{file} cannot be read: {error.strerror}") from None
        yield


def was_set_aside(file: Path) -> bool:
    """Whether a file's name says that it was a spool, whatever is left in it."""
    return _DAMAGED in file.name or _SALVAGED in file.name


def mark_salvaged(file: Path) -> Path:
    """Give a file and its log a name that says that nothing in it waits, and return it."""
    if _SALVAGED in file.name:
        return file
    if _DAMAGED in file.name:
        return _renamed(file, file.with_name(file.name.replace(_DAMAGED, _SALVAGED)))
    return _renamed(file, _unused(file, _SALVAGED))


def place_of(file: Path) -> str:
    """Return what tells a file's place from every other one, on this host and on others."""
    return f"{socket.gethostname()}:{file.parent.resolve() / file.name}"


def original_of(file: Path) -> Path:
    """Return the name that a file had before it was set aside or salvaged."""
    name = file.name
    for infix in (_DAMAGED, _SALVAGED):
        name = name.partition(infix)[0]
    return file.with_name(name)


def _renamed(file: Path, name: Path) -> Path:
    for ending in ("", _WAL):
        with suppress(FileNotFoundError):
            _with(file, ending).rename(_with(name, ending))
    # A new file under the old name would take the old one's index for its own.
    _with(file, _SHM).unlink(missing_ok=True)
    _keep_names(file.parent)
    return name


def _keep_names(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(file: IO[bytes], kind: int, until: float = 0) -> Iterator[None]:
    """Hold a lock; raises BlockingIOError when another has it, later ones TimeoutError."""
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_NB | kind)
            break
        except BlockingIOError:
            if not until:
                raise
            if time.monotonic() > until:
                raise TimeoutError("other processes keep it busy") from None
            time.sleep(_TURN_POLL_SECONDS)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def _without_ending(name: str) -> str:
    return name.removesuffix(_WAL).removesuffix(_SHM)


def _with(file: Path, ending: str) -> Path:
    return file.with_name(file.name + ending)


def _unused(file: Path, infix: str) -> Path:
    stem = f"{file.name}{infix}{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    for ending in chain([""], (f"-{n}" for n in range(2, 1000))):
        name = file.with_name(stem + ending)
        if not (name.exists() or _with(name, _WAL).exists()):
            return name
    raise FileExistsError(errno.EEXIST, "too many files were set aside in one second")
