"""A Redis that is away, slow, broken or refusing: every call of the queue ends in time."""

import asyncio
import os
import shutil
import signal
import time
import uuid
from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from events_made import a_delivery, an_event
from redis.asyncio import Redis
from relay import before
from servers import a_redis, unused_port

from logging_service.data_folder import create
from logging_service.embedded import Valkey
from logging_service.errors import BackendUnavailable
from logging_service.redis_address import parse_redis_url
from logging_service.redis_pipe import Pipe
from logging_service.redis_queue import RedisQueue, open_redis_queue

# No call takes longer than two seconds; the rest is for a machine that is busy.
BOUND_SECONDS = 10


def opened(
    url: str, timeout_ms: int = 250, lease_seconds: float = 0.2
) -> AbstractAsyncContextManager[RedisQueue]:
    return open_redis_queue(
        url, name="log_queue", ttl_seconds=60, timeout_ms=timeout_ms, lease_seconds=lease_seconds
    )


@asynccontextmanager
async def a_server(password: str | None = None) -> AsyncIterator[Valkey]:
    with TemporaryDirectory(prefix="logging-service-tests-") as folder:
        create(Path(folder))
        server = a_redis(Path(folder), password=password)
        try:
            await server.start()
            yield server
        finally:
            await server.stop()


@pytest.fixture(scope="module")
async def own_server() -> AsyncIterator[Valkey]:
    async with a_server() as server:
        yield server


@pytest.fixture
async def admin(own_server: Valkey) -> AsyncIterator[Redis]:
    """A client of a server that a test may stop or reconfigure; it holds nothing."""
    async with Redis.from_url(own_server.url) as client:
        await client.flushall()
        yield client


@pytest.fixture
async def queue(own_server: Valkey, admin: Redis) -> AsyncIterator[RedisQueue]:
    assert await admin.dbsize() == 0
    async with opened(own_server.url) as queue:
        yield queue


@pytest.fixture(autouse=True)
async def _no_error_reaches_the_loop() -> AsyncIterator[None]:
    loop, told = asyncio.get_running_loop(), list[dict[str, Any]]()
    kept = loop.get_exception_handler()
    loop.set_exception_handler(lambda _loop, context: told.append(context))
    yield
    loop.set_exception_handler(kept)
    assert not told


def every_call(queue: RedisQueue) -> list[Coroutine[Any, Any, object]]:
    lease = a_delivery()
    return [
        queue.put([an_event()]),
        queue.put_once(a_delivery()),
        queue.take(10, 0),
        queue.extend(lease),
        queue.done(lease),
        queue.give_back(lease, 0),
        queue.status(),
        queue.tallies(),
        queue.warnings(),
    ]


async def expect_unavailable(queue: RedisQueue) -> None:
    """Every call raises BackendUnavailable in time, at once with the others and after them."""
    async with asyncio.timeout(BOUND_SECONDS):
        outcomes = await asyncio.gather(*every_call(queue), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [BackendUnavailable] * len(outcomes)


async def expect_available(queue: RedisQueue) -> None:
    """The very next calls work, and each gets its own answer."""
    event = an_event(payload={"n": str(uuid.uuid4())})
    assert await queue.put([event]) == "queued"
    seen: list[bytes] = []
    while delivery := await queue.take(100_000, 0.3):
        seen += delivery.events
        await queue.done(delivery)
    assert event in seen
    status = await queue.status()
    assert (status.size, status.in_flight) == (0, 0)
    assert await queue.warnings() == []


class TestSilence:
    async def test_a_server_that_hangs_is_unavailable_and_works_when_it_goes_on(
        self, queue: RedisQueue, own_server: Valkey
    ) -> None:
        await expect_available(queue)
        held = an_event(payload={"held": True})
        await queue.put([held])
        os.kill(own_server.pid, signal.SIGSTOP)
        try:
            await expect_unavailable(queue)
        finally:
            os.kill(own_server.pid, signal.SIGCONT)
        # What was asked in vain is done when the server goes on: it may be leased to nobody.
        seen: list[bytes] = []
        async with asyncio.timeout(BOUND_SECONDS):
            while held not in seen:
                delivery = await queue.take(1, 1)
                assert delivery is not None
                seen += delivery.events
                await queue.done(delivery)
        await expect_available(queue)

    async def test_a_server_that_hangs_before_the_first_connection_is_unavailable(
        self, own_server: Valkey
    ) -> None:
        os.kill(own_server.pid, signal.SIGSTOP)
        try:
            async with opened(f"{own_server.url.removesuffix('0')}1") as queue:
                await expect_unavailable(queue)
        finally:
            os.kill(own_server.pid, signal.SIGCONT)

    async def test_a_half_open_connection_is_given_up(self, redis_url: str) -> None:
        async with before(redis_url) as (relay, through), opened(through) as queue:
            await expect_available(queue)
            relay.is_half_open = True
            await expect_unavailable(queue)
            relay.is_half_open = False
            await expect_available(queue)

    async def test_a_late_answer_is_no_other_calls_answer(self, redis_url: str) -> None:
        async with before(redis_url) as (relay, through), opened(through, 100) as queue:
            await queue.put([an_event()] * 5)
            relay.delay_seconds = 0.4
            with pytest.raises(BackendUnavailable):
                await queue.put([an_event()] * 2)
            relay.delay_seconds = 0
            for size in range(1, 20):
                await queue.put([an_event()])
                assert (await queue.status()).size in {5 + size, 7 + size}
                await asyncio.sleep(0.03)
            # What was sent in time was done all the same; the count says so as well.
            ((_, accepted, _),) = await queue.tallies()
            assert accepted == (await queue.status()).size

    async def test_a_caller_who_gives_up_leaves_the_others_their_answers(
        self, redis_url: str
    ) -> None:
        async with before(redis_url) as (relay, through), opened(through, 2000) as queue:
            await queue.put([an_event()] * 3)
            relay.delay_seconds = 0.1
            asking = asyncio.create_task(queue.tallies())
            await asyncio.sleep(0.05)
            asking.cancel()
            assert (await queue.status()).size == 3
            with pytest.raises(asyncio.CancelledError):
                await asking
            relay.is_half_open = True
            asking = asyncio.create_task(queue.tallies())
            await asyncio.sleep(0.05)
            asking.cancel()
            await relay.cut()
            with pytest.raises(asyncio.CancelledError):
                await asking

    async def test_an_answer_that_came_while_the_process_was_busy_is_in_time(
        self, queue: RedisQueue
    ) -> None:
        await queue.put([an_event()])
        await queue.put_once(a_delivery())
        for call in (queue.put([an_event()]), queue.put_once(a_delivery())):
            calling = asyncio.create_task(call)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            time.sleep(0.4)
            assert await calling == "queued"

    async def test_a_large_drain_over_a_slow_line_comes_to_an_end(
        self, redis_url: str, redis: Redis
    ) -> None:
        async with before(redis_url) as (relay, through), opened(through) as queue:
            event = an_event(payload={"text": "x" * 200_000})
            relay.delay_seconds = 0.005
            assert await queue.put_once(a_delivery(*[event] * 40)) == "queued"
            assert await redis.llen("log_queue") == 40

    async def test_a_connection_that_takes_longer_than_a_write_may_is_opened_all_the_same(
        self, redis_url: str
    ) -> None:
        url = f"{redis_url.removesuffix('0')}1"
        async with before(url) as (relay, through), opened(through, 100) as queue:
            relay.delay_seconds = 0.2
            with pytest.raises(BackendUnavailable, match="in time"):
                await queue.put([an_event()])
            await asyncio.sleep(0.6)
            relay.delay_seconds = 0
            assert await queue.put([an_event()]) == "queued"
            assert relay.connections == 1


@asynccontextmanager
async def trickling() -> AsyncIterator[str]:
    """Yield the URL of something whose one answer comes a byte at a time and never ends."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            await reader.read(65536)
            writer.write(b"$1000000\r\n")
            while not writer.is_closing():
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.01)
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"


class TestSlowLines:
    async def test_a_delivery_that_takes_longer_than_the_timeout_is_taken_whole(
        self, redis_url: str, redis: Redis
    ) -> None:
        async with before(redis_url) as (relay, through), opened(through, 250, 60) as queue:
            await queue.put([an_event()])
            held = await queue.take(1, 0)
            assert held is not None
            lease = str(held.lease_id)
            large = [an_event(payload={"text": "x" * 250_000}) for _ in range(12)]
            await redis.rpush("log_queue", *large)
            relay.bytes_a_second = 1_000_000
            taking = asyncio.create_task(queue.take(100, 0))
            while await redis.llen("log_queue"):
                await asyncio.sleep(0.01)
            until = await redis.zscore("{log_queue}:leases", lease) or 0.0
            await asyncio.sleep(0.01)
            await queue.extend(held)
            assert (await redis.zscore("{log_queue}:leases", lease) or 0.0) > until
            assert (await queue.status()).in_flight == 13
            assert not taking.done()
            delivery = await taking
            assert delivery is not None
            assert (delivery.events, delivery.attempts) == (large, 1)
            assert relay.connections == 3

    async def test_a_delivery_that_ceases_to_arrive_is_given_up_and_comes_again(
        self, redis_url: str, redis: Redis
    ) -> None:
        async with before(redis_url) as (relay, through), opened(through) as queue:
            large = [an_event(payload={"text": "x" * 250_000}) for _ in range(12)]
            await redis.rpush("log_queue", *large)
            relay.bytes_a_second = 1_000_000
            taking = asyncio.create_task(queue.take(100, 0))
            while await redis.llen("log_queue"):
                await asyncio.sleep(0.01)
            # A part is here by then.
            await asyncio.sleep(0.3)
            relay.is_half_open = True
            async with asyncio.timeout(BOUND_SECONDS):
                with pytest.raises(BackendUnavailable, match="in time"):
                    await taking
            relay.is_half_open, relay.bytes_a_second = False, None
            delivery = await queue.take(100, 2)
            assert delivery is not None
            assert (delivery.events, delivery.attempts) == (large, 2)

    async def test_after_a_take_that_failed_less_is_asked_for_and_then_more_again(
        self, redis_url: str, redis: Redis
    ) -> None:
        async with before(redis_url) as (relay, through), opened(through, 250, 60) as queue:
            relay.is_half_open = True
            with pytest.raises(BackendUnavailable):
                await queue.take(100, 0)
            relay.is_half_open = False
            event = an_event(payload={"text": "x" * 200_000})
            for _ in range(10):
                await redis.rpush("log_queue", *[event] * 10)
            taken: list[int] = []
            while delivery := await queue.take(1000, 0):
                taken.append(len(delivery.events))
            assert sum(taken) == 100
            # 2 MiB, 4 MiB, 8 MiB and the rest, each with the event that exceeds it.
            assert taken == [11, 21, 42, 26]

    async def test_an_answer_that_trickles_is_given_up_in_the_end(self) -> None:
        async with trickling() as url, asyncio.timeout(BOUND_SECONDS):
            pipe = Pipe(parse_redis_url(url), 0.1, arriving_seconds=0.5)
            with pytest.raises(BackendUnavailable, match="in time"):
                await pipe.call(b"PING\r\n", 1)
            pipe.close()

    async def test_a_write_and_a_question_wait_for_no_answer_that_trickles(self) -> None:
        async with trickling() as url, opened(url) as queue, asyncio.timeout(BOUND_SECONDS):
            for call in (queue.put([an_event()]), queue.put_once(a_delivery()), queue.status()):
                with pytest.raises(BackendUnavailable, match="in time"):
                    await call

    async def test_a_drain_over_a_line_that_takes_a_second_for_two_mib_comes_to_an_end(
        self, redis_url: str, redis: Redis
    ) -> None:
        async with before(redis_url) as (relay, through), opened(through) as queue:
            relay.bytes_a_second = 2 * 1024 * 1024
            event = an_event(payload={"text": "x" * 200_000})
            assert await queue.put_once(a_delivery(*[event] * 40)) == "queued"
            assert await redis.llen("log_queue") == 40


class TestBreaks:
    async def test_a_server_that_resets_is_unavailable_until_it_is_back(
        self, redis_url: str
    ) -> None:
        async with before(redis_url) as (relay, through), opened(through) as queue:
            await expect_available(queue)
            await relay.cut()
            await expect_unavailable(queue)
            await relay.mend()
            await expect_available(queue)

    async def test_a_write_is_acknowledged_only_by_the_whole_of_its_answer(
        self, redis_url: str, redis: Redis
    ) -> None:
        async with before(redis_url) as (relay, through):
            sent, length = 0, 0
            while True:
                async with opened(through, 2000) as queue:
                    relay.answer_bytes = length
                    sent += 1
                    try:
                        await queue.put([an_event()])
                    except BackendUnavailable:
                        length += 1
                        continue
                    break
        answers = b"+OK\r\n" + b"+QUEUED\r\n" * 5 + b"*5\r\n:1\r\n:1\r\n:1\r\n$36\r\n"
        assert len(answers) + 36 + len("\r\n:1\r\n") <= length
        assert await redis.llen("log_queue") == sent

    async def test_a_write_whose_answer_is_lost_is_not_acknowledged(
        self, redis_url: str, redis: Redis
    ) -> None:
        async with before(redis_url) as (relay, through), opened(through) as queue:
            relay.loses_answers = True
            with pytest.raises(BackendUnavailable):
                await queue.put([an_event()])
            delivery = a_delivery()
            with pytest.raises(BackendUnavailable):
                await queue.put_once(delivery)
            relay.loses_answers = False
            await queue.put_once(delivery)
            assert await redis.llen("log_queue") == 2
            ((_, accepted, _),) = await queue.tallies()
            assert accepted == 2

    async def test_a_delivery_whose_answer_is_lost_comes_again(self, redis_url: str) -> None:
        async with before(redis_url) as (relay, through), opened(through) as queue:
            event = an_event()
            await queue.put([event])
            relay.answer_bytes = 20
            with pytest.raises(BackendUnavailable):
                await queue.take(10, 0)
            relay.answer_bytes = None
            delivery = await queue.take(10, 2)
            assert delivery is not None
            assert (delivery.events, delivery.attempts) == ([event], 2)

    async def test_a_server_that_was_killed_is_found_again_with_what_it_acknowledged(self) -> None:
        async with a_server() as server, opened(server.url) as queue:
            held = [an_event(payload={"n": n}) for n in range(20)]
            await queue.put(held)
            before_it = await queue.tallies()
            os.kill(server.pid, signal.SIGKILL)
            await server.wait()
            await expect_unavailable(queue)
            await server.start()
            assert await queue.tallies() == before_it
            delivery = await queue.take(100, 2)
            assert delivery is not None
            assert delivery.events == held


@asynccontextmanager
async def answering(answer: bytes, *, again: int = 1) -> AsyncIterator[str]:
    """Yield the URL of something that answers whatever it hears with `answer`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.read(65536):
                for _ in range(again):
                    writer.write(answer)
                    await writer.drain()
        except OSError:
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", unused_port())
    async with server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"


class TestNonsense:
    @pytest.mark.parametrize(
        "answer",
        [
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            b"\x00\xff\x16\x03",
            b"\r\n",
            b"$-7\r\n",
            b"*1\r\n" * 30 + b"!",
            b"*5000000000\r\n",
            b"$abc\r\n",
        ],
    )
    async def test_what_is_no_answer_fails_every_call_and_nothing_else(self, answer: bytes) -> None:
        async with answering(answer) as url, opened(url) as queue:
            await expect_unavailable(queue)

    @pytest.mark.parametrize(
        "answer",
        [
            b"+OK\r\n",
            b":1\r\n",
            b"$-1\r\n",
            b"*-1\r\n",
            b"_\r\n",
            b"#f\r\n",
            b"#t\r\n",
            b",1.5\r\n",
            b"%1\r\n+a\r\n:1\r\n",
            b">1\r\n+a\r\n",
            b"*1\r\n$1\r\na\r\n",
            b"*4\r\n$1\r\na\r\n:1\r\n$1\r\nb\r\n:1\r\n",
        ],
    )
    async def test_an_answer_to_another_question_acknowledges_nothing(self, answer: bytes) -> None:
        for replies in (1, 8):
            async with answering(answer * replies) as url, opened(url) as queue:
                for call in (queue.put([an_event()]), queue.put_once(a_delivery())):
                    with pytest.raises(BackendUnavailable):
                        await call

    @pytest.mark.parametrize("answer", [b"+OK\r\n", b":1\r\n", b"#t\r\n", b"*1\r\n:7\r\n"])
    async def test_an_answer_that_makes_no_sense_is_no_delivery_and_no_number(
        self, answer: bytes
    ) -> None:
        async with answering(answer) as url, opened(url) as queue:
            for call in (queue.take(1, 0), queue.status(), queue.tallies()):
                with pytest.raises(BackendUnavailable):
                    await call
        async with answering(answer * 6) as url, opened(url) as queue:
            with pytest.raises(BackendUnavailable):
                await queue.warnings()

    async def test_an_answer_without_end_is_given_up(self) -> None:
        beginning = b"$" + b"9" * 11 + b"\r\n"
        async with (
            answering(beginning + b"x" * 1_048_576, again=1000) as url,
            opened(url, 60_000) as queue,
            asyncio.timeout(BOUND_SECONDS),
        ):
            with pytest.raises(BackendUnavailable, match="too large"):
                await queue.put([an_event()])


class TestRefusals:
    @pytest.mark.parametrize(
        "error",
        [
            b"-LOADING Redis is loading the dataset in memory\r\n",
            b"-MISCONF Errors writing to the AOF file: No space left on device\r\n",
            b"-NOAUTH Authentication required.\r\n",
            b"-BUSY Redis is busy running a script.\r\n",
            b"-CLUSTERDOWN Hash slot not served\r\n",
        ],
    )
    async def test_an_error_is_unavailability_and_is_said(self, error: bytes) -> None:
        async with answering(error * 40) as url, opened(url) as queue:
            await expect_unavailable(queue)
        async with answering(error * 7) as url, opened(url) as queue:
            with pytest.raises(BackendUnavailable, match=error.split()[0][1:].decode()):
                await queue.put([an_event()])

    async def test_what_waits_leaves_a_server_without_memory(
        self, queue: RedisQueue, admin: Redis
    ) -> None:
        held = [an_event(payload={"n": n}) for n in range(10)]
        await queue.put(held)
        await admin.config_set("maxmemory", "1")
        try:
            with pytest.raises(BackendUnavailable, match="OOM"):
                await queue.put([an_event()])
            with pytest.raises(BackendUnavailable, match="OOM"):
                await queue.put_once(a_delivery())
            with pytest.raises(BackendUnavailable, match="memory"):
                await queue.warnings()
            delivery = await queue.take(5, 0)
            assert delivery is not None
            await queue.extend(delivery)
            await queue.give_back(delivery, 0)
            again = await queue.take(5, 0)
            assert again is not None
            await queue.done(again)
            rest = await queue.take(100, 0)
            assert rest is not None
            assert again.events + rest.events == held
            await queue.done(rest)
            ((_, accepted, _),) = await queue.tallies()
            assert accepted == 10
        finally:
            await admin.config_set("maxmemory", "0")
        await expect_available(queue)

    async def test_a_demoted_master_is_left_also_by_who_only_waits(
        self, queue: RedisQueue, admin: Redis
    ) -> None:
        await expect_available(queue)
        await admin.replicaof("127.0.0.1", str(unused_port()))
        try:
            before_it = {one["id"] for one in await admin.client_list()}
            for call in (queue.take(10, 0), queue.put([an_event()]), queue.put_once(a_delivery())):
                with pytest.raises(BackendUnavailable, match="READONLY"):
                    await call
            with pytest.raises(BackendUnavailable, match="replica"):
                await queue.warnings()
        finally:
            await admin.replicaof("NO", "ONE")
        await expect_available(queue)
        kept = before_it & {one["id"] for one in await admin.client_list()}
        assert kept == {str(await admin.client_id())}

    async def test_a_server_that_cannot_save_is_unavailable(self) -> None:
        async with (
            a_server() as server,
            Redis.from_url(server.url) as admin,
            opened(server.url) as queue,
        ):
            await admin.config_set("save", "1 1")
            shutil.rmtree(server.folder)
            await admin.bgsave()
            while (await admin.info("persistence"))["rdb_last_bgsave_status"] == "ok":
                await asyncio.sleep(0.02)
            for call in (queue.put([an_event()]), queue.take(1, 0)):
                with pytest.raises(BackendUnavailable, match="MISCONF"):
                    await call
            # Or the server would not end.
            await admin.config_set("save", "")

    async def test_a_wrong_password_is_said_and_a_right_one_works(self) -> None:
        async with a_server("a secret: @/#") as server:
            async with opened(server.url) as queue:
                await expect_available(queue)
            for login in ("", ":wrong@", "nobody:wrong@"):
                url = f"redis://{login}127.0.0.1:{server.port}/0"
                async with opened(url) as queue:
                    with pytest.raises(BackendUnavailable, match=r"NOAUTH|WRONGPASS") as said:
                        await queue.put([an_event()])
                    assert "wrong" not in str(said.value)

    async def test_too_few_replicas_are_unavailability(
        self, queue: RedisQueue, admin: Redis
    ) -> None:
        await admin.config_set("min-replicas-to-write", "1")
        try:
            with pytest.raises(BackendUnavailable, match="NOREPLICAS"):
                await queue.put([an_event()])
        finally:
            await admin.config_set("min-replicas-to-write", "0")
        await expect_available(queue)
