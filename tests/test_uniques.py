"""Sets of hashes counted together, against what uniting them says."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logging_service.sketches import EXACT_UNIQUES, Unique, count, smallest, unite
from logging_service.uniques import count_together


def hashes_of(number: int, seed: int = 0) -> list[int]:
    choose = random.Random(seed)
    return [choose.randrange(2**63) for _ in range(number)]


def runs_of(sizes: Sequence[int], pool: Sequence[int], seed: int = 1) -> list[list[int]]:
    choose = random.Random(seed)
    return [smallest(set(choose.sample(pool, min(size, len(pool))))) for size in sizes]


MANY = EXACT_UNIQUES + 1


@pytest.mark.parametrize(
    ("sizes", "pool"),
    [
        ([], 1),
        ([0, 0], 1),
        ([3, 0, 5], 9),
        ([MANY - 1] * 3, MANY - 1),
        ([MANY] * 3, MANY),
        ([MANY - 1, 5], MANY + 50),
        ([900] * 40, 1_000_000),
        ([3_000] * 20, 7_000),
        ([700] * 30, 2 * MANY),
        ([MANY] * 6 + [800] * 40, 200_000),
        ([60_000, 3, MANY - 1], 90_000),
    ],
)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_runs_count_together_as_what_they_unite_to(sizes: list[int], pool: int, seed: int) -> None:
    runs = runs_of(sizes, hashes_of(pool, seed), seed)
    assert count_together(runs) == count(unite(runs))


@given(st.lists(st.sets(st.integers(0, 2**63 - 1)).map(smallest)))
def test_any_runs_count_together_as_what_they_unite_to(runs: list[list[int]]) -> None:
    assert count_together(runs) == count(unite(runs))


def test_hashes_that_are_not_spread_evenly_are_counted_as_well() -> None:
    runs = [list(range(place, 90_000, 7)) for place in range(7)]
    runs = [run[:MANY] for run in [*runs, [*range(5), *range(2**62, 2**62 + 9_000)]]]
    assert count_together(runs) == count(unite(runs))


def test_a_part_of_what_was_counted_is_counted_the_same() -> None:
    every = hashes_of(2_000)
    runs = runs_of([700, 2_000, 30, 1_999], every)
    assert count_together(runs, Unique(2_000, is_estimate=False)) == Unique(
        2_000, is_estimate=False
    )
    rare = runs_of([7, 20, 30], every)
    assert count_together(rare, Unique(2_000, is_estimate=False)) == count(unite(rare))
    assert count_together(rare, Unique(9_000, is_estimate=True)) == count(unite(rare))
