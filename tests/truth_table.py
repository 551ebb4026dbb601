"""Calls of models as applications log them, and what each used and cost, computed by hand."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple

from logging_service.pricing import Unpriced
from logging_service.usage import Counts

D = Decimal
NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def m(tokens: int, dollars: str) -> Decimal:
    """So many tokens, at so many dollars per million."""
    return tokens * D(dollars) / 1_000_000


class Call(NamedTuple):
    name: str
    payload: dict[str, Any]
    counts: Counts
    dollars: Decimal | None
    """Before it is rounded to a nano-dollar; None: unpriced."""
    unpriced: Unpriced | None = None
    at: datetime = NOON
    unsplit: int = 0


def day(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


GPT = {"provider": "openai", "model": "gpt-4o"}  # input 2.50, cached 1.25, output 10
O3_MINI = {"provider": "openai", "model": "o3-mini"}  # 1.10, 0.55, 4.40
# input 3, cache read 0.30, cache write 3.75, for 1 h 6, output 15; above 200,000 of input
# 6, 0.60, 7.50, 12, 22.50
SONNET = {"provider": "anthropic", "model": "claude-sonnet-4-5-20250929"}
GEMINI = {"provider": "gcp.gemini", "model": "gemini-2.5-pro"}  # 1.25, 0.125, 10; above 200,000 …
GROK = {"provider": "xai", "model": "grok-4"}  # 3, 0.75, 15
FRACTION = {"provider": "deepseek", "model": "deepseek-v4-pro"}  # cached 0.003625
EMBEDDING = {"provider": "openai", "model": "text-embedding-3-small"}  # 0.02


def otel(provider: str, model: str, **counts: int) -> dict[str, Any]:
    """The attributes of a span; `__` stands for the dot in a name."""
    usage = {f"gen_ai.usage.{name.replace('__', '.')}": count for name, count in counts.items()}
    return {"gen_ai.provider.name": provider, "gen_ai.request.model": model, **usage}


OWN = [
    Call(
        "own fields, all of them",
        GPT
        | {
            "tokens_used": 1200,
            "input_tokens": 1000,
            "output_tokens": 200,
            "cached_tokens": 400,
            "cache_write_tokens": 0,
            "reasoning_tokens": 50,
            "cost": 0.0041,
        },
        Counts(600, 400, 0, 0, 150, 50),
        m(600, "2.5") + m(400, "1.25") + m(200, "10"),
    ),
    Call(
        "own fields, input and output only",
        GPT | {"input_tokens": 1000, "output_tokens": 200},
        Counts(1000, 0, 0, 0, 200, 0),
        D("0.0045"),
    ),
    Call(
        "own fields, cache write inside the input",
        SONNET
        | {
            "input_tokens": 1000,
            "cached_tokens": 300,
            "cache_write_tokens": 200,
            "output_tokens": 10,
        },
        Counts(500, 300, 200, 0, 10, 0),
        m(500, "3") + m(300, "0.3") + m(200, "3.75") + m(10, "15"),
    ),
    Call(
        "own fields at xAI: reasoning is in the output",
        GROK | {"input_tokens": 100, "output_tokens": 80, "reasoning_tokens": 30},
        Counts(100, 0, 0, 0, 50, 30),
        m(100, "3") + m(80, "15"),
    ),
    Call(
        "a total alone",
        GPT | {"tokens_used": 500},
        Counts(),
        None,
        Unpriced.SPLIT_UNKNOWN,
        unsplit=500,
    ),
    Call("a total of zero", GPT | {"tokens_used": 0}, Counts(), D(0)),
    Call(
        "input and a larger total, no output",
        GPT | {"input_tokens": 400, "tokens_used": 500},
        Counts(400),
        None,
        Unpriced.SPLIT_UNKNOWN,
        unsplit=100,
    ),
    Call(
        "a total that does not fit: the split counts",
        GPT | {"input_tokens": 1000, "output_tokens": 200, "tokens_used": 9999},
        Counts(1000, 0, 0, 0, 200, 0),
        D("0.0045"),
    ),
    Call(
        "zero tokens",
        GPT | {"input_tokens": 0, "output_tokens": 0, "tokens_used": 0},
        Counts(),
        D(0),
    ),
    Call(
        "counts written as 1000.0",
        GPT | {"input_tokens": 1000.0, "output_tokens": 2e2},
        Counts(1000, 0, 0, 0, 200, 0),
        D("0.0045"),
    ),
    Call("no counts", GPT | {"duration_ms": 12}, Counts(), None, Unpriced.NOTHING_TOLD),
    Call(
        "nulls",
        GPT | {"input_tokens": None, "usage": None},
        Counts(),
        None,
        Unpriced.NOTHING_TOLD,
    ),
]

OPENAI = [
    Call(
        "chat: cached and reasoning are inside",
        {
            **O3_MINI,
            "usage": {
                "prompt_tokens": 2000,
                "completion_tokens": 900,
                "total_tokens": 2900,
                "prompt_tokens_details": {"cached_tokens": 1500, "audio_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 700, "audio_tokens": 0},
            },
        },
        Counts(500, 1500, 0, 0, 200, 700),
        m(500, "1.1") + m(1500, "0.55") + m(900, "4.4"),
    ),
    Call(
        "chat, without details",
        GPT | {"usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}},
        Counts(10, 0, 0, 0, 5, 0),
        m(10, "2.5") + m(5, "10"),
    ),
    Call(
        "chat, flat",
        GPT | {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
        Counts(10, 0, 0, 0, 5, 0),
        m(10, "2.5") + m(5, "10"),
    ),
    Call(
        "chat, details are null",
        GPT
        | {"usage": {"prompt_tokens": 8, "completion_tokens": 4, "prompt_tokens_details": None}},
        Counts(8, 0, 0, 0, 4, 0),
        m(8, "2.5") + m(4, "10"),
    ),
    Call(
        "responses",
        {
            **O3_MINI,
            "usage": {
                "input_tokens": 2000,
                "input_tokens_details": {"cached_tokens": 1500},
                "output_tokens": 900,
                "output_tokens_details": {"reasoning_tokens": 700},
                "total_tokens": 2900,
            },
        },
        Counts(500, 1500, 0, 0, 200, 700),
        m(500, "1.1") + m(1500, "0.55") + m(900, "4.4"),
    ),
    Call(
        "the usage object wins over flat counts",
        GPT
        | {
            "input_tokens": 1,
            "output_tokens": 1,
            "usage": {"prompt_tokens": 1000, "completion_tokens": 200},
        },
        Counts(1000, 0, 0, 0, 200, 0),
        D("0.0045"),
    ),
    Call(
        "an empty usage object does not",
        GPT | {"input_tokens": 1000, "output_tokens": 200, "usage": {}},
        Counts(1000, 0, 0, 0, 200, 0),
        D("0.0045"),
    ),
    Call(
        "names of two dialects, one of them all 0",
        GPT
        | {
            "usage": {
                "input_tokens": 0,
                "output_tokens": 0,
                "prompt_tokens": 1000,
                "completion_tokens": 200,
            }
        },
        Counts(1000, 0, 0, 0, 200, 0),
        D("0.0045"),
    ),
    Call(
        "streamed without usage",
        GPT | {"stream": True, "usage": None},
        Counts(),
        None,
        Unpriced.NOTHING_TOLD,
    ),
    Call(
        "streamed, the output only",
        SONNET | {"usage": {"output_tokens": 20}},
        Counts(0, 0, 0, 0, 20, 0),
        None,
        Unpriced.NOTHING_TOLD,
    ),
    Call(
        "embeddings: no output, no price for one",
        EMBEDDING | {"usage": {"prompt_tokens": 8000, "total_tokens": 8000}},
        Counts(8000),
        m(8000, "0.02"),
    ),
    Call(
        "DeepSeek: cache hits are inside, at the price of that hour",
        {
            "provider": "deepseek",
            "model": "deepseek-chat",
            "usage": {
                "prompt_tokens": 1000,
                "completion_tokens": 100,
                "prompt_cache_hit_tokens": 600,
                "prompt_cache_miss_tokens": 400,
            },
        },
        Counts(400, 600, 0, 0, 100, 0),
        m(400, "0.27") + m(600, "0.07") + m(100, "1.1"),
    ),
    Call(
        "the same off peak",
        {
            "provider": "deepseek",
            "model": "deepseek-chat",
            "usage": {"prompt_tokens": 1000, "completion_tokens": 100},
        },
        Counts(1000, 0, 0, 0, 100, 0),
        m(1000, "0.135") + m(100, "0.55"),
        at=datetime(2026, 3, 2, 16, 30, tzinfo=UTC),
    ),
]

ANTHROPIC = [
    Call(
        "messages: the cache is beside the input",
        SONNET
        | {
            "usage": {
                "input_tokens": 100,
                "cache_read_input_tokens": 5000,
                "cache_creation_input_tokens": 0,
                "output_tokens": 200,
            }
        },
        Counts(100, 5000, 0, 0, 200, 0),
        m(100, "3") + m(5000, "0.3") + m(200, "15"),
    ),
    Call(
        "messages, writes for 5 minutes and for 1 h",
        SONNET
        | {
            "usage": {
                "input_tokens": 100,
                "cache_read_input_tokens": 5000,
                "cache_creation_input_tokens": 900,
                "cache_creation": {
                    "ephemeral_5m_input_tokens": 600,
                    "ephemeral_1h_input_tokens": 300,
                },
                "output_tokens": 200,
            }
        },
        Counts(100, 5000, 600, 300, 200, 0),
        m(100, "3") + m(5000, "0.3") + m(600, "3.75") + m(300, "6") + m(200, "15"),
    ),
    Call(
        "messages, the writes without their sum",
        SONNET
        | {
            "usage": {
                "input_tokens": 1,
                "cache_creation": {
                    "ephemeral_5m_input_tokens": 6,
                    "ephemeral_1h_input_tokens": 3,
                },
                "output_tokens": 2,
            }
        },
        Counts(1, 0, 6, 3, 2, 0),
        m(1, "3") + m(6, "3.75") + m(3, "6") + m(2, "15"),
    ),
    Call(
        "messages, flat, with a total that leaves the cache out",
        SONNET
        | {
            "input_tokens": 100,
            "cache_read_input_tokens": 5000,
            "output_tokens": 20,
            "tokens_used": 120,
        },
        Counts(100, 5000, 0, 0, 20, 0),
        m(100, "3") + m(5000, "0.3") + m(20, "15"),
    ),
    Call(
        "thinking is in the output",
        SONNET
        | {
            "usage": {
                "input_tokens": 100,
                "output_tokens": 50,
                "output_tokens_details": {"thinking_tokens": 40},
            }
        },
        Counts(100, 0, 0, 0, 10, 40),
        m(100, "3") + m(50, "15"),
    ),
    Call(
        "through a proxy that speaks chat: the cache is inside",
        SONNET
        | {
            "usage": {
                "prompt_tokens": 5100,
                "completion_tokens": 200,
                "cache_read_input_tokens": 5000,
                "cache_creation_input_tokens": 0,
            }
        },
        Counts(100, 5000, 0, 0, 200, 0),
        m(100, "3") + m(5000, "0.3") + m(200, "15"),
    ),
    Call(
        "the last token below the tier",
        SONNET | {"input_tokens": 200_000, "output_tokens": 10},
        Counts(200_000, 0, 0, 0, 10, 0),
        m(200_000, "3") + m(10, "15"),
    ),
    Call(
        "above it every token costs more; the cache counts towards it",
        SONNET
        | {
            "usage": {
                "input_tokens": 1,
                "cache_read_input_tokens": 200_000,
                "output_tokens": 10,
            }
        },
        Counts(1, 200_000, 0, 0, 10, 0),
        m(1, "6") + m(200_000, "0.6") + m(10, "22.5"),
    ),
    Call(
        "batches are cheaper from the day on from which that is known",
        SONNET | {"service_tier": "batch", "input_tokens": 100, "output_tokens": 10},
        Counts(100, 0, 0, 0, 10, 0),
        m(100, "1.5") + m(10, "7.5"),
        at=day("2026-10-14"),
    ),
    Call(
        "Bedrock, Converse",
        {
            "provider": "aws.bedrock",
            "model": "anthropic.claude-sonnet-4-5-20250929-v1:0",
            "usage": {
                "inputTokens": 100,
                "outputTokens": 20,
                "totalTokens": 1720,
                "cacheReadInputTokens": 1000,
                "cacheWriteInputTokens": 600,
                "cacheDetails": [
                    {"ttl": "5m", "inputTokens": 400},
                    {"ttl": "1h", "inputTokens": 200},
                ],
            },
        },
        Counts(100, 1000, 400, 200, 20, 0),
        m(100, "3.3") + m(1000, "0.33") + m(400, "4.125") + m(200, "6.6") + m(20, "16.5"),
    ),
]

OTHERS = [
    Call(
        "Gemini: thoughts are beside the candidates",
        GEMINI
        | {
            "usageMetadata": {
                "promptTokenCount": 1000,
                "candidatesTokenCount": 100,
                "thoughtsTokenCount": 300,
                "cachedContentTokenCount": 600,
                "totalTokenCount": 1400,
                "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 1000}],
            }
        },
        Counts(400, 600, 0, 0, 100, 300),
        m(400, "1.25") + m(600, "0.125") + m(400, "10"),
    ),
    Call(
        "Gemini, as its Python library writes it, with a tool's prompt",
        GEMINI
        | {
            "usage_metadata": {
                "prompt_token_count": 1000,
                "tool_use_prompt_token_count": 50,
                "candidates_token_count": None,
                "thoughts_token_count": 300,
                "total_token_count": 1350,
            }
        },
        Counts(1050, 0, 0, 0, 0, 300),
        m(1050, "1.25") + m(300, "10"),
    ),
    Call(
        "Gemini above its tier",
        GEMINI | {"usageMetadata": {"promptTokenCount": 200_001, "candidatesTokenCount": 1}},
        Counts(200_001, 0, 0, 0, 1, 0),
        m(200_001, "2.5") + m(1, "15"),
    ),
    Call(
        "Gemini heard audio, which has its own price",
        {
            "provider": "google",
            "model": "gemini-2.5-flash",
            "usageMetadata": {
                "promptTokenCount": 300,
                "candidatesTokenCount": 10,
                "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 200}],
            },
        },
        Counts(300, 0, 0, 0, 10, 0),
        None,
        Unpriced.MEDIA,
    ),
    Call(
        "Gemini saw an image, which costs what text costs",
        GEMINI
        | {
            "usageMetadata": {
                "promptTokenCount": 300,
                "candidatesTokenCount": 10,
                "promptTokensDetails": [{"modality": "IMAGE", "tokenCount": 258}],
            }
        },
        Counts(300, 0, 0, 0, 10, 0),
        m(300, "1.25") + m(10, "10"),
    ),
    Call(
        "xAI: reasoning is beside the completion, as the total says",
        GROK
        | {
            "usage": {
                "prompt_tokens": 100,
                "completion_tokens": 20,
                "total_tokens": 170,
                "prompt_tokens_details": {"cached_tokens": 40},
                "completion_tokens_details": {"reasoning_tokens": 50},
            }
        },
        Counts(60, 40, 0, 0, 20, 50),
        m(60, "3") + m(40, "0.75") + m(70, "15"),
    ),
    Call(
        "xAI without a total: by the provider",
        {
            "gen_ai.system": "x_ai",
            "model": "grok-4",
            "usage": {
                "prompt_tokens": 100,
                "completion_tokens": 60,
                "completion_tokens_details": {"reasoning_tokens": 50},
            },
        },
        Counts(100, 0, 0, 0, 60, 50),
        m(100, "3") + m(110, "15"),
    ),
    Call(
        "xAI, where the total says that reasoning is inside",
        GROK
        | {
            "usage": {
                "prompt_tokens": 100,
                "completion_tokens": 60,
                "total_tokens": 160,
                "completion_tokens_details": {"reasoning_tokens": 50},
            }
        },
        Counts(100, 0, 0, 0, 10, 50),
        m(100, "3") + m(60, "15"),
    ),
    Call(
        "an unnamed server whose total holds the reasoning beside",
        {
            "model": "grok-4",
            "usage": {
                "prompt_tokens": 10,
                "completion_tokens": 20,
                "total_tokens": 35,
                "completion_tokens_details": {"reasoning_tokens": 5},
            },
        },
        Counts(10, 0, 0, 0, 20, 5),
        m(10, "3") + m(25, "15"),
    ),
    Call(
        "OpenTelemetry, present names",
        otel(
            "anthropic",
            "claude-sonnet-4-5",
            input_tokens=1000,
            output_tokens=100,
            cache_read__input_tokens=300,
            cache_write__input_tokens=200,
            reasoning__output_tokens=60,
        ),
        Counts(500, 300, 200, 0, 40, 60),
        m(500, "3") + m(300, "0.3") + m(200, "3.75") + m(100, "15"),
    ),
    Call(
        "OpenTelemetry, the name of cache writes before",
        otel(
            "anthropic",
            "claude-sonnet-4-5",
            input_tokens=1000,
            output_tokens=100,
            cache_creation__input_tokens=200,
        ),
        Counts(800, 0, 200, 0, 100, 0),
        m(800, "3") + m(200, "3.75") + m(100, "15"),
    ),
    Call(
        "OpenTelemetry, the names of the beginning",
        {
            "gen_ai.system": "az.ai.openai",
            "gen_ai.request.model": "my-deployment",
            "gen_ai.response.model": "gpt-4o-2024-08-06",
            "gen_ai.usage.prompt_tokens": 1000,
            "gen_ai.usage.completion_tokens": 200,
        },
        Counts(1000, 0, 0, 0, 200, 0),
        D("0.0045"),
    ),
    Call(
        "OpenInference",
        {
            "llm.provider": "openai",
            "llm.model_name": "o3-mini",
            "llm.token_count.prompt": 2000,
            "llm.token_count.completion": 900,
            "llm.token_count.total": 2900,
            "llm.token_count.prompt_details.cache_read": 1500,
            "llm.token_count.completion_details.reasoning": 700,
        },
        Counts(500, 1500, 0, 0, 200, 700),
        m(500, "1.1") + m(1500, "0.55") + m(900, "4.4"),
    ),
]

PRICES = [
    Call(
        "o3 on its last day at the first price",
        {"provider": "openai", "model": "o3", "input_tokens": 1000, "output_tokens": 100},
        Counts(1000, 0, 0, 0, 100, 0),
        m(1000, "10") + m(100, "40"),
        at=datetime(2025, 6, 9, 23, 59, 59, tzinfo=UTC),
    ),
    Call(
        "o3 from the day of its new price on",
        {"provider": "openai", "model": "o3", "input_tokens": 1000, "output_tokens": 100},
        Counts(1000, 0, 0, 0, 100, 0),
        m(1000, "2") + m(100, "8"),
        at=day("2025-06-10"),
    ),
    Call(
        "the flexible service costs half",
        {
            "provider": "openai",
            "model": "o3",
            "service_tier": "flex",
            "usage": {"prompt_tokens": 1000, "completion_tokens": 100},
        },
        Counts(1000, 0, 0, 0, 100, 0),
        m(1000, "1") + m(100, "4"),
        at=day("2026-11-01"),
    ),
    Call(
        "the usual service",
        {
            "provider": "openai",
            "model": "o3",
            "service_tier": "default",
            "usage": {"prompt_tokens": 1000, "completion_tokens": 100},
        },
        Counts(1000, 0, 0, 0, 100, 0),
        m(1000, "2") + m(100, "8"),
        at=day("2026-11-01"),
    ),
    Call(
        "Azure sells the models of others",
        {"provider": "azure.ai.openai", "model": "gpt-4o", "input_tokens": 4, "output_tokens": 1},
        Counts(4, 0, 0, 0, 1, 0),
        m(4, "2.5") + m(1, "10"),
    ),
    Call(
        "a fee for each call beside its tokens",
        {"provider": "perplexity", "model": "sonar", "input_tokens": 10, "output_tokens": 20},
        Counts(10, 0, 0, 0, 20, 0),
        m(30, "1") + D("0.012"),
    ),
    Call(
        "a class with a price of its own: reasoning",
        {
            "provider": "perplexity",
            "model": "sonar-deep-research",
            "input_tokens": 10,
            "output_tokens": 50,
            "reasoning_tokens": 30,
        },
        Counts(10, 0, 0, 0, 20, 30),
        m(10, "2") + m(20, "8") + m(30, "3"),
    ),
    Call(
        "a model that its name alone tells",
        {"model": "gpt-4o", "input_tokens": 1000, "output_tokens": 200},
        Counts(1000, 0, 0, 0, 200, 0),
        D("0.0045"),
    ),
    Call(
        "half a nano-dollar goes to the even one, here down from 14.5",
        FRACTION | {"input_tokens": 4, "cached_tokens": 4, "output_tokens": 0},
        Counts(0, 4),
        m(4, "0.003625"),
    ),
    Call(
        "and here up from 43.5",
        FRACTION | {"input_tokens": 12, "cached_tokens": 12, "output_tokens": 0},
        Counts(0, 12),
        m(12, "0.003625"),
    ),
    Call(
        "an unknown model",
        {"provider": "openai", "model": "gpt-99-turbo", "input_tokens": 10, "output_tokens": 1},
        Counts(10, 0, 0, 0, 1, 0),
        None,
        Unpriced.UNKNOWN_MODEL,
    ),
    Call(
        "an unknown model, zero tokens: unknown, not free",
        {"provider": "openai", "model": "gpt-99-turbo", "input_tokens": 0, "output_tokens": 0},
        Counts(),
        None,
        Unpriced.UNKNOWN_MODEL,
    ),
    Call(
        "an unknown model and no provider",
        {"model": "house-model", "input_tokens": 10, "output_tokens": 1},
        Counts(10, 0, 0, 0, 1, 0),
        None,
        Unpriced.UNKNOWN_MODEL,
    ),
    Call(
        "an unknown provider of a known model",
        {"provider": "acme-gateway", "model": "gpt-4o", "input_tokens": 10, "output_tokens": 1},
        Counts(10, 0, 0, 0, 1, 0),
        None,
        Unpriced.UNKNOWN_PROVIDER,
    ),
    Call(
        "no model",
        {"provider": "openai", "input_tokens": 10, "output_tokens": 1},
        Counts(10, 0, 0, 0, 1, 0),
        None,
        Unpriced.NO_MODEL,
    ),
    Call(
        "a model that is not sold by the token",
        {"provider": "openai", "model": "whisper-1", "input_tokens": 10, "output_tokens": 1},
        Counts(10, 0, 0, 0, 1, 0),
        None,
        Unpriced.NO_RATE,
    ),
    Call(
        "more than a call can cost",
        {"provider": "openai", "model": "o3", "input_tokens": 10**12, "output_tokens": 0},
        Counts(10**12),
        None,
        Unpriced.TOO_LARGE,
    ),
    *(
        Call(
            f"an own server: {name}",
            {**place, "input_tokens": 10, "output_tokens": 1},
            Counts(10, 0, 0, 0, 1, 0),
            None,
            Unpriced.LOCAL_SERVER,
        )
        for name, place in {
            "Ollama": {"provider": "ollama", "model": "deepseek-r1:8b"},
            "llama.cpp": {"provider": "llama.cpp", "model": "mistral-7b"},
            "vLLM": {"provider": "vLLM", "model": "mistral-7b"},
            "LM Studio": {"provider": "LM Studio", "model": "gpt-oss-20b"},
            "an address": {"provider": "http://localhost:1234/v1", "model": "gpt-oss-20b"},
            "a server's address": {"server.address": "127.0.0.1", "model": "gpt-4o"},
            "a prefix": {"model": "ollama/mistral-7b"},
            "a tag": {"model": "deepseek-r1:8b"},
        }.items()
    ),
]

# The wholes and the parts as they were sent; what is no count counts nothing.
_CANNOT_BE: list[tuple[str, dict[str, Any], Counts]] = [
    (
        "more cached than sent",
        {"input_tokens": 100, "cached_tokens": 150, "output_tokens": 10},
        Counts(-50, 150, 0, 0, 10),
    ),
    (
        "cache read and write together",
        {"input_tokens": 100, "cached_tokens": 60, "cache_write_tokens": 60},
        Counts(-20, 60, 60, 0, 0),
    ),
    (
        "more reasoning than output",
        {"input_tokens": 100, "output_tokens": 10, "reasoning_tokens": 11},
        Counts(100, 0, 0, 0, -1, 11),
    ),
    (
        "more written for 1 h than at all",
        {
            "usage": {
                "input_tokens": 1,
                "cache_creation_input_tokens": 5,
                "cache_creation": {"ephemeral_1h_input_tokens": 7},
            }
        },
        Counts(1, 0, -2, 7, 0),
    ),
    ("more input than the total", {"input_tokens": 100, "tokens_used": 50}, Counts(100)),
    ("negative", {"input_tokens": -5, "output_tokens": 10}, Counts(0, 0, 0, 0, 10, 0)),
    ("a fraction", {"input_tokens": 1.5, "output_tokens": 10}, Counts(0, 0, 0, 0, 10, 0)),
    ("a truth value", {"input_tokens": True, "output_tokens": 1}, Counts(0, 0, 0, 0, 1, 0)),
    ("a text", {"input_tokens": "100", "output_tokens": 1}, Counts(0, 0, 0, 0, 1, 0)),
    ("a list", {"input_tokens": 7, "output_tokens": [1, 2]}, Counts(7)),
    ("beyond 2^53", {"input_tokens": 2**53 + 1, "output_tokens": 0}, Counts()),
    ("beyond any model", {"input_tokens": 10**12 + 1, "output_tokens": 0}, Counts()),
    ("a total of minus one", {"tokens_used": -1}, Counts()),
]
IMPOSSIBLE = [
    Call(f"impossible: {name}", GPT | counts, used, None, Unpriced.IMPOSSIBLE_COUNTS)
    for name, counts, used in _CANNOT_BE
]

CALLS = [*OWN, *OPENAI, *ANTHROPIC, *OTHERS, *PRICES, *IMPOSSIBLE]
