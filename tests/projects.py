"""A project folder in which `logging-service up` runs as a process, with stand-in services."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from servers import ROOT, unused_port

SERVICES = ("producer", "consumer", "query_service")
_LAUNCHER = """
import sys
from pathlib import Path
from logging_service import cli, up
from logging_service.settings import Settings

Settings.model_config["env_file"] = None
start, services = up.up, Path(sys.argv.pop())
up.up = lambda settings: start(settings, services)
sys.argv[1:] = sys.argv[1].split()
cli.main()
"""


def soon(condition: Callable[[], object], seconds: float = 20) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@dataclass
class Project:
    """A folder with stand-in services, and the variables under which `up` runs them."""

    folder: Path
    variables: dict[str, str]
    started: list["RunningUp"]

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    def command(self, words: str) -> list[str]:
        return [sys.executable, "-c", _LAUNCHER, words, str(self.folder / "services")]

    def environment(self, **more: str) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **self.variables, **more}

    def start(self, **more: str) -> "RunningUp":
        log = self.folder / f"up-{len(self.started)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                self.command("up"),
                env=self.environment(**more),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        running = RunningUp(process, log)
        self.started.append(running)
        return running

    def run(self, words: str, answer: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(words),
            env=self.environment(**more),
            input=answer,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def left(self) -> list[psutil.Process]:
        """Every process that speaks of this folder, except ours."""
        found = []
        for process in psutil.process_iter():
            try:
                told = (*process.cmdline(), *process.environ().values(), process.cwd())
            except psutil.Error:
                continue
            if any(str(self.folder) in word for word in told) and alive(process):
                found.append(process)
        return found


@dataclass
class RunningUp:
    process: subprocess.Popen[bytes]
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def ready(self) -> "RunningUp":
        assert soon(lambda: "API key" in self.log or self.process.poll() is not None), self.log
        assert self.process.poll() is None, self.log
        return self

    def children(self) -> dict[str, psutil.Process]:
        """The processes by name; PostgreSQL's and Valkey's first."""
        found = {}
        for child in psutil.Process(self.process.pid).children():
            line = child.cmdline()
            found[Path(line[1] if line[0] == sys.executable else line[0]).stem] = child
        return found

    def child(self, name: str) -> psutil.Process:
        return next(one for found, one in self.children().items() if found.startswith(name))

    def ends(self, number: signal.Signals | None = None) -> int:
        if number is not None:
            os.killpg(self.process.pid, number)  # as a terminal does
        return self.process.wait(15)


def line_of(ended: subprocess.CompletedProcess[str]) -> str:
    """The one line that a start which could not succeed writes."""
    assert ended.returncode == 2, ended
    assert ended.stdout == ""
    [line] = ended.stderr.splitlines()
    return line


@contextmanager
def a_project(folder: Path) -> Iterator[Project]:
    """Yield a project in `folder`; nothing of it may run afterwards."""
    services = folder / "services"
    services.mkdir()
    for name in SERVICES:
        shutil.copy(ROOT / "tests" / "stand_in.py", services / f"{name}.py")
    ports = ("DATABASE_PORT", "REDIS_PORT", "PRODUCER_PORT", "QUERY_SERVICE_PORT", "METRICS_PORT")
    variables = {name: str(unused_port()) for name in ports}
    project = Project(folder, {**variables, "DATA_DIR": str(folder / "data")}, [])
    yield project
    for running in project.started:
        if running.process.poll() is None:
            running.process.terminate()
            running.process.wait(15)
    left = project.left()
    for process in left:
        process.kill()
    assert not left
