"""The seam of book-keeping: what is known of each epoch, and where that is kept."""

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol
from uuid import UUID

from logging_service.ports import Appended, Reserve, Tally


class Moved(NamedTuple):
    """Events that another queue accepted again, in the epoch `into`; those that it forgot too."""

    into: UUID
    events: int
    rolled_back: int = 0


class Account(NamedTuple):
    """What a queue accepted in an epoch, as it was noted last, and what became of it.

    `rolled_back` events were accepted too, but the queue's server came back without having counted
    them. `unsettled` of those in `settled` may still be counted as in flight by the queue. What is
    `held` or `damaged` is known of spool files.
    """

    epoch: UUID
    accepted: int
    rolled_back: int
    settled: Appended
    unsettled: int
    held: int = 0
    damaged: int = 0
    moves: tuple[Moved, ...] = ()

    @property
    def moved(self) -> int:
        """How many events went on into other queues, where they count as accepted again."""
        return sum(move.events + move.rolled_back for move in self.moves)

    @property
    def found(self) -> int:
        """How many events are known to be somewhere or to have come to an end."""
        return self.moved + sum(self.settled) + self.held + self.damaged

    @property
    def missing(self) -> int:
        """How many events were accepted and are nowhere, where no queue has the epoch now."""
        return max(0, self.accepted + self.rolled_back - self.found)


class Wreck(NamedTuple):
    """A spool file that was salvaged: its epoch, NO_EPOCH where it cannot be read, and its place.

    `successor` is the epoch of the file that is at this place now, NO_EPOCH: there is none.
    """

    epoch: UUID
    place: str
    successor: UUID


class Books(Protocol):
    """What was accepted and what became of it; raises BackendUnavailable or SchemaMismatch."""

    async def note(self, read: Callable[[], Awaitable[list[Tally]]]) -> None:
        """Keep the tallies that `read` returns; of several callers one reads after the other.

        The last tally is that of the present epoch; where it is lower than the one noted before,
        the difference was rolled back. Raises what `read` raises; it is given 0.7 seconds.
        """

    async def note_reserves(self, read: Callable[[], Awaitable[list[Reserve]]]) -> None:
        """Keep the reserves that `read` returns, as `note` does for tallies.

        Other epochs that were noted for the same places hold nothing any more.
        """

    async def credit(self, wreck: Wreck, events: int) -> int:
        """Count events of a salvaged file as moved into another queue, and return how many.

        They are `events` at the most, and no more than the file's epochs lack.
        """

    async def settle(self, lease_ids: Sequence[UUID]) -> None:
        """Add deliveries, whose leases can never come again, up in their epochs."""

    async def accounts(self) -> list[Account]:
        """Return the account of each epoch, all as of one moment."""
