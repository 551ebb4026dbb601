"""What model calls may cost: reserved before a call, settled after it."""

from collections.abc import Callable
from datetime import UTC, date, datetime


def utc_today() -> date:
    """Return the day it is in UTC."""
    return datetime.now(UTC).date()


class Budget:
    """Nano-dollars a review and a UTC day; None is no bound.

    What is reserved at one time and spent before never exceeds the bounds; what a call then really
    costs may, since its tokens can only be estimated before.
    """

    def __init__(
        self,
        *,
        per_review_nanos: int | None = None,
        per_day_nanos: int | None = None,
        today: Callable[[], date] = utc_today,
    ) -> None:
        self._per_review = per_review_nanos
        self._per_day = per_day_nanos
        self._today = today
        self._day = today()
        self._spent = 0
        self._reserved = 0

    @property
    def is_spent(self) -> bool:
        """Whether nothing is left of this day."""
        self._turn()
        return self._per_day is not None and self._spent + self._reserved >= self._per_day

    def restore(self, day: date, nanos: int) -> None:
        """Lift what was spent on `day` to at least `nanos`, which others have counted."""
        self._turn()
        if day == self._day:
            self._spent = max(self._spent, nanos)

    def purse(self) -> "Purse":
        """Return what one review may spend."""
        return Purse(self, self._per_review)

    def _reserve(self, nanos: int) -> date | None:
        self._turn()
        if self._per_day is not None and self._spent + self._reserved + nanos > self._per_day:
            return None
        self._reserved += nanos
        return self._day

    def _settle(self, day: date, reserved: int, nanos: int) -> None:
        self._turn()
        if day == self._day:
            self._reserved -= reserved
            self._spent += nanos

    def _turn(self) -> None:
        today = self._today()
        if today != self._day:
            self._day, self._spent, self._reserved = today, 0, 0


class Purse:
    """What one review spends, all attempts together."""

    def __init__(self, budget: Budget, bound: int | None) -> None:
        self._budget = budget
        self._bound = bound
        self._spent = 0

    def reserve(self, nanos: int) -> "Reservation | None":
        """Set `nanos` aside for one call; None where the review or the day has no more."""
        if self._bound is not None and self._spent + nanos > self._bound:
            return None
        day = self._budget._reserve(nanos)  # noqa: SLF001 - two halves of one thing
        if day is None:
            return None
        self._spent += nanos
        return Reservation(self, day, nanos)

    def _settle(self, day: date, reserved: int, nanos: int) -> None:
        self._spent += nanos - reserved
        self._budget._settle(day, reserved, nanos)  # noqa: SLF001


class Reservation:
    """Nano-dollars set aside for one call."""

    def __init__(self, purse: Purse, day: date, nanos: int) -> None:
        self._purse = purse
        self._day = day
        self._nanos = nanos

    def settle(self, nanos: int | None) -> None:
        """Count what the call cost, once; None: all that was set aside, since it may have."""
        spent = self._nanos if nanos is None else nanos
        self._purse._settle(self._day, self._nanos, spent)  # noqa: SLF001
