"""The two seams: where events wait and where they stay."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, NamedTuple, Protocol
from uuid import UUID

import msgspec

Ack = Literal["queued", "spooled", "in_memory"]


@dataclass(frozen=True, slots=True)
class Delivery:
    """Events under a lease: this consumer's until it is done, gives back or runs out of time."""

    lease_id: UUID
    events: list[bytes]
    attempts: int


class QueueStatus(msgspec.Struct, frozen=True):
    """How much waits, how old it is and how fast it leaves; ages in seconds, rates a second."""

    backend: Literal["redis", "spool", "memory"]
    size: int
    in_flight: int
    oldest_age_seconds: float | None
    stored_per_second: float


class EventQueue(Protocol):
    """Events that wait, as bytes made by `wire.encode`, in the order in which they came."""

    async def put(self, events: Sequence[bytes]) -> Ack:
        """Hold `events` durably, all or none, and say how.

        Raises BackendUnavailable when it is not known that the queue holds them.
        """

    async def take(self, limit: int, wait_seconds: float) -> Delivery | None:
        """Lease up to `limit` of the oldest events, an expired lease first; None when idle.

        Waits up to `wait_seconds` for the first event. Leases run by the queue's own clock.
        """

    async def extend(self, delivery: Delivery) -> None:
        """Begin the lease's time anew; nothing happens when it is gone."""

    async def done(self, delivery: Delivery) -> None:
        """Forget the events of `delivery`; harmless when repeated."""

    async def give_back(self, delivery: Delivery, delay_seconds: float) -> None:
        """Offer the events again after `delay_seconds`, with one attempt more."""

    async def status(self) -> QueueStatus:
        """Count what waits and what is leased."""

    async def warnings(self) -> list[str]:
        """Say what in the queue's configuration can lose events, a sentence each.

        Raises BackendUnavailable when the queue cannot take events.
        """


class Appended(NamedTuple):
    """What became of a delivery's events; the four add up to their number."""

    stored: int
    duplicates: int
    dead_lettered: int
    expired: int


class EventKey(NamedTuple):
    """What makes an event the same event: its time and its id."""

    timestamp: datetime
    event_id: UUID


class Event(msgspec.Struct, frozen=True):
    """A stored event; times are aware, `payload` is the JSON text as it was sent."""

    event_id: UUID
    timestamp: datetime
    received_at: datetime
    event_type: str
    session_id: str | None
    source: str
    trace_id: str | None
    request_id: str | None
    payload: msgspec.Raw


class PayloadMatch(NamedTuple):
    """A dotted `path` into the payload whose value, as text, has to equal `value` or not."""

    path: str
    value: str
    negated: bool


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events are wanted: every condition holds; `event_types` are alternatives.

    `start` is included, `end` is not; `text` is looked for in the payload, whatever its case.
    """

    event_types: tuple[str, ...] = ()
    session_id: str | None = None
    source: str | None = None
    trace_id: str | None = None
    request_id: str | None = None
    start: datetime | None = None
    end: datetime | None = None
    payload: tuple[PayloadMatch, ...] = ()
    text: str | None = None
    newest_first: bool = True

    @property
    def reads_rows(self) -> bool:
        """Whether no index answers this, so that rows have to be read."""
        equal = (self.source, self.trace_id, self.request_id)
        return bool(self.payload or self.text) or any(value is not None for value in equal)


@dataclass(frozen=True, slots=True)
class Page:
    """Events in the order asked for, and where the next page begins (None: nowhere)."""

    events: list[Event]
    after: EventKey | None
    partial: bool = False


class Total(NamedTuple):
    """How many events match, exactly or by the planner's estimate."""

    events: int
    is_estimate: bool


class EventTypeCount(msgspec.Struct, frozen=True):
    """How often an event type is stored, and when first and last."""

    event_type: str
    count: int
    first: datetime
    last: datetime


class DeadLetter(NamedTuple):
    """An event that cannot be stored, as it came, and why."""

    event: bytes
    reason: str
    detail: str
    attempts: int
    sqlstate: str | None = None


@dataclass(frozen=True, slots=True)
class Sorted:
    """A delivery after decoding: what to store, what is too old, what is beyond repair.

    `received` tells when the events were received, in microseconds since 2000, in no order.
    """

    delivery: Delivery
    events: list[bytes]
    received: list[int] = field(default_factory=list)
    expired: int = 0
    dead: list[DeadLetter] = field(default_factory=list)


class EventStore(Protocol):
    """Events that stay, each once."""

    async def append(self, batch: Sorted) -> Appended:
        """Store a delivery in one transaction; a lease that was committed before counts nothing.

        Raises BackendUnavailable when it is not known whether the transaction was committed,
        SchemaMismatch when the schema does not fit this release.
        """

    async def prepare(self) -> None:
        """Make room for the days ahead and let go of old book-keeping; raises like `append`."""

    async def dead_letters(self) -> int:
        """Count the dead letters."""

    async def check(self) -> None:
        """Raise BackendUnavailable or SchemaMismatch when the store cannot be used."""


class EventReader(Protocol):
    """The stored events, read; every method raises BackendUnavailable or SchemaMismatch."""

    async def page(self, wanted: Filter, after: EventKey | None, limit: int, skip: int = 0) -> Page:
        """Return events behind `after`, `limit` at the most, leaving out the first `skip`.

        A filter that reads rows is given two seconds, and then the page is `partial`.
        """

    async def total(self, wanted: Filter) -> Total:
        """Count matching events: exactly up to 10,000, above that as the planner estimates."""

    async def find(self, event_id: UUID, timestamp: datetime | None) -> Event | None:
        """Return one event, by one look where its time is known or in its id."""

    async def event_types(self) -> list[EventTypeCount]:
        """Return every stored event type, most frequent first."""

    async def stored(self, keys: Sequence[EventKey]) -> dict[EventKey, str]:
        """Return those of `keys` that are stored, each with the `wire.digest` of its content."""

    async def check(self) -> None:
        """Raise BackendUnavailable, SchemaMismatch or SchemaTooNew when nothing can be read."""
