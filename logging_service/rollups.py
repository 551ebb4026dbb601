"""Adds up what events say, by the quarter hour, into rows that can be added up again."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final

from logging_service import wire
from logging_service.sketches import (
    EXACT_UNIQUES,
    Bins,
    add_bins,
    bin_of,
    decode_bins,
    encode_bins,
    pack,
    smallest,
    unite,
    unpack,
)

QUARTER: Final = 900_000_000
"""Fifteen minutes in microseconds."""
QUARTER_SPAN: Final = 15
HOUR_SPAN: Final = 60
DAY_SPAN: Final = 1440
SPANS: Final = (QUARTER_SPAN, HOUR_SPAN, DAY_SPAN)
"""In minutes: each is in every roll-up, complete by itself."""
ALL_TYPES: Final = ""
"""The event type of the row that has all of them together."""

CALL_COUNTS: Final = (
    "queries",
    "unpriced",
    "uncached_input",
    "cache_read",
    "cache_write",
    "cache_write_1h",
    "output",
    "reasoning",
    "unsplit",
)
CALL_NANOS: Final = ("cost_nanos", "reported_nanos", "best_nanos")
CALL_SUMS: Final = (*CALL_COUNTS, *CALL_NANOS)
_TIMES: Final = "timed failed total_us max_us"


@dataclass(frozen=True)
class RollUp:
    """A roll-up: its tables, what its rows are for, and what they add up."""

    table: str
    deltas: str
    keys: tuple[str, ...]
    calls: tuple[str, ...]
    numbers: tuple[str, ...]
    summaries: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """All that its rows add up, in the order of `Totals.rows`."""
        return self.calls + self.numbers + self.summaries


def _roll_up(
    subject: str, keys: str, calls: tuple[str, ...], numbers: str, summaries: str
) -> RollUp:
    tables = f"{subject}_rollup", f"{subject}_deltas"
    words = tuple(tuple(names.split()) for names in (keys, numbers, summaries))
    return RollUp(*tables, words[0], calls, words[1], words[2])


USAGE: Final = _roll_up(
    "usage", "source event_type", (), f"events errors {_TIMES}", "durations sessions users"
)
USER: Final = _roll_up(
    "user", "source user_id", CALL_SUMS, f"events errors {_TIMES}", "durations sessions"
)
LLM: Final = _roll_up("llm", "source provider model", CALL_SUMS, _TIMES, "durations")
ROLL_UPS: Final = (USAGE, USER, LLM)

Key = tuple[Any, ...]
"""A bucket's start in microseconds since 2000, then the texts that a roll-up's `keys` name."""


class Sums:
    """What is added up under one key; `calls` are in the order of `CALL_SUMS`."""

    __slots__ = (
        "calls",
        "durations",
        "errors",
        "events",
        "failed",
        "max_us",
        "sessions",
        "timed",
        "total_us",
        "users",
    )

    def __init__(self) -> None:
        self.events = self.errors = self.timed = self.failed = self.total_us = self.max_us = 0
        self.calls: Sequence[int] = _NO_CALLS
        self.durations: Bins = {}
        self.sessions: set[int] = set()
        self.users: set[int] = set()

    def add(self, other: "Sums") -> None:
        """Add what another key has."""
        self.events += other.events
        self.errors += other.errors
        self.timed += other.timed
        self.failed += other.failed
        self.total_us += other.total_us
        self.max_us = max(self.max_us, other.max_us)
        if other.calls is not _NO_CALLS:
            self.add_calls([other.calls])
        add_bins(self.durations, other.durations)
        self.sessions |= other.sessions
        self.users |= other.users
        self.sessions, self.users = _bounded(self.sessions), _bounded(self.users)

    def add_calls(self, calls: Iterable[Iterable[int]]) -> None:
        """Add model calls, each with its values in the order of `CALL_SUMS`."""
        self.calls = list(map(sum, zip(self.calls, *calls, strict=True)))

    def add_outcomes(self, durations: Sequence[int | None], failed: Sequence[bool]) -> None:
        """Add what events took, in microseconds, where they told it, and whether they failed."""
        if None not in durations:
            self.add_times(durations, sum(failed))  # type: ignore[arg-type]
            return
        timed = [
            (duration, is_failed)
            for duration, is_failed in zip(durations, failed, strict=True)
            if duration is not None
        ]
        self.add_times([pair[0] for pair in timed], sum(pair[1] for pair in timed))

    def add_times(self, durations: Sequence[int], failed: int) -> None:
        """Add durations in microseconds, of which so many belong to what failed."""
        if durations:
            self.timed += len(durations)
            self.failed += failed
            self.total_us += sum(durations)
            self.max_us = max(self.max_us, *durations)
            add_bins(self.durations, Counter(map(bin_of, durations)))

    @classmethod
    def of(cls, row: Mapping[str, Any], columns: Iterable[str]) -> "Sums":
        """Return the sums that a row of a roll-up has in these columns.

        Bins and hashes may be lists, of several rows whose other columns are added up already.
        """
        sums = cls()
        for column in columns:
            if column not in CALL_SUMS:
                setattr(sums, column, _FROM_ROW.get(column, int)(row[column]))
        if "queries" in row:
            sums.calls = [int(row[column]) for column in CALL_SUMS]
        return sums

    def fields(self, roll_up: RollUp) -> list[str]:
        r"""Return the columns as fields of `COPY` in its text format, without tabs or newlines."""
        numbers = map(str, _numbers_of(roll_up.numbers)(self))
        texts = [_TO_TEXT[column](getattr(self, column)) for column in roll_up.summaries]
        return [*map(str, self.calls if roll_up.calls else ()), *numbers, *texts]


@lru_cache
def _numbers_of(columns: tuple[str, ...]) -> Callable[[Sums], tuple[int, ...]]:
    return attrgetter(*columns)


# Sets of so many are cut to what counts: a day may have millions.
_MANY: Final = 4 * EXACT_UNIQUES


def _bounded(hashes: set[int]) -> set[int]:
    return hashes if len(hashes) <= _MANY else set(smallest(hashes))


_NO_CALLS: Final[Sequence[int]] = (0,) * len(CALL_SUMS)


def _hashes(packed: bytes | list[bytes]) -> set[int]:
    return set(unite(map(unpack, packed)) if isinstance(packed, list) else unpack(packed))


def _bins(texts: bytes | list[bytes]) -> Bins:
    if not isinstance(texts, list):
        return decode_bins(texts)
    bins: Bins = {}
    for text in texts:
        add_bins(bins, decode_bins(text))
    return bins


def _hex(hashes: set[int]) -> str:
    return rf"\\x{pack(hashes).hex()}"


def _json(bins: Bins) -> str:
    return encode_bins(bins).decode()


_FROM_ROW: Final[dict[str, Callable[[Any], Any]]] = {
    "durations": _bins,
    "sessions": _hashes,
    "users": _hashes,
}
_TO_TEXT: Final[dict[str, Callable[[Any], str]]] = {
    "durations": _json,
    "sessions": _hex,
    "users": _hex,
}

_ESCAPES: Final = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})


def _text(text: str) -> str:
    return text if text.isalnum() else text.translate(_ESCAPES)


class Totals:
    """The sums of one roll-up, by key."""

    def __init__(self, roll_up: RollUp) -> None:
        self.roll_up = roll_up
        self.by_key: dict[Key, Sums] = {}

    def of(self, key: Key) -> Sums:
        """Return the sums under a key, to be added to."""
        sums = self.by_key.get(key)
        if sums is None:
            sums = self.by_key[key] = Sums()
        return sums

    def rows(self, span: int | None = None) -> bytes:
        """Return all as the text that `COPY` takes, in the columns that `columns_of` names."""
        first = [] if span is None else [str(span)]
        lines = [
            "\t".join([*first, _time(key[0]), *map(_text, key[1:]), *sums.fields(self.roll_up)])
            for key, sums in self.by_key.items()
        ]
        return "".join(f"{line}\n" for line in lines).encode()

    def by_span(self, minutes: int) -> "Totals":
        """Return the sums of a wider span: whole hours, or UTC days."""
        span = minutes * 60_000_000
        wider = Totals(self.roll_up)
        for key, sums in self.by_key.items():
            wider.of((key[0] // span * span, *key[1:])).add(sums)
        return wider


def added_up(roll_up: RollUp) -> str:
    """Return the SQL that adds up rows of one key: `Sums.of` reads what it gives."""
    ways = {"max_us": "max"} | dict.fromkeys(("durations", "sessions", "users"), "array_agg")
    return ", ".join(f"{ways.get(name, 'sum')}({name}) AS {name}" for name in roll_up.columns)


def columns_of(roll_up: RollUp) -> tuple[str, ...]:
    """Return the columns of a row of `Totals.rows`, behind the span if there is one."""
    return ("bucket", *roll_up.keys, *roll_up.columns)


@lru_cache(maxsize=256)
def _time(micros: int) -> str:
    return wire.from_micros(micros).isoformat(" ")


def key_of(roll_up: RollUp, row: Mapping[str, Any]) -> Key:
    """Return the key of a row."""
    bucket: datetime = row["bucket"]
    return (wire.to_micros(bucket), *(row[key] for key in roll_up.keys))
