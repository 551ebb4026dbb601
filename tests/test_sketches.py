"""Summaries that can be merged: durations to within 1 %, different texts exactly or to a few."""

import random
from collections import Counter
from collections.abc import Callable, Collection, Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from oracle import assert_percentiles

from logging_service.sketches import (
    EXACT_UNIQUES,
    MAX_DURATION_US,
    RELATIVE_ERROR,
    Bins,
    Unique,
    add_bins,
    bin_of,
    count,
    decode_bins,
    encode_bins,
    hash_of,
    pack,
    percentiles,
    smallest,
    unite,
    unpack,
)

durations = st.integers(0, MAX_DURATION_US)


def sketch(values: list[int]) -> Bins:
    return dict(Counter(map(bin_of, values)))


def merged(*parts: Bins) -> Bins:
    whole: Bins = {}
    for part in parts:
        add_bins(whole, part)
    return whole


SHAPES: dict[str, Callable[[random.Random], int]] = {
    "log-normal": lambda dice: round(dice.lognormvariate(12, 2)),
    "a long tail": lambda dice: round(1000 * dice.paretovariate(0.7)) % MAX_DURATION_US,
    "uniform": lambda dice: dice.randrange(10**7),
    "exponential": lambda dice: round(dice.expovariate(1e-6)),
    "two peaks": lambda dice: round(dice.gauss(dice.choice([2_000, 9_000_000]), 100)),
    "nearly all zero": lambda dice: 0 if dice.random() < 0.98 else dice.randrange(1, 10**9),
    "a few microseconds": lambda dice: dice.randrange(12),
    "of every size": lambda dice: round(10 ** dice.uniform(0, 15)),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("number", [1, 2, 99, 5_000])
def test_every_percentile_is_within_one_percent_of_the_nearest_rank(
    shape: Callable[[random.Random], int], number: int
) -> None:
    dice = random.Random(number)
    values = sorted(shape(dice) for _ in range(number))
    assert RELATIVE_ERROR == 0.01
    assert_percentiles(sketch(values), values)


@given(st.lists(durations, max_size=60))
@example([1, 1, 1, 2, 2, 3])
@example([MAX_DURATION_US, MAX_DURATION_US - 1, 0, 1])
def test_every_percentile_of_any_durations_is_within_one_percent(values: list[int]) -> None:
    assert_percentiles(sketch(values), sorted(values))


@pytest.mark.parametrize("exponent", range(16))
def test_a_constant_is_within_one_percent_at_every_percentile(exponent: int) -> None:
    for value in {10**exponent, max(1, 10**exponent - 1), min(MAX_DURATION_US, 3 * 10**exponent)}:
        assert_percentiles({bin_of(value): 7}, [value] * 7)


def test_zeros_are_zero_and_nothing_is_none() -> None:
    assert percentiles({bin_of(0): 3}, 1, 50, 100) == [0.0, 0.0, 0.0]
    assert percentiles({}, 50, 99) == [None, None]


@given(durations, durations)
def test_a_longer_duration_is_never_in_a_lower_bin(one: int, other: int) -> None:
    assert (bin_of(one) <= bin_of(other)) or one > other


@given(*[st.lists(durations, max_size=30)] * 3)
def test_bins_merge_in_any_order_and_grouping(a: list[int], b: list[int], c: list[int]) -> None:
    first, second, third = sketch(a), sketch(b), sketch(c)
    whole = sketch(a + b + c)
    assert merged(merged(first, second), third) == whole
    assert merged(first, merged(third, second)) == whole
    assert merged(third, first, second) == whole


@given(st.dictionaries(st.integers(-1, 2000), st.integers(1, 10**15)))
def test_bins_come_back_from_their_json(bins: Bins) -> None:
    assert decode_bins(encode_bins(bins)) == bins


def test_many_more_counts_than_can_be_stored_are_still_ranked_right() -> None:
    bins = {bin_of(1_000): 99 * 10**30, bin_of(10**9): 10**30}
    fast, slow = percentiles(bins, 99, 100)
    assert fast == pytest.approx(1, rel=0.01)
    assert slow == pytest.approx(10**6, rel=0.01)


def hashes_of(number: int, seed: object = 0) -> list[int]:
    return [hash_of(f"session {seed} {each}".encode()) for each in range(number)]


def united(*packed: bytes) -> Sequence[int]:
    return unite(map(unpack, packed))


def least(*several: Collection[int]) -> list[int]:
    """The smallest of all of them, in the plainest way."""
    return sorted(set().union(*several))[: EXACT_UNIQUES + 1]


def test_a_hash_is_the_same_always_and_fits_a_signed_column() -> None:
    # As it was computed for rows that lie in databases: it may never change.
    assert hash_of(b"") == 8_238_016_292_129_134_938
    assert hash_of(b"session") == 1_332_027_347_901_371_098
    assert all(0 <= each < 2**63 for each in hashes_of(1_000))


@pytest.mark.parametrize("number", [0, 1, 2, 1_000, EXACT_UNIQUES - 1, EXACT_UNIQUES])
def test_up_to_4096_different_texts_are_counted_exactly(number: int) -> None:
    assert EXACT_UNIQUES == 4096
    hashes = hashes_of(number)
    kept = united(pack(set(hashes)), pack(set(hashes[: number // 2])), pack(set(hashes[::3])))
    assert count(kept) == Unique(number, is_estimate=False)


@pytest.mark.parametrize("seed", range(6))
def test_more_than_4096_are_estimated_within_five_percent(seed: int) -> None:
    for number in (EXACT_UNIQUES + 1, 5_000, 20_000, 100_000):
        # As days come: each knows some of the texts of the day before.
        hashes = hashes_of(number, seed)
        step = max(1, number // 7)
        days = [pack(set(hashes[at : at + 2 * step])) for at in range(0, number, step)]
        found = count(united(*days))
        assert found.is_estimate
        assert abs(found.number - number) <= number * 0.05


def test_estimates_are_not_biased() -> None:
    ratios = [count(smallest(hashes_of(10_000, seed))).number / 10_000 for seed in range(40)]
    assert sum(ratios) / len(ratios) == pytest.approx(1, abs=0.01)


def test_sets_merge_in_any_order_and_grouping_with_one_result() -> None:
    dice = random.Random(4)
    hashes = hashes_of(30_000)
    parts = [set(dice.sample(hashes, 6_000)) for _ in range(12)]
    packed, whole = [pack(part) for part in parts], least(*parts)
    for _ in range(5):
        dice.shuffle(packed)
        cut = dice.randrange(1, 11)
        one, other = pack(united(*packed[:cut])), pack(united(*packed[cut:]))
        assert list(united(one, pack(united(other, packed[0])))) == whole
        assert list(united(*packed)) == whole


many = EXACT_UNIQUES + 1
UNLIKE: dict[str, list[Collection[int]]] = {
    "the same again and again": [range(many)] * 9,
    "nearly the same": [range(each, many + each) for each in range(9)],
    "each beyond the other": [range(each * many, (each + 1) * many) for each in range(4)],
    "one that has all that is small": [range(10 * many), [2**63 - 1], range(2**62, 2**62 + many)],
    "many with one each": [[each * 2**40] for each in range(3 * many)],
    "full ones, and one with less": [hashes_of(many), hashes_of(3 * many, 1), hashes_of(70, 2)],
    "empty ones": [[], hashes_of(3), []],
}


@pytest.mark.parametrize("several", UNLIKE.values(), ids=UNLIKE)
def test_the_smallest_are_kept_however_hashes_are_spread(several: list[Collection[int]]) -> None:
    packed = [pack(set(each)) for each in several]
    assert list(united(*packed)) == least(*several)
    assert smallest(set().union(*several)) == least(*several)
    assert all(list(unpack(one)) == least(each) for one, each in zip(packed, several, strict=True))


def test_a_packed_set_is_bounded() -> None:
    assert len(pack(hashes_of(50_000))) == 8 * (EXACT_UNIQUES + 1)
    assert pack([]) == b""
    assert list(unite([])) == []
