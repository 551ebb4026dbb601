"""Numbers that the workers of a service count together, in memory that they share.

Each adds to a place of its own, without a lock and at the cost of adding to a list; whoever is
asked sums up. docs/decisions/0015-metrics.md says why this is not prometheus_client's own way.
"""

import fcntl
import os
import tempfile
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from mmap import mmap
from multiprocessing.reduction import DupFd
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

MAX_SERIES = 4096
_NAMES_BYTES = 512 * 1024
_PLACE_BYTES = 8 * MAX_SERIES
# Where a process says which it is, and where it counts what is past the bounds.
_PID, _SPARE = MAX_SERIES - 2, MAX_SERIES - 1


class SharedMemory:
    """Memory for the numbers of `workers` processes, handed on to each as it is started.

    It is gone with the last of them: there is nothing that a later start could find.
    """

    def __init__(self, workers: int) -> None:
        # Those that are replaced have theirs beside the new ones'.
        self.places = 2 * workers + 2
        self.size = _NAMES_BYTES + self.places * _PLACE_BYTES
        self.fd = _file_without_name()
        os.ftruncate(self.fd, self.size)

    def __getstate__(self) -> tuple[int, int, Any]:
        """Return what a process that is being started needs."""
        return self.places, self.size, DupFd(self.fd)

    def __setstate__(self, state: tuple[int, int, Any]) -> None:
        """Take over what __getstate__ returned."""
        self.places, self.size, duplicate = state
        self.fd = duplicate.detach()


def _file_without_name() -> int:
    # Memory, where the system has such files: a page of a file on a disk makes its writer wait.
    if hasattr(os, "memfd_create"):
        return os.memfd_create("metrics")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


Labels = tuple[str, ...]


class Tallies:
    """The numbers of this process's series and, in shared memory, those of its fellow workers.

    To be used in one thread.
    """

    def __init__(self) -> None:
        self._fd: int | None = None
        self._lay_out(mmap(-1, _NAMES_BYTES + _PLACE_BYTES), places=1)
        self._sit_down(0)

    def join(self, memory: SharedMemory) -> None:
        """Go on in shared memory: from where a worker before this one ended, or anew."""
        self._fd = memory.fd
        self._lay_out(mmap(memory.fd, memory.size), memory.places)
        self._sit_down(next(filter(self._occupy, range(memory.places))))

    def _lay_out(self, memory: mmap, places: int) -> None:
        self._memory = memory
        self._read_to = 8
        self._slots: dict[Labels, int] = {}
        self._by_name: dict[str, dict[Labels, int]] = {}
        # Where the rest of a name is counted, once there is one.
        self._rest: dict[str, int] = {}
        view = memoryview(memory)
        starts = range(_NAMES_BYTES, len(memory), _PLACE_BYTES)
        self._places = [view[at : at + _PLACE_BYTES].cast("d") for at in starts][:places]

    def _sit_down(self, place: int) -> None:
        self._place = place
        # What this process counts: one number for each series, at its slot.
        self.values = self._places[place]
        self.values[_PID] = os.getpid()

    def _occupy(self, place: int) -> bool:
        try:
            self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB, _NAMES_BYTES + place)
        except OSError:
            return False
        return True

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._lock(fcntl.LOCK_EX, 0)
        try:
            yield
        finally:
            self._lock(fcntl.LOCK_UN, 0)

    def slot(self, name: str, labels: Labels = (), most: int = MAX_SERIES) -> int:
        """Return where in `values` a series is; one that is not shown when there are too many.

        All workers together have `most` of a name, and one more with the labels `other`.
        """
        found = self._slots.get((name, *labels), self._rest.get(name))
        return found if found is not None else self._new_slot(name, labels, most)

    def _new_slot(self, name: str, labels: Labels, most: int) -> int:
        series = (name, *labels)
        with self._alone():
            self._read_on()
            is_rest = series not in self._slots and len(self._by_name.get(name, ())) >= most
            if is_rest:
                series = (name, *("other" for _ in labels))
            if series not in self._slots:
                self._write(series)
        slot = self._slots.get(series, _SPARE)
        if is_rest:
            self._rest[name] = slot
        return slot

    def _write(self, series: Labels) -> None:
        line = msgspec.json.encode(series) + b"\n"
        end = self._read_to + len(line)
        if len(self._slots) < _PID and end <= _NAMES_BYTES:
            self._memory[self._read_to : end] = line
            # Last: a worker that is killed before it has written nothing.
            self._memory[:8] = end.to_bytes(8, "little")
            self._read_on()

    def _read_on(self) -> None:
        end = max(8, int.from_bytes(self._memory[:8], "little"))
        for line in self._memory[self._read_to : end].splitlines():
            name, *labels = msgspec.json.decode(line, type=Labels)
            slot = self._slots[name, *labels] = len(self._slots)
            self._by_name.setdefault(name, {})[tuple(labels)] = slot
        self._read_to = end

    def sums(self, name: str) -> dict[Labels, float]:
        """Return what all workers, those that ended included, counted of a name, by labels."""
        with self._alone():
            self._read_on()
        places = [place for place in self._places if place[_PID]]
        slots = self._by_name.get(name, {})
        return {labels: sum(place[slot] for place in places) for labels, slot in slots.items()}

    def of_the_living(self, slot: int) -> dict[int, float]:
        """Return the value that each worker that runs has of a series, by its place from 0."""
        return {
            number: place[slot]
            for number, place in enumerate(self._places)
            if number == self._place or (place[_PID] and self._is_occupied(number))
        }

    def processes(self) -> dict[int, int]:
        """Return the numbers of the processes that run, by their places."""
        return {place: int(pid) for place, pid in self.of_the_living(_PID).items()}

    def _is_occupied(self, place: int) -> bool:
        try:
            self._lock(fcntl.LOCK_SH | fcntl.LOCK_NB, _NAMES_BYTES + place)
        except OSError:
            return True
        self._lock(fcntl.LOCK_UN, _NAMES_BYTES + place)
        return False

    def _lock(self, how: int, byte: int) -> None:
        # The system gives back what a process locked, however that ends.
        if self._fd is not None:
            fcntl.lockf(self._fd, how, 1, byte)


class SharedCounter(Collector):
    """A counter of all workers together, with at most `most` series and one of the rest."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str] = (),
        *,
        tallies: Tallies,
        registry: CollectorRegistry,
        most: int = MAX_SERIES,
    ) -> None:
        self.name = name
        self._documentation = documentation
        self._labels = labels
        self._tallies = tallies
        self._most = most
        registry.register(self)

    def slot(self, *labels: str) -> int:
        """Return where in `Tallies.values` a series is counted; it is shown from now on."""
        return self._tallies.slot(self.name, labels, self._most)

    def inc(self, amount: float = 1) -> None:
        """Count `amount` more; for a counter without labels."""
        self._tallies.values[self.slot()] += amount

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield the sums, as the registry asks for them."""
        if not self._labels:
            self.slot()
        family = CounterMetricFamily(self.name, self._documentation, labels=self._labels)
        for labels, value in self._tallies.sums(self.name).items():
            family.add_metric(labels, value)
        yield family


class SharedGauge(Collector):
    """A value of which each worker has its own; the greatest of those that run is shown."""

    def __init__(
        self, name: str, documentation: str, *, tallies: Tallies, registry: CollectorRegistry
    ) -> None:
        self.name = name
        self._documentation = documentation
        self._tallies = tallies
        registry.register(self)

    def set(self, value: float) -> None:
        """Say how it is in this worker."""
        self._tallies.values[self._tallies.slot(self.name)] = value

    def greatest(self) -> float:
        """Return the greatest value that a worker has which runs."""
        return max(self._tallies.of_the_living(self._tallies.slot(self.name)).values())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the greatest value, as the registry asks for it."""
        yield GaugeMetricFamily(self.name, self._documentation, self.greatest())


class SharedHistogram(Collector):
    """A histogram of all workers together, with the upper `bounds` of its buckets."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str],
        bounds: Sequence[float],
        *,
        tallies: Tallies,
        registry: CollectorRegistry,
    ) -> None:
        self.name = name
        self._documentation = documentation
        self._labels = labels
        self._bounds = tuple(bounds)
        self._parts = [*map(floatToGoString, bounds), "+Inf", "sum"]
        self._tallies = tallies
        registry.register(self)

    def observer(self, *labels: str) -> Callable[[float], None]:
        """Return what counts one value of a series, which is shown from now on."""
        *buckets, total = [self._tallies.slot(self.name, (*labels, part)) for part in self._parts]
        values, bounds = self._tallies.values, self._bounds

        def observe(value: float) -> None:
            values[buckets[bisect_left(bounds, value)]] += 1
            values[total] += value

        return observe

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Yield the sums, as the registry asks for them."""
        family = HistogramMetricFamily(self.name, self._documentation, labels=self._labels)
        sums = self._tallies.sums(self.name)
        for labels in dict.fromkeys(series[:-1] for series in sums):
            *counts, total = [sums.get((*labels, part), 0.0) for part in self._parts]
            buckets = [*zip(self._parts, accumulate(counts), strict=False)]
            family.add_metric(labels, buckets, total)
        yield family
