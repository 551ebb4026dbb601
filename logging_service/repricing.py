"""What calls of models cost by today's prices, against what the ledger says."""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, date, datetime
from typing import Final, NamedTuple, Protocol
from uuid import UUID

from logging_service.pricing import Prices, Unpriced
from logging_service.usage import Usage

MAX_LINES: Final = 10_000
"""So many different days and models are told apart; the rest is added up as `OTHERS`, by day."""
OTHERS: Final = "(others)"


class Wanted(NamedTuple):
    """Which calls: those made in [since, until), of one model or, with None, of any."""

    since: datetime
    until: datetime
    model: str | None = None


class CallKey(NamedTuple):
    """What tells a call from all others, in the ledger's order."""

    timestamp: datetime
    event_id: UUID


class KeptCall(NamedTuple):
    """A call as all its entries in the ledger together have it."""

    key: CallKey
    entry: int
    """The number of the last entry."""
    usage: Usage
    cost_nanos: int | None


class Correction(NamedTuple):
    """The next entry of a call: its costs are differences, and so is `unpriced`, from -1 to 1."""

    key: CallKey
    entry: int
    unpriced: int
    cost_nanos: int
    best_nanos: int
    price_source: str | None
    unpriced_reason: Unpriced | None


class Change(NamedTuple):
    """A call that does not cost what the ledger says, and what puts that right."""

    call: KeptCall
    correction: Correction


class Step(NamedTuple):
    """So many calls were looked at, and these cost something else."""

    calls: int
    changes: Sequence[Change]


class LineKey(NamedTuple):
    """The UTC day and the model of a line; None: nobody told."""

    day: date
    provider: str | None
    model: str | None


class Line(NamedTuple):
    """What changes, in calls and in nano-dollars; an unpriced call has no cost to add."""

    calls: int = 0
    newly_priced: int = 0
    no_longer_priced: int = 0
    before_nanos: int = 0
    after_nanos: int = 0

    @property
    def difference_nanos(self) -> int:
        """How much more it costs than the ledger said."""
        return self.after_nanos - self.before_nanos


class CallLedger(Protocol):
    """The ledger of calls for the one who corrects it; raises BackendUnavailable."""

    async def count(self, wanted: Wanted) -> int:
        """Return how many calls of any model there are in the time wanted."""

    async def calls(self, wanted: Wanted, after: CallKey | None) -> Sequence[KeptCall]:
        """Return the next calls of any model behind `after`, a bounded number, in order."""

    async def record(self, corrections: Sequence[Correction]) -> None:
        """Append entries, and what they change to what is yet to be folded into the roll-ups."""

    def transaction(self) -> AbstractAsyncContextManager[None]:
        """Return what makes all that is done inside it happen, or nothing of it."""


async def reprice(
    ledger: CallLedger, wanted: Wanted, prices: Prices, *, record: bool
) -> AsyncIterator[Step]:
    """Yield, step by step, the calls that `prices` give another cost than the ledger.

    With `record` the corrections of a step are in the ledger when it is yielded.
    """
    after: CallKey | None = None
    while True:
        async with ledger.transaction():
            calls = await ledger.calls(wanted, after)
            changes = [
                Change(call, correction)
                for call in calls
                if wanted.model in {None, call.usage.model}
                and (correction := correction_of(call, prices))
            ]
            if record and changes:
                await ledger.record([change.correction for change in changes])
        if not calls:
            return
        yield Step(len(calls), changes)
        after = calls[-1].key


def correction_of(call: KeptCall, prices: Prices) -> Correction | None:
    """Return what `prices` change about a call, None where it costs what the ledger says.

    A price that is the same from another source, or missing for another reason, changes nothing.
    """
    cost = prices.cost_of(call.usage, call.key.timestamp)
    if cost.nanos == call.cost_nanos:
        return None
    reported = call.usage.reported_nanos
    return Correction(
        call.key,
        call.entry + 1,
        (cost.nanos is None) - (call.cost_nanos is None),
        (cost.nanos or 0) - (call.cost_nanos or 0),
        _first_known(cost.nanos, reported) - _first_known(call.cost_nanos, reported),
        cost.source,
        cost.unpriced,
    )


def _first_known(*nanos: int | None) -> int:
    return next((cost for cost in nanos if cost is not None), 0)


class Difference:
    """Changes added up, by day and model."""

    def __init__(self) -> None:
        self.lines: dict[LineKey, Line] = {}

    def add(self, changes: Iterable[Change]) -> None:
        """Count changes."""
        for change in changes:
            self._add(change)

    def _add(self, change: Change) -> None:
        usage, correction = change.call.usage, change.correction
        key = LineKey(correction.key.timestamp.astimezone(UTC).date(), usage.provider, usage.model)
        if key not in self.lines and len(self.lines) >= MAX_LINES:
            key = LineKey(key.day, None, OTHERS)
        before = change.call.cost_nanos or 0
        after = before + correction.cost_nanos
        priced, unpriced = int(correction.unpriced < 0), int(correction.unpriced > 0)
        line = Line(1, priced, unpriced, before, after)
        self.lines[key] = _sum([self.lines.get(key, Line()), line])

    @property
    def total(self) -> Line:
        """All lines together."""
        return _sum(self.lines.values())


def _sum(lines: Iterable[Line]) -> Line:
    return Line(*map(sum, zip(Line(), *lines, strict=True)))
