"""What a batch of stored events adds to the facts, the ledger of model calls and the roll-ups."""

import struct
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from typing import Final

from logging_service import wire
from logging_service.facts import (
    ERROR,
    LLM_CALL,
    REVIEW_END,
    Facts,
    facts_of,
    findings_in,
)
from logging_service.ports import ModelQueries
from logging_service.pricing import Cost, Prices
from logging_service.rollups import (
    ALL_TYPES,
    CALL_COUNTS,
    CALL_NANOS,
    LLM,
    QUARTER,
    USAGE,
    USER,
    Key,
    Sums,
    Totals,
)
from logging_service.sketches import hash_of
from logging_service.usage import Usage, decoded, usage_of
from logging_service.wire import NULL, Narrow, column

FACT_COLUMNS: Final = (
    "timestamp",
    "session_id",
    "event_type",
    "source",
    "user_id",
    "duration_us",
    "is_failed",
)
CALL_COLUMNS: Final = (
    "timestamp",
    "event_id",
    "entry",
    *CALL_COUNTS,
    "has_media",
    "is_told",
    "is_failed",
    "session_id",
    "source",
    "user_id",
    *CALL_NANOS,
    "duration_us",
    "provider",
    "model",
    "price_source",
    "unpriced_reason",
    "fault",
    "reported_fault",
    "service",
)
REVIEW_COLUMNS: Final = (
    "timestamp",
    "event_id",
    "is_failed",
    "session_id",
    "source",
    "user_id",
    "duration_us",
    "errors",
    "warnings",
    "infos",
)

# The number of columns, and those of a fixed size, each behind its length.
_FACT = struct.Struct(">hiq")
_CALL_HEAD = struct.Struct(">hiqi16siiihih" + "iq" * 7 + "i?" * 3)
_REVIEW_HEAD = struct.Struct(">hiqi16si?")
_INTEGER = struct.Struct(">iq")
_FALSE, _TRUE = column(b"\x00"), column(b"\x01")
_LENGTH = struct.Struct(">i")
_CALL, _REVIEW = column(LLM_CALL.encode()), column(REVIEW_END.encode())

# The hash of a session, the user, the duration in microseconds, whether it failed.
_Row = tuple[int | None, str | None, int | None, bool]
# The sums in the order of CALL_SUMS, the duration, whether it failed.
_Call = tuple[tuple[int, ...], int | None, bool]
# Of a quarter hour and source, by user: the hash of the session of each event.
_Users = defaultdict[tuple[int, str], defaultdict[str, list[int | None]]]


class Entries:
    """The rows and sums of events; `…_rows` are those of a binary COPY."""

    def __init__(self, prices: Prices) -> None:
        self.fact_rows: list[bytes] = []
        self.call_rows: list[bytes] = []
        self.review_rows: list[bytes] = []
        self.usage, self.users, self.llm = Totals(USAGE), Totals(USER), Totals(LLM)
        self.queries: dict[str, ModelQueries] = {}
        self._prices = prices
        self._columns: dict[str | None, bytes] = {None: NULL}
        self._told_columns: dict[tuple[str | None, ...], bytes] = {}

    def add(self, elements: Iterable[bytes]) -> None:
        """Add events that passed `wire.check`; never raises, whatever their payloads are."""
        events = list(map(wire.narrow, elements))
        by_type: dict[tuple[int, bytes], list[_Row]] = {}
        calls: list[tuple[Narrow, Facts]] = []
        for event, facts in zip(events, facts_of([event[4] for event in events]), strict=True):
            _, moment, texts, type_at, _ = event
            key = moment // QUARTER, texts[type_at:]
            rows = by_type.get(key)
            if rows is None:
                rows = by_type[key] = []
            user, duration, is_failed = facts
            session = hash_of(texts[4:type_at]) if texts[:4] != NULL else None
            rows.append((session, user, duration, is_failed))
            self.fact_rows.append(
                b"".join(
                    (
                        _FACT.pack(len(FACT_COLUMNS), 8, moment),
                        texts,
                        self._columns.get(user) or self._column(user),
                        NULL if duration is None else _INTEGER.pack(8, duration),
                        _TRUE if is_failed else _FALSE,
                    )
                )
            )
            if key[1].startswith(_CALL):
                calls.append((event, facts))
            elif key[1].startswith(_REVIEW):
                self.review_rows.append(_review_row(event, facts))
        of_users: _Users = defaultdict(lambda: defaultdict(list))
        for (quarter, columns), rows in by_type.items():
            self._count(quarter * QUARTER, columns, rows, of_users)
        for place, of_source in of_users.items():
            for user, sessions in of_source.items():
                sums = self.users.of((*place, user))
                sums.events += len(sessions)
                sums.sessions.update(filter(None, sessions))
        self._add_calls(calls)

    def _column(self, text: str | None) -> bytes:
        made = self._columns[text] = column(text.encode()) if text else NULL
        return made

    def _count(self, start: int, columns: bytes, rows: list[_Row], of_users: _Users) -> None:
        event_type, source = _two_texts(columns)
        number = len(rows)
        sums = Sums()
        sums.events = number
        sums.errors = number if event_type == ERROR else 0
        sums.sessions = {row[0] for row in rows if row[0] is not None}
        sums.add_times(
            [duration for _, _, duration, _ in rows if duration is not None],
            sum(is_failed for _, _, duration, is_failed in rows if duration is not None),
        )
        users = {user for _, user, _, _ in rows if user}
        sums.users = {hash_of(user.encode()) for user in users}
        self.usage.of((start, source, event_type)).add(sums)
        self.usage.of((start, source, ALL_TYPES)).add(sums)
        if event_type == ERROR:
            for _, user, _, _ in rows:
                self.users.of((start, source, user or "")).errors += 1
        of_source = of_users[start, source]
        for session, user, _, _ in rows:
            of_source[user or ""].append(session)

    def _add_calls(self, calls: Iterable[tuple[Narrow, Facts]]) -> None:
        of_models: dict[Key, list[_Call]] = {}
        of_users: dict[Key, list[_Call]] = {}
        for event, facts in calls:
            _, moment, texts, type_at, payload = event
            user, duration, is_failed = facts
            sent = decoded(payload)
            usage = usage_of(payload if sent is None else sent)
            # No price changes within a second.
            cost = self._prices.cost_of(usage, _second(moment // 1_000_000))
            nanos, reported = cost.nanos, usage.reported_nanos
            best = reported if nanos is None else nanos
            self._add_call_row(event, facts, usage, cost, best)
            counts = (*usage.counts, usage.unsplit)
            sums = (1, nanos is None, *counts, nanos or 0, reported or 0, best or 0)
            call = sums, duration, is_failed
            source = _two_texts(texts[type_at:])[1]
            start = moment // QUARTER * QUARTER
            of_model = start, source, usage.provider or "", usage.model or ""
            of_models.setdefault(of_model, []).append(call)
            of_users.setdefault((start, source, user or ""), []).append(call)
        for key, group in of_models.items():
            _add_group(self.llm.of(key), group)
            self._note_queries(key[-1], group)
        for key, group in of_users.items():
            _add_group(self.users.of(key), group)

    def _note_queries(self, model: str, group: list[_Call]) -> None:
        queries = self.queries.setdefault(model, ModelQueries())
        failed = sum(call[2] for call in group)
        queries.failed += failed
        queries.ok += len(group) - failed
        queries.nanos += sum(call[0][-1] for call in group)

    def _add_call_row(
        self, event: Narrow, facts: Facts, usage: Usage, cost: Cost, best: int | None
    ) -> None:
        event_id, moment, texts, type_at, _ = event
        user, duration, is_failed = facts
        c1, c2, c3, c4, c5, c6 = usage.counts
        head = _CALL_HEAD.pack(
            *(len(CALL_COLUMNS), 8, moment, 16, event_id, 4, 0, 2, 1, 2, cost.nanos is None),
            *(8, c1, 8, c2, 8, c3, 8, c4, 8, c5, 8, c6, 8, usage.unsplit),
            *(1, usage.has_media, 1, usage.is_told, 1, is_failed),
        )
        # Few models with few outcomes: their columns are the same for many calls.
        told = (
            usage.provider,
            usage.model,
            cost.source,
            cost.unpriced,
            usage.fault,
            usage.reported_fault,
            usage.service,
        )
        columns = self._told_columns.get(told)
        if columns is None:
            columns = self._told_columns[told] = b"".join(map(self._column, told))
        self.call_rows.append(
            b"".join(
                (
                    head,
                    texts[:type_at],
                    texts[type_at + 4 + len(LLM_CALL) :],
                    self._columns.get(user) or self._column(user),
                    _integer(cost.nanos),
                    _integer(usage.reported_nanos),
                    _integer(best),
                    _integer(duration),
                    columns,
                )
            )
        )


@lru_cache(maxsize=1024)
def _second(number: int) -> datetime:
    return wire.from_micros(number * 1_000_000)


@lru_cache(maxsize=1024)
def _two_texts(columns: bytes) -> tuple[str, str]:
    end = 4 + _LENGTH.unpack_from(columns)[0]
    return columns[4:end].decode(), columns[end + 4 :].decode()


def _add_group(sums: Sums, group: list[_Call]) -> None:
    sums.add_calls([call[0] for call in group])
    sums.add_times(
        [duration for _, duration, _ in group if duration is not None],
        sum(is_failed for _, duration, is_failed in group if duration is not None),
    )


def _integer(number: int | None) -> bytes:
    return NULL if number is None else _INTEGER.pack(8, number)


def _review_row(event: Narrow, facts: Facts) -> bytes:
    event_id, moment, texts, type_at, payload = event
    user, duration, is_failed = facts
    head = _REVIEW_HEAD.pack(len(REVIEW_COLUMNS), 8, moment, 16, event_id, 1, is_failed)
    numbers = map(_integer, (duration, *findings_in(decoded(payload) or {})))
    named = NULL if user is None else column(user.encode())
    source = texts[type_at + 4 + len(REVIEW_END) :]
    return b"".join((head, texts[:type_at], source, named, *numbers))
