"""Who may do what, row by row."""

import pytest

from logging_service.auth import (
    EVERY_SCOPE,
    READ_WRITE,
    Keyring,
    Principal,
    ReadingRule,
    is_loopback,
    require,
)
from logging_service.errors import Forbidden, Unauthenticated
from logging_service.settings import Settings

KEY, ADMIN = b"test_key_123", b"admin_key_123"


@pytest.fixture
def keyring() -> Keyring:
    return Keyring(Settings.model_validate({"api_key": "test_key_123", "admin_api_key": ADMIN}))


def test_a_configured_key_is_found_as_text_and_as_bytes(keyring: Keyring) -> None:
    for key in ("test_key_123", KEY):
        principal = keyring.lookup(key)
        assert principal is not None
        assert (principal.name, principal.scopes) == ("default", READ_WRITE)
    admin = keyring.lookup(ADMIN)
    assert admin is not None
    assert {"read", "write"} == READ_WRITE
    assert (admin.name, admin.scopes) == ("admin", EVERY_SCOPE)


@pytest.mark.parametrize("key", [b"", b"test_key_12", b"test_key_1234", b"TEST_KEY_123", b"\xff"])
def test_any_other_key_is_nobodys(keyring: Keyring, key: bytes) -> None:
    assert keyring.lookup(key) is None


def test_without_configured_keys_no_key_is_good() -> None:
    assert Keyring(Settings.model_validate({})).lookup(KEY) is None


def test_a_key_beyond_ascii_is_good() -> None:
    keyring = Keyring(Settings.model_validate({"api_key": "schlüssel"}))
    assert keyring.lookup("schlüssel".encode()) is not None


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
    principal = keyring.principal_from_headers(headers)
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
        keyring.principal_from_headers(headers)


def test_a_scope_that_the_key_lacks_is_named(keyring: Keyring) -> None:
    assert keyring.authenticate({b"x-api-key": KEY}, "write").name == "default"
    assert keyring.authenticate({b"x-api-key": ADMIN}, "erase").name == "admin"
    with pytest.raises(Forbidden, match="'default' lacks the scope 'admin'"):
        keyring.authenticate({b"x-api-key": KEY}, "admin")
    with pytest.raises(Unauthenticated):
        keyring.authenticate({}, "read")
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
    assert rule.admit([(b"host", host)]).scopes == {"read"}


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
        rule.admit(headers)
    kept = [
        (name, value) for name, value in headers if name not in {b"x-api-key", b"authorization"}
    ]
    assert rule.admit([*kept, (b"x-api-key", KEY)]).name == "default"
    assert rule.admit([*kept, (b"authorization", b"Bearer " + ADMIN)]).name == "admin"


def test_loopback_is_this_host_alone() -> None:
    assert all(is_loopback(host) for host in ON_LOOPBACK)
    assert not any(
        is_loopback(host) for host in ("", "0.0.0.0", "::", "10.0.0.1", "local", "[::1]")
    )
