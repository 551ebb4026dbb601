"""The balance: accepted = stored + duplicates + dead-lettered + expired + waiting + in flight.

An epoch begins when somebody empties the queue. The present one is judged together with what the
queue says. Of every other one its account alone tells the difference: of one that is over nothing
waits any more, of a spool file's as much as was noted. What went on from one queue into another
was accepted by both, and counts as accepted by the last.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple
from uuid import UUID

import msgspec

from logging_service.books import Account, Moved
from logging_service.ports import NO_EPOCH, Appended, QueueStatus, Tally


class Balance(msgspec.Struct, frozen=True, kw_only=True):
    """What was accepted and what became of it, in events; null where the queue does not answer.

    `accepted` + `reappeared` = `stored` + `duplicates` + `dead_lettered` + `expired` + `waiting` +
    `in_flight` + `damaged` + `removed_outside`. `balanced`: nothing was removed, rolled back or
    reappeared. `exact`: nothing moved while the terms were read; else a difference is told only
    where movement cannot explain it.
    """

    accepted: int
    stored: int
    duplicates: int
    dead_lettered: int
    expired: int
    waiting: int | None = None
    in_flight: int | None = None
    damaged: int | None = None
    removed_outside: int | None = None
    reappeared: int | None = None
    rolled_back: int
    balanced: bool | None = None
    exact: bool | None = None
    queue: Literal["redis", "spool", "memory"] | None = None
    epochs: int


# Those of its fields that are numbers of events.
TERMS = tuple(
    name
    for name in Balance.__struct_fields__
    if name not in {"balanced", "exact", "queue", "epochs"}
)


class Glance(NamedTuple):
    """A queue's state, and its present tally before and after it was read."""

    before: Tally
    status: QueueStatus
    after: Tally


@dataclass(frozen=True, slots=True)
class Reading:
    """A queue between two looks into the books; the present epoch did not change meanwhile."""

    before: Sequence[Account]
    glance: Glance
    after: Sequence[Account]

    @property
    def uncertain(self) -> int:
        """By how many events the present epoch's difference is not known."""
        low, high = self._difference()
        return high - low

    def balance(self) -> Balance:
        """Return the balance, with every difference that is certain."""
        low, high = self._difference()
        removed, reappeared = max(0, low), max(0, -high)
        status = self.glance.status
        first = _account(self.before, self.glance.after.epoch)
        accepted = self._accepted(self.glance.after, first)
        in_flight = accepted - sum(first.settled) - self._held
        # What a spool holds was noted before the queue told what it took over from it.
        over = [
            _brought_up(account, self.glance.after)
            for account in self.before
            if account.epoch != first.epoch
        ]
        missing = removed + sum(account.missing for account in over)
        accounts = [*over, first]
        return Balance(
            **_totals(accounts),
            accepted=accepted + sum(map(_accepted_in, over)),
            waiting=status.size + sum(account.held for account in over),
            in_flight=in_flight - removed + reappeared,
            damaged=self._damaged + sum(account.damaged for account in over),
            removed_outside=missing,
            reappeared=reappeared,
            balanced=not (missing or reappeared or any(one.rolled_back for one in accounts)),
            exact=low == high,
            queue=status.backend,
        )

    def _difference(self) -> tuple[int, int]:
        """Return the least and the most events of the present epoch that can be missing.

        The queue still counts a delivery as in flight between the commit and `done`.
        """
        status = self.glance.status
        first = _account(self.before, self.glance.before.epoch)
        last = _account(self.after, self.glance.after.epoch)
        twice = min(status.in_flight, max(first.unsettled, last.unsettled))
        least = self._accepted(self.glance.before, last) - sum(last.settled) - status.in_flight
        most = self._accepted(self.glance.after, first) - sum(first.settled) - status.in_flight
        return least - self._held, most - self._held + twice

    def _accepted(self, tally: Tally, account: Account) -> int:
        if tally.epoch == NO_EPOCH:
            # Nobody counted these: what is there has been accepted.
            return sum(account.settled) + self._held + self.glance.status.in_flight
        return tally.accepted + account.rolled_back - account.moved

    @property
    def _held(self) -> int:
        """How many events the queue has counted that wait in it or are damaged."""
        return self.glance.status.size + self._damaged

    @property
    def _damaged(self) -> int:
        """How many of them are damaged: those of Redis are in spools, which count them."""
        status = self.glance.status
        return 0 if status.backend == "redis" else status.damaged


def without_queue(accounts: Sequence[Account]) -> Balance:
    """Return what the books alone tell."""
    return Balance(accepted=sum(map(_accepted_in, accounts)), **_totals(accounts))


def _account(accounts: Sequence[Account], epoch: UUID) -> Account:
    empty = Account(epoch, 0, 0, Appended(0, 0, 0, 0), 0)
    return next((account for account in accounts if account.epoch == epoch), empty)


def _brought_up(account: Account, present: Tally) -> Account:
    """Return an account with what the present epoch took over from it, by the latest word."""
    taken = dict(present.moves).get(account.epoch, 0)
    noted = {move.into: move for move in account.moves}
    move = noted.get(present.epoch, Moved(present.epoch, 0))
    noted[present.epoch] = move._replace(events=max(move.events, taken))
    return account._replace(moves=tuple(noted.values()))


def _accepted_in(over: Account) -> int:
    """Return what an epoch accepted that no queue has now, without what went on into another.

    What was found had been accepted, also in a last second that nobody noted any more.
    """
    return over.found + over.missing - over.moved


def _totals(accounts: Sequence[Account]) -> dict[str, Any]:
    return {
        **{
            name: sum(getattr(account.settled, name) for account in accounts)
            for name in Appended._fields
        },
        "rolled_back": sum(account.rolled_back for account in accounts),
        "epochs": sum(account.epoch != NO_EPOCH for account in accounts),
    }
