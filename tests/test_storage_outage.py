"""Reviews are answered, kept and told of while database, disk, logging service or gateway fail."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
from consuming import until
from kept_reviews import (
    PROJECT,
    LogSink,
    a_sink,
    a_start,
    an_end,
    gateway_settings,
    rows,
    store_one,
)
from relay import Relay, before
from reviews_made import a_finding, a_review

from gateway.settings import GatewaySettings
from gateway.stored_reviews import Wanted, canonical
from logging_service.errors import BackendUnavailable
from storage import Storage, open_storage

OWN = Wanted(project=PROJECT)


@pytest.fixture
async def sink() -> AsyncIterator[LogSink]:
    async with a_sink() as opened:
        yield opened


class Outage:
    """A gateway's storage, with a relay before its database."""

    def __init__(self, relay: Relay, settings: GatewaySettings) -> None:
        self.relay = relay
        self.settings = settings

    async def is_over(self, storage: Storage) -> None:
        await self.relay.mend()
        await until(lambda: storage.buffered == 0)


@pytest.fixture
async def outage(services_url: str, tmp_path: Path, sink: LogSink) -> AsyncIterator[Outage]:
    async with before(services_url) as (relay, url):
        yield Outage(relay, gateway_settings(url, tmp_path, sink.url))


@asynccontextmanager
async def connected(outage: Outage) -> AsyncIterator[Storage]:
    async with open_storage(outage.settings) as storage:
        assert await storage.check() is None
        yield storage


async def is_done(database: asyncpg.Connection, review_id: str) -> bool:
    row = (await rows(database)).get(review_id)
    return row is not None and row["event_sent_at"] is not None


def told_of(sink: LogSink, review_id: str) -> list[dict[str, Any]]:
    """Return the different events that tell of the end of a review: a repeated one is the same."""
    sent = [event for event in sink.events if event["payload"]["review_id"] == review_id]
    return [event for number, event in enumerate(sent) if event not in sent[:number]]


async def test_without_a_database_a_review_is_kept_found_told_of_and_stored_later(
    outage: Outage, sink: LogSink, database: asyncpg.Connection
) -> None:
    await outage.relay.cut()
    async with open_storage(outage.settings) as storage:
        starts = [await store_one(storage) for _ in range(5)]
        assert storage.buffered == 5
        with pytest.raises(BackendUnavailable):
            await storage.check()
        found = await storage.find(starts[0].review_id, PROJECT)
        assert found is not None
        assert found.review == an_end(starts[0]).review
        assert await storage.find(starts[0].review_id, "other") is None
        with pytest.raises(BackendUnavailable):
            await storage.find(a_start().review_id, PROJECT)
        page = await storage.page(OWN, limit=3)
        assert page.partial
        assert [one.review_id for one in page.reviews] == [
            start.review_id for start in reversed(starts[2:])
        ]
        cached = await storage.cached(starts[0].content_key, PROJECT)
        assert cached is not None
        with pytest.raises(BackendUnavailable):
            await storage.spent_nanos(starts[0].started_at.date())
        # The logging service does without this database.
        await until(lambda: len(sink.events) == 5)
        await outage.is_over(storage)
        assert list(await rows(database)) == [start.review_id for start in starts]
        for start in starts:
            await until(lambda start=start: is_done(database, start.review_id))  # type: ignore[misc]
            assert len(told_of(sink, start.review_id)) == 1
        assert await storage.warnings() == []


async def test_a_database_that_hangs_is_waited_for_once(outage: Outage) -> None:
    async with connected(outage) as storage:
        outage.relay.is_half_open = True
        began = time.monotonic()
        await store_one(storage)
        assert time.monotonic() - began < 1
        began = time.monotonic()
        for _ in range(20):
            await store_one(storage)
        # Each would wait twice.
        assert time.monotonic() - began < 20 * 0.25
        assert storage.buffered == 21
        outage.relay.is_half_open = False
        outage.relay.reset()
        await until(lambda: storage.buffered == 0)


async def test_servers_that_stand_still_hold_up_nobody(
    outage: Outage, database: asyncpg.Connection
) -> None:
    async with connected(outage) as storage:
        start = a_start()
        await storage.begin(start)
        backends = [
            row["pid"]
            for row in await database.fetch(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
                " AND application_name = 'logging-service gateway'"
            )
        ]
        assert backends
        for pid in backends:
            os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            await storage.finish(start.review_id, an_end(start))
            assert time.monotonic() - began < 1
        finally:
            for pid in backends:
                os.kill(pid, signal.SIGCONT)
        await until(lambda: is_done(database, start.review_id))
        await until(lambda: storage.buffered == 0)


async def test_a_begin_whose_answer_is_lost_is_one_review(
    outage: Outage, sink: LogSink, database: asyncpg.Connection
) -> None:
    async with connected(outage) as storage:
        outage.relay.last_words = b"the answer is lost"
        start = a_start(idempotency_key="k", request_sha256="a", request_id="the answer is lost")
        assert (await storage.begin(start)).kind == "new"
        await outage.relay.cut()
        again = await storage.begin(a_start(idempotency_key="k", request_sha256="a"))
        assert again.kind == "same"
        await storage.finish(start.review_id, an_end(start))
        assert (await rows(database))[start.review_id]["status"] == "running"
        # Another gateway may end it by now: what tells of it waits until that is known.
        await asyncio.sleep(0.1)
        assert sink.events == []
        await outage.relay.mend()
        await until(lambda: is_done(database, start.review_id))
        assert (await rows(database))[start.review_id]["status"] == "completed"
        assert len(told_of(sink, start.review_id)) == 1


async def test_who_was_interrupted_stays_so(
    outage: Outage, sink: LogSink, tmp_path: Path, database: asyncpg.Connection
) -> None:
    async with connected(outage) as storage:
        late, buffered = a_start(), a_start()
        for start in (late, buffered):
            await storage.begin(start)
        await database.execute("UPDATE reviews SET stored_at = now() - interval '9 minutes'")
        elsewhere = outage.settings.model_copy(update={"data_dir": tmp_path / "other"})
        async with open_storage(elsewhere):
            await asyncio.sleep(0.1)
            assert {row["status"] for row in (await rows(database)).values()} == {"running"}
        await database.execute("UPDATE reviews SET stored_at = now() - interval '11 minutes'")
        async with open_storage(elsewhere):
            for start in (late, buffered):
                await until(lambda start=start: is_done(database, start.review_id))  # type: ignore[misc]
        await storage.finish(late.review_id, an_end(late))
        await outage.relay.cut()
        await storage.finish(buffered.review_id, an_end(buffered))
        await outage.is_over(storage)
        for start in (late, buffered):
            assert (await rows(database))[start.review_id]["status"] == "interrupted"
            [event] = told_of(sink, start.review_id)
            assert event["payload"]["success"] is False
            assert event["payload"]["user_id"] == "ada"


async def test_an_erased_review_does_not_come_back(
    outage: Outage, sink: LogSink, database: asyncpg.Connection
) -> None:
    async with connected(outage) as storage:
        starts = [a_start(), a_start()]
        for start in starts:
            await storage.begin(start)
        await database.execute("DELETE FROM reviews")
        await storage.finish(starts[0].review_id, an_end(starts[0]))
        await outage.relay.cut()
        await storage.finish(starts[1].review_id, an_end(starts[1]))
        await outage.is_over(storage)
    assert await rows(database) == {}
    assert sink.events == []


async def test_a_list_has_what_waits_and_what_is_stored(
    outage: Outage, database: asyncpg.Connection
) -> None:
    async with connected(outage) as storage:
        starts = [await store_one(storage) for _ in range(3)]
        running = a_start()
        await storage.begin(running)
        await outage.relay.cut()
        starts.append(await store_one(storage))
        await storage.finish(running.review_id, an_end(running))
        # What is stored can be read now, what waits cannot be moved.
        async with database.transaction():
            await database.execute("LOCK TABLE reviews IN EXCLUSIVE MODE")
            await outage.relay.mend()
            await until(lambda: storage._reach.fault is None)
            page = await storage.page(OWN, limit=2)
            seen = [*page.reviews]
            while page.next_after:
                assert not page.partial
                page = await storage.page(OWN, limit=2, after=page.next_after)
                seen += page.reviews
            assert storage.buffered == 2
            wanted = OWN._replace(status="running")
            assert (await storage.page(wanted, limit=5)).reviews == []
        expected = [starts[3], running, *reversed(starts[:3])]
        assert [one.review_id for one in seen] == [start.review_id for start in expected]
        assert {one.status for one in seen} == {"completed"}
        await until(lambda: storage.buffered == 0)


@contextmanager
def a_gateway_that_dies(
    settings: GatewaySettings, *, begins: int = 1
) -> Iterator[subprocess.Popen[str]]:
    """Run another process that begins reviews and does not end them; its output are their ids."""
    script = (
        "import asyncio, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from kept_reviews import a_start, gateway_settings\n"
        "from storage import open_storage\n"
        "async def main():\n"
        f"    settings = gateway_settings({settings.database_url!r}, sys.argv[1], sys.argv[2])\n"
        "    async with open_storage(settings) as storage:\n"
        f"        for _ in range({begins}):\n"
        "            start = a_start()\n"
        "            await storage.begin(start)\n"
        "            print(start.review_id, flush=True)\n"
        "        await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(settings.data_dir), settings.logging_service_url],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


async def begun_by(process: subprocess.Popen[str], number: int = 1) -> list[str]:
    assert process.stdout is not None
    ids: list[str] = []
    while len(ids) < number:
        line = (await asyncio.to_thread(process.stdout.readline)).strip()
        # The log goes the same way.
        ids += [line] if canonical(line) else []
    return ids


@pytest.mark.parametrize("is_away", [False, True])
async def test_what_a_killed_gateway_left_is_interrupted_at_the_next_start(
    outage: Outage, sink: LogSink, database: asyncpg.Connection, *, is_away: bool
) -> None:
    if is_away:
        await outage.relay.cut()
    with a_gateway_that_dies(outage.settings, begins=2) as process:
        ids = await begun_by(process, 2)
        assert set(await rows(database)) == (set() if is_away else set(ids))
    async with open_storage(outage.settings) as storage:
        if is_away:
            found = await storage.find(ids[0], PROJECT)
            assert found is not None
            assert (found.status, found.review) == ("interrupted", None)
            await outage.relay.mend()
        for review_id in ids:
            await until(lambda one=review_id: is_done(database, one))  # type: ignore[misc]
            assert (await rows(database))[review_id]["status"] == "interrupted"
            [event] = told_of(sink, review_id)
            assert event["event_type"] == "review_completed"
            assert event["payload"]["success"] is False
        assert storage.buffered == 0


async def test_gateways_of_one_folder_share_no_file_and_inherit_from_the_dead(
    outage: Outage, sink: LogSink, database: asyncpg.Connection
) -> None:
    folder = outage.settings.data_path / "gateway"
    async with open_storage(outage.settings) as first:
        start = a_start()
        await first.begin(start)
        await outage.relay.cut()
        with a_gateway_that_dies(outage.settings) as process:
            [left] = await begun_by(process)
            assert len(list(folder.glob("reviews-*.sqlite"))) == 2
            async with open_storage(outage.settings):
                # Whoever lives keeps what is theirs.
                assert len(list(folder.glob("reviews-*.sqlite"))) == 3
        own = await store_one(first)
        assert own.review_id != left
        await outage.relay.mend()
        # Who comes next takes the free place over, and everybody's who has gone.
        async with open_storage(outage.settings):
            await until(lambda: is_done(database, left))
        await first.finish(start.review_id, an_end(start))
        await until(lambda: is_done(database, start.review_id))
        kept = await rows(database)
        assert [kept[one]["status"] for one in (left, start.review_id)] == [
            "interrupted",
            "completed",
        ]
        assert len(told_of(sink, left)) == 1


async def test_an_event_posted_but_not_noted_is_posted_again_as_it_was(
    services_url: str, tmp_path: Path, sink: LogSink, database: asyncpg.Connection
) -> None:
    settings = gateway_settings(services_url, tmp_path, sink.url)
    with a_gateway_that_dies(settings) as process:
        [review_id] = await begun_by(process)
    with a_gateway_that_dies(settings) as process:

        def takes_and_kills(sent: list[dict[str, Any]]) -> tuple[int, bytes]:
            sink.events += sent
            process.kill()
            return 500, b""

        sink.answer = takes_and_kills
        await until(lambda: bool(sink.events))
    assert not await is_done(database, review_id)
    sink.answer = None
    # The lease of the dead would end in half a minute.
    await database.execute("UPDATE reviews SET event_due_at = now() WHERE event_due_at > now()")
    async with open_storage(settings):
        await until(lambda: is_done(database, review_id))
    mine = [event for event in sink.events if event["payload"]["review_id"] == review_id]
    assert len(mine) == 2
    assert mine[0] == mine[1]


async def test_a_folder_that_cannot_be_used_leaves_the_memory(
    outage: Outage, database: asyncpg.Connection
) -> None:
    outage.settings.data_path.mkdir(exist_ok=True)
    (outage.settings.data_path / "gateway").write_text("a file")
    await outage.relay.cut()
    async with open_storage(outage.settings) as storage:
        start = await store_one(storage)
        assert await storage.find(start.review_id, PROJECT) is not None
        await outage.is_over(storage)
        assert await storage.check() is not None
        assert set(await rows(database)) == {start.review_id}


async def test_a_damaged_file_is_set_aside(outage: Outage, database: asyncpg.Connection) -> None:
    folder = outage.settings.data_path / "gateway"
    folder.mkdir(parents=True)
    (folder / "reviews-0.sqlite").write_bytes(b"no database " * 1000)
    await outage.relay.cut()
    async with open_storage(outage.settings) as storage:
        start = await store_one(storage)
        await outage.is_over(storage)
    assert set(await rows(database)) == {start.review_id}
    [aside] = folder.glob("reviews-0.sqlite.damaged-*")
    assert aside.read_bytes().startswith(b"no database")


async def test_what_is_left_at_the_end_is_moved_and_posted_first(
    services_url: str, tmp_path: Path, sink: LogSink, database: asyncpg.Connection
) -> None:
    async with open_storage(gateway_settings(services_url, tmp_path, sink.url)) as storage:
        start = await store_one(storage)
    assert await is_done(database, start.review_id)


async def test_a_dead_logging_service_holds_up_neither_a_review_nor_the_end(
    services_url: str, tmp_path: Path, free_port: int, database: asyncpg.Connection
) -> None:
    began = time.monotonic()
    settings = gateway_settings(services_url, tmp_path, f"http://127.0.0.1:{free_port}/log")
    async with open_storage(settings) as storage:
        starts = [await store_one(storage) for _ in range(10)]
        await until(lambda: bool(storage._completions.fault))
        assert storage.buffered == 0
        assert "wait" in (await storage.warnings())[0]
    assert time.monotonic() - began < 5
    waiting = await database.fetchval("SELECT count(*) FROM reviews WHERE event_due_at IS NOT NULL")
    assert waiting == len(starts)


async def test_a_schema_from_before_is_like_no_database(
    outage: Outage, database: asyncpg.Connection
) -> None:
    await database.execute("ALTER TABLE reviews RENAME TO not_yet")
    await database.execute("UPDATE alembic_version SET version_num = '0011'")
    async with open_storage(outage.settings) as storage:
        start = await store_one(storage)
        with pytest.raises(BackendUnavailable, match="migrate"):
            await storage.check()
        await database.execute("ALTER TABLE not_yet RENAME TO reviews")
        await database.execute("UPDATE alembic_version SET version_num = '0012'")
        await until(lambda: is_done(database, start.review_id))


async def test_a_review_that_the_database_refuses_holds_up_no_other(
    outage: Outage, database: asyncpg.Connection
) -> None:
    await database.execute("ALTER TABLE reviews ADD CHECK (code_length < 100)")
    await outage.relay.cut()
    async with open_storage(outage.settings) as storage:
        long = a_start()
        long = msgspec.structs.replace(
            long, submission=msgspec.structs.replace(long.submission, code="x" * 100)
        )
        await storage.begin(long)
        await storage.finish(long.review_id, an_end(long, a_review(a_finding())))
        good = await store_one(storage)
        await outage.is_over(storage)
    assert set(await rows(database)) == {good.review_id}


async def test_a_logging_service_that_hangs_holds_up_neither_a_review_nor_the_end(
    services_url: str, tmp_path: Path, database: asyncpg.Connection
) -> None:
    writers: list[asyncio.StreamWriter] = []
    hanging = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{hanging.sockets[0].getsockname()[1]}/log"
    began = time.monotonic()
    async with open_storage(gateway_settings(services_url, tmp_path, url)) as storage:
        starts = [await store_one(storage) for _ in range(10)]
        assert storage.buffered == 0
    assert time.monotonic() - began < 4
    hanging.close()
    for writer in writers:
        writer.close()
        await writer.wait_closed()
    waiting = await database.fetchval("SELECT count(*) FROM reviews WHERE event_due_at IS NOT NULL")
    assert waiting == len(starts)


async def test_a_disk_without_room_leaves_the_memory(
    outage: Outage, database: asyncpg.Connection
) -> None:
    await outage.relay.cut()
    async with open_storage(outage.settings) as storage:
        running = a_start()
        await storage.begin(running)
        [(own, _)] = storage._buffers._files.values()
        own._connection.pragma("max_page_count", 1)
        # One that the file knows to run, and one that it does not know.
        large = a_review(a_finding(message="x" * 30_000))
        await storage.finish(running.review_id, an_end(running, large))
        other = a_start()
        await storage.begin(other)
        await storage.finish(other.review_id, an_end(other, large))
        assert storage._buffers.fault is not None
        for start in (running, other):
            found = await storage.find(start.review_id, PROJECT)
            assert found is not None
            assert found.review is not None
        await outage.is_over(storage)
        kept = await rows(database)
        assert [kept[one.review_id]["status"] for one in (running, other)] == ["completed"] * 2
