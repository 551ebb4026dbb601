"""The commands of the manual, word for word, each as a process in the folder shown.

They run against a `make up` of this test's own; only ports are moved, and `$KEY` is `test_key_123`.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest
from servers import ROOT, run_service, unused_port

from logging_service.embedded import postgres_binaries

PORTS = {
    "PRODUCER_PORT": 8001,
    "QUERY_SERVICE_PORT": 8002,
    "GATEWAY_PORT": 8000,
    "METRICS_PORT": 9091,
    "DATABASE_PORT": 5432,
    "REDIS_PORT": 6379,
}


class Pipeline:
    """What `make up` runs; `shell` runs a command of the manual beside it."""

    def __init__(self, folder: Path) -> None:
        self.log_file = folder / "up.log"
        self._ports = {name: str(unused_port()) for name in PORTS}
        self.environment = {
            "PATH": os.pathsep.join(
                (str(Path(sys.executable).parent), os.environ["PATH"], str(postgres_binaries()))
            ),
            "API_KEY": "test_key_123",
            "DATA_DIR": str(folder / "data"),
            "PGPASSFILE": str(folder / "data" / "pgpass"),
            **self._ports,
        }
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                ["make", "up"], cwd=ROOT, env=self.environment, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def shell(self, command: str, folder: str = ".") -> subprocess.CompletedProcess[str]:
        """Run `command` with the ports of this pipeline in the place of the usual ones."""
        for name, usual in PORTS.items():
            command = command.replace(f"localhost:{usual}", f"localhost:{self._ports[name]}")
        command = command.replace("redis-cli", f"redis-cli -p {self._ports['REDIS_PORT']}")
        command = command.replace("psql -h", f"psql -p {self._ports['DATABASE_PORT']} -h")
        return subprocess.run(
            command, shell=True, cwd=ROOT / folder, env=self.environment, check=False,
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    def interrupt(self) -> None:
        """Press Ctrl-C, which reaches the whole group of the terminal: `make` and `up`."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
        self.process.wait(20)

    def redis(self, command: str) -> str:
        address = ("127.0.0.1", int(self._ports["REDIS_PORT"]))
        with socket.create_connection(address, timeout=5) as connection:
            connection.sendall(command.encode() + b"\r\n")
            return connection.recv(1024).decode()


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Pipeline]:
    with TemporaryDirectory(prefix="logging-service-up-") as folder:
        running = Pipeline(Path(folder))
        try:
            until = time.monotonic() + 90
            while "psql" not in running.log:
                assert running.process.poll() is None, running.log
                assert time.monotonic() < until, running.log
                time.sleep(0.1)
            yield running
        finally:
            running.interrupt()


def test_make_up_prints_where_everything_is_and_the_key(pipeline: Pipeline) -> None:
    for name in ("producer", "consumer", "query service", "gateway"):
        assert name in pipeline.log.lower().replace("_", " ")
    assert "test_key_123" in pipeline.log


@pytest.mark.parametrize("path", ["health", "metrics", "queue/status"])
def test_curl_of_the_producers_faces(pipeline: Pipeline, path: str) -> None:
    done = pipeline.shell(f"curl -fsS http://localhost:8001/{path}")
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_curl_says_whether_the_key_is_good(pipeline: Pipeline) -> None:
    command = 'curl -H "X-API-Key: test_key_123" http://localhost:8001/health'
    assert '"valid":true' in pipeline.shell(command).stdout
    wrong = pipeline.shell(command.replace("test_key_123", "another"))
    assert '"status":401' in wrong.stdout


def test_curl_shows_the_keys_rate_limit(pipeline: Pipeline) -> None:
    command = 'curl -H "X-API-Key: test_key_123" -v http://localhost:8001/log'
    done = pipeline.shell(command)
    assert '"limit":1000' in done.stdout
    assert re.search(r"< ratelimit: ", done.stderr, re.IGNORECASE)


def test_an_event_posted_by_curl_is_found_by_curl_psql_and_in_no_queue(pipeline: Pipeline) -> None:
    post = (
        'curl -fsS -H "X-API-Key: test_key_123" -H "Content-Type: application/json" '
        '-d \'{"session_id": 123, "event_type": "review_started", '
        '"payload": {"user_id": "user123"}}\' '
        '"http://localhost:8001/log?wait=stored"'
    )
    assert '"stored"' in pipeline.shell(post).stdout
    found = pipeline.shell('curl -fsS "http://localhost:8002/events?limit=50&page=1"')
    assert '"user_id": "user123"' in found.stdout
    count = pipeline.shell(
        "psql -h localhost -U logging_service_user -d code_reviewer_logs "
        '-c "SELECT COUNT(*) FROM log_events;"'
    )
    assert count.returncode == 0, count.stderr
    assert int(count.stdout.split()[2]) >= 1
    assert pipeline.redis("LLEN log_queue") == ":0\r\n"


def test_a_review_by_curl_is_useful_and_its_events_are_under_one_session(
    pipeline: Pipeline,
) -> None:
    printed = next(line for line in pipeline.log.splitlines() if line.startswith("curl "))
    written = (
        "curl -H 'X-API-Key: test_key_123' -H 'Content-Type: application/json' "
        """-d '{"code": "def f(x): return eval(x)"}' http://localhost:8000/reviews"""
    )
    first, second = (json.loads(pipeline.shell(line).stdout) for line in (written, printed))
    assert (first["verdict"], second["verdict"], second["cached"]) == ("fail", "fail", True)
    asked = f"http://localhost:8002/events?session_id={first['session_id']}"
    until = time.monotonic() + 20
    wanted = {
        "review_started",
        "syntax_analysis_started",
        "syntax_analysis_completed",
        "review_completed",
    }
    kinds: set[str] = set()
    while kinds != wanted:
        assert time.monotonic() < until, kinds
        events = json.loads(pipeline.shell(f'curl -fsS "{asked}"').stdout)["events"]
        kinds = {event["event_type"] for event in events}


def test_redis_cli_counts_what_waits(pipeline: Pipeline) -> None:
    if shutil.which("redis-cli") is None:
        # The bundled server comes without its client: the same question by hand.
        assert pipeline.redis("LLEN log_queue").startswith(":")
        return
    assert pipeline.shell("redis-cli LLEN log_queue").stdout.strip().isdigit()


def test_doctor_finds_nothing_that_does_not_work(pipeline: Pipeline) -> None:
    done = pipeline.shell("logging-service doctor --json")
    told = json.loads(done.stdout)
    bad = [one for one in told["checks"] if one["status"] != "ok"]
    # The client sends to the usual port, which is not that of this test.
    assert {one["check"] for one in bad} <= {"client", "gateway"}, bad
    assert done.returncode == 0
    assert "test_key_123" not in done.stdout


def test_ps_shows_the_consumer_by_its_file(pipeline: Pipeline) -> None:
    done = pipeline.shell("ps aux | grep consumer.py | grep -v grep")
    assert "logging_service/consumer.py" in done.stdout


@pytest.mark.parametrize(
    ("command", "folder"),
    [
        ("python producer.py", "logging_service"),
        ("python consumer.py", "logging_service"),
        ("python query_service.py", "logging_service"),
        ("python main.py", "."),
    ],
)
def test_a_service_runs_from_its_folder_without_being_installed(
    environment: dict[str, str], command: str, folder: str, tmp_path: Path
) -> None:
    # A copy elsewhere: the installed package's path would hide a wrong `sys.path`.
    copy = tmp_path / "copy"
    for package in ("logging_service", "code_reviewer", "gateway"):
        shutil.copytree(ROOT / package, copy / package)
    for file in ("main.py", "storage.py", "logging_helper.py"):
        shutil.copy(ROOT / file, copy / file)
    (copy / "env.template").touch()
    script = command.removeprefix("python ").removesuffix(".py")
    name = "gateway" if script == "main" else script
    with run_service(name, environment, cwd=copy / folder) as service:
        assert service.process.poll() is None
        cwd = Path(f"/proc/{service.pid}/cwd").readlink()
        assert cwd == copy / folder


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("logging-service --help", "migrate"),
        ("logging-service --version", "0.1.0"),
        ("logging-service up --help", "Ctrl-C"),
        ("logging-service producer --help", "--workers"),
        ("logging-service consumer --help", "queue"),
        ("logging-service query --help", "stored"),
        ("logging-service gateway --help", "reviewed"),
        ("logging-service migrate --help", "schema"),
        ("logging-service clean-data --help", "--yes"),
        ("logging-service dead-letters --help", "replay"),
        ("cd logging_service && python producer.py --help", "--workers"),
        ("make", "make up"),
    ],
)
def test_a_command_explains_itself(pipeline: Pipeline, command: str, expected: str) -> None:
    done = pipeline.shell(command)
    assert done.returncode == 0, done.stderr
    assert expected in re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)


@pytest.mark.parametrize(
    "command",
    [
        "python -m pytest tests/test_logging_helper.py",
        # The rest of these two has just run, or is about to, in this very suite.
        "python -m pytest tests/test_producer.py -k TestOneEvent",
        "python -m pytest tests/test_query_service.py -k health",
        "python tests/test_integration.py",
        "python tests/test_load.py",
    ],
)
def test_the_tests_run_one_by_one(pipeline: Pipeline, command: str) -> None:
    done = pipeline.shell(command)
    assert done.returncode == 0, done.stdout + done.stderr


def _environment_of(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


def test_ctrl_c_stops_everything(pipeline: Pipeline) -> None:
    """The last one: it ends what the others use."""
    pipeline.interrupt()
    folder = str(pipeline.log_file.parent / "data")
    left = [one for one in psutil.process_iter() if folder in str(_environment_of(one))]
    assert left == []
    for name in PORTS:
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", int(pipeline.environment[name])), timeout=1)
