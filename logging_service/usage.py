"""What one call of a model used: token counts that do not overlap, from any dialect."""

import re
import reprlib
from collections.abc import Mapping, Sequence
from decimal import MAX_PREC, ROUND_HALF_EVEN, Context, Decimal, InvalidOperation
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec

from logging_service.usage_dialects import (
    COUNT_NAMES,
    USAGE_OBJECTS,
    Dialect,
    Path,
    has_media,
    look,
    usage_object,
)

MAX_TOKENS: Final = 10**12
"""Beyond any model, and low enough that nine million such counts add up within 64 bits."""
MAX_COST_NANOS: Final = 10**15
"""A million dollars for one call."""
MAX_NAME: Final = 200


class Counts(NamedTuple):
    """The tokens of a call, each in exactly one count."""

    uncached_input: int = 0
    cache_read: int = 0
    cache_write: int = 0
    """Kept for five minutes, or for a time that was not told."""
    cache_write_1h: int = 0
    output: int = 0
    """Without reasoning."""
    reasoning: int = 0


class Usage(msgspec.Struct, frozen=True):
    """What a call used and is said to have cost; whatever was not told is 0 or None."""

    provider: str | None = None
    """By the price data's name for it; one that they do not know as sent, in lower case."""
    model: str | None = None
    counts: Counts = Counts()
    """With a `fault`, where a part is larger than its whole, what is left of the whole is negative:
    so the inclusive counts are what was sent."""
    unsplit: int = 0
    """Tokens of a total that nobody split."""
    is_told: bool = False
    """Whether the input or the total was told; without them nothing can be priced."""
    fault: str | None = None
    """The counts that cannot be, in at most 300 characters."""
    has_media: bool = False
    """Whether some of the tokens were audio, image or video."""
    service: str | None = None
    """`flex`, `priority`, `fast` or `batch`, where the call was not served at the usual terms."""
    reported_nanos: int | None = None
    """What the sender says it cost, in nano-dollars."""
    reported_fault: str | None = None
    """The reported cost that was refused."""

    @property
    def input_tokens(self) -> int:
        """All that went in, cached or not."""
        return sum(self.counts[:4])

    @property
    def output_tokens(self) -> int:
        """All that came out, reasoning included."""
        return sum(self.counts[4:])

    @property
    def total_tokens(self) -> int:
        """Input, output and what was not split."""
        return sum(self.counts) + self.unsplit


def usage_of(payload: Mapping[str, Any] | bytes) -> Usage:
    """Return what an `llm_query_sent` event used, from its payload or the JSON of it.

    Never raises; a payload that cannot be read has used nothing and a fault.
    """
    sent = decoded(payload) if isinstance(payload, bytes) else payload
    if sent is None:
        return Usage(fault="the payload is not a JSON object")
    names = _READ.intersection(sent)
    provider = _provider_of(sent)
    split, fault, source, dialect = _plain(sent, names), None, sent, None
    if split is None:
        source, dialect = usage_object(sent, names)
        split, fault = _split(source, dialect, provider)
    nanos, refused = _reported(sent, source)
    return Usage(
        provider,
        _text(sent, _MODEL),
        split.counts,
        split.unsplit,
        split.is_told,
        fault,
        dialect is not None and bool(dialect.media) and has_media(source, dialect),
        _service(sent, source),
        nanos,
        refused,
    )


def _number(text: str) -> Decimal | str:
    try:
        return Decimal(text)
    except InvalidOperation:
        return text


_READ: Final = COUNT_NAMES.union(USAGE_OBJECTS)
_DECODER: Final = msgspec.json.Decoder(dict[str, Any], float_hook=_number)
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


_decode_all: Final = msgspec.json.Decoder(list[dict[str, Any]], float_hook=_number).decode


def all_decoded(payloads: Sequence[bytes]) -> Sequence[dict[str, Any] | None]:
    """Return what `decoded` returns of each payload, for less."""
    try:
        found = _decode_all(b"[%b]" % b",".join(payloads))
    except _UNREADABLE:
        found = []
    return found if len(found) == len(payloads) else list(map(decoded, payloads))


def decoded(payload: bytes) -> dict[str, Any] | None:
    """Return a payload with its fractions as Decimal, None for what is no JSON object."""
    try:
        return _DECODER.decode(payload)
    except _UNREADABLE:
        return None


class _Split(NamedTuple):
    counts: Counts = Counts()
    unsplit: int = 0
    is_told: bool = False


_NOTHING: Final = _Split()


# What most calls tell in our own names: input and output, and no part of them.
_PLAIN: Final = frozenset({"input_tokens", "output_tokens"})
_PLAIN_NAMES: Final = frozenset({_PLAIN, _PLAIN | {"tokens_used"}})


def _plain(sent: Mapping[str, Any], names: frozenset[str]) -> _Split | None:
    """Return the counts of a payload that needs no dialect, None for any other."""
    if names not in _PLAIN_NAMES:
        return None
    counts = _plain_counts(sent)
    if counts is None:
        return None
    return _Split(Counts(counts[0], 0, 0, 0, counts[1], 0), 0, True)  # noqa: FBT003 - half the time


def _plain_counts(sent: Mapping[str, Any]) -> tuple[int, int] | None:
    told, answered = sent["input_tokens"], sent["output_tokens"]
    if type(told) is not int or type(answered) is not int:
        return None
    if not (0 < told <= MAX_TOKENS and 0 <= answered <= MAX_TOKENS):
        return None
    return told, answered


# With these alone of all names that are read, a call's counts need no dialect, its provider and
# model no second look, and its terms are the usual ones.
_ENOUGH: Final = frozenset({"model", *_PLAIN})
_NO_MORE: Final = _ENOUGH | {"provider", "tokens_used", "cost"}
MOST_SHAPES, _MOST_NAMES, _LONGEST_NAME = 1_000, 40, 100
shapes: dict[tuple[str, ...], bool] = {}

# The provider and the model as they were sent, at most 200 characters of each; input and output.
PlainCall = tuple[str | None, str, int, int]


def plain_call(sent: Mapping[str, Any]) -> PlainCall | None:
    """Return what a payload tells that needs no dialect, None for any other.

    Its usage is told, and has no other counts, no fault, no service and no media.
    """
    shape = tuple(sent)
    is_plain = shapes.get(shape)
    if is_plain is None:
        is_plain = _is_plain(shape)
    if not is_plain:
        return None
    provider, model = sent.get("provider"), sent["model"]
    if not _is_name(model) or not (provider is None or _is_name(provider)):
        return None
    counts = _plain_counts(sent)
    return None if counts is None else (provider, model, *counts)


def _is_name(value: object) -> bool:
    return type(value) is str and len(value) <= MAX_NAME


def _is_plain(shape: tuple[str, ...]) -> bool:
    names = _ALL_READ.intersection(shape)
    is_plain = _ENOUGH <= names <= _NO_MORE
    if len(shape) <= _MOST_NAMES and max(map(len, shape), default=0) <= _LONGEST_NAME:
        if len(shapes) == MOST_SHAPES:
            shapes.clear()
        shapes[shape] = is_plain
    return is_plain


def _split(
    source: Mapping[str, Any], dialect: Dialect | None, provider: str | None
) -> tuple[_Split, str | None]:
    if dialect is None:
        return _NOTHING, None
    reader = _Reader(source)
    split = reader.split(dialect, provider)
    return split, "; ".join(reader.faults)[:300] or None


class _Reader:
    """Reads the counts of one object, and notes what cannot be."""

    def __init__(self, source: Mapping[str, Any]) -> None:
        self._source = source
        self.faults: list[str] = []

    def split(self, dialect: Dialect, provider: str | None) -> _Split:
        input_told, output_told = self._count(dialect.input), self._count(dialect.output)
        faults = len(self.faults)
        total = self._count(dialect.total)
        if input_told is not None and output_told is not None:
            # It is not needed: one that cannot be is ignored like one that does not fit.
            del self.faults[faults:]
        read, write, write_1h, beside = self._cache(dialect)
        reasoning = self._count(dialect.reasoning) or 0
        whole_in = (input_told or 0) + beside + (self._count(dialect.input_beside) or 0)
        whole_out = output_told or 0
        if reasoning and _is_beside(dialect, provider, reasoning, total, whole_in + whole_out):
            whole_out += reasoning
        answer, uncached = whole_out - reasoning, whole_in - read - write
        if answer < 0 or uncached < 0 or write < write_1h:
            self._compare("cache", read + write, "input", whole_in)
            self._compare("1 h cache write", write_1h, "cache write", write)
            self._compare("reasoning", reasoning, "output", whole_out)
        unsplit = 0
        if total is not None and (input_told is None or output_told is None):
            self._compare("input and output", whole_in + whole_out, "total", total)
            unsplit = max(0, total - whole_in - whole_out)
        counts = Counts(uncached, read, write - write_1h, write_1h, answer, reasoning)
        return _Split(counts, unsplit, is_told=input_told is not None or total is not None)

    def _count(self, paths: tuple[Path, ...]) -> int | None:
        for path in paths:
            value = self._source[path] if isinstance(path, str) else look(self._source, path)
            if type(value) is int and 0 <= value <= MAX_TOKENS:
                return value
            if value is not None:
                return self._odd_count(path, value)
        return None

    def _odd_count(self, path: Path, value: object) -> int:
        if isinstance(value, Decimal | float):
            number = Decimal(value)
            is_whole = number.is_finite() and number == number.to_integral_value()
            if is_whole and 0 <= number <= MAX_TOKENS:
                return int(number)
        name = path if isinstance(path, str) else path[-1]
        self.faults.append(f"{name}: {_shown(value)} is no count")
        return 0

    def _cache(self, dialect: Dialect) -> tuple[int, int, int, int]:
        """Return cache read, cache write, the part of it for 1 h, and what is beside the input."""
        read, write = self._count(dialect.cache_read), self._count(dialect.cache_write)
        is_beside = read is None and write is None
        if read is None:
            read = self._count(dialect.cache_read_beside) or 0
        if write is None:
            write = self._count(dialect.cache_write_beside)
        write_1h = self._count(dialect.cache_write_1h) or 0
        if write is None:
            write = write_1h + (self._count(dialect.cache_write_5m) or 0)
        return read, write, write_1h, read + write if is_beside else 0

    def _compare(self, part: str, of_part: int, whole: str, of_whole: int) -> None:
        if of_part > of_whole:
            self.faults.append(f"{part} {of_part} is more than {whole} {of_whole}")


def _is_beside(
    dialect: Dialect, provider: str | None, reasoning: int, total: int | None, without: int
) -> bool:
    """Whether reasoning is not in the output; `without` is input and output as they were sent."""
    if dialect.reasoning_beside is not None:
        return dialect.reasoning_beside
    return total == without + reasoning or (provider == "x-ai" and total != without)


def _shown(value: object) -> str:
    try:
        return str(value)[:40] if isinstance(value, Decimal) else reprlib.repr(value)
    except ValueError:
        return "a number of thousands of digits"


_PROVIDER: Final = (
    "provider",
    "gen_ai.provider.name",
    "gen_ai.system",
    "llm.provider",
    "llm.system",
)
_MODEL: Final = ("model", "gen_ai.response.model", "gen_ai.request.model", "llm.model_name")
_ADDRESS: Final = ("server.address", "base_url", "api_base")
_LOOPBACK: Final = re.compile(
    r"(?:[a-z]+://)?(?:localhost|127\.[0-9.]+|0\.0\.0\.0|\[?::1\]?)(?::[0-9]+)?(?:/.*)?"
)
_PROVIDERS: Final = {
    alias: name
    for name, aliases in {
        "anthropic": "anthropic",
        "aws": "aws amazon amazon-bedrock aws-bedrock bedrock",
        "azure": "azure az azure-ai azure-openai",
        "cohere": "cohere",
        "deepseek": "deepseek",
        "fireworks": "fireworks fireworks-ai",
        "google": "google gcp gemini google-ai-studio google-genai google-vertex vertex vertex-ai "
        "vertexai",
        "groq": "groq",
        "mistral": "mistral mistral-ai mistralai",
        "moonshotai": "moonshotai moonshot moonshot-ai",
        "openai": "openai",
        "openrouter": "openrouter",
        "perplexity": "perplexity perplexity-ai",
        "together": "together together-ai togetherai",
        "x-ai": "x-ai xai x.ai",
    }.items()
    for alias in aliases.split()
}


@lru_cache(maxsize=1024)
def provider_name(sent: str) -> str:
    """Return the price data's name of a provider; any other in lower case.

    What follows a dot is the part of its API: `azure.ai.openai`, `gcp.vertex_ai`, `openai.chat`.
    An address of the own host is `localhost`.
    """
    name = sent.lower()
    key = name.replace("_", "-").replace(" ", "-")
    known = _PROVIDERS.get(key) or _PROVIDERS.get(key.partition(".")[0])
    return known or ("localhost" if _LOOPBACK.fullmatch(name) else name)


def _provider_of(sent: Mapping[str, Any]) -> str | None:
    told = _text(sent, _PROVIDER)
    if told is not None:
        return provider_name(told)
    address = _text(sent, _ADDRESS)
    return "localhost" if address and _LOOPBACK.fullmatch(address.lower()) else None


def _text(sent: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    for name in names:
        value = sent.get(name)
        # PostgreSQL has no NUL, and a name of nothing else is none.
        if isinstance(value, str) and (text := value.replace("\x00", "").strip()):
            return text[:MAX_NAME]
    return None


_SERVICES: Final = frozenset({"flex", "priority", "fast", "batch"})
_SERVICE: Final = frozenset({"service_tier", "speed", "processing", "openai.response.service_tier"})


def _service(sent: Mapping[str, Any], source: Mapping[str, Any]) -> str | None:
    for holder in (sent,) if source is sent else (source, sent):
        if not _SERVICE.isdisjoint(holder):
            for name in sorted(_SERVICE):
                value = holder.get(name)
                if isinstance(value, str) and value in _SERVICES:
                    return value
    return None


_COST: Final = ("cost", "gen_ai.usage.cost", "llm.cost.total")
_NO_COST, _MOST_COST = Decimal(0), Decimal(MAX_COST_NANOS // 10**9)
_NANOS: Final = Decimal(10**9)
# Scaling by a power of ten keeps every digit of what fits a payload's size limit.
_EXACT: Final = Context(prec=MAX_PREC)


def _reported(sent: Mapping[str, Any], source: Mapping[str, Any]) -> tuple[int | None, str | None]:
    """Return the reported cost in nano-dollars, rounded half-even, or what was refused."""
    value = source.get("cost")
    for name in _COST:
        if sent.get(name) is not None:
            value = sent[name]
            break
    return (None, None) if value is None else reported_nanos(value)


def reported_nanos(value: object) -> tuple[int | None, str | None]:
    """Return a cost in dollars as nano-dollars, rounded half-even, or what was refused."""
    if isinstance(value, float):
        value = Decimal(repr(value))  # its shortest text is the number that stood in the JSON
    number = Decimal(value) if type(value) is int else value
    if isinstance(number, Decimal) and number.is_finite() and _NO_COST <= number <= _MOST_COST:
        return int(_EXACT.multiply(number, _NANOS).to_integral_value(ROUND_HALF_EVEN)), None
    return None, f"cost: {_shown(value)}"[:100]


_ALL_READ: Final = _READ.union(_PROVIDER, _MODEL, _ADDRESS, _SERVICE, _COST)


def named(provider: str | None, model: str) -> tuple[str | None, str | None]:
    """Return the names of a `PlainCall`'s provider and model in its `Usage`."""
    sent = {"provider": provider, "model": model}
    return _provider_of(sent), _text(sent, _MODEL)
