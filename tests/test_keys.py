"""`/keys` of the query service: made, seen, rotated and revoked over HTTP."""

import asyncio
import json
import struct
import time
from base64 import urlsafe_b64decode
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import requests
from conftest import ADMIN_API_KEY, API_KEY, url_of
from served import ask, served

from logging_service.embedded import Postgres, Valkey
from logging_service.event_query import sealed_cursor
from logging_service.query_service import create_app
from logging_service.schema import migrate
from logging_service.settings import Settings

ADMIN = {"X-API-Key": ADMIN_API_KEY}
NOBODY = "a" * 12
ROUTES = (
    ("GET", "/keys"),
    ("POST", "/keys"),
    ("GET", f"/keys/{NOBODY}"),
    ("POST", f"/keys/{NOBODY}/rotate"),
    ("DELETE", f"/keys/{NOBODY}"),
)
FIELDS = [
    "id",
    "name",
    "project",
    "scopes",
    "rates",
    "networks",
    "created_at",
    "created_by",
    "expires_at",
    "revoked_at",
    "rotated_to",
    "has_other_pepper",
    "last_used_at",
    "requests_last_day",
    "status",
    "flags",
]


class Keys:
    """The routes of a service that the tests share, and its database."""

    def __init__(self, url: str, database_url: str) -> None:
        self.url = url
        self.database_url = database_url

    async def ask(
        self, method: str, path: str = "", *, key: Mapping[str, str] = ADMIN, **more: Any
    ) -> requests.Response:
        return await ask(f"{self.url}/keys{path}", method, headers=key, **more)

    async def made(self, name: str, **terms: Any) -> dict[str, Any]:
        answer = await self.ask("POST", json={"name": name, **terms})
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()
        return made

    async def show(self, key_id: str) -> dict[str, Any]:
        answer = await self.ask("GET", f"/{key_id}")
        assert answer.status_code == 200, answer.text
        shown: dict[str, Any] = answer.json()
        return shown

    async def listed(self, **parameters: Any) -> list[dict[str, Any]]:
        answer = await self.ask("GET", params={"limit": 1000, **parameters})
        assert answer.status_code == 200, answer.text
        keys: list[dict[str, Any]] = answer.json()["keys"]
        return keys

    async def reads(self, text: str) -> int:
        """Return the status of a read with this key."""
        return (await ask(f"{self.url}/events", headers={"X-API-Key": text})).status_code

    async def known(self, text: str, status: int = 200) -> None:
        """Wait until a read with this key gets `status`, two seconds at the most."""
        until = time.monotonic() + 2
        while await self.reads(text) != status:
            assert time.monotonic() < until
            await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
async def keys(
    postgres: Postgres, redis_server: Valkey, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Keys]:
    connection = await asyncpg.connect(postgres.admin_url, ssl=False)
    await connection.execute("CREATE DATABASE keyed OWNER logging_service_user")
    await connection.close()
    database_url = url_of(postgres, "keyed")
    await migrate(database_url)
    settings = settings_of(database_url, redis_server.url, tmp_path_factory.mktemp("keys"))
    async with served(create_app(settings)) as url:
        yield Keys(url, database_url)


def settings_of(database_url: str, redis_url: str, folder: Path) -> Settings:
    return Settings.model_validate(
        {
            "database_url": database_url,
            "redis_url": redis_url,
            "api_key": API_KEY,
            "admin_api_key": ADMIN_API_KEY,
            "data_dir": str(folder),
            "rate_limit": "100000/minute",
        }
    )


@pytest.fixture
async def database(keys: Keys) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(keys.database_url)
    yield connection
    await connection.close()


def faults(answer: requests.Response) -> list[str]:
    assert answer.status_code == 422, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    return [error["loc"] for error in answer.json()["errors"]]


@pytest.mark.parametrize(
    ("key", "status"),
    [({}, 401), ({"X-API-Key": "another_key_123"}, 401), ({"X-API-Key": API_KEY}, 403)],
    ids=["none", "wrong", "read and write"],
)
async def test_only_an_admin_is_let_in(keys: Keys, key: dict[str, str], status: int) -> None:
    before = len(await keys.listed(all=True))
    for method, path in ROUTES:
        answer = await ask(f"{keys.url}{path}", method, headers=key, json={"name": "x"})
        assert answer.status_code == status, (method, path)
    assert len(await keys.listed(all=True)) == before


async def test_a_key_has_what_is_usual_unless_more_is_said(keys: Keys) -> None:
    made = await keys.made("usual")
    assert list(made) == [*FIELDS, "key"]
    assert made["key"].startswith(f"lsk_{made['id']}_")
    assert made["created_at"].endswith("Z")
    expected: dict[str, Any] = {
        "name": "usual",
        "project": "usual",
        "scopes": ["read", "write"],
        "rates": {},
        "networks": [],
        "created_by": "admin",
        "expires_at": None,
        "requests_last_day": 0,
        "status": "active",
        "flags": [],
    }
    assert expected.items() <= made.items()


async def test_a_key_is_shown_and_listed_as_it_was_made(keys: Keys) -> None:
    terms: dict[str, Any] = {
        "name": "Ada's laptop 💻",
        "project": "reviewer:eu",
        "scopes": ["read"],
        "rates": {"/events": "5/second", "": "100/minute"},
        "networks": ["10.0.0.0/8", "2001:db8::1/128"],
        "expires_at": "2126-01-01T00:00:00Z",
    }
    made = await keys.made(**terms)
    assert terms.items() <= made.items()
    del made["key"]
    assert await keys.show(made["id"]) == made
    assert made in await keys.listed()


async def test_the_text_of_a_key_is_told_once_and_is_nowhere(
    keys: Keys, database: asyncpg.Connection
) -> None:
    answer = await keys.ask("POST", json={"name": "told"})
    assert answer.headers["Cache-Control"] == "no-store"
    made = answer.json()
    rotated = await keys.ask("POST", f"/{made['id']}/rotate")
    assert rotated.headers["Cache-Control"] == "no-store"
    texts = [made["key"], rotated.json()["key"]]
    told = [
        (await keys.ask("GET", params={"limit": 1000})).text,
        (await keys.ask("GET", f"/{made['id']}")).text,
        (await keys.ask("DELETE", f"/{made['id']}")).text,
        str(await database.fetch("SELECT api_keys::text FROM api_keys")),
        str(await database.fetch("SELECT audit_outbox::text FROM audit_outbox")),
    ]
    for text in texts:
        secret = text.rpartition("_")[2]
        assert not [place for place in told if secret in place]


async def test_a_key_is_good_from_its_making_until_it_is_revoked(keys: Keys) -> None:
    made = await keys.made("lives")
    await keys.known(made["key"])
    health = await ask(f"{keys.url}/health", headers={"X-API-Key": made["key"]})
    assert health.json()["api_key"]["name"] == "lives"
    revoked = await keys.ask("DELETE", f"/{made['id']}")
    assert (revoked.status_code, revoked.json()["status"]) == (200, "revoked")
    await keys.known(made["key"], 401)


async def test_both_keys_of_a_rotation_are_good_and_then_the_new_one_alone(keys: Keys) -> None:
    terms = {"project": "turned", "scopes": ["read"], "rates": {"": "900/minute"}}
    old = await keys.made("turns", **terms)
    answer = await keys.ask("POST", f"/{old['id']}/rotate", json={"overlap_seconds": 60})
    assert answer.status_code == 201, answer.text
    new = answer.json()
    assert {"name": "turns", **terms}.items() <= new.items()
    assert new["id"] != old["id"]
    await keys.known(new["key"])
    assert await keys.reads(old["key"]) == 200
    replaced = await keys.show(old["id"])
    assert replaced["rotated_to"] == new["id"]
    assert replaced["flags"] == ["expires_soon", "rotated"]
    newest = (await keys.ask("POST", f"/{new['id']}/rotate", json={"overlap_seconds": 0})).json()
    await keys.known(new["key"], 401)
    assert await keys.reads(newest["key"]) == 200
    assert (await keys.show(new["id"]))["status"] == "expired"


async def test_a_rotation_overlaps_for_a_day_unless_more_is_said(
    keys: Keys, database: asyncpg.Connection
) -> None:
    made = await keys.made("for a day", project="p")
    await keys.ask("POST", f"/{made['id']}/rotate")
    left = "SELECT extract(epoch FROM expires_at - now()) FROM api_keys WHERE id = $1"
    assert 86_300 < await database.fetchval(left, made["id"]) <= 86_400


async def test_what_has_ended_or_is_rotated_is_not_rotated(keys: Keys) -> None:
    made = await keys.made("ends")
    await keys.ask("POST", f"/{made['id']}/rotate")
    again = await keys.ask("POST", f"/{made['id']}/rotate")
    await keys.ask("DELETE", f"/{made['id']}")
    revoked = await keys.ask("POST", f"/{made['id']}/rotate")
    assert (again.status_code, revoked.status_code) == (409, 409)
    assert again.json()["type"] == "/problems/conflict"
    assert made["id"] in again.json()["detail"]


async def test_revoking_a_key_once_more_changes_nothing(
    keys: Keys, database: asyncpg.Connection
) -> None:
    made = await keys.made("twice")
    first = (await keys.ask("DELETE", f"/{made['id']}")).json()
    assert (await keys.ask("DELETE", f"/{made['id']}")).json() == first
    noted = (
        "SELECT payload->>'by' AS by, payload->>'key_id' AS key_id FROM audit_outbox"
        " WHERE event_type = 'audit.key_revoked' AND payload->'key'->>'id' = $1"
    )
    assert await database.fetch(noted, made["id"]) == [("admin", "ADMIN_API_KEY")]


async def test_a_list_has_ended_keys_when_they_are_asked_for(keys: Keys) -> None:
    made = await keys.made("gone")
    await keys.ask("DELETE", f"/{made['id']}")
    assert made["id"] not in [key["id"] for key in await keys.listed()]
    (found,) = [key for key in await keys.listed(all=True) if key["id"] == made["id"]]
    assert (found["status"], found["flags"]) == ("revoked", [])


async def test_pages_meet_every_key_once_newest_first(keys: Keys) -> None:
    made = [(await keys.made(f"paged {number}", project="paged"))["id"] for number in range(5)]
    parameters: dict[str, Any] = {"limit": 2}
    met: list[str] = []
    while True:
        page = (await keys.ask("GET", params=parameters)).json()
        met += [key["id"] for key in page["keys"]]
        if page["next_cursor"] is None:
            break
        assert len(page["keys"]) == 2
        parameters["cursor"] = page["next_cursor"]
    assert met == [key["id"] for key in await keys.listed()]
    assert met[:5] == made[::-1]


async def test_a_cursor_that_this_list_did_not_give_is_refused(keys: Keys) -> None:
    await keys.made("first", project="p")
    await keys.made("second", project="p")
    cursor = (await keys.ask("GET", params={"limit": 1})).json()["next_cursor"]
    position = urlsafe_b64decode(cursor)[:20]
    forged = (
        sealed_cursor(position[:8] + b"\x00" * 12, ("keys", False)),
        sealed_cursor(position[:8] + b"\xff" * 12, ("keys", False)),
        sealed_cursor(struct.pack(">q", 2**63 - 1) + position[8:], ("keys", False)),
        sealed_cursor(position[:19], ("keys", False)),
    )
    for text in (*forged, "", "x", cursor[:-4] + "AAA="):
        assert faults(await keys.ask("GET", params={"cursor": text})) == ["cursor"]
    other = await keys.ask("GET", params={"cursor": cursor, "all": "true"})
    assert faults(other) == ["cursor"]


async def test_keys_of_the_environment_are_told_and_cannot_be_changed(keys: Keys) -> None:
    answer = (await keys.ask("GET")).json()
    assert [(key["variable"], key["name"], key["scopes"]) for key in answer["environment"]] == [
        ("API_KEY", "default", ["read", "write"]),
        ("ADMIN_API_KEY", "admin", ["admin", "erase", "read", "write"]),
    ]
    assert ADMIN_API_KEY not in json.dumps(answer)
    for method, path in (("DELETE", "/API_KEY"), ("POST", "/ADMIN_API_KEY/rotate")):
        assert faults(await keys.ask(method, path)) == ["key_id"]


@pytest.mark.parametrize(
    ("change", "flags"),
    [
        ("created_at = now() - interval '89 days'", ["unused"]),
        ("created_at = now() - interval '90 days'", ["old", "unused"]),
        ("created_at = now() - interval '29 days'", []),
        ("expires_at = now() + interval '13 days'", ["expires_soon"]),
        ("expires_at = now() + interval '15 days'", []),
        ("pepper = '\\x0123456789abcdef'", ["other_pepper"]),
    ],
)
async def test_what_somebody_should_look_at_is_flagged(
    keys: Keys, database: asyncpg.Connection, change: str, flags: list[str]
) -> None:
    made = await keys.made("flagged")
    await database.execute(f"UPDATE api_keys SET {change} WHERE id = $1", made["id"])
    assert (await keys.show(made["id"]))["flags"] == flags


async def test_a_key_tells_its_last_use_and_the_requests_of_a_day(
    keys: Keys, database: asyncpg.Connection
) -> None:
    made = await keys.made("used")
    await database.execute(
        "UPDATE api_keys SET created_at = now() - interval '80 days' WHERE id = $1", made["id"]
    )
    await database.execute(
        "INSERT INTO api_key_uses SELECT $1, date_trunc('hour', now()) - ago, 5"
        " FROM unnest(ARRAY[interval '0', '23 hours', '25 hours']) AS ago",
        made["id"],
    )
    hour = await database.fetchval("SELECT date_trunc('hour', now())")
    shown = await keys.show(made["id"])
    assert shown["last_used_at"] == hour.isoformat().replace("+00:00", "Z")
    assert (shown["requests_last_day"], shown["flags"]) == (10, [])


async def test_nobody_gives_a_scope_that_its_own_key_lacks(keys: Keys) -> None:
    admin = await keys.made("an admin", project="p", scopes=["admin", "read"])
    eraser = await keys.made("an eraser", project="p", scopes=["erase"])
    await keys.known(admin["key"])
    mine = {"X-API-Key": admin["key"]}
    for scope, status in (("erase", 403), ("write", 403), ("read", 201), ("admin", 201)):
        order = {"name": "given", "scopes": [scope]}
        assert (await keys.ask("POST", key=mine, json=order)).status_code == status
    rotated = await keys.ask("POST", f"/{eraser['id']}/rotate", key=mine)
    assert (rotated.status_code, "'erase'" in rotated.json()["detail"]) == (403, True)
    assert (await keys.show(eraser["id"]))["rotated_to"] is None


@pytest.mark.parametrize(
    ("order", "field"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": 7}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "a\x00b"}, "name"),
        ({"name": "a\u202eb"}, "name"),
        ({"name": " a"}, "name"),
        ({"name": "with space"}, "project"),
        ({"name": "x", "project": "a/b"}, "project"),
        ({"name": "x", "project": "audit"}, "project"),
        ({"name": "audit"}, "project"),
        ({"name": "x", "project": "x" * 101}, "project"),
        ({"name": "x", "project": "p\n"}, "project"),
        ({"name": "x", "scopes": []}, "scopes"),
        ({"name": "x", "scopes": ["root"]}, "scopes"),
        ({"name": "x", "scopes": "read"}, "scopes"),
        ({"name": "x", "rates": {"/log": "many"}}, "rates./log"),
        ({"name": "x", "rates": {"log": "1/minute"}}, "rates.log"),
        ({"name": "x", "rates": {"": "0/minute"}}, "rates"),
        ({"name": "x", "rates": {f"/{number}": "1/day" for number in range(51)}}, "rates"),
        ({"name": "x", "networks": ["10.0.0.1/8"]}, "networks.0"),
        ({"name": "x", "networks": ["10.0.0.0/8", "everywhere"]}, "networks.1"),
        ({"name": "x", "networks": ["10.0.0.1"] * 51}, "networks"),
        ({"name": "x", "expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"name": "x", "expires_at": "2126-01-01T00:00:00"}, "expires_at"),
        ({"name": "x", "expires_at": "2999-01-01T00:00:00Z"}, "expires_at"),
        ({"name": "x", "expires_at": 1}, "expires_at"),
        ({"name": "x", "id": NOBODY}, "id"),
        ([], "body"),
    ],
)
async def test_a_field_that_cannot_be_used_is_named(keys: Keys, order: Any, field: str) -> None:
    assert faults(await keys.ask("POST", json=order)) == [field]


@pytest.mark.parametrize("seconds", [-1, 2_592_001, "60", 1.5, None])
async def test_an_overlap_is_a_number_of_seconds_up_to_thirty_days(
    keys: Keys, seconds: object
) -> None:
    made = await keys.made("overlaps")
    answer = await keys.ask("POST", f"/{made['id']}/rotate", json={"overlap_seconds": seconds})
    assert faults(answer) == ["overlap_seconds"]


async def test_a_body_that_cannot_be_read_makes_no_key(keys: Keys) -> None:
    before = len(await keys.listed(all=True))
    broken = await keys.ask("POST", data=b'{"name": ')
    form = await keys.ask("POST", data={"name": "form"})
    large = await keys.ask("POST", data=b'{"name": "' + b"x" * 65_536 + b'"}')
    assert [broken.status_code, form.status_code, large.status_code] == [400, 415, 413]
    assert len(await keys.listed(all=True)) == before


async def test_a_key_that_is_not_there_is_not_found_by_its_name_either(keys: Keys) -> None:
    made = await keys.made(NOBODY)
    assert made["id"] != NOBODY
    for method, path in (("GET", ""), ("POST", "/rotate"), ("DELETE", "")):
        answer = await keys.ask(method, f"/{NOBODY}{path}")
        assert answer.status_code == 404
        assert NOBODY in answer.json()["detail"]
    assert (await keys.show(made["id"]))["status"] == "active"


@pytest.mark.parametrize("key_id", ["A" * 12, "a" * 13, "%00" * 12, "a" * 11 + "%0A"])
async def test_an_id_that_cannot_be_is_named(keys: Keys, key_id: str) -> None:
    assert faults(await keys.ask("DELETE", f"/{key_id}")) == ["key_id"]


async def test_no_route_takes_a_parameter_that_it_does_not_know(keys: Keys) -> None:
    for method, path in ROUTES:
        answer = await ask(f"{keys.url}{path}?limits=1", method, headers=ADMIN, json={"name": "x"})
        assert faults(answer) == ["limits"], path


async def test_without_the_database_the_routes_are_unavailable(
    redis_url: str, tmp_path: Path, free_port: int
) -> None:
    away = f"postgresql://nobody@127.0.0.1:{free_port}/nothing"
    async with served(create_app(settings_of(away, redis_url, tmp_path))) as url:
        for method, path in ROUTES:
            answer = await ask(f"{url}{path}", method, headers=ADMIN, json={"name": "x"})
            if path.endswith("/rotate"):
                assert faults(answer) == ["name"]
            else:
                assert answer.status_code == 503, (method, path)
