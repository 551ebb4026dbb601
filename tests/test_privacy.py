"""That nothing of what is to be replaced is left anywhere: canaries are sent and looked for."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import asyncpg
import pytest
import requests
from commanded import CommandHere
from consuming import count, end_leases, until
from events_made import REDACTOR, a_delivery, unchecked
from pydantic import SecretStr
from redis.asyncio import Redis
from served import ask
from servers import RunningService, a_redis, run_service, run_to_end

from bench.pii_corpus import RULES, samples
from logging_service import wire
from logging_service.backends import redactor_of
from logging_service.delivering import sort_events
from logging_service.embedded import Valkey
from logging_service.event_rules import (
    MAX_PAYLOAD_BYTES,
    MAX_SESSION_ID,
)
from logging_service.event_ttls import EventTtls
from logging_service.events import (
    MAX_REDACTION_MICROS,
    EventEncoder,
)
from logging_service.intake import read_many, read_one
from logging_service.postgres_store import open_postgres_store
from logging_service.redaction import Redactor, Rules
from logging_service.settings import Settings

NOW = wire.now_micros()
ENCODER = EventEncoder(EventTtls(0), REDACTOR)
KEY = {"X-API-Key": "test_key_123"}
ADMIN = {"X-API-Key": "admin_key_123"}
# The first sample of a rule is written to hide it, where that is possible.
SAMPLES = [[one for one in samples(3) if one.rule == rule][1] for rule in RULES]
# The longest line, of what has several.
CANARIES = [max(one.value.split("\n"), key=len) for one in SAMPLES]
NAMED = "A Name That Only Its Field Tells"
ALL = " ".join(one.text for one in SAMPLES)
# What a header and an id have room for.
SHORT = [one.text for one in SAMPLES if len(one.text) <= 64 and one.text.isprintable()]


def traces(text: bytes) -> list[str]:
    """Return the canaries in what somebody keeps, also where bytes are told as digits."""
    plain, hidden = text.replace(rb"\/", b"/"), text.lower()
    return [
        canary
        for canary in (*CANARIES, NAMED)
        if canary.encode() in plain
        or json.dumps(canary)[1:-1].encode() in plain
        or canary.encode().hex().encode() in hidden
    ]


def files_with_traces(folder: Path) -> dict[str, list[str]]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file): found for file in files if (found := traces(file.read_bytes()))}


async def rows_with_traces(database: asyncpg.Connection) -> dict[str, list[str]]:
    tables = await database.fetch(
        "SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'p', 'm')"
        " AND relnamespace = 'public'::regnamespace"
    )
    found = {}
    for (table,) in tables:
        rows = await database.fetch(f"SELECT one::text FROM {table} AS one")
        if told := traces("\n".join(row[0] for row in rows).encode()):
            found[table] = told
    return found


def events(prefix: str) -> Iterator[dict[str, Any]]:
    """Yield good events with canaries wherever an event has room for text."""
    for number, text in enumerate(one.text for one in SAMPLES):
        yield {
            "event_type": f"{prefix}.{number}",
            "session_id": f"s {text}"[:200],
            "payload": {
                "text": text,
                text: [{"deep": [{"deeper": f"a\n{text}\tb"}]}],
                "Email": {"of": [NAMED, 17, None]},
                "full_name": NAMED,
            },
        }
        if text in SHORT:
            ids = {"trace_id": text, "request_id": text}
            yield {"event_type": f"{prefix}.ids", "payload": {"\\": text + "\\"}, **ids}
    yield {"event_type": f"{prefix}.card", "session_id": 4111111111111111, "payload": {}}


def escaped(event: dict[str, Any]) -> bytes:
    """Return JSON in which every character that can be written as an escape is."""
    text = json.dumps(event["payload"])
    hidden = text.replace("@", "\\u0040").replace("/", "\\/").replace("+", "\\u002b")
    return (
        json.dumps({**event, "payload": 0}).replace('"payload": 0', f'"payload": {hidden}').encode()
    )


class Sender:
    """Sends to a producer, and counts what it took."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.taken = 0

    def post(self, path: str, body: bytes, **headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {"Content-Type": "application/json", **KEY, **named}
        answer = requests.post(self._url + path, data=body, headers=sent, timeout=20)
        if answer.status_code in {202, 207}:
            self.taken += answer.json().get("accepted", 1)
        return answer.status_code

    def good(self, prefix: str) -> None:
        made = list(events(prefix))
        assert self.post("/logs", json.dumps(made).encode()) == 202
        assert (
            self.post("/logs", b"\n".join(map(escaped, made)), Content_Type="application/x-ndjson")
            == 202
        )
        assert self.post("/log", escaped(made[0]), User_Agent=SHORT[0]) == 202
        for text in SHORT:
            assert self.post("/log", b'{"event_type":"header"}', X_Request_ID=text) == 202
        old = {**made[0], "timestamp": "2025-01-01T00:00:00Z"}
        assert self.post("/logs?backfill=true", json.dumps([old]).encode(), **ADMIN) == 202

    def bad(self) -> None:
        good = {"event_type": "beside.bad", "payload": {"text": ALL, "email": [NAMED]}}
        faulty: list[dict[str, Any]] = [
            {"event_type": CANARIES[0]},
            {"event_type": "bad", ALL: 1},
            {"event_type": "bad", "payload": ALL},
            {"event_type": "bad", "event_id": CANARIES[0]},
            {"event_type": "bad", "timestamp": CANARIES[0]},
            {"event_type": "bad", "payload": {"text": ALL, "n": 2**60}},
            {"event_type": "bad", "payload": {"text": ALL, "nul": "\0"}},
            {"event_type": "bad", "payload": {"text": ALL + "x" * 262_144}},
            {"event_type": "bad", "session_id": ALL},
            # A type that looks like an address.
            {"event_type": "10.20.30.40", "payload": {"text": ALL}},
        ]
        for event in faulty:
            assert self.post("/log", json.dumps(event).encode()) == 422
            assert self.post("/logs", json.dumps([event, good]).encode()) == 207
        whole = json.dumps([good]).encode()
        assert self.post("/logs", whole[:-9]) == 400
        assert self.post("/logs", whole, Content_Type=f"text/{CANARIES[0]}") == 415
        assert self.post("/logs", whole, Content_Encoding=CANARIES[0]) == 415
        assert self.post(f"/logs?{urlencode({'x': ALL})}", whole) == 422
        assert self.post(f"/{quote(ALL, safe='')}", whole) == 404
        assert self.post("/logs", whole, X_API_Key=CANARIES[0]) == 401


@pytest.fixture
async def own_redis(tmp_path: Path) -> AsyncIterator[Valkey]:
    folder = tmp_path / "redis"
    folder.mkdir()
    server = a_redis(folder)
    await server.start()
    yield server
    await server.stop()


async def test_no_canary_is_left_anywhere(
    environment: dict[str, str], own_redis: Valkey, database: asyncpg.Connection, tmp_path: Path
) -> None:
    environment |= {"REDIS_URL": own_redis.url, "LOG_LEVEL": "debug"}
    await database.execute(
        "ALTER TABLE log_events ADD CONSTRAINT no CHECK (event_type NOT LIKE 'poisoned%') NOT VALID"
    )
    logs: list[RunningService] = []
    with ExitStack() as stack:

        def started(name: str) -> RunningService:
            logs.append(stack.enter_context(run_service(name, environment)))
            return logs[-1]

        sender = Sender(started("producer").url)
        sender.good("usual")
        sender.good("poisoned")
        sender.bad()
        assert files_with_traces(tmp_path) == {}
        await own_redis.stop()
        sender.good("spooled")
        sender.bad()
        assert files_with_traces(tmp_path) == {}
        await own_redis.start()
        async with Redis.from_url(own_redis.url) as redis:
            started("consumer").process.kill()
            await end_leases(redis)
            started("consumer")

            async def is_all_there() -> bool:
                return await count(database) + await count(database, "dead_letters") >= sender.taken

            await until(is_all_there)
        query = started("query_service").url
        asked = urlencode({"q": CANARIES[0], "payload.email": NAMED, "session_id": CANARIES[1]})
        for path in (f"/events?{asked}", f"/events/{quote(ALL, safe='')}", f"/{quote(NAMED)}"):
            await ask(query + path, headers={**KEY, "User-Agent": CANARIES[0]})
        told = (await ask(f"{query}/events?event_type=usual.0", headers=KEY)).json()["events"]
        assert {tuple(event["redactions"].items()) for event in told} == {
            (("email", 6), ("full_name", 1))
        }
        replayed = await ask(
            f"{query}/dead-letters/replay", "POST", json={"all": True}, headers=ADMIN
        )
        assert replayed.json()["replayed"] == await count(database, "dead_letters")
        assert files_with_traces(tmp_path) == {}
        assert await rows_with_traces(database) == {}
        for service in logs:
            assert traces(service.log.encode()) == []


class TestCommands:
    async def test_a_scan_counts_what_was_stored_before_its_rule_was_there(
        self,
        environment: dict[str, str],
        services_url: str,
        database: asyncpg.Connection,
    ) -> None:
        told = [one.text for one in SAMPLES[:2]]
        old = unchecked(json.dumps({"a": told, "email": "x"}).encode(), session_id=told[0])
        sent = {"event_type": "clean", "payload": {"a": told, "email": "x"}, "session_id": told[0]}
        clean = read_one(
            json.dumps(sent).encode(), ENCODER, ENCODER.origin("tests", None, None, NOW)
        )
        async with open_postgres_store(services_url, connections=1) as store:
            await store.append(sort_events(a_delivery(old, clean.element), 3600, NOW))
        command = CommandHere("redaction", environment)
        done = await command.run("scan", "--json", code=1)
        answer = json.loads(done.stdout)
        expected = {"email": {"events": 1, "values": 3}, "phone": {"events": 1, "values": 1}}
        assert (answer["events"], answer["rules"]) == (2, expected)
        shown = (await command.run("scan", "--since", "2026-01-01", code=1)).stdout
        assert traces((done.stdout + shown).encode()) == []
        assert "email       1       3" in shown
        nothing = await command.run("scan", "--since", "9998-01-01")
        assert nothing.stdout == "0 events looked at: nothing found\n"
        notes = await database.fetch(
            "SELECT payload FROM audit_outbox WHERE event_type = 'audit.redaction_scanned'"
        )
        first, *others = [json.loads(payload) for (payload,) in notes]
        assert len(others) == 2
        assert first == {
            "by": "command line",
            "key_id": None,
            "since": None,
            "events": 2,
            "values": {"email": 3, "phone": 1},
        }

    async def test_the_rules_in_force_are_listed(
        self, environment: dict[str, str], tmp_path: Path
    ) -> None:
        file = tmp_path / "own.toml"
        file.write_text('off = ["ip", "phone"]\nexempt = ["commit"]\n[actions]\nemail = "mask"\n')
        environment |= {"REDACTION_FILE": str(file), "PII_FIELDS": "E-Mail, phone,,ip"}
        command = CommandHere("redaction", environment)
        answer = json.loads((await command.run("rules", "--json")).stdout)
        assert answer["exempt"] == ["commit"]
        assert answer["rules"][0] == {"rule": "e-mail", "kind": "field", "action": "hash"}
        named = [(rule["rule"], rule["action"]) for rule in answer["rules"][1:]]
        expected = [(rule, "hash") for rule in RULES if rule not in {"ip", "phone", "email"}]
        assert sorted(named) == sorted([*expected, ("email", "mask")])
        shown = (await command.run("rules")).stdout
        assert "email          pattern  mask" in shown
        assert shown.endswith("exempt: commit\n")

    async def test_a_rule_file_that_cannot_be_used_stops_the_start(
        self, environment: dict[str, str], tmp_path: Path
    ) -> None:
        file = tmp_path / "own.toml"
        file.write_text("off = 3\n")
        code, told = run_to_end("producer", {**environment, "REDACTION_FILE": str(file)})
        assert code == 2
        assert told.count("\n") == 1
        assert "off has to be a list of names" in told


def test_the_key_is_made_once_and_kept_unless_it_is_given(settings: Settings) -> None:
    def token(of: Settings) -> bytes:
        return redactor_of(of).text(b"ada@example.org").text

    assert token(settings) == token(settings)
    assert (settings.data_path / "pii_key").stat().st_mode & 0o777 == 0o600
    given = settings.model_copy(update={"pii_hash_key": SecretStr("of sixteen bytes")})
    assert token(given) == Redactor(Rules(), b"of sixteen bytes").text(b"ada@example.org").text


def test_one_request_may_not_take_a_worker_for_long() -> None:
    origin = ENCODER.origin("tests", None, None, NOW)
    origin.effort_left = MAX_REDACTION_MICROS // 100
    many = {"event_type": "many", "payload": {"text": "a@bc.de " * 200}}
    body = json.dumps([many] * 10 + [{"event_type": "plain"}]).encode()
    batch = read_many(body, "application/json", ENCODER, origin)
    assert 3 <= len(batch.accepted) < 10
    assert batch.accepted[-1].event_type == "plain"
    assert {fault.loc for one in batch.rejected for fault in one.errors} == {"payload"}


def test_what_was_replaced_may_be_longer_than_what_may_be_sent() -> None:
    values = ["a"] * 11_000
    body = json.dumps(
        {"event_type": "e", "session_id": "a@bc.de " * 25, "payload": {"email": values}}
    )
    origin = ENCODER.origin("tests", None, "of ada@example.org", NOW)
    event = wire.decode(read_one(body.encode(), ENCODER, origin).element)
    assert len(event.payload) > MAX_PAYLOAD_BYTES
    assert len(event.session_id or "") > MAX_SESSION_ID
    assert json.loads(event.redactions or b"") == {"email": 11_000 + 25 + 1}
    assert (event.request_id or "").startswith("of [email:")
