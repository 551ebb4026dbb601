"""What a batch of model calls adds to the ledger, and to the sums by model and by user."""

import struct
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, Final, NamedTuple

from logging_service import wire
from logging_service.ports import ModelQueries
from logging_service.pricing import Prices
from logging_service.rollups import CALL_NANOS, LLM, Sums, Totals
from logging_service.usage import (
    MAX_COST_NANOS,
    PlainCall,
    all_decoded,
    named,
    plain_call,
    reported_nanos,
    usage_of,
)
from logging_service.wire import NULL, column

CALL_COLUMNS: Final = (
    # Those of every event that is kept by its id.
    *("event_id", "timestamp", "user_id", "duration_us", "is_failed", "session_id", "source"),
    *("uncached_input", "output", *CALL_NANOS),
    # The same for all plain calls of a model.
    *("queries", "unpriced", "cache_read", "cache_write", "cache_write_1h", "reasoning", "unsplit"),
    *("entry", "has_media", "is_told"),
    *("provider", "model", "price_source", "unpriced_reason", "fault", "reported_fault", "service"),
)
_COUNTS = struct.Struct(">iqiq")
_REST = struct.Struct(">ihih" + "iq" * 5 + "ii" + "i?" * 2)
_INTEGER = struct.Struct(">iq")

# Its row up to the source, the payload, the time, the user, the duration, whether it failed.
# Plain, since each is made per call.
CallEvent = tuple[bytes, bytes, int, str | None, int | None, bool]
# The provider and the model, and the sums in the order of CALL_SUMS.
_Counted = tuple[tuple[str, str], Sequence[int]]
# These sums, the duration, whether it failed.
_Call = tuple[Sequence[int], int | None, bool]


def integer_column(number: int | None) -> bytes:
    """Return a bigint as a column of `COPY`."""
    return NULL if number is None else _INTEGER.pack(8, number)


class _Plain(NamedTuple):
    """What calls have in common, from one time until before another, that are plain and flat."""

    since: int
    until: int
    most_input: int
    input_nanos: int
    output_nanos: int
    names: tuple[str, str]
    columns: bytes


class ModelCalls:
    """The ledger's rows for a binary COPY, and the sums; those by user go where these are."""

    def __init__(self, prices: Prices, users: Totals) -> None:
        self.rows: list[bytes] = []
        self.llm = Totals(LLM)
        self.queries: dict[str, ModelQueries] = {}
        self._users = users
        self._prices = prices
        self._plain: dict[tuple[str | None, str], _Plain | None] = {}
        self._told_columns: dict[tuple[str | None, ...], bytes] = {}

    def add(self, start: int, source: str, events: Sequence[CallEvent]) -> None:
        """Add calls of one quarter hour and source; never raises, whatever their payloads are."""
        of_models: defaultdict[tuple[str, str], list[_Call]] = defaultdict(list)
        of_users: defaultdict[str, list[_Call]] = defaultdict(list)
        for event, sent in zip(events, all_decoded([event[1] for event in events]), strict=True):
            names, sums = self._plain_call(event, sent) or self._any_call(event, sent)
            call = sums, event[4], event[5]
            of_models[names].append(call)
            of_users[event[3] or ""].append(call)
        for names, group in of_models.items():
            _add_group(self.llm.of((start, source, *names)), group)
            self._note_queries(names[1], group)
        for user, group in of_users.items():
            _add_group(self._users.of((start, source, user)), group)

    def _note_queries(self, model: str, group: Iterable[_Call]) -> None:
        queries = self.queries.setdefault(model, ModelQueries())
        for sums, _, is_failed in group:
            queries.failed += is_failed
            queries.ok += not is_failed
            queries.nanos += sums[-1]

    def _plain_call(self, event: CallEvent, sent: dict[str, Any] | None) -> _Counted | None:
        call = None if sent is None else plain_call(sent)
        if sent is None or call is None:
            return None
        plain = self._plain_of(call, event[2])
        _, _, told, answered = call
        if plain is None or told > plain.most_input:
            return None
        nanos = told * plain.input_nanos + answered * plain.output_nanos
        reported = None
        if "cost" in sent and sent["cost"] is not None:
            reported, fault = reported_nanos(sent["cost"])
            if fault is not None:
                return None
        if nanos > MAX_COST_NANOS:
            return None
        cost = _INTEGER.pack(8, nanos)
        counts = _COUNTS.pack(8, told, 8, answered)
        told_cost = NULL if reported is None else _INTEGER.pack(8, reported)
        self.rows.append(b"".join((event[0], counts, cost, told_cost, cost, plain.columns)))
        return plain.names, (1, 0, told, 0, 0, 0, answered, 0, 0, nanos, reported or 0, nanos)

    def _plain_of(self, call: PlainCall, moment: int) -> _Plain | None:
        key = call[0], call[1]
        if key in self._plain:
            plain = self._plain[key]
            if plain is None or plain.since <= moment < plain.until:
                return plain
        plain = self._plain[key] = self._find_plain(*key, moment)
        return plain

    def _find_plain(self, provider: str | None, model: str, moment: int) -> _Plain | None:
        seller, name = named(provider, model)
        if name is None:
            return None
        price = self._prices.flat_price(seller, name, _second(moment // 1_000_000))
        if price is None:
            return None
        told = self._told((seller, name, price.source, None, None, None, None))
        return _Plain(
            wire.to_micros(price.since),
            wire.to_micros(price.until),
            price.most_input,
            price.input_nanos,
            price.output_nanos,
            (seller or "", name),
            _rest((1, 0, 0, 0, 0, 0, 0), has_media=False, is_told=True) + told,
        )

    def _any_call(self, event: CallEvent, sent: dict[str, Any] | None) -> _Counted:
        usage = usage_of(event[1] if sent is None else sent)
        # No price changes within a second.
        cost = self._prices.cost_of(usage, _second(event[2] // 1_000_000))
        nanos, reported = cost.nanos, usage.reported_nanos
        best = reported if nanos is None else nanos
        is_unpriced = nanos is None
        new, read, write, write_1h, answer, reasoning = usage.counts
        rest = (1, is_unpriced, read, write, write_1h, reasoning, usage.unsplit)
        told = (
            usage.provider,
            usage.model,
            cost.source,
            cost.unpriced,
            usage.fault,
            usage.reported_fault,
            usage.service,
        )
        self.rows.append(
            b"".join(
                (
                    event[0],
                    _COUNTS.pack(8, new, 8, answer),
                    integer_column(nanos),
                    integer_column(reported),
                    integer_column(best),
                    _rest(rest, has_media=usage.has_media, is_told=usage.is_told),
                    self._told(told),
                )
            )
        )
        costs = nanos or 0, reported or 0, best or 0
        sums = (1, is_unpriced, *usage.counts, usage.unsplit, *costs)
        return (usage.provider or "", usage.model or ""), sums

    def _told(self, texts: tuple[str | None, ...]) -> bytes:
        # Few models with few outcomes: their columns are the same for many calls.
        columns = self._told_columns.get(texts)
        if columns is None:
            made = (NULL if text is None else column(text.encode()) for text in texts)
            columns = self._told_columns[texts] = b"".join(made)
        return columns


def _rest(counts: Sequence[int], *, has_media: bool, is_told: bool) -> bytes:
    queries, unpriced, c1, c2, c3, c4, c5 = counts
    numbers = (2, queries, 2, unpriced, 8, c1, 8, c2, 8, c3, 8, c4, 8, c5)
    return _REST.pack(*numbers, 4, 0, 1, has_media, 1, is_told)


@lru_cache(maxsize=1024)
def _second(number: int) -> datetime:
    return wire.from_micros(number * 1_000_000)


def _add_group(sums: Sums, group: Sequence[_Call]) -> None:
    calls, durations, failed = zip(*group, strict=True)
    sums.add_calls(calls)
    sums.add_outcomes(durations, failed)
