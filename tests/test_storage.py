"""What a review keeps, and what is found of it again."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

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
from reviews_made import UNUSED, a_finding, a_review

from code_reviewer.findings import Edit, Fix, LlmReport, Options, Place, Submission, Usage
from gateway.settings import GatewaySettings
from gateway.stored_reviews import ReviewOutline, Wanted
from storage import Storage, open_storage

OWN = Wanted(project=PROJECT)
KEY = "AKIA" + "Q" * 16


@pytest.fixture
async def sink() -> AsyncIterator[LogSink]:
    async with a_sink() as opened:
        yield opened


@pytest.fixture
def settings(services_url: str, tmp_path: Path, sink: LogSink) -> GatewaySettings:
    return gateway_settings(services_url, tmp_path, sink.url)


@pytest.fixture
async def storage(settings: GatewaySettings) -> AsyncIterator[Storage]:
    async with open_storage(settings) as opened:
        yield opened


async def ids_of(storage: Storage, wanted: Wanted = OWN) -> list[str]:
    return [one.review_id for one in (await storage.page(wanted, limit=100)).reviews]


async def test_a_review_is_stored_before_the_work_and_after_it(
    storage: Storage, database: asyncpg.Connection, sink: LogSink
) -> None:
    start = a_start()
    await storage.begin(start)
    row = (await rows(database))[start.review_id]
    assert (row["status"], row["result"], row["event"]) == ("running", None, None)
    assert row["code_sha256"] == sha256(start.submission.code.encode()).hexdigest()
    assert (row["code"], row["code_length"]) == (None, len(start.submission.code))
    end = an_end(start, feedback='{"findings": []}')
    await storage.finish(start.review_id, end)
    found = await storage.find(start.review_id, PROJECT)
    assert found is not None
    assert found.review == end.review
    assert (found.status, found.cost_nanos, found.user_id) == ("completed", 669_500, "ada")
    assert found.submission == {
        "filename": "f.py",
        "language": "python",
        "options": msgspec.to_builtins(Options()),
    }
    assert json.loads(bytes(found.feedback_json or b"")) == {"findings": []}
    assert json.loads(bytes(found.usage_json or b""))["input"] == 2006
    await until(lambda: bool(sink.events))
    [event] = sink.events
    assert event["payload"] == end.completed
    assert (event["session_id"], event["request_id"]) == ("session-1", "request-1")
    assert storage.buffered == 0


async def test_the_code_is_kept_only_when_that_is_wanted_and_without_its_secrets(
    settings: GatewaySettings, database: asyncpg.Connection
) -> None:
    code = f'KEY = """\n{KEY}\n"""\nMAIL = "ada@example.org"\n\0'
    wanted = settings.model_copy(update={"store_code": True})
    async with open_storage(wanted) as storage:
        start = await store_one(storage, submission=Submission(code=code, user_id="ada"))
        found = await storage.find(start.review_id, None)
    assert found is not None
    kept = found.submission["code"]
    assert kept.splitlines()[0] == 'KEY = """'
    assert kept.count("\n") == code.count("\n")
    assert found.code_sha256 == sha256(code.encode()).hexdigest()
    told = str(await database.fetchval("SELECT reviews::text FROM reviews"))
    assert KEY not in told
    assert "ada@example.org" not in told


async def test_nothing_at_rest_names_somebody_or_gives_a_secret_away(
    storage: Storage, database: asyncpg.Connection, sink: LogSink
) -> None:
    mail = "ada@example.org"
    finding = a_finding(message=f"Possible hardcoded password: {KEY}")
    review = a_review(finding, msgspec.structs.replace(UNUSED, message=mail), summary=mail)
    fixed = (
        msgspec.structs.replace(UNUSED.fix, edits=(UNUSED.fix.edits[0],)) if UNUSED.fix else None
    )
    assert fixed
    edit = msgspec.structs.replace(fixed.edits[0], text=f'send("{mail}")\n')
    changing = msgspec.structs.replace(UNUSED, fix=msgspec.structs.replace(fixed, edits=(edit,)))
    review = msgspec.structs.replace(review, findings=(*review.findings, changing))
    start = a_start(
        session_id=mail,
        submission=Submission(code="x", filename=f"/home/{mail}/f.py", user_id=mail),
    )
    await storage.begin(start)
    told = f'{{"said": "{mail}"}}'
    await storage.finish(start.review_id, an_end(start, review, feedback=told))
    at_rest = str(await database.fetchval("SELECT reviews::text FROM reviews"))
    assert mail not in at_rest
    assert KEY not in at_rest
    found = await storage.find(start.review_id, PROJECT)
    assert found is not None
    assert found.review is not None
    assert found.user_id is not None
    assert found.user_id.startswith("[email:")
    # Equal values can be counted as equal, whatever they stand in.
    assert found.user_id in found.review.summary
    assert [one.id for one in found.review.findings] == [one.id for one in review.findings]
    # What was replaced in an edit would be put into somebody's code.
    applied = found.review.findings[-1].fix
    assert applied is not None
    assert (applied.edits, applied.applicability) == ((), "display")
    assert found.review.findings[1].fix == UNUSED.fix
    await until(lambda: bool(sink.events))
    assert sink.events[0]["payload"]["user_id"] == found.user_id
    assert [await ids_of(storage, OWN._replace(user_id=mail)), await ids_of(storage)] == [
        [start.review_id]
    ] * 2
    assert await ids_of(storage, OWN._replace(session_id=mail)) == [start.review_id]


async def test_a_password_is_not_kept_in_what_would_be_put_in_its_place(
    storage: Storage, database: asyncpg.Connection
) -> None:
    code = 'x = 1\nassert password == "hunter2", f"no"\nq = ("hunter2",)\n'
    there = {"start": Place(2, 20), "end": Place(2, 29)}
    password = a_finding(rule="S105", message="Possible hardcoded password", **there)
    edits = (Edit(Place(3, 1), Place(3, 5), "q = ['hunter2']"),)
    mended = a_finding(rule="RUF000", message="not 'hunter2'", fix=Fix("safe", "Use a list", edits))
    start = a_start(submission=Submission(code=code))
    await storage.begin(start)
    await storage.finish(start.review_id, an_end(start, a_review(password, mended, UNUSED)))
    assert "hunter2" not in str(await database.fetchval("SELECT reviews::text FROM reviews"))
    found = await storage.find(start.review_id, None)
    assert found is not None
    assert found.review is not None
    assert found.review.findings[1].fix == Fix("display", "Use a list")
    assert found.review.findings[2] == UNUSED


async def test_usage_that_looks_like_a_card_is_no_card(storage: Storage) -> None:
    llm = LlmReport("ok", "m", 1, Usage(input=4111111111111111), "12345678901.5")
    start = a_start()
    await storage.begin(start)
    await storage.finish(start.review_id, an_end(start, a_review(llm=llm)))
    found = await storage.find(start.review_id, None)
    assert found is not None
    assert found.review is not None
    assert found.review.llm == llm
    assert found.cost_nanos == 2**63 - 1


async def test_another_project_finds_nothing(storage: Storage) -> None:
    start = await store_one(storage)
    assert await storage.find(start.review_id, "other") is None
    assert await storage.find(start.review_id.upper(), None) is not None
    assert await storage.find("no id", None) is None
    assert await ids_of(storage, Wanted(project="other")) == []
    assert await ids_of(storage, Wanted()) == [start.review_id]
    assert await storage.cached(start.content_key, "other") is None


async def test_an_idempotency_key_is_of_one_request_of_a_project(
    storage: Storage, database: asyncpg.Connection
) -> None:
    first = a_start(idempotency_key="k 1", request_sha256="a")
    again = a_start(idempotency_key="k 1", request_sha256="a")
    assert (await storage.begin(first)).kind == "new"
    running = await storage.begin(again)
    assert running.kind == "same"
    assert running.stored is not None
    assert (running.stored.review_id, running.stored.status) == (first.review_id, "running")
    await storage.finish(first.review_id, an_end(first))
    done = (await storage.begin(again)).stored
    assert done is not None
    assert done.review == an_end(first).review
    different = await storage.begin(a_start(idempotency_key="k 1", request_sha256="b"))
    assert different.kind == "different"
    elsewhere = a_start(idempotency_key="k 1", request_sha256="a", project="other")
    assert (await storage.begin(elsewhere)).kind == "new"
    assert "k 1" not in str(await database.fetchval("SELECT reviews::text FROM reviews LIMIT 1"))


async def test_of_many_with_one_key_at_once_one_begins(storage: Storage) -> None:
    starts = [a_start(idempotency_key="one", request_sha256="a") for _ in range(20)]
    begun = await asyncio.gather(*map(storage.begin, starts))
    assert sorted(one.kind for one in begun) == ["new"] + ["same"] * 19


async def test_only_what_completed_is_an_answer_for_others(
    storage: Storage, database: asyncpg.Connection
) -> None:
    for status in ("degraded", "failed"):
        start = a_start()
        await storage.begin(start)
        assert await storage.cached(start.content_key, PROJECT) is None
        await storage.finish(start.review_id, an_end(start, status=status))
    assert await storage.cached("c" * 64, PROJECT) is None
    start = await store_one(storage)
    copied = a_start()
    await storage.begin(copied)
    cached = await storage.cached(copied.content_key, PROJECT)
    assert cached is not None
    assert cached.review_id == start.review_id
    assert cached.review is not None
    review = msgspec.structs.replace(cached.review, cached=True)
    await storage.finish(copied.review_id, an_end(copied, review))
    # A copy costs nothing, and is not what the next one gets.
    found = await storage.find(copied.review_id, None)
    assert found is not None
    assert (found.cost_nanos, found.from_cache) == (0, True)
    again = await storage.cached(copied.content_key, PROJECT)
    assert again is not None
    assert again.review_id == start.review_id
    await database.execute("UPDATE reviews SET created_at = now() - interval '8 days'")
    assert await storage.cached("c" * 64, PROJECT) is None


async def test_a_days_cost_is_what_its_reviews_cost(storage: Storage) -> None:
    for _ in range(3):
        await store_one(storage)
    await store_one(storage, started_at=datetime.now(UTC) - timedelta(days=1))
    today = datetime.now(UTC).date()
    assert await storage.spent_nanos(today) == 3 * 669_500
    assert await storage.spent_nanos(today - timedelta(days=1)) == 669_500
    assert await storage.spent_nanos(today - timedelta(days=2)) == 0


async def test_a_list_is_walked_once_through_while_reviews_come(storage: Storage) -> None:
    moment = datetime.now(UTC)
    # Two of each moment: the id decides.
    begun = [
        (await store_one(storage, started_at=moment - timedelta(seconds=n // 2))).review_id
        for n in range(11)
    ]
    seen: list[ReviewOutline] = []
    page = await storage.page(OWN, limit=3)
    while page.next_after:
        seen += page.reviews
        await store_one(storage, started_at=moment + timedelta(seconds=1))
        page = await storage.page(OWN, limit=3, after=page.next_after)
    seen += page.reviews
    assert len(seen) == len(begun)
    assert {one.review_id for one in seen} == set(begun)
    assert [one.created_at for one in seen] == sorted((o.created_at for o in seen), reverse=True)
    first = seen[0]
    assert (first.status, first.verdict, first.filename, first.cached) == (
        "completed",
        "fail",
        "f.py",
        False,
    )
    assert first.counts == a_review().counts


@pytest.mark.parametrize(
    ("wanted", "number"),
    [({"status": "running"}, 1), ({"status": "completed"}, 2), ({"verdict": "fail"}, 2),
     ({"verdict": "pass"}, 0), ({"user_id": "bob"}, 1), ({"session_id": "session-1"}, 3)],
)  # fmt: skip
async def test_a_list_has_what_was_asked_for(
    storage: Storage, wanted: dict[str, str], number: int
) -> None:
    await store_one(storage)
    await store_one(storage, submission=Submission(code="", user_id="bob"))
    await storage.begin(a_start())
    assert len(await ids_of(storage, OWN._replace(**wanted))) == number


async def test_a_thousand_reviews_are_stored_in_a_bounded_time(
    storage: Storage, database: asyncpg.Connection
) -> None:
    began = time.monotonic()
    for _ in range(20):
        await asyncio.gather(*(store_one(storage) for _ in range(50)))
    assert time.monotonic() - began < 30
    await until(lambda: storage.buffered == 0)
    done = await database.fetchval("SELECT count(*) FROM reviews WHERE status = 'completed'")
    assert done == 1_000


async def test_old_reviews_go_in_steps_with_a_note_for_the_audit(
    settings: GatewaySettings, database: asyncpg.Connection
) -> None:
    async with open_storage(settings) as storage:
        starts = [await store_one(storage) for _ in range(3)]
    moved = "UPDATE reviews SET created_at = now() - $2::interval WHERE review_id = $1"
    await database.execute(moved, starts[0].review_id, timedelta(days=9))
    await database.execute(moved, starts[1].review_id, timedelta(days=6))
    await database.execute("UPDATE retention_clock SET day = current_date - 5")
    async with open_storage(settings) as storage:

        async def has_gone() -> bool:
            return len(await rows(database)) == 2

        # The clock goes on a day an hour: what is nine days old is not yet.
        await asyncio.sleep(0.2)
        assert len(await rows(database)) == 3
        await database.execute("UPDATE retention_clock SET day = current_date")
    async with open_storage(settings):
        await until(has_gone)
    noted = await database.fetchval(
        "SELECT payload FROM audit_outbox WHERE event_type = 'audit.retention'"
    )
    assert json.loads(noted)["reviews"] == 1


async def test_reviews_are_kept_for_good_where_that_is_wanted(
    settings: GatewaySettings, database: asyncpg.Connection
) -> None:
    for_good = settings.model_copy(update={"review_ttl_days": 0})
    async with open_storage(for_good) as storage:
        await store_one(storage, started_at=datetime(2021, 1, 1, tzinfo=UTC))
        assert await storage.cached("c" * 64, PROJECT) is not None
    async with open_storage(for_good):
        await asyncio.sleep(0.2)
        assert len(await rows(database)) == 1


async def test_nothing_is_told_where_logging_is_off(
    settings: GatewaySettings, database: asyncpg.Connection, sink: LogSink
) -> None:
    silent = settings.model_copy(update={"logging_enabled": False})
    async with open_storage(silent) as storage:
        start = await store_one(storage)
    kept = (await rows(database))[start.review_id]
    assert (kept["status"], kept["event"], kept["event_due_at"]) == ("completed", None, None)
    assert sink.requests == []


async def test_an_id_that_is_not_stored_at_all_is_nobodys(
    settings: GatewaySettings, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[actions]\nemail = "drop"\n')
    dropping = settings.model_copy(update={"redaction_file": rules})
    async with open_storage(dropping) as storage:
        await store_one(storage, submission=Submission(code="", user_id="ada@example.org"))
        [found] = (await storage.page(OWN, limit=5)).reviews
        assert found.user_id is None
        assert await ids_of(storage, OWN._replace(user_id="bob@example.org")) == []
