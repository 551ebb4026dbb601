"""Workers of one port are replaced when they hang, and by newer code when that starts."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from projects import soon
from servers import ROOT

SCRIPT = """
import os
from logging_service import workers
from logging_service.server import serve
from logging_service.settings import Settings

if __name__ == "__main__":
    workers._SILENT_BEATS = 4
    settings = Settings(_env_file=None, producer_port=int(os.environ["PRODUCER_PORT"]))
    serve("app:create", "producer", settings, workers=2)
"""
APP = """
import os
import time

print(f"loaded by {os.getpid()}", flush=True)

def create(workers):
    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            for event in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{event}.complete"})
            return
        if scope["path"] == "/hang":
            time.sleep(1000)
        headers = [(b"content-length", b"3"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"one"})
    return app
"""


class Served:
    """A small application behind two workers, which can be given other code."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder = folder
        self._url = f"http://127.0.0.1:{port}"
        self._log = folder / "log"
        self.change_to(APP)
        (folder / "script.py").write_text(SCRIPT)
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        # A second version in the same second would be taken for the first one's bytecode.
        environment |= {"PRODUCER_PORT": str(port), "PYTHONDONTWRITEBYTECODE": "1"}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(folder / "script.py")],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def change_to(self, code: str) -> None:
        (self._folder / "app.py").write_text(code)

    def reload(self) -> None:
        self.process.send_signal(signal.SIGHUP)

    def answer(self, path: str = "/", seconds: float = 10) -> str:
        try:
            return requests.get(self._url + path, timeout=seconds).text
        except requests.RequestException:
            return ""

    def answers(self) -> set[str]:
        return {self.answer() for _ in range(20)}


@pytest.fixture
def served(tmp_path: Path, free_port: int) -> Iterator[Served]:
    served = Served(tmp_path, free_port)
    try:
        assert soon(lambda: served.log.count("loaded by") == 2), served.log
        assert soon(lambda: "" not in served.answers()), served.log
        yield served
        served.process.terminate()
        assert served.process.wait(20) == 0
    finally:
        if served.process.poll() is None:
            os.killpg(served.process.pid, signal.SIGKILL)
            served.process.wait()


def test_a_reload_brings_new_code(served: Served) -> None:
    served.change_to(APP.replace("one", "two"))
    served.reload()
    assert soon(lambda: "reloaded" in served.log), served.log
    assert served.answers() == {"two"}


def test_code_that_does_not_start_replaces_nothing(served: Served) -> None:
    served.change_to("raise RuntimeError('of no use')")
    served.reload()
    assert soon(lambda: "reload_given_up" in served.log), served.log
    assert served.answers() == {"one"}


def test_a_worker_that_hangs_is_replaced(served: Served) -> None:
    for _ in range(2):
        served.answer("/hang", seconds=0.5)
    assert soon(lambda: "worker_hangs" in served.log, 30), served.log
    assert soon(lambda: "" not in served.answers(), 60), served.log


def test_code_that_does_not_start_at_all_ends_the_parent(tmp_path: Path, free_port: int) -> None:
    served = Served(tmp_path, free_port)
    served.change_to("raise RuntimeError('of no use')")
    assert served.process.wait(30) != 0
