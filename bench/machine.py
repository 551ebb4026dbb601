"""The machine that the figures are of, and what else it had to do meanwhile."""

import os
import platform
import time
from contextlib import suppress
from pathlib import Path

import psutil


def cpu_seconds(process: psutil.Process) -> float:
    """Return what a process, its children and those that have ended have used of processors."""
    total = 0.0
    with suppress(psutil.NoSuchProcess):
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += sum(one.cpu_times()[:4])
    return total


class Others:
    """Tells how much of the processors programs other than ours have used since it was made."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._before = self._used()

    def _used(self) -> float:
        times = psutil.cpu_times()
        whole = times.user + times.nice + times.system + times.irq + times.softirq + times.steal
        return float(whole) - cpu_seconds(psutil.Process())

    def share(self) -> float:
        """Return how many processors the others kept busy on average."""
        return max(0.0, self._used() - self._before) / (time.monotonic() - self._began)


def description() -> str:
    """Name the machine, as far as it says what it is."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return (
        f"{os.cpu_count()} processors {model}, {gigabytes:.0f} GB, {platform.system()} "
        f"{platform.release()}, Python {platform.python_version()}"
    )
