"""Keys: what they look like, on which terms they are made, and what the database keeps of them."""

import asyncio
import json
import multiprocessing
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from logging_service import api_keys, data_folder
from logging_service.api_keys import READ_WRITE, KeyPlace, KeyStore, KeyTerms, terms_of
from logging_service.audit import COMMAND_LINE, Actor
from logging_service.backends import open_keys
from logging_service.errors import KeyConflict, KeyRejected, SettingsError
from logging_service.key_text import claimed_id, is_well_formed, make_key
from logging_service.pepper import kept_pepper, pepper_of
from logging_service.settings import Settings

SOON = timedelta(hours=1)
ADMIN = Actor("admin", "ADMIN_API_KEY")


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[KeyStore]:
    async with open_keys(settings) as opened:
        yield opened


def with_settings(settings: Settings, **changed: Any) -> AbstractAsyncContextManager[KeyStore]:
    return open_keys(Settings.model_validate({**settings.model_dump(), **changed}))


class TestText:
    def test_a_key_names_its_id_and_no_two_are_alike(self) -> None:
        made = [make_key() for _ in range(100)]
        assert len({text for _, text in made}) == 100
        for key_id, text in made:
            assert text.startswith(f"lsk_{key_id}_")
            assert len(text) == 63
            assert claimed_id(text.encode()) == key_id.encode()
            assert is_well_formed(text.encode())

    def test_one_wrong_character_is_told_wherever_it_is(self) -> None:
        _, text = make_key()
        for place, character in enumerate(text):
            wrong = f"{text[:place]}{'b' if character == 'a' else 'a'}{text[place + 1 :]}"
            assert not is_well_formed(wrong.encode())

    def test_what_is_cut_off_or_has_more_is_no_key(self) -> None:
        _, text = make_key()
        for wrong in (text[:-1], text[1:], *(text + more for more in ("x", "\n", " ", "é")), ""):
            assert not is_well_formed(wrong.encode())


class TestTerms:
    def test_the_project_is_the_name_unless_set(self) -> None:
        assert terms_of("shop") == KeyTerms("shop", "shop", READ_WRITE, {}, (), None)
        assert terms_of("The shop's key", project="shop").project == "shop"

    def test_networks_and_rates_are_kept_as_they_are_meant(self) -> None:
        rates = {"": "500/minute", "/logs": "100/hour", "/events/{event_id}": "1/second"}
        terms = terms_of("a", networks=["10.0.0.0/8", "192.168.1.4", "2001:DB8::/32"], rates=rates)
        assert terms.networks == ("10.0.0.0/8", "192.168.1.4/32", "2001:db8::/32")
        assert terms.rates == rates

    @pytest.mark.parametrize(
        ("terms", "loc"),
        [
            ({"name": ""}, "name"),
            ({"name": "a" * 101}, "name"),
            ({"name": "a\x1b[2J"}, "name"),
            ({"name": " a"}, "name"),
            ({"name": "two words"}, "project"),
            ({"name": "audit"}, "project"),
            ({"name": "a", "project": "audit"}, "project"),
            ({"name": "a", "project": ""}, "project"),
            ({"name": "a", "project": "a\n"}, "project"),
            ({"name": "a", "scopes": []}, "scopes"),
            ({"name": "a", "scopes": ["read", "root"]}, "scopes"),
            ({"name": "a", "rates": {"/log": "many"}}, "rates./log"),
            ({"name": "a", "rates": {"": "1"}}, "rates"),
            ({"name": "a", "rates": {"log": "1/minute"}}, "rates.log"),
            ({"name": "a", "rates": {f"/{n}": "1/day" for n in range(51)}}, "rates"),
            ({"name": "a", "networks": ["10.0.0.0/8", "10.0.0.1/8"]}, "networks.1"),
            ({"name": "a", "networks": ["localhost"]}, "networks.0"),
            ({"name": "a", "networks": ["10.0.0.1"] * 51}, "networks"),
            ({"name": "a", "expires_at": datetime(2020, 1, 1, tzinfo=UTC)}, "expires_at"),
            ({"name": "a", "expires_at": datetime(2990, 1, 1, tzinfo=UTC)}, "expires_at"),
            ({"name": "a", "expires_at": datetime(2090, 1, 1)}, "expires_at"),  # noqa: DTZ001
        ],
    )
    def test_what_no_key_may_have_is_refused_and_named(
        self, terms: dict[str, Any], loc: str
    ) -> None:
        with pytest.raises(KeyRejected) as refused:
            terms_of(**terms)
        assert refused.value.loc == loc


def make_pepper(folder: str, told: "multiprocessing.Queue[bytes]") -> None:
    settings = Settings.model_validate({"data_dir": folder})
    told.put(kept_pepper(settings).fingerprint)


class TestPepper:
    def test_it_is_made_once_and_readable_by_its_owner_alone(self, tmp_path: Path) -> None:
        settings = Settings.model_validate({"data_dir": tmp_path / "data"})
        assert pepper_of(settings) is None
        made = kept_pepper(settings)
        present = pepper_of(settings)
        assert present is not None
        assert made.fingerprint == present.fingerprint == kept_pepper(settings).fingerprint
        file = tmp_path / "data" / "key_pepper"
        assert file.stat().st_mode & 0o777 == 0o600
        assert made.digest(b"a") == present.digest(b"a") != present.digest(b"b")

    def test_processes_that_make_it_at_once_get_the_same(self, tmp_path: Path) -> None:
        context = multiprocessing.get_context("fork")
        told: multiprocessing.Queue[bytes] = context.Queue()
        makers = [context.Process(target=make_pepper, args=(str(tmp_path), told)) for _ in range(8)]
        for maker in makers:
            maker.start()
        fingerprints = {told.get(timeout=30) for _ in makers}
        for maker in makers:
            maker.join()
        assert len(fingerprints) == 1

    def test_the_operators_own_wins_and_is_not_kept(self, tmp_path: Path) -> None:
        settings = Settings.model_validate({"data_dir": tmp_path, "api_key_pepper": "p" * 16})
        pepper = kept_pepper(settings)
        assert pepper.fingerprint == (pepper_of(settings) or pepper).fingerprint
        assert not (tmp_path / "key_pepper").exists()

    def test_where_it_cannot_be_kept_the_operator_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "key_pepper").mkdir()
        settings = Settings.model_validate({"data_dir": tmp_path})
        with pytest.raises(SettingsError, match="set API_KEY_PEPPER"):
            kept_pepper(settings)

    def test_one_that_is_no_text_is_told_and_not_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "key_pepper").write_bytes(b"\xff\xfe")
        settings = Settings.model_validate({"data_dir": tmp_path})
        assert pepper_of(settings) is None
        with pytest.raises(SettingsError, match="it is no text; set API_KEY_PEPPER"):
            kept_pepper(settings)
        assert (tmp_path / "key_pepper").read_bytes() == b"\xff\xfe"


async def audited(database: asyncpg.Connection) -> list[tuple[str, Mapping[str, Any]]]:
    rows = await database.fetch("SELECT event_type, payload FROM audit_outbox ORDER BY number")
    return [(row["event_type"], json.loads(row["payload"])) for row in rows]


class TestStore:
    async def test_a_made_key_is_shown_with_all_but_its_text(
        self, store: KeyStore, database: asyncpg.Connection
    ) -> None:
        expires = datetime.now(UTC) + SOON
        terms = terms_of("shop", rates={"/log": "5/minute"}, networks=["10.0.0.1"])
        made = await store.create(terms._replace(expires_at=expires), ADMIN)
        assert is_well_formed(made.text.encode())
        (shown,) = await store.page(10)
        assert shown == made.key
        assert (shown.name, shown.project, shown.scopes) == ("shop", "shop", ["read", "write"])
        assert (shown.rates, shown.networks) == ({"/log": "5/minute"}, ["10.0.0.1/32"])
        assert (shown.created_by, shown.expires_at) == ("admin", expires)
        assert (shown.last_used_at, shown.requests_last_day) == (None, 0)
        assert not shown.has_other_pepper
        assert shown.is_active(datetime.now(UTC))
        assert not shown.is_active(expires)

        stored = str(await database.fetch("SELECT * FROM api_keys"))
        secret = made.text.removeprefix(f"lsk_{made.key.id}_")
        assert secret not in stored
        assert secret.encode().hex() not in stored
        ((event_type, payload),) = await audited(database)
        assert event_type == "audit.key_created"
        assert (payload["by"], payload["key_id"]) == ("admin", "ADMIN_API_KEY")
        assert (payload["key"]["id"], payload["key"]["project"]) == (made.key.id, "shop")
        assert secret not in str(payload)

    async def test_pages_are_newest_first_and_without_ended_ones_unless_asked(
        self, store: KeyStore
    ) -> None:
        made = [(await store.create(terms_of(f"key{n}"), ADMIN)).key.id for n in range(5)]
        await store.revoke(made[2], ADMIN)
        first = await store.page(3)
        place = KeyPlace(first[-1].created_at, first[-1].id)
        rest = await store.page(3, place)
        assert [key.id for key in [*first, *rest]] == [made[n] for n in (4, 3, 1, 0)]
        assert [key.id for key in await store.page(9, ended=True)] == made[::-1]

    async def test_a_key_is_found_by_id_and_by_name(self, store: KeyStore) -> None:
        old, new, other = [
            (await store.create(terms_of(name), ADMIN)).key.id for name in ("a", "a", "b")
        ]
        assert [key.id for key in await store.find(other)] == [other]
        assert [key.id for key in await store.find("a")] == [new, old]
        await store.revoke(old, ADMIN)
        assert [key.id for key in await store.find("a")] == [new]
        await store.revoke(new, ADMIN)
        assert [key.id for key in await store.find("a")] == [new, old]
        assert await store.find("c") == []

    async def test_rotation_makes_a_key_on_the_same_terms_and_ends_the_old_one(
        self, store: KeyStore, database: asyncpg.Connection
    ) -> None:
        terms = terms_of("a", project="p", scopes=["read"], rates={"": "5/day"}, networks=["::1"])
        expires = datetime.now(UTC) + timedelta(days=10)
        old = await store.create(terms._replace(expires_at=expires), ADMIN)
        new = await store.rotate(old.key.id, ADMIN, SOON)
        assert new is not None
        assert new.text != old.text
        kept = ("name", "project", "scopes", "rates", "networks")
        assert [getattr(new.key, name) for name in kept] == [
            getattr(old.key, name) for name in kept
        ]
        assert old.key.expires_at
        assert new.key.expires_at
        lifetime = old.key.expires_at - old.key.created_at
        assert new.key.expires_at - new.key.created_at == lifetime
        (shown,) = await store.find(old.key.id)
        assert shown.rotated_to == new.key.id
        assert shown.expires_at == new.key.created_at + SOON
        assert [kind for kind, _ in await audited(database)][-1] == "audit.key_rotated"
        told = (await audited(database))[-1][1]
        assert (told["key"]["id"], told["key"]["rotated_to"]) == (old.key.id, new.key.id)

    async def test_a_rotated_key_lives_no_longer_than_it_would_have(self, store: KeyStore) -> None:
        expires = datetime.now(UTC) + SOON
        old = await store.create(terms_of("a")._replace(expires_at=expires), ADMIN)
        await store.rotate(old.key.id, ADMIN, timedelta(days=30))
        assert (await store.find(old.key.id))[0].expires_at == expires

    async def test_only_a_key_that_is_good_can_be_rotated_and_only_once(
        self, store: KeyStore, database: asyncpg.Connection
    ) -> None:
        rotated, revoked, ended = [
            (await store.create(terms_of("a"), ADMIN)).key.id for _ in range(3)
        ]
        await store.rotate(rotated, ADMIN)
        await store.revoke(revoked, ADMIN)
        await database.execute("UPDATE api_keys SET expires_at = now() WHERE id = $1", ended)
        keys = await store.page(9, ended=True)
        notes = await audited(database)
        for key_id, said in ((rotated, "already"), (revoked, "revoked"), (ended, "expired")):
            with pytest.raises(KeyConflict, match=said):
                await store.rotate(key_id, ADMIN)
        for overlap in (timedelta(seconds=-1), timedelta(days=31)):
            with pytest.raises(KeyRejected, match="overlap_seconds"):
                await store.rotate(ended, ADMIN, overlap)
        assert await store.rotate("a" * 12, ADMIN) is None
        assert await store.page(9, ended=True) == keys
        assert await audited(database) == notes

    async def test_two_who_rotate_one_key_at_once_make_one(self, store: KeyStore) -> None:
        old = await store.create(terms_of("a"), ADMIN)
        turns = [store.rotate(old.key.id, ADMIN) for _ in range(2)]
        outcomes = await asyncio.gather(*turns, return_exceptions=True)
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["KeyConflict", "MadeKey"]
        assert len(await store.page(9)) == 2

    async def test_a_revoked_key_stays_revoked_and_is_noted_once(
        self, store: KeyStore, database: asyncpg.Connection
    ) -> None:
        made = await store.create(terms_of("a"), ADMIN)
        first = await store.revoke(made.key.id, COMMAND_LINE)
        assert first is not None
        assert first.revoked_at is not None
        assert await store.revoke(made.key.id, ADMIN) == first
        assert await store.revoke("a" * 12, ADMIN) is None
        assert [kind for kind, _ in await audited(database)] == [
            "audit.key_created",
            "audit.key_revoked",
        ]

    async def test_changes_are_told_from_any_number_on(self, store: KeyStore) -> None:
        old, new = [(await store.create(terms_of("a"), ADMIN)).key.id for _ in range(2)]
        loaded = await store.changes(-1)
        assert loaded is not None
        assert loaded.is_whole
        assert {key.id for key in loaded.keys} == {old, new}
        assert await store.changes(loaded.number) is None
        await store.revoke(old, ADMIN)
        changed = await store.changes(loaded.number)
        assert changed is not None
        assert not changed.is_whole
        assert [(key.id, key.is_revoked) for key in changed.keys] == [(old, True)]
        # A number from another database's future: everything is told anew.
        again = await store.changes(changed.number + 100)
        assert again is not None
        assert again.is_whole
        assert [key.id for key in again.keys] == [new]

    async def test_uses_add_up_and_the_last_one_is_never_forgotten(self, store: KeyStore) -> None:
        key_id = (await store.create(terms_of("a"), ADMIN)).key.id
        hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
        long_ago = hour - timedelta(days=40)
        await store.note_uses({(key_id, long_ago - SOON): 7, (key_id, long_ago): 5})
        await store.note_uses({("API_KEY", long_ago): 1})
        await store.forget_old_uses()
        (shown,) = await store.find(key_id)
        assert (shown.last_used_at, shown.requests_last_day) == (long_ago, 0)
        assert (await store.uses(["API_KEY"]))["API_KEY"].last_used_at == long_ago
        for _ in range(2):
            await store.note_uses({(key_id, hour): 3, (key_id, hour - SOON): 4})
        await store.forget_old_uses()
        assert (await store.uses([key_id, "ADMIN_API_KEY"])) == {key_id: (hour, 14)}
        (shown,) = await store.find(key_id)
        assert (shown.last_used_at, shown.requests_last_day) == (hour, 14)

    async def test_a_key_of_another_pepper_is_shown_as_such(
        self, store: KeyStore, settings: Settings
    ) -> None:
        await store.create(terms_of("a"), ADMIN)
        async with with_settings(settings, api_key_pepper="p" * 16) as other:
            assert (await other.page(9))[0].has_other_pepper

    async def test_no_second_pepper_is_made_beside_keys_that_are_active(
        self, store: KeyStore, settings: Settings, tmp_path: Path
    ) -> None:
        made = await store.create(terms_of("a"), ADMIN)
        async with with_settings(settings, data_dir=tmp_path / "elsewhere") as elsewhere:
            with pytest.raises(KeyConflict, match="pepper"):
                await elsewhere.create(terms_of("b"), ADMIN)
            await elsewhere.revoke(made.key.id, ADMIN)
            assert await elsewhere.create(terms_of("b"), ADMIN)

    async def test_no_key_is_made_where_its_pepper_cannot_be_kept(
        self, settings: Settings, tmp_path: Path
    ) -> None:
        (tmp_path / "data").write_text("a file, and no folder")
        async with with_settings(settings, data_dir=tmp_path / "data") as unkept:
            with pytest.raises(KeyConflict, match=r"DATA_DIR=.*/data cannot be used"):
                await unkept.create(terms_of("a"), ADMIN)
            assert await unkept.page(9) == []

    async def test_there_is_a_most_of_active_keys_and_rotation_keeps_to_it(
        self, store: KeyStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert api_keys.MAX_ACTIVE_KEYS == 10_000
        monkeypatch.setattr("logging_service.postgres_keys.MAX_ACTIVE_KEYS", 2)
        first = await store.create(terms_of("a"), ADMIN)
        await store.create(terms_of("a"), ADMIN)
        with pytest.raises(KeyConflict, match="2 keys are active"):
            await store.create(terms_of("a"), ADMIN)
        with pytest.raises(KeyConflict):
            await store.rotate(first.key.id, ADMIN)
        assert await store.rotate(first.key.id, ADMIN, timedelta(0))
        assert len(await store.page(9)) == 2


def test_a_secret_that_is_empty_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("\n")
    assert data_folder.kept_secret(tmp_path / "secret", lambda: "made") == "made"
    assert data_folder.kept_secret(tmp_path / "secret", lambda: "again") == "made"
