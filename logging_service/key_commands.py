"""`logging-service keys`: made, listed, rotated and revoked, on the database."""

import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated

import msgspec
import typer

from logging_service.api_keys import (
    MAX_ACTIVE_KEYS,
    READ_WRITE,
    ApiKey,
    KeyPlace,
    KeyStore,
    KeyTerms,
    MadeKey,
    terms_of,
)
from logging_service.audit import COMMAND_LINE
from logging_service.auth import Keyring
from logging_service.errors import KeyRejected
from logging_service.given_times import length_given, moment_given
from logging_service.key_listing import (
    EnvironmentKey,
    ShownKey,
    environment_keys,
    shown,
    told,
)
from logging_service.key_text import claimed_id, is_well_formed
from logging_service.settings import Settings, load_settings
from logging_service.terminal import print_json, print_table, printable

app = typer.Typer(
    no_args_is_help=True,
    help="API keys: make, list, rotate and revoke them. Every service knows within two seconds.",
)

_PAGE = 1000
_COLUMNS = (
    "id",
    "name",
    "project",
    "scopes",
    "created (UTC)",
    "expires (UTC)",
    "last used (UTC)",
    "requests (24 h)",
    "look at",
)
_FLAGS = {
    "old": "older than 90 days",
    "unused": "unused for 30 days",
    "other_pepper": "made with another pepper",
}
# Which option gives the field that a key's terms name.
_OPTIONS = {
    "name": "NAME",
    "project": "--project",
    "scopes": "--scope",
    "rates": "--rate-limit",
    "networks": "--network",
    "expires_at": "--expires",
    "overlap_seconds": "--overlap",
}

Which = Annotated[str, typer.Argument(metavar="KEY", help="The key's id, or its name.")]
Json = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]


class _Listed(msgspec.Struct):
    keys: list[ShownKey]
    environment: list[EnvironmentKey]
    more: bool


@app.command()
def create(  # noqa: PLR0913 - what a person may say of a key
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who or what is to use it.")],
    *,
    project: Annotated[
        str | None,
        typer.Option(help="Which events it writes and reads; default: the name."),
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(help="write, read, admin or erase; repeatable; default: write and read."),
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="TIME", help="90d, 12h, or a day (UTC); default: never.")
    ] = None,
    rate_limit: Annotated[
        list[str] | None,
        typer.Option(metavar="RATE", help="500/minute, or /logs=100/minute; repeatable."),
    ] = None,
    network: Annotated[
        list[str] | None,
        typer.Option(metavar="NETWORK", help="Good from there alone: 10.0.0.0/8; repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it, this once: nobody can read it anywhere later.

    Examples: `keys create ci`, `keys create ci --project reviewer --scope write --expires 90d`,
    `keys create ci --rate-limit 500/minute --rate-limit /logs=100/minute --network 10.0.0.0/8`.
    """
    with _by_option():
        terms = terms_of(
            name,
            project=project,
            scopes=scope or READ_WRITE,
            rates=_rates(rate_limit or []),
            networks=network or [],
            expires_at=None if expires is None else _end(expires),
        )
    made, is_alone = asyncio.run(_create(load_settings(), terms))
    _tell(made, as_json=as_json)
    if is_alone:
        print(
            "warning: every other key was made with another pepper: set the API_KEY_PEPPER of the "
            "services here, or the DATA_DIR, or they will refuse this key",
            file=sys.stderr,
        )


async def _create(settings: Settings, terms: KeyTerms) -> tuple[MadeKey, bool]:
    """Return the key, and whether the others that are good have another pepper."""
    from logging_service.backends import open_keys

    async with open_keys(settings) as keys:
        made = await keys.create(terms, COMMAND_LINE)
        others = [key for key in await keys.page(_PAGE) if key.id != made.key.id]
    return made, bool(others) and all(key.has_other_pepper for key in others)


@app.command("list")
def list_keys(
    *,
    ended: Annotated[
        bool, typer.Option("--all", help="Also those that are revoked or expired.")
    ] = False,
    limit: Annotated[
        int, typer.Option(min=1, max=MAX_ACTIVE_KEYS, help="How many at the most.")
    ] = _PAGE,
    as_json: Json = False,
) -> None:
    """List the keys that are good, the newest first, and what somebody should look at.

    Examples: `keys list`, `keys list --all --json`.
    """
    listed = asyncio.run(_list(load_settings(), limit, ended=ended))
    if as_json:
        print_json(listed)
        return
    if not (listed.keys or listed.environment):
        print("no keys")
        return
    rows = [*map(_row, listed.keys), *map(_environment_row, listed.environment)]
    print_table(_COLUMNS, rows, right={"requests (24 h)"})
    if listed.more:
        print(f"there are more: --limit {MAX_ACTIVE_KEYS} shows as many as a list can")


async def _list(settings: Settings, limit: int, *, ended: bool) -> _Listed:
    from logging_service.backends import open_keys

    now = datetime.now(UTC)
    async with open_keys(settings) as keys:
        found = await _first(keys, limit + 1, ended=ended)
        ours = await environment_keys(keys, Keyring(settings).configured, now)
    return _Listed([shown(key, now) for key in found[:limit]], ours, len(found) > limit)


async def _first(keys: KeyStore, limit: int, *, ended: bool) -> list[ApiKey]:
    found: list[ApiKey] = []
    after = None
    while page := await keys.page(min(_PAGE, limit - len(found)), after, ended=ended):
        found += page
        after = KeyPlace(page[-1].created_at, page[-1].id)
        if len(found) == limit:
            break
    return found


@app.command()
def show(which: Which, *, as_json: Json = False) -> None:
    """Show one key, also one that is revoked or expired.

    Examples: `keys show ci`, `keys show k3v0q9x2m7ab --json`.
    """
    key = shown(asyncio.run(_find(load_settings(), which)), datetime.now(UTC))
    if as_json:
        print_json(key)
        return
    fields = {name: getattr(key, name) for name in key.__struct_fields__}
    rates = (f"{endpoint or 'any other'}: {rate}" for endpoint, rate in key.rates.items())
    texts = {**fields, "rates": ", ".join(rates), "flags": ", ".join(_remarks(key))}
    for name, value in texts.items():
        text = ", ".join(value) if isinstance(value, list) else value
        print(f"{name:<17} {'' if text is None else printable(str(text))}".rstrip())


async def _find(settings: Settings, which: str) -> ApiKey:
    from logging_service.backends import open_keys

    async with open_keys(settings) as keys:
        return _one_of(await _called(keys, which), which)


async def _called(keys: KeyStore, which: str) -> list[ApiKey]:
    """Return the keys that have this id or name; a whole key is looked up by its id."""
    text = which.encode(errors="replace")
    if is_well_formed(text):
        return await keys.find(claimed_id(text).decode())
    return await keys.find(which) if which.isprintable() else []


def _one_of(found: Sequence[ApiKey], which: str) -> ApiKey:
    if len(found) == 1:
        return found[0]
    if which in {"API_KEY", "ADMIN_API_KEY"} and not found:
        raise KeyRejected("KEY", f"{which} is set in the environment, and changed there")
    if not found:
        raise _unknown(which)
    ids = ", ".join(f"{key.id} of {_minute(key.created_at)}" for key in found)
    raise KeyRejected("KEY", f"{len(found)} keys have the name {which!r}, give the id: {ids}")


def _unknown(which: str) -> KeyRejected:
    return KeyRejected("KEY", f"there is no key {which!r}; `keys list --all` shows them")


@app.command()
def rotate(
    which: Which,
    *,
    overlap: Annotated[
        str, typer.Option(metavar="TIME", help="How long the old one stays good: 24h, 7d, 0s.")
    ] = "24h",
    as_json: Json = False,
) -> None:
    """Make a key that follows another, on the same terms, and print it, this once.

    Both are good for the overlap, 30 days at the most; then the old one expires.

    Examples: `keys rotate ci`, `keys rotate k3v0q9x2m7ab --overlap 7d`.
    """
    length = length_given(overlap)
    if length is None:
        raise KeyRejected("--overlap", "has to be a time such as 24h, 7d, 30m or 0s")
    with _by_option():
        made, old = asyncio.run(_rotate(load_settings(), which, length))
    _tell(made, as_json=as_json)
    print(f"the old one, {old.id}, {_what_is_left(old)}", file=sys.stderr)


def _what_is_left(old: ApiKey) -> str:
    if old.expires_at is None or not old.is_active(datetime.now(UTC)):
        return "is good no more"
    return f"is good until {_minute(old.expires_at)} UTC"


async def _rotate(settings: Settings, which: str, overlap: timedelta) -> tuple[MadeKey, ApiKey]:
    from logging_service.backends import open_keys

    async with open_keys(settings) as keys:
        found = await _called(keys, which)
        # Of those that share a name since a rotation, only the last can be rotated.
        latest = [key for key in found if key.rotated_to is None]
        old = _one_of(latest or found, which)
        made = await keys.rotate(old.id, COMMAND_LINE, overlap)
        if made is None:
            raise _unknown(old.id)
        return made, _one_of(await keys.find(old.id), old.id)


@app.command()
def revoke(
    which: Which,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """End a key: within two seconds every service refuses it, for good.

    Examples: `keys revoke ci`, `keys revoke k3v0q9x2m7ab --yes`.
    """
    settings = load_settings()
    key = asyncio.run(_find(settings, which))
    label = f"{key.id}, {printable(key.name)} of the project {key.project}"
    if key.revoked_at is not None:
        print(f"{label}: is revoked since {_minute(key.revoked_at)} UTC")
        return
    if not yes:
        typer.confirm(f"Revoke {label}? What uses it will be refused", abort=True)
    asyncio.run(_revoke(settings, key))
    print(f"revoked {label}")


async def _revoke(settings: Settings, key: ApiKey) -> None:
    from logging_service.backends import open_keys

    async with open_keys(settings) as keys:
        if await keys.revoke(key.id, COMMAND_LINE) is None:
            raise _unknown(key.id)


def _rates(given: Sequence[str]) -> dict[str, str]:
    """Return limits by endpoint; `500/minute` is that of every other endpoint."""
    rates: dict[str, str] = {}
    for text in given:
        endpoint, _, rate = text.rpartition("=")
        if endpoint in rates:
            raise KeyRejected("rates", f"{text!r} is the second for the same endpoint")
        rates[endpoint] = rate
    return rates


def _end(text: str) -> datetime:
    length = length_given(text)
    if length is not None:
        return datetime.now(UTC) + length
    try:
        return moment_given(text)
    except ValueError as error:
        raise KeyRejected("expires_at", f"{error}, or a length of time such as 90d") from None


@contextmanager
def _by_option() -> Iterator[None]:
    """Name the option instead of the field that cannot be used."""
    try:
        yield
    except KeyRejected as error:
        field, _, part = error.loc.partition(".")
        option = f"{_OPTIONS.get(field, field)} {part}".rstrip()
        raise KeyRejected(option, error.message) from None


def _tell(made: MadeKey, *, as_json: bool) -> None:
    now = datetime.now(UTC)
    if as_json:
        print_json(told(made, now))
        return
    key = made.key
    print(made.text)
    print(
        f"key {key.id}, {key.name} of the project {key.project}, {' and '.join(key.scopes)}: "
        "keep it now, it is not shown again",
        file=sys.stderr,
    )


def _row(key: ShownKey) -> tuple[str, ...]:
    return (
        key.id,
        key.name,
        key.project,
        " ".join(key.scopes),
        _minute(key.created_at),
        "never" if key.expires_at is None else _minute(key.expires_at),
        _hour(key.last_used_at),
        str(key.requests_last_day),
        ", ".join(_remarks(key)),
    )


def _environment_row(key: EnvironmentKey) -> tuple[str, ...]:
    remarks = [f"set by {key.variable}", *(_FLAGS[flag] for flag in key.flags)]
    return (
        "",
        key.name,
        key.project,
        " ".join(key.scopes),
        "",
        "never",
        _hour(key.last_used_at),
        str(key.requests_last_day),
        ", ".join(remarks),
    )


def _remarks(key: ShownKey) -> list[str]:
    if key.status != "active":
        return [key.status]
    texts = {**_FLAGS, "rotated": f"followed by {key.rotated_to}"}
    if key.expires_at is not None:
        days = -((datetime.now(UTC) - key.expires_at) // timedelta(days=1))
        texts["expires_soon"] = f"expires in {days} day{'' if days == 1 else 's'}"
    return [texts[flag] for flag in key.flags]


def _minute(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}"


def _hour(moment: datetime | None) -> str:
    return "never" if moment is None else _minute(moment)
