"""Who may do what, row by row."""

import hmac
from datetime import UTC, datetime
from typing import Any
from zlib import crc32

import pytest

from logging_service import auth
from logging_service.api_keys import EVERY_SCOPE, READ_WRITE, KeyChanges, StoredKey
from logging_service.auth import Keyring, Principal, ReadingRule, require
from logging_service.errors import BackendUnavailable, Forbidden, RateLimited, Unauthenticated
from logging_service.failed_attempts import FailedAttempts
from logging_service.hosts import is_loopback
from logging_service.key_text import make_key
from logging_service.pepper import Pepper
from logging_service.settings import Rate, Settings

KEY, ADMIN = b"test_key_123", b"admin_key_123"
HERE = "127.0.0.1"


@pytest.fixture
def keyring() -> Keyring:
    return Keyring(Settings.model_validate({"api_key": "test_key_123", "admin_api_key": ADMIN}))


def holder(keyring: Keyring, key: bytes) -> Principal | None:
    return keyring.principal_from_headers({b"x-api-key": key}, HERE)


def test_a_configured_key_is_found(keyring: Keyring) -> None:
    principal = holder(keyring, KEY)
    assert principal is not None
    assert (principal.name, principal.scopes) == ("default", READ_WRITE)
    admin = holder(keyring, ADMIN)
    assert admin is not None
    assert {"read", "write"} == READ_WRITE
    assert (admin.name, admin.scopes) == ("admin", EVERY_SCOPE)


@pytest.mark.parametrize("key", [b"", b"test_key_12", b"test_key_1234", b"TEST_KEY_123", b"\xff"])
def test_any_other_key_is_nobodys(keyring: Keyring, key: bytes) -> None:
    with pytest.raises(Unauthenticated, match="not known"):
        holder(keyring, key)


def test_without_configured_keys_no_key_is_good() -> None:
    with pytest.raises(Unauthenticated):
        holder(Keyring(Settings.model_validate({})), KEY)


def test_one_key_for_both_would_let_every_client_do_everything() -> None:
    with pytest.raises(ValueError, match="API_KEY cannot be used: it is ADMIN_API_KEY"):
        Settings.model_validate({"api_key": "test_key_123", "admin_api_key": "test_key_123"})


@pytest.mark.parametrize("text", ["schlüssel", "lsk_of_my_own_making"])
def test_a_configured_key_may_be_any_text(text: str) -> None:
    assert holder(Keyring(Settings.model_validate({"api_key": text})), text.encode())


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ({b"x-api-key": KEY}, "default"),
        ({b"x-api-key": ADMIN}, "admin"),
        ({b"authorization": b"Bearer " + KEY}, "default"),
        ({b"authorization": b"bearer  " + ADMIN}, "admin"),
        ({b"x-api-key": KEY, b"authorization": b"Bearer wrong"}, "default"),
        ({b"authorization": b"Basic " + KEY}, None),
        ({b"accept": b"*/*"}, None),
        ({}, None),
    ],
)
def test_the_key_is_taken_from_either_header(
    keyring: Keyring, headers: dict[bytes, bytes], name: str | None
) -> None:
    principal = keyring.principal_from_headers(headers, HERE)
    assert (principal and principal.name) == name


@pytest.mark.parametrize(
    "headers",
    [
        {b"x-api-key": b"wrong"},
        {b"x-api-key": b""},
        {b"x-api-key": b"wrong", b"authorization": b"Bearer " + KEY},
        {b"authorization": b"Bearer wrong"},
        {b"authorization": b"Bearer"},
    ],
)
def test_a_wrong_key_is_never_taken_for_none(keyring: Keyring, headers: dict[bytes, bytes]) -> None:
    with pytest.raises(Unauthenticated):
        keyring.principal_from_headers(headers, HERE)


def test_a_scope_that_the_key_lacks_is_named(keyring: Keyring) -> None:
    assert keyring.authenticate({b"x-api-key": KEY}, "write", HERE).name == "default"
    assert keyring.authenticate({b"x-api-key": ADMIN}, "erase", HERE).name == "admin"
    with pytest.raises(Forbidden, match="'default' lacks the scope 'admin'"):
        keyring.authenticate({b"x-api-key": KEY}, "admin", HERE)
    with pytest.raises(Unauthenticated):
        keyring.authenticate({}, "read", HERE)
    with pytest.raises(Forbidden, match="read"):
        require(Principal("writer", "writer", frozenset({"write"})), "read")


ON_LOOPBACK = ("127.0.0.1", "localhost", "::1", "127.8.8.8")
LOCAL_HOSTS = (
    b"localhost",
    b"LOCALHOST:8002",
    b"127.0.0.1",
    b"127.1.2.3:8002",
    b"[::1]",
    b"[::1]:8002",
)
OTHER_HOSTS = (
    b"",
    b"evil.example",
    b"evil.example:8002",
    b"localhost.evil.example",
    b"127.0.0.1.evil.example",
    b"localhost:evil",
    b"192.168.1.4:8002",
    b"0.0.0.0:8002",
    b"[::2]:8002",
    b"[::1",
    b"127.1",
    b"\xff",
)


@pytest.mark.parametrize("bound_to", ON_LOOPBACK)
@pytest.mark.parametrize("host", LOCAL_HOSTS)
def test_on_loopback_a_loopback_host_reads_without_a_key(
    keyring: Keyring, bound_to: str, host: bytes
) -> None:
    rule = ReadingRule(keyring, bound_to, key_required=False)
    assert rule.open_on_loopback
    assert rule.admit([(b"host", host)], HERE).scopes == {"read"}


@pytest.mark.parametrize(
    ("bound_to", "key_required", "headers"),
    [
        *[("127.0.0.1", False, [(b"host", host)]) for host in OTHER_HOSTS],
        ("127.0.0.1", False, []),
        ("127.0.0.1", False, [(b"host", b"localhost"), (b"host", b"localhost")]),
        ("127.0.0.1", True, [(b"host", b"localhost")]),
        ("0.0.0.0", False, [(b"host", b"localhost")]),
        ("::", False, [(b"host", b"localhost")]),
        ("192.168.1.4", False, [(b"host", b"127.0.0.1")]),
        ("example.org", False, [(b"host", b"127.0.0.1")]),
        *[
            ("127.0.0.1", False, [(b"host", b"localhost"), (name, b"")])
            for name in (
                b"forwarded",
                b"x-forwarded-for",
                b"x-forwarded-host",
                b"x-forwarded-anything",
                b"x-real-ip",
                b"via",
            )
        ],
        ("127.0.0.1", False, [(b"host", b"localhost"), (b"x-api-key", b"wrong")]),
        ("127.0.0.1", False, [(b"host", b"localhost"), (b"authorization", b"Bearer wrong")]),
    ],
)
def test_everyone_else_needs_a_good_key(
    keyring: Keyring, bound_to: str, headers: list[tuple[bytes, bytes]], *, key_required: bool
) -> None:
    rule = ReadingRule(keyring, bound_to, key_required=key_required)
    with pytest.raises(Unauthenticated):
        rule.admit(headers, HERE)
    kept = [
        (name, value) for name, value in headers if name not in {b"x-api-key", b"authorization"}
    ]
    assert rule.admit([*kept, (b"x-api-key", KEY)], HERE).name == "default"
    assert rule.admit([*kept, (b"authorization", b"Bearer " + ADMIN)], HERE).name == "admin"


def test_loopback_is_this_host_alone() -> None:
    assert all(is_loopback(host) for host in ON_LOOPBACK)
    assert not any(
        is_loopback(host) for host in ("", "0.0.0.0", "::", "10.0.0.1", "local", "[::1]")
    )


PEPPER = Pepper(b"a pepper for tests")
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = NOON.timestamp()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def made(clock: Clock) -> Keyring:
    """A keyring that was told that no key has been made yet."""
    settings = Settings.model_validate({"api_key": "test_key_123", "auth_failure_limit": "3/hour"})
    keyring = Keyring(settings, clock)
    keyring.hold(KeyChanges(0, [], is_whole=True), PEPPER)
    return keyring


def a_key(**changed: Any) -> tuple[bytes, StoredKey]:
    """Return a key's text and what the database has of it."""
    key_id, text = make_key()
    digest = PEPPER.digest(text.encode())
    usual = StoredKey(
        id=key_id,
        name="shop",
        project="shop-eu",
        scopes=READ_WRITE,
        digest=digest,
        pepper=PEPPER.fingerprint,
        rates={},
        networks=(),
        expires_at=None,
        is_revoked=False,
    )
    return text.encode(), usual._replace(**changed)


def holding(keyring: Keyring, **changed: Any) -> bytes:
    text, stored = a_key(**changed)
    assert keyring.hold(KeyChanges(1, [stored], is_whole=False), PEPPER) == 0
    return text


class TestMadeKeys:
    def test_its_holder_has_its_project_scopes_and_limits(self, made: Keyring) -> None:
        key = holding(made, scopes=frozenset({"read"}), rates={"/log": "5/minute", "": "9/hour"})
        principal = holder(made, key)
        assert principal is not None
        assert (principal.name, principal.source) == ("shop", "shop-eu")
        assert principal.scopes == {"read"}
        assert principal.rates == {"/log": (5, 60), "": (9, 3600)}
        assert principal.key_id.encode() == key[4:16]
        assert principal.project == "shop-eu"
        assert made.authenticate({b"authorization": b"Bearer " + key}, "read", HERE) == principal
        with pytest.raises(Forbidden, match="write"):
            made.authenticate({b"x-api-key": key}, "write", HERE)

    def test_only_the_scope_admin_sees_all_projects(self, made: Keyring) -> None:
        principal = holder(made, holding(made, scopes=frozenset({"read", "admin"})))
        assert principal is not None
        assert principal.project is None

    def test_a_key_is_good_until_it_expires_and_no_longer(
        self, made: Keyring, clock: Clock
    ) -> None:
        clock.now -= 1
        key = holding(made, expires_at=NOON)
        assert holder(made, key)
        clock.now += 1
        with pytest.raises(Unauthenticated, match="expired"):
            holder(made, key)

    def test_what_has_expired_takes_no_room_after_the_next_change(
        self, made: Keyring, clock: Clock
    ) -> None:
        clock.now -= 1
        holding(made, expires_at=NOON)
        clock.now += 1
        holding(made)
        assert len(made._made) == 1

    def test_a_revoked_key_is_nobodys_and_others_stay(self, made: Keyring) -> None:
        text, stored = a_key()
        other = holding(made)
        made.hold(KeyChanges(2, [stored], is_whole=False), PEPPER)
        assert holder(made, text)
        made.hold(KeyChanges(3, [stored._replace(is_revoked=True)], is_whole=False), PEPPER)
        with pytest.raises(Unauthenticated, match="not known"):
            holder(made, text)
        assert holder(made, other)

    def test_what_a_whole_load_does_not_have_is_gone(self, made: Keyring) -> None:
        gone = holding(made)
        text, stored = a_key()
        made.hold(KeyChanges(9, [stored], is_whole=True), PEPPER)
        assert holder(made, text)
        with pytest.raises(Unauthenticated):
            holder(made, gone)

    @pytest.mark.parametrize(
        ("address", "is_good"),
        [
            ("10.1.2.3", True),
            ("2001:db8::7", True),
            ("11.1.2.3", False),
            ("2001:db9::7", False),
            ("::ffff:11.1.2.3", False),
            ("", False),
            ("unknown", False),
        ],
    )
    def test_a_key_of_networks_is_good_within_them_alone(
        self, made: Keyring, address: str, *, is_good: bool
    ) -> None:
        headers = {b"x-api-key": holding(made, networks=("10.0.0.0/8", "2001:db8::/32"))}
        if is_good:
            assert made.principal_from_headers(headers, address)
        else:
            with pytest.raises(Forbidden, match="address"):
                made.principal_from_headers(headers, address)

    def test_a_key_of_another_pepper_or_without_sense_is_counted_and_refused(
        self, made: Keyring
    ) -> None:
        faults: list[dict[str, Any]] = [
            {"pepper": b"another!"},
            {"rates": {"": "many"}},
            {"networks": ("everywhere",)},
        ]
        keys = [a_key(**fault) for fault in faults]
        changes = KeyChanges(1, [stored for _, stored in keys], is_whole=True)
        assert made.hold(changes, PEPPER) == 3
        assert made.hold(changes, None) == 3
        for text, _ in keys:
            with pytest.raises(Unauthenticated):
                holder(made, text)

    def test_while_nothing_is_known_a_made_key_is_neither_good_nor_bad(self) -> None:
        keyring = Keyring(Settings.model_validate({"api_key": "test_key_123"}))
        text, stored = a_key()
        with pytest.raises(BackendUnavailable):
            holder(keyring, text)
        assert holder(keyring, KEY)
        for wrong in (b"wrong", b"lsk_wrong", text[:-1] + b"!"):
            with pytest.raises(Unauthenticated):
                holder(keyring, wrong)
        keyring.hold(KeyChanges(0, [stored], is_whole=True), PEPPER)
        assert holder(keyring, text)

    def test_a_typing_error_is_told(self, made: Keyring) -> None:
        key = holding(made)
        wrong = key[:-1] + (b"a" if key[-1:] != b"a" else b"b")
        with pytest.raises(Unauthenticated, match="checksum"):
            holder(made, wrong)

    def test_every_wrong_key_costs_one_digest_and_one_comparison(
        self, made: Keyring, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        known = holding(made)
        _, another = make_key()
        calls: list[str] = []
        true_compare, true_digest = hmac.compare_digest, hmac.digest

        def compare(first: bytes, second: bytes) -> bool:
            assert len(first) == len(second) == 32
            calls.append("compare")
            return true_compare(first, second)

        def digest(secret: bytes, key: bytes, name: str) -> bytes:
            calls.append("digest")
            return true_digest(secret, key, name)

        monkeypatch.setattr(auth, "compare_digest", compare)
        monkeypatch.setattr(hmac, "digest", digest)
        body = known[:16] + another.encode()[16:57]
        for key in (another.encode(), with_checksum(body), b"lsk_short", b"any", b""):
            calls.clear()
            made._failures = FailedAttempts((1, 1))
            with pytest.raises(Unauthenticated):
                holder(made, key)
            # The first comparison is with API_KEY.
            assert calls == ["compare", "digest", "compare"]

    def test_requests_are_counted_by_key_until_they_are_taken(self, made: Keyring) -> None:
        key = holder(made, holding(made))
        configured = holder(made, KEY)
        assert key
        assert configured
        for principal in (key, key, configured, auth._ON_LOOPBACK):
            made.note_use(principal)
        assert made.take_uses() == {key.key_id: 2, "API_KEY": 1}
        assert made.take_uses() == {}


def with_checksum(body: bytes) -> bytes:
    """Return the key of this id and secret as if it had been made."""
    alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    rest = crc32(body)
    return body + "".join(alphabet[rest // 62**place % 62] for place in range(5, -1, -1)).encode()


class TestWrongKeys:
    def test_who_sent_too_many_is_refused_before_any_look_up(
        self, made: Keyring, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for _ in range(3):
            with pytest.raises(Unauthenticated):
                holder(made, b"wrong")

        def looked_up(*_: object) -> None:
            raise AssertionError

        monkeypatch.setattr(auth, "sha256", looked_up)
        for key in (KEY, b"wrong"):
            with pytest.raises(RateLimited) as refused:
                holder(made, key)
            assert 0 < int(refused.value.headers["Retry-After"]) <= 3600
        assert made.principal_from_headers({}, HERE) is None
        monkeypatch.undo()
        assert made.principal_from_headers({b"x-api-key": KEY}, "127.0.0.2")

    def test_good_keys_do_not_count(self, made: Keyring) -> None:
        for _ in range(10):
            assert holder(made, KEY)

    def test_an_expired_key_counts_as_a_wrong_one(self, made: Keyring, clock: Clock) -> None:
        clock.now -= 1
        key = holding(made, expires_at=NOON)
        clock.now += 1
        for _ in range(3):
            with pytest.raises(Unauthenticated):
                holder(made, key)
        with pytest.raises(RateLimited):
            holder(made, key)

    def test_a_window_begins_with_the_first_and_ends(self, clock: Clock) -> None:
        failures = FailedAttempts((2, 60), clock)
        failures.note("192.0.2.1")
        clock.now += 59
        failures.note("192.0.2.1")
        with pytest.raises(RateLimited) as refused:
            failures.refuse_too_many("192.0.2.1")
        assert refused.value.headers == {"Retry-After": "1"}
        clock.now += 1
        failures.refuse_too_many("192.0.2.1")
        failures.note("192.0.2.1")
        failures.refuse_too_many("192.0.2.1")

    @pytest.mark.parametrize(
        ("address", "other", "is_same"),
        [
            ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),
            ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
            ("::ffff:192.0.2.1", "192.0.2.1", True),
            ("192.0.2.1", "192.0.2.2", False),
            ("fe80::1%eth0", "fe80::2%eth1", True),
            ("", "192.0.2.1", False),
            ("not: an address", "not: an address", True),
        ],
    )
    def test_an_ipv6_network_counts_as_one_address(
        self, address: str, other: str, *, is_same: bool
    ) -> None:
        failures = FailedAttempts((1, 60))
        failures.note(address)
        if is_same:
            with pytest.raises(RateLimited):
                failures.refuse_too_many(other)
        else:
            failures.refuse_too_many(other)

    def test_the_addresses_remembered_are_bounded(self) -> None:
        failures = FailedAttempts((1, 60))
        for number in range(10_010):
            failures.note(f"192.0.{number}")
        assert len(failures._windows) == 10_000
        failures.refuse_too_many("192.0.9")
        with pytest.raises(RateLimited):
            failures.refuse_too_many("192.0.10009")

    def test_the_limit_is_the_settings(self) -> None:
        assert Rate.parse(Settings.model_validate({}).auth_failure_limit) == (100, 60)
