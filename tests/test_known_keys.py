"""Made keys in running services: known soon, refused soon, served while the database is away."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
import requests
from conftest import API_KEY
from relay import before
from served import ask, served
from servers import RunningService, run_service

from logging_service import known_keys
from logging_service.api_keys import KeyStore, MadeKey, terms_of
from logging_service.audit import COMMAND_LINE as BY
from logging_service.auth import Keyring
from logging_service.backends import open_keys
from logging_service.known_keys import KeyFollower, keeping_keys
from logging_service.query_service import create_app
from logging_service.settings import Settings

EVENT = {"event_type": "review_started", "payload": {}}
HERE = "127.0.0.1"
PROMISED_SECONDS = 2.0


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[KeyStore]:
    async with open_keys(settings) as opened:
        yield opened


async def post(service: RunningService, key: str, **more: str) -> int:
    """Send one event over a connection of its own, and return the answer's status."""
    headers = {"X-API-Key": key, "Connection": "close", **more}
    answer = await ask(f"{service.url}/log", "POST", json=EVENT, headers=headers)
    return answer.status_code


async def eventually(asked: Callable[[], Awaitable[bool]]) -> float:
    """Ask until it is so, and return after how many seconds; ten are too long."""
    began = time.monotonic()
    while not await asked():
        assert time.monotonic() - began < 10
        await asyncio.sleep(0.02)
    return time.monotonic() - began


async def in_a_row(service: RunningService, key: str, status: int, times: int = 10) -> bool:
    """Whether so many requests are all answered so: with two workers, by both."""
    return all([await post(service, key) == status for _ in range(times)])


class TestServices:
    async def test_every_worker_knows_a_change_within_two_seconds(
        self, environment: dict[str, str], store: KeyStore
    ) -> None:
        patient = {**environment, "AUTH_FAILURE_LIMIT": "10000/minute"}
        with run_service("producer", patient, "--workers", "2") as producer:
            made = await store.create(terms_of("shop"), BY)
            assert await eventually(lambda: in_a_row(producer, made.text, 202)) < PROMISED_SECONDS
            rotated = await store.rotate(made.key.id, BY, timedelta(seconds=30))
            assert rotated
            seconds = await eventually(lambda: in_a_row(producer, rotated.text, 202))
            assert seconds < PROMISED_SECONDS
            assert await in_a_row(producer, made.text, 202)
            await store.revoke(rotated.key.id, BY)
            seconds = await eventually(lambda: in_a_row(producer, rotated.text, 401))
            assert seconds < PROMISED_SECONDS
            assert await in_a_row(producer, made.text, 202)

    async def test_after_the_overlap_only_the_new_key_is_good(
        self, settings: Settings, store: KeyStore
    ) -> None:
        old = await store.create(terms_of("shop"), BY)
        new = await store.rotate(old.key.id, BY, timedelta(seconds=1.5))
        assert new
        async with served(create_app(settings)) as url:
            assert (await health(url, old.text)).status_code == 200
            assert (await health(url, new.text)).status_code == 200

            async def is_over() -> bool:
                return (await health(url, old.text)).status_code == 401

            await eventually(is_over)
            assert "expired" in (await health(url, old.text)).json()["detail"]
            assert (await health(url, new.text)).json()["api_key"] == {
                "valid": True,
                "name": "shop",
                "scopes": ["read", "write"],
            }

    async def test_who_sends_too_many_wrong_keys_is_refused_whole(
        self, environment: dict[str, str]
    ) -> None:
        limited = {
            **environment,
            "AUTH_FAILURE_LIMIT": "3/hour",
            "TRUSTED_PROXIES": "127.0.0.1",
        }
        with run_service("producer", limited) as producer:
            assert [await post(producer, "wrong") for _ in range(4)] == [401, 401, 401, 429]
            answer = await health(producer.url, API_KEY)
            assert answer.status_code == 429
            assert 3590 < int(answer.headers["Retry-After"]) <= 3600
            assert (await ask(f"{producer.url}/health")).status_code == 200
            # A client of a trusted proxy is an address of its own.
            assert await post(producer, API_KEY, **{"X-Forwarded-For": "192.0.2.7"}) == 202

    async def test_a_key_of_networks_is_refused_from_elsewhere(
        self, settings: Settings, store: KeyStore
    ) -> None:
        elsewhere = await store.create(terms_of("a", networks=["192.0.2.0/24"]), BY)
        here = await store.create(terms_of("a", networks=["192.0.2.0/24", "127.0.0.0/8"]), BY)
        trusting = Settings.model_validate(
            {**settings.model_dump(), "trusted_proxies": "127.0.0.1"}
        )
        async with served(create_app(trusting)) as url:
            assert (await health(url, here.text)).status_code == 200
            assert (await health(url, elsewhere.text)).status_code == 403
            # The proxy that is trusted says where the request comes from.
            told = {"X-Forwarded-For": "192.0.2.7"}
            assert (await health(url, elsewhere.text, **told)).status_code == 200
            assert (await health(url, here.text, **told)).status_code == 200
            told = {"X-Forwarded-For": "198.51.100.7"}
            assert (await health(url, here.text, **told)).status_code == 403
            # Reading asks the same.
            for made, status in ((here, 200), (elsewhere, 403)):
                sent = {"X-API-Key": made.text}
                assert (await ask(f"{url}/events", headers=sent)).status_code == status

    async def test_use_is_written_down_at_the_stop_and_only_what_was_admitted(
        self, settings: Settings, store: KeyStore
    ) -> None:
        made = await store.create(terms_of("reader", scopes=["read"]), BY)
        async with served(create_app(settings)) as url:
            key = {"X-API-Key": made.text}
            for _ in range(3):
                assert (await ask(f"{url}/events", headers=key)).status_code == 200
            assert (await ask(f"{url}/events")).status_code == 200
            assert (await ask(f"{url}/dead-letters", headers=key)).status_code == 403
            assert (await health(url, made.text)).status_code == 200
            configured = {"X-API-Key": API_KEY}
            assert (await ask(f"{url}/events/types", headers=configured)).status_code == 200
        uses = await store.uses([made.key.id, "API_KEY", "ADMIN_API_KEY"])
        assert {key_id: use.requests_last_day for key_id, use in uses.items()} == {
            made.key.id: 3,
            "API_KEY": 1,
        }


@asynccontextmanager
async def running(environment: dict[str, str]) -> AsyncIterator[RunningService]:
    """Run a producer whose connections this process can pass on while it starts."""
    service = run_service("producer", environment)
    producer = await asyncio.to_thread(service.__enter__)
    try:
        yield producer
    finally:
        await asyncio.to_thread(service.__exit__, None, None, None)


async def health(url: str, key: str, **headers: str) -> requests.Response:
    return await ask(f"{url}/health", headers={"X-API-Key": key, **headers})


def is_good(keyring: Keyring, made: MadeKey) -> bool:
    return keyring.principal_from_headers({b"x-api-key": made.text.encode()}, HERE) is not None


def is_known(keyring: Keyring, made: MadeKey) -> bool:
    return made.key.id.encode() in keyring._made


class TestOutage:
    async def test_known_keys_are_served_and_unknown_ones_refused(
        self, environment: dict[str, str], database_url: str, store: KeyStore
    ) -> None:
        known = await store.create(terms_of("known"), BY)
        async with (
            before(database_url) as (relay, through),
            running({**environment, "DATABASE_URL": through}) as producer,
        ):

            async def says_so() -> bool:
                return "keys_not_refreshed" in producer.log

            assert await post(producer, known.text) == 202
            await relay.cut()
            unknown = await store.create(terms_of("unknown"), BY)
            await store.revoke(known.key.id, BY)
            await eventually(says_so)
            assert await post(producer, known.text) == 202
            assert await post(producer, unknown.text) == 401
            await relay.mend()
            seconds = await eventually(lambda: in_a_row(producer, known.text, 401, 1))
            assert seconds < PROMISED_SECONDS
            assert await post(producer, unknown.text) == 202
            assert producer.log.count("keys_not_refreshed") == 1

    async def test_without_ever_having_seen_the_keys_it_says_try_again(
        self, environment: dict[str, str], free_port: int, store: KeyStore
    ) -> None:
        made = await store.create(terms_of("shop"), BY)
        away = {**environment, "DATABASE_URL": f"postgresql://x@127.0.0.1:{free_port}/x"}
        with run_service("producer", away) as producer:
            answer = await health(producer.url, made.text)
            assert answer.status_code == 503
            assert int(answer.headers["Retry-After"]) > 0
            assert await post(producer, made.text) == 503
            assert await post(producer, API_KEY) == 202
            assert await post(producer, "lsk_wrong") == 401

    async def test_a_database_that_hangs_delays_no_start(
        self, settings: Settings, database_url: str, store: KeyStore, monkeypatch: Any
    ) -> None:
        monkeypatch.setattr(known_keys, "_ANSWER_SECONDS", 0.2)
        monkeypatch.setattr(known_keys, "_LOAD_SECONDS", 0.4)
        made = await store.create(terms_of("shop"), BY)
        async with before(database_url) as (relay, through):
            relay.is_half_open = True
            hanging = Settings.model_validate({**settings.model_dump(), "database_url": through})
            keyring = Keyring(hanging)
            began = time.monotonic()
            async with keeping_keys(hanging, keyring):
                assert time.monotonic() - began < 1
                relay.is_half_open = False

                async def is_loaded() -> bool:
                    return is_known(keyring, made)

                await eventually(is_loaded)
            assert is_good(keyring, made)


class TestFollower:
    async def test_what_was_changed_by_hand_is_seen_by_the_next_whole_load(
        self, settings: Settings, store: KeyStore, database: asyncpg.Connection
    ) -> None:
        made = await store.create(terms_of("shop"), BY)
        keyring = Keyring(settings)
        follower = KeyFollower(store, keyring, settings)
        await follower.refresh()
        assert is_good(keyring, made)
        await database.execute("UPDATE api_keys SET revoked_at = now()")
        await follower.refresh()
        assert is_good(keyring, made)
        follower._whole_due = 0.0
        await follower.refresh()
        assert keyring._made == {}

    @pytest.mark.parametrize(
        "changed",
        [
            "rates = '[]'",
            """rates = '{"/log": 5}'""",
            """rates = '"\\ud800"'""",
            "networks = ARRAY[NULL]",
            "scopes = ARRAY[NULL]",
            "expires_at = '-infinity'",
            "expires_at = 'infinity'",
        ],
    )
    async def test_a_row_that_cannot_be_read_holds_up_no_other_key(
        self, settings: Settings, store: KeyStore, database: asyncpg.Connection, changed: str
    ) -> None:
        revoked, bad = await store.create(terms_of("a"), BY), await store.create(terms_of("b"), BY)
        keyring = Keyring(settings)
        follower = KeyFollower(store, keyring, settings)
        await follower.refresh()
        await database.execute(
            f"UPDATE api_keys SET {changed}, changed = changed + 1 WHERE id = $1", bad.key.id
        )
        await store.revoke(revoked.key.id, BY)
        await follower.refresh()
        assert not is_known(keyring, revoked)
        follower._whole_due = 0.0
        await follower.refresh()
        assert len(await store.page(9, ended=True)) == 2

    async def test_a_pepper_that_cannot_be_read_for_once_refuses_no_key(
        self, settings: Settings, store: KeyStore
    ) -> None:
        made = await store.create(terms_of("shop"), BY)
        keyring = Keyring(settings)
        follower = KeyFollower(store, keyring, settings)
        await follower.refresh()
        (settings.data_path / "key_pepper").unlink()
        follower._whole_due = 0.0
        await follower.refresh()
        assert is_good(keyring, made)

    async def test_uses_that_cannot_be_written_down_wait_and_are_bounded(
        self, settings: Settings, store: KeyStore, free_port: int, monkeypatch: Any
    ) -> None:
        keyring = Keyring(settings)
        holder = keyring.principal_from_headers({b"x-api-key": API_KEY.encode()}, HERE)
        assert holder
        gone = {"database_url": f"postgresql://x@127.0.0.1:{free_port}/x"}
        away = Settings.model_validate({**settings.model_dump(), **gone})
        async with open_keys(away) as unreachable:
            follower = KeyFollower(unreachable, keyring, away)
            for _ in range(2):
                keyring.note_use(holder)
                await follower.note_uses()
            follower._store = store
            await follower.note_uses()
        assert (await store.uses(["API_KEY"]))["API_KEY"].requests_last_day == 2

        monkeypatch.setattr(known_keys, "_MAX_PENDING", 2)
        follower._store = unreachable
        hour = datetime(2026, 1, 1, tzinfo=UTC)
        follower._pending = {(f"{n}", hour): 1 for n in range(4)}
        await follower.note_uses()
        assert list(follower._pending) == [("2", hour), ("3", hour)]
