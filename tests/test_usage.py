"""Counts that do not overlap, from every dialect; whatever is sent."""

import json
from decimal import Decimal
from typing import Any

import pytest
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given
from hypothesis import strategies as st
from truth_table import CALLS, Call

from logging_service.usage import MAX_COST_NANOS, MAX_TOKENS, Counts, provider_name, usage_of

by_name = pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)


@by_name
def test_a_call_used_what_the_truth_table_says(call: Call) -> None:
    usage = usage_of(json.dumps(call.payload).encode())
    assert (usage.counts, usage.unsplit) == (call.counts, call.unsplit)
    assert bool(usage.fault) == call.name.startswith("impossible")


@by_name
def test_a_payload_and_its_json_say_the_same(call: Call) -> None:
    assert usage_of(call.payload) == usage_of(json.dumps(call.payload).encode())


@by_name
def test_inclusive_counts_are_sums_of_the_others(call: Call) -> None:
    usage = usage_of(call.payload)
    assert usage.input_tokens == sum(call.counts[:4])
    assert usage.output_tokens == sum(call.counts[4:])
    assert usage.total_tokens == sum(call.counts) + call.unsplit


def test_impossible_parts_leave_the_wholes_as_they_were_sent() -> None:
    usage = usage_of(
        {
            "input_tokens": 100,
            "cached_tokens": 150,
            "output_tokens": 10,
            "reasoning_tokens": 20,
        }
    )
    assert (usage.input_tokens, usage.counts.cache_read) == (100, 150)
    assert (usage.output_tokens, usage.counts.reasoning) == (10, 20)
    assert (usage.counts.uncached_input, usage.counts.output) == (-50, -10)
    assert usage.fault == "cache 150 is more than input 100; reasoning 20 is more than output 10"


@pytest.mark.parametrize("more", [{}, {"cached_tokens": None}, {"cached_tokens": 1}])
@pytest.mark.parametrize("total", [9999, MAX_TOKENS + 1, -1, "7", 2.5])
def test_a_total_beside_input_and_output_is_no_fault_whatever_it_is(
    more: dict[str, Any], total: object
) -> None:
    usage = usage_of({"input_tokens": 5, "output_tokens": 0, "tokens_used": total, **more})
    assert (usage.fault, usage.input_tokens, usage.total_tokens) == (None, 5, 5)


def test_a_fault_names_the_count_and_shows_the_start_of_what_was_sent() -> None:
    assert usage_of({"input_tokens": -5}).fault == "input_tokens: -5 is no count"
    assert usage_of({"usage": {"prompt_tokens": "9" * 5000}}).fault is not None
    assert (
        len(usage_of({"input_tokens": "9" * 5000, "output_tokens": "8" * 5000}).fault or "") < 301
    )
    nested = {"prompt_tokens": 1, "prompt_tokens_details": {"cached_tokens": 2.5}}
    assert usage_of({"usage": nested}).fault == "cached_tokens: 2.5 is no count"


@pytest.mark.parametrize(
    ("sent", "known"),
    [
        ("openai", "openai"),
        ("OpenAI", "openai"),
        ("openai.chat", "openai"),
        ("anthropic.messages", "anthropic"),
        ("aws.bedrock", "aws"),
        ("amazon-bedrock", "aws"),
        ("azure.ai.openai", "azure"),
        ("azure.ai.inference", "azure"),
        ("az.ai.openai", "azure"),
        ("gcp.gemini", "google"),
        ("gcp.vertex_ai", "google"),
        ("gcp.gen_ai", "google"),
        ("vertex_ai", "google"),
        ("mistral_ai", "mistral"),
        ("moonshot_ai", "moonshotai"),
        ("x_ai", "x-ai"),
        ("xai", "x-ai"),
        ("cohere", "cohere"),
        ("deepseek", "deepseek"),
        ("groq", "groq"),
        ("perplexity", "perplexity"),
        ("together_ai", "together"),
        ("fireworks_ai", "fireworks"),
        ("openrouter", "openrouter"),
    ],
)
def test_a_provider_gets_the_name_that_the_price_data_know(sent: str, known: str) -> None:
    assert provider_name(sent) == known
    assert known in {provider.id for provider in get_snapshot().providers}


def test_an_unknown_provider_keeps_its_name_in_lower_case() -> None:
    assert provider_name("ibm.watsonx.ai") == "ibm.watsonx.ai"
    assert provider_name("Acme") == "acme"


@pytest.mark.parametrize(
    "address",
    ["localhost", "http://localhost:11434/v1", "127.0.0.1:8080", "http://[::1]:80", "0.0.0.0"],
)
def test_an_address_of_the_own_host_is_localhost(address: str) -> None:
    assert provider_name(address) == "localhost"
    assert usage_of({"base_url": address}).provider == "localhost"


def test_another_address_is_no_provider() -> None:
    assert usage_of({"base_url": "https://localhost.example.com/v1"}).provider is None


def test_the_first_name_of_provider_and_model_that_is_there_counts() -> None:
    sent = {
        "provider": " ",
        "gen_ai.provider.name": "anthropic",
        "gen_ai.system": "openai",
        "model": 7,
        "gen_ai.request.model": "asked",
        "gen_ai.response.model": "answered",
    }
    usage = usage_of(sent)
    assert (usage.provider, usage.model) == ("anthropic", "answered")
    assert usage_of(sent | {"model": "told", "provider": "x_ai"}).model == "told"


def test_long_names_are_cut() -> None:
    usage = usage_of({"model": "m" * 5000, "provider": "p" * 5000})
    assert (usage.model, usage.provider) == ("m" * 200, "p" * 200)


@pytest.mark.parametrize(
    ("cost", "nanos"),
    [
        ("0.1", 100_000_000),
        ("0", 0),
        ("-0.0", 0),
        ("3", 3_000_000_000),
        ("1e-9", 1),
        ("0.0000000005", 0),
        ("0.0000000015", 2),
        ("0.0000000025", 2),
        ("0.00000000250000000000000000000000000000000000001", 3),
        ("0.123456789", 123_456_789),
        ("1e-400", 0),
        ("1000000", MAX_COST_NANOS),
    ],
)
def test_a_reported_cost_is_read_exactly_and_rounded_half_even(cost: str, nanos: int) -> None:
    usage = usage_of(b'{"cost": %s}' % cost.encode())
    assert (usage.reported_nanos, usage.reported_fault) == (nanos, None)


@pytest.mark.parametrize(
    "cost", ["-0.1", "1000000.000000001", "1e400", "true", '"0.1"', "[]", "1e99999999999999999999"]
)
def test_a_cost_that_cannot_be_is_refused_and_flagged(cost: str) -> None:
    usage = usage_of(b'{"cost": %s, "input_tokens": 7}' % cost.encode())
    assert usage.reported_nanos is None
    assert (usage.reported_fault or "").startswith("cost: ")
    assert (usage.counts, usage.fault) == (Counts(7), None)


@pytest.mark.parametrize("cost", [float("nan"), float("inf"), Decimal("NaN"), Decimal("sNaN")])
def test_a_cost_that_is_no_number_is_refused(cost: object) -> None:
    assert usage_of({"cost": cost}).reported_fault


def test_a_float_means_the_number_that_stood_in_the_json() -> None:
    assert usage_of({"cost": 0.0006695}).reported_nanos == 669_500


@pytest.mark.parametrize(
    "payload",
    [
        {"gen_ai.usage.cost": 0.5},
        {"llm.cost.total": 0.5},
        {"usage": {"prompt_tokens": 1, "cost": 0.5}},
        {"cost": 0.5, "gen_ai.usage.cost": 0.7},
    ],
)
def test_a_cost_is_found_under_its_other_names(payload: dict[str, Any]) -> None:
    assert usage_of(payload).reported_nanos == 500_000_000


@pytest.mark.parametrize(
    ("payload", "service"),
    [
        ({"service_tier": "flex"}, "flex"),
        ({"usage": {"input_tokens": 1, "service_tier": "batch"}}, "batch"),
        ({"usage": {"input_tokens": 1, "speed": "fast"}}, "fast"),
        ({"processing": "batch"}, "batch"),
        ({"service_tier": "default"}, None),
        ({"speed": 12}, None),
    ],
)
def test_the_terms_of_service_are_told(payload: dict[str, Any], service: str | None) -> None:
    assert usage_of(payload).service == service


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[1]",
        b"null",
        b'{"input_tokens": 1',
        b'{"a": "\xff"}',
        b'{"a":' * 100_000,
        b'{"input_tokens": %s}' % (b"9" * 5000),
    ],
)
def test_what_is_no_payload_has_used_nothing_and_a_fault(payload: bytes) -> None:
    usage = usage_of(payload)
    assert (usage.total_tokens, bool(usage.fault)) == (0, True)


NAMES = sorted({key for call in CALLS for key in call.payload})
INSIDE = sorted(
    {
        key
        for call in CALLS
        for holder in ("usage", "usageMetadata", "usage_metadata")
        if isinstance(call.payload.get(holder), dict)
        for key in call.payload[holder]
    }
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(0, 100)
    | st.floats()
    | st.decimals()
    | st.text(max_size=5)
)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["tokenCount", "ttl", "cached_tokens", "modality"]), inner, max_size=3
        )
    ),
    max_leaves=5,
)
usages = st.dictionaries(st.sampled_from(INSIDE), anything, max_size=6)
payloads = st.dictionaries(
    st.sampled_from(NAMES) | st.text(max_size=5), anything | usages, max_size=8
)


@pytest.mark.parametrize("modality", [[], {}, 1.5, True, None])
def test_a_modality_may_be_anything(modality: object) -> None:
    details = [{"modality": modality, "tokenCount": 1}]
    usage = usage_of({"usageMetadata": {"promptTokenCount": 5, "promptTokensDetails": details}})
    assert (usage.input_tokens, usage.has_media) == (5, modality is not None)


@given(payloads)
def test_no_payload_makes_it_raise(payload: dict[str, Any]) -> None:
    usage = usage_of(payload)
    assert usage.total_tokens >= 0
    assert usage.unsplit >= 0
    assert usage.fault or min(usage.counts) >= 0


@given(st.binary(max_size=40))
def test_no_bytes_make_it_raise(payload: bytes) -> None:
    assert usage_of(payload).total_tokens >= 0


counts = st.integers(0, MAX_TOKENS)


@given(counts, counts, counts, counts, counts)
def test_counts_add_up_to_what_was_sent(
    input_tokens: int, cached: int, written: int, output: int, reasoning: int
) -> None:
    usage = usage_of(
        {
            "input_tokens": input_tokens,
            "cached_tokens": cached,
            "cache_write_tokens": written,
            "output_tokens": output,
            "reasoning_tokens": reasoning,
        }
    )
    assert usage.input_tokens == input_tokens
    assert usage.output_tokens == output
    assert usage.total_tokens == input_tokens + output == sum(usage.counts)
    assert bool(usage.fault) == (cached + written > input_tokens or reasoning > output)


@given(counts, counts, counts, counts)
def test_every_dialect_of_one_call_says_the_same(
    uncached: int, cached: int, answer: int, reasoning: int
) -> None:
    inside, out = uncached + cached, answer + reasoning
    if max(inside, out) > MAX_TOKENS:
        uncached, cached, answer, reasoning = 4, 3, 2, 1
        inside, out = 7, 3
    dialects: list[dict[str, Any]] = [
        {
            "input_tokens": inside,
            "cached_tokens": cached,
            "output_tokens": out,
            "reasoning_tokens": reasoning,
        },
        {
            "usage": {
                "prompt_tokens": inside,
                "completion_tokens": out,
                "prompt_tokens_details": {"cached_tokens": cached},
                "completion_tokens_details": {"reasoning_tokens": reasoning},
            }
        },
        {
            "usage": {
                "input_tokens": uncached,
                "cache_read_input_tokens": cached,
                "output_tokens": out,
                "output_tokens_details": {"thinking_tokens": reasoning},
            }
        },
        {
            "usageMetadata": {
                "promptTokenCount": inside,
                "cachedContentTokenCount": cached,
                "candidatesTokenCount": answer,
                "thoughtsTokenCount": reasoning,
            }
        },
        {
            "gen_ai.usage.input_tokens": inside,
            "gen_ai.usage.cache_read.input_tokens": cached,
            "gen_ai.usage.output_tokens": out,
            "gen_ai.usage.reasoning.output_tokens": reasoning,
        },
    ]
    wanted = Counts(uncached, cached, 0, 0, answer, reasoning)
    assert [usage_of(dialect).counts for dialect in dialects] == [wanted] * len(dialects)
