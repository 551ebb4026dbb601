"""What a spool's file holds: rows in the order of their numbers, leases on them, and a ledger.

What waits begins at the ledger's head, an event of a row, and ends before its next row; a lease is
the span of events that the head passed over. So each row between the first that is leased and the
next is there: one that is missing is damage, not something that was taken. Each method is one step
of a transaction that the caller begins and ends; what is not as it was written raises FileDamaged.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar
from uuid import UUID, uuid4
from zlib import crc32

import aiosql
import apsw
import structlog
from aiosql.adapters.generic import GenericAdapter

from logging_service.ports import Delivery
from logging_service.spool_rows import (
    MAGIC,
    MAX_EVENTS,
    Events,
    FileDamaged,
    ForeignFile,
    RowDamaged,
    mend,
    pieces,
    seal,
    unseal,
)

_sql: Any = aiosql.from_path(Path(__file__).parent / "sql" / "spool.sql", GenericAdapter)
_log = structlog.get_logger()

# One delivery fits a consumer's memory, however large its events are.
_TAKE_BYTES = 16 * 1024 * 1024
_SLOT_SECONDS = 10
_RATE_SLOTS = 3
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Clock:
    """Time that only goes on, also in sleep, and the start of the machine that it counts from.

    Leases run by it: turning the wall clock neither ends nor prolongs them.
    """

    def __init__(self) -> None:
        self.boot = _BOOT_ID.read_text(encoding="ascii").strip()

    def now_ms(self) -> int:
        """Return milliseconds since the start of the machine."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000

    def slot(self) -> int:
        """Return the present ten seconds."""
        return self.now_ms() // (_SLOT_SECONDS * 1000)


class Ledger(NamedTuple):
    """What was accepted, how much waits, and from which event of which row on."""

    epoch: str
    accepted: int
    next_row: int
    head_row: int
    head_event: int
    waiting: int
    damaged: int


class Lease(NamedTuple):
    """A span of events under work, its last event not included, until `deadline_ms` of a boot."""

    id: str
    boot: str
    deadline_ms: int
    attempts: int
    first_row: int
    first_event: int
    last_row: int
    last_event: int
    events: int


class Holding(NamedTuple):
    """What was accepted in an epoch, how much of it is there, and how much is damaged."""

    epoch: UUID
    accepted: int
    held: int
    damaged: int


class Counts(NamedTuple):
    """How much waits, is leased and is damaged, and the oldest event of the first two."""

    waiting: int
    in_flight: int
    damaged: int
    oldest: bytes | None
    finished_per_second: float


class Book:
    """The queue in one open connection."""

    def __init__(self, connection: apsw.Connection, lease_ms: int, clock: Clock) -> None:
        self._connection = connection
        self._lease_ms = lease_ms
        self._clock = clock
        self._is_checked = False

    @classmethod
    def opened(cls, connection: apsw.Connection, lease_ms: int, clock: Clock) -> Self:
        """Return the book in `connection`, a new one where there is nothing yet."""
        found, expected = list(_sql.tables(connection)), _expected_tables()
        if not found and _sql.pages(connection)[1] <= 1:
            with connection:
                _sql.create_tables(connection)
                _write_ledger(connection, Ledger(str(uuid4()), 0, 1, 1, 0, 0, 0))
        elif found != expected:
            if found and not {name for name, _ in found} & {name for name, _ in expected}:
                raise ForeignFile("it is a database of another program")
            raise FileDamaged("its list of tables is not what was written")
        return cls(connection, lease_ms, clock)

    def check(self) -> None:
        """Read the structure of the whole file, once: a few seconds for a GB that is in memory."""
        if self._is_checked:
            return
        if (fault := _sql.faults(self._connection)) != "ok":
            raise FileDamaged(str(fault))
        # For SQLite, an entry more or less in a page is sound.
        spans = self._spans()
        found = [_sql.count(self._connection, first=span[0], last=span[-1]) for span in spans]
        if found != list(map(len, spans)) or sum(found) != _sql.count_all(self._connection):
            raise FileDamaged("there are not the rows that there should be")
        self._is_checked = True

    def bytes_in_use(self) -> int:
        """Return the size of the pages that hold something."""
        size, pages, free = _sql.pages(self._connection)
        return int(size * (pages - free))

    def ledger(self) -> Ledger:
        """Return what was accepted and where it is."""
        rows = [_checked(Ledger, row) for row in _sql.ledger(self._connection)]
        if len(rows) != 1:
            raise FileDamaged("the ledger is gone")
        return rows[0]

    def warnings(self) -> list[str]:
        """Say what is damaged; it is said no more once the table `damaged` is emptied."""
        rows, events = _sql.damaged(self._connection)
        return [f"{rows} damaged rows are set aside, {events} events are lost"] if rows else []

    def touch(self) -> None:
        """Write what is there already: whether this can be committed tells if anything can."""
        _write_ledger(self._connection, self.ledger())

    def put(self, events: Sequence[bytes]) -> None:
        """Add events behind all others."""
        ledger = self.ledger()
        next_row = ledger.next_row
        for piece in pieces(events):
            _sql.add_batch(self._connection, id=next_row, sealed=seal(next_row, piece))
            next_row += 1
        accepted, waiting = ledger.accepted + len(events), ledger.waiting + len(events)
        counted = ledger._replace(accepted=accepted, waiting=waiting, next_row=next_row)
        _write_ledger(self._connection, counted)

    def has_work(self) -> bool:
        """Whether `take` would find something."""
        ledger = self.ledger()
        return ledger.head_row < ledger.next_row or any(map(self._is_over, self._leases()))

    def take(self, limit: int) -> Delivery | None:
        """Lease the oldest events, those of an expired lease first; None when there are none."""
        while True:
            with self._mending():
                for lease in filter(self._is_over, self._leases()):
                    if events := self._events(lease):
                        return self._again(lease, events)
                    self.done(lease.id)
                ledger = self.ledger()
                if ledger.head_row >= ledger.next_row:
                    return None
                if delivery := self._lease(ledger, limit):
                    return delivery

    def is_empty(self) -> bool:
        """Whether nothing waits and nothing is leased."""
        return not self.ledger().waiting and not self._leases()

    def done(self, lease_id: str) -> None:
        """Forget a lease's events; nothing happens when it is gone."""
        leases = self._leases()
        ledger = self.ledger()
        lease = next((lease for lease in leases if lease.id == lease_id), None)
        if lease is None:
            return
        others = [other for other in leases if other.id != lease_id]
        self._remove_rows(lease, {ledger.head_row, *(row for o in others for row in _edges(o))})
        _sql.remove_lease(self._connection, id=lease_id)
        if lease.events:
            slot = self._clock.slot()
            _sql.count_finished(self._connection, slot=slot, events=lease.events)
            _sql.forget_finished(self._connection, first=slot - _RATE_SLOTS, last=slot)

    def postpone(self, lease_id: str, delay_ms: int | None = None) -> None:
        """Move a lease's deadline to `delay_ms` from now; None: to a whole lease's time."""
        for lease in self._leases():
            if lease.id == lease_id:
                self._write_lease(lease, self._lease_ms if delay_ms is None else delay_ms)

    def free_leases(self) -> None:
        """End every lease: those who held them are gone."""
        for lease in self._leases():
            self._write_lease(lease, 0)

    def counts(self) -> Counts:
        """Count what is there; the rate is that of the last full half minute."""
        ledger, leases = self.ledger(), self._leases()
        slot = self._clock.slot()
        finished = _sql.finished(self._connection, first=slot - _RATE_SLOTS, last=slot - 1)
        return Counts(
            ledger.waiting,
            sum(lease.events for lease in leases),
            ledger.damaged,
            self._oldest(ledger, leases),
            round(finished / (_RATE_SLOTS * _SLOT_SECONDS), 1),
        )

    def holding(self) -> Holding:
        """Return what was accepted and what is left of it, by the ledger and the leases."""
        ledger = self.ledger()
        held = ledger.waiting + sum(lease.events for lease in self._leases())
        return Holding(UUID(ledger.epoch), ledger.accepted, held, ledger.damaged)

    def _is_over(self, lease: Lease) -> bool:
        return lease.boot != self._clock.boot or lease.deadline_ms <= self._clock.now_ms()

    def _leases(self) -> list[Lease]:
        return [_checked(Lease, row) for row in _sql.leases(self._connection)]

    def _spans(self) -> list[range]:
        """Return the numbers of the rows that have to be there."""
        ledger = self.ledger()
        spans: list[range] = []
        for first, last in [*map(_edges, self._leases()), (ledger.head_row, ledger.next_row - 1)]:
            # Neighbours may share a row.
            start = max(first, spans[-1].stop) if spans else first
            if start <= last:
                spans.append(range(start, last + 1))
        return spans

    def _rows(self, first: int, last: int) -> Iterator[tuple[int, Events]]:
        """Yield the rows from `first` to `last`, each of which has to be there."""
        expected = first
        for row, sealed in _sql.batches(self._connection, first=first, last=last):
            if row != expected:
                break
            yield row, unseal(row, sealed)
            expected += 1
        if expected <= last:
            raise FileDamaged(f"row {expected} is missing")

    def _events(self, lease: Lease) -> list[bytes]:
        found: list[bytes] = []
        for row, events in self._rows(lease.first_row, lease.last_row):
            start = lease.first_event if row == lease.first_row else 0
            end = lease.last_event if row == lease.last_row else len(events)
            found += [event for event in events[start:end] if event is not None]
        return found

    def _again(self, lease: Lease, events: list[bytes]) -> Delivery:
        again = lease._replace(attempts=lease.attempts + 1)
        self._write_lease(again, self._lease_ms)
        return Delivery(UUID(lease.id), events, again.attempts, UUID(self.ledger().epoch))

    def _lease(self, ledger: Ledger, limit: int) -> Delivery | None:
        load = _Load(limit)
        row, place, ends = ledger.head_row, ledger.head_event, ledger.head_event
        for row, events in self._rows(ledger.head_row, ledger.next_row - 1):
            place = ledger.head_event if row == ledger.head_row else 0
            place += load.take_from(events[place:])
            ends = len(events)
            if load.is_full:
                break
        taken, lease_id = load.events, uuid4()
        span = (ledger.head_row, ledger.head_event, row, place)
        lease = Lease(str(lease_id), "", 0, 1, *span, len(taken))
        self._write_lease(lease, self._lease_ms)
        head_row, head_event = (row, place) if place < ends else (row + 1, 0)
        waiting = ledger.waiting - len(taken)
        moved = ledger._replace(head_row=head_row, head_event=head_event, waiting=waiting)
        _write_ledger(self._connection, moved)
        if not taken:
            self.done(lease.id)
            return None
        return Delivery(lease_id, taken, 1, UUID(ledger.epoch))

    def _write_lease(self, lease: Lease, for_ms: int) -> None:
        boot, deadline = self._clock.boot, self._clock.now_ms() + for_ms
        held = lease._replace(boot=boot, deadline_ms=deadline)
        _sql.write_lease(self._connection, **held._asdict(), checksum=_checksum(held))

    def _remove_rows(self, lease: Lease, shared: set[int]) -> None:
        """Remove the rows of a lease; one at its edge may hold events of another, or of none."""
        first = lease.first_row + (lease.first_row in shared)
        last = lease.last_row - (lease.last_row in shared)
        if first > last:
            return
        removed = sum(1 for _ in _sql.remove_batches(self._connection, first=first, last=last))
        if removed != last - first + 1:
            raise FileDamaged(f"rows between {first} and {last} are missing")

    def _oldest(self, ledger: Ledger, leases: list[Lease]) -> bytes | None:
        """Return the first event that is there, None also when its row is damaged."""
        starts = [(lease.first_row, lease.first_event) for lease in leases]
        row, place = min(starts, default=(ledger.head_row, ledger.head_event))
        if row >= ledger.next_row:
            return None
        with suppress(RowDamaged):
            for _, events in self._rows(row, row):
                return next(filter(None, events[place:]), None)
        return None

    @contextmanager
    def _mending(self) -> Iterator[None]:
        try:
            yield
        except RowDamaged as damage:
            self._mend(damage.row)

    def _mend(self, row: int) -> None:
        """Keep of a damaged row the events that are whole, count the others, keep its bytes."""
        # In a file whose structure is damaged, writing to one row can destroy another.
        self.check()
        for _, sealed in _sql.batches(self._connection, first=row, last=row):
            events, lost = mend(row, sealed)
            now = datetime.now(UTC).isoformat(timespec="seconds")
            counted = self._count_lost(row, lost)
            # Without what makes it a row: nobody is to find the same events once more.
            kept = sealed.removeprefix(MAGIC)
            _sql.keep_damaged(self._connection, batch=row, events=counted, found_at=now, bytes=kept)
            _sql.replace_batch(self._connection, id=row, sealed=seal(row, events))
            _log.error("spool_row_damaged", row=row, events=counted)

    def _count_lost(self, row: int, lost: list[int]) -> int:
        """Take lost events of a row out of what waits and what is leased; return their number."""
        counted = 0
        for lease in self._leases():
            if lease.first_row <= row <= lease.last_row:
                start = lease.first_event if row == lease.first_row else 0
                end = lease.last_event if row == lease.last_row else MAX_EVENTS
                gone = sum(start <= place < end for place in lost)
                left = lease._replace(events=lease.events - gone)
                _sql.write_lease(self._connection, **left._asdict(), checksum=_checksum(left))
                counted += gone
        ledger = self.ledger()
        waited = sum((row, place) >= (ledger.head_row, ledger.head_event) for place in lost)
        counted += waited
        damaged = ledger.damaged + counted
        left_over = ledger._replace(waiting=ledger.waiting - waited, damaged=damaged)
        _write_ledger(self._connection, left_over)
        return counted


class _Load:
    """What one delivery takes on."""

    def __init__(self, limit: int) -> None:
        self.events: list[bytes] = []
        self._limit = limit
        self._size = 0

    @property
    def is_full(self) -> bool:
        return len(self.events) >= self._limit or self._size >= _TAKE_BYTES

    def take_from(self, events: Events) -> int:
        """Take on events until that is enough, and return how many places that were."""
        for place, event in enumerate(events):
            if self.is_full:
                return place
            if event is not None:
                self.events.append(event)
                self._size += len(event)
        return len(events)


def _edges(lease: Lease) -> tuple[int, int]:
    return lease.first_row, lease.last_row


_Entry = TypeVar("_Entry", Ledger, Lease)


def _checksum(entry: tuple[object, ...]) -> int:
    return crc32(repr(tuple(entry)).encode())


def _checked(kind: type[_Entry], row: tuple[Any, ...]) -> _Entry:
    *fields, checksum = row
    if _checksum(tuple(fields)) != checksum:
        raise FileDamaged(f"an entry of the {kind.__name__.lower()} table is not what was written")
    return kind(*fields)


def _write_ledger(connection: apsw.Connection, ledger: Ledger) -> None:
    _sql.write_ledger(connection, **ledger._asdict(), checksum=_checksum(ledger))


@cache
def _expected_tables() -> list[tuple[str, str]]:
    with closing(apsw.Connection(":memory:")) as connection:
        _sql.create_tables(connection)
        return list(_sql.tables(connection))
