"""Keys that are made, listed, rotated and revoked: what they are, and the port to where they lie.

No type here but `MadeKey` holds a key, and nothing stores one.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from logging_service.audit import PROJECT as AUDIT_PROJECT
from logging_service.audit import Actor
from logging_service.errors import KeyRejected
from logging_service.settings import Rate

READ_WRITE = frozenset({"read", "write"})
EVERY_SCOPE = frozenset({"read", "write", "admin", "erase"})
MAX_ACTIVE_KEYS = 10_000
MAX_OVERLAP = timedelta(days=30)
USUAL_OVERLAP = timedelta(hours=24)

_MAX_NAME = 100
_MAX_PARTS = 50
_MAX_LIFETIME = timedelta(days=36_500)
_PROJECT = re.compile(r"[A-Za-z0-9_.:-]{1,100}")
_ENDPOINT = re.compile(r"/[A-Za-z0-9_./{}-]{0,99}")
_Checked = TypeVar("_Checked")


class KeyTerms(NamedTuple):
    """What a key is to be good for, as `terms_of` has checked it.

    `rates` go by endpoint path, "" for every other endpoint; a key without `networks` may be used
    from anywhere.
    """

    name: str
    project: str
    scopes: frozenset[str]
    rates: Mapping[str, str]
    networks: tuple[str, ...]
    expires_at: datetime | None


class ApiKey(msgspec.Struct, frozen=True):
    """A key as it may be shown; `last_used_at` is the beginning of the hour of its last use.

    One that `has_other_pepper` was made with another pepper than that of who asks, and is refused.
    """

    id: str
    name: str
    project: str
    scopes: list[str]
    rates: dict[str, str]
    networks: list[str]
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    rotated_to: str | None
    has_other_pepper: bool
    last_used_at: datetime | None
    requests_last_day: int

    def is_active(self, at: datetime) -> bool:
        """Whether it is neither revoked nor expired at that time."""
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > at)


class MadeKey(NamedTuple):
    """A new key; its `text` is known to nobody else and is told once."""

    text: str
    key: ApiKey


class KeyUse(NamedTuple):
    """When a key was last used, by the hour, and for how many requests in the last 24 hours."""

    last_used_at: datetime | None
    requests_last_day: int


class KeyPlace(NamedTuple):
    """The key that a page of keys ended with."""

    created_at: datetime
    id: str


class StoredKey(NamedTuple):
    """A key as whoever checks requests needs it; `pepper` is the fingerprint of its pepper."""

    id: str
    name: str
    project: str
    scopes: frozenset[str]
    digest: bytes
    pepper: bytes
    rates: Mapping[str, str]
    networks: tuple[str, ...]
    expires_at: datetime | None
    is_revoked: bool


class KeyChanges(NamedTuple):
    """What has changed since another `number`; if it `is_whole`, all keys that are good now."""

    number: int
    keys: list[StoredKey]
    is_whole: bool


class KeyStore(Protocol):
    """Where keys lie; each change leaves an event for the audit trail, in one transaction with it.

    Everything raises BackendUnavailable while the
    database does not answer, and SchemaMismatch when its schema is not this release's.
    """

    async def create(self, terms: KeyTerms, by: Actor) -> MadeKey:
        """Make a key; raises KeyConflict while MAX_ACTIVE_KEYS are active."""
        ...

    async def page(
        self, limit: int, after: KeyPlace | None = None, *, ended: bool = False
    ) -> list[ApiKey]:
        """Return up to `limit` keys, newest first; with `ended` also revoked and expired ones."""
        ...

    async def find(self, id_or_name: str) -> list[ApiKey]:
        """Return the key of that id, else the active ones of that name, else the ended ones.

        At most 20, newest first.
        """
        ...

    async def rotate(
        self, key_id: str, by: Actor, overlap: timedelta = USUAL_OVERLAP
    ) -> MadeKey | None:
        """Make a key on the same terms, which lives as long; the old one ends after `overlap`.

        None: there is no such key. Raises KeyConflict for one that is revoked, expired or rotated
        already, KeyRejected for an overlap that is not from 0 to 30 days.
        """
        ...

    async def revoke(self, key_id: str, by: Actor) -> ApiKey | None:
        """End a key now, if it has not ended that way before; None: there is no such key."""
        ...

    async def uses(self, key_ids: Sequence[str]) -> dict[str, KeyUse]:
        """Return the use of keys by id, of those that were ever used; `API_KEY` is an id too."""
        ...

    async def changes(self, since: int) -> KeyChanges | None:
        """Return what has changed since `since`, -1: all that is good now; None: nothing has."""
        ...

    async def note_uses(self, uses: Mapping[tuple[str, datetime], int]) -> None:
        """Add numbers of requests, by key id and the beginning of an hour."""
        ...

    async def forget_old_uses(self) -> None:
        """Drop what is older than two days, but of each key the last hour of its use."""
        ...


def terms_of(
    name: str,
    *,
    project: str | None = None,
    scopes: Iterable[str] = READ_WRITE,
    rates: Mapping[str, str] | None = None,
    networks: Iterable[str] = (),
    expires_at: datetime | None = None,
) -> KeyTerms:
    """Return the terms of a key; its project is its name unless set.

    Raises KeyRejected, which names the field.
    """
    if not (0 < len(name) <= _MAX_NAME and name.isprintable() and name.strip() == name):
        raise KeyRejected("name", "has to be 1 to 100 printable characters, no space at the ends")
    return KeyTerms(
        name,
        _checked_project(name if project is None else project),
        _checked_scopes(scopes),
        _checked_rates(rates or {}),
        _checked_networks(networks),
        _checked_end(expires_at),
    )


def checked_overlap(overlap: timedelta) -> timedelta:
    """Return `overlap`; raises KeyRejected beyond 0 to 30 days."""
    if not timedelta(0) <= overlap <= MAX_OVERLAP:
        most = int(MAX_OVERLAP.total_seconds())
        raise KeyRejected("overlap_seconds", f"has to be from 0 to {most}, which is 30 days")
    return overlap


def _checked_project(project: str) -> str:
    if not _PROJECT.fullmatch(project):
        raise KeyRejected(
            "project", "has to be 1 to 100 of A-Z a-z 0-9 _ . : - (it is the name unless set)"
        )
    if project == AUDIT_PROJECT:
        raise KeyRejected("project", f"'{project}' is the service's own")
    return project


def _checked_scopes(scopes: Iterable[str]) -> frozenset[str]:
    wanted = frozenset(scopes)
    if not wanted or not wanted <= EVERY_SCOPE:
        raise KeyRejected("scopes", f"has to be one or more of {', '.join(sorted(EVERY_SCOPE))}")
    return wanted


def _checked_rates(rates: Mapping[str, str]) -> dict[str, str]:
    if len(rates) > _MAX_PARTS:
        raise KeyRejected("rates", f"has to be at most {_MAX_PARTS}")
    for endpoint, rate in rates.items():
        loc = f"rates.{endpoint[:100]}" if endpoint else "rates"
        if endpoint and not _ENDPOINT.fullmatch(endpoint):
            raise KeyRejected(loc, "has to be the path of an endpoint, such as /log")
        _checked(loc, Rate.parse, rate, "has to be a number and a time: 1000/minute")
    return dict(rates)


def _checked_networks(networks: Iterable[str]) -> tuple[str, ...]:
    wanted = list(networks)
    if len(wanted) > _MAX_PARTS:
        raise KeyRejected("networks", f"has to be at most {_MAX_PARTS}")
    message = "has to be an address or a network: 10.0.0.0/8, 192.168.1.4, 2001:db8::/32"
    return tuple(
        str(_checked(f"networks.{index}", ip_network, text, message))
        for index, text in enumerate(wanted)
    )


def _checked(loc: str, read: Callable[[str], _Checked], text: str, message: str) -> _Checked:
    try:
        return read(text)
    except ValueError:
        raise KeyRejected(loc, message) from None


def _checked_end(expires_at: datetime | None) -> datetime | None:
    if expires_at is None:
        return None
    if expires_at.tzinfo is None:
        raise KeyRejected("expires_at", "has to have an offset from UTC")
    left = expires_at - datetime.now(UTC)
    if not timedelta(0) < left <= _MAX_LIFETIME:
        raise KeyRejected("expires_at", "has to lie ahead, by 100 years at the most")
    return expires_at
