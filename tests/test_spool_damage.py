"""What a spool makes of files that are not what was written, and of disks that fail."""

import asyncio
import errno
import os
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import apsw
import pytest
from disks import a_disk
from events_made import an_event
from projects import Project
from spools import a_spool, copied, emptied, put, readable, set_aside

from logging_service import wire
from logging_service.errors import BackendUnavailable, SettingsError
from logging_service.ports import EventQueue
from logging_service.spool_book import Book
from logging_service.spool_file import SpoolFile
from logging_service.spool_folder import SpoolFolder, SpoolTaken
from logging_service.spool_queue import open_spool_queue
from logging_service.spool_salvage import Salvaged, salvage

GIB = 1 << 30


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: thousands of files are made, and no disk is needed."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        yield Path(folder)


def some_events(number: int, size: int = 20) -> list[bytes]:
    return [an_event(payload={"n": n, "text": "x" * size}) for n in range(number)]


def laid(folder: Path, **contents: bytes) -> Path:
    """Put a file and its log, as these bytes, into a folder with nothing else in it."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for name, content in contents.items():
        (folder / NAMES[name]).write_bytes(content)
    return folder / NAMES["file"]


NAMES = {"file": "queue.sqlite", "log": "queue.sqlite-wal"}


def first_of(spool: SpoolFile) -> list[bytes]:
    delivery = spool.write(lambda book: book.take(10_000))
    return delivery.events if delivery else []


def test_a_log_that_is_cut_anywhere_in_the_last_batch_gives_all_before_it(folder: Path) -> None:
    file, log = (folder / name for name in NAMES.values())
    earlier, last = some_events(3), some_events(1)
    with a_spool(file) as spool:
        put(spool, earlier[:2], earlier[2:])
        whole = log.stat().st_size
        put(spool, last)
        contents = {"file": file.read_bytes(), "log": log.read_bytes()}
    assert len(contents["log"]) - whole >= 4096
    for end in range(whole, len(contents["log"])):
        cut = laid(folder / "cut", file=contents["file"], log=contents["log"][:end])
        with a_spool(cut) as spool:
            assert first_of(spool) == earlier, end
    with a_spool(laid(folder / "cut", **contents)) as spool:
        assert first_of(spool) == earlier + last


def test_a_file_that_is_cut_anywhere_in_the_last_batch_gives_all_before_it(folder: Path) -> None:
    file = folder / "queue.sqlite"
    earlier, last = some_events(3), some_events(4, 1200)
    with a_spool(file) as spool:
        put(spool, earlier[:2], earlier[2:])
    whole = file.stat().st_size
    with a_spool(file) as spool:
        put(spool, last)
    content = file.read_bytes()
    assert len(content) - whole >= 4096
    for end in range(whole, len(content)):
        cut = laid(folder / "cut", file=content[:end])
        with a_spool(cut) as spool:
            assert first_of(spool) == [], end
        (aside,) = set_aside(cut)
        found, _ = readable(aside)
        assert found[: len(earlier)] == earlier, end
        assert set(found) <= {*earlier, *last}


def test_of_a_thousand_flipped_bits_none_is_delivered_or_passed_over(folder: Path) -> None:
    file = folder / "queue.sqlite"
    rows = [some_events(1 + n % 3, size=20 + 97 * (n % 7)) for n in range(20)]
    rows += [some_events(12, size=800), some_events(1, size=9000), some_events(150, size=40)]
    with a_spool(file) as spool:
        put(spool, *rows)
        # Some is done and leaves free pages, some is leased, and a row is shared by both.
        _, leased = (spool.write(lambda book: book.take(5)) for _ in range(2))
        assert leased is not None
        spool.write(lambda book: book.done(str(leased.lease_id)))
    done = set(leased.events)
    row_of = {event: n for n, events in enumerate(rows) for event in events}
    live = row_of.keys() - done
    original = file.read_bytes()
    chosen = random.Random()
    outcomes = Counter[str]()
    for _ in range(1000):
        place, bit = chosen.randrange(len(original)), chosen.randrange(8)
        damaged = bytearray(original)
        damaged[place] ^= 1 << bit
        flipped = copied(file, folder / "flipped")
        flipped.write_bytes(damaged)
        with a_spool(flipped) as spool:
            delivered = emptied(spool)
            counted = spool.read(Book.counts).damaged
        aside = set_aside(flipped)
        assert len(set(delivered)) == len(delivered), (place, bit)
        assert live.issuperset(delivered), (place, bit)
        salvaged = {event for one in aside for event in readable(one)[0]}
        assert row_of.keys() >= salvaged, (place, bit)
        missing = live - salvaged.union(delivered)
        assert len({row_of[event] for event in missing}) <= 1, (place, bit)
        if not aside:
            assert counted == len(missing), (place, bit)
        outcomes["aside" if aside else "counted" if missing else "none missing"] += 1
    assert min(outcomes[name] for name in ("aside", "counted", "none missing")) > 5, outcomes


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "queue.sqlite"


def overwrite(file: Path, place: int, content: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(place)
        opened.write(content)


async def take_all(queue: EventQueue) -> list[bytes]:
    events: list[bytes] = []
    while delivery := await queue.take(10_000, 0):
        events += delivery.events
        await queue.done(delivery)
    return events


@asynccontextmanager
async def a_queue(file: Path, *, exclusive: bool = True) -> AsyncIterator[EventQueue]:
    async with open_spool_queue(file, max_bytes=GIB, exclusive=exclusive) as queue:
        yield queue


async def salvaged(file: Path) -> tuple[Salvaged, list[bytes]]:
    """Salvage a file into a queue of its own and return what came out of that."""
    async with open_spool_queue(None, max_bytes=GIB, exclusive=True) as queue:
        result = await salvage(file, queue, lambda _: None, ttl_seconds=3600)
        return result, await take_all(queue)


class TestDamagedRows:
    async def test_the_events_of_a_damaged_row_that_are_whole_are_delivered(
        self, file: Path
    ) -> None:
        events = some_events(5)
        async with a_queue(file) as queue:
            await queue.put(events)
            await queue.put(some_events(1))
        place = file.read_bytes().index(events[2]) + 100
        overwrite(file, place, b"\0")
        async with a_queue(file) as queue:
            assert (await queue.status()).size == 6
            delivery = await queue.take(5, 0)
            assert delivery is not None
            assert delivery.events[:4] == [events[0], events[1], events[3], events[4]]
            status = await queue.status()
            assert (status.size, status.in_flight, status.damaged) == (0, 5, 1)
            await queue.done(delivery)
            (warning,) = await queue.warnings()
            assert warning == f"{file}: 1 damaged rows are set aside, 1 events are lost"
        assert set_aside(file) == []

    async def test_damage_under_a_lease_is_found_at_its_redelivery(self, file: Path) -> None:
        events = some_events(5)
        async with a_queue(file) as queue:
            await queue.put(events)
            first = await queue.take(3, 0)
        assert first is not None
        content = file.read_bytes()
        for event in (events[1], events[4]):
            overwrite(file, content.index(event) + 100, b"\0")
        async with a_queue(file) as queue:
            again = await queue.take(10, 0)
            assert again is not None
            assert (again.lease_id, again.events) == (first.lease_id, [events[0], events[2]])
            status = await queue.status()
            assert (status.size, status.in_flight, status.damaged) == (1, 2, 2)
            await queue.done(again)
            assert await take_all(queue) == [events[3]]
            (tally,) = await queue.tallies()
            assert tally.accepted == 5

    async def test_a_row_of_which_nothing_is_whole_is_passed_over_and_counted(
        self, file: Path
    ) -> None:
        events = some_events(3)
        async with a_queue(file) as queue:
            await queue.put(events[:2])
            await queue.put(events[2:])
        content = file.read_bytes()
        for event in events[:2]:
            overwrite(file, content.index(event) + 100, b"\0")
        async with a_queue(file) as queue:
            assert await take_all(queue) == events[2:]
            status = await queue.status()
            assert (status.size, status.in_flight, status.damaged) == (0, 0, 2)

    async def test_damaged_rows_that_somebody_forgot_are_warned_of_no_more(
        self, file: Path
    ) -> None:
        async with a_queue(file) as queue:
            await queue.put(some_events(1))
        overwrite(file, file.read_bytes().index(b"xxxx"), b"\0")
        async with a_queue(file) as queue:
            assert await take_all(queue) == []
            with closing(apsw.Connection(str(file))) as connection:
                connection.execute("DELETE FROM damaged")
            assert await queue.warnings() == []
            assert (await queue.status()).damaged == 1


class TestDamagedFiles:
    @pytest.mark.parametrize("content", [b"no database", bytes(8192), b"SQLite format 3\0" * 999])
    async def test_a_file_that_is_none_of_ours_is_set_aside_and_a_new_one_begins(
        self, file: Path, content: bytes
    ) -> None:
        file.write_bytes(content)
        async with a_queue(file) as queue:
            event = an_event()
            await queue.put([event])
            (aside,) = set_aside(file)
            assert aside.read_bytes() == content
            (warning,) = await queue.warnings()
            command = f"logging-service spool salvage {aside}"
            assert warning == f"{aside.name} was set aside as damaged: run `{command}`"
            assert await take_all(queue) == [event]

    async def test_the_name_tells_the_time(self, file: Path) -> None:
        for _ in range(2):
            file.write_bytes(b"no database")
            async with a_queue(file):
                pass
        first, second = set_aside(file)
        assert re.fullmatch(r"queue\.sqlite\.damaged-\d{8}T\d{6}Z(-2)?", second.name)
        assert first != second

    async def test_a_log_without_its_file_is_set_aside(self, file: Path) -> None:
        events = some_events(3)
        async with a_queue(file) as queue:
            await queue.put(events)
            kept = copied(file, file.parent / "kept")
        kept.unlink()
        async with a_queue(kept) as queue:
            assert await take_all(queue) == []
            (warning,) = await queue.warnings()
            assert "salvage" in warning
        (log,) = kept.parent.glob("*.damaged-*-wal")
        _, found = await salvaged(log.with_name(log.name.removesuffix("-wal")))
        assert found == events

    async def test_damage_while_it_runs_is_the_end_of_an_epoch_only(self, file: Path) -> None:
        before, after = some_events(40, size=100_000), some_events(2)
        async with a_queue(file) as queue:
            await queue.put(before)
        async with a_queue(file) as queue:
            (first,) = await queue.tallies()
            # More than SQLite remembers of it.
            overwrite(file, 4096, os.urandom(file.stat().st_size - 4096))
            assert await queue.take(100, 0) is None
            await queue.put(after)
            ended, present = await queue.tallies()
            assert (ended, present.accepted) == (first, 2)
            delivery = await queue.take(10, 0)
            assert delivery is not None
            assert (delivery.events, delivery.epoch) == (after, present.epoch)
            (warning,) = await queue.warnings()
            assert "damaged-" in warning

    async def test_those_who_share_a_damaged_file_set_it_aside_once_and_go_on_together(
        self, file: Path
    ) -> None:
        async with a_queue(file, exclusive=False) as one:
            await one.put(some_events(3))
        async with a_queue(file, exclusive=False) as one, a_queue(file, exclusive=False) as two:
            overwrite(file, 100, os.urandom(file.stat().st_size - 100))
            async with a_queue(file, exclusive=False) as three:
                assert len(set_aside(file)) == 1
                queues = (one, two, three)
                events = some_events(30)
                puts = (queues[n % 3].put([event]) for n, event in enumerate(events))
                await asyncio.gather(*puts)
                for queue in queues:
                    assert (await queue.status()).size == 30
                    assert (await queue.tallies())[-1].accepted == 30
                assert sorted(await take_all(one)) == sorted(events)
        assert len(set_aside(file)) == 1

    async def test_no_put_is_acknowledged_into_a_file_that_was_set_aside(self, file: Path) -> None:
        shares = [[an_event() for _ in range(60)] for _ in range(3)]
        folder = SpoolFolder(file, max_bytes=GIB, exclusive=False)

        async def put_all(events: list[bytes]) -> None:
            async with a_queue(file, exclusive=False) as queue:
                for event in events:
                    await queue.put([event])

        with folder.held():
            putting = asyncio.gather(*map(put_all, shares))
            while not putting.done():
                await asyncio.sleep(0.01)
                with folder.turn():
                    folder.set_aside()
            await putting
        async with a_queue(file) as queue:
            held = await take_all(queue)
        asides = set_aside(file)
        assert len(asides) > 2
        found = [event for aside in asides for event in readable(aside)[0]]
        assert sorted([*held, *found]) == sorted(event for share in shares for event in share)


class TestSalvage:
    async def test_what_is_readable_goes_into_the_queue_and_the_file_is_renamed(
        self, file: Path
    ) -> None:
        events = [*some_events(30), *some_events(5, size=9000), *some_events(1500)]
        async with a_queue(file) as queue:
            await queue.put(events)
        overwrite(file, 0, bytes(100))
        async with a_queue(file) as queue:
            (aside,) = set_aside(file)
            told: list[int] = []
            result = await salvage(aside, queue, told.append, ttl_seconds=3600)
            assert sum(told) == result.file.stat().st_size
            assert result.file.name == aside.name.replace("damaged", "salvaged")
            assert result[:-1] == (2, 1535, 0, 0, 0)
            assert await queue.warnings() == []
            assert await take_all(queue) == events
            with pytest.raises(SettingsError, match="No such file"):
                await salvage(aside, queue, told.append, ttl_seconds=3600)
            again = await salvage(result.file, queue, told.append, ttl_seconds=3600)
            assert (again.events, again.file) == (1535, result.file)

    async def test_what_is_no_spool_is_refused_and_left_alone(self, tmp_path: Path) -> None:
        foreign = tmp_path / "foreign.sqlite"
        with closing(apsw.Connection(str(foreign))) as connection:
            connection.execute("CREATE TABLE t (x); INSERT INTO t VALUES (1)")
        text = tmp_path / "notes.txt"
        text.write_text("nothing of ours")
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        there = sorted(tmp_path.iterdir())
        async with a_queue(tmp_path / "spool" / "queue.sqlite") as queue:
            for file in (foreign, text, pipe):
                with pytest.raises(SettingsError, match=file.name):
                    await salvage(file, queue, lambda _: None, ttl_seconds=3600)
            assert await take_all(queue) == []
        assert {*there} <= {*tmp_path.iterdir()}

    async def test_what_waited_too_long_to_be_stored_counts_as_received_now(
        self, file: Path
    ) -> None:
        now = wire.now_micros()
        ages = (8 * 86400, 60)
        old, fresh = (an_event(received_at=now - age * 1_000_000) for age in ages)
        async with a_queue(file) as queue:
            await queue.put([old, fresh])
        overwrite(file, 0, bytes(100))
        async with a_queue(file) as queue:
            (aside,) = set_aside(file)
            await salvage(aside, queue, lambda _: None, ttl_seconds=7 * 86400)
            renewed, same = await take_all(queue)
        assert same == fresh
        assert wire.received_at(renewed) >= now
        assert wire.lasting(renewed) == wire.lasting(old)

    async def test_what_the_log_held_behind_damage_in_it_is_found_as_well(self, file: Path) -> None:
        batches = [some_events(2) for _ in range(5)]
        async with a_queue(file) as queue:
            for batch in batches:
                await queue.put(batch)
            kept = copied(file, file.parent / "kept")
        log = kept.with_name(f"{kept.name}-wal")
        overwrite(log, log.read_bytes().index(batches[2][1]) + 100, b"\0")
        result, found = await salvaged(kept)
        # Each later batch wrote the damaged page to the log again, and there it is whole.
        assert found == [event for batch in batches for event in batch]
        assert result.damaged == 0

    async def test_rows_that_are_done_or_of_which_old_bytes_are_left_are_not_called_damaged(
        self, file: Path
    ) -> None:
        async with a_queue(file) as queue:
            for n in range(200):
                await queue.put(some_events(1, size=n * 5))
                if n % 3:
                    delivery = await queue.take(1, 0)
                    assert delivery is not None
                    await queue.done(delivery)
            left = (await queue.status()).size
        result, found = await salvaged(file)
        assert (result.damaged, result.lost_rows, result.unreadable_bytes) == (0, 0, 0)
        assert len(found) >= left

    async def test_a_damaged_row_gives_what_is_whole_and_is_counted(self, file: Path) -> None:
        events = some_events(20, size=900)
        async with a_queue(file) as queue:
            await queue.put(events)
        overwrite(file, file.read_bytes().index(events[7][:60]) + 30, b"\0")
        result, found = await salvaged(file)
        assert (result.damaged, found) == (1, events[:7] + events[8:])

    async def test_bytes_that_the_disk_does_not_give_are_counted_and_passed_over(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batches = [some_events(1, size=3000) for _ in range(5)]
        async with a_queue(file) as queue:
            for batch in batches:
                await queue.put(batch)
        bad = file.read_bytes().index(batches[2][0]) // 4096 * 4096
        read = os.pread

        def failing(descriptor: int, size: int, offset: int) -> bytes:
            if offset == bad:
                raise OSError(errno.EIO, "Input/output error")
            return read(descriptor, size, offset)

        monkeypatch.setattr(os, "pread", failing)
        result, found = await salvaged(file)
        assert result.unreadable_bytes == 4096
        assert found == [event for batch in batches if batch != batches[2] for event in batch]

    async def test_while_the_queue_is_full_salvage_waits_for_a_consumer(self, file: Path) -> None:
        events = some_events(2000, size=900)
        async with a_queue(file) as queue:
            await queue.put(events)
        async with open_spool_queue(None, max_bytes=GIB >> 10, exclusive=True) as small:
            salvaging = asyncio.create_task(salvage(file, small, lambda _: None, ttl_seconds=3600))
            found: list[bytes] = []
            while len(found) < len(events):
                found += await take_all(small)
                await asyncio.sleep(0.01)
            assert (await salvaging).events == len(events)
        assert found == events

    async def test_a_file_that_is_in_use_is_not_salvaged(self, file: Path) -> None:
        async with a_queue(file, exclusive=False) as queue:
            with pytest.raises(SpoolTaken, match="in use"):
                await salvage(file, queue, lambda _: None, ttl_seconds=3600)

    def test_the_command_puts_the_events_into_the_queue_that_the_settings_name(
        self, project: Project
    ) -> None:
        file = project.data_dir / "spool" / "queue.sqlite"
        events = some_events(3)
        with a_spool(file) as spool:
            put(spool, events)
        overwrite(file, 0, bytes(100))
        with a_spool(file, exclusive=False):
            pass
        with a_spool(file, exclusive=False) as spool:
            assert emptied(spool) == []
        (aside,) = set_aside(file)
        done = project.run(f"spool salvage {aside}", USE_REDIS_QUEUE="false")
        assert done.returncode == 0, done
        assert "recovered 3 events in 1 rows; 0 are damaged" in done.stdout
        with a_spool(file, exclusive=False) as spool:
            assert emptied(spool) == events
        again = project.run(f"spool salvage {aside}", USE_REDIS_QUEUE="false")
        assert again.returncode == 2
        assert f"{aside} cannot be read: No such file" in again.stderr


FAULTS = {
    "a write that finds no room": ("write", apsw.FullError),
    "a write that fails": ("write", apsw.IOError),
    "an fsync that fails": ("sync", apsw.IOError),
    "an fsync that finds no room": ("sync", apsw.FullError),
}


class TestFailingDisks:
    @pytest.mark.parametrize("after", range(4))
    @pytest.mark.parametrize("fault", FAULTS)
    async def test_a_disk_that_fails_loses_nothing_and_is_used_again_when_it_recovers(
        self, file: Path, fault: str, after: int
    ) -> None:
        what, error = FAULTS[fault]
        acknowledged, unknown = some_events(3), some_events(2)
        with a_disk() as disk:
            async with a_queue(file) as queue:
                await queue.put(acknowledged)
                disk.failing, disk.after = {what: error}, after
                with suppress(BackendUnavailable):
                    # Some calls go well first: how many of a put's there are, SQLite decides.
                    for event in some_events(20):
                        unknown.append(event)
                        await queue.put([event])
                        acknowledged.append(event)
                for _ in range(3):
                    with pytest.raises(BackendUnavailable, match=str(file)):
                        await queue.put(unknown)
                with pytest.raises(BackendUnavailable):
                    await queue.warnings()
                disk.failing = {}
                assert await queue.warnings() == []
                assert len(acknowledged) < 23
                last = an_event()
                await queue.put([last])
            async with a_queue(file) as queue:
                found = await take_all(queue)
        assert found[: len(acknowledged)] == acknowledged
        assert found[-1] == last
        assert set(found) <= {*acknowledged, *unknown, last}
        assert set_aside(file) == []

    async def test_a_disk_that_fails_under_a_consumer_keeps_the_events(self, file: Path) -> None:
        events = some_events(4)
        with a_disk() as disk:
            async with a_queue(file) as queue:
                await queue.put(events)
                disk.failing = {"sync": apsw.IOError}
                with pytest.raises(BackendUnavailable):
                    await queue.take(2, 0)
                disk.failing = {}
            async with a_queue(file) as queue:
                first = await queue.take(2, 0)
                assert first is not None
                disk.failing = {"write": apsw.FullError}
                with pytest.raises(BackendUnavailable):
                    await queue.done(first)
                disk.failing = {}
                await queue.give_back(first, 0)
                assert await take_all(queue) == events

    async def test_a_spool_opens_on_a_disk_that_fails_and_works_once_it_recovers(
        self, file: Path
    ) -> None:
        with a_disk() as disk:
            disk.failing = {"write": apsw.IOError}
            async with a_queue(file) as queue:
                with pytest.raises(BackendUnavailable):
                    await queue.put(some_events(1))
                disk.failing = {}
                events = some_events(2)
                await queue.put(events)
                assert await take_all(queue) == events

    async def test_a_folder_that_nothing_can_be_renamed_in_keeps_the_damaged_file(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file.write_bytes(b"no database")

        def refusing(_file: Path, _name: Path) -> Path:
            raise OSError(errno.EROFS, "Read-only file system")

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", refusing)
            async with a_queue(file) as queue:
                with pytest.raises(BackendUnavailable):
                    await queue.put(some_events(1))
        assert file.read_bytes() == b"no database"
        assert set_aside(file) == []

    async def test_memory_that_runs_out_takes_nothing_from_a_queue_in_memory(self) -> None:
        events = some_events(10)
        async with open_spool_queue(None, max_bytes=GIB, exclusive=True) as queue:
            await queue.put(events)
            before = apsw.hard_heap_limit(apsw.memory_used() + 100_000)
            try:
                with pytest.raises(BackendUnavailable):
                    await queue.put(some_events(1000, size=1000))
            finally:
                apsw.hard_heap_limit(before)
            assert await take_all(queue) == events
            await queue.put(events)
            assert (await queue.tallies())[0].accepted == 20
