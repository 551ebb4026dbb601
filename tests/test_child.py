import asyncio
import sys
import time
from pathlib import Path

import msgspec
import psutil
import pytest

from code_reviewer.child import Cages, Ended, Fate, Limits

LIMITS = Limits(wall_seconds=5.0)


def python(script: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", script]


async def ended(script: str, fed: bytes = b"", **limits: float) -> Ended:
    return await Cages(1, msgspec.structs.replace(LIMITS, **limits)).run(python(script), fed)


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_a_child_answers_what_it_is_fed() -> None:
    script = "import sys; print(sys.stdin.buffer.read()[::-1].decode())"
    assert await ended(script, b"abc") == Ended(Fate.DONE, b"cba\n")


async def test_limits_hold_before_the_first_byte_is_read() -> None:
    script = """
import resource as r, sys
sys.stdin.buffer.read(1)
print(*(r.getrlimit(k) for k in (r.RLIMIT_AS, r.RLIMIT_CPU, r.RLIMIT_CORE, r.RLIMIT_FSIZE)))
"""
    said = await ended(script, b"x")
    assert said.output.decode() == f"({1 << 30}, {1 << 30}) (5, 6) (0, 0) (0, 0)\n"


async def test_a_child_inherits_nothing() -> None:
    script = """
import os
print(sorted(set(os.environ) - {"LC_CTYPE"}), os.getcwd(), sorted(os.listdir("/proc/self/fd")),
      os.getpgid(0) == os.getpid())
"""
    said = await ended(script)
    # Its fourth descriptor is the folder that it lists.
    assert said.output.decode() == "['RAYON_NUM_THREADS'] / ['0', '1', '2', '3'] True\n"


async def test_a_child_that_does_not_end_is_late() -> None:
    said = await ended("import time; time.sleep(60)", wall_seconds=0.2)
    assert said == Ended(Fate.LATE, reason="took more than 0.2 s")


async def test_a_child_that_closes_its_output_and_stays_is_late() -> None:
    said = await ended("import os, time; os.close(1); time.sleep(60)", wall_seconds=0.2)
    assert said.fate is Fate.LATE


async def test_a_child_that_answers_before_it_has_read_all_is_late_and_no_deadlock() -> None:
    script = "import sys; sys.stdout.write('x' * 1000000); sys.stdin.read()"
    assert (await ended(script, b"y" * 262_144, wall_seconds=0.3)).fate is Fate.LATE


async def test_a_child_that_burns_the_processor_is_late() -> None:
    said = await ended("while True: pass", cpu_seconds=1)
    assert said == Ended(Fate.LATE, reason="took more than 1 s of processor time")


async def test_a_child_that_wants_too_much_memory_fails() -> None:
    said = await ended("bytearray(2 << 30)")
    assert said == Ended(Fate.FAILED, reason="left with status 1")


async def test_a_child_that_crashes_fails() -> None:
    said = await ended("import os; os.abort()")
    assert said == Ended(Fate.FAILED, reason="was ended by SIGABRT")


async def test_a_child_that_says_too_much_is_cut() -> None:
    said = await ended("while True: print('x' * 99)", output_bytes=250)
    assert said == Ended(Fate.CUT, (b"x" * 99 + b"\n") * 2 + b"x" * 50, "said more than 250 bytes")


async def test_a_child_that_says_all_that_it_may_is_done() -> None:
    said = await ended("print('x' * 249)", output_bytes=250)
    assert (said.fate, len(said.output)) == (Fate.DONE, 250)


async def test_a_child_that_does_not_read_is_done() -> None:
    assert await ended("print('ok')", b"x" * 262_144) == Ended(Fate.DONE, b"ok\n")


async def test_a_child_cannot_write_a_byte_to_a_file(tmp_path: Path) -> None:
    said = await ended(f"import os; os.write(os.open({str(tmp_path / 'left')!r}, 65), b'x')")
    assert said == Ended(Fate.FAILED, reason="left with status 1")
    assert (tmp_path / "left").read_bytes() == b""


async def test_a_program_that_is_not_there_fails() -> None:
    said = await Cages(1, LIMITS).run(["/nowhere/ruff"], b"")
    assert said == Ended(Fate.FAILED, reason="could not be run: No such file or directory")


async def test_what_a_late_child_started_is_killed_with_it() -> None:
    script = """
import os, subprocess, sys, time
p = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"])
print(p.pid, flush=True)
os.close(1)
time.sleep(60)
"""
    before = children()
    # Long enough for two interpreters to start on a busy machine.
    cages = Cages(1, msgspec.structs.replace(LIMITS, wall_seconds=2.0))
    running = asyncio.ensure_future(cages.run(python(script), b""))
    grandchildren: set[int] = set()
    while not grandchildren and not running.done():
        await asyncio.sleep(0.005)
        grandchildren = {
            grandchild.pid
            for pid in children() - before
            for grandchild in psutil.Process(pid).children()
        }
    assert grandchildren
    async with asyncio.timeout(5):
        assert (await running).fate is Fate.LATE
        while not all(is_gone(pid) for pid in grandchildren):
            await asyncio.sleep(0.001)


async def test_a_cancelled_child_is_dead_and_reaped() -> None:
    before = children()
    running = asyncio.ensure_future(ended("import time; time.sleep(60)"))
    while not (started := children() - before) and not running.done():
        await asyncio.sleep(0.001)
    assert started
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not any(psutil.pid_exists(pid) for pid in started)


@pytest.mark.parametrize("milliseconds", [0, 0.2, 0.5, 1, 2, 4, 8])
async def test_cancelled_at_any_moment_nothing_is_left(milliseconds: float) -> None:
    before = children()
    running = asyncio.ensure_future(ended("import time; time.sleep(60)"))
    await asyncio.sleep(milliseconds / 1_000)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert children() <= before


async def test_no_more_children_run_than_may() -> None:
    cages = Cages(2, LIMITS)
    script = "import time; a = time.monotonic(); time.sleep(0.05); print(a, time.monotonic())"
    said = await asyncio.gather(*(cages.run(python(script), b"") for _ in range(6)))
    spans = sorted(tuple(map(float, each.output.split())) for each in said)
    for start, _ in spans:
        assert sum(other <= start < end for other, end in spans) <= 2
    assert len(spans) == 6


async def test_the_event_loop_goes_on_beside_a_child() -> None:
    running = asyncio.ensure_future(ended("import time; time.sleep(0.1)"))
    turns = 0
    while not running.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 100


async def test_one_that_waits_its_turn_is_cancelled_without_being_started() -> None:
    cages = Cages(1, LIMITS)
    first = asyncio.ensure_future(cages.run(python("import time; time.sleep(60)"), b""))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(cages.run(python("print(1)"), b""))
    await asyncio.sleep(0)
    began = time.monotonic()
    for task in (second, first):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert time.monotonic() - began < 2
    third = await cages.run(python("print(3)"), b"")
    assert third.output == b"3\n"
