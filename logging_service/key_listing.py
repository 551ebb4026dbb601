"""Keys as lists show them: how each is, and what somebody should look at."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Literal

import msgspec

from logging_service.api_keys import ApiKey, KeyStore, KeyUse, MadeKey
from logging_service.auth import Principal

OLD = timedelta(days=90)
UNUSED = timedelta(days=30)
SOON = timedelta(days=14)

KeyStatus = Literal["active", "expired", "revoked"]
KeyFlag = Literal["old", "unused", "expires_soon", "rotated", "other_pepper"]


class ShownKey(ApiKey, frozen=True):
    """A key, never its text; `last_used_at` is the beginning of the hour of its last use.

    Of the flags of an active key, `old` is one made 90 days ago or longer, `unused` one that was
    not used for 30, `expires_soon` one that ends within 14, `rotated` one that another key follows,
    and `other_pepper` one that these services refuse, since another `API_KEY_PEPPER` made it.
    """

    status: KeyStatus
    flags: list[KeyFlag]


class ToldKey(ShownKey, frozen=True):
    """A new key; `key` is what to send as `X-API-Key`, and is told this once."""

    key: str


class EnvironmentKey(msgspec.Struct, frozen=True):
    """A key that a variable of the environment holds; it cannot be changed here."""

    variable: str
    name: str
    project: str
    scopes: list[str]
    last_used_at: datetime | None
    requests_last_day: int
    flags: list[KeyFlag]


def shown(key: ApiKey, now: datetime) -> ShownKey:
    """Return a key as it is at the time `now`."""
    status, flags = _state(key, now)
    return ShownKey(**msgspec.structs.asdict(key), status=status, flags=flags)


def told(made: MadeKey, now: datetime) -> ToldKey:
    """Return a key that was made just now, with its text."""
    status, flags = _state(made.key, now)
    return ToldKey(**msgspec.structs.asdict(made.key), status=status, flags=flags, key=made.text)


def _state(key: ApiKey, now: datetime) -> tuple[KeyStatus, list[KeyFlag]]:
    if key.revoked_at is not None:
        return "revoked", []
    if not key.is_active(now):
        return "expired", []
    signs: list[tuple[KeyFlag, bool]] = [
        ("old", now - key.created_at >= OLD),
        ("unused", now - (key.last_used_at or key.created_at) >= UNUSED),
        ("expires_soon", key.expires_at is not None and key.expires_at - now <= SOON),
        ("rotated", key.rotated_to is not None),
        ("other_pepper", key.has_other_pepper),
    ]
    return "active", [flag for flag, holds in signs if holds]


async def environment_keys(
    keys: KeyStore, principals: Iterable[Principal], now: datetime
) -> list[EnvironmentKey]:
    """Return the keys of the environment, whose holders `principals` are."""
    holders = list(principals)
    uses = await keys.uses([holder.key_id for holder in holders])
    return [
        _of_environment(holder, uses.get(holder.key_id, KeyUse(None, 0)), now) for holder in holders
    ]


def _of_environment(holder: Principal, use: KeyUse, now: datetime) -> EnvironmentKey:
    # How long it has been set is not known: one that was never used may be new.
    is_unused = use.last_used_at is not None and now - use.last_used_at >= UNUSED
    return EnvironmentKey(
        variable=holder.key_id,
        name=holder.name,
        project=holder.source,
        scopes=sorted(holder.scopes),
        last_used_at=use.last_used_at,
        requests_last_day=use.requests_last_day,
        flags=["unused"] if is_unused else [],
    )
