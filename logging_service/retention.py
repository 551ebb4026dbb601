"""What is removed by age: whole days of events, types that are kept for less, old sums."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Final, NamedTuple, Protocol

from logging_service.event_ttls import EventTtls

# What a turn removes at the most: so many partitions, and so many batches of rows.
_MOST_STEPS: Final = 200


class Ttls(NamedTuple):
    """The days that events, the ledger of model calls and the sums of both are kept, 0: for good.

    The last two are never kept for less than the events.
    """

    events: EventTtls
    ledger: int
    sums: int


class Retention(Protocol):
    """What a store removes; raises BackendUnavailable, also where others hold what has to go."""

    async def today(self) -> date:
        """Return the day to count from, at most one behind the one that was returned before.

        So a clock that was set wrong does not end everything at once.
        """

    async def event_days(self, until: date) -> Sequence[date]:
        """Return the UTC days that are stored and over when `until` begins, the oldest first."""

    async def event_types(self, day: date) -> Sequence[str]:
        """Return the types of the events of a day."""

    async def drop_day(self, day: date, kept: Sequence[str]) -> int:
        """Remove a day's events, and return of how many partitions.

        Raises BackendUnavailable when it has events of types whose `variable_part` is in `kept`.
        """

    async def delete_events(self, day: date, event_type: str) -> int:
        """Remove some of a day's events of a type, the oldest; return how many, 0 for none left."""

    async def call_months(self, until: date) -> Sequence[date]:
        """Return the first days of months of the ledger that are over when `until` begins."""

    async def drop_month(self, month: date) -> int:
        """Remove a month of the ledger, and return of how many partitions."""

    async def forget_sums(self, before: date) -> int:
        """Remove some sums, and facts of reviews, of days before; return how many, 0 for none."""


@dataclass
class Removed:
    """What a turn removed; it is `complete` when nothing that is old enough was left."""

    today: date
    partitions: int = 0
    events: int = 0
    sums: int = 0
    complete: bool = True
    _steps: int = field(default=0, repr=False)

    def goes_on(self) -> bool:
        """Count a step; False when that would be one too many for this turn."""
        self._steps += 1
        self.complete = self._steps <= _MOST_STEPS
        return self.complete

    @property
    def anything(self) -> bool:
        """Whether something was removed."""
        return bool(self.partitions or self.events or self.sums)


async def remove_old(retention: Retention, ttls: Ttls) -> Removed:
    """Remove what is older than `ttls` allow, in steps of which each is whole, and say how much.

    A day is removed when it is over since so many days. Raises BackendUnavailable; what was
    removed until then stays so.
    """
    removed = Removed(await retention.today())
    if ttls.events.shortest:
        until = removed.today - timedelta(days=ttls.events.shortest)
        for day in await retention.event_days(until):
            await _remove_events(retention, ttls.events, day, removed)
    if ttls.ledger:
        for month in await retention.call_months(removed.today - timedelta(days=ttls.ledger)):
            if removed.goes_on():
                removed.partitions += await retention.drop_month(month)
    if ttls.sums:
        before = removed.today - timedelta(days=ttls.sums)
        while removed.goes_on() and (rows := await retention.forget_sums(before)):
            removed.sums += rows
    return removed


async def _remove_events(
    retention: Retention, ttls: EventTtls, day: date, removed: Removed
) -> None:
    types = await retention.event_types(day) if ttls.own else ()
    age = (removed.today - day).days - 1
    kept = [one for one in types if not _is_over(ttls.of(one), age)]
    if _is_over(ttls.days, age) and not kept:
        if removed.goes_on():
            names = [name for name, days in ttls.own.items() if not _is_over(days, age)]
            removed.partitions += await retention.drop_day(day, names)
        return
    for event_type in sorted(set(types) - set(kept)):
        while removed.goes_on() and (events := await retention.delete_events(day, event_type)):
            removed.events += events


def _is_over(ttl_days: int, age_days: int) -> bool:
    return 0 < ttl_days <= age_days
