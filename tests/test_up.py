"""`logging-service up`, as a process; the services are stand-ins."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request

import pytest
from projects import SERVICES, Project, alive, line_of, soon
from servers import ROOT, health_of, unused_port
from tls_relay import Authority

from logging_service.embedded import postgres_binaries


def test_up_starts_everything_and_says_where(project: Project) -> None:
    up = project.start().ready()
    for name in ("PRODUCER_PORT", "QUERY_SERVICE_PORT", "METRICS_PORT"):
        url = f"http://localhost:{project.variables[name]}"
        assert re.search(rf"{url} +ready", up.log)
        assert health_of(url) == 200
    assert "absent: there is no main.py" in up.log
    assert up.ends(signal.SIGINT) == 0


def test_up_tells_the_gateway_where_the_others_are(project: Project) -> None:
    shutil.copy(ROOT / "tests" / "stand_in.py", project.folder / "main.py")
    port = str(unused_port())
    up = project.start(GATEWAY_PORT=port, QUERY_SERVICE_URL="http://chosen.example").ready()
    assert re.search(rf"gateway +http://localhost:{port} +ready", up.log)
    assert soon(lambda: f"http://localhost:{port}/reviews" in up.log), "how to have code reviewed"
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/environment") as answer:
        told = json.load(answer)
    producer = f"http://localhost:{project.variables['PRODUCER_PORT']}/log"
    assert told["LOGGING_SERVICE_URL"] == producer
    assert told["QUERY_SERVICE_URL"] == "http://chosen.example"
    assert up.ends(signal.SIGINT) == 0
    assert project.left() == []


def test_up_asks_and_shows_services_over_tls(project: Project) -> None:
    # For another name than the one that `up` asks: it knows its own processes.
    file, key = Authority(project.folder, "ours").files(project.folder, "logs.example")
    tls = {"PRODUCER_TLS_CERT": str(file), "PRODUCER_TLS_KEY": str(key)}
    up = project.start(**tls).ready()
    assert re.search(rf"https://localhost:{project.variables['PRODUCER_PORT']} +ready", up.log)
    assert re.search(rf"http://localhost:{project.variables['METRICS_PORT']} +ready", up.log)


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


def test_who_has_the_psql_line_cannot_remove_what_is_stored(project: Project) -> None:
    up = project.start().ready()
    line = next(line for line in up.log.splitlines() if line.startswith("PGPASSFILE="))
    answer = subprocess.run(
        f'{line} -c "DELETE FROM log_events"',
        shell=True,
        env={"PATH": f"{postgres_binaries()}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "permission denied for table log_events" in answer.stderr
    assert project.run("migrate").stdout.startswith("schema "), "by hand it is the owner"


def test_secrets_are_generated_once_and_kept_for_the_owner(project: Project) -> None:
    keys = set()
    for _ in range(2):
        up = project.start().ready()
        keys |= set(re.findall(r"API key: (\S{8,})", up.log))
        assert up.ends(signal.SIGTERM) == 0
    assert keys == {(project.data_dir / "api_key").read_text().strip()}
    for name in ("api_key", "pgpass", "pgpass_admin", "pgpass_owner"):
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


@pytest.mark.parametrize("name", [*SERVICES, "postgres", "valkey"])
def test_what_dies_is_started_again_and_that_is_said(project: Project, name: str) -> None:
    up = project.start().ready()
    child = up.child(name)
    child.kill()
    assert soon(lambda: "starting it again at once" in up.log), up.log
    assert soon(lambda: any(n.startswith(name) for n in up.children()))
    assert up.child(name).pid != child.pid
    assert up.ends(signal.SIGTERM) == 0


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
    owner = (project.data_dir / "pgpass_owner").read_text().strip().rpartition(":")[2]
    more = {name: str(unused_port()) for name in project.variables if name.endswith("_PORT")}
    more["DATABASE_PORT"] = port = project.variables["DATABASE_PORT"]
    place = f"127.0.0.1:{port}/code_reviewer_logs"
    more["DATABASE_OWNER_URL"] = f"postgresql://logging_service_owner:{owner}@{place}"
    second = project.start(
        **more,
        DATA_DIR=str(project.folder / "other"),
        DATABASE_HOST="127.0.0.1",
        DATABASE_PASSWORD=password,
        REDIS_URL=f"redis://127.0.0.1:{project.variables['REDIS_PORT']}/0",
    ).ready()
    assert set(second.children()) == set(SERVICES)
    assert re.search(r"PostgreSQL +named by DATABASE_HOST +answers", second.log)
    assert re.search(r"Redis +named by REDIS_URL +answers", second.log)
    with urllib.request.urlopen(f"http://127.0.0.1:{more['PRODUCER_PORT']}/environment") as answer:
        assert "DATABASE_OWNER_URL" not in json.load(answer), "the services do without it"
    assert second.ends(signal.SIGTERM) == 0
    assert first.ends(signal.SIGTERM) == 0


def test_a_named_owner_that_cannot_be_used_is_one_line(project: Project) -> None:
    first = project.start().ready()
    line = line_of(project.run("up", DATABASE_OWNER_URL="postgresql://owner:a-secret@host/logs"))
    assert line == "DATABASE_OWNER_URL cannot be used: it needs DATABASE_URL or _HOST"
    password = (project.data_dir / "pgpass").read_text().strip().rpartition(":")[2]
    more = {name: str(unused_port()) for name in project.variables if name.endswith("_PORT")}
    place = f"127.0.0.1:{project.variables['DATABASE_PORT']}/code_reviewer_logs"
    more["DATABASE_URL"] = f"postgresql://logging_service_user:{password}@{place}"
    more["DATABASE_OWNER_URL"] = f"postgresql://logging_service_owner:a-secret@{place}"
    line = line_of(project.run("up", **more, DATA_DIR=str(project.folder / "other")))
    assert line.startswith("the server that DATABASE_OWNER_URL names cannot be used: password")
    assert line.endswith("unset DATABASE_OWNER_URL to go on with one role")
    assert "a-secret" not in line
    assert first.ends(signal.SIGTERM) == 0


def test_a_second_up_on_the_same_folder_is_refused(project: Project) -> None:
    up = project.start().ready()
    line = line_of(project.run("up"))
    assert f"another `up`, process {up.process.pid}" in line
    assert health_of(f"http://127.0.0.1:{project.variables['PRODUCER_PORT']}") == 200
