"""Roll-ups made anew from the events, a UTC day at a time."""

from collections.abc import Callable, Sequence
from datetime import date
from typing import NamedTuple, Protocol


class Rebuilt(NamedTuple):
    """What a day, or several, came to."""

    events: int = 0
    calls_added: int = 0
    """Model calls that the ledger did not have."""
    rows: int = 0
    """Rows of the roll-ups as they are now."""
    differed: int = 0
    """Rows that were added, removed or changed."""


class RollUps(Protocol):
    """The roll-ups for the one who makes them anew; raises BackendUnavailable."""

    async def days(self, since: date | None, until: date | None) -> Sequence[date]:
        """Return the days from `since` to `until`, either included, that can be made anew.

        Those are the ones whose events are all still there; the newest comes first.
        """

    async def count(self, days: Sequence[date]) -> int:
        """Return how many events there are on these days."""

    async def rebuild(self, day: date, advance: Callable[[int], None], *, keep: bool) -> Rebuilt:
        """Make a day's roll-ups and facts anew, in one transaction, taken back unless `keep`.

        What is stored meanwhile is neither seen nor lost. `advance` is told of events as they
        are read.
        """
