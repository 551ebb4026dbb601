"""What a call cost, by the list prices of its time or the operator's own."""

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from enum import StrEnum
from functools import lru_cache
from operator import mul
from typing import Final, NamedTuple

import genai_prices
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import (
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    Provider,
    StartDateConstraint,
    TieredPrices,
    TimeOfDateConstraint,
)

from logging_service.price_file import OwnPrices
from logging_service.usage import MAX_COST_NANOS, MAX_TOKENS, Counts, Usage

LIST_SOURCE: Final = f"genai-prices {genai_prices.__version__}"
LOCAL_PROVIDERS: Final = frozenset(
    {
        "gpt4all",
        "hosted-vllm",
        "jan",
        "koboldcpp",
        "llama-cpp",
        "llama-cpp-python",
        "llama.cpp",
        "llamacpp",
        "llamafile",
        "lm-studio",
        "lmstudio",
        "local",
        "localai",
        "localhost",
        "mlx",
        "mlx-lm",
        "ollama",
        "ollama-chat",
        "sglang",
        "text-generation-inference",
        "tgi",
        "vllm",
    }
)
_LOCAL_TAG: Final = re.compile(r"[^/]+:(?:latest|[0-9.]+[bm](?:-.*)?)", re.IGNORECASE)


class Unpriced(StrEnum):
    """Why a call has no computed cost."""

    NOTHING_TOLD = "nothing_told"
    """Neither the input nor a total was told."""
    IMPOSSIBLE_COUNTS = "impossible_counts"
    """A count cannot be, such as a part that is larger than its whole."""
    SPLIT_UNKNOWN = "split_unknown"
    """Only the total is known."""
    NO_MODEL = "no_model"
    """No model was told."""
    LOCAL_SERVER = "local_server"
    """The model ran on an own server, which has no list price."""
    UNKNOWN_PROVIDER = "unknown_provider"
    """The price data do not know the provider."""
    UNKNOWN_MODEL = "unknown_model"
    """The price data do not know the model."""
    MEDIA = "media"
    """Some tokens are audio, image or video, which this model has other prices for."""
    NO_RATE = "no_rate"
    """There is no price for a class of tokens that was used."""
    TOO_LARGE = "too_large"
    """It would be more than a million dollars."""


class Cost(NamedTuple):
    """A call's cost in nano-dollars and where the price is from; or None, and why."""

    nanos: int | None
    source: str | None = None
    unpriced: Unpriced | None = None


class FlatPrice(NamedTuple):
    """Nano-dollars for a token of input and of output, from one time until before another.

    It is for calls with at most so much input, of any kind.
    """

    since: datetime
    until: datetime
    most_input: int
    input_nanos: int
    output_nanos: int
    source: str


class Prices:
    """The prices of every model at every time: the operator's own before the list's."""

    def __init__(self, own: OwnPrices | None = None) -> None:
        own = own or OwnPrices()
        self._own_prices = sorted(own.prices, key=lambda price: price.rank, reverse=True)
        self._own_source = f"prices file {own.version}"
        # A model that nobody knows costs up to a millisecond to look for.
        self._own = lru_cache(maxsize=4096)(self._find_own)

    def cost_of(self, usage: Usage, at: datetime) -> Cost:
        """Return what the call cost at the time `at` (aware), rounded half-even, once.

        Never raises.
        """
        model = usage.model
        if model is None or usage.fault or usage.unsplit or not usage.is_told:
            return Cost(None, unpriced=_unknown(usage) or Unpriced.NO_MODEL)
        if at.tzinfo is not UTC:
            at = at.astimezone(UTC)
        for valid_from, band in self._own(usage.provider, model):
            if valid_from <= at:
                return _cost(usage.counts, band, self._own_source)
        listed = _listed(usage.provider, model)
        if isinstance(listed, _Listed):
            return listed.cost_of(usage, at)
        return Cost(None, unpriced=listed)

    def flat_price(self, provider: str | None, model: str, at: datetime) -> FlatPrice | None:
        """Return what each plain token costs at the time `at` (UTC), whatever the call has more.

        None where a token has no price, no whole one, or more than one.
        """
        own = self._own(provider, model)
        starts = [valid_from for valid_from, _ in own]
        since = max((start for start in starts if start <= at), default=_FIRST)
        until = min((start for start in starts if start > at), default=_LAST)
        for valid_from, band in own:
            if valid_from <= at:
                return _flat(since, until, (band,), self._own_source)
        listed = _listed(provider, model)
        found = listed.bands_around(at) if isinstance(listed, _Listed) else None
        if found is None:
            return None
        listed_since, listed_until, bands = found
        return _flat(max(since, listed_since), min(until, listed_until), bands, LIST_SOURCE)

    def _find_own(self, provider: str | None, model: str) -> tuple[tuple[datetime, "_Band"], ...]:
        return tuple(
            (price.valid_from, _Band(_ALWAYS, _rates(price.dollars), 0))
            for price in self._own_prices
            if price.is_for(provider, model)
        )


def _unknown(usage: Usage) -> Unpriced | None:
    if usage.fault:
        return Unpriced.IMPOSSIBLE_COUNTS
    if not usage.is_told:
        return Unpriced.NOTHING_TOLD
    return Unpriced.SPLIT_UNKNOWN if usage.unsplit else None


class _Rates(NamedTuple):
    """What one token of each count costs, in 10⁻²⁴ dollars; None: there is no price for it."""

    uncached_input: int | None
    cache_read: int | None
    cache_write: int | None
    cache_write_1h: int | None
    output: int | None
    reasoning: int | None


class _Band(NamedTuple):
    """The rates of calls with more input than `above`, and what a call costs beside its tokens."""

    above: int
    rates: _Rates
    call: int


_ALWAYS: Final = -1
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
# In this unit a price per million tokens is whole with up to 18 decimals, which some lists have.
_UNITS_PER_NANO: Final = 10**15
_TOKEN_UNITS: Final = 10**18
_CALL_UNITS: Final = 10**21


def _rates(dollars: Mapping[str, Decimal | None]) -> _Rates:
    """Return the rates for dollars per million; a part without a price costs as its whole does."""

    def units(*classes: str) -> int | None:
        found = next((dollars[name] for name in classes if dollars.get(name) is not None), None)
        return None if found is None else int(found * _TOKEN_UNITS)

    return _Rates(
        uncached_input=units("input"),
        cache_read=units("cache_read", "input"),
        cache_write=units("cache_write", "input"),
        cache_write_1h=units("cache_write_1h", "cache_write", "input"),
        output=units("output"),
        reasoning=units("reasoning", "output"),
    )


def _flat(
    since: datetime, until: datetime, bands: Sequence[_Band], source: str
) -> FlatPrice | None:
    band = bands[-1]
    most_input = bands[-2].above if len(bands) > 1 else MAX_TOKENS
    put_in, put_out = band.rates.uncached_input, band.rates.output
    if band.call or put_in is None or put_out is None:
        return None
    if put_in % _UNITS_PER_NANO or put_out % _UNITS_PER_NANO:
        return None
    nanos = put_in // _UNITS_PER_NANO, put_out // _UNITS_PER_NANO
    return FlatPrice(since, until, most_input, *nanos, source)


def _cost(counts: Counts, band: _Band, source: str) -> Cost:
    amount = band.call if band.call and any(counts) else 0
    try:
        amount += sum(map(mul, counts, band.rates))
    except TypeError:
        # Some class has no rate; it may be none that was used.
        for count, rate in zip(counts, band.rates, strict=True):
            if count:
                if rate is None:
                    return Cost(None, unpriced=Unpriced.NO_RATE)
                amount += count * rate
    nanos, rest = divmod(amount, _UNITS_PER_NANO)
    if 2 * rest > _UNITS_PER_NANO or (2 * rest == _UNITS_PER_NANO and nanos % 2):
        nanos += 1
    if nanos > MAX_COST_NANOS:
        return Cost(None, unpriced=Unpriced.TOO_LARGE)
    return Cost(nanos, source)


# genai-prices keeps every name that it was ever asked for: it is asked for models only, and
# what it found is kept here. A name that it does not know takes it up to a millisecond.
@lru_cache(maxsize=4096)
def _listed(provider: str | None, model: str) -> "_Listed | Unpriced":
    if _is_local(provider, model):
        return Unpriced.LOCAL_SERVER
    providers = get_snapshot().providers
    model = model.lower()
    seller = next((each for each in providers if _sells(each, provider, model)), None)
    if seller is None:
        return Unpriced.UNKNOWN_MODEL if provider is None else Unpriced.UNKNOWN_PROVIDER
    found = seller.find_model(model, all_providers=providers)
    if found is None:
        return Unpriced.UNKNOWN_MODEL
    return _Listed(found, has_services=any(found is each for each in seller.models))


def _is_local(provider: str | None, model: str) -> bool:
    name = model.partition("/")[0] if provider is None else provider
    name = re.sub("[ _]", "-", name.lower())
    if name in LOCAL_PROVIDERS or name.partition(".")[0] in LOCAL_PROVIDERS:
        return True
    return provider is None and _LOCAL_TAG.fullmatch(model) is not None


def _sells(seller: Provider, provider: str | None, model: str) -> bool:
    if provider is not None:
        return seller.id == provider
    return seller.model_match is not None and seller.model_match.is_match(model)


_CONTEXTS: Final = {
    "flex": {"service_tier": "flex"},
    "priority": {"service_tier": "priority"},
    "fast": {"service_tier": "fast", "speed": "fast"},
    "batch": {"processing": "batch"},
}
_PRICE_KEYS: Final = {
    "input": "input_mtok",
    "cache_read": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
    "cache_write_1h": "cache_write_1h_mtok",
    "output": "output_mtok",
    "reasoning": "output_reasoning_mtok",
    "call": "requests_kcount",
}
_MEDIA_PRICE: Final = re.compile(r".*(?:audio|image|video).*_mtok")


class _Listed:
    """The list prices of one model at any time."""

    def __init__(self, model: ModelInfo, *, has_services: bool) -> None:
        self._model = model
        self._has_services = has_services
        prices = model.prices
        dated = [ConditionalPrice(prices=prices)] if isinstance(prices, ModelPrice) else prices
        self._prices_media = any(
            value is not None and _MEDIA_PRICE.fullmatch(key) is not None
            for each in dated
            for key, value in vars(each.prices).items()
        )
        limits = [each.constraint for each in (*dated, *(model.price_variants or ()))]
        self._days = sorted(
            {each.start_date for each in limits if isinstance(each, StartDateConstraint)}
        )
        self._times = sorted(
            {
                _utc(moment)
                for each in limits
                if isinstance(each, TimeOfDateConstraint)
                for moment in (each.start_time, each.end_time)
            }
        )
        # One entry at the most for each service between two changes of price.
        self._bands: dict[tuple[int, int, str | None], tuple[_Band, ...]] = {}

    def cost_of(self, usage: Usage, at: datetime) -> Cost:
        """Return what a call of this model cost at the time `at`, in UTC."""
        if usage.has_media and self._prices_media:
            return Cost(None, unpriced=Unpriced.MEDIA)
        bands = self._bands_at(at, usage.service)
        band = bands[0]
        if len(bands) > 1:
            whole = usage.input_tokens
            band = next(band for band in bands if whole > band.above)
        return _cost(usage.counts, band, LIST_SOURCE)

    def bands_around(self, at: datetime) -> tuple[datetime, datetime, tuple[_Band, ...]] | None:
        """Return the bands at the time `at`, in UTC, and from when until when.

        None where they change within a day.
        """
        if self._times:
            return None
        day = bisect_right(self._days, at.date())
        since = _midnight(self._days[day - 1]) if day else _FIRST
        until = _midnight(self._days[day]) if day < len(self._days) else _LAST
        return since, until, self._bands_at(at, None)

    def _bands_at(self, at: datetime, service: str | None) -> tuple[_Band, ...]:
        day = bisect_right(self._days, at.date()) if self._days else 0
        moment = bisect_right(self._times, at.time()) if self._times else 0
        key = day, moment, service if self._has_services else None
        bands = self._bands.get(key)
        if bands is None:
            context = _CONTEXTS[key[2]] if key[2] else None
            bands = self._bands[key] = _bands(self._model.get_prices(at, context))
        return bands


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _utc(moment: time) -> time:
    if moment.tzinfo is None:
        return moment
    return datetime.combine(date(1970, 1, 1), moment).astimezone(UTC).time()


def _bands(price: ModelPrice) -> tuple[_Band, ...]:
    """Return the bands of input, the highest first."""
    listed = {name: getattr(price, key) for name, key in _PRICE_KEYS.items()}
    steps = {
        tier.start
        for value in listed.values()
        if isinstance(value, TieredPrices)
        for tier in value.tiers
    }
    found = []
    for above in sorted({_ALWAYS, *steps}, reverse=True):
        dollars = {name: _at(value, above) for name, value in listed.items()}
        found.append(_Band(above, _rates(dollars), int((dollars["call"] or 0) * _CALL_UNITS)))
    return tuple(found)


def _at(price: Decimal | TieredPrices | None, above: int) -> Decimal | None:
    if not isinstance(price, TieredPrices):
        return price
    return next((t.price for t in reversed(price.tiers) if t.start <= above), price.base)
