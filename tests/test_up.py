"""`logging-service up` and `clean-data`, as processes; the services are stand-ins."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from servers import ROOT, health_of, unused_port

from logging_service.embedded import postgres_binaries
from logging_service.errors import BackendUnavailable, SettingsError
from logging_service.supervision import keep_running

_SERVICES = ("producer", "consumer", "query_service")
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


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    services = tmp_path / "services"
    services.mkdir()
    for name in _SERVICES:
        shutil.copy(ROOT / "tests" / "stand_in.py", services / f"{name}.py")
    ports = ("DATABASE_PORT", "REDIS_PORT", "PRODUCER_PORT", "QUERY_SERVICE_PORT", "METRICS_PORT")
    variables = {name: str(unused_port()) for name in ports}
    project = Project(tmp_path, {**variables, "DATA_DIR": str(tmp_path / "data")}, [])
    yield project
    for running in project.started:
        if running.process.poll() is None:
            running.process.terminate()
            running.process.wait(15)
    left = project.left()
    for process in left:
        process.kill()
    assert not left


def test_up_starts_everything_and_says_where(project: Project) -> None:
    up = project.start().ready()
    for name in ("PRODUCER_PORT", "QUERY_SERVICE_PORT", "METRICS_PORT"):
        url = f"http://localhost:{project.variables[name]}"
        assert re.search(rf"{url} +ready", up.log)
        assert health_of(url) == 200
    assert "absent: there is no main.py" in up.log
    assert up.ends(signal.SIGINT) == 0


def test_the_psql_line_works_as_printed(project: Project) -> None:
    up = project.start().ready()
    line = next(line for line in up.log.splitlines() if line.startswith("PGPASSFILE="))
    answer = subprocess.run(
        f'{line} -tAc "SELECT COUNT(*) FROM log_events"',
        shell=True,
        env={"PATH": f"{postgres_binaries()}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (answer.stdout, answer.stderr) == ("0\n", "")


def test_secrets_are_generated_once_and_kept_for_the_owner(project: Project) -> None:
    keys = set()
    for _ in range(2):
        up = project.start().ready()
        keys |= set(re.findall(r"API key: (\S{8,})", up.log))
        assert up.ends(signal.SIGTERM) == 0
    assert keys == {(project.data_dir / "api_key").read_text().strip()}
    for name in ("api_key", "pgpass", "pgpass_admin"):
        assert (project.data_dir / name).stat().st_mode & 0o777 == 0o600


def test_the_processes_are_told_where_and_by_which_secrets(project: Project) -> None:
    project.start(API_KEY="a-key-of-mine", DATABASE_PASSWORD="a:password\\").ready()
    port = project.variables["PRODUCER_PORT"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/environment") as answer:
        told = json.load(answer)
    assert told["API_KEY"] == "a-key-of-mine"
    assert (told["DATABASE_HOST"], told["REDIS_HOST"]) == ("127.0.0.1", "127.0.0.1")
    assert told["DATABASE_PASSWORD"] == "a:password\\"
    kept = (project.data_dir / "pgpass").read_text()
    assert kept == "*:*:*:logging_service_user:a\\:password\\\\\n"
    lines = [" ".join(process.cmdline()) for process in project.left()]
    assert not [line for line in lines if "a-key-of-mine" in line or "password" in line]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_everything(project: Project, number: signal.Signals) -> None:
    up = project.start().ready()
    assert {"producer", "consumer", "query_service", "postgres"} <= set(up.children())
    assert up.ends(number) == 0
    assert project.left() == []
    assert "everything is stopped" in up.log


def test_a_signal_during_the_start_stops_everything(project: Project) -> None:
    up = project.start()
    assert soon(lambda: "creating the database" in up.log)
    assert up.ends(signal.SIGINT) == 0
    assert project.left() == []
    project.start().ready()


def test_a_process_that_does_not_stop_is_killed(project: Project) -> None:
    up = project.start(STAND_IN_PRODUCER="stubborn", STAND_IN_CONSUMER="stubborn").ready()
    began = time.monotonic()
    assert up.ends(signal.SIGTERM) == 0
    assert time.monotonic() - began < 10
    assert project.left() == []


def test_a_second_signal_hurries(project: Project) -> None:
    up = project.start(STAND_IN_PRODUCER="stubborn").ready()
    os.killpg(up.process.pid, signal.SIGINT)
    assert soon(lambda: "stopping" in up.log)
    began = time.monotonic()
    assert up.ends(signal.SIGINT) == 0
    assert time.monotonic() - began < 2
    assert project.left() == []
    project.start().ready()


def test_a_worker_that_outlives_its_service_is_ended(project: Project) -> None:
    up = project.start(STAND_IN_PRODUCER="worker").ready()
    assert any("sleep" in process.name() for process in project.left())
    assert up.ends(signal.SIGTERM) == 0
    assert project.left() == []


def test_after_a_killed_up_the_next_one_starts_and_leaves_nothing(project: Project) -> None:
    killed = project.start(STAND_IN_PRODUCER="worker").ready()
    before = project.left()
    assert killed.ends(signal.SIGKILL) == -signal.SIGKILL
    assert {"postgres", "python"} <= {re.sub(r"[\d.]+", "", p.name()) for p in project.left()}
    up = project.start().ready()
    assert not [process for process in before if alive(process)]
    assert "an earlier `up` left running" in up.log
    assert up.ends(signal.SIGTERM) == 0
    assert project.left() == []


@pytest.mark.parametrize("name", [*_SERVICES, "postgres", "valkey"])
def test_what_dies_is_started_again_and_that_is_said(project: Project, name: str) -> None:
    up = project.start().ready()
    child = up.child(name)
    child.kill()
    assert soon(lambda: "starting it again at once" in up.log), up.log
    assert soon(lambda: any(n.startswith(name) for n in up.children()))
    assert up.child(name).pid != child.pid
    assert up.ends(signal.SIGTERM) == 0


def line_of(ended: subprocess.CompletedProcess[str]) -> str:
    """The one line that a start which could not succeed writes."""
    assert ended.returncode == 2, ended
    assert ended.stdout == ""
    [line] = ended.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    "variable", ["DATABASE_PORT", "REDIS_PORT", "PRODUCER_PORT", "QUERY_SERVICE_PORT"]
)
def test_a_port_that_is_taken_is_named(project: Project, variable: str) -> None:
    port = int(project.variables[variable])
    with socket.create_server(("127.0.0.1", port)):
        line = line_of(project.run("up"))
    assert line.startswith(f"{variable}={port} on 127.0.0.1: ")
    assert project.left() == []


def test_two_services_on_one_port_are_named(project: Project) -> None:
    port = project.variables["PRODUCER_PORT"]
    line = line_of(project.run("up", QUERY_SERVICE_PORT=port))
    assert line == f"PRODUCER_PORT and QUERY_SERVICE_PORT are both {port}"


def test_a_metrics_port_that_is_taken_is_a_warning(project: Project) -> None:
    port = int(project.variables["METRICS_PORT"])
    with socket.create_server(("127.0.0.1", port)):
        up = project.start().ready()
        assert f"METRICS_PORT={port} is taken" in up.log
        assert re.search(r"consumer +runs", up.log)
        up.child("consumer").kill()
        assert soon(lambda: "consumer ended with code -9; starting it again at once" in up.log)


def test_a_wrong_variable_is_one_line(project: Project) -> None:
    line = line_of(project.run("up", PRODUCER_PORT="70000"))
    assert line.startswith("PRODUCER_PORT='70000' cannot be used: ")


@pytest.mark.parametrize("command", ["producer", "consumer", "query", "migrate", "clean-data"])
def test_every_command_refuses_a_wrong_variable_in_one_line(project: Project, command: str) -> None:
    line = line_of(project.run(command, LOG_TTL_DAYS="a week"))
    assert "LOG_TTL_DAYS='a week' cannot be used: " in line


@pytest.mark.parametrize(
    "command", ["", "up", "producer", "consumer", "query", "migrate", "clean-data"]
)
def test_every_command_explains_itself(project: Project, command: str) -> None:
    ended = project.run(f"{command} --help")
    assert ended.returncode == 0
    assert f"logging-service {command}" in ended.stdout


def test_a_database_of_another_version_ends_the_start(project: Project) -> None:
    assert project.start().ready().ends(signal.SIGTERM) == 0
    (project.data_dir / "postgres" / "PG_VERSION").write_text("17\n")
    assert "holds a database of PostgreSQL 17" in line_of(project.run("up"))


def test_a_data_folder_that_cannot_be_made_is_one_line(project: Project) -> None:
    (project.folder / "file").touch()
    line = line_of(project.run("up", DATA_DIR=str(project.folder / "file")))
    assert line.startswith("DATA_DIR=")


def test_a_service_that_refuses_its_settings_ends_the_start(project: Project) -> None:
    ended = project.run("up", STAND_IN_QUERY_SERVICE="refuse")
    assert ended.returncode == 2
    assert "QUERY_SERVICE_SETTING=odd cannot be used" in ended.stderr
    assert "starting it again" not in ended.stderr
    assert project.left() == []


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DATABASE_URL", "postgresql://someone:a-secret@127.0.0.1:{port}/logs"),
        ("DATABASE_HOST", "127.0.0.1"),
        ("REDIS_URL", "redis://:a-secret@127.0.0.1:{port}/0"),
        ("REDIS_HOST", "127.0.0.1"),
    ],
)
def test_a_named_server_that_does_not_answer_is_one_line(
    project: Project, variable: str, value: str
) -> None:
    line = line_of(project.run("up", **{variable: value.format(port=unused_port())}))
    assert line.endswith(f"unset {variable} to use the bundled one")
    assert "a-secret" not in line
    assert project.left() == []


def test_a_named_server_that_answers_is_used(project: Project) -> None:
    first = project.start().ready()
    password = (project.data_dir / "pgpass").read_text().strip().rpartition(":")[2]
    more = {name: str(unused_port()) for name in project.variables if name.endswith("_PORT")}
    more["DATABASE_PORT"] = project.variables["DATABASE_PORT"]
    second = project.start(
        **more,
        DATA_DIR=str(project.folder / "other"),
        DATABASE_HOST="127.0.0.1",
        DATABASE_PASSWORD=password,
        REDIS_URL=f"redis://127.0.0.1:{project.variables['REDIS_PORT']}/0",
    ).ready()
    assert set(second.children()) == set(_SERVICES)
    assert re.search(r"PostgreSQL +named by DATABASE_HOST +answers", second.log)
    assert re.search(r"Redis +named by REDIS_URL +answers", second.log)
    assert second.ends(signal.SIGTERM) == 0
    assert first.ends(signal.SIGTERM) == 0


def test_a_second_up_on_the_same_folder_is_refused(project: Project) -> None:
    up = project.start().ready()
    line = line_of(project.run("up"))
    assert f"another `up`, process {up.process.pid}" in line
    assert health_of(f"http://127.0.0.1:{project.variables['PRODUCER_PORT']}") == 200


def test_clean_data_stops_what_runs_and_removes_the_folder(project: Project) -> None:
    up = project.start().ready()
    ended = project.run("clean-data --yes")
    assert ended.returncode == 0, ended
    assert up.ends() == 0
    assert not project.data_dir.exists()
    assert project.left() == []


def test_clean_data_ends_what_a_killed_up_left(project: Project) -> None:
    project.start().ready().ends(signal.SIGKILL)
    assert project.run("clean-data --yes").returncode == 0
    assert project.left() == []
    assert not project.data_dir.exists()


def test_clean_data_asks_first(project: Project) -> None:
    assert project.start().ready().ends(signal.SIGTERM) == 0
    for answer in ("n\n", ""):
        assert project.run("clean-data", answer).returncode == 1
        assert (project.data_dir / "postgres").exists()
    assert project.run("clean-data", "y\n").returncode == 0
    assert not project.data_dir.exists()
    assert project.run("clean-data").returncode == 0


def test_clean_data_leaves_folders_that_are_not_ours(project: Project) -> None:
    theirs = project.folder / "theirs"
    theirs.mkdir()
    (theirs / "letter.txt").touch()
    for folder in (theirs, Path.home(), Path("/")):
        line = line_of(project.run("clean-data --yes", DATA_DIR=str(folder)))
        assert line.startswith(f"DATA_DIR={folder.resolve()} was not made by logging-service")
    assert (theirs / "letter.txt").exists()


class Failing:
    """Something that ends `failures` times before it answers, and then goes on."""

    name = "failing"

    def __init__(self, failures: int, error: Exception) -> None:
        self._left = failures
        self._error = error

    async def start(self) -> None:
        if self._left:
            self._left -= 1
            raise self._error

    async def wait(self) -> int:
        await asyncio.Event().wait()
        return 0

    async def stop(self, _seconds: float) -> None: ...

    def hurry(self) -> None: ...


async def test_pauses_grow_from_nothing() -> None:
    said: list[str] = []
    answers = asyncio.Event()
    failing = Failing(3, BackendUnavailable("ended with code 1"))
    kept = asyncio.create_task(keep_running(failing, said.append, answers, patient=True))
    await asyncio.wait_for(answers.wait(), 10)
    kept.cancel()
    assert [line.removeprefix("failing ended with code 1; ") for line in said] == [
        "starting it again at once",
        "starting it again in 0.2 s",
        "starting it again in 0.4 s",
    ]


@pytest.mark.parametrize(
    ("error", "patient"),
    [(BackendUnavailable(), False), (SettingsError(), False), (SettingsError(), True)],
)
async def test_a_first_start_that_cannot_succeed_is_not_repeated(
    error: Exception,
    patient: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    with pytest.raises(type(error)):
        await keep_running(Failing(1, error), print, asyncio.Event(), patient=patient)
