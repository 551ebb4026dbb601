"""The ledger and the roll-ups, worked out anew from the rows of `log_events`: plainly and slowly.

It knows what the documents say and shares no arithmetic with the service. Payloads use the
service's own field names, with an input or nothing but a total, and durations at most three
decimals; prices are the test's own.
"""

import json
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg

from logging_service.price_file import read_price_file
from logging_service.pricing import Prices
from logging_service.sketches import decode_bins, percentiles

QUARTER, HOUR, DAY = 15, 60, 1440
KEYS = {
    "usage": ("source", "event_type"),
    "user": ("source", "user_id"),
    "llm": ("source", "provider", "model"),
}
CALL_SUMS = (
    "queries", "unpriced", "uncached_input", "cache_read", "cache_write", "cache_write_1h",
    "output", "reasoning", "unsplit", "cost_nanos", "reported_nanos", "best_nanos",
)  # fmt: skip
_MAX_TOKENS = 10**12
_MAX_DOLLARS = 10**6
_MAX_US = 10**15


class Rate(NamedTuple):
    """Dollars per million tokens of a model, whatever its provider; a part costs as its whole."""

    input: Decimal
    output: Decimal
    cache_read: Decimal | None = None
    cache_write: Decimal | None = None
    reasoning: Decimal | None = None

    @property
    def parts(self) -> tuple[Decimal, ...]:
        """Uncached input, cache read, cache write, the same for 1 h, output, reasoning."""
        read = self.input if self.cache_read is None else self.cache_read
        write = self.input if self.cache_write is None else self.cache_write
        reasoning = self.output if self.reasoning is None else self.reasoning
        return self.input, read, write, write, self.output, reasoning


Rates = Mapping[str, Rate]
"""The only priced models, by name in lower case; all others are to be unknown to everybody."""


def prices_of(rates: Rates, folder: Path) -> Prices:
    """Return the service's own prices that say the same, from a file in this folder."""
    file = folder / "prices.toml"
    tables = [
        f'[[price]]\nprovider = "*"\nmodel = {json.dumps(model)}\n'
        + "".join(
            f"{name} = {dollars:f}\n"
            for name, dollars in rate._asdict().items()
            if dollars is not None
        )
        for model, rate in rates.items()
    ]
    file.write_text("".join(tables))
    return Prices(read_price_file(file))


class Call(NamedTuple):
    """What one model call used and cost."""

    provider: str | None
    model: str | None
    counts: tuple[int, ...]
    unsplit: int
    is_impossible: bool
    unpriced: str | None
    cost_nanos: int | None
    reported_nanos: int | None

    @property
    def best_nanos(self) -> int | None:
        """What was computed, else what was reported."""
        return self.reported_nanos if self.cost_nanos is None else self.cost_nanos

    @property
    def sums(self) -> list[int]:
        """What it adds to a roll-up, in the order of CALL_SUMS."""
        nanos = (self.cost_nanos, self.reported_nanos, self.best_nanos)
        unpriced = int(self.cost_nanos is None)
        return [1, unpriced, *self.counts, self.unsplit, *(each or 0 for each in nanos)]


class Seen(NamedTuple):
    """What one stored event says."""

    event_id: UUID
    timestamp: datetime
    event_type: str
    session_id: str | None
    source: str
    user_id: str | None
    duration_us: int | None
    is_failed: bool
    call: Call | None
    findings: tuple[int | None, int | None, int | None] | None


def seen(row: Mapping[str, Any], rates: Rates) -> Seen:
    """Return what a row of `log_events` says, its payload as text in `text`."""
    payload = json.loads(row["text"], parse_float=Decimal)
    event_type = row["event_type"]
    return Seen(
        row["event_id"],
        row["timestamp"],
        event_type,
        row["session_id"],
        row["source"],
        _user(payload),
        _duration_us(payload.get("duration_ms")),
        payload.get("success") is False or bool(payload.get("error")),
        _call(payload, rates) if event_type == "llm_query_sent" else None,
        _findings(payload) if event_type == "review_completed" else None,
    )


def _user(payload: Mapping[str, Any]) -> str | None:
    told = payload.get("user_id")
    if told is None:
        told = payload.get("user.id")
    if type(told) is int:
        told = str(told)
    return told[:200].replace("\0", "") or None if isinstance(told, str) else None


def _duration_us(told: object) -> int | None:
    if isinstance(told, bool) or not isinstance(told, int | Decimal):
        return None
    exact = Decimal(told) * 1000
    return int(exact.to_integral_value(ROUND_HALF_EVEN)) if 0 <= exact <= _MAX_US else None


def _findings(payload: Mapping[str, Any]) -> tuple[int | None, int | None, int | None]:
    for name in ("findings_by_severity", "counts"):
        told = payload.get(name)
        if isinstance(told, dict) and {"error", "warning", "info"} & set(told):
            found = [told.get(severity, 0) for severity in ("error", "warning", "info")]
            counted = [each if type(each) is int and 0 <= each <= 10**12 else 0 for each in found]
            return counted[0], counted[1], counted[2]
    return None, None, None


class _Count(NamedTuple):
    number: int | None
    is_impossible: bool = False


def _count(payload: Mapping[str, Any], *names: str) -> _Count:
    for name in names:
        told = payload.get(name)
        if told is None:
            continue
        is_number = isinstance(told, int | Decimal) and not isinstance(told, bool)
        if is_number and told == int(told) and 0 <= told <= _MAX_TOKENS:
            return _Count(int(told))
        return _Count(0, is_impossible=True)
    return _Count(None)


def _call(payload: Mapping[str, Any], rates: Rates) -> Call:
    asked = _count(payload, "input_tokens")
    answered = _count(payload, "output_tokens")
    total = _count(payload, "tokens_used", "total_tokens")
    read = _count(payload, "cached_tokens")
    write = _count(payload, "cache_write_tokens")
    reasoning = _count(payload, "reasoning_tokens")
    whole_in, whole_out = asked.number or 0, answered.number or 0
    uncached = whole_in - (read.number or 0) - (write.number or 0)
    answer = whole_out - (reasoning.number or 0)
    told = (asked, answered, read, write, reasoning)
    impossible = any(each.is_impossible for each in told) or uncached < 0 or answer < 0
    unsplit = 0
    if asked.number is None or answered.number is None:
        impossible |= total.is_impossible
        if total.number is not None:
            impossible |= whole_in + whole_out > total.number
            unsplit = max(0, total.number - whole_in - whole_out)
    counts = (uncached, read.number or 0, write.number or 0, 0, answer, reasoning.number or 0)
    provider, model = _name(payload.get("provider")), _name(payload.get("model"))
    nanos, unpriced = _cost(counts, provider, model, rates)
    if asked.number is None and total.number is None:
        unpriced = "nothing_told"
    elif unsplit:
        unpriced = "split_unknown"
    if impossible:
        unpriced = "impossible_counts"
    return Call(
        provider and provider.lower(),
        model,
        counts,
        unsplit,
        impossible,
        unpriced,
        None if unpriced else nanos,
        _reported(payload.get("cost")),
    )


def _cost(
    counts: tuple[int, ...], provider: str | None, model: str | None, rates: Rates
) -> tuple[int, str | None]:
    if model is None:
        return 0, "no_model"
    rate = rates.get(model.lower())
    if rate is None:
        return 0, "unknown_model" if provider is None else "unknown_provider"
    with localcontext(prec=60):
        nanos = _nanos(sum(map(_times, counts, rate.parts), Decimal()) / 10**6)
    return nanos, "too_large" if nanos > _MAX_DOLLARS * 10**9 else None


def _name(told: object) -> str | None:
    return told.strip()[:200] or None if isinstance(told, str) else None


def _times(tokens: int, dollars: Decimal) -> Decimal:
    return tokens * dollars


def _nanos(dollars: Decimal) -> int:
    with localcontext(prec=60):
        return int((dollars * 10**9).to_integral_value(ROUND_HALF_EVEN))


def _reported(told: object) -> int | None:
    if isinstance(told, bool) or not isinstance(told, int | Decimal):
        return None
    return _nanos(Decimal(told)) if 0 <= told <= _MAX_DOLLARS else None


@dataclass
class Sums:
    """What a row of a roll-up has to say: durations one by one, sessions and users by hash."""

    events: int = 0
    errors: int = 0
    calls: list[int] = field(default_factory=lambda: [0] * len(CALL_SUMS))
    durations: list[int] = field(default_factory=list)
    failed: int = 0
    sessions: set[int] = field(default_factory=set)
    users: set[int] = field(default_factory=set)

    def add_event(self, event: Seen) -> None:
        """Count an event as such."""
        self.events += 1
        self.errors += event.event_type == "error_occurred"
        self.sessions |= _hashes(event.session_id)
        self.users |= _hashes(event.user_id)

    def add_duration(self, event: Seen) -> None:
        """Count how long it took, if that is known, and whether it failed then."""
        if event.duration_us is not None:
            self.durations.append(event.duration_us)
            self.failed += event.is_failed

    def add_call(self, event: Seen, call: Call) -> None:
        """Count a model call."""
        self.calls = [sum(pair) for pair in zip(self.calls, call.sums, strict=True)]
        self.add_duration(event)


def _hashes(text: str | None) -> set[int]:
    if text is None:
        return set()
    return {int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") // 2}


RollUps = dict[str, dict[tuple[Any, ...], Sums]]
"""By subject, then by span in minutes, start and the subject's KEYS."""


def buckets(moment: datetime) -> Iterator[tuple[int, datetime]]:
    """Yield the span and the start of the quarter hour, the hour and the UTC day."""
    moment = moment.astimezone(UTC)
    yield QUARTER, moment.replace(minute=moment.minute // 15 * 15, second=0, microsecond=0)
    yield HOUR, moment.replace(minute=0, second=0, microsecond=0)
    yield DAY, moment.replace(hour=0, minute=0, second=0, microsecond=0)


def roll_up(events: Iterable[Seen]) -> RollUps:
    """Return what all rows of all roll-ups have to say."""
    found: RollUps = {subject: {} for subject in KEYS}

    def of(subject: str, *key: Any) -> Sums:
        return found[subject].setdefault(key, Sums())

    for event in events:
        for span, start in buckets(event.timestamp):
            place = (span, start, event.source)
            for event_type in (event.event_type, ""):
                usage = of("usage", *place, event_type)
                usage.add_event(event)
                usage.add_duration(event)
            of("user", *place, event.user_id or "").add_event(event)
            if event.call is not None:
                model = (event.call.provider or "", event.call.model or "")
                of("llm", *place, *model).add_call(event, event.call)
                of("user", *place, event.user_id or "").add_call(event, event.call)
    return found


async def events_in(database: asyncpg.Connection, rates: Rates) -> list[Seen]:
    """Return what each row of `log_events` says."""
    rows = await database.fetch("SELECT *, payload::text AS text FROM log_events")
    return [seen(row, rates) for row in rows]


async def assert_ledger(database: asyncpg.Connection, rates: Rates) -> None:
    """Assert that facts, calls, reviews and roll-ups say what `log_events` does, no more, no less.

    Roll-ups are taken together with what is yet to be folded into them. Calls were never repriced.
    """
    async with database.transaction(isolation="repeatable_read", readonly=True):
        events = await events_in(database, rates)
        await _assert_facts(database, events)
        await _assert_calls(database, events)
        await _assert_reviews(database, events)
        found = await standing(database)
    assert_same(found, roll_up(events))


async def _assert_facts(database: asyncpg.Connection, events: list[Seen]) -> None:
    rows = await database.fetch("SELECT * FROM event_facts")
    assert Counter(map(tuple, rows)) == Counter(
        (e.timestamp, e.session_id, e.event_type, e.source, e.user_id, e.duration_us, e.is_failed)
        for e in events
    )


async def _assert_calls(database: asyncpg.Connection, events: list[Seen]) -> None:
    rows = {(row["event_id"], row["timestamp"]): row for row in await database.fetch(
        "SELECT * FROM llm_calls ORDER BY entry"
    )}  # fmt: skip
    assert await database.fetchval("SELECT count(*) FROM llm_calls") == len(rows)
    calls = [(event, event.call) for event in events if event.call is not None]
    assert rows.keys() == {(event.event_id, event.timestamp) for event, _ in calls}
    for event, call in calls:
        row = rows[event.event_id, event.timestamp]
        assert [row["entry"], *(row[name] or 0 for name in CALL_SUMS)] == [0, *call.sums]
        assert (row["cost_nanos"], row["reported_nanos"], row["best_nanos"]) == (
            call.cost_nanos, call.reported_nanos, call.best_nanos
        )  # fmt: skip
        assert (row["provider"], row["model"]) == (call.provider, call.model)
        assert row["unpriced_reason"] == call.unpriced
        assert (row["price_source"] is None) == (call.cost_nanos is None)
        assert (row["fault"] is not None) == call.is_impossible
        assert _common(row) == _common(event._asdict())


async def _assert_reviews(database: asyncpg.Connection, events: list[Seen]) -> None:
    rows = await database.fetch("SELECT * FROM review_facts")
    found = {row["event_id"]: row for row in rows}
    assert len(found) == len(rows)
    reviews = {event.event_id: event for event in events if event.findings is not None}
    assert found.keys() == reviews.keys()
    for event_id, event in reviews.items():
        row = found[event_id]
        assert (row["errors"], row["warnings"], row["infos"]) == event.findings
        assert _common(row) == _common(event._asdict())


def _common(row: Mapping[str, Any]) -> tuple[Any, ...]:
    names = ("timestamp", "session_id", "source", "user_id", "duration_us", "is_failed")
    return tuple(row[name] for name in names)


@dataclass
class Standing:
    """What is written under one key, in the roll-up and in what is yet to be folded."""

    rows: list[Mapping[str, Any]] = field(default_factory=list)

    def total(self, name: str) -> int:
        """Return the sum of a column."""
        return sum(int(row[name]) for row in self.rows)

    @property
    def max_us(self) -> int:
        """Return the longest duration."""
        return max(int(row["max_us"]) for row in self.rows)

    @property
    def bins(self) -> Counter[int]:
        """Return the bins of all durations."""
        return sum((Counter(decode_bins(row["durations"].encode())) for row in self.rows),
                   Counter[int]())  # fmt: skip

    def hashes(self, name: str) -> set[int]:
        """Return the hashes in a column."""
        return {each for row in self.rows for each in array("q", row[name])}


AllStanding = dict[str, dict[tuple[Any, ...], Standing]]


async def standing(database: asyncpg.Connection, *, folded_only: bool = False) -> AllStanding:
    """Return what is written for each key, by subject, then as in RollUps."""
    found: AllStanding = {subject: {} for subject in KEYS}
    for subject, keys in KEYS.items():
        folded = await database.fetch(f"SELECT * FROM {subject}_rollup")
        waiting = [] if folded_only else await database.fetch(f"SELECT * FROM {subject}_deltas")
        placed = [((row["span"], row["bucket"]), row) for row in folded]
        placed += [(bucket, row) for row in waiting for bucket in buckets(row["bucket"])]
        for bucket, row in placed:
            key = (*bucket, *(row[key] for key in keys))
            found[subject].setdefault(key, Standing()).rows.append(row)
    return found


def assert_same(found: AllStanding, expected: RollUps) -> None:
    """Assert that what is written is what has to be."""
    for subject in KEYS:
        assert found[subject].keys() == expected[subject].keys(), subject
        for key, sums in expected[subject].items():
            _assert_sums(subject, found[subject][key], sums)


def _assert_sums(subject: str, written: Standing, sums: Sums) -> None:
    if subject != "llm":
        assert (written.total("events"), written.total("errors")) == (sums.events, sums.errors)
        assert written.hashes("sessions") == sums.sessions
    if subject == "usage":
        assert written.hashes("users") == sums.users
    else:
        assert [written.total(name) for name in CALL_SUMS] == sums.calls
    durations = sorted(sums.durations)
    times = (len(durations), sums.failed, sum(durations), max(durations, default=0))
    assert (*map(written.total, ("timed", "failed", "total_us")), written.max_us) == times
    assert written.bins.total() == len(durations)
    assert_percentiles(written.bins, durations)


def assert_percentiles(bins: Mapping[int, int], durations: list[int]) -> None:
    """Assert that every percentile is within 1 % of the nearest rank; `durations` ascend."""
    found = percentiles(bins, *range(1, 101))
    for percent, milliseconds in enumerate(found, 1):
        if not durations:
            assert milliseconds is None
            continue
        exact = durations[math.ceil(Decimal(len(durations) * percent) / 100) - 1]
        assert milliseconds is not None
        assert abs(Decimal(milliseconds) * 1000 - exact) * 100 <= exact, (percent, exact)


async def assert_days_are_sums(database: asyncpg.Connection) -> None:
    """Assert that each row of a wider span is the sum of its quarter hours, key by key."""
    found = await standing(database, folded_only=True)
    for rows in found.values():
        wider = {key: each for key, each in rows.items() if key[0] != QUARTER}
        quarters: dict[tuple[Any, ...], Standing] = {}
        for (span, start, *texts), each in rows.items():
            for longer, beginning in buckets(start):
                if span == QUARTER != longer:
                    key = (longer, beginning, *texts)
                    quarters.setdefault(key, Standing()).rows.extend(each.rows)
        assert wider.keys() == quarters.keys()
        for key, row in wider.items():
            assert len(row.rows) == 1
            _assert_equal(row, quarters[key])


def _assert_equal(one: Standing, other: Standing) -> None:
    for name in set(one.rows[0].keys()) - {"span", "bucket", *sum(KEYS.values(), ())}:
        if name in {"sessions", "users"}:
            assert one.hashes(name) == other.hashes(name)
        elif name == "durations":
            assert one.bins == other.bins
        elif name == "max_us":
            assert one.max_us == other.max_us
        else:
            assert one.total(name) == other.total(name), name
