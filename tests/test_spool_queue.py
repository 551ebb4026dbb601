"""What a spool promises beyond every queue: across processes, kills, clocks and full disks."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import apsw
import pytest
from disks import a_disk
from events_made import an_event
from servers import ROOT
from spools import set_aside

from logging_service import spool_book, wire
from logging_service.errors import BackendUnavailable, QueueFull, SettingsError
from logging_service.ports import EventQueue
from logging_service.spool_queue import SpoolTaken, open_spool_queue, peek

MIB = 1024 * 1024
GIB = 1024 * MIB


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "spool" / "queue.sqlite"


async def take_all(queue: EventQueue, limit: int = 10_000) -> list[bytes]:
    events: list[bytes] = []
    while delivery := await queue.take(limit, 0):
        events += delivery.events
        await queue.done(delivery)
    return events


async def put_until_full(queue: EventQueue, events: list[bytes]) -> int:
    """Put `events` again and again and return how many were held when there was no more room."""
    held = 0
    with suppress(QueueFull):
        while True:
            await queue.put(events)
            held += len(events)
    return held


def number_of(event: bytes) -> int:
    number: int = json.loads(wire.decode(event).payload)["number"]
    return number


@contextmanager
def a_producer(file: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    script = Path(__file__).with_name("spool_process.py")
    process = subprocess.Popen(
        [sys.executable, str(script), str(file), *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def lines_of(process: subprocess.Popen[str]) -> list[int]:
    assert process.stdout is not None
    return [int(line) for line in process.stdout.read().splitlines()]


class TestProcesses:
    @pytest.mark.parametrize("manner", ["exclusive", "shared"])
    async def test_what_a_killed_process_was_told_is_held_is_there(
        self, file: Path, manner: str
    ) -> None:
        with a_producer(file, manner) as process:
            assert process.stdout is not None
            acknowledged = [int(process.stdout.readline()) for _ in range(60)]
            process.send_signal(signal.SIGKILL)
            acknowledged += lines_of(process)
        async with open_spool_queue(file, max_bytes=GIB, exclusive=True) as queue:
            numbers = [number_of(event) for event in await take_all(queue)]
        # One that was under way may be there as well.
        assert numbers[: len(acknowledged)] == acknowledged
        assert len(numbers) <= len(acknowledged) + 1

    async def test_a_consumer_has_its_turns_beside_producers_that_never_pause(
        self, file: Path
    ) -> None:
        async with open_spool_queue(file, max_bytes=GIB, exclusive=False) as queue:
            with a_producer(file, "shared") as one, a_producer(file, "shared") as two:
                taken = 0
                while taken < 300:
                    delivery = await queue.take(10, 10)
                    assert delivery is not None
                    await queue.done(delivery)
                    taken += len(delivery.events)
                for process in (one, two):
                    process.kill()
                acknowledged = len(lines_of(one)) + len(lines_of(two))
            taken += len(await take_all(queue))
        assert acknowledged <= taken <= acknowledged + 2

    async def test_processes_that_share_a_file_leave_every_event_once(self, file: Path) -> None:
        with a_producer(file, "shared", "100") as one, a_producer(file, "shared", "100") as two:
            async with open_spool_queue(file, max_bytes=GIB, exclusive=False) as queue:
                numbers: list[int] = []
                while len(numbers) < 200:
                    numbers += [number_of(event) for event in await take_all(queue, 7)]
                    await asyncio.sleep(0.01)
                assert await queue.take(10, 0.1) is None
                (tally,) = await queue.tallies()
            assert one.wait(10) == two.wait(10) == 0
        assert sorted(numbers) == sorted([*range(100), *range(100)])
        assert tally.accepted == 200

    async def test_an_owned_file_is_nobody_elses(self, file: Path) -> None:
        with a_producer(file, "exclusive") as process:
            assert process.stdout is not None
            process.stdout.readline()
            for exclusive in (True, False):
                with pytest.raises(SpoolTaken, match=str(file)):
                    async with open_spool_queue(file, max_bytes=GIB, exclusive=exclusive):
                        pass
            holding = peek(file)
            assert holding is not None
            assert holding.held > 0

    async def test_a_shared_file_cannot_be_owned(self, file: Path) -> None:
        async with open_spool_queue(file, max_bytes=GIB, exclusive=False):
            with pytest.raises(SpoolTaken):
                async with open_spool_queue(file, max_bytes=GIB, exclusive=True):
                    pass
        async with open_spool_queue(file, max_bytes=GIB, exclusive=True):
            pass


class TestLeases:
    async def test_the_leases_in_a_file_that_changes_its_owner_are_free(self, file: Path) -> None:
        events = [an_event(payload={"n": n}) for n in range(3)]
        async with open_spool_queue(file, max_bytes=GIB, exclusive=True) as queue:
            await queue.put(events)
            first = await queue.take(2, 0)
        async with open_spool_queue(file, max_bytes=GIB, exclusive=True) as queue:
            again = await queue.take(10, 0)
            assert first is not None
            assert again is not None
            assert (again.lease_id, again.events, again.attempts) == (first.lease_id, events[:2], 2)
            assert await take_all(queue) == events[2:]

    async def test_a_lease_in_a_shared_file_outlives_the_one_who_took_it(self, file: Path) -> None:
        async with open_spool_queue(file, max_bytes=GIB, exclusive=False) as queue:
            await queue.put([an_event()])
            await queue.take(1, 0)
        async with open_spool_queue(file, max_bytes=GIB, exclusive=False) as queue:
            assert await queue.take(1, 0) is None
            assert (await queue.status()).in_flight == 1

    async def test_a_lease_of_another_start_of_the_machine_is_over(
        self, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with open_spool_queue(file, max_bytes=GIB, exclusive=False) as queue:
            await queue.put([an_event()])
            await queue.take(1, 0)
        other = tmp_path / "boot_id"
        other.write_text("6a1f4a52-2c29-4bb2-9f5c-1b0b8a7d1c11\n")
        monkeypatch.setattr(spool_book, "_BOOT_ID", other)
        async with open_spool_queue(file, max_bytes=GIB, exclusive=False) as queue:
            delivery = await queue.take(1, 0)
            assert delivery is not None
            assert delivery.attempts == 2

    @pytest.mark.parametrize("step_seconds", [-86_400, 86_400])
    async def test_a_turned_clock_neither_ends_a_lease_nor_prolongs_it(
        self, file: Path, monkeypatch: pytest.MonkeyPatch, step_seconds: int
    ) -> None:
        wall, wall_ns = time.time, time.time_ns
        async with open_spool_queue(
            file, max_bytes=GIB, exclusive=False, lease_seconds=0.3
        ) as queue:
            await queue.put([an_event()])
            await queue.take(1, 0)
            monkeypatch.setattr(time, "time", lambda: wall() + step_seconds)
            monkeypatch.setattr(time, "time_ns", lambda: wall_ns() + step_seconds * 10**9)
            assert await queue.take(1, 0) is None
            assert await queue.take(1, 5) is not None
            age = (await queue.status()).oldest_age_seconds
            assert age is not None
            assert age >= 0

    async def test_what_is_finished_out_of_order_is_no_damage_to_the_next_owner(
        self, file: Path
    ) -> None:
        async with open_spool_queue(file, max_bytes=GIB, exclusive=True) as queue:
            for n in range(6):
                await queue.put([an_event(payload={"n": n, "m": m}) for m in range(3)])
            deliveries = [await queue.take(4, 0) for _ in range(4)]
            for delivery in (deliveries[1], deliveries[2]):
                assert delivery is not None
                await queue.done(delivery)
        async with open_spool_queue(file, max_bytes=GIB, exclusive=True) as queue:
            assert len(await take_all(queue)) == 10
            assert (await queue.status()).in_flight == 0
        assert set_aside(file) == []


class TestBounds:
    async def test_a_full_spool_refuses_and_takes_again_once_there_is_room(
        self, file: Path
    ) -> None:
        events = [an_event(payload={"text": "x" * 1000}) for _ in range(50)]
        async with open_spool_queue(file, max_bytes=MIB, exclusive=True) as queue:
            held = await put_until_full(queue, events)
            assert held >= 300
            with pytest.raises(QueueFull, match="holds as much as it may"):
                await queue.put(events)
            log = file.with_name(f"{file.name}-wal")
            assert file.stat().st_size + log.stat().st_size <= MIB
            # Smaller ones may still fit: the bound is in bytes.
            await queue.put(events[:1])
            assert len(await take_all(queue)) == held + 1
            await queue.put(events)

    async def test_a_queue_in_memory_is_bounded_as_well(self) -> None:
        events = [an_event(payload={"text": "x" * 1000}) for _ in range(50)]
        async with open_spool_queue(None, max_bytes=MIB, exclusive=True) as queue:
            held = await put_until_full(queue, events)
            assert held >= 600
            with pytest.raises(QueueFull):
                await queue.put(events)
            assert len(await take_all(queue)) == held
            await queue.put(events)

    async def test_a_put_that_there_is_no_room_for_keeps_none_from_those_beside_it(
        self, file: Path
    ) -> None:
        small = [an_event()]
        large = [an_event(payload={"text": "x" * 200_000}) for _ in range(10)]
        async with open_spool_queue(file, max_bytes=MIB, exclusive=True) as queue:
            outcomes = await asyncio.gather(
                *map(queue.put, (small, large, small)), return_exceptions=True
            )
            assert [type(outcome) for outcome in outcomes] == [str, QueueFull, str]
            assert await take_all(queue) == small * 2

    async def test_a_spool_says_that_it_is_nearly_full_and_that_it_is_full(
        self, file: Path
    ) -> None:
        events = [an_event(payload={"text": "x" * 1000}) for _ in range(10)]
        async with open_spool_queue(file, max_bytes=MIB, exclusive=True) as queue:
            assert await queue.warnings() == []
            await put_until_full(queue, events)
            (warning,) = await queue.warnings()
            assert warning.startswith(f"{file}: it is ")
            assert warning.endswith("% full")

    async def test_a_disk_that_is_nearly_full_is_left_alone(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with open_spool_queue(file, max_bytes=GIB, exclusive=True) as queue:
            await queue.put([an_event()])
            disk = os.statvfs(file.parent)
            free = 60 * MIB // disk.f_frsize
            nearly_full = os.statvfs_result((*disk[:4], free, *disk[5:]))
            monkeypatch.setattr(os, "statvfs", lambda _: nearly_full)
            with pytest.raises(QueueFull, match="64 MiB of its disk"):
                await queue.put([an_event()])
            with pytest.raises(QueueFull):
                await queue.warnings()
            assert len(await take_all(queue)) == 1
            monkeypatch.undo()
            await queue.put([an_event()])

    async def test_the_log_does_not_grow_with_the_backlog(self, file: Path) -> None:
        events = [an_event(payload={"text": "x" * 1000}) for _ in range(1000)]
        log = file.with_name(f"{file.name}-wal")
        async with open_spool_queue(file, max_bytes=GIB, exclusive=True) as queue:
            for _ in range(25):
                await queue.put(events)
            assert log.stat().st_size < 8 * MIB
            assert file.stat().st_size > 20 * MIB

    async def test_an_empty_spool_gives_its_disk_back(self, file: Path) -> None:
        events = [an_event(payload={"text": "x" * 1000}) for _ in range(1000)]
        async with open_spool_queue(file, max_bytes=GIB, exclusive=False) as queue:
            for _ in range(5):
                await queue.put(events)
            await take_all(queue)
            log = file.with_name(f"{file.name}-wal")
            until = time.monotonic() + 10
            while file.stat().st_size + log.stat().st_size > MIB and time.monotonic() < until:
                await asyncio.sleep(0.05)
            assert file.stat().st_size + log.stat().st_size < MIB
            assert (await queue.tallies())[0].accepted == 5000

    async def test_nothing_of_a_finished_event_is_left_in_the_files(self, file: Path) -> None:
        async with open_spool_queue(file, max_bytes=GIB, exclusive=True) as queue:
            await queue.put([an_event(payload={"text": "to be gone"})])
            await take_all(queue)
        assert b"to be gone" not in file.read_bytes()
        assert not file.with_name(f"{file.name}-wal").exists()


class TestOpening:
    async def test_a_spool_is_for_its_owner_alone(self, file: Path) -> None:
        async with open_spool_queue(file, max_bytes=GIB, exclusive=False) as queue:
            await queue.put([an_event()])
            assert {path.stat().st_mode & 0o077 for path in file.parent.iterdir()} == {0}
        assert file.parent.stat().st_mode & 0o077 == 0

    async def test_an_old_sqlite_is_refused(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.51.2")
        with pytest.raises(SettingsError, match=r"SQLite 3\.51\.2 .* 3\.51\.3 or newer"):
            async with open_spool_queue(file, max_bytes=GIB, exclusive=True):
                pass

    async def test_another_programs_database_is_refused_and_left_as_it_is(
        self, tmp_path: Path
    ) -> None:
        theirs = tmp_path / "theirs.sqlite"
        connection = apsw.Connection(str(theirs))
        connection.execute("CREATE TABLE letters (id INTEGER PRIMARY KEY, body TEXT)")
        connection.close()
        with pytest.raises(SettingsError, match="another program"):
            async with open_spool_queue(theirs, max_bytes=GIB, exclusive=True):
                pass
        connection = apsw.Connection(str(theirs))
        assert connection.table_exists("main", "letters")
        assert not connection.table_exists("main", "batches")

    async def test_what_cannot_be_a_spool_is_said_in_a_line(self, tmp_path: Path) -> None:
        (tmp_path / "text").write_text("")
        for place in (tmp_path, tmp_path / "text" / "queue.sqlite"):
            with pytest.raises(SettingsError, match=f"^SPOOL_PATH={place} cannot be used: "):
                async with open_spool_queue(place, max_bytes=GIB, exclusive=True):
                    pass

    async def test_a_file_that_somebody_removed_begins_anew(self, file: Path) -> None:
        async with (
            open_spool_queue(file, max_bytes=GIB, exclusive=False) as queue,
            open_spool_queue(file, max_bytes=GIB, exclusive=False) as other,
        ):
            await queue.put([an_event(), an_event()])
            await other.status()
            for path in (file, *file.parent.glob("*-wal"), *file.parent.glob("*-shm")):
                path.unlink()
            event = an_event()
            await queue.put([event])
            assert await take_all(other) == [event]
            assert [tally.accepted for tally in await queue.tallies()] == [2, 1]


class TestGroups:
    async def test_puts_that_wait_are_committed_together(self, file: Path) -> None:
        with a_disk() as disk:
            async with open_spool_queue(file, max_bytes=GIB, exclusive=True) as queue:
                before = disk.syncs
                await asyncio.gather(*(queue.put([an_event()]) for _ in range(500)))
                assert disk.syncs - before <= 50
                assert (await queue.status()).size == 500

    async def test_an_idle_consumer_writes_nothing(self, file: Path) -> None:
        with a_disk() as disk:
            async with open_spool_queue(file, max_bytes=GIB, exclusive=True) as queue:
                before = disk.writes
                for _ in range(50):
                    assert await queue.take(10, 0) is None
                assert disk.writes == before

    async def test_a_put_too_many_is_refused_while_64_mib_wait(self, file: Path) -> None:
        events = [bytes(8 * MIB)]
        async with open_spool_queue(file, max_bytes=GIB, exclusive=True) as queue:
            outcomes = await asyncio.gather(
                *(queue.put(events) for _ in range(9)), return_exceptions=True
            )
            assert [type(outcome) for outcome in outcomes] == [*[str] * 8, BackendUnavailable]

    async def test_nothing_is_put_for_no_events(self, file: Path) -> None:
        async with open_spool_queue(file, max_bytes=GIB, exclusive=True) as queue:
            assert await queue.put([]) == "spooled"
            assert (await queue.tallies())[0].accepted == 0
