"""What calls cost: by hand, by the price data themselves, and by the operator's own prices."""

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path

import genai_prices
import pytest
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelPrice, TieredPrices
from hypothesis import given, settings
from hypothesis import strategies as st
from truth_table import CALLS, NOON, SONNET, Call, D

from logging_service.errors import SettingsError
from logging_service.price_file import MAX_BYTES, read_price_file
from logging_service.pricing import LIST_SOURCE, Prices, Unpriced
from logging_service.settings import load_settings
from logging_service.usage import Counts, Usage, usage_of

PRICES = Prices()
ROOT = Path(__file__).resolve().parent.parent


def used(
    provider: str | None, model: str | None, *counts: int, service: str | None = None
) -> Usage:
    return Usage(
        provider=provider, model=model, counts=Counts(*counts), is_told=True, service=service
    )


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_a_call_costs_what_the_truth_table_says(call: Call) -> None:
    cost = PRICES.cost_of(usage_of(json.dumps(call.payload).encode()), call.at)
    if call.dollars is None:
        assert (cost.nanos, cost.source, cost.unpriced) == (None, None, call.unpriced)
    else:
        nanos = (call.dollars * 10**9).quantize(D(1), ROUND_HALF_EVEN)
        assert cost == (int(nanos), LIST_SOURCE, None)


def test_the_truth_table_has_forty_shapes_and_every_reason() -> None:
    names = {call.name for call in CALLS}
    assert len(names) == len(CALLS)
    assert len(names) >= 40
    assert {call.unpriced for call in CALLS} == {None, *Unpriced}


def test_the_source_names_the_version_of_the_price_data() -> None:
    assert PRICES.cost_of(used("openai", "gpt-4o"), NOON).source == (
        f"genai-prices {genai_prices.__version__}"
    )


def test_the_time_of_a_call_may_be_in_any_zone() -> None:
    call = used("openai", "o3", 1000)
    before = datetime(2025, 6, 10, 4, 0, tzinfo=timezone(timedelta(hours=5)))
    assert PRICES.cost_of(call, before).nanos == 10_000_000
    assert PRICES.cost_of(call, before + timedelta(hours=1)).nanos == 2_000_000


def test_each_hour_of_the_day_has_its_own_price() -> None:
    call = used("deepseek", "deepseek-chat", 1_000_000)
    start = datetime(2026, 3, 2, tzinfo=UTC)
    halves = [PRICES.cost_of(call, start + timedelta(minutes=30 * half)) for half in range(48)]
    assert [cost.nanos for cost in halves] == [
        270_000_000 if 1 <= half < 33 else 135_000_000 for half in range(48)
    ]


def test_every_list_price_is_whole_in_our_unit() -> None:
    for provider in get_snapshot().providers:
        for model in provider.models:
            prices = [model.prices] if isinstance(model.prices, ModelPrice) else model.prices
            for each in prices:
                listed = each if isinstance(each, ModelPrice) else each.prices
                for value in vars(listed).values():
                    tiers = value.tiers if isinstance(value, TieredPrices) else []
                    base = value.base if isinstance(value, TieredPrices) else value
                    for price in (base, *(tier.price for tier in tiers)):
                        assert price is None or (price * 10**18) % 1 == 0


MODELS = [
    (provider.id, model.id)
    for provider in get_snapshot().providers
    for model in provider.models
    if provider.find_model(model.id) is model
]
tokens = st.sampled_from([0, 1, 999, 99_999, 150_000, 200_000, 300_001])
moments = st.integers(0, 3 * 365 * 24 * 60).map(
    lambda minutes: datetime(2024, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)
)
services = st.sampled_from([None, "flex", "priority", "fast", "batch"])
CONTEXTS = {
    "flex": {"service_tier": "flex"},
    "priority": {"service_tier": "priority"},
    "fast": {"service_tier": "fast", "speed": "fast"},
    "batch": {"processing": "batch"},
}


@settings(max_examples=400)
@given(
    st.sampled_from(MODELS),
    st.tuples(tokens, tokens, tokens, tokens, tokens),
    moments,
    services,
)
def test_a_cost_is_what_the_price_data_calculate(
    name: tuple[str, str],
    sent: tuple[int, int, int, int, int],
    at: datetime,
    service: str | None,
) -> None:
    uncached, read, write, answer, reasoning = sent
    cost = PRICES.cost_of(
        used(*name, uncached, read, write, 0, answer, reasoning, service=service), at
    )
    if cost.nanos is None or not any(sent):
        assert cost.unpriced is Unpriced.NO_RATE or cost.nanos == 0
        return
    theirs = genai_prices.calc_price(
        genai_prices.Usage(
            input_tokens=uncached + read + write,
            cache_read_tokens=read,
            cache_write_tokens=write,
            output_tokens=answer + reasoning,
            output_reasoning_tokens=reasoning,
        ),
        name[1],
        provider_id=name[0],
        genai_request_timestamp=at,
        price_context=CONTEXTS.get(service or ""),
    )
    assert abs(theirs.total_price * 10**9 - cost.nanos) <= Decimal("0.5")


@given(st.lists(st.tuples(tokens, tokens, tokens), min_size=1, max_size=30))
def test_the_sum_of_the_costs_is_the_sum_of_what_was_rounded_once(
    sent: list[tuple[int, int, int]],
) -> None:
    costs = [
        PRICES.cost_of(used("openai", "o3-mini", new, read, 0, 0, out), NOON)
        for new, read, out in sent
    ]
    by_hand = [
        (new * D("1.1") + read * D("0.55") + out * D("4.4")).scaleb(3).quantize(D(1))
        for new, read, out in sent
    ]
    assert sum(cost.nanos or 0 for cost in costs) == sum(by_hand)


def test_many_names_that_nobody_knows_do_not_stay_in_memory() -> None:
    before = len(get_snapshot()._lookup_cache) + len(get_snapshot()._provider_misses)
    for number in range(50):
        assert PRICES.cost_of(used("openai", f"m{number}", 1), NOON).nanos is None
        assert PRICES.cost_of(used(f"p{number}", "gpt-4o", 1), NOON).nanos is None
    assert len(get_snapshot()._lookup_cache) + len(get_snapshot()._provider_misses) == before


FILE = """
[[price]]
provider = "OpenAI"
model = "gpt-4o*"
valid_from = 2026-01-01
input = 2
cache_read = 0.5
output = 8.5

[[price]]
provider = "openai"
model = "gpt-4o"
valid_from = 2026-02-01
input = 1.5
output = 6
reasoning = 7

[[price]]
provider = "*"
model = "house-?"
input = 0.000000000001
output = 0

[[price]]
provider = "ollama"
model = "*"
input = 0
output = 0

[[price]]
provider = "anthropic"
model = "claude-sonnet-4-5*"
valid_from = 2026-03-02T12:00:00+00:00
input = 1
cache_write_1h = 4
output = 2
"""


@pytest.fixture
def own(tmp_path: Path) -> Prices:
    path = tmp_path / "prices.toml"
    path.write_text(FILE, encoding="utf-8")
    return Prices(read_price_file(path))


def test_an_own_price_wins_from_its_first_day_on(own: Prices) -> None:
    call = used("openai", "gpt-4o-2024-08-06", 1000, 100, 0, 0, 10)
    assert own.cost_of(call, datetime(2026, 1, 1, tzinfo=UTC)).nanos == 2_135_000
    listed = own.cost_of(call, datetime(2025, 12, 31, 23, 59, tzinfo=UTC))
    assert listed == (2_725_000, LIST_SOURCE, None)


def test_a_full_name_wins_over_a_pattern_once_it_is_valid(own: Prices) -> None:
    call = used("openai", "GPT-4o", 1000, 100, 0, 0, 10, 10)
    assert own.cost_of(call, datetime(2026, 1, 31, tzinfo=UTC)).nanos == 2_220_000
    assert own.cost_of(call, datetime(2026, 2, 1, tzinfo=UTC)).nanos == 1_780_000


def test_an_own_price_says_which_file_it_is_from(own: Prices, tmp_path: Path) -> None:
    call = used("openai", "gpt-4o", 1)
    source = own.cost_of(call, NOON).source
    assert source is not None
    assert source.startswith("prices file ")
    path = tmp_path / "other.toml"
    path.write_text(FILE + "\n", encoding="utf-8")
    assert Prices(read_price_file(path)).cost_of(call, NOON).source != source


def test_an_own_price_may_be_for_any_provider(own: Prices) -> None:
    for provider in ("acme", "vllm", None):
        assert own.cost_of(used(provider, "house-7", 10**9), NOON).nanos == 1
    assert own.cost_of(used("acme", "house-77", 1), NOON).unpriced is Unpriced.UNKNOWN_PROVIDER


def test_an_own_server_can_be_given_a_price(own: Prices) -> None:
    assert own.cost_of(used("ollama", "llama3:8b", 10, 0, 0, 0, 5), NOON).nanos == 0


def test_a_part_without_an_own_price_costs_as_its_whole(own: Prices) -> None:
    call = used("anthropic", "claude-sonnet-4-5", 1, 10, 100, 1000, 0, 10_000)
    assert own.cost_of(call, NOON).nanos == 1_000 * (1 + 10 + 100 + 4 * 1000 + 2 * 10_000)
    listed = own.cost_of(call, NOON - timedelta(seconds=1))
    assert listed.source == LIST_SOURCE
    assert usage_of(SONNET | {"input_tokens": 1}).model == "claude-sonnet-4-5-20250929"


GOOD = '[[price]]\nprovider = "a"\nmodel = "b"\ninput = 1\noutput = 1\n'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("price = 1", "[[price]] tables"),
        ("[[prices]]\n", "[[price]] tables"),
        (GOOD + "[other]\n", "[[price]] tables"),
        ("[[price]\n", "not TOML"),
        ("price = [1]", "number 1: has to be a table"),
        (GOOD.replace("provider", "provder"), "number 1: provider is missing"),
        (GOOD + "inptu = 1\n", "number 1: inptu is not known"),
        (GOOD.replace("input = 1", 'input = "1"'), "number 1: input has to be dollars"),
        (GOOD.replace("input = 1", "input = -1"), "number 1: input has to be dollars"),
        (GOOD.replace("input = 1", "input = true"), "number 1: input has to be dollars"),
        (GOOD.replace("input = 1", "input = nan"), "number 1: input has to be dollars"),
        (GOOD.replace("input = 1", "input = 1000001"), "number 1: input has to be dollars"),
        (GOOD.replace("input = 1", "input = 1e-13"), "number 1: input has to be dollars"),
        (GOOD.replace("input = 1", "input = 1e99999999999999999999"), "not TOML"),
        (GOOD.replace('"b"', '""'), "number 1: model has to be a text"),
        (GOOD.replace('"b"', "7"), "number 1: model has to be a text"),
        (GOOD + 'valid_from = "2026-01-01"\n', "number 1: valid_from has to be a date"),
        (GOOD + "valid_from = 2026-01-01T00:00:00\n", "number 1: valid_from has to be a date"),
        (GOOD + GOOD.replace('"a"', '"A"'), "number 2: there is one for the same already"),
        (GOOD * 2001, "at most 2000"),
        ("#" * (MAX_BYTES + 1), "at most 1048576 bytes"),
    ],
)
def test_a_file_that_cannot_be_used_says_why_in_one_line(
    content: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(SettingsError) as error:
        read_price_file(path)
    line = str(error.value)
    assert line.startswith(f"PRICES_FILE='{path}' cannot be used: ")
    assert said in line
    assert "\n" not in line


def test_a_file_that_is_not_there_or_not_text_says_so(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        read_price_file(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="not TOML"):
        read_price_file(tmp_path / "bytes.toml")


def test_a_setting_that_names_no_file_ends_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PRICES_FILE", str(tmp_path / "none.toml"))
    with pytest.raises(SettingsError, match=r"PRICES_FILE=.*none\.toml.*there is no such file"):
        load_settings()
    monkeypatch.setenv("PRICES_FILE", "pyproject.toml")
    assert load_settings().prices_file == ROOT / "pyproject.toml"


def test_a_pattern_knows_no_characters_but_two(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(GOOD.replace('"b"', '"m[ab]?"'), encoding="utf-8")
    prices = Prices(read_price_file(path))
    assert prices.cost_of(used("a", "M[ab]1", 1), NOON).nanos == 1000
    assert prices.cost_of(used("a", "ma1", 1), NOON).nanos is None


def test_the_example_in_the_documents_is_a_good_file(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "analytics.md").read_text(encoding="utf-8")
    example = page.partition("```toml\n")[2].partition("```")[0]
    path = tmp_path / "prices.toml"
    path.write_text(example, encoding="utf-8")
    assert len(read_price_file(path).prices) >= 2


def test_every_reason_is_documented() -> None:
    page = (ROOT / "docs" / "analytics.md").read_text(encoding="utf-8")
    assert [reason for reason in Unpriced if f"| `{reason}` |" not in page] == []
