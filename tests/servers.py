"""Real servers and real processes for the suite, started on free ports and ended with it."""

import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.error import URLError

import psutil

from bench.servers import unused_port as unused_port  # noqa: PLC0414 - tests take it from here
from logging_service.embedded import Postgres, Valkey, valkey_binary

ROOT = Path(__file__).resolve().parent.parent
_GRACE_SECONDS = 15
# A service that a test has started itself needs no proof of who it is.
_ANY = ssl._create_unverified_context()


def a_postgres(data_dir: Path, *, durable: bool = False) -> Postgres:
    """Return a PostgreSQL that is not started; not `durable` does without the disk's promises."""
    hasty = {} if durable else {"fsync": "off", "full_page_writes": "off"}
    return Postgres(
        data_dir,
        port=unused_port(),
        user="logging_service_user",
        password="a test's password: \\ and 'quotes'",
        database="code_reviewer_logs",
        settings={**hasty, "shared_buffers": "128MB"},
    )


def a_redis(data_dir: Path, *, password: str | None = None) -> Valkey:
    """Return a server of the Redis protocol that is not started: the system's, else ours."""
    installed = shutil.which("redis-server")
    binary = Path(installed) if installed else valkey_binary()
    return Valkey(data_dir, port=unused_port(), password=password, binary=binary)


@dataclass(frozen=True)
class RunningService:
    """A service that answers; `log` is what it wrote so far."""

    url: str
    process: subprocess.Popen[bytes]
    log_file: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8", errors="replace")


_PORT_VARIABLES = {
    "producer": "PRODUCER_PORT",
    "query_service": "QUERY_SERVICE_PORT",
    "consumer": "METRICS_PORT",
    "gateway": "GATEWAY_PORT",
}


def script_of(name: str) -> Path:
    """Return the file of a service."""
    return ROOT / "main.py" if name == "gateway" else ROOT / "logging_service" / f"{name}.py"


@contextmanager
def run_service(
    name: str,
    environment: Mapping[str, str],
    *arguments: str,
    wait_seconds: float = 30,
    cwd: Path | None = None,
) -> Iterator[RunningService]:
    """Run the file of a service with `environment` alone until it has answered.

    `/health` may say 503: that is for the test to judge. The service has to end by SIGTERM.
    """
    variable = _PORT_VARIABLES[name]
    scheme = "https" if variable.replace("PORT", "TLS_CERT") in environment else "http"
    port = environment[variable]
    with TemporaryDirectory() as folder:
        log_file = Path(folder) / f"{name}.log"
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, script_of(name).name, *arguments],
                cwd=cwd or script_of(name).parent,
                env={"PATH": os.environ["PATH"], **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        service = RunningService(f"{scheme}://127.0.0.1:{port}", process, log_file)
        try:
            _wait_until_it_answers(service, wait_seconds)
            yield service
        finally:
            ended = _end(process)
        assert ended, f"{name} did not end by SIGTERM in {_GRACE_SECONDS} s"


def run_tool(
    name: str, folder: Path, *arguments: str, script: str = "run"
) -> subprocess.Popen[str]:
    """Start a tool such as `chaos/run.py` or `bench/query.py`, with `folder` for what it keeps."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / name / f"{script}.py"), *arguments],
        env={"PATH": os.environ["PATH"], "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return the processes whose command or environment names `folder`."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "environ"])
        if str(folder) in f"{process.info['cmdline']}{process.info['environ']}"
    ]


def run_to_end(name: str, environment: Mapping[str, str], *arguments: str) -> tuple[int, str]:
    """Run the file of a service, which ends by itself; return its code and output."""
    done = subprocess.run(
        [sys.executable, str(script_of(name)), *arguments],
        env={"PATH": os.environ["PATH"], **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=30,
        check=False,
        text=True,
    )
    return done.returncode, done.stdout


def _wait_until_it_answers(service: RunningService, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        code = service.process.poll()
        assert code is None, f"ended with code {code}:\n{service.log}"
        if health_of(service.url) is not None:
            return
        time.sleep(0.05)
    raise AssertionError(f"{service.url}/health did not answer in {seconds} s:\n{service.log}")


def health_of(url: str) -> int | None:
    """Return the status of `/health`, None when nothing answers."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5, context=_ANY) as answer:
            return int(answer.status)
    except URLError as error:
        status = getattr(error, "code", None)
        if status is not None:
            error.close()  # type: ignore[attr-defined] # an HTTPError is an open answer
        return status
    except OSError:
        return None


def _end(process: subprocess.Popen[bytes]) -> bool:
    """Ask a process to end, make sure that its group has ended, and say whether it did."""
    process.terminate()
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    else:
        return True
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
