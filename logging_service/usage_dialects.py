"""Where each dialect of language model APIs keeps its token counts."""

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

# A name, or the way to it through objects; a pair picks the item of a list by one of its fields.
Path = str | tuple[str | tuple[str, str], ...]


class Dialect(NamedTuple):
    """The names of each count; of several the first that is there holds."""

    input: tuple[str, ...]
    output: tuple[str, ...]
    total: tuple[str, ...]
    # Inside the input.
    cache_read: tuple[Path, ...] = ()
    cache_write: tuple[Path, ...] = ()
    # Beside the input, where none inside it are there.
    cache_read_beside: tuple[Path, ...] = ()
    cache_write_beside: tuple[Path, ...] = ()
    input_beside: tuple[Path, ...] = ()
    # Inside the cache write.
    cache_write_5m: tuple[Path, ...] = ()
    cache_write_1h: tuple[Path, ...] = ()
    reasoning: tuple[Path, ...] = ()
    # False: inside the output; True: beside it; None: as the total says, and for xAI beside it.
    reasoning_beside: bool | None = False
    # What tells audio, images and video from text: a count, an object or a list of counts.
    media: tuple[str, ...] = ()


_CHAT: Final = Dialect(
    input=("prompt_tokens",),
    output=("completion_tokens",),
    total=("total_tokens", "tokens_used"),
    cache_read=(
        ("prompt_tokens_details", "cached_tokens"),
        "cached_tokens",
        "prompt_cache_hit_tokens",
        "cache_read_input_tokens",
    ),
    cache_write=(("prompt_tokens_details", "cache_write_tokens"), "cache_creation_input_tokens"),
    cache_write_1h=(("cache_creation", "ephemeral_1h_input_tokens"),),
    reasoning=(("completion_tokens_details", "reasoning_tokens"), "reasoning_tokens"),
    reasoning_beside=None,
    media=("prompt_tokens_details", "completion_tokens_details"),
)
# One dialect for three: our own, the Responses API's, and Anthropic's with the cache beside.
_TOKENS: Final = Dialect(
    input=("input_tokens",),
    output=("output_tokens",),
    total=("tokens_used", "total_tokens"),
    cache_read=(
        "cached_tokens",
        ("input_tokens_details", "cached_tokens"),
        ("input_token_details", "cached_tokens"),
        ("input_token_details", "cache_read"),
    ),
    cache_write=(
        "cache_write_tokens",
        ("input_tokens_details", "cache_write_tokens"),
        ("input_token_details", "cache_creation"),
    ),
    cache_read_beside=("cache_read_input_tokens",),
    cache_write_beside=("cache_creation_input_tokens",),
    cache_write_5m=(("cache_creation", "ephemeral_5m_input_tokens"),),
    cache_write_1h=(("cache_creation", "ephemeral_1h_input_tokens"),),
    reasoning=(
        "reasoning_tokens",
        ("output_tokens_details", "reasoning_tokens"),
        ("output_tokens_details", "thinking_tokens"),
        ("output_token_details", "reasoning"),
    ),
    media=(
        "input_tokens_details",
        "output_tokens_details",
        "input_token_details",
        "output_token_details",
    ),
)
# Bedrock's Converse; with the cache inside the input, the AI SDK's.
_CONVERSE: Final = Dialect(
    input=("inputTokens",),
    output=("outputTokens",),
    total=("totalTokens",),
    cache_read=("cachedInputTokens",),
    cache_read_beside=("cacheReadInputTokens",),
    cache_write_beside=("cacheWriteInputTokens",),
    cache_write_5m=(("cacheDetails", ("ttl", "5m"), "inputTokens"),),
    cache_write_1h=(("cacheDetails", ("ttl", "1h"), "inputTokens"),),
    reasoning=("reasoningTokens",),
)


def _gemini(cased: Callable[[str], str]) -> Dialect:
    return Dialect(
        input=(cased("promptTokenCount"),),
        output=(cased("candidatesTokenCount"),),
        total=(cased("totalTokenCount"),),
        cache_read=(cased("cachedContentTokenCount"),),
        input_beside=(cased("toolUsePromptTokenCount"),),
        reasoning=(cased("thoughtsTokenCount"),),
        reasoning_beside=True,
        media=(cased("promptTokensDetails"), cased("candidatesTokensDetails")),
    )


def _snake(name: str) -> str:
    return re.sub("[A-Z]", lambda letter: "_" + letter[0].lower(), name)


_OPENTELEMETRY: Final = Dialect(
    input=("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens"),
    output=("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens"),
    total=("gen_ai.usage.total_tokens", "llm.usage.total_tokens"),
    cache_read=("gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cache_read_input_tokens"),
    cache_write=(
        "gen_ai.usage.cache_write.input_tokens",
        "gen_ai.usage.cache_creation.input_tokens",
        "gen_ai.usage.cache_creation_input_tokens",
    ),
    reasoning=("gen_ai.usage.reasoning.output_tokens",),
    media=(
        "gen_ai.usage.audio.input_tokens",
        "gen_ai.usage.audio.output_tokens",
        "gen_ai.usage.image.input_tokens",
        "gen_ai.usage.image.output_tokens",
    ),
)
_OPENINFERENCE: Final = Dialect(
    input=("llm.token_count.prompt",),
    output=("llm.token_count.completion",),
    total=("llm.token_count.total",),
    cache_read=("llm.token_count.prompt_details.cache_read",),
    cache_write=("llm.token_count.prompt_details.cache_write",),
    reasoning=("llm.token_count.completion_details.reasoning",),
    media=("llm.token_count.prompt_details.audio", "llm.token_count.completion_details.audio"),
)
_DIALECTS: Final = (
    _CHAT,
    _TOKENS,
    _CONVERSE,
    _gemini(str),
    _gemini(_snake),
    _OPENTELEMETRY,
    _OPENINFERENCE,
)
USAGE_OBJECTS: Final = ("usage", "usageMetadata", "usage_metadata")


def usage_object(
    payload: Mapping[str, Any], names: frozenset[str]
) -> tuple[Mapping[str, Any], Dialect | None]:
    """Return what holds the counts, and its dialect: a usage object, else the payload itself.

    `names` are those of `COUNT_NAMES` and `USAGE_OBJECTS` that the payload has. Of the dialect
    there is only what the object has names for; one that splits its total is preferred to one
    that does not.
    """
    for name in USAGE_OBJECTS:
        if name in names:
            inside = payload[name]
            if isinstance(inside, dict) and (dialect := _spoken(inside, frozenset(inside))):
                return inside, dialect
    return payload, _spoken(payload, names)


def _spoken(source: Mapping[str, Any], names: frozenset[str]) -> Dialect | None:
    dialects = _dialects_with(COUNT_NAMES & names)
    # Some servers fill the names of two dialects, those that they do not mean with 0.
    for dialect in dialects:
        for name in dialect.input + dialect.output:
            if source[name]:
                return dialect
    for dialect in dialects:
        for name in dialect.input + dialect.output + dialect.total:
            if source[name] is not None:
                return dialect
    return None


def _parts_of(dialect: Dialect) -> dict[str, tuple[Path, ...]]:
    return {part: paths for part, paths in dialect._asdict().items() if isinstance(paths, tuple)}


def _name(path: Path) -> str:
    return path if isinstance(path, str) else str(path[0])


COUNT_NAMES: Final = frozenset(
    _name(path) for dialect in _DIALECTS for paths in _parts_of(dialect).values() for path in paths
)


# Applications send few shapes, and most of what a dialect knows is in none of them.
@lru_cache(maxsize=1024)
def _dialects_with(names: frozenset[str]) -> tuple[Dialect, ...]:
    found = []
    for dialect in _DIALECTS:
        parts: dict[str, Any] = {
            part: tuple(path for path in paths if _name(path) in names)
            for part, paths in _parts_of(dialect).items()
        }
        if parts["input"] or parts["output"] or parts["total"]:
            found.append(dialect._replace(**parts))
    return tuple(found)


def look(source: Mapping[str, Any], path: Path) -> Any:
    """Return what `path` leads to, None if it leads nowhere."""
    if isinstance(path, str):
        return source.get(path)
    found: Any = source
    for step in path:
        if isinstance(step, str):
            found = found.get(step) if isinstance(found, dict) else None
        else:
            found = _item(found, *step)
    return found


def _item(items: Any, field: str, value: str) -> Any:
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict) and item.get(field) == value:
            return item
    return None


_MEDIA: Final = ("audio_tokens", "image_tokens", "video_tokens", "audio", "image", "video")


def has_media(source: Mapping[str, Any], dialect: Dialect) -> bool:
    """Whether some of the tokens are not text."""
    return any(_is_media(source.get(name)) for name in dialect.media)


def _is_media(counts: Any) -> bool:
    if isinstance(counts, dict):
        return any(counts.get(name) for name in _MEDIA)
    if isinstance(counts, list):
        return any(
            isinstance(item, dict)
            and item.get("modality") not in ("TEXT", None)
            and bool(item.get("tokenCount") or item.get("token_count"))
            for item in counts
        )
    return bool(counts)
