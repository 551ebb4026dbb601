"""The two seams: where events wait and where they stay."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol
from uuid import UUID

import msgspec

from logging_service.audit import Actor

Ack = Literal["queued", "spooled", "in_memory"]
NO_EPOCH = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Delivery:
    """Events under a lease: this consumer's until it is done, gives back or runs out of time."""

    lease_id: UUID
    events: list[bytes]
    attempts: int
    epoch: UUID = NO_EPOCH


class Move(NamedTuple):
    """How many of the events that a queue accepted came from an epoch of another queue."""

    origin: UUID
    events: int


class Tally(NamedTuple):
    """How many events a queue has accepted in an epoch, which ends when somebody empties it.

    `moves` has those among them that another queue had accepted before, in the order of origins.
    """

    epoch: UUID
    accepted: int
    moves: tuple[Move, ...] = ()


class Reserve(NamedTuple):
    """What a spool file has accepted in an epoch, and how much of it is there, at one moment.

    `held` events wait or are leased. `place` is the same text for the same file on every process
    of a host; with NO_EPOCH there is no file.
    """

    epoch: UUID
    accepted: int
    held: int
    damaged: int
    place: str


class QueueStatus(msgspec.Struct, frozen=True):
    """How much waits, how old it is and how fast it leaves; ages in seconds, rates a second.

    `spooled` events wait on this host's disk for Redis to come back; `damaged` ones were set
    aside because their bytes are not those that were acknowledged. What was accepted before
    `held_since` is held no longer; None when nothing is held, or that is not known.
    """

    backend: Literal["redis", "spool", "memory"]
    size: int
    in_flight: int
    oldest_age_seconds: float | None
    stored_per_second: float
    spooled: int = 0
    damaged: int = 0
    held_since: datetime | None = None


class EventQueue(Protocol):
    """Events that wait, as bytes made by `wire.encode`, in the order in which they came."""

    async def put(self, events: Sequence[bytes]) -> Ack:
        """Hold `events` durably, all or none, and say how.

        Raises BackendUnavailable when it is not known that the queue holds them, QueueFull when
        it holds as many as it may.
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

    async def tallies(self) -> list[Tally]:
        """Return what was accepted in each epoch that this process has seen, the present last.

        An epoch that is over shows what was acknowledged before it ended; without a present one
        the list ends with NO_EPOCH. Where less is counted in the present one than was acknowledged
        it is there twice, as acknowledged and as counted. Raises BackendUnavailable when the
        present one cannot be read.
        """

    async def reserves(self) -> list[Reserve]:
        """Return what spool files accepted, of each place its present epoch last.

        Where a file is in other hands it is left to them, until it rests. Raises
        BackendUnavailable when the file that is in this process's own hands cannot be read.
        """

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


class Outcome(Appended):
    """What became of one delivery; `conflicts` of its dead letters are their senders' own fault.

    They say nothing about the release or the schema. `queries` has the model calls among what was
    stored, by model ('' where none was told), `named` some of the dead letters.
    """

    conflicts: int = 0
    named: Sequence["NamedLetter"] = ()
    queries: Mapping[str, "ModelQueries"] = MappingProxyType({})


class NamedLetter(NamedTuple):
    """Which event a dead letter is, for who looks for it; None where its bytes do not tell."""

    reason: str
    event_id: UUID | None
    request_id: str | None


class ModelQueries:
    """How many calls of a model succeeded and failed, and their cost: computed, else reported."""

    __slots__ = ("failed", "nanos", "ok")

    def __init__(self) -> None:
        self.ok = self.failed = self.nanos = 0


class EventKey(NamedTuple):
    """What makes an event the same event: its time and its id."""

    timestamp: datetime
    event_id: UUID


class Event(msgspec.Struct, frozen=True):
    """A stored event; times are aware, `payload` is the JSON text as it was sent.

    `redactions` says how often each rule replaced something in it; absent where none did.
    """

    event_id: UUID
    timestamp: datetime
    received_at: datetime
    event_type: str
    session_id: str | None
    source: str
    trace_id: str | None
    request_id: str | None
    payload: msgspec.Raw
    redactions: dict[str, int] | msgspec.UnsetType = msgspec.UNSET


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

    `received` tells when the events were received, in microseconds since 2000, in no order. With
    a `place` it is only the one event that stands there in a delivery under trial.
    """

    delivery: Delivery
    events: list[bytes]
    received: list[int] = field(default_factory=list)
    expired: int = 0
    dead: list[DeadLetter] = field(default_factory=list)
    place: int | None = None


class Trial(NamedTuple):
    """The event of a delivery that comes next, from 0, and how many runs have begun it."""

    place: int
    tries: int


class EventStore(Protocol):
    """Events that stay, each once.

    A delivery that comes again is begun before it is touched. One whose consumers died is stored
    event by event: `begin_trial` before an event is touched, `append` with its place, `end_trials`
    behind the last.
    """

    async def append(
        self,
        batch: Sorted,
        most_dead: int | None = None,
        confirm: Callable[[], None] | None = None,
    ) -> Outcome:
        """Store a delivery in one transaction; a lease that was committed before counts nothing.

        A batch with a place is counted with its delivery's trials, once. Raises TooManyDead, with
        nothing stored, where more than `most_dead` events cannot be, conflicts aside;
        DeliveryTooWide for days too many for one transaction;
        BackendUnavailable when it is not known whether the transaction was committed,
        SchemaMismatch when the schema does not fit this release; and what `confirm` raises, with
        nothing stored: it is called last before the commit.
        """

    async def begin_delivery(self, delivery: Delivery, run: UUID) -> int:
        """Commit that `run` begins the delivery, and count the runs that began and did not end.

        A run counts once, however often it begins; 0 when the lease was committed before. The
        commit of the whole delivery ends them all. Raises like `append`.
        """

    async def release_delivery(self, delivery: Delivery, run: UUID) -> None:
        """Take back what `begin_delivery` counted: `run` ended the delivery in order."""

    async def begin_trial(self, delivery: Delivery, run: UUID) -> Trial | None:
        """Commit that `run` tries the next event; None when the lease was committed before.

        A run counts once for an event, however often it begins. Raises like `append`.
        """

    async def release_trial(self, delivery: Delivery, run: UUID) -> None:
        """Take back what `begin_trial` counted: `run` lives, whatever ended its trial."""

    async def end_trials(self, delivery: Delivery) -> None:
        """Record a lease whose events are all settled, and forget its trials; in one transaction.

        Raises like `append`; harmless when another consumer was first.
        """

    async def fold(self) -> None:
        """Tidy what the last batches added to the analytics: answers stay the same.

        Raises like `append`.
        """

    async def prepare(self) -> None:
        """Make room for the days ahead and let go of old book-keeping; raises like `append`."""

    async def dead_letters(self) -> int:
        """Count the dead letters."""

    async def check(self) -> None:
        """Raise BackendUnavailable or SchemaMismatch when the store cannot be used."""

    async def warnings(self) -> list[str]:
        """Return what of the store works and is unsafe; raises like `append`."""


class KeptLetter(NamedTuple):
    """A dead letter as it lies there; `replayed_at` until it is forgotten or comes back."""

    id: int
    event: bytes
    reason: str
    detail: str
    sqlstate: str | None
    attempts: int
    first_seen: datetime
    last_seen: datetime
    replayed_at: datetime | None


class LetterKey(NamedTuple):
    """Which dead letter, how often its event has failed and how many bytes it has."""

    id: int
    attempts: int
    size: int


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Which dead letters are wanted: every condition holds; `ids` None: whatever their ids.

    Those that are `replayed` are on their way again; they are wanted or the others are.
    """

    ids: tuple[int, ...] | None = None
    reason: str | None = None
    event_type: str | None = None
    replayed: bool = False


class DeadLetters(Protocol):
    """Events that could not be stored; raises BackendUnavailable or SchemaMismatch."""

    async def keys(
        self, wanted: LetterFilter, limit: int, *, beyond: int = 0, newest_first: bool = False
    ) -> list[LetterKey]:
        """Return up to `limit` keys in the order of their ids, which is that of their coming.

        They lie beyond the id `beyond`: above it or, newest first, below it (0: nowhere yet).
        """

    async def count(self, wanted: LetterFilter, beyond: int = 0) -> int:
        """Count those above the id `beyond`."""

    async def letters(self, ids: Sequence[int]) -> dict[int, KeptLetter]:
        """Return those of these letters that are there, by id."""

    async def mark_replayed(self, keys: Sequence[LetterKey], actor: Actor) -> None:
        """Say that the events are on their way again; one that failed since stays as it is.

        With a note for the audit of who did that.
        """

    async def drop(self, ids: Sequence[int], actor: Actor) -> int:
        """Forget letters for good, with a note for the audit, and return how many there were."""


class EventReader(Protocol):
    """The stored events, read; every method raises BackendUnavailable or SchemaMismatch."""

    async def page(self, wanted: Filter, after: EventKey | None, limit: int, skip: int = 0) -> Page:
        """Return events behind `after`, `limit` at the most, leaving out the first `skip`.

        A filter that reads rows is given two seconds, and then the page is `partial`.
        """

    async def total(self, wanted: Filter) -> Total:
        """Count matching events: exactly up to 10,000, above that as an estimate."""

    async def find(
        self, event_id: UUID, timestamp: datetime | None, source: str | None = None
    ) -> Event | None:
        """Return one event, by one look where its time is known or in its id.

        With a `source` it is one of that project.
        """

    async def event_types(self, source: str | None = None) -> list[EventTypeCount]:
        """Return every stored event type, most frequent first; with a `source` of that project."""

    async def stored(self, keys: Sequence[EventKey]) -> dict[EventKey, str]:
        """Return those of `keys` that are stored, each with the `wire.digest` of its content."""

    async def check(self) -> None:
        """Raise BackendUnavailable, SchemaMismatch or SchemaTooNew when nothing can be read."""

    async def warnings(self) -> list[str]:
        """Return what of the store works and is unsafe; raises like `check`."""
