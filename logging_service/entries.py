"""What a batch of stored events adds to the facts, the ledger of model calls and the roll-ups."""

import struct
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import repeat
from typing import Any, Final, NamedTuple

from logging_service import wire
from logging_service.facts import ERROR, LLM_CALL, REVIEW_END, facts_of, findings_in
from logging_service.model_calls import CALL_COLUMNS, ModelCalls, integer_column
from logging_service.pricing import Prices
from logging_service.rollups import ALL_TYPES, QUARTER, USAGE, USER, Sums, Totals
from logging_service.sketches import hash_of
from logging_service.usage import decoded
from logging_service.wire import NULL, column

FACT_COLUMNS: Final = (
    "timestamp",
    "session_id",
    "event_type",
    "source",
    "user_id",
    "duration_us",
    "is_failed",
)
REVIEW_COLUMNS: Final = (*CALL_COLUMNS[:7], "errors", "warnings", "infos")

# The number of columns, which stands before them.
_FACT_HEAD, _CALL_HEAD, _REVIEW_HEAD = (
    struct.pack(">h", len(columns)) for columns in (FACT_COLUMNS, CALL_COLUMNS, REVIEW_COLUMNS)
)
_FLAGS = column(b"\x00"), column(b"\x01")
_LENGTH = struct.Struct(">i")
_CALL, _REVIEW = column(LLM_CALL.encode()), column(REVIEW_END.encode())


class _Group(NamedTuple):
    """Events of one quarter hour, type and source: of each column an item an event."""

    start: int
    event_type: str
    source: str
    elements: Sequence[bytes]
    sessions: Sequence[int | None]
    """Their hashes."""
    texts: Sequence[bytes]
    """Session, type and source as columns of `COPY`."""
    payloads: Sequence[bytes]
    moments: Sequence[int]
    users: Sequence[str | None]
    durations: Sequence[int | None]
    failed: Sequence[bool]
    user_columns: Sequence[bytes]
    duration_columns: Sequence[bytes]
    failed_columns: Sequence[bytes]

    def first_columns(self, head: bytes, kind: bytes) -> Iterable[bytes]:
        """Return the columns that rows with the event's id begin with."""
        sessions = [texts[: -len(kind)] for texts in self.texts]
        source = kind[4 + len(self.event_type) :]
        keys = map(wire.key_columns, self.elements)
        own = self.user_columns, self.duration_columns, self.failed_columns
        return map(b"".join, zip(repeat(head), keys, *own, sessions, repeat(source), strict=False))


# By the columns of type and source, and the quarter hour.
_Groups = Iterable[tuple[bytes, _Group]]
# Of a quarter hour and source, by user: the hash of the session of each event.
_Users = defaultdict[tuple[int, str], defaultdict[str, list[int | None]]]


class _Columns(dict[str | None, bytes]):
    """Texts as columns of `COPY`, each made once."""

    def __missing__(self, text: str | None) -> bytes:
        made = self[text] = column(text.encode()) if text else NULL
        return made


class Entries:
    """The rows and sums of events; `…_rows` are those of a binary COPY."""

    def __init__(self, prices: Prices) -> None:
        self.fact_rows: list[bytes] = []
        self.review_rows: list[bytes] = []
        self.usage, self.users = Totals(USAGE), Totals(USER)
        self.calls = ModelCalls(prices, self.users)
        self._columns = _Columns()

    def add(self, elements: Sequence[bytes]) -> None:
        """Add events that passed `wire.check`; never raises, whatever their payloads are."""
        if not elements:
            return
        of_users: _Users = defaultdict(lambda: defaultdict(list))
        for kind, group in self._groups(elements):
            self._count(group, of_users)
            if kind.startswith(_CALL):
                first = group.first_columns(_CALL_HEAD, kind)
                told = group.payloads, group.moments, group.users, group.durations, group.failed
                self.calls.add(group.start, group.source, list(zip(first, *told, strict=True)))
            elif kind.startswith(_REVIEW):
                first = group.first_columns(_REVIEW_HEAD, kind)
                self.review_rows += map(_review_row, first, group.payloads)
        for place, of_source in of_users.items():
            for user, sessions in of_source.items():
                sums = self.users.of((*place, user))
                sums.events += len(sessions)
                sums.sessions.update(filter(None, sessions))

    def _groups(self, elements: Sequence[bytes]) -> _Groups:
        """Note the facts of events, and return these by what they are counted under."""
        moments, sessions, kinds, texts, payloads = zip(*map(wire.narrow, elements), strict=True)
        users, durations, failed = zip(*facts_of(payloads), strict=True)
        columns = (
            list(map(self._columns.__getitem__, users)),
            list(map(integer_column, durations)),
            list(map(_FLAGS.__getitem__, failed)),
        )
        times = map(wire.moment_column, elements)
        self.fact_rows += map(
            b"".join, zip(repeat(_FACT_HEAD), times, texts, *columns, strict=False)
        )
        hashes = [None if session is None else hash_of(session) for session in sessions]
        quarters = [moment // QUARTER for moment in moments]
        told = (hashes, texts, payloads, moments, users, durations, failed, *columns)
        rows: defaultdict[tuple[int, bytes], list[tuple[Any, ...]]] = defaultdict(list)
        keys = zip(quarters, kinds, strict=True)
        for key, row in zip(keys, zip(elements, *told, strict=True), strict=True):
            rows[key].append(row)
        for (quarter, kind), of_key in rows.items():
            of_group: Iterable[Any] = zip(*of_key, strict=True)
            yield kind, _Group(quarter * QUARTER, *_two_texts(kind), *of_group)

    def _count(self, group: _Group, of_users: _Users) -> None:
        start, event_type, source, users = group.start, group.event_type, group.source, group.users
        sums = Sums()
        sums.events = len(users)
        sums.errors = len(users) if event_type == ERROR else 0
        sums.sessions = {session for session in group.sessions if session is not None}
        sums.users = {hash_of(user.encode()) for user in set(users) if user}
        sums.add_outcomes(group.durations, group.failed)
        self.usage.of((start, source, event_type)).add(sums)
        self.usage.of((start, source, ALL_TYPES)).add(sums)
        if event_type == ERROR:
            for user in users:
                self.users.of((start, source, user or "")).errors += 1
        of_source = of_users[start, source]
        for user, session in zip(users, group.sessions, strict=True):
            of_source[user or ""].append(session)


def _review_row(first: bytes, payload: bytes) -> bytes:
    return b"".join((first, *map(integer_column, findings_in(decoded(payload) or {}))))


@lru_cache(maxsize=1024)
def _two_texts(columns: bytes) -> tuple[str, str]:
    end = 4 + _LENGTH.unpack_from(columns)[0]
    return columns[4:end].decode(), columns[end + 4 :].decode()
