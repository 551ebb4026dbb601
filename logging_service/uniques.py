"""How many different texts several sets of hashes have together, without putting all in order."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Final

from logging_service.sketches import EXACT_UNIQUES, Unique, estimate

_HASHES: Final = 2**63
_KEPT: Final = EXACT_UNIQUES + 1
_SAMPLED: Final = 32

Runs = list[Sequence[int]]
"""Sets of hashes, each as `sketches.smallest` or `sketches.unpack` returned it."""


def count_together(runs: Iterable[Sequence[int]], of: Unique | None = None) -> Unique:
    """Return what `sketches.count` would of all that `runs` unite to.

    It is faster where they have most of those that were counted before: `of`.
    """
    filled = sorted(filter(len, runs), key=len, reverse=True)
    if of is not None and not of.is_estimate:
        return _count_of(filled, of)
    # A full one lacks what is larger than its last, which has no place among the smallest of all.
    bound = min((hashes[-1] for hashes in filled if len(hashes) >= _KEPT), default=_HASHES)
    enough = _enough(bound, filled)
    different = _up_to(enough, filled)
    if len(different) < _KEPT and enough < bound:
        different = _up_to(bound, filled)
    if len(different) <= EXACT_UNIQUES:
        return Unique(len(different), is_estimate=False)
    return estimate(_smallest_but(EXACT_UNIQUES, different))


def _count_of(runs: Runs, most: Unique) -> Unique:
    different: set[int] = set()
    for hashes in runs:
        if len(different) == most.number:
            return most
        different.update(hashes)
    return Unique(len(different), is_estimate=False)


def _enough(bound: int, runs: Runs) -> int:
    """Return a hash up to which there are, most likely, as many different ones as are kept."""
    if sum(map(len, runs)) <= 2 * _KEPT:
        return bound
    sample = len(_up_to(bound // _SAMPLED, runs))
    if sample * _SAMPLED <= 2 * _KEPT:
        return bound
    # More than the share that has enough of them, for chance.
    return round(bound * (_KEPT / (sample * _SAMPLED)) * (1 + 4 / math.sqrt(sample)))


def _up_to(bound: int, runs: Runs) -> set[int]:
    return set().union(*(hashes[: bisect_right(hashes, bound)] for hashes in runs))


def _smallest_but(number: int, hashes: set[int]) -> int:
    """Return the smallest but so many, which is among the largest of them, mostly."""
    beyond = len(hashes) - number
    # They are spread evenly: the last have it, and some more for chance.
    lower = round(max(hashes) * (1 - (beyond + 4 * math.sqrt(beyond) + 9) / len(hashes)))
    largest = [one for one in hashes if one > lower]
    return sorted(largest if len(largest) >= beyond else hashes)[-beyond]
