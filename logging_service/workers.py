"""Servers that end in order: one in this process, or several behind one listening socket.

uvicorn's own supervisor lets requests fail when it reloads, takes a stop seconds late, and leaves
workers that hold the port when it is killed itself.
"""

import asyncio
import signal
import socket
import sys
from collections.abc import Collection
from contextlib import suppress
from multiprocessing import get_context
from types import FrameType

import structlog
import uvicorn

from logging_service import metrics
from logging_service.shared_metrics import SharedMemory

_log = structlog.get_logger()
_spawn = get_context("spawn")

_BEAT_SECONDS = 1.0
_SILENT_BEATS = 30
_LONGEST_PAUSE_SECONDS = 2.0
# What is not over by then is ended by force, a little before the grace is.
_WORKERS_SHARE, _FORCE_SHARE = 0.9, 0.95


class Server(uvicorn.Server):
    """A server that ends in order when it is told to, and by force when the grace is over."""

    def __init__(self, config: uvicorn.Config, grace_seconds: float) -> None:
        super().__init__(config)
        self._grace_seconds = grace_seconds
        # The rest of the time is for what was taken to reach the queue, and for letting go of it.
        for_requests = max(grace_seconds / 2, grace_seconds - 1)
        config.timeout_graceful_shutdown = for_requests  # type: ignore[assignment] # any number

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the end; the first time, the process gets its last moment too."""
        if not self.should_exit:
            signal.setitimer(signal.ITIMER_REAL, self._grace_seconds)
        super().handle_exit(sig, frame)


class _WorkerServer(Server):
    """A server that tells its parent that it lives, and ends in order when the parent does not."""

    def __init__(self, config: uvicorn.Config, grace_seconds: float, parent: socket.socket) -> None:
        super().__init__(config, grace_seconds)
        self._parent = parent
        parent.setblocking(False)  # noqa: FBT003 - that is its only argument

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        if self.started:
            asyncio.get_running_loop().add_reader(self._parent, self._parent_ended)
            self._beat()

    def _beat(self) -> None:
        # A parent that stands still reads nothing, and one that is gone is noticed elsewhere.
        with suppress(BlockingIOError, ConnectionError):
            self._parent.send(b".")
        asyncio.get_running_loop().call_later(_BEAT_SECONDS, self._beat)

    def _parent_ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._parent)
        self.handle_exit(signal.SIGTERM, None)


def exit_on(*numbers: signal.Signals) -> None:
    """Let signals end the process with the exit code 0, also those that uvicorn raises again."""
    for number in numbers:
        signal.signal(number, lambda *_: sys.exit(0))


def _work(
    config: uvicorn.Config,
    listener: socket.socket,
    grace_seconds: float,
    parent: socket.socket,
    memory: SharedMemory,
) -> None:
    metrics.share(memory)
    exit_on(signal.SIGINT, signal.SIGTERM)
    # A terminal sends it to the whole group: what it means is for the parent to say.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    config.configure_logging()
    _WorkerServer(config, grace_seconds, parent).run([listener])


class _Worker:
    """A worker's process as its parent sees it; `settled` once it serves or has ended."""

    def __init__(
        self,
        config: uvicorn.Config,
        listener: socket.socket,
        grace_seconds: float,
        memory: SharedMemory,
    ) -> None:
        self.settled = asyncio.Event()
        self.ended = asyncio.Event()
        self.serves = False
        self.silent_beats = 0
        self._loop = asyncio.get_running_loop()
        self._pipe, theirs = socket.socketpair()
        work = (config, listener, grace_seconds, theirs, memory)
        self._process = _spawn.Process(target=_work, args=work)
        with theirs:
            self._process.start()
        self._loop.add_reader(self._pipe, self._heard)
        self._loop.add_reader(self._process.sentinel, self._collect)

    @property
    def pid(self) -> int | None:
        return self._process.pid

    @property
    def code(self) -> int | None:
        return self._process.exitcode

    def _heard(self) -> None:
        heard = b""
        with suppress(OSError):
            heard = self._pipe.recv(4096)
        if heard:
            self.serves = True
            self.silent_beats = 0
            self.settled.set()
        else:
            self._loop.remove_reader(self._pipe)

    def _collect(self) -> None:
        self._loop.remove_reader(self._process.sentinel)
        self._loop.remove_reader(self._pipe)
        self._pipe.close()
        self._process.join()
        self.settled.set()
        self.ended.set()

    def ask_to_end(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


class Workers:
    """Several workers that share a listening socket; one that ends or hangs is replaced.

    SIGTERM and SIGINT end them in order, SIGHUP replaces them one by one: each goes on serving
    until the next one does. They end in order, too, when this process is killed. Where none serves
    and one does not even start, all is over.
    """

    def __init__(
        self, config: uvicorn.Config, listener: socket.socket, count: int, grace_seconds: float
    ) -> None:
        self._config = config
        self._listener = listener
        self._count = count
        self._grace_seconds = grace_seconds
        self._memory = SharedMemory(count)
        self._serving: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._stopping = asyncio.Event()
        self._reloading = asyncio.Event()
        self._code = 0

    def run(self) -> int:
        """Serve until a signal; return the exit code, not 0 after a failure or an end by force."""
        return asyncio.run(self._run())

    async def _run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._reloading.set)
        work = asyncio.create_task(self._serve())
        stop = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
        for task in (work, stop):
            task.cancel()
        failure, _ = await asyncio.gather(work, stop, return_exceptions=True)
        self._listener.close()
        await self._end(self._all)
        if isinstance(failure, Exception):
            raise failure
        return self._code or int(any(worker.serves and worker.code for worker in self._all))

    async def _serve(self) -> None:
        self._serving = [self._start() for _ in range(self._count)]
        async with asyncio.TaskGroup() as tasks:
            for place in range(self._count):
                tasks.create_task(self._keep(place))
            tasks.create_task(self._end_the_silent())
            tasks.create_task(self._reload_when_asked())

    def _start(self) -> _Worker:
        share = _WORKERS_SHARE * self._grace_seconds
        worker = _Worker(self._config, self._listener, share, self._memory)
        self._all = {one for one in self._all if not one.ended.is_set()} | {worker}
        return worker

    async def _keep(self, place: int) -> None:
        pause = 0.0
        while True:
            worker = self._serving[place]
            await worker.ended.wait()
            if self._serving[place] is not worker:
                continue
            code = worker.code or 0
            if code > 0 and not any(one.serves for one in self._serving):
                # Nobody killed it, and nothing says that it will be different the next time.
                self._code = code
                self._stopping.set()
                return
            pause = 0.0 if worker.serves else min(_LONGEST_PAUSE_SECONDS, 0.2 + 2 * pause)
            _log.warning("worker_ended", worker=worker.pid, code=code, pause_seconds=pause)
            self._serving[place] = await self._start_after(pause)

    async def _start_after(self, pause: float) -> _Worker:
        while True:
            await asyncio.sleep(pause)
            try:
                return self._start()
            except OSError as error:
                _log.error("worker_not_started", reason=str(error))
                pause = _LONGEST_PAUSE_SECONDS

    async def _end_the_silent(self) -> None:
        while True:
            # Counted, not timed: while this process stands still it hears nothing either.
            await asyncio.sleep(_BEAT_SECONDS)
            for worker in self._all:
                worker.silent_beats += 1
                if worker.silent_beats == _SILENT_BEATS:
                    _log.error("worker_hangs", worker=worker.pid, seconds=_SILENT_BEATS)
                    worker.kill()

    async def _reload_when_asked(self) -> None:
        while True:
            await self._reloading.wait()
            self._reloading.clear()
            _log.info("reloading", workers=self._count)
            for place in range(self._count):
                if not await self._renew(place):
                    break
            else:
                _log.info("reloaded", workers=self._count)

    async def _renew(self, place: int) -> bool:
        """Put a new worker in the place of an old one; false when the new one does not start."""
        new = await self._start_after(0)
        await new.settled.wait()
        if not new.serves:
            _log.error("reload_given_up", reason="a new worker did not start", code=new.code)
            return False
        old, self._serving[place] = self._serving[place], new
        await self._end([old])
        return True

    async def _end(self, workers: Collection[_Worker]) -> None:
        """End `workers` in order, by force after the grace."""
        for worker in workers:
            worker.ask_to_end()
        with suppress(TimeoutError):
            async with asyncio.timeout(_FORCE_SHARE * self._grace_seconds):
                for worker in workers:
                    await worker.ended.wait()
        for worker in workers:
            if not worker.ended.is_set():
                _log.error("worker_ended_by_force", worker=worker.pid)
                worker.kill()
        for worker in workers:
            await worker.ended.wait()
