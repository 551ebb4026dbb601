"""What one worker knows of the requests that a key may still make at an endpoint."""

from collections import deque
from collections.abc import Callable
from math import ceil, inf
from typing import NamedTuple

from logging_service.errors import RateLimited
from logging_service.permits import Claim, Grant
from logging_service.settings import Rate

# A hundredth of the limit is claimed at once: who shares it sees the rest within that.
_CHUNKS = 100

Told = Callable[[RateLimited | None], None]


class Allowance(NamedTuple):
    """What a key may still do: `remaining` of `limit` requests until `reset_seconds` are over."""

    limit: int
    remaining: int
    reset_seconds: int
    window_seconds: int

    def headers(self) -> dict[str, str]:
        """Return RateLimit and RateLimit-Policy as draft-ietf-httpapi-ratelimit-headers-11 has."""
        return {
            "RateLimit-Policy": f'"default";q={self.limit};w={self.window_seconds}',
            "RateLimit": f'"default";r={self.remaining};t={self.reset_seconds}',
        }


class Window:
    """The permits that a worker holds for a key at an endpoint, until they end.

    `low`: as few permits left as more are claimed at. `is_final`: there are no more to be had.
    `is_asked`: a claim is on its way. `waiting`: who has to be told that there is a permit, or not.
    """

    __slots__ = (
        "_chunk",
        "_endpoint",
        "_key_id",
        "_lent",
        "_rate",
        "_spent",
        "_taken",
        "_told",
        "ends",
        "held",
        "is_asked",
        "is_final",
        "low",
        "waiting",
    )

    def __init__(self, key_id: str, endpoint: str, rate: Rate) -> None:
        self._key_id = key_id
        self._endpoint = endpoint
        self.is_asked = False
        self.waiting: deque[Told] = deque()
        self.begin(rate)

    def begin(self, rate: Rate) -> None:
        """Begin anew: nothing is held, and when it ends is not known yet."""
        self._rate = rate
        self._chunk = max(1, rate[0] // _CHUNKS)
        self.low = self._chunk // 2
        self.ends = inf
        self.held = 0
        self.is_final = False
        self._taken = 0
        self._lent = 0
        self._spent = 0
        self._told = 0

    def claim(self) -> Claim:
        """Return what to ask for, a chunk, or as much as is waited for, and what to tell."""
        self._told = spent = self._spent
        self._spent = 0
        self._taken += spent
        # Others may have something to tell as well, before anything is claimed ahead of need.
        wanted = max(0 if spent else self._chunk, len(self.waiting))
        return Claim(self._key_id, self._endpoint, self._rate, wanted, spent)

    def take_back_claim(self) -> None:
        """Tell again with the next claim what the last one told, for want of an answer."""
        self._taken -= self._told
        self._spent += self._told
        self._told = 0

    def receive(self, grant: Grant, asked_at: float) -> None:
        """Add what was granted to a claim that was sent at `asked_at`."""
        self.take_back()
        self._told = 0
        # Counted from the question, not from the answer: so it ends here before it does there.
        ends = asked_at + grant.left_seconds
        is_another = self.ends <= asked_at or ends > self.ends + self._rate[1] / 2
        self.held = grant.granted if is_another else self.held + grant.granted
        self.ends = ends
        self.is_final = grant.taken >= self._rate[0]
        self._taken = grant.taken

    def lend(self, now: float, workers: int) -> None:
        """Allow this worker's share of what is left, of `workers`, until the window ends."""
        if self.ends == inf:
            self.ends = now + self._rate[1]
        self._lent = self._share(workers)
        self.held += self._lent
        self.is_final = True

    def take_back(self) -> bool:
        """Take back what was lent; whether a part of it was used, which the next claim tells."""
        if not self._lent:
            return False
        used = max(0, self._lent - self.held)
        self.held = max(0, self.held - self._lent)
        self._spent += used
        self._lent = 0
        self.is_final = False
        return used > 0

    def allowance(self, now: float, workers: int) -> Allowance:
        """Return what is left, as far as this worker knows, one of `workers`."""
        limit, seconds = self._rate
        more = 0 if self.is_final else self._share(workers)
        reset = seconds if self.ends == inf else max(1, ceil(self.ends - now))
        return Allowance(limit, self.held + more, reset, seconds)

    def _share(self, workers: int) -> int:
        left = max(0, self._rate[0] - self._taken - self._spent)
        # A share of nothing would be an outage of ours for the sake of a few requests too many.
        return min(left, max(1, left // workers))
