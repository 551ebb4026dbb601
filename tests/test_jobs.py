"""How reviews run: who waits for whom, what is kept, and what the end of the process does."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from log_peer import Answer, Peer, Request, recording_peer
from reviewing import CODE, ScriptedModel, a_reviewer, refuses, says
from servers import unused_port

from code_reviewer.findings import Options, Review, Submission
from code_reviewer.models import ModelError, Question
from code_reviewer.review import Stage
from gateway import jobs as module
from gateway.jobs import Job, JobLimits, Jobs, Order
from gateway.progress import MAX_STAGES, Progress
from gateway.settings import GatewaySettings
from gateway.stored_reviews import Begun, ReviewEnd, ReviewStart, Status, StoredReview
from logging_helper import flush
from logging_service.errors import (
    BackendUnavailable,
    FieldRejected,
    ReviewRuns,
    Stopping,
    TooManyReviews,
)
from storage import open_storage

TWO_AND_TWO = JobLimits(at_once=2, waiting=2)


@pytest.fixture(autouse=True)
def peer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    with recording_peer(monkeypatch) as peer:
        yield peer


class Kept:
    """Keeps reviews in memory, and holds up who ends one while `may_finish` is not set."""

    def __init__(self) -> None:
        self.started: list[ReviewStart] = []
        self.finished: dict[str, ReviewEnd] = {}
        self.rows: dict[str, StoredReview] = {}
        self.by_key: dict[tuple[str, str], str] = {}
        self.may_begin = asyncio.Event()
        self.may_begin.set()
        self.may_finish = asyncio.Event()
        self.may_finish.set()

    async def begin(self, started: ReviewStart) -> Begun:
        await self.may_begin.wait()
        if started.idempotency_key is not None:
            key = (started.project, started.idempotency_key)
            if (earlier := self.rows.get(self.by_key.get(key, ""))) is not None:
                same = earlier.request_sha256 == started.request_sha256
                return Begun("same" if same else "different", earlier)
            self.by_key[key] = started.review_id
        self.started.append(started)
        self.rows[started.review_id] = StoredReview(
            review_id=started.review_id,
            session_id=started.session_id,
            project=started.project,
            instance="this",
            status="running",
            created_at=started.started_at,
            content_key=started.content_key,
            code_sha256="",
            code_length=len(started.submission.code),
            submission_json=msgspec.Raw(b"{}"),
            request_sha256=started.request_sha256,
        )
        return Begun("new")

    async def finish(self, review_id: str, finished: ReviewEnd) -> None:
        await self.may_finish.wait()
        assert review_id not in self.finished
        self.finished[review_id] = finished
        self.rows[review_id] = msgspec.structs.replace(
            self.rows[review_id],
            status=finished.status,
            result_json=msgspec.Raw(msgspec.json.encode(finished.review)),
        )

    async def cached(self, content_key: str, project: str) -> StoredReview | None:
        for row in self.rows.values():
            if (row.content_key, row.project) == (content_key, project) and row.result_json:
                return row
        return None

    def remember(self, order: Order, status: Status) -> str:
        """Keep a review of another process; return its id."""
        review_id = "00000000-0000-7000-8000-000000000001"
        self.rows[review_id] = StoredReview(
            review_id=review_id,
            session_id="earlier",
            project=order.project,
            instance="another",
            status=status,
            created_at=datetime.now(UTC),
            content_key="",
            code_sha256="",
            code_length=0,
            submission_json=msgspec.Raw(b"{}"),
            request_sha256=Job(order, asyncio.Semaphore()).request_sha256,
        )
        self.by_key[order.project, order.idempotency_key or ""] = review_id
        return review_id


class World:
    """Jobs whose model answers when it is let, and what is kept of them."""

    def __init__(self, jobs: Jobs, kept: Kept, model: ScriptedModel) -> None:
        self.jobs = jobs
        self.kept = kept
        self.model = model

    async def review(self, order: Order) -> Review:
        return await (await self.jobs.submit(order)).result()

    async def at_the_model(self, reviews: int = 1) -> None:
        await until(lambda: len(self.model.asked) >= reviews)


async def until(promise: Callable[[], object]) -> None:
    async with asyncio.timeout(15):
        while not promise():
            await asyncio.sleep(0.002)


@asynccontextmanager
async def a_world(
    limits: JobLimits = TWO_AND_TWO, grace_seconds: float = 15.0
) -> AsyncIterator[World]:
    kept, model = Kept(), ScriptedModel(says())
    async with Jobs(a_reviewer(model), kept, limits, lambda: grace_seconds) as jobs:
        yield World(jobs, kept, model)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with a_world() as world:
        yield world
        world.model.may_answer.set()
        world.kept.may_finish.set()
        world.kept.may_begin.set()


def an_order(code: str = CODE, **more: Any) -> Order:
    order = Order(submission=Submission(code), project="team", session_id="session-1")
    return msgspec.structs.replace(order, **more)


# What is kept, and when


async def test_a_review_is_kept_as_begun_before_it_runs_and_once_as_ended(world: World) -> None:
    world.model.may_answer.clear()
    job = await world.jobs.submit(an_order(request_id="request-1"))
    (started,) = world.kept.started
    assert (started.review_id, started.request_id) == (job.ids.review_id, "request-1")
    assert world.kept.finished == {}
    world.model.may_answer.set()
    review = await job.result()
    ended = world.kept.finished[job.ids.review_id]
    assert (ended.review, ended.status) == (review, "completed")
    assert ended.feedback is not None


async def test_what_is_kept_of_the_end_is_the_last_event_of_the_review(
    world: World, peer: Peer
) -> None:
    order = an_order(submission=Submission(CODE, user_id="ada"), request_id="request-1")
    review = await world.review(order)
    completed = world.kept.finished[review.review_id].completed
    assert flush()
    assert [event["payload"]["seq"] for event in peer.events] == list(range(1, 10))
    assert {event["session_id"] for event in peer.events} == {"session-1"}
    assert {event["request_id"] for event in peer.events} == {"request-1"}
    assert "review_completed" not in {event["event_type"] for event in peer.events}
    assert completed["seq"] == 10
    assert (completed["review_id"], completed["user_id"]) == (review.review_id, "ada")
    assert completed["success"] is True


async def test_the_same_content_is_answered_from_what_is_kept(world: World, peer: Peer) -> None:
    first = await world.review(an_order())
    again = await world.review(an_order(session_id="session-2"))
    assert len(world.model.asked) == 1
    assert (again.cached, again.findings) == (True, first.findings)
    assert again.review_id != first.review_id
    assert world.kept.finished[again.review_id].completed["cached"] is True
    assert flush()
    of_second = [e["event_type"] for e in peer.events if e["session_id"] == "session-2"]
    assert of_second == ["review_started"]


async def test_other_content_and_another_project_get_a_review_of_their_own(world: World) -> None:
    reviews = [
        await world.review(order)
        for order in (an_order(), an_order(CODE + "\n"), an_order(project="other"))
    ]
    assert [review.cached for review in reviews] == [False, False, False]


async def test_a_degraded_review_is_not_given_again(world: World) -> None:
    world.model.say = refuses
    first = await world.review(an_order())
    world.model.say = says()
    again = await world.review(an_order(CODE))
    assert (first.status, again.cached) == ("degraded", False)


# Clients that leave


async def test_a_client_that_leaves_does_not_stop_its_review(world: World) -> None:
    world.model.may_answer.clear()
    job = await world.jobs.submit(an_order())
    client = asyncio.create_task(job.result())
    await world.at_the_model()
    client.cancel()
    with suppress(asyncio.CancelledError):
        await client
    world.model.may_answer.set()
    assert (await job.result()).status == "completed"
    assert job.ids.review_id in world.kept.finished


async def test_a_client_that_leaves_before_it_began_does_not_stop_it_either(world: World) -> None:
    world.kept.may_begin.clear()
    client = asyncio.create_task(world.review(an_order()))
    await until(lambda: world.jobs.waiting == 1)
    client.cancel()
    with suppress(asyncio.CancelledError):
        await client
    world.kept.may_begin.set()
    await until(lambda: len(world.kept.finished) == 1)


# Bounds


async def test_only_so_many_reviews_run_at_once_and_the_others_wait(world: World) -> None:
    world.model.may_answer.clear()
    jobs = [await world.jobs.submit(an_order(f"x = {number}\n")) for number in range(3)]
    await world.at_the_model(2)
    await asyncio.sleep(0.05)
    assert (len(world.model.asked), world.jobs.running, world.jobs.waiting) == (2, 2, 1)
    world.model.may_answer.set()
    assert {(await job.result()).status for job in jobs} == {"completed"}
    await until(lambda: world.jobs.running == world.jobs.waiting == 0)


async def test_one_more_than_may_wait_is_refused_and_told_when_to_come_again(world: World) -> None:
    world.model.may_answer.clear()
    orders = [an_order(f"x = {n}\n", project=project) for n, project in enumerate("abcd")]
    jobs = [await world.jobs.submit(order) for order in orders]
    with pytest.raises(TooManyReviews) as refusal:
        await world.jobs.submit(an_order())
    assert int(refusal.value.headers["Retry-After"]) >= 1
    assert len(world.kept.started) == 4
    world.model.may_answer.set()
    for job in jobs:
        await job.result()
    await until(lambda: world.jobs.waiting == 0)
    assert (await world.review(an_order())).status == "completed"


async def test_one_project_leaves_places_to_others() -> None:
    async with a_world(JobLimits(at_once=4, waiting=4)) as world:
        world.model.may_answer.clear()
        for number in range(6):
            await world.jobs.submit(an_order(f"x = {number}\n"))
        with pytest.raises(TooManyReviews):
            await world.jobs.submit(an_order())
        await world.at_the_model(3)
        other = await world.jobs.submit(an_order(project="other"))
        await world.at_the_model(4)
        assert (world.jobs.running, world.jobs.waiting) == (4, 3)
        world.model.may_answer.set()
        assert (await other.result()).status == "completed"


async def test_a_review_that_takes_too_long_ends_as_failed() -> None:
    async with a_world(JobLimits(at_once=1, waiting=0, seconds=0.3)) as world:
        world.model.may_answer.clear()
        review = await world.review(an_order())
    assert (review.status, review.degraded_reasons) == ("failed", ("timeout",))
    assert world.kept.finished[review.review_id].completed["success"] is False


# Idempotency keys


async def test_the_same_key_joins_the_review_that_runs(world: World) -> None:
    world.model.may_answer.clear()
    order = an_order(idempotency_key="once")
    first, second = await asyncio.gather(world.jobs.submit(order), world.jobs.submit(order))
    world.model.may_answer.set()
    assert first is second
    assert await first.result() == await second.result()
    assert (len(world.kept.started), len(world.model.asked)) == (1, 1)


async def test_the_same_key_gets_the_review_that_was(world: World) -> None:
    order = an_order(idempotency_key="once")
    review = await world.review(order)
    await until(lambda: world.jobs.waiting == 0)
    again = await world.jobs.submit(msgspec.structs.replace(order, session_id="session-2"))
    assert await again.result() == review
    assert (again.ids.review_id, again.ids.session_id) == (review.review_id, "session-1")
    assert len(world.kept.finished) == 1
    assert [stage async for stage in again.follow()] == []


@pytest.mark.parametrize("still_runs", [True, False])
async def test_the_same_key_with_another_body_is_refused(world: World, *, still_runs: bool) -> None:
    job = await world.jobs.submit(an_order(idempotency_key="once"))
    if not still_runs:
        await job.result()
        await until(lambda: world.jobs.waiting == 0)
    with pytest.raises(FieldRejected) as refusal:
        await world.jobs.submit(an_order("x = 1\n", idempotency_key="once"))
    assert refusal.value.loc == "Idempotency-Key"


async def test_a_key_of_another_project_is_another_key(world: World) -> None:
    first = await world.review(an_order(idempotency_key="once"))
    other = await world.review(an_order("x = 1\n", idempotency_key="once", project="other"))
    assert first.review_id != other.review_id


async def test_a_review_that_runs_in_another_process_is_named(world: World) -> None:
    order = an_order(idempotency_key="once")
    review_id = world.kept.remember(order, "running")
    with pytest.raises(ReviewRuns, match=review_id):
        await world.jobs.submit(order)
    assert world.kept.finished == {}


async def test_a_review_that_was_interrupted_is_said_to_have_failed(world: World) -> None:
    order = an_order(idempotency_key="once")
    review_id = world.kept.remember(order, "interrupted")
    review = await world.review(order)
    assert (review.review_id, review.session_id) == (review_id, "earlier")
    assert (review.status, review.degraded_reasons) == ("failed", ("interrupted",))
    assert world.kept.finished == {}


# Followers


async def test_every_follower_sees_all_stages_also_one_that_comes_late(world: World) -> None:
    world.model.may_answer.clear()
    job = await world.jobs.submit(an_order())
    early = asyncio.create_task(all_of(job))
    await world.at_the_model()
    late = asyncio.create_task(all_of(job))
    await asyncio.sleep(0)
    world.model.may_answer.set()
    stages = await early
    assert [stage.stage for stage in stages if stage.status != "started"] == [
        "syntax",
        "lint",
        "complexity",
        "llm",
    ]
    assert stages == await late == await all_of(job)


async def all_of(job: Job) -> list[Stage]:
    return [stage async for stage in job.follow() if stage is not None]


async def test_a_follower_is_told_that_nothing_is_new(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUIET_SECONDS", 0.01)
    world.model.may_answer.clear()
    job = await world.jobs.submit(an_order())
    async for stage in job.follow():
        if stage is None:
            world.model.may_answer.set()
    assert (await job.result()).status == "completed"


async def test_a_slow_follower_misses_stages_and_holds_up_nobody() -> None:
    progress = Progress()
    seen = progress.follow(15)
    progress.tell(Stage("0", "ok"))
    first = await anext(seen)
    for number in range(1, MAX_STAGES + 10):
        progress.tell(Stage(str(number), "ok"))
    progress.end()
    rest = [stage.stage async for stage in seen if stage is not None]
    assert first == Stage("0", "ok")
    assert rest == [str(number) for number in range(10, MAX_STAGES + 10)]


# Our own mistakes


async def test_a_mistake_of_ours_ends_the_review_as_failed(world: World, peer: Peer) -> None:
    unknown = Submission(CODE, options=Options(select=("NOPE",)))
    review = await world.review(an_order(submission=unknown))
    assert (review.status, review.degraded_reasons) == ("failed", ("internal",))
    ended = world.kept.finished[review.review_id]
    assert (ended.status, ended.completed["success"]) == ("failed", False)
    assert flush()
    error = peer.events[-1]
    assert (error["event_type"], error["payload"]["error_type"]) == (
        "error_occurred",
        "review_internal",
    )


async def test_a_result_that_cannot_be_kept_is_answered_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_: str, __: ReviewEnd) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(world.kept, "finish", broken)
    assert (await world.review(an_order())).status == "completed"


async def test_a_start_that_cannot_be_kept_is_an_error_and_leaves_nothing_behind(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_: ReviewStart) -> Begun:
        raise RuntimeError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(world.kept, "begin", broken)
        with pytest.raises(RuntimeError, match="broken"):
            await world.jobs.submit(an_order(idempotency_key="once"))
    assert (await world.review(an_order(idempotency_key="once"))).status == "completed"


# The end of the process


async def test_the_end_waits_for_those_that_are_soon_done() -> None:
    async with a_world() as world:
        world.model.may_answer.clear()
        job = await world.jobs.submit(an_order())
        await world.at_the_model()
        asyncio.get_running_loop().call_later(0.05, world.model.may_answer.set)
    assert (await job.result()).status == "completed"


async def test_what_is_not_done_by_then_is_kept_as_interrupted(peer: Peer) -> None:
    limits = JobLimits(at_once=1, waiting=1)
    async with a_world(limits, grace_seconds=0.05) as world:
        world.model.may_answer.clear()
        running = await world.jobs.submit(an_order())
        waits = await world.jobs.submit(an_order("x = 1\n"))
        await world.at_the_model()
    for job in (running, waits):
        review = await job.result()
        assert (review.status, review.degraded_reasons) == ("failed", ("interrupted",))
        ended = world.kept.finished[review.review_id]
        assert (ended.status, ended.completed["success"]) == ("interrupted", False)
    assert flush()
    errors = [e["payload"] for e in peer.events if e["event_type"] == "error_occurred"]
    assert [error["error_type"] for error in errors] == 2 * ["review_interrupted"]


async def test_the_end_does_not_cut_off_what_is_being_kept() -> None:
    async with a_world(grace_seconds=0) as world:
        world.kept.may_finish.clear()
        job = await world.jobs.submit(an_order())
        await until(lambda: job.is_ending)
        asyncio.get_running_loop().call_later(0.05, world.kept.may_finish.set)
    assert (await job.result()).status == "completed"
    assert world.kept.finished[job.ids.review_id].status == "completed"


async def test_nothing_begins_after_the_end() -> None:
    async with a_world() as world:
        pass
    with pytest.raises(Stopping):
        await world.jobs.submit(an_order())


async def test_who_waits_for_the_start_at_the_end_is_told_to_come_again() -> None:
    async with a_world(grace_seconds=0) as world:
        world.kept.may_begin.clear()
        client = asyncio.create_task(world.jobs.submit(an_order()))
        await until(lambda: world.jobs.waiting == 1)
    with pytest.raises(Stopping):
        await client


# With the storage as it is, without a database


def takes_all(request: Request) -> Answer:
    return Answer(202, body={"accepted": len(request.events), "rejected": []})


async def test_all_seven_kinds_of_event_arrive_and_the_end_of_it_once(
    peer: Peer, tmp_path: Path
) -> None:
    peer.answer = takes_all
    settings = GatewaySettings(
        database_url=f"postgresql://nobody@127.0.0.1:{unused_port()}/none",
        logging_service_url=peer.url,
        data_dir=tmp_path,
    )
    failing = iter([ModelError("server_error", "busy", http_status=500)])

    def fails_once(question: Question) -> str:
        for error in failing:
            raise error
        return says()(question)

    reviewer = a_reviewer(ScriptedModel(fails_once))
    async with (
        open_storage(settings) as storage,
        Jobs(reviewer, storage, TWO_AND_TWO, lambda: 15.0) as jobs,
    ):
        with suppress(BackendUnavailable):
            await storage.check()
        job = await jobs.submit(an_order(idempotency_key="once", request_id="request-1"))
        review = await job.result()
        again = await jobs.submit(an_order(idempotency_key="once"))
        repeated = await jobs.submit(an_order(session_id="session-2"))
        assert (await again.result()).review_id == review.review_id
        assert (await repeated.result()).cached
        with pytest.raises(FieldRejected):
            await jobs.submit(an_order("x = 1\n", idempotency_key="once"))
    assert flush()
    of_first = [e for e in peer.events if e["session_id"] == "session-1"]
    assert sorted(event["payload"]["seq"] for event in of_first) == list(range(1, 13))
    assert {event["request_id"] for event in of_first} == {"request-1"}
    assert Counter(event["event_type"] for event in of_first) == {
        "review_started": 1,
        "syntax_analysis_started": 3,
        "syntax_analysis_completed": 3,
        "llm_query_sent": 2,
        "error_occurred": 1,
        "llm_feedback_received": 1,
        "review_completed": 1,
    }
    of_second = {e["event_type"] for e in peer.events if e["session_id"] == "session-2"}
    assert of_second == {"review_started", "review_completed"}
