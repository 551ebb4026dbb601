"""Who sends a request, and what its key may do."""

from collections.abc import Iterable, Mapping
from hashlib import sha256
from hmac import compare_digest
from ipaddress import ip_address
from typing import NamedTuple

from logging_service.errors import Forbidden, Unauthenticated
from logging_service.settings import Settings

READ_WRITE = frozenset({"read", "write"})
EVERY_SCOPE = frozenset({"read", "write", "admin", "erase"})


class Principal(NamedTuple):
    """The holder of a key: `source` is the project that its events belong to."""

    name: str
    source: str
    scopes: frozenset[str]


_ON_LOOPBACK = Principal("loopback", "", frozenset({"read"}))


class Keyring:
    """The keys that are good, as digests."""

    def __init__(self, settings: Settings) -> None:
        configured = (
            (settings.api_key, Principal("default", "default", READ_WRITE)),
            (settings.admin_api_key, Principal("admin", "admin", EVERY_SCOPE)),
        )
        self._keys = [
            (sha256(key.get_secret_value().encode()).digest(), principal)
            for key, principal in configured
            if key is not None
        ]

    def lookup(self, key: str | bytes) -> Principal | None:
        """Return whose key this is, in a time that tells nothing about the keys that are good."""
        wanted = sha256(key.encode() if isinstance(key, str) else key).digest()
        found = None
        for digest, principal in self._keys:
            if compare_digest(digest, wanted):
                found = principal
        return found

    def principal_from_headers(self, headers: Mapping[bytes, bytes]) -> Principal | None:
        """Return whose key `headers` carry, None without a key; their names are lower-case.

        Raises Unauthenticated when the key is not a good one.
        """
        key = _sent_key(headers)
        if key is None:
            return None
        principal = self.lookup(key)
        if principal is None:
            raise Unauthenticated("The key is not known, or no longer valid.")
        return principal

    def authenticate(self, headers: Mapping[bytes, bytes], scope: str) -> Principal:
        """Return whose key `headers` carry, if it has `scope`.

        Raises Unauthenticated without a good key, Forbidden for one without the scope.
        """
        return require(self.principal_from_headers(headers), scope)


def require(principal: Principal | None, scope: str) -> Principal:
    """Return `principal` if it has `scope`; raises Unauthenticated or Forbidden if not."""
    if principal is None:
        raise Unauthenticated
    if scope not in principal.scopes:
        raise Forbidden(f"The key '{principal.name}' lacks the scope '{scope}'.")
    return principal


def _sent_key(headers: Mapping[bytes, bytes]) -> bytes | None:
    key = headers.get(b"x-api-key")
    if key is not None:
        return key.strip()
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else None


class ReadingRule:
    """Who may read: a key with the scope `read`, and on a loopback address who is on this host.

    The Host header has to name a loopback address too: a page in a browser can be made to send
    requests here under its own name. What a proxy forwards is not from this host.
    """

    def __init__(self, keyring: Keyring, bound_to: str, *, key_required: bool) -> None:
        self._keyring = keyring
        self.open_on_loopback = is_loopback(bound_to) and not key_required

    def admit(self, headers: Iterable[tuple[bytes, bytes]]) -> Principal:
        """Return who reads; header names are lower-case.

        Raises Unauthenticated or Forbidden; a key that is sent counts, also on a loopback address.
        """
        sent = list(headers)
        principal = self._keyring.principal_from_headers(dict(sent))
        if principal is None and self.open_on_loopback and _is_from_this_host(sent):
            return _ON_LOOPBACK
        return require(principal, "read")


def _is_from_this_host(headers: list[tuple[bytes, bytes]]) -> bool:
    hosts = [value for name, value in headers if name == b"host"]
    forwarded = any(_tells_of_a_proxy(name) for name, _ in headers)
    return len(hosts) == 1 and not forwarded and is_loopback(_without_port(hosts[0]))


def _tells_of_a_proxy(name: bytes) -> bool:
    return name in {b"forwarded", b"x-real-ip", b"via"} or name.startswith(b"x-forwarded-")


def _without_port(host: bytes) -> str:
    text = host.decode("latin-1")
    name, colon, port = text.rpartition(":")
    if colon and not text.endswith("]"):
        text = name if port.isdecimal() and port.isascii() else ""
    return text[1:-1] if text.startswith("[") and text.endswith("]") else text


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this host's own: `localhost`, 127.0.0.0/8 or ::1."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
