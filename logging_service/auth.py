"""Who sends a request, and what its key may do."""

import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from hmac import compare_digest
from ipaddress import ip_address
from math import inf
from types import MappingProxyType
from typing import NamedTuple

from logging_service.api_keys import EVERY_SCOPE, READ_WRITE, KeyChanges, StoredKey
from logging_service.client_address import Network, read_networks
from logging_service.errors import (
    BackendUnavailable,
    Forbidden,
    LoggingServiceError,
    Unauthenticated,
)
from logging_service.failed_attempts import FailedAttempts
from logging_service.hosts import is_loopback, without_port
from logging_service.key_text import claimed_id, is_well_formed, looks_made
from logging_service.pepper import Pepper, random_pepper
from logging_service.settings import Rate, Settings

_NO_RATES: Mapping[str, Rate] = MappingProxyType({})


class Principal(NamedTuple):
    """The holder of a key: `source` is the project that its events belong to.

    `rates` are the key's own limits by endpoint path, "" for every other endpoint.
    """

    name: str
    source: str
    scopes: frozenset[str]
    key_id: str = ""
    rates: Mapping[str, Rate] = _NO_RATES

    @property
    def project(self) -> str | None:
        """The only project whose events it may read; None: those of all."""
        return None if "admin" in self.scopes or not self.key_id else self.source


_ON_LOOPBACK = Principal("loopback", "", frozenset({"read"}))


class _Held(NamedTuple):
    """A made key; `ends` is by the clock, infinite for one that does not expire."""

    digest: bytes
    pepper: Pepper
    principal: Principal
    networks: tuple[Network, ...]
    ends: float


class Keyring:
    """The keys that are good, as digests: those of the settings, and those that were made.

    The made ones are told to it by `hold`; until then no made key is known to be good or bad.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        named = (
            (settings.api_key, Principal("default", "default", READ_WRITE, "API_KEY")),
            (settings.admin_api_key, Principal("admin", "admin", EVERY_SCOPE, "ADMIN_API_KEY")),
        )
        self._configured = [
            (sha256(key.get_secret_value().encode()).digest(), principal)
            for key, principal in named
            if key is not None
        ]
        self._made: dict[bytes, _Held] = {}
        self._is_told = False
        nobody = Principal("", "", frozenset())
        self._nobody = _Held(secrets.token_bytes(32), random_pepper(), nobody, (), inf)
        self._failures = FailedAttempts(Rate.parse(settings.auth_failure_limit))
        self._uses: dict[str, int] = {}
        self._clock = clock

    @property
    def configured(self) -> tuple[Principal, ...]:
        """The holders of the keys that the settings name."""
        return tuple(principal for _, principal in self._configured)

    def hold(self, changes: KeyChanges, pepper: Pepper | None) -> int:
        """Take in what has changed, and return how many keys cannot be used.

        They were made with another pepper, or their row was changed to what no key may have.
        """
        made = {} if changes.is_whole else self._made
        unusable = 0
        for key in changes.keys:
            held = None if key.is_revoked else _held(key, pepper)
            unusable += held is None and not key.is_revoked
            if held is None:
                made.pop(key.id.encode(), None)
            else:
                made[key.id.encode()] = held
        now = self._clock()
        self._made = {key_id: held for key_id, held in made.items() if held.ends > now}
        self._is_told = True
        return unusable

    def principal_from_headers(
        self, headers: Mapping[bytes, bytes], address: str
    ) -> Principal | None:
        """Return whose key `headers` carry, None without a key; their names are lower-case.

        Raises Unauthenticated when the key is not a good one, RateLimited when `address` has sent
        too many of these, Forbidden when the key may not be used from there, BackendUnavailable for
        a made key while it is not known which are good.
        """
        key = _sent_key(headers)
        if key is None:
            return None
        self._failures.refuse_too_many(address)
        principal = self._configured_holder(key)
        if principal is not None:
            return principal
        held = self._made_key(key)
        if held is None:
            raise self._refusal(key, address)
        if held.ends <= self._clock():
            self._failures.note(address)
            raise Unauthenticated("The key has expired.")
        if held.networks and not _is_within(address, held.networks):
            raise Forbidden(f"The key '{held.principal.name}' may not be used from this address.")
        return held.principal

    def authenticate(self, headers: Mapping[bytes, bytes], scope: str, address: str) -> Principal:
        """Return whose key `headers` carry, if it has `scope`.

        Raises Unauthenticated without a good key, Forbidden for one without the scope, and what
        `principal_from_headers` raises.
        """
        return require(self.principal_from_headers(headers, address), scope)

    def note_use(self, principal: Principal) -> None:
        """Count a request; who reads without a key is not counted."""
        key_id = principal.key_id
        if key_id:
            self._uses[key_id] = self._uses.get(key_id, 0) + 1

    def take_uses(self) -> dict[str, int]:
        """Return the requests by key id that were counted since this was last asked."""
        uses, self._uses = self._uses, {}
        return uses

    def _configured_holder(self, key: bytes) -> Principal | None:
        # All are compared: the time tells nothing about which fits best.
        wanted = sha256(key).digest()
        found = None
        for digest, principal in self._configured:
            if compare_digest(digest, wanted):
                found = principal
        return found

    def _made_key(self, key: bytes) -> _Held | None:
        # An id that nobody has costs the same digest and the same comparison.
        held = self._made.get(claimed_id(key), self._nobody)
        is_it = compare_digest(held.digest, held.pepper.digest(key))
        return held if is_it and held is not self._nobody else None

    def _refusal(self, key: bytes, address: str) -> LoggingServiceError:
        if looks_made(key):
            if not is_well_formed(key):
                self._failures.note(address)
                return Unauthenticated("The key was not copied whole: its checksum does not fit.")
            if not self._is_told:
                return BackendUnavailable("keys: the database has not told yet which are good")
        self._failures.note(address)
        return Unauthenticated("The key is not known, or no longer valid.")


def _held(key: StoredKey, pepper: Pepper | None) -> _Held | None:
    if pepper is None or key.pepper != pepper.fingerprint:
        return None
    try:
        rates = {endpoint: Rate.parse(rate) for endpoint, rate in key.rates.items()}
        networks = read_networks(",".join(key.networks))
    except ValueError:
        return None
    principal = Principal(
        key.name,
        key.project,
        key.scopes,
        key.id,
        MappingProxyType(rates) if rates else _NO_RATES,
    )
    ends = key.expires_at.timestamp() if key.expires_at else inf
    return _Held(key.digest, pepper, principal, networks, ends)


def _is_within(address: str, networks: tuple[Network, ...]) -> bool:
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in networks)


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

    def admit(self, headers: Iterable[tuple[bytes, bytes]], address: str) -> Principal:
        """Return who reads, from `address`; header names are lower-case.

        Raises what `Keyring.authenticate` raises; a key that is sent counts, also on a loopback
        address.
        """
        sent = list(headers)
        principal = self._keyring.principal_from_headers(dict(sent), address)
        if principal is None and self.open_on_loopback and _is_from_this_host(sent):
            return _ON_LOOPBACK
        return require(principal, "read")


def _is_from_this_host(headers: list[tuple[bytes, bytes]]) -> bool:
    hosts = [value for name, value in headers if name == b"host"]
    forwarded = any(_tells_of_a_proxy(name) for name, _ in headers)
    return len(hosts) == 1 and not forwarded and is_loopback(without_port(hosts[0]))


def _tells_of_a_proxy(name: bytes) -> bool:
    return name in {b"forwarded", b"x-real-ip", b"via"} or name.startswith(b"x-forwarded-")
