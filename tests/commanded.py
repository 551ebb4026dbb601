"""`logging-service <name>`, as a process of its own or, quicker, in the test's."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from io import BytesIO, StringIO, TextIOWrapper

import pytest
from servers import ROOT

from logging_service import cli

Done = subprocess.CompletedProcess[str]


class Command:
    """One command, run in a test's environment and no other."""

    def __init__(self, name: str, environment: Mapping[str, str]) -> None:
        self._name = name
        self._environment = {"PATH": os.environ["PATH"], **environment}

    async def run(self, *arguments: str, answer: str = "", code: int = 0) -> Done:
        """Run it with what a person types, and see that it ends with `code`."""
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "logging_service.cli", self._name, *arguments],
            cwd=ROOT,
            env=self._environment,
            input=answer,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done


class CommandHere:
    """The same without a process: a tenth of the time, for what does not look at one."""

    def __init__(self, name: str, environment: Mapping[str, str]) -> None:
        self._name = name
        self._environment = environment

    async def run(self, *arguments: str, answer: str = "", code: int = 0) -> Done:
        """Run it with what a person types, and see that it ends with `code`."""
        done = await asyncio.to_thread(self._main, arguments, answer)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def _main(self, arguments: tuple[str, ...], answer: str) -> Done:
        out, err, ended = StringIO(), StringIO(), 0
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            for name, value in self._environment.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["logging-service", self._name, *arguments])
            patch.setattr(sys, "stdin", TextIOWrapper(BytesIO(answer.encode()), "utf-8"))
            try:
                cli.main()
            except SystemExit as error:
                ended = int(error.code or 0)
        return subprocess.CompletedProcess(arguments, ended, out.getvalue(), err.getvalue())
