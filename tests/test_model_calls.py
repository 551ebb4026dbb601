"""A model call that tells the usual names is counted on a short way, to the same result."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from events_made import unchecked
from hypothesis import given
from hypothesis import strategies as st
from oracle import Rate, prices_of

from logging_service import usage
from logging_service.entries import Entries
from logging_service.pricing import Prices
from logging_service.usage import plain_call

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
# Another price holds for o3 from here on.
CHEAPER = datetime(2025, 6, 10, tzinfo=UTC)
PRICES = Prices()
PLAIN = {"model": "gpt-4o", "provider": "openai", "input_tokens": 1_000, "output_tokens": 100}

names = st.sampled_from(
    ["gpt-4o", "o3", "gemini-2.5-pro", "deepseek-chat", "GPT-4o", " gpt-4o\0", "llama3:8b"]
) | st.sampled_from(["", "\0", "m" * 300, None, 7, True, ["gpt-4o"]])
sellers = st.sampled_from(["openai", "OpenAI", "google", "deepseek", "azure.ai.openai", "ollama"])
counts = st.sampled_from([0, 1, 200_000, 200_001, 10**12, 10**12 + 1, -1, True, 2.5, "7", None])
costs = st.sampled_from([0, 1, 0.0006695, 0.0000000005, 10**6, 10**7, -1, "1", True, None])
calls = st.fixed_dictionaries(
    {"model": names, "input_tokens": counts | st.integers(1, 10**6), "output_tokens": counts},
    optional={
        "provider": sellers | names,
        "tokens_used": counts,
        "cost": costs | st.floats(0, 100),
        "user_id": st.sampled_from(["ada", None]),
        "duration_ms": st.sampled_from([12, 0.5, None]),
        "error": st.just("no"),
    },
)
moments = st.sampled_from([NOON, CHEAPER, CHEAPER - timedelta(microseconds=1)]) | st.integers(
    0, 800 * 86_400
).map(lambda seconds: NOON - timedelta(seconds=seconds))


def said(*calls: tuple[dict[str, Any], datetime], prices: Prices = PRICES) -> tuple[Any, ...]:
    entries = Entries(prices)
    entries.add(
        [
            unchecked(json.dumps(payload).encode(), "llm_query_sent", timestamp=at)
            for payload, at in calls
        ]
    )
    sums = [
        {key: one.fields(totals.roll_up) for key, one in totals.by_key.items()}
        for totals in (entries.users, entries.calls.llm)
    ]
    # Without the ids, behind the number of columns and a length.
    rows = sorted(row[22:] for row in entries.calls.rows)
    queries = {
        model: (one.ok, one.failed, one.nanos) for model, one in entries.calls.queries.items()
    }
    return rows, sums, queries


@given(st.lists(st.tuples(calls, moments), min_size=1, max_size=6))
def test_the_short_way_says_what_the_long_one_says(
    several: list[tuple[dict[str, Any], datetime]],
) -> None:
    # A name that somebody reads, with nothing to tell.
    longer = [({**payload, "speed": "usual"}, at) for payload, at in several]
    assert said(*several) == said(*longer)


def test_each_call_has_the_price_of_its_time() -> None:
    o3 = PLAIN | {"model": "o3", "input_tokens": 1_000_000, "output_tokens": 0}
    before = CHEAPER - timedelta(microseconds=1)
    _, _, queries = said((o3, before), (o3, CHEAPER), (o3, before))
    assert queries == {"o3": (3, 0, (10 + 2 + 10) * 10**9)}


def test_prices_below_a_nano_dollar_are_rounded_once_a_call(tmp_path: Path) -> None:
    prices = prices_of({"zz-fine": Rate(Decimal("0.0375"), Decimal("0.15"))}, tmp_path)
    fine = {"model": "zz-fine", "input_tokens": 1, "output_tokens": 0}
    _, _, queries = said(*[(fine | {"input_tokens": 20}, NOON)] * 3, prices=prices)
    assert queries == {"zz-fine": (3, 0, 3 * 750)}
    _, _, queries = said(*[(fine, NOON)] * 3, prices=prices)
    assert queries == {"zz-fine": (3, 0, 3 * 38)}


def test_what_tells_more_than_input_and_output_is_not_plain() -> None:
    assert plain_call(PLAIN) == ("openai", "gpt-4o", 1_000, 100)
    assert plain_call(PLAIN | {"text": "…", "duration_ms": 1, "user_id": "ada"}) is not None
    for name in ("cached_tokens", "reasoning_tokens", "usage", "service_tier", "gen_ai.system"):
        assert plain_call(PLAIN | {name: None}) is None
    for name in ("model", "input_tokens", "output_tokens"):
        assert plain_call({key: value for key, value in PLAIN.items() if key != name}) is None


def test_shapes_of_payloads_are_kept_in_bounds() -> None:
    for number in range(3 * usage.MOST_SHAPES):
        assert plain_call(PLAIN | {f"name{number}": 1}) is not None
    assert 0 < len(usage.shapes) <= usage.MOST_SHAPES
    long, many = {"n" * 1_000: 1}, {f"n{number}": 1 for number in range(1_000)}
    for wide in (long, many):
        assert plain_call(PLAIN | wide) is not None
        assert tuple(PLAIN | wide) not in usage.shapes
