"""The keys over HTTP: made, seen, rotated and revoked, by whom has one with the scope `admin`."""

import re
import struct
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Path, Query, Request, Security
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from logging_service import wire
from logging_service.admission import ADMIN_KEY, actor_of, admits, principal_of
from logging_service.api_keys import (
    MAX_OVERLAP,
    READ_WRITE,
    USUAL_OVERLAP,
    ApiKey,
    KeyPlace,
    KeyStore,
    MadeKey,
    terms_of,
)
from logging_service.auth import Keyring
from logging_service.errors import Forbidden
from logging_service.event_query import (
    Moment,
    Text,
    no_cursor,
    position_in,
    refuse_unknown,
    sealed_cursor,
)
from logging_service.key_listing import EnvironmentKey, ShownKey, ToldKey, environment_keys, shown
from logging_service.key_listing import told as as_told
from logging_service.web import body_as, json_answer, schema_of

_MOST_BODY_BYTES = 64 * 1024
_POSITION = struct.Struct(">q12s")
_ID = re.compile(r"[a-z0-9]{12}")

KeyId = Annotated[str, Path(pattern=f"^{_ID.pattern}$", description="`lsk_<this>_…`")]


class KeyQuery(BaseModel):
    """The parameters of GET /keys."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    all: bool = Field(default=False, description="true: also those that are revoked or expired")
    limit: int = Field(default=50, ge=1, le=1000, description="keys on a page")
    cursor: str | None = Field(
        default=None, description="`next_cursor` of the page before, with the same `all`"
    )


class KeyOrder(BaseModel):
    """What a new key is to be good for."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Text = Field(description="1 to 100 printable characters")
    project: Text | None = Field(
        default=None, description="1 to 100 of A-Z a-z 0-9 _ . : - ; default: the name"
    )
    scopes: list[str] = Field(
        default=sorted(READ_WRITE), description="one or more of admin, erase, read and write"
    )
    rates: dict[str, str] = Field(
        default={},
        description="own limits by endpoint, such as `/logs`; the name `` is every other endpoint",
    )
    networks: list[str] = Field(
        default=[], description="the only addresses and networks that it may be used from"
    )
    expires_at: Moment | None = Field(
        default=None, description="RFC 3339 with an offset; null: never"
    )


class RotationOrder(BaseModel):
    """How long the key that is rotated stays good beside the new one."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    overlap_seconds: int = Field(
        default=int(USUAL_OVERLAP.total_seconds()), ge=0, le=int(MAX_OVERLAP.total_seconds())
    )


class Keys(msgspec.Struct):
    """Keys, the newest first, and those that the environment holds."""

    keys: list[ShownKey]
    environment: list[EnvironmentKey]
    next_cursor: str | None


_KEY_EXAMPLE = {
    "id": "k3v0q9x2m7ab",
    "name": "ci",
    "project": "reviewer",
    "scopes": ["read", "write"],
    "rates": {"/logs": "100/minute"},
    "networks": ["10.0.0.0/8"],
    "created_at": "2026-08-20T10:00:00.125Z",
    "created_by": "admin",
    "expires_at": None,
    "revoked_at": None,
    "rotated_to": None,
    "has_other_pepper": False,
    "last_used_at": "2026-11-23T10:00:00Z",
    "requests_last_day": 812,
    "status": "active",
    "flags": ["old"],
}
_TOLD_EXAMPLE = {
    **_KEY_EXAMPLE,
    "last_used_at": None,
    "requests_last_day": 0,
    "flags": [],
    "key": "lsk_k3v0q9x2m7ab_…",
}
_ENVIRONMENT_EXAMPLE = {
    "variable": "API_KEY",
    "name": "default",
    "project": "default",
    "scopes": ["read", "write"],
    "last_used_at": "2026-11-23T10:00:00Z",
    "requests_last_day": 12,
    "flags": [],
}
_KEYS_EXAMPLE = {
    "keys": [_KEY_EXAMPLE],
    "environment": [_ENVIRONMENT_EXAMPLE],
    "next_cursor": None,
}
TYPES = (Keys, ShownKey, ToldKey, EnvironmentKey)


def _body_of(model: type[BaseModel], example: object, *, required: bool) -> dict[str, Any]:
    content = {"schema": model.model_json_schema(), "example": example}
    return {"requestBody": {"required": required, "content": {"application/json": content}}}


router = APIRouter(dependencies=[Security(ADMIN_KEY), Depends(admits("admin"))])


def _store(request: Request) -> KeyStore:
    store: KeyStore = request.state.key_store
    return store


@router.get("/keys", responses={200: schema_of(Keys, _KEYS_EXAMPLE)})
async def list_keys(request: Request, query: Annotated[KeyQuery, Query()]) -> Response:
    """Return the keys that are good, the newest first, and what somebody should look at.

    Each has the requests of its last 24 hours. `API_KEY` and `ADMIN_API_KEY`, where they are set,
    are in `environment` on every page.
    """
    refuse_unknown(request.query_params.multi_items(), KeyQuery.model_fields)
    wanted, store, now = ("keys", query.all), _store(request), datetime.now(UTC)
    after = None if query.cursor is None else _place_in(query.cursor, wanted)
    page = await store.page(query.limit + 1, after, ended=query.all)
    cursor = None
    if len(page) > query.limit:
        page = page[: query.limit]
        cursor = sealed_cursor(_position_of(page[-1]), wanted)
    keyring: Keyring = request.state.keyring
    ours = await environment_keys(store, keyring.configured, now)
    return json_answer(Keys([shown(key, now) for key in page], ours, cursor))


def _position_of(key: ApiKey) -> bytes:
    return _POSITION.pack(wire.to_micros(key.created_at), key.id.encode())


def _place_in(cursor: str, wanted: object) -> KeyPlace:
    micros, key_id = _POSITION.unpack(position_in(cursor, wanted, _POSITION.size))
    name = key_id.decode("latin-1")
    if not _ID.fullmatch(name):
        raise no_cursor()
    try:
        return KeyPlace(wire.from_micros(micros), name)
    except OverflowError:
        raise no_cursor() from None


@router.post(
    "/keys",
    status_code=201,
    responses={201: schema_of(ToldKey, _TOLD_EXAMPLE)},
    openapi_extra=_body_of(KeyOrder, {"name": "ci", "project": "reviewer"}, required=True),
)
async def create_key(request: Request) -> Response:
    """Make a key, good at every service within two seconds. Its text is told here and never again.

    Who asks can give the scopes that its own key has, and no others.
    """
    refuse_unknown(request.query_params.multi_items(), ())
    order = await body_as(request, KeyOrder, _MOST_BODY_BYTES)
    terms = terms_of(
        order.name,
        project=order.project,
        scopes=order.scopes,
        rates=order.rates,
        networks=order.networks,
        expires_at=order.expires_at,
    )
    _refuse_more_than_own(request, terms.scopes)
    return _told(await _store(request).create(terms, actor_of(request)))


@router.get("/keys/{key_id}", responses={200: schema_of(ShownKey, _KEY_EXAMPLE)})
async def show_key(request: Request, key_id: KeyId) -> Response:
    """Return one key, also one that is revoked or expired."""
    refuse_unknown(request.query_params.multi_items(), ())
    return json_answer(shown(await _find(request, key_id), datetime.now(UTC)))


@router.post(
    "/keys/{key_id}/rotate",
    status_code=201,
    responses={201: schema_of(ToldKey, _TOLD_EXAMPLE)},
    openapi_extra=_body_of(RotationOrder, {"overlap_seconds": 3600}, required=False),
)
async def rotate_key(request: Request, key_id: KeyId) -> Response:
    """Make a key that follows this one, on the same terms. Its text is told here and never again.

    Both are good for `overlap_seconds`, 24 hours unless the body says otherwise; 0 ends the old
    one now. A key that expires is followed by one that lives as long.
    """
    refuse_unknown(request.query_params.multi_items(), ())
    order = await _rotation_in(request)
    _refuse_more_than_own(request, (await _find(request, key_id)).scopes)
    overlap = timedelta(seconds=order.overlap_seconds)
    made = await _store(request).rotate(key_id, actor_of(request), overlap)
    if made is None:
        raise _no_key(key_id)
    return _told(made)


@router.delete("/keys/{key_id}", responses={200: schema_of(ShownKey, _KEY_EXAMPLE)})
async def revoke_key(request: Request, key_id: KeyId) -> Response:
    """End a key: within two seconds every service refuses it. It stays in the list with `all`.

    Revoking it once more changes nothing.
    """
    refuse_unknown(request.query_params.multi_items(), ())
    revoked = await _store(request).revoke(key_id, actor_of(request))
    if revoked is None:
        raise _no_key(key_id)
    return json_answer(shown(revoked, datetime.now(UTC)))


async def _find(request: Request, key_id: str) -> ApiKey:
    # A name may look like an id.
    for key in await _store(request).find(key_id):
        if key.id == key_id:
            return key
    raise _no_key(key_id)


def _no_key(key_id: str) -> HTTPException:
    return HTTPException(404, f"There is no key {key_id}.")


async def _rotation_in(request: Request) -> RotationOrder:
    sent = request.headers
    if sent.get("content-length", "0") == "0" and "transfer-encoding" not in sent:
        return RotationOrder()
    return await body_as(request, RotationOrder, _MOST_BODY_BYTES)


def _refuse_more_than_own(request: Request, scopes: Iterable[str]) -> None:
    holder = principal_of(request)
    missing = sorted(set(scopes) - holder.scopes)
    if missing:
        raise Forbidden(
            f"The key '{holder.name}' cannot give what it lacks: the scope '{missing[0]}'."
        )


def _told(made: MadeKey) -> Response:
    return json_answer(as_told(made, datetime.now(UTC)), 201)
