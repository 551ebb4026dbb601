"""A child process in a cage: little memory, processor time, output and patience; no environment.

A thread stands by each child: starting one does not hold up the event loop (uvloop's own way forks
the whole service for it), and nobody else reaps it, so that its number is never that of a stranger
when it is killed. `preexec_fn` is not safe beside threads, and a launcher costs more than the child
itself; so the limits are set from here once it runs, and only then does it get anything to read.
"""

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from resource import RLIMIT_AS, RLIMIT_CORE, RLIMIT_CPU, RLIMIT_FSIZE, RLIMIT_NOFILE, prlimit
from subprocess import DEVNULL, PIPE, Popen
from threading import Lock

import msgspec


class Limits(msgspec.Struct, frozen=True):
    """What a child may use; what is above ends it, with everything that it started."""

    memory_bytes: int = 1 << 30
    cpu_seconds: int = 5
    wall_seconds: float = 10.0
    output_bytes: int = 4 << 20


class Fate(StrEnum):
    """How a child ended: `cut` said more than it may, `late` took more time than it has."""

    DONE = "done"
    CUT = "cut"
    LATE = "late"
    FAILED = "failed"


class Ended(msgspec.Struct, frozen=True):
    """What a child said until it ended; `reason`, in words, why it is not `done`."""

    fate: Fate
    output: bytes = b""
    reason: str | None = None


class Cages:
    """Runs children, at most `at_once` at a time; the others wait."""

    def __init__(self, at_once: int, limits: Limits) -> None:
        self._free = asyncio.Semaphore(at_once)
        self._limits = limits

    async def run(self, command: Sequence[str], fed: bytes) -> Ended:
        """Return what `command` makes of `fed`, its standard input; raises CancelledError alone.

        Cancelled or out of time, the child is killed and reaped before this returns.
        """
        async with self._free:
            child = _Child(command, self._limits)
            ending = asyncio.ensure_future(asyncio.to_thread(child.run, fed))
            try:
                async with asyncio.timeout(self._limits.wall_seconds):
                    return await asyncio.shield(ending)
            except TimeoutError:
                child.kill()
                await ending
                return Ended(Fate.LATE, reason=f"took more than {self._limits.wall_seconds:g} s")
            except asyncio.CancelledError:
                child.kill()
                await asyncio.wait({ending})
                raise


class _Child:
    """One child; `run` is for a thread of its own, `kill` for any other thread, at any time."""

    def __init__(self, command: Sequence[str], limits: Limits) -> None:
        self._command = command
        self._limits = limits
        self._lock = Lock()
        self._killed = False
        self._pid: int | None = None

    def run(self, fed: bytes) -> Ended:
        """Start it, confine it, feed it, read it, reap it."""
        try:
            with self._start() as process:
                output = self._exchange(process, fed)
                return self._ended(process.returncode, output)
        except OSError as error:
            return Ended(Fate.FAILED, reason=f"could not be run: {error.strerror}")

    def kill(self) -> None:
        """End it with all that it started, or keep it from being started."""
        with self._lock:
            self._killed = True
            if self._pid is not None:
                _kill_group(self._pid)

    def _start(self) -> Popen[bytes]:
        with self._lock:
            if self._killed:
                raise InterruptedError(0, "it was not wanted any more")
            process = Popen(  # noqa: S603 - no shell, fixed words; what is hostile is its input
                self._command,
                stdin=PIPE,
                stdout=PIPE,
                stderr=DEVNULL,
                cwd="/",
                env={"RAYON_NUM_THREADS": "1"},
                start_new_session=True,
            )
            self._pid = process.pid
            return process

    def _exchange(self, process: Popen[bytes], fed: bytes) -> bytes:
        """Return what it says, up to one byte more than it may; it is reaped then."""
        output = None
        try:
            _confine(process.pid, self._limits)
            output = _talk(process, fed, self._limits.output_bytes + 1)
        finally:
            if output is None or len(output) > self._limits.output_bytes:
                self.kill()
            self._reap(process)
        return output

    def _reap(self, process: Popen[bytes]) -> None:
        # Wait without reaping: until the lock is held, its number stays its own.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            self._pid = None
            _kill_group(process.pid)
            process.wait()

    def _ended(self, returncode: int, output: bytes) -> Ended:
        allowed = self._limits.output_bytes
        if len(output) > allowed:
            return Ended(Fate.CUT, output[:allowed], f"said more than {allowed:,} bytes")
        if returncode == -signal.SIGXCPU:
            cpu_seconds = self._limits.cpu_seconds
            return Ended(Fate.LATE, reason=f"took more than {cpu_seconds} s of processor time")
        if returncode < 0:
            return Ended(Fate.FAILED, reason=f"was ended by {signal.Signals(-returncode).name}")
        if returncode:
            return Ended(Fate.FAILED, reason=f"left with status {returncode}")
        return Ended(Fate.DONE, output)


def _confine(pid: int, limits: Limits) -> None:
    for kind, soft, hard in (
        (RLIMIT_AS, limits.memory_bytes, limits.memory_bytes),
        (RLIMIT_CPU, limits.cpu_seconds, limits.cpu_seconds + 1),
        (RLIMIT_CORE, 0, 0),
        (RLIMIT_FSIZE, 0, 0),
        (RLIMIT_NOFILE, 32, 32),
    ):
        prlimit(pid, kind, (soft, hard))


def _talk(process: Popen[bytes], fed: bytes, most: int) -> bytes:
    # Each child of ours reads all before it answers; one that does not is killed as late.
    told, answer = process.stdin, process.stdout
    if told is None or answer is None:
        raise BrokenPipeError
    with suppress(BrokenPipeError), told:
        told.write(fed)
    return answer.read(most)


def _kill_group(leader: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
