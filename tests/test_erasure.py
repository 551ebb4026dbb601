"""Who is erased leaves no trace, and what was counted stays."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from commanded import CommandHere
from conftest import ADMIN_API_KEY, API_KEY
from consuming import consuming, log_queue
from events_made import a_delivery, an_event, unchecked
from recounted import counted, rolled_up
from served import ask, served

from logging_service.api_keys import terms_of
from logging_service.audit import COMMAND_LINE
from logging_service.backends import open_keys
from logging_service.erasing import subject_of
from logging_service.erasure import Erased, Kind, Subject, may_tell_of
from logging_service.errors import BackendUnavailable
from logging_service.ports import DeadLetter, Sorted
from logging_service.postgres_erasure import open_postgres_erasure
from logging_service.postgres_ledger import lock_folding
from logging_service.postgres_rebuild import open_postgres_roll_ups
from logging_service.postgres_store import PostgresStore, open_postgres_store
from logging_service.pricing import Prices
from logging_service.query_service import create_app
from logging_service.schema import migrate
from logging_service.settings import Settings
from logging_service.sketches import hash_of

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
ADA, MALLORY = "ada-lovelace", "mallory"
SECRET = "what ada wrote"
# Who says it, in which session: `shared` has two users, and some events name nobody.
TALK: tuple[tuple[str | None, str | None], ...] = (
    (ADA, "adas own"), (None, "adas own"), (ADA, "shared"), (MALLORY, "shared"), (None, "shared"),
    (MALLORY, "mallorys"), (None, "mallorys"), (ADA, None), (None, None),
)  # fmt: skip
KINDS = ("llm_query_sent", "review_completed", "error_occurred", "review_started")


def the_events(*, source: str = "tests", days: int = 2) -> list[bytes]:
    choose = random.Random(source)
    made = []
    for number, (user, session) in enumerate(TALK * len(KINDS) * days):
        payload: dict[str, Any] = {
            "note": f"{SECRET if user != MALLORY else 'something else'} {number}",
            "duration_ms": choose.choice((0, 12, 7_000)),
            "input_tokens": number,
            "model": "gpt-4o",
            "provider": "openai",
            "counts": {"error": 1, "info": number},
        }
        if user:
            payload["user_id"] = user
        if number % 5 == 0:
            payload["success"] = False
        moment = NOON + timedelta(days=number % days, minutes=choose.randrange(300))
        event_id = UUID(int=choose.getrandbits(128))
        kind = KINDS[number // len(TALK) % len(KINDS)]
        made.append(
            an_event(kind, session, payload, event_id=event_id, timestamp=moment, source=source)
        )
    return made


@pytest.fixture
async def store(services_url: str) -> AsyncIterator[PostgresStore]:
    async with open_postgres_store(services_url, connections=2) as opened:
        yield opened


async def add(store: PostgresStore, *events: bytes) -> None:
    await store.append(Sorted(a_delivery(*events), list(events)))


async def bury(store: PostgresStore, *letters: bytes, reason: str = "rejected") -> None:
    dead = [DeadLetter(event, reason, "is bad", 1) for event in letters]
    await store.append(Sorted(a_delivery(*letters), [], dead=dead))


async def erase(
    url: str, settings: Settings, kind: Kind, text: str, project: str | None = None
) -> Erased:
    subject = subject_of(settings, kind, text, project)
    async with open_postgres_erasure(url) as erasure:
        return await erasure.erase(subject, COMMAND_LINE, lambda _more, _of: None)


async def everything(database: asyncpg.Connection) -> str:
    """Every row of every table, as text."""
    tables = await database.fetch(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        " AND relkind IN ('r', 'p') AND NOT relispartition"
    )
    rows = [
        row[0]
        for table in tables
        for row in await database.fetch(f"SELECT one::text FROM {table['relname']} AS one")
    ]
    letters = await database.fetch("SELECT event FROM dead_letters")
    return "\n".join(rows) + "".join(repr(row["event"]) for row in letters)


async def totals(database: asyncpg.Connection) -> list[Any]:
    """What was counted, without whom."""
    found = await rolled_up(database)
    sums = {
        subject: {
            key: {name: value for name, value in row.items() if name not in {"sessions", "users"}}
            for key, row in rows.items()
        }
        for subject, rows in found.items()
        if subject != "user"
    }
    by_source: dict[Any, Any] = {}
    for (span, bucket, source, _user), row in found["user"].items():
        into = by_source.setdefault((span, bucket, source), {})
        for name, value in row.items():
            if name not in {"max_us", "sessions"}:
                into[name] = into[name] + value if name in into else value
    uniques = {
        key: (len(row["sessions"]), len(row["users"])) for key, row in found["usage"].items()
    }
    ledger = await database.fetch(
        "SELECT timestamp, event_id, queries, cost_nanos, input FROM"
        " (SELECT *, uncached_input + cache_read AS input FROM llm_calls) AS calls ORDER BY 1, 2"
    )
    reviews = await database.fetch(
        "SELECT timestamp, event_id, duration_us, is_failed, errors, infos FROM review_facts"
        " ORDER BY 1, 2"
    )
    facts = await database.fetch(
        "SELECT timestamp, event_type, source, duration_us, is_failed FROM event_facts"
        " ORDER BY 1, 2, 3, 4"
    )
    return [sums, by_source, uniques, *map(list, (ledger, reviews, facts))]


async def hashes(database: asyncpg.Connection) -> set[int]:
    """Those of sessions and users in the roll-ups, and in what is yet to be folded."""
    found = await rolled_up(database)
    rows = [*found["usage"].values(), *found["user"].values()]
    return set().union(*(row.get(name, set()) for row in rows for name in ("sessions", "users")))


async def said_by(database: asyncpg.Connection, condition: str) -> list[asyncpg.Record]:
    rows: list[asyncpg.Record] = await database.fetch(
        "SELECT session_id, payload->>'user_id' AS user_id, payload->>'note' AS note,"
        " payload->>'erased' AS erased, trace_id, request_id, redactions"
        f" FROM log_events WHERE {condition}"
    )
    return rows


@pytest.mark.parametrize("folded", [True, False])
async def test_a_user_leaves_no_trace_and_the_numbers_stay(
    store: PostgresStore,
    settings: Settings,
    services_url: str,
    database: asyncpg.Connection,
    *,
    folded: bool,
) -> None:
    await add(store, *the_events())
    await bury(store, the_events(source="letters")[0], the_events(source="letters")[5])
    if folded:
        await store.fold()
    before = await totals(database)
    assert ADA in await everything(database)
    erased = await erase(services_url, settings, "user", ADA)
    # Ada's own events, and what nobody said in the session of hers alone.
    assert erased == Erased(4 * 4 * 2, 4 * 2, 4 * 2, 1)
    told = await everything(database)
    assert ADA not in told
    assert "adas own" not in told
    assert not await hashes(database) & {hash_of(ADA.encode()), hash_of(b"adas own")}
    assert await totals(database) == before
    left = await said_by(database, "payload->>'erased' IS NOT NULL")
    assert len(left) == erased.events
    assert {tuple(row.values()) for row in left} == {(None, None, None, "true", None, None, None)}
    others = await said_by(database, "payload->>'erased' IS NULL")
    assert {(row["user_id"], row["session_id"]) for row in others} == {
        (MALLORY, "shared"), (None, "shared"), (MALLORY, "mallorys"), (None, "mallorys"),
        (None, None),
    }  # fmt: skip
    assert await database.fetchval("SELECT count(*) FROM dead_letters") == 1


async def test_a_session_leaves_no_trace_and_its_user_is_still_counted(
    store: PostgresStore, settings: Settings, services_url: str, database: asyncpg.Connection
) -> None:
    await add(store, *the_events())
    await bury(store, the_events(source="letters")[0], the_events(source="letters")[2])
    await store.fold()
    before, users = await totals(database), (await rolled_up(database))["user"].keys()
    erased = await erase(services_url, settings, "session", "shared")
    assert erased == Erased(3 * 4 * 2, 3 * 2, 3 * 2, 1)
    assert "shared" not in await everything(database)
    assert hash_of(b"shared") not in await hashes(database)
    assert await totals(database) == before
    assert (await rolled_up(database))["user"].keys() == users
    left = await said_by(database, "payload->>'erased' IS NOT NULL")
    assert {(row["user_id"], row["note"]) for row in left} == {
        (ADA, None), (MALLORY, None), (None, None),
    }  # fmt: skip
    # A user goes from there, too.
    await erase(services_url, settings, "user", MALLORY)
    assert MALLORY not in await everything(database)


async def test_a_rebuild_afterwards_changes_nothing_but_who_was_counted(
    store: PostgresStore, settings: Settings, services_url: str, database: asyncpg.Connection
) -> None:
    await add(store, *the_events())
    await store.fold()
    await erase(services_url, settings, "user", ADA)
    await erase(services_url, settings, "session", "mallorys")
    tables = "SELECT count(*), md5(string_agg(one::text, ',' ORDER BY one::text)) FROM {} AS one"
    names = ("event_facts", "llm_calls", "review_facts")
    entries = [await database.fetchrow(tables.format(name)) for name in names]
    before = await totals(database)
    async with open_postgres_roll_ups(services_url, Prices()) as roll_ups:
        for day in await roll_ups.days(None, None):
            assert (await roll_ups.rebuild(day, lambda _: None, keep=True)).calls_added == 0
    after = await totals(database)
    assert [await database.fetchrow(tables.format(name)) for name in names] == entries
    # The third has how many different sessions and users there were.
    assert after[:2] + after[3:] == before[:2] + before[3:]
    assert await rolled_up(database) == await counted(database)


async def test_a_project_keeps_what_another_one_erases(
    store: PostgresStore, settings: Settings, services_url: str, database: asyncpg.Connection
) -> None:
    await add(store, *the_events(), *the_events(source="others"))
    await bury(store, the_events()[0], the_events(source="others")[0])
    await store.fold()
    kept = "SELECT md5(string_agg(one::text, ',' ORDER BY one::text)) FROM {} AS one"
    tables = {
        name: f"(SELECT * FROM {name} WHERE source = 'others')"
        for name in ("log_events", "event_facts", "llm_calls", "usage_rollup", "user_rollup")
    }
    before = {name: await database.fetchval(kept.format(part)) for name, part in tables.items()}
    assert (await erase(services_url, settings, "user", ADA, "tests")).dead_letters == 1
    assert (await erase(services_url, settings, "session", "shared", "tests")).events == 4 * 4
    after = {name: await database.fetchval(kept.format(part)) for name, part in tables.items()}
    assert after == before
    ours = "SELECT count(*) FROM event_facts WHERE source = 'tests' AND user_id = $1"
    assert not await database.fetchval(ours, ADA)


async def test_a_session_of_the_same_name_in_another_project_is_still_counted_as_one(
    store: PostgresStore, settings: Settings, services_url: str, database: asyncpg.Connection
) -> None:
    theirs = an_event("a", "s1", {"user_id": MALLORY}, timestamp=NOON, source="others")
    await add(store, an_event("a", "s1", {"user_id": ADA}, timestamp=NOON), theirs)
    await store.fold()
    kept = "SELECT sessions FROM usage_rollup WHERE source = $1 ORDER BY span, event_type"
    before = {source: await database.fetch(kept, source) for source in ("tests", "others")}
    assert (await erase(services_url, settings, "user", ADA)).events == 1
    assert await database.fetch(kept, "others") == before["others"]
    assert await database.fetch(kept, "tests") != before["tests"]


async def test_the_second_time_nothing_is_found(
    store: PostgresStore, settings: Settings, services_url: str, database: asyncpg.Connection
) -> None:
    await add(store, *the_events(days=1))
    for number in (1, 0):
        erased = await erase(services_url, settings, "user", ADA)
        assert bool(erased.events) is bool(number)
    assert erased == Erased()
    assert await erase(services_url, settings, "session", "nobody was here") == Erased()
    notes = await database.fetch(
        "SELECT payload::text FROM audit_outbox WHERE event_type = 'audit.erased' ORDER BY number"
    )
    told = [json.loads(row["payload"]) for row in notes]
    assert [note["events"] for note in told] == [16, 0, 0]
    assert told[0]["subject"] == told[1]["subject"] != told[2]["subject"]
    assert told[0]["by"] == "command line"
    by_function = "SELECT count(*) FROM audit_outbox WHERE event_type = 'audit.events_erased'"
    assert await database.fetchval(by_function) > 0


class _EndedError(Exception):
    pass


async def test_what_is_ended_half_way_is_completed_by_the_next_one(
    store: PostgresStore, settings: Settings, services_url: str, database: asyncpg.Connection
) -> None:
    subject = subject_of(settings, "user", ADA, None)
    for steps in (2, 3, 6):
        await _begin_anew(database, store)
        before, done = await totals(database), 0

        def advance(more: int, _of: int, steps: int = steps) -> None:
            nonlocal done
            done += more
            if done == steps:
                raise _EndedError

        async with open_postgres_erasure(services_url) as erasure:
            with pytest.raises(_EndedError):
                await erasure.erase(subject, COMMAND_LINE, advance)
        await erase(services_url, settings, "user", ADA)
        told = await everything(database)
        assert ADA not in told
        assert "adas own" not in told
        assert await totals(database) == before


async def _begin_anew(database: asyncpg.Connection, store: PostgresStore) -> None:
    await database.execute(
        "TRUNCATE log_events, event_facts, llm_calls, review_facts, dead_letters, audit_outbox,"
        " usage_rollup, user_rollup, llm_rollup, session_hours, session_sums"
    )
    await add(store, *the_events())
    await bury(store, the_events()[1])
    await store.fold()


async def test_sums_of_sessions_forget_them(
    store: PostgresStore, settings: Settings, services_url: str, database: asyncpg.Connection
) -> None:
    moment = datetime.now(UTC) - timedelta(hours=3)
    for session, user in (("s1", ADA), ("s2", MALLORY)):
        await add(store, an_event("a", session, {"user_id": user}, timestamp=moment))
    await store.fold()
    assert await database.fetchval("SELECT count(*) FROM session_sums") == 2
    await erase(services_url, settings, "user", ADA)
    await store.fold()
    rows = await database.fetch("SELECT session_id, user_ids FROM session_sums")
    assert {(row["session_id"], *(row["user_ids"] or ())) for row in rows} == {
        (None,), ("s2", MALLORY),
    }  # fmt: skip


async def test_letters_that_cannot_be_read_go_when_they_hold_the_id(
    store: PostgresStore, settings: Settings, services_url: str, database: asyncpg.Connection
) -> None:
    broken = [event[:-1] + b"!" for event in the_events()[:1]]
    await bury(store, *broken)
    await bury(store, *(event[:-1] + b"?" for event in the_events()[5:6]))
    await bury(store, *the_events()[2:3], reason="crash")
    assert (await erase(services_url, settings, "user", ADA, "others")).dead_letters == 0
    assert (await erase(services_url, settings, "user", ADA)).dead_letters == 2
    assert await database.fetchval("SELECT count(*) FROM dead_letters") == 1


@pytest.mark.parametrize(
    ("user", "sent", "other"),
    [
        ("jürgen", '{"user_id": "jürgen"}', '{"user_id": "jürgens"}'),
        ("jürgen", '{"user_id":"j\\u00fcrgen"}', '{"user_id":"j\\u00fcrge"}'),
        ("123", '{"user_id": 123}', '{"user_id": 1234, "n": 5123, "m": 123.5}'),
    ],
)
def test_letters_that_are_not_read_hold_an_id_as_encoders_write_it(
    user: str, sent: str, other: str
) -> None:
    subject = Subject("user", (user,), None, "")
    assert may_tell_of(subject, unchecked(payload=sent.encode()))
    assert not may_tell_of(subject, unchecked(payload=other.encode()))


async def test_an_id_that_redaction_replaced_is_found(
    store: PostgresStore, settings: Settings, services_url: str, database: asyncpg.Connection
) -> None:
    address = "ada@example.com"
    subject = subject_of(settings, "user", address, None)
    [token] = set(subject.texts) - {address}
    await add(
        store, an_event("a", "s1", {"user_id": token}), an_event("a", "s2", {"user.id": token})
    )
    assert (await erase(services_url, settings, "user", address)).events == 2
    assert token not in await everything(database)


@pytest.mark.parametrize("action", ["mask", "drop"])
@pytest.mark.parametrize("kind", ["user", "session"])
def test_what_stands_for_many_ids_is_nobody_in_particular(
    settings: Settings, tmp_path: Path, kind: Kind, action: str
) -> None:
    rules = tmp_path / "redaction.toml"
    rules.write_text(f'action = "{action}"', encoding="utf-8")
    own = settings.model_copy(update={"redaction_file": rules})
    assert subject_of(own, kind, "ada@example.com", None).texts == ("ada@example.com",)


async def test_every_payload_can_be_erased(
    store: PostgresStore, settings: Settings, services_url: str, database: asyncpg.Connection
) -> None:
    payload = b'{"user_id":%b,"duration_ms":0.125,"error":["%b"],"note":"\\ud83d\\ude00"}'
    users = (b'"x"', b"17", b"17.5", b'{"name":"x"}', b'""', b"null")
    said = [payload % (user, SECRET.encode()) for user in users]
    await add(store, *(unchecked(each, "review_completed", "s1") for each in said))
    assert (await erase(services_url, settings, "session", "s1")).events == len(users)
    assert SECRET not in await everything(database)
    left = await database.fetch("SELECT payload::text AS text FROM log_events")
    told = [json.loads(row["text"]) for row in left]
    assert {one.pop("user_id", None) for one in told} == {None, "x", "17"}
    assert told == [{"erased": True, "duration_ms": 0.125, "success": False}] * len(users)


async def test_one_who_folds_is_waited_for(
    store: PostgresStore, settings: Settings, services_url: str, database: asyncpg.Connection
) -> None:
    await add(store, *the_events(days=1))
    async with database.transaction():
        assert await lock_folding(database)
        task = asyncio.create_task(erase(services_url, settings, "user", ADA))
        await asyncio.wait({task}, timeout=0.3)
        assert not task.done()
    assert (await task).events == 16


async def test_nobody_erases_beside_a_rebuild(settings: Settings, services_url: str) -> None:
    async with open_postgres_roll_ups(services_url, Prices()):
        with pytest.raises(BackendUnavailable, match="at work"):
            await erase(services_url, settings, "user", ADA)


async def test_events_that_are_stored_meanwhile_are_new(
    store: PostgresStore, settings: Settings, services_url: str, database: asyncpg.Connection
) -> None:
    await add(store, *the_events())
    later = the_events(source="later")
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(erase(services_url, settings, "user", ADA, "tests"))
        for event in later:
            tasks.create_task(add(store, event))
    await store.fold()
    assert await rolled_up(database) != {}
    kept = await database.fetchval(
        "SELECT count(*) FROM log_events WHERE source = 'later' AND payload->>'erased' IS NULL"
    )
    assert kept == len(later)
    own = "SELECT count(*) FROM event_facts WHERE user_id = $1 AND source = 'tests'"
    assert not await database.fetchval(own, ADA)


async def test_one_role_for_both_erases_as_well(
    empty_database_url: str, settings: Settings
) -> None:
    await migrate(empty_database_url)
    async with open_postgres_store(empty_database_url, connections=1) as store:
        await add(store, *the_events(days=1))
    assert (await erase(empty_database_url, settings, "user", ADA)).events == 16


async def key_of(settings: Settings, project: str, *scopes: str) -> str:
    async with open_keys(settings) as keys:
        made = await keys.create(terms_of(project, project=project, scopes=scopes), COMMAND_LINE)
    return made.text


class TestRoute:
    async def test_a_key_with_the_scope_erases_in_its_project(
        self, store: PostgresStore, settings: Settings, database: asyncpg.Connection
    ) -> None:
        await add(store, *the_events(days=1), *the_events(source="others", days=1))
        key = await key_of(settings, "tests", "erase")
        async with served(create_app(settings)) as url:
            asked = {"headers": {"X-API-Key": key}, "json": {"user_id": ADA}}
            answer = await ask(f"{url}/erasures", "POST", **asked)
            assert answer.status_code == 200, answer.text
            assert answer.json()["erased"]["events"] == 16
            assert ADA not in json.dumps(answer.json())
            asked["json"] = {"user_id": ADA, "project": "others"}
            assert (await ask(f"{url}/erasures", "POST", **asked)).status_code == 403
            asked["headers"] = {"X-API-Key": ADMIN_API_KEY}
            answer = await ask(f"{url}/erasures", "POST", **asked)
            assert answer.json()["erased"]["events"] == 16
            asked["headers"] = {"X-API-Key": API_KEY}
            assert (await ask(f"{url}/erasures", "POST", **asked)).status_code == 403
        assert ADA not in await everything(database)

    async def test_one_subject_is_needed(self, settings: Settings) -> None:
        bodies: list[Any] = [
            {}, {"user_id": "a", "session_id": "b"}, {"user_id": ""}, {"user_id": True},
            {"session_id": "a\x00"}, {"user_id": "a", "more": 1}, [],
        ]  # fmt: skip
        async with served(create_app(settings)) as url:
            for body in bodies:
                asked = {"headers": {"X-API-Key": ADMIN_API_KEY}, "json": body}
                assert (await ask(f"{url}/erasures", "POST", **asked)).status_code == 422, body

    async def test_what_was_accepted_before_is_waited_for(
        self,
        settings: Settings,
        redis_url: str,
        services_url: str,
        database: asyncpg.Connection,
    ) -> None:
        async with log_queue(redis_url) as queue, served(create_app(settings)) as url:
            await queue.put(the_events(days=1))
            asked = {"headers": {"X-API-Key": ADMIN_API_KEY}, "json": {"session_id": "adas own"}}
            asking = asyncio.create_task(ask(f"{url}/erasures", "POST", **asked))
            await asyncio.wait({asking}, timeout=0.4)
            assert not asking.done()
            async with consuming(redis_url, services_url):
                answer = await asking
        assert answer.json()["erased"]["events"] == 8
        assert "adas own" not in await everything(database)

    async def test_what_is_not_stored_in_time_is_told_and_nothing_is_erased(
        self, settings: Settings, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("logging_service.erasure_routes._WAIT_SECONDS", 0.1)
        async with log_queue(redis_url) as queue, served(create_app(settings)) as url:
            await queue.put(the_events(days=1))
            asked = {"headers": {"X-API-Key": ADMIN_API_KEY}, "json": {"session_id": 17}}
            answer = await ask(f"{url}/erasures", "POST", **asked)
        assert (answer.status_code, answer.json()["type"]) == (409, "/problems/events-wait")
        assert f"{len(the_events(days=1))} events" in answer.json()["detail"]


class TestCommand:
    @pytest.fixture
    def command(self, environment: dict[str, str]) -> CommandHere:
        return CommandHere("erase", environment)

    async def test_it_erases_and_says_how_much(
        self, command: CommandHere, store: PostgresStore, database: asyncpg.Connection
    ) -> None:
        await add(store, *the_events(days=1))
        done = await command.run("--user", ADA, "--yes")
        assert done.stdout == (
            "erased 16 events, 4 entries of the ledger, 4 reviews, 0 dead letters, "
            "0 reviews that the gateway kept\n"
        )
        done = await command.run("--session", "shared", "--project", "tests", "--yes", "--json")
        assert json.loads(done.stdout)["events"] == 8
        assert "shared" not in await everything(database)

    @pytest.mark.parametrize(
        "arguments",
        [("--yes",), ("--session", "a", "--user", "b", "--yes"), ("--session", "a")],
    )
    async def test_without_one_subject_or_consent_nothing_happens(
        self, command: CommandHere, arguments: Sequence[str]
    ) -> None:
        await command.run(*arguments, code=2)


def test_a_subject_is_told_by_the_same_pseudonym_and_no_other(settings: Settings) -> None:
    told = {
        subject_of(settings, kind, text, None).pseudonym
        for kind in ("session", "user")
        for text in ("a", "b", "a")
    }
    assert len(told) == 4


REVIEWS = (
    # Whose, in which session, of which project.
    (ADA, "adas own", "tests"),
    (None, "adas own", "tests"),
    (ADA, "shared", "tests"),
    (MALLORY, "shared", "tests"),
    (None, "shared", "tests"),
    (ADA, "adas own", "elsewhere"),
)


@pytest.mark.parametrize(
    ("subject", "gone"),
    [
        (("user", ADA, None), {0, 1, 2, 5}),
        (("user", ADA, "tests"), {0, 1, 2}),
        (("session", "shared", None), {2, 3, 4}),
        (("session", "adas own", "elsewhere"), {5}),
        (("user", "nobody", None), set()),
    ],
)
async def test_the_reviews_of_who_is_erased_go_as_a_whole(
    store: PostgresStore,
    services_url: str,
    settings: Settings,
    subject: tuple[Kind, str, str | None],
    gone: set[int],
) -> None:
    await add(store, *the_events())
    connection = await asyncpg.connect(services_url)
    try:
        await connection.executemany(
            "INSERT INTO reviews (review_id, user_id, session_id, project, instance, status,"
            " created_at, content_key, code_sha256, code_length, submission, from_cache)"
            " VALUES (gen_random_uuid(), $1, $2, $3, gen_random_uuid(), 'running', now(), '', '',"
            " 0, '{}', false)",
            REVIEWS,
        )
        erased = await erase(services_url, settings, *subject)
        left = await connection.fetch("SELECT user_id, session_id, project FROM reviews")
    finally:
        await connection.close()
    expected = [review for number, review in enumerate(REVIEWS) if number not in gone]
    assert sorted(map(str, map(tuple, left))) == sorted(map(str, expected))
    assert erased.stored_reviews == len(gone)
