"""The operator's own prices: `PRICES_FILE`, read and checked."""

import hashlib
import re
import tomllib
from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from decimal import Decimal
from fnmatch import translate
from pathlib import Path
from typing import Any, Final, NamedTuple

from logging_service.errors import SettingsError
from logging_service.usage import MAX_NAME, provider_name

MAX_BYTES: Final = 1_048_576
MAX_PRICES: Final = 2_000
MAX_DOLLARS: Final = 1_000_000
MAX_DECIMALS: Final = 12
_SMALLEST: Final = Decimal(1).scaleb(-MAX_DECIMALS)
_CLASSES: Final = ("input", "cache_read", "cache_write", "cache_write_1h", "output", "reasoning")
_NEEDED: Final = ("provider", "model", "input", "output")
_ALLOWED: Final = frozenset({"provider", "model", "valid_from", *_CLASSES})
_EVER: Final = datetime.min.replace(tzinfo=UTC)


class OwnPrice(NamedTuple):
    """What one `[[price]]` says: dollars per million tokens, by class."""

    provider: str
    model: str
    valid_from: datetime
    dollars: Mapping[str, Decimal]
    pattern: re.Pattern[str]

    def is_for(self, provider: str | None, model: str) -> bool:
        """Whether it is the price of this model, at the time when it is valid."""
        return self.provider in {"*", provider} and bool(self.pattern.fullmatch(model.lower()))

    @property
    def rank(self) -> tuple[bool, bool, int, datetime]:
        """The larger wins: a full name, then a named provider, a long pattern, a late start."""
        is_name = not set("*?") & set(self.model)
        return is_name, self.provider != "*", len(self.model), self.valid_from


class OwnPrices(NamedTuple):
    """The prices of one file, and the version of it: the start of its SHA-256."""

    prices: tuple[OwnPrice, ...] = ()
    version: str = ""


def read_price_file(path: Path) -> OwnPrices:
    """Read the prices; raises SettingsError, one line that says which price is wrong and why."""
    try:
        raw = path.read_bytes()
        if len(raw) > MAX_BYTES:
            raise _wrong(path, f"it has to be at most {MAX_BYTES} bytes")
        content = tomllib.loads(raw.decode(), parse_float=Decimal)
    except OSError as error:
        raise _wrong(path, error.strerror or "it cannot be read") from None
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise _wrong(path, f"it is not TOML: {error}") from None
    prices = content.get("price")
    if content.keys() != {"price"} or not isinstance(prices, list) or len(prices) > MAX_PRICES:
        raise _wrong(path, f"it has to hold [[price]] tables, at most {MAX_PRICES}, and no more")
    read: dict[tuple[str, str, datetime], OwnPrice] = {}
    for number, table in enumerate(prices, 1):
        try:
            price = _price(table)
        except ValueError as error:
            raise _wrong(path, f"[[price]] number {number}: {error}") from None
        if read.setdefault(price[:3], price) is not price:
            raise _wrong(path, f"[[price]] number {number}: there is one for the same already")
    return OwnPrices(tuple(read.values()), hashlib.sha256(raw).hexdigest()[:12])


def _wrong(path: Path, why: str) -> SettingsError:
    return SettingsError(f"PRICES_FILE={str(path)!r} cannot be used: {' '.join(why.split())}")


def _price(table: object) -> OwnPrice:
    if not isinstance(table, dict):
        raise ValueError("has to be a table")  # noqa: TRY004 - the caller words every fault alike
    for name in _NEEDED:
        if name not in table:
            raise ValueError(f"{name} is missing")
    if unknown := sorted(table.keys() - _ALLOWED):
        raise ValueError(f"{unknown[0]} is not known; allowed are {', '.join(sorted(_ALLOWED))}")
    model = _name(table, "model").lower()
    return OwnPrice(
        provider_name(_name(table, "provider")),
        model,
        _start(table.get("valid_from")),
        pattern=re.compile(translate(model.replace("[", "[[]"))),
        dollars={name: _dollars(name, table[name]) for name in _CLASSES if name in table},
    )


def _name(table: dict[str, Any], field: str) -> str:
    value = table[field]
    if not isinstance(value, str) or not 1 <= len(value.strip()) <= MAX_NAME:
        raise ValueError(f"{field} has to be a text of 1 to {MAX_NAME} characters")
    return value.strip()


def _start(value: object) -> datetime:
    if value is None:
        return _EVER
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC)
    if isinstance(value, date) and not isinstance(value, datetime):
        return datetime.combine(value, time(), UTC)
    raise ValueError("valid_from has to be a date (UTC), or a time with an offset")


def _dollars(name: str, value: object) -> Decimal:
    if isinstance(value, Decimal) or type(value) is int:
        dollars = Decimal(value)
        in_bounds = dollars.is_finite() and 0 <= dollars <= MAX_DOLLARS
        if in_bounds and dollars == dollars.quantize(_SMALLEST):
            return dollars
    raise ValueError(
        f"{name} has to be dollars per million tokens, from 0 to {MAX_DOLLARS} "
        f"with at most {MAX_DECIMALS} decimals"
    )
