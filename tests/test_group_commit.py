"""All who wait are told, in order, whatever one of them does with it."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from events_made import an_event

from logging_service.errors import BackendUnavailable
from logging_service.group_commit import GroupCommit, Outcome
from logging_service.ports import EventQueue
from logging_service.redis_queue import open_redis_queue


@pytest.fixture
async def queue(redis_url: str) -> AsyncIterator[EventQueue]:
    async with open_redis_queue(
        redis_url, name="log_queue", ttl_seconds=60, timeout_ms=2000
    ) as opened:
        yield opened


async def test_the_callers_of_a_turn_share_a_write_and_keep_their_order(queue: EventQueue) -> None:
    commit, told = GroupCommit(queue), list[int]()
    events = [an_event(payload={"n": n}) for n in range(50)]
    for number, event in enumerate(events):
        commit.put([event], lambda _outcome, number=number: told.append(number))  # type: ignore[misc]
        if number % 10 == 0:
            await asyncio.sleep(0)
    await commit.drain()
    delivery = await queue.take(100, 0)
    assert delivery is not None
    assert delivery.events == events
    assert told == list(range(50))


async def test_one_callers_fault_does_not_keep_the_others_waiting(queue: EventQueue) -> None:
    commit, told = GroupCommit(queue), list[Outcome]()

    def fail(_outcome: Outcome) -> None:
        raise RuntimeError("Cannot call write() after write_eof()")

    commit.put([an_event()], fail)
    commit.put([an_event()], told.append)
    await commit.drain()
    assert told == ["queued"]


async def test_a_queue_that_is_away_is_told_to_everyone(free_port: int) -> None:
    url = f"redis://127.0.0.1:{free_port}/0"
    async with open_redis_queue(url, name="q", ttl_seconds=60, timeout_ms=200) as queue:
        commit, told = GroupCommit(queue), list[Outcome]()
        for _ in range(3):
            commit.put([an_event()], told.append)
        await commit.drain()
    assert [type(outcome) for outcome in told] == [BackendUnavailable] * 3


async def test_what_waits_is_bounded(queue: EventQueue) -> None:
    commit, told = GroupCommit(queue), list[Outcome]()
    large = [an_event(payload={"text": "x" * 250_000})] * 80
    for _ in range(3):
        commit.put(large, told.append)
    with pytest.raises(BackendUnavailable, match="more slowly"):
        commit.put(large, told.append)
    await commit.drain()
    assert set(told) == {"queued"}
    commit.put([an_event()], told.append)
    await commit.drain()
