"""Two summaries that can be merged: of durations (DDSketch) and of different texts (KMV).

Durations go into bins whose bounds grow by a constant factor, so that any percentile is known to
within `RELATIVE_ERROR`: Masson, Rim and Lee, "DDSketch", PVLDB 12(12), 2019. Of different texts
the smallest hashes are kept, from whose range their number follows: Bar-Yossef et al., "Counting
distinct elements in a data stream", RANDOM 2002.
"""

import math
from array import array
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import chain
from typing import Final, NamedTuple

import msgspec

RELATIVE_ERROR: Final = 0.01
"""The largest error of a percentile."""
MAX_DURATION_US: Final = 10**15
"""Thirty years: what lasted longer is no duration."""
EXACT_UNIQUES: Final = 4096
"""Up to so many different ones are counted exactly; past that the standard error is 1.6 %."""

# A little less than promised: the rest is for rounding.
_ACCURACY: Final = 0.0099
_GAMMA: Final = (1 + _ACCURACY) / (1 - _ACCURACY)
_PER_LOG: Final = 1 / math.log(_GAMMA)
_MIDDLE: Final = 2 / (1 + _GAMMA)
# Below every bin of a microsecond or more.
_ZERO: Final = -1

_HASHES: Final = 2**63
_KEPT: Final = EXACT_UNIQUES + 1
_SAMPLED: Final = 32
_REPEATED: Final = 3

Bins = dict[int, int]
_decode = msgspec.json.Decoder(Bins).decode


def bin_of(duration_us: int) -> int:
    """Return the bin of a duration in microseconds, from 0 to `MAX_DURATION_US`."""
    return math.ceil(math.log(duration_us) * _PER_LOG) if duration_us else _ZERO


def encode_bins(bins: Mapping[int, int]) -> bytes:
    """Return the JSON of bins and their counts."""
    return msgspec.json.encode(bins)


def decode_bins(text: bytes) -> Bins:
    """Return the bins in a JSON text made by `encode_bins`."""
    return _decode(text)


def add_bins(into: Bins, bins: Mapping[int, int]) -> None:
    """Add counts to those of `into`."""
    for number, count in bins.items():
        into[number] = into.get(number, 0) + count


def percentiles(bins: Mapping[int, int], *percents: int) -> list[float | None]:
    """Return percentiles by nearest rank, in milliseconds; None where nothing was counted.

    `percents` ascend.
    """
    total = sum(bins.values())
    if not total:
        return [None] * len(percents)
    found: list[float | None] = []
    passed, ascending = 0, iter(sorted(bins.items()))
    number = _ZERO
    for percent in percents:
        rank = -(-total * percent // 100)
        while passed < rank:
            number, count = next(ascending)
            passed += count
        found.append(_middle_ms(number))
    return found


def _middle_ms(number: int) -> float:
    return 0.0 if number == _ZERO else float(f"{_GAMMA**number * _MIDDLE / 1000:.5g}")


@lru_cache(maxsize=20_000)
def hash_of(text: bytes) -> int:
    """Return a hash of 63 bits, the same everywhere and always."""
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big") >> 1


class Unique(NamedTuple):
    """How many different texts there were."""

    number: int
    is_estimate: bool


def smallest(hashes: Collection[int]) -> list[int]:
    """Return as many of different hashes as `count` needs: the smallest of them, ascending."""
    if len(hashes) > 2 * _KEPT:
        # They are spread evenly, or lean to the small side: a tenth more than a share is enough.
        bound = _HASHES * _KEPT * 11 // (len(hashes) * 10)
        few = [one for one in hashes if one < bound]
        hashes = few if len(few) >= _KEPT else hashes
    return sorted(hashes)[:_KEPT]


def pack(hashes: Collection[int]) -> bytes:
    """Return the `smallest` of hashes, eight bytes each."""
    return array("q", smallest(hashes)).tobytes()


def unpack(packed: bytes) -> "array[int]":
    """Return the hashes in bytes made by `pack`."""
    hashes = array("q")
    hashes.frombytes(packed)
    return hashes


def unite(several: Iterable[Sequence[int]]) -> Sequence[int]:
    """Return the `smallest` of all that is in several of what `smallest` or `unpack` returned."""
    filled = [hashes for hashes in several if hashes]
    if len(filled) == 1:
        return filled[0]
    # A full one lacks what is larger than its last, which has no place among the smallest of all.
    bound = min((hashes[-1] for hashes in filled if len(hashes) >= _KEPT), default=_HASHES)
    if sum(map(len, filled)) <= 2 * _KEPT:
        return _united(_up_to(bound, filled), fewer=False)
    some = _up_to(bound // _SAMPLED, filled)
    different = len(set().union(*some)) * _SAMPLED
    fewer = different * _REPEATED < sum(map(len, some)) * _SAMPLED
    if different > 2 * _KEPT:
        # A quarter more than the share that has enough of them, for chance.
        enough = bound * _KEPT * 5 // (different * 4)
        found = _united(_up_to(enough, filled), fewer=fewer)
        if len(found) == _KEPT:
            return found
    return _united(_up_to(bound, filled), fewer=fewer)


def _up_to(bound: int, several: Iterable[Sequence[int]]) -> list[Sequence[int]]:
    return [hashes[: bisect_right(hashes, bound)] for hashes in several]


def _united(several: Sequence[Sequence[int]], *, fewer: bool) -> list[int]:
    """Return the smallest that are in several; with `fewer` most of them are there repeatedly."""
    if fewer:
        return sorted(set().union(*several))[:_KEPT]
    # Runs in order are merged faster than a set is sorted.
    return list(dict.fromkeys(sorted(chain.from_iterable(several))))[:_KEPT]


def count(hashes: Sequence[int]) -> Unique:
    """Return how many different texts have what `smallest` or `unite` returned of their hashes."""
    if len(hashes) <= EXACT_UNIQUES:
        return Unique(len(hashes), is_estimate=False)
    return estimate(hashes[-1])


def estimate(largest: int) -> Unique:
    """Return about how many there are when the smallest that are kept end with `largest`."""
    return Unique(round(EXACT_UNIQUES * (_HASHES / largest)), is_estimate=True)
